"""What the host advertises, from the setting and from the vendors' tables."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.settings import Settings
from tests.worker.devices.test_report import TWO_CHIPS
from worker.devices import inventory, vendor_tool
from worker.devices.inventory import NoDevices
from worker.devices.report import Report
from worker.devices.vendor_tool import ASCEND, Silent, Tool
from worker.supervisor import ranks


@pytest.mark.parametrize(
    ("setting", "device_type", "count", "simulated"),
    [
        ("cpu:3", "cpu", 3, False),
        ("npu-sim:8", "npu", 8, True),
        ("auto", "cpu", 2, False),
        ("cuda:2", "cuda", 2, False),
        ("npu:4", "npu", 4, False),
    ],
)
def test_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, device_type: str, count: int, simulated: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = inventory.survey(Settings(data_dir=tmp_path, devices=setting))
    assert (found.device_type, len(found.names), found.simulated) == (device_type, count, simulated)
    assert found.cpu_threads == max(1, len(os.sched_getaffinity(0)) // count)
    assert found.versions["python"].startswith("3.")


def _tool(directory: Path, name: str, *, prints: str = "", exit_code: int = 0) -> None:
    table = directory / f"{name}.table"
    table.write_text(f"{prints}\n")
    lines = f"while IFS= read -r line; do printf '%s\\n' \"$line\"; done < {table}"
    _script(directory, name, f"{lines}\nexit {exit_code}\n")


def _script(directory: Path, name: str, lines: str) -> None:
    tool = directory / name
    tool.write_text(f"#!/bin/sh\n{lines}")
    tool.chmod(0o755)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_auto_finds_what_the_vendors_tool_shows(tools: Path) -> None:
    _tool(tools, "npu-smi", prints=TWO_CHIPS)
    found = inventory.survey(Settings(data_dir=tools, devices="auto"))
    assert (found.device_type, found.names) == ("npu", ("Ascend910", "Ascend910"))
    assert found.report is not None
    assert [card.index for card in found.report.cards] == [4, 5]
    assert inventory.survey(Settings(data_dir=tools, devices="npu:1")).names == ("Ascend910",)


def test_a_gpu_whose_tool_is_silent_does_not_hide_the_cards(tools: Path) -> None:
    _tool(tools, "nvidia-smi", exit_code=9)
    _tool(tools, "npu-smi", prints=TWO_CHIPS)
    assert inventory.survey(Settings(data_dir=tools, devices="auto")).device_type == "npu"


@pytest.mark.parametrize(
    ("setting", "prints", "exit_code", "words"),
    [
        ("auto", TWO_CHIPS.replace("/ 65536", "much"), 0, "npu-smi answered what cannot be read"),
        ("auto", "dcmi module initialize failed", 1, "npu-smi ended with exit code 1 (dcmi module initialize failed)"),
        ("auto", "", 0, "npu-smi lists none"),
        ("npu", "", 0, "npu-smi lists none"),
        ("npu:8", TWO_CHIPS, 0, "wants 8 cards and npu-smi lists 2"),
    ],
    ids=["unreadable", "failing", "empty", "none", "too few"],
)
def test_cards_that_are_not_known_never_become_something_else(
    tools: Path, setting: str, prints: str, exit_code: int, words: str
) -> None:
    _tool(tools, "npu-smi", prints=prints, exit_code=exit_code)
    with pytest.raises(NoDevices, match=re.escape(words)) as refused:
        inventory.survey(Settings(data_dir=tools, devices=setting))
    assert "LONGYARD_DEVICES" in str(refused.value)


def test_a_tool_that_hangs_is_given_up_with_all_that_it_started(
    tools: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., object]
) -> None:
    """As a wrapper does: what it starts holds its output, and does not end with it by itself."""
    pid_file = tools / "pid"
    _script(tools, "npu-smi", f"/bin/sleep 600 &\necho $! > {pid_file}\nwait\n")
    began = time.monotonic()
    with pytest.raises(Silent, match="npu-smi gave no answer within"):
        ASCEND.ask(within_s=5.0)
    assert time.monotonic() - began < 300
    eventually(lambda: not _lives(int(pid_file.read_text())))


def test_a_tool_that_cannot_be_killed_is_left_behind_and_not_asked_again(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tools, "npu-smi", "exec /bin/sleep 600\n")
    killed: list[int] = []
    with monkeypatch.context() as kernel:
        # As one that waits in the kernel for its driver does, it outlives SIGKILL.
        kernel.setattr(os, "killpg", lambda group, _signum: killed.append(group))
        with pytest.raises(Silent, match="gave no answer within"):
            ASCEND.ask(within_s=0.2)
        with pytest.raises(Silent, match="was asked before and cannot be ended"):
            ASCEND.ask(within_s=0.2)
    (group,) = killed
    os.killpg(group, signal.SIGKILL)
    (stuck,) = vendor_tool._STUCK
    assert stuck.wait(60) == -signal.SIGKILL
    _tool(tools, "npu-smi", prints=TWO_CHIPS)
    assert len(ASCEND.ask().cards) == 2, "once it is gone the tool is asked again"


def test_two_tools_that_hang_take_no_longer_than_one(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    for name in ("nvidia-smi", "npu-smi"):
        _tool(tools, name)

    def ask(_tool: Tool, *, within_s: float) -> Report:
        given.append(within_s)
        raise Silent("no answer")

    monkeypatch.setattr(Tool, "ask", ask)
    with pytest.raises(NoDevices):
        inventory.survey(Settings(data_dir=tools, devices="auto"), within_s=6.0)
    assert given == [3.0, 3.0]


def test_a_worker_that_does_not_know_its_cards_does_not_start(tools: Path) -> None:
    _tool(tools, "npu-smi", prints="half a table |")
    environment = {
        "PATH": str(tools),
        "LONGYARD_DATA_DIR": str(tools / "data"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    (tools / "data").mkdir()
    done = subprocess.run([sys.executable, "-m", "worker"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "this host's cards are not known: npu-smi lists none; mend it" in done.stderr


def test_the_tool_of_a_setting_without_a_number_has_to_be_there(tools: Path) -> None:
    with pytest.raises(NoDevices, match="nvidia-smi cannot be started"):
        inventory.survey(Settings(data_dir=tools, devices="cuda"))


def _environment(device_type: str, *indices: int, simulated_host: str | None = None) -> dict[str, str]:
    inherited = {
        "PATH": "/bin",
        "LONGYARD_DATABASE_URL": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PGPASSWORD": "secret",
        "NCCL_DEBUG": "INFO",
        "CUDA_VISIBLE_DEVICES": "5",
        "ASCEND_RT_VISIBLE_DEVICES": "5",
    }
    return ranks.environment(
        inherited,
        run_dir=Path("/data/jobs/j/a1"),
        attempt_id="a",
        devices=indices,
        device_type=device_type,
        cpu_threads=1,
        allow_network=False,
        simulated_host=simulated_host,
    )


def test_ranks_see_their_devices_in_ascending_order_and_no_secret() -> None:
    npu, cuda, cpu = _environment("npu", 7, 0, 3), _environment("cuda", 1, 0), _environment("cpu", 0)
    assert npu["ASCEND_RT_VISIBLE_DEVICES"] == "0,3,7"
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD" not in npu
    assert npu["HCCL_HOST_SOCKET_PORT_RANGE"] == npu["HCCL_NPU_SOCKET_PORT_RANGE"] == "60000-60015"
    assert npu["ASCEND_PROCESS_LOG_PATH"] == "/data/jobs/j/a1/plog"
    assert (cuda["CUDA_VISIBLE_DEVICES"], cuda["CUDA_DEVICE_ORDER"]) == ("0,1", "PCI_BUS_ID")
    assert "ASCEND_RT_VISIBLE_DEVICES" not in cuda
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert npu["NCCL_DEBUG"] == "INFO"
    assert all("secret" not in value for found in (npu, cuda, cpu) for value in found.values())


def test_simulated_cards_are_seen_as_real_ones_are_by_ranks_that_use_none() -> None:
    real, simulated = _environment("npu", 2, 1), _environment("npu", 2, 1, simulated_host="here")
    added = {name: value for name, value in simulated.items() if real.get(name) != value and name != "MASTER_PORT"}
    assert added == {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "LONGYARD_SIMULATED_HOST": "here"}
    assert simulated["ASCEND_RT_VISIBLE_DEVICES"] == "1,2"
