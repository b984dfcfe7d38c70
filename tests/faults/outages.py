"""Random trouble with servers: the API, the broker, the database, clocks."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack

from sqlalchemy import text

from store import attempts
from store.celery_app import Sender, app
from tests.faults import injections, programs
from tests.faults.programs import lesson
from tests.faults.scene import Scene


def kill_api(scene: Scene) -> str:
    """While somebody submits: each key gets one job, whatever was answered."""

    def submit() -> None:
        for _ in range(4):
            scene.jobs.append(scene.plane.submit(lesson(10)))

    thread = threading.Thread(target=submit)
    thread.start()
    waited_s = scene.pause(0.3)
    scene.plane.api.kill()
    scene.pause(0.5)
    scene.plane.start()
    thread.join()
    return f"{waited_s * 1000:.0f} ms after submissions began"


def stop_api(scene: Scene) -> str:
    scene.plane.api.kill(signal.SIGTERM)
    return f"SIGTERM, gone for {scene.pause(2):.1f} s"


def kill_broker(scene: Scene) -> str:
    scene.plane.broker.kill()
    job_id = scene.plane.submit(lesson(10))
    scene.jobs.append(job_id)
    programs.until_ended(scene.plane, job_id, stated_s=60)
    return f"a new job ran; gone for {scene.pause(3):.1f} s more"


def empty_broker(scene: Scene) -> str:
    if scene.rng.random() < 0.5:
        injections.flush_broker(scene.plane)
        return "FLUSHALL"
    injections.restart_broker_empty(scene.plane)
    return "restarted empty"


def reset_broker(scene: Scene) -> str:
    for _ in range(5):
        scene.plane.ways["broker"].reset()
        scene.pause(1.2)
    return "5 times"


def freeze_broker(scene: Scene) -> str:
    with injections.frozen(scene.plane.broker.pid):
        return f"for {scene.pause(3):.1f} s"


def storm(scene: Scene) -> str:
    """The same messages 100 times, of attempts that there are and of such as there never were."""
    sender = Sender(app(scene.plane.settings.broker_url))
    with scene.plane.database.read() as session:
        known = [one.id for job_id in scene.jobs for one in attempts.of_job(session, job_id)]
    for _ in range(100):
        sender.schedule()
        for attempt_id in [*known[:3], "never-was"]:
            sender.launch(scene.host(), attempt_id)
    return "100 messages of each kind"


def lock_database(scene: Scene) -> str:
    """Up to longer than a lease: whoever cannot renew fences itself."""
    with injections.locked_database(scene.plane):
        return f"for {scene.pause(1.3 * scene.plane.settings.lease_s):.1f} s"


def lock_tables(scene: Scene) -> str:
    with scene.plane.database.write() as session:
        session.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        return f"for {scene.pause(1.3 * scene.plane.settings.lease_s):.1f} s"


def cut_database(scene: Scene) -> str:
    """For everybody."""
    with ExitStack() as cuts:
        for name, way in scene.plane.ways.items():
            if name != "broker":
                cuts.enter_context(way.cut())
        return f"for {scene.pause(1.3 * scene.plane.settings.lease_s):.1f} s"


def cut_host(scene: Scene) -> str:
    """One host and its supervisors cannot reach the database; the others can."""
    part = f"worker {scene.host()}"
    way = scene.plane.ways[part]
    with way.cut() if scene.rng.random() < 0.5 else way.stalled():
        return f"{part} for {scene.pause(2.5 * scene.plane.settings.lease_s):.1f} s"


def lose_answers(scene: Scene) -> str:
    ways = {name: way for name, way in scene.plane.ways.items() if name != "broker"}
    name = scene.rng.choice(sorted(ways))
    lost = 0
    for _ in range(6):
        before = ways[name].num_lost
        ways[name].lose_answer(scene.rng.randrange(1, 12), of_commits=scene.rng.random() < 0.5)
        scene.pause(0.4)
        lost += ways[name].num_lost - before
    return f"{lost} of {name}"


def jump_clock(scene: Scene) -> str:
    part = scene.rng.choice(["api", "worker", "worker.forkserver.server", "tests.fake_trainer"])
    offset_s = scene.rng.choice([-3600, 3600])
    scene.plane.switch(f"clock {part}", str(offset_s))
    scene.pause(2)
    scene.plane.switch(f"clock {part}", None)
    return f"{part} by {offset_s} s and back"
