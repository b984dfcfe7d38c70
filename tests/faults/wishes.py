"""Random wishes of users and of the planner, at any moment of a job's life."""

from __future__ import annotations

from store import jobs
from store.errors import LongyardError
from tests.faults import programs
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from tests.faults.scene import Scene


def cancel(scene: Scene) -> str:
    """A job of its own, at a random instant of its life."""
    job_id = scene.plane.submit(lesson(scene.rng.randrange(1, 60)), num_devices=scene.rng.choice([1, 2]))
    scene.jobs.append(job_id)
    waited_s = scene.pause(0.8)
    scene.plane.client.ask(job_id, "cancel")
    return f"after {waited_s:.2f} s"


def cancel_and_retry(scene: Scene) -> str:
    job_id = scene.rng.choice(scene.jobs)
    scene.plane.client.ask(job_id, "cancel")
    programs.until_ended(scene.plane, job_id)
    return f"{job_id}, retried: {scene.plane.client.ask(job_id, 'retry')}"


def pause_and_resume(scene: Scene) -> str:
    job_id = scene.rng.choice(scene.jobs)
    times = scene.rng.randrange(1, 4)
    for _ in range(times):
        scene.plane.client.ask(job_id, "pause")
        scene.pause(0.6)
        scene.plane.client.ask(job_id, "resume")
    return f"{job_id} {times} times"


def preempt(scene: Scene) -> str:
    asked = [job_id for job_id in scene.jobs if _preempt(scene.plane, job_id)]
    return f"{len(asked)} jobs"


def _preempt(plane: Plane, job_id: str) -> bool:
    """As the planner does it."""
    try:
        with plane.database.write() as session:
            jobs.preempt(session, job_id, why="the loop")
    except LongyardError:
        return False
    return True
