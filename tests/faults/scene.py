"""What a random fault meets: a plane whose jobs run, and the chance that says which of them it strikes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from store import attempts
from tests.faults import injections
from tests.faults.plane import Plane
from worker.supervisor import run_lock


class Missed(Exception):
    """There was nothing to strike: the job had just ended, say."""


@dataclass(frozen=True)
class Scene:
    """What a fault may strike. `jobs` are those of this round; faults that submit or wait add theirs."""

    plane: Plane
    rng: random.Random
    jobs: list[str]

    def running(self) -> str:
        """A job whose ranks run now."""
        ids = self.jobs[:]
        self.rng.shuffle(ids)
        for job_id in ids:
            if self.supervisor(job_id) and injections.ranks_of(self.plane, job_id):
                return job_id
        raise Missed("no job runs")

    def supervisor(self, job_id: str) -> int | None:
        with self.plane.database.read() as session:
            attempt = attempts.newest(session, job_id)
        return run_lock.holder(self.plane.run_dir(job_id, attempt.number)) if attempt else None

    def host(self) -> str:
        return self.rng.choice(sorted(self.plane.devices))

    def pause(self, longest_s: float) -> float:
        """Wait for a random time; answers it."""
        waited_s = self.rng.uniform(0, longest_s)
        time.sleep(waited_s)
        return waited_s


Strike = Callable[[Scene], str]
"""Does it and says what it did; healing is the loop's."""
