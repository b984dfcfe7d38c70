"""A seeded fault for each finding of the doctor: the host is made of files in a fake root, and only what the kernel says is replaced."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from store import hosts, jobs
from store.db import Database
from store.jobs import NewJob
from store.settings import Settings
from tests.worker.devices.test_report import ONE_CHIP, TWO_CHIPS
from worker.devices import toolchain
from worker.devices.report import Report, read_ascend
from worker.doctor import devices, libraries, runner, system
from worker.doctor.check import Site
from worker.doctor.findings import Finding, Level
from worker.doctor.runner import OF_CARDS, OF_HOST, Check

GIB = 1 << 30
IDLE = (
    ONE_CHIP.replace("41842", "3390")
    .replace("| Alarm  ", "| OK     ")
    .replace("4711", "gone")
    .split("| NPU     Chip")[0]
)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def put(root: Path, path: str, text: str = "") -> Path:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What is free below a path that ends so; enough elsewhere."""
    free: dict[str, int] = {}

    def usage(path: Path) -> Usage:
        return Usage(100 * GIB, 0, next((left for end, left in free.items() if str(path).endswith(end)), 90 * GIB))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return free


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    limits = [65536, 65536]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: tuple(limits))
    return limits


@pytest.fixture
def site(tmp_path: Path, room: dict[str, int], limits: list[int]) -> Site:
    """An Ascend host with two cards that has nothing wrong with it."""
    root = tmp_path / "root"
    put(root, "usr/local/Ascend/ascend-toolkit/latest/version.cfg", "toolkit_running_version=[9.1.0:9.1.0]\n")
    put(root, "usr/local/Ascend/driver/version.info", "Version=24.1.rc2\nascendhal_version=7.35.23\n")
    put(root, "usr/lib/aarch64-linux-gnu/libblas.so.3")
    put(root, "proc/net/tcp", TCP_HEAD + listen(8642))
    put(root, "proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
    put(root, "proc/sys/net/ipv4/ip_local_reserved_ports", "60000-60031\n")
    (tmp_path / "corpora").mkdir()
    (tmp_path / "data").mkdir()
    return Site(
        settings=Settings(data_dir=tmp_path / "data", data_roots=(tmp_path / "corpora",), host_name="npu-07"),
        root=root,
        environ={"ASCEND_TOOLKIT_HOME": "/usr/local/Ascend/ascend-toolkit/latest"},
        machine="aarch64",
        site_packages=root / "site-packages",
        packages={"torch": "2.13.0+cpu", "torch_npu": "2.13.0"},
        device_type="npu",
        num_devices=2,
        is_simulated=False,
        report=read_ascend(IDLE),
    )


TCP_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue\n"


def listen(port: int) -> str:
    return f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000\n"


def sick(text: str) -> Report:
    return read_ascend(text)


def test_a_host_with_nothing_wrong_has_no_findings(site: Site) -> None:
    assert runner.examine(site, (*OF_CARDS, *OF_HOST)) == []


Seed = Callable[[Site], Site]


def changed(**changes: Any) -> Seed:
    return lambda site: replace(site, **changes)


def with_file(path: str, text: str = "") -> Seed:
    def seed(site: Site) -> Site:
        put(site.root, path, text)
        return site

    return seed


def without_file(path: str) -> Seed:
    def seed(site: Site) -> Site:
        (site.root / path).unlink()
        return site

    return seed


NO_TORCH = changed(packages={})
CPU_TORCH = changed(packages={"torch": "2.13.0"})
OTHER_TORCH_NPU = changed(packages={"torch": "2.13.0", "torch_npu": "2.12.0"})
FULL_RANGE = with_file("proc/net/tcp6", TCP_HEAD + "".join(listen(port) for port in range(60016, 60032)))


@pytest.mark.parametrize(
    ("check", "seed", "level", "dooms", "what", "fix"),
    [
        (toolchain.check_torch, NO_TORCH, "failure", True, "torch is not installed", "pip install torch=="),
        (toolchain.check_torch, CPU_TORCH, "failure", True, "torch_npu is not installed", "torch-npu==2.13.0"),
        (
            toolchain.check_torch,
            OTHER_TORCH_NPU,
            "failure",
            True,
            "2.12.0 does not fit torch 2.13.0",
            "torch-npu==2.13.0",
        ),
        (
            toolchain.check_cann,
            without_file("usr/local/Ascend/ascend-toolkit/latest/version.cfg"),
            *("failure", True, "CANN is not found", "install the CANN toolkit"),
        ),
        (
            toolchain.check_cann,
            with_file("usr/local/Ascend/ascend-toolkit/latest/version.cfg", "version=8.5.0"),
            *("failure", True, "CANN is 8.5.0", "install CANN 9.1.0 or later"),
        ),
        (toolchain.check_cann, changed(environ={}), "failure", True, "environment is not set", "set_env.sh"),
        (
            toolchain.check_driver,
            without_file("usr/local/Ascend/driver/version.info"),
            *("failure", True, "the driver is not found", "install the driver"),
        ),
        (
            toolchain.check_driver,
            with_file("usr/local/Ascend/driver/version.info", "Version=23.0.1"),
            *("warning", False, "npu-smi is of driver 24.1.rc2, and the driver is 23.0.1", "from one package"),
        ),
        (
            libraries.check_libgomp,
            with_file("site-packages/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0"),
            *("warning", False, "a libgomp of its own (libgomp-d22c30c5.so.1.0.0)", "LD_PRELOAD="),
        ),
        (
            libraries.check_libblas,
            without_file("usr/lib/aarch64-linux-gnu/libblas.so.3"),
            *("warning", False, "libblas.so.3 is not found", "apt-get install libopenblas0"),
        ),
        (
            system.check_ports,
            with_file("proc/net/tcp", TCP_HEAD + listen(60002) + listen(60016)),
            *("warning", False, "of the ports 60000-60015 of card 0 others hold 60002", "ss -ltnp"),
        ),
        (system.check_ports, FULL_RANGE, "failure", True, "60016-60031 of card 1", "ss -ltnp"),
        (
            system.check_ports,
            with_file("proc/sys/net/ipv4/ip_local_reserved_ports", "8080,60000-60007\n"),
            *("warning", False, "may be given ports 60008-60031", "ip_local_reserved_ports=60000-60031"),
        ),
        (
            devices.check_known,
            changed(refusal="npu-smi ended with exit code 1", device_type="", num_devices=0, report=None),
            *("failure", True, "npu-smi ended with exit code 1", "LONGYARD_DEVICES=cpu:2"),
        ),
        (
            devices.check_health,
            changed(report=sick(IDLE.replace("| OK ", "| Critical ", 1))),
            *("failure", True, "the health of card 0 (910B3) is CRITICAL", "npu-smi info -t health -i 0"),
        ),
        (
            devices.check_health,
            changed(report=sick(IDLE.replace("| OK ", "| Warning ", 1))),
            *("warning", False, "is WARNING", "npu-smi info"),
        ),
        (
            devices.check_health,
            changed(report=sick(IDLE.replace("3386 / 65536", "lost"))),
            *("failure", True, "does not say how card 1 (910B3) is: 1     910B3", "run npu-smi by hand"),
        ),
        (
            devices.check_clean,
            changed(report=sick(IDLE.replace("3386 / 65536", "9999 / 65536"))),
            *("failure", True, "card 1: 6.8 GiB more of its memory taken", "kill PID"),
        ),
        (
            devices.check_clean,
            changed(report=sick(ONE_CHIP.replace("41842", "3390"))),
            *("failure", True, "card 0: process 4711 (python)", "kill PID"),
        ),
        (
            devices.check_order,
            changed(report=sick(TWO_CHIPS)),
            *("warning", False, "npu-smi numbers the cards 4, 5; here they are 0 to 1", "count from the top"),
        ),
        (
            devices.check_order,
            changed(environ={"ASCEND_RT_VISIBLE_DEVICES": "3,1"}),
            *("warning", False, "ASCEND_RT_VISIBLE_DEVICES=3,1 is set", "unset ASCEND_RT_VISIBLE_DEVICES"),
        ),
        (
            system.check_clock,
            changed(clock_ahead_s=-3600.0),
            *("warning", False, "3600 s behind the database's", "timedatectl set-ntp true"),
        ),
    ],
)
def test_a_seeded_fault_is_found(
    site: Site, check: Check, seed: Seed, level: str, dooms: bool, what: str, fix: str
) -> None:
    assert list(check(site)) == []
    one, *_ = found = list(check(seed(site)))
    assert {(finding.level, finding.dooms_jobs) for finding in found} == {(Level(level), dooms)}
    assert what in one.what
    assert fix in one.fix
    assert one.why


def test_a_list_that_does_not_ascend_is_said_to_hide_every_card(site: Site) -> None:
    (one,) = devices.check_order(replace(site, environ={"ASCEND_RT_VISIBLE_DEVICES": "3,1"}))
    (other,) = devices.check_order(replace(site, environ={"ASCEND_RT_VISIBLE_DEVICES": "1,3"}))
    assert "no card at all" in one.why
    assert "no card at all" not in other.why


def test_a_card_that_a_job_holds_is_not_called_dirty(site: Site) -> None:
    busy = replace(site, report=read_ascend(ONE_CHIP), held=frozenset([0]))
    assert list(devices.check_clean(busy)) == []


def test_a_toolkit_elsewhere_is_found_by_what_the_installer_noted(site: Site) -> None:
    without_file("usr/local/Ascend/ascend-toolkit/latest/version.cfg")(site)
    put(site.root, "etc/Ascend/ascend_cann_install.info", "Install_Type=full\nInstall_Path_Param=/data/cann\n")
    put(site.root, "data/cann/ascend-toolkit/latest/runtime/version.info", "Version=8.3.RC1\n")
    assert toolchain.cann(site.root, {}) == "8.3.RC1"


@pytest.mark.parametrize(
    ("torch_npu", "cann", "fits"),
    [
        ("2.7.1", "8.3.RC1", True),
        ("2.7.1", "8.2.RC1", False),
        ("2.7.1", "8.3.0", True),
        ("2.5.1", "8.1.RC1", True),
        ("2.1.0.post17", "8.1.RC1", False),
        ("2.8.0", "8.3.RC1", True),
        ("1.11.0", "6.0.0", True),
    ],
)
def test_an_older_cann_than_torch_npu_was_built_with_does_not_fit(
    site: Site, torch_npu: str, cann: str, fits: bool
) -> None:
    with_file("usr/local/Ascend/ascend-toolkit/latest/version.cfg", f"version={cann}")(site)
    found = toolchain.check_cann(replace(site, packages={"torch": torch_npu, "torch_npu": torch_npu}))
    assert (list(found) == []) is fits


def test_a_post_release_of_torch_npu_fits_its_torch(site: Site) -> None:
    for torch_npu, fits in (("2.1.0.post17", True), ("2.1.0", True), ("2.1.1", False)):
        found = list(toolchain.check_torch(replace(site, packages={"torch": "2.1.0", "torch_npu": torch_npu})))
        assert (found == []) is fits


def test_a_simulated_host_needs_nothing_of_ascend(site: Site) -> None:
    bare = replace(site, is_simulated=True, root=site.root / "nothing", environ={}, packages={"torch": "2.13.0"})
    checks = (toolchain.check_torch, toolchain.check_cann, toolchain.check_driver, libraries.check_libblas)
    assert [one for check in checks for one in check(bare)] == []


def test_conda_is_told_in_its_own_words(site: Site) -> None:
    without_file("usr/lib/aarch64-linux-gnu/libblas.so.3")(site)
    (one,) = libraries.check_libblas(replace(site, environ={"CONDA_PREFIX": "/opt/conda"}))
    assert one.fix == "conda install openblas"
    put(site.root, "opt/conda/lib/libblas.so.3")
    assert list(libraries.check_libblas(replace(site, environ={"CONDA_PREFIX": "/opt/conda"}))) == []


def test_a_libgomp_that_is_loaded_first_is_enough(site: Site) -> None:
    with_file("site-packages/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0")(site)
    assert list(libraries.check_libgomp(replace(site, environ={"LD_PRELOAD": "/x/libgomp.so.1"}))) == []
    assert list(libraries.check_libgomp(replace(site, machine="x86_64"))) == []


@pytest.mark.parametrize(
    ("check", "end", "left", "level", "dooms", "what"),
    [
        (system.check_shared_memory, "dev/shm", 64 << 20, "warning", False, "dev/shm has 64 MiB left"),
        (system.check_shared_memory, "dev/shm", 1 << 20, "failure", False, "dev/shm has 1 MiB left"),
        (system.check_disk, "data", 3 * GIB, "warning", False, "has 3.0 GiB left"),
        (system.check_disk, "data", 5 << 20, "failure", True, "has 5 MiB left"),
    ],
)
def test_too_little_room(
    site: Site, room: dict[str, int], check: Check, end: str, left: int, level: str, dooms: bool, what: str
) -> None:
    room[end] = left
    (one,) = check(site)
    assert (one.level, one.dooms_jobs) == (level, dooms)
    assert what in one.what


@pytest.mark.parametrize(("limit", "level", "dooms"), [(1024, "warning", False), (64, "failure", True)])
def test_too_few_open_files(site: Site, limits: list[int], limit: int, level: str, dooms: bool) -> None:
    limits[0] = limit
    (one,) = system.check_open_files(site)
    assert (one.level, one.dooms_jobs, one.what) == (level, dooms, f"a process may open {limit} files")
    assert "ulimit -n" in one.fix


def test_a_host_without_a_loopback(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_self: socket.socket, _address: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket.socket, "bind", bind)
    one = next(system.check_ports(site))
    assert one.dooms_jobs
    assert "no port of 127.0.0.1" in one.what


def test_data_roots_that_are_not_there_or_cannot_be_read(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a-file")
    roots = (tmp_path / "corpora", tmp_path / "missing", tmp_path / "a-file")
    found = list(
        system.check_data_roots(replace(site, settings=site.settings.model_copy(update={"data_roots": roots})))
    )
    assert [one.what.removeprefix(f"{tmp_path}/") for one in found] == [
        "missing does not exist on this host",
        "a-file is not a directory",
    ]
    # Root may read everything, so only the kernel's answer is replaced.
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    (one,) = system.check_data_roots(site)
    assert one.what.endswith("cannot be read by this user")


def test_a_trainer_that_is_not_there(site: Site) -> None:
    for module in ("no_such_trainer", "no_such.trainer"):
        other = replace(site, settings=site.settings.model_copy(update={"trainer_module": module}))
        (one,) = system.check_trainer(other)
        assert (one.dooms_jobs, one.what) == (True, f"there is no Python module {module}")


def test_a_check_that_breaks_does_not_keep_the_others_from_looking(site: Site) -> None:
    def breaks(_site: Site) -> Any:
        raise RuntimeError("it cannot look")

    one, other = runner.examine(replace(site, packages={}), (breaks, toolchain.check_torch))
    assert (one.check, one.level, one.what) == (
        "breaks",
        Level.WARNING,
        "this check could not look: RuntimeError: it cannot look",
    )
    assert other.what == "torch is not installed"


def test_a_check_that_hangs_does_not_keep_the_others_from_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runner.ASK_WITHIN_S + runner.DATABASE_WITHIN_S < runner.WITHIN_S < 10
    released = threading.Event()

    def check_far_disk(_site: Site) -> Any:
        released.wait()
        return iter(())

    monkeypatch.setattr(runner, "DATABASE_WITHIN_S", 0.1)
    monkeypatch.setattr(runner, "WITHIN_S", 5.0)
    monkeypatch.setattr(runner, "OF_CARDS", (check_far_disk,))
    monkeypatch.setattr(runner, "OF_HOST", (system.check_trainer,))
    monkeypatch.setattr(runner, "_with_database", lambda _site: released.wait())
    try:
        done = runner.diagnose(Settings(data_dir=tmp_path, devices="cpu:1", trainer_module="no_such_trainer"))
    finally:
        released.set()
    assert [one.check for one in done.findings] == ["database", "trainer", "far disk"]
    assert "gave no answer within" in done.findings[0].what
    assert "gave no answer within" in done.findings[2].what


def test_the_clock_of_the_database_is_asked(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_s = runner.clock_ahead_s(database)
    if database.is_sqlite:
        assert ahead_s is None
        return
    assert ahead_s is not None
    assert abs(ahead_s) < 60
    monkeypatch.setattr(runner, "now", lambda: datetime.now(UTC) + timedelta(hours=1))
    assert abs((runner.clock_ahead_s(database) or 0.0) - 3600) < 60


def _doctor(settings: Settings, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "LONGYARD_DATA_DIR": str(settings.data_dir),
        "LONGYARD_DATABASE_URL": settings.database_url,
        **environment,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LONGYARD_")}
    argv = [sys.executable, "-m", "worker.doctor", *options]
    return subprocess.run(argv, env={**inherited, **variables}, capture_output=True, text=True, timeout=60)


def test_the_command_on_a_simulated_host(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    state = tmp_path / "hosts" / "sim" / "npu-sim.json"
    put(tmp_path, "hosts/sim/npu-sim.json", json.dumps({"cards": {"5": {"health": "Alarm"}}}))
    simulated = {"LONGYARD_DEVICES": "npu-sim:8", "LONGYARD_HOST_NAME": "sim"}
    done = _doctor(settings, "--json", **simulated)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["simulated"], len(answer["cards"])) == (1, True, 8)
    (one,) = [one for one in answer["findings"] if one["check"] == "cards"]
    assert (one["level"], one["devices"]) == ("failure", [5])
    state.unlink()
    done = _doctor(settings, **simulated)
    assert "sim: 8 simulated npu devices" in done.stdout
    assert "ALARM" not in done.stdout
    # It has looked and changed nothing.
    assert not (tmp_path / "longyard.db").exists()


def test_the_command_where_the_cards_are_not_known(tmp_path: Path) -> None:
    put(tmp_path, "hosts/sim/npu-sim.json", json.dumps({"fault": "garbage"}))
    done = _doctor(Settings(data_dir=tmp_path), LONGYARD_DEVICES="npu-sim:2", LONGYARD_HOST_NAME="sim")
    assert done.returncode == 1
    assert "FAILURE  cards: this host's cards are not known: npu-smi answered what cannot be read" in done.stdout


def test_a_database_that_does_not_answer_is_a_finding(tmp_path: Path) -> None:
    nobody = Settings(data_dir=tmp_path, database_url="postgresql+psycopg://127.0.0.1:1/longyard")
    done = _doctor(nobody, LONGYARD_DEVICES="cpu:1")
    assert done.returncode == 1
    assert "FAILURE  database: the database does not answer" in done.stdout


def test_the_inputs_of_waiting_jobs_are_looked_at(settings: Settings, database: Database) -> None:
    (root,) = settings.data_roots[:1]
    corpus = put(Path(root), "corpus.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    spec = {"train_file": str(corpus)}
    with database.write() as session:
        hosts.register(session, settings.host_name, device_type="cpu", device_names=["x"], boot_id="1", versions={})
        job_id = jobs.submit(session, NewJob("n", "demo", spec, 1, "cpu"), owner="admin")[0].id
    (one,) = _findings(settings, database)
    assert (
        one.what
        == f"job {job_id}: train.train_file ({corpus}) is a pointer of Git LFS and not the file itself; fetch it by `git lfs pull`"
    )
    corpus.write_text("text")
    assert _findings(settings, database) == []


def _findings(settings: Settings, database: Database) -> list[Finding]:
    return runner.check_inputs(settings, database, runner.Known())
