"""Owns the ranks of one attempt as processes: their environment, start, stop, and the proof that nothing of them is left."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from linux import child, proc
from linux.cgroup import Cgroup
from linux.oom import OomWatch
from worker.devices import ascend, plog
from worker.devices.simulator import HOST_VARIABLE

EXEC_FAILED: Final = 127
HALF_STARTED_S: Final = 10.0
"""What is given to ranks that are ended because a later one could not be forked."""


PASSED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "XDG_CACHE_HOME"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_ARENA_MAX", "PYTHONPATH", "PYTHONHASHSEED"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR"),
    }
)
PASSED_PREFIXES: Final = (
    *("LC_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "TORCH_", "TORCHINDUCTOR_", "TRITON_", "GLOO_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "CUBLAS_", "ASCEND_", "HCCL_", "ATB_", "TASK_QUEUE_", "COMBINED_", "PYTORCH_"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "TRANSFORMERS_", "TOKENIZERS_"),
)
"""All that a rank sees of this process's environment; nothing of the database, the broker or a token is in it."""


@dataclass
class Rank:
    """One training process. `ended_at` is boot time; `told_at` is when we first sent it a signal."""

    number: int
    pid: int
    exit_code: int | None = None
    ended_at: float | None = None
    told_at: float | None = None


@dataclass
class Ranks:
    """The ranks of one attempt and every process below them. Lives in one thread; this process is their subreaper."""

    members: list[Rank]
    any_left: bool = True
    cgroup: Cgroup | None = None
    oom: OomWatch = field(default_factory=lambda: OomWatch(None))

    @property
    def running(self) -> list[Rank]:
        return [rank for rank in self.members if rank.exit_code is None]

    @property
    def first_failure_at(self) -> float | None:
        """When the first of them ended otherwise than well, or None."""
        return min(
            (rank.ended_at for rank in self.members if rank.exit_code and rank.ended_at is not None), default=None
        )

    def collect(self) -> None:
        """Take note of what has ended. To be called on every SIGCHLD."""
        ended, self.any_left = proc.reap()
        if not self.any_left and self.cgroup is not None:
            self.any_left = self.cgroup.is_populated
        now = proc.boottime()
        by_pid = {rank.pid: rank for rank in self.members}
        for pid, exit_code in ended:
            if rank := by_pid.get(pid):
                rank.exit_code, rank.ended_at = exit_code, now

    def ask_to_stop(self) -> None:
        """SIGTERM to the ranks alone, once each: a loader worker that gets one makes its rank fail."""
        self._signal([rank.pid for rank in self.running if rank.told_at is None], signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to every process of the attempt, once. New ones may have been forked meanwhile: call it until `any_left` is False."""
        if self.cgroup is not None:
            self._note_told([rank.pid for rank in self.running])
            self.cgroup.kill()
        self._signal(proc.descendants(os.getpid()), signal.SIGKILL)

    def leave(self) -> None:
        """Nothing of them is left, or nothing that can be ended."""
        if self.cgroup is not None:
            self.cgroup.remove()

    def _signal(self, pids: list[int], signum: signal.Signals) -> None:
        self._note_told(pids)
        proc.send(pids, signum)

    def _note_told(self, pids: list[int]) -> None:
        now = proc.boottime()
        for rank in self.running:
            if rank.pid in pids and rank.told_at is None:
                rank.told_at = now


def start(
    module: str,
    *,
    run_dir: Path,
    attempt_id: str,
    devices: Sequence[int],
    device_type: str,
    cpu_threads: int,
    allow_network: bool,
    cgroup: Cgroup | None,
    simulated_host: str | None = None,
) -> Ranks:
    """Start one rank a device, reading `run_dir`/config.json. The command line is constant: nothing a user gave is on it.

    `simulated_host`: the host whose cards of `device_type` are CPU processes. Raises OSError; then none of them is left running.
    """
    argv = [sys.executable, "-P", "-m", module, "--config", str(run_dir / "config.json")]
    shared = environment(
        os.environ,
        run_dir=run_dir,
        attempt_id=attempt_id,
        devices=devices,
        device_type=device_type,
        cpu_threads=cpu_threads,
        allow_network=allow_network,
        simulated_host=simulated_host,
    )
    started = Ranks([], cgroup=cgroup, oom=OomWatch(cgroup))
    try:
        if device_type == "npu":
            (run_dir / plog.DIR).mkdir(mode=0o700, exist_ok=True)
        for number in range(len(devices)):
            variables = shared | {"RANK": str(number), "LOCAL_RANK": str(number)}
            pid = _spawn(argv, variables, run_dir / f"r{number}.log", cgroup)
            started.members.append(Rank(number, pid))
    except OSError:
        end_all(started, within_s=HALF_STARTED_S)
        started.leave()
        raise
    return started


def environment(
    inherited: Mapping[str, str],
    *,
    run_dir: Path,
    attempt_id: str,
    devices: Sequence[int],
    device_type: str,
    cpu_threads: int,
    allow_network: bool,
    simulated_host: str | None = None,
) -> dict[str, str]:
    """What every rank of an attempt sees, but for its number: an allow-list of ours, and the facts of the launch."""
    variables = {name: value for name, value in inherited.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
    variables |= {
        proc.ATTEMPT_VARIABLE: attempt_id,
        "WORLD_SIZE": str(len(devices)),
        "LOCAL_WORLD_SIZE": str(len(devices)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(cpu_threads),
        "PYTHONPATH": child.python_path(variables),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        # setproctitle would erase the environment by which strays are found.
        "SPT_NOENV": "1",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, sorted(devices))) if device_type == "cuda" else "",
        # As nvidia-smi counts them; by default the fastest is the first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    variables.pop("ASCEND_RT_VISIBLE_DEVICES", None)
    if device_type == "npu":
        variables |= ascend.variables(inherited, devices=devices, run_dir=run_dir)
    if device_type != "npu" or simulated_host is not None:
        # With torch_npu installed and no CANN a plain `import torch` fails.
        variables["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    if simulated_host is not None:
        variables[HOST_VARIABLE] = simulated_host
    if not allow_network:
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def _free_port() -> int:
    """For trainers that meet by address: ours meet by a file, so that nobody can steal the port meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _spawn(argv: list[str], variables: dict[str, str], log: Path, cgroup: Cgroup | None) -> int:
    """Fork and exec from a process with one thread: between the two nothing can be locked."""
    parent_pid = os.getpid()
    pid = os.fork() if cgroup is None else cgroup.fork()
    if pid == 0:
        try:
            _become(argv, variables, log, parent_pid)
        finally:
            os._exit(EXEC_FAILED)
    return pid


def _become(argv: list[str], variables: dict[str, str], log: Path, parent_pid: int) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, target)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    proc.die_with_parent(parent_pid, by=signal.SIGTERM)
    try:
        os.execve(argv[0], argv, variables)
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())


def end_all(ranks: Ranks, *, within_s: float) -> bool:
    """Kill until no process is left; False when some survive `within_s`, as one in an uninterruptible wait can."""
    deadline = proc.boottime() + within_s
    pause_s = 0.001
    while True:
        # First, because looking for whom to kill reads all of /proc, and mostly nobody is left.
        ranks.collect()
        if not ranks.any_left:
            return True
        ranks.kill()
        if proc.boottime() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(0.1, 1.5 * pause_s)
