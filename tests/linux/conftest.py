"""A worker's host, on which a cgroup is worth testing."""

from tests.worker.conftest import host, plane, shared_host

__all__ = ["host", "plane", "shared_host"]
