"""Control groups: read from a tree that a test has written, and used for real where this machine lets us make one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from linux import cgroup, oom, proc
from linux.cgroup import Cgroup
from linux.oom import OomWatch
from tests.worker.processes import is_running

if TYPE_CHECKING:
    from tests.worker.conftest import Plane

MOUNTINFO = r"""22 1 0:21 / /sys rw,nosuid - sysfs sysfs rw
31 22 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
40 31 0:36 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory
41 31 0:38 /docker/abc /sys/fs/cgroup/uni\040fied rw,relatime - cgroup2 cgroup2 rw
"""


def test_where_this_process_is(tmp_path: Path) -> None:
    assert cgroup.path_of("12:memory:/a\n1:name=systemd:/b\n0::/docker/abc/work\n") == "/docker/abc/work"
    assert cgroup.path_of("12:memory:/a\n") is None
    assert cgroup.mounts_of(MOUNTINFO) == [("/docker/abc", Path("/sys/fs/cgroup/uni fied"))]


@pytest.mark.parametrize(
    ("events", "populated"),
    [("populated 1\nfrozen 0\n", True), ("populated 0\nfrozen 0\n", False), ("", False)],
)
def test_who_lives_in_it(tmp_path: Path, events: str, populated: bool) -> None:
    (tmp_path / "cgroup.events").write_text(events)
    assert Cgroup(tmp_path).is_populated is populated
    assert Cgroup(tmp_path / "gone").is_populated is False


@pytest.mark.parametrize(
    "text", ["", "/etc", "/sys/fs/cgroup/longyard-other", "/tmp/longyard-mine", "\0", "/sys/fs/cgroup/../longyard-mine"]
)
def test_a_run_directory_cannot_name_another_group(tmp_path: Path, text: str) -> None:
    (tmp_path / cgroup.FILE).write_text(text)
    assert Cgroup.of_run("mine", tmp_path) is None
    assert Cgroup.of_run("mine", tmp_path / "none") is None


def test_the_kernels_log_names_who_was_killed(tmp_path: Path) -> None:
    """The log is a file here: what was in it before counts for nothing."""
    log = tmp_path / "kmsg"
    log.write_text("6,1,1,-;Out of memory: Killed process 11 (python) total-vm:1kB\n")
    watch = OomWatch(None, kernel_log=str(log))
    if os.readlink("/proc/self/ns/pid") != "pid:[4026531836]":
        pytest.skip("the kernel's log has other pids than those that are seen in this pid namespace")
    with log.open("a") as file:
        file.write("6,2,2,-;Memory cgroup out of memory: Killed process 12 (python) total-vm:1kB\n")
    assert not watch.has_killed([11, 13])
    assert watch.has_killed([12, 13])
    assert watch.has_killed([12]), "what was read is remembered"
    watch.close()


def test_without_a_better_witness_a_counter_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [4]
    monkeypatch.setattr(oom, "kills_here", lambda: counted[0])
    watch = OomWatch(None, kernel_log="/nowhere")
    assert not watch.has_killed([1])
    counted[0] = 5
    assert watch.has_killed([1])


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Cgroup]:
    made = Cgroup.make("a-test", tmp_path)
    if made is None:
        pytest.skip("no control group can be made here: no version 2 hierarchy that this user may write to")
    yield made
    made.kill()
    _until_empty(made)
    made.remove()


def _until_empty(group: Cgroup) -> None:
    end = proc.boottime() + 30
    while group.is_populated:
        proc.reap()
        assert proc.boottime() < end


def _until_in(group: Cgroup, pid: int) -> None:
    end = proc.boottime() + 30
    while str(pid) not in (group.directory / "cgroup.procs").read_text().split():
        assert proc.boottime() < end


def _sleep_in(group: Cgroup) -> int:
    pid = group.fork()
    if pid == 0:
        try:
            os.setsid()
            os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {})
        finally:
            os._exit(1)
    return pid


BORN = """
import os, sys
from pathlib import Path
from linux.cgroup import Cgroup
group = Cgroup(Path(sys.argv[1]))
ready, go = os.pipe()
pid = group.fork()
if pid == 0:
    os.close(go)
    os.read(ready, 1)
    os._exit(0)
