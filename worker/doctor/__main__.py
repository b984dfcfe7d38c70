"""`python -m worker.doctor [--json]`; what it does is said in worker.doctor.runner."""

from __future__ import annotations

from worker.doctor import runner

runner.main()
