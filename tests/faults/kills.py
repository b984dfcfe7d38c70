"""Random deaths and standstills: of workers, supervisors, ranks, hosts."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from store import checkpoints
from tests.faults import injections, programs
from tests.faults.programs import lesson
from tests.faults.scene import Missed, Scene


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


def kill_all(scene: Scene) -> str:
    """The plane's own processes, all at once; what trains stays."""
    for part in scene.plane.parts.values():
        part.kill()
    return f"gone for {scene.pause(3):.1f} s"


def reboot(scene: Scene) -> str:
    host = scene.host()
    injections.reboot(scene.plane, host, boot_id=f"boot-{scene.rng.random()}")
    return host


def drain_and_return(scene: Scene) -> str:
    """An upgrade of a host: its worker is asked to leave, and comes back."""
    host = scene.host()
    scene.plane.worker(host).kill(signal.SIGTERM)
    return host


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


def hang_rank(scene: Scene) -> str:
    """A job of its own whose second rank stands still until it is judged; then its next attempt goes on."""
    gate = scene.plane.root / f"gate-{scene.rng.random()}"
    (training, ending) = lesson(60, save_every=10)
    silent = lesson(60, save_every=10, hold_at=25, gate=gate)[0]
    program = [{**training, "rank": 0}, {**silent, "rank": 1}, {"do": "all_reduce"}, ending]
    job_id = scene.plane.submit(program, num_devices=2)
    scene.jobs.append(job_id)
    closed = programs.until_closed(scene.plane, job_id, stated_s=300)
    gate.touch()
    return f"{job_id}: {closed['exit_reason']}"


def lose_launch(scene: Scene) -> str:
    """The launcher stands still, so that attempts stay placed and not begun; then its host dies for longer than a lease, or not."""
    host = scene.host()
    with injections.frozen(injections.launcher_of(scene.plane, host)):
        scene.jobs.extend(scene.plane.submit(lesson(20)) for _ in range(3))
        scene.pause(0.5)
        injections.kill_worker(scene.plane, host)
    return f"worker {host} gone for {scene.pause(1.5 * scene.plane.settings.lease_s):.1f} s"


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


def _kill(pid: int | None, signum: signal.Signals = signal.SIGKILL) -> None:
    if pid is None:
        raise Missed("it has just left")
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        raise Missed("it has just ended") from None
