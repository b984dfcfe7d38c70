"""What the host advertises, from the setting and from the vendors' tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.settings import Settings
from worker import devices, ranks

NPU_SMI_910B = """
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                              |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 92.1        48                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3387 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 90.8        47                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3386 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 4711          | python                   | 120                     |
+===========================+===============+====================================================+
"""

NPU_SMI_TWO_CHIPS = """
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 180.0       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3120 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           35                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2860 / 65536         |
+===========================+===============+====================================================+
"""


def test_the_table_of_npu_smi() -> None:
    assert devices.parse_ascend(NPU_SMI_910B) == ("910B3", "910B3")
    assert devices.parse_ascend(NPU_SMI_TWO_CHIPS) == ("Ascend910", "Ascend910")
    assert devices.parse_ascend("") == ()


def test_the_list_of_nvidia_smi() -> None:
    assert devices.parse_nvidia("1, NVIDIA H200\n0, NVIDIA A100-SXM4-80GB\n") == (
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA H200",
    )


@pytest.mark.parametrize(
    ("setting", "device_type", "count", "simulated"),
    [
        ("cpu:3", "cpu", 3, False),
        ("npu-sim:8", "npu", 8, True),
        ("auto", "cpu", 2, False),
        ("cuda:2", "cuda", 2, False),
    ],
)
def test_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, device_type: str, count: int, simulated: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = devices.survey(Settings(data_dir=tmp_path, devices=setting))
    assert (found.device_type, len(found.names), found.simulated) == (device_type, count, simulated)
    assert found.cpu_threads == max(1, len(os.sched_getaffinity(0)) // count)
    assert found.versions["python"].startswith("3.")


def test_auto_finds_what_the_vendors_tool_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text(NPU_SMI_910B)
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\nwhile IFS= read -r line; do printf '%s\\n' \"$line\"; done < {table}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = devices.survey(Settings(data_dir=tmp_path, devices="auto"))
    assert (found.device_type, found.names) == ("npu", ("910B3", "910B3"))


def _environment(device_type: str, *indices: int) -> dict[str, str]:
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
        inherited, attempt_id="a", devices=indices, device_type=device_type, cpu_threads=1, allow_network=False
    )


def test_ranks_see_their_devices_in_ascending_order_and_no_secret() -> None:
    npu, cuda, cpu = _environment("npu", 7, 0, 3), _environment("cuda", 1, 0), _environment("cpu", 0)
    assert npu["ASCEND_RT_VISIBLE_DEVICES"] == "0,3,7"
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD" not in npu
    assert cuda["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "ASCEND_RT_VISIBLE_DEVICES" not in cuda
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert npu["NCCL_DEBUG"] == "INFO"
    assert all("secret" not in value for found in (npu, cuda, cpu) for value in found.values())
