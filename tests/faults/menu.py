"""The faults that the loop chooses from: each strikes a plane while jobs run, says what it did, and leaves healing to the loop."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import text

from store import attempts, checkpoints, jobs
from store.broker import Sender, app
from store.errors import LongyardError
from tests.faults import injections, programs
from tests.faults.plane import Plane
from tests.faults.programs import lesson
from worker import runlock


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
        return runlock.holder(self.plane.run_dir(job_id, attempt.number)) if attempt else None

    def host(self) -> str:
        return self.rng.choice(sorted(self.plane.devices))

    def pause(self, longest_s: float) -> float:
        """Wait for a random time; answers it."""
        waited_s = self.rng.uniform(0, longest_s)
        time.sleep(waited_s)
        return waited_s


Strike = Callable[[Scene], str]


def kill_worker(scene: Scene) -> str:
    host = scene.host()
    injections.kill_worker(scene.plane, host)
    return f"worker {host} gone for {scene.pause(4):.1f} s"


def kill_launcher(scene: Scene) -> str:
    host = scene.host()
    injections.kill_launcher(scene.plane, host)
    return f"of {host}"


def kill_supervisor(scene: Scene) -> str:
    job_id = scene.running()
    _kill(scene.supervisor(job_id))
    return f"of {job_id}"


def kill_rank(scene: Scene) -> str:
    job_id = scene.running()
    ranks = injections.ranks_of(scene.plane, job_id)
    if not ranks:
        raise Missed(job_id)
    rank = scene.rng.choice(sorted(ranks))
    signum = scene.rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
    _kill(ranks[rank], signum)
    return f"rank {rank} of {job_id} by {signum.name}"


def kill_everything_of_an_attempt(scene: Scene) -> str:
    job_id = scene.running()
    pids = [scene.supervisor(job_id), *injections.ranks_of(scene.plane, job_id).values()]
    scene.rng.shuffle(pids)
    for pid in pids:
        _kill(pid)
    return f"{job_id}, {len(pids)} processes"


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


def lock_database(scene: Scene) -> str:
    """Up to longer than a lease: whoever cannot renew fences itself."""
    with injections.locked_database(scene.plane):
        return f"for {scene.pause(1.3 * scene.plane.settings.lease_s):.1f} s"


def freeze_supervisor(scene: Scene) -> str:
    pid = scene.supervisor(scene.running())
    if pid is None:
        raise Missed("its supervisor has just left")
    with injections.frozen(pid):
        return f"for {scene.pause(2 * scene.plane.settings.lease_s):.1f} s"


def freeze_worker(scene: Scene) -> str:
    host = scene.host()
    with injections.frozen(scene.plane.worker(host).pid):
        return f"{host} for {scene.pause(1.5 * scene.plane.settings.lease_s):.1f} s"


def freeze_api(scene: Scene) -> str:
    with injections.frozen(scene.plane.api.pid):
        return f"for {scene.pause(3):.1f} s"


def freeze_rank(scene: Scene) -> str:
    ranks = injections.ranks_of(scene.plane, scene.running())
    if not ranks:
        raise Missed("its ranks have just left")
    with injections.frozen(scene.rng.choice(sorted(ranks.values()))):
        return f"for {scene.pause(1.5):.1f} s"


def lose_launch(scene: Scene) -> str:
    """The launcher stands still, so that attempts stay placed and not begun; then its host dies for longer than a lease, or not."""
    host = scene.host()
    with injections.frozen(injections.launcher_of(scene.plane, host)):
        scene.jobs.extend(scene.plane.submit(lesson(20)) for _ in range(3))
        scene.pause(0.5)
        injections.kill_worker(scene.plane, host)
    return f"worker {host} gone for {scene.pause(1.5 * scene.plane.settings.lease_s):.1f} s"


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


def jump_clock(scene: Scene) -> str:
    part = scene.rng.choice(["api", "worker", "worker.launcher", "tests.fake_trainer"])
    offset_s = scene.rng.choice([-3600, 3600])
    scene.plane.switch(f"clock {part}", str(offset_s))
    scene.pause(2)
    scene.plane.switch(f"clock {part}", None)
    return f"{part} by {offset_s} s and back"


def spoil_checkpoint(scene: Scene) -> str:
    job_id = scene.running()
    with scene.plane.database.read() as session:
        saved = checkpoints.newest_first(session, job_id)
    if not saved:
        raise Missed("nothing is saved yet")
    how = scene.rng.choice(["truncate", "flip"])
    injections.spoil(Path(saved[0].dir) / "state.json", how, at=scene.rng.random())
    for pid in injections.ranks_of(scene.plane, job_id).values():
        _kill(pid)
    return f"{how} step {saved[0].step} of {job_id}"


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


def drain_and_return(scene: Scene) -> str:
    """An upgrade of a host: its worker is asked to leave, and comes back."""
    host = scene.host()
    scene.plane.worker(host).kill(signal.SIGTERM)
    return host


def reboot(scene: Scene) -> str:
    host = scene.host()
    injections.reboot(scene.plane, host, boot_id=f"boot-{scene.rng.random()}")
    return host


def kill_all(scene: Scene) -> str:
    """The plane's own processes, all at once; what trains stays."""
    for part in scene.plane.parts.values():
        part.kill()
    return f"gone for {scene.pause(3):.1f} s"


