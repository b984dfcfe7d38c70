"""Starts our own programs as child processes: where our packages are found, and the PYTHONPATH that finds them.

Standard library only: `./run` uses it before any package is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
"""The directory that holds our packages: a checkout, or site-packages."""


def python_path(environment: Mapping[str, str] = os.environ) -> str:
    """The PYTHONPATH of a child: our packages first, so that nothing of the user's shadows them, then what was there."""
    return os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
