"""`python -m trainer.estimate`: an estimate in a process of its own; what it does is said in trainer.estimate.request."""

from __future__ import annotations

import sys

from trainer.estimate import request

sys.exit(request.main())