def lock_tables(scene: Scene) -> str:
    with scene.plane.database.write() as session:
        session.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        return f"for {scene.pause(1.3 * scene.plane.settings.lease_s):.1f} s"


def cut_host(scene: Scene) -> str:
    """One host and its supervisors cannot reach the database; the others can."""
    part = f"worker {scene.host()}"
    way = scene.plane.ways[part]
    with way.cut() if scene.rng.random() < 0.5 else way.stalled():
        return f"{part} for {scene.pause(2.5 * scene.plane.settings.lease_s):.1f} s"


def cut_database(scene: Scene) -> str:
    """For everybody."""
    with ExitStack() as cuts:
        for name, way in scene.plane.ways.items():
            if name != "broker":
                cuts.enter_context(way.cut())
        return f"for {scene.pause(1.3 * scene.plane.settings.lease_s):.1f} s"


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


@dataclass(frozen=True)
class Fault:
    """Its number in the list of faults; `only` is the database that it can be done to."""

    number: str
    strike: Strike
    only: str = ""


_FAULTS: Final = (
    Fault("F1", kill_worker),
    Fault("F1", kill_launcher),
    Fault("F2", kill_supervisor),
    Fault("F3 F4", kill_rank),
    Fault("F2 F3", kill_everything_of_an_attempt),
    Fault("F5", kill_api),
    Fault("F5", stop_api),
    Fault("F6", kill_broker),
    Fault("F7", empty_broker),
    Fault("F8", reset_broker),
    Fault("F8", freeze_broker),
    Fault("F9", lock_database, only="sqlite"),
    Fault("F9", lock_tables, only="postgres"),
    Fault("F9", cut_database, only="postgres"),
    Fault("F10", lose_answers, only="postgres"),
    Fault("F11", cut_host, only="postgres"),
    Fault("F12", freeze_supervisor),
    Fault("F12", freeze_worker),
    Fault("F12", freeze_api),
    Fault("F12", freeze_rank),
    Fault("F13", lose_launch),
    Fault("F14", storm),
    Fault("F15", jump_clock, only="sqlite"),
    Fault("F18", spoil_checkpoint),
    Fault("F19", cancel),
    Fault("F19", cancel_and_retry),
    Fault("F22", reboot),
    Fault("F34", drain_and_return),
    Fault("F36", pause_and_resume),
    Fault("F36", preempt),
    Fault("F1 F5 F6", kill_all),
)

MENU: Final = {fault.strike.__name__: fault for fault in _FAULTS}


def for_database(kind: str) -> list[str]:
    """Names of the faults that a plane on `sqlite` or `postgres` can be done."""
    return sorted(name for name, fault in MENU.items() if fault.only in ("", kind))


def _kill(pid: int | None, signum: signal.Signals = signal.SIGKILL) -> None:
    if pid is None:
        raise Missed("it has just left")
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        raise Missed("it has just ended") from None


def _preempt(plane: Plane, job_id: str) -> bool:
    """As the planner does it."""
    try:
        with plane.database.write() as session:
            jobs.preempt(session, job_id, why="the loop")
    except LongyardError:
        return False
    return True
