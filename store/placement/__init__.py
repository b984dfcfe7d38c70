"""The planner, pure: which queued jobs go where now, who makes room, and why the others wait. No SQL, no clock, no state between passes."""

from store.placement.planning import plan
from store.placement.situation import (
    ANY,
    HostCapacity,
    Placement,
    Plan,
    Preemption,
    QueuedJob,
    Reservation,
    RunningJob,
    Share,
    Wait,
)

__all__ = [
    "ANY",
    "HostCapacity",
    "Placement",
    "Plan",
    "Preemption",
    "QueuedJob",
    "Reservation",
    "RunningJob",
    "Share",
    "Wait",
    "plan",
]
