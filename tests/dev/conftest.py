"""The inputs of the demo's tests, made once."""

from tests.cli.conftest import inputs

__all__ = ["inputs"]
