"""Rounds of random faults: jobs are submitted, something goes wrong, everything must come to a good end, and every check is made."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults import checks
from tests.faults.client import TERMINAL
from tests.faults.menu import MENU, for_database
from tests.faults.plane import Operation, Plane
from tests.faults.programs import lesson
from tests.faults.scene import Missed, Scene

CONVERGED_S = 600.0
"""Stated for the default timings: the longest way is a lease that runs out twice, and five waits before a retry."""


@dataclass(frozen=True)
class Done:
    """One fault of one round. `converged_s` is from the end of the fault to the end of every job and process of the round."""

    round: int
    number: str
    name: str
    what: str
    converged_s: float


@dataclass
class Loop:
    """A plane and the chances that befall it. The seed decides what is done; when exactly, the machine does."""

    plane: Plane
    rng: random.Random
    say: Any
    kind: str = "sqlite"
    done: list[Done] = field(default_factory=list[Done])
    ends: dict[str, int] = field(default_factory=dict[str, int])
    num_missed: int = 0

    def run(self, *, until_s: float) -> None:
        """Rounds until the monotonic time. Raises AssertionError at the first violation."""
        number = 0
        while time.monotonic() < until_s:
            number += 1
            self._round(number)

    def _round(self, number: int) -> None:
        scene = Scene(self.plane, self.rng, self._submit())
        time.sleep(self.rng.uniform(0, 1.2))
        names = self.rng.sample(for_database(self.kind), self.rng.choice([1, 1, 2]))
        struck = [(name, what) for name in names if (what := self._strike(scene, name)) is not None]
        began = time.monotonic()
        self.plane.start()
        self._converge(scene.jobs)
        converged_s = time.monotonic() - began
        for name, what in struck:
            self.done.append(Done(number, MENU[name].number, name, what, converged_s))
        words = "; ".join(f"{MENU[name].number} {name} {what}" for name, what in struck) or "nothing"
        self.say(f"{number:4} {words}: {len(scene.jobs)} jobs at their end after {converged_s:.1f} s")

    def _submit(self) -> list[str]:
        return [
            self.plane.submit(self._program(), num_devices=self.rng.choice([1, 1, 1, 2, 3, 4]))
            for _ in range(self.rng.randrange(2, 6))
        ]

    def _program(self) -> list[Operation]:
        before: list[Operation] = [{"do": "write", "hex": "00ffc3e4b80a0d", "times": self.rng.randrange(50)}]
        if self.rng.random() < 0.3:
            before.append({"do": "fork_loader"})
        if self.rng.random() < 0.15:
            before.append({"do": "ignore_stop"})
        return lesson(
            self.rng.randrange(20, 200),
            step_s=self.rng.choice([0.001, 0.005, 0.015]),
            save_every=self.rng.randrange(3, 50),
            before=tuple(before),
        )

    def _strike(self, scene: Scene, name: str) -> str | None:
        try:
            return MENU[name].strike(scene)
        except Missed:
            self.num_missed += 1
            return None
        finally:
            # Each fault heals before the next: two at once are two in one round, on jobs that are still shaken.
            self.plane.start()

    def _converge(self, job_ids: Sequence[str]) -> None:
        client = self.plane.client
        for job_id in job_ids:
            if client.job(job_id)["intent"] == "pause":
                client.ask(job_id, "resume")
        self.plane.until(lambda: self._all_ended(job_ids), f"all of {list(job_ids)} have ended", stated_s=CONVERGED_S)
        checks.all_of(self.plane, job_ids)
        for job_id in job_ids:
            job = client.job(job_id)
            expected = {"succeeded", "cancelled"} if job_id in client.promises.cancelled else {"succeeded"}
            assert job["status"] in expected, f"{job_id} {job['status']}: {job['status_reason']}"
            self.ends[job["status"]] = self.ends.get(job["status"], 0) + 1

    def _all_ended(self, job_ids: Sequence[str]) -> bool:
        return all(self.plane.client.status(job_id) in TERMINAL for job_id in job_ids)
