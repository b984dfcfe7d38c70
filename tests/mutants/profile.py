"""A pytest plugin for the runs of the mutants: the first counterexample is enough, it need not be a small one."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None)
settings.load_profile("mutants")