print(str(pid) in (group.directory / "cgroup.procs").read_text().split())
os.close(go)
os.waitpid(pid, 0)
"""


def test_a_child_of_a_process_with_one_thread_is_born_in_it(group: Cgroup) -> None:
    """It does nothing before it is looked for."""
    argv = [sys.executable, "-c", BORN, str(group.directory)]
    assert subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout == "True\n"


# A thread's end gives blocks back that the main thread allocated: under the lock of that one's heap.
RACE = """
import os, select, signal, sys, threading
from pathlib import Path
from linux.cgroup import Cgroup
group = Cgroup(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    blocks = [bytearray(600 + index % 40 * 10) for index in range(400)]
    thread = threading.Thread(target=blocks.clear)
    thread.start()
    thread.join()
    heard, said = os.pipe()
    pid = group.fork()
    if pid == 0:
        blocks = [bytearray(600 + index * 37 % 5000) for index in range(500)]
        os._exit(0)
    os.close(said)
    if not select.select([heard], [], [], 30)[0]:
        os.kill(pid, signal.SIGKILL)
        sys.exit("a child waits for ever")
    os.waitpid(pid, 0)
    os.close(heard)
"""


def test_a_thread_that_is_still_leaving_holds_up_no_child(group: Cgroup) -> None:
    """Of children that did not wait for it, one in some hundreds hung in its first malloc."""
    argv = [sys.executable, "-c", RACE, str(group.directory), "1000"]
    assert subprocess.run(argv, capture_output=True, text=True, timeout=100).stderr == ""


def test_beside_another_thread_the_child_moves(group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lock that one holds, the C library's own fork sees to it."""
    monkeypatch.setattr(cgroup, "_clone_into", lambda _descriptor: pytest.fail("it is not alone"))
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        pid = _sleep_in(group)
        _until_in(group, pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        over.set()
        thread.join()


def test_a_child_cannot_hide_from_it(group: Cgroup, tmp_path: Path) -> None:
    assert not group.is_populated
    pid = _sleep_in(group)
    _until_in(group, pid)
    assert group.is_populated
    again = Cgroup.of_run("a-test", tmp_path)
    assert again is not None
    again.kill()
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert not group.is_populated
    group.remove()
    assert not group.directory.exists()
    assert Cgroup.of_run("a-test", tmp_path) is None


def test_where_the_system_call_is_forbidden_the_child_moves(group: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_descriptor: int) -> int:
        raise OSError

    monkeypatch.setattr(cgroup, "_is_alone", lambda: True)
    monkeypatch.setattr(cgroup, "_clone_into", forbidden)
    pid = group.fork()
    if pid == 0:
        signal.pause()
    _until_in(group, pid)
    group.kill()
    os.waitpid(pid, 0)


def test_a_stray_without_its_environment_is_found_after_its_supervisors_death(plane: Plane, group: Cgroup) -> None:
    """What no sweep by environment can find: a program that was started with an empty one, in a session of its own."""
    plane.start()
    job_id = plane.submit([{"do": "hide"}, {"do": "say", "text": "hidden"}, {"do": "hang"}])
    plane.until_log(job_id, b"hidden")
    hidden = int(plane.log(job_id).split()[1])
    attempt = plane.attempt(job_id)
    assert hidden not in proc.of_attempt(attempt.id)
    directory = Path((plane.run_dir(job_id) / cgroup.FILE).read_text())
    assert str(hidden) in (directory / "cgroup.procs").read_text().split()
    proc.send([plane.supervisor(job_id)], signal.SIGKILL)
    plane.eventually(lambda: "attempt_closed" in plane.kinds(job_id))
    assert not is_running(hidden)
    assert not directory.exists()
    plane.assert_clean(job_id)


def test_an_attempt_leaves_no_group_behind(host: Plane, group: Cgroup) -> None:
    job_id = host.submit([{"do": "fork_loader"}, {"do": "succeed"}], num_devices=2)
    host.until_ended(job_id)
    directory = Path((host.run_dir(job_id) / cgroup.FILE).read_text())
    assert directory.name.startswith(cgroup.PREFIX)
    assert not directory.exists()
