"""The environment of ranks on an Ascend host, and the meaning of its error codes."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from store.states import ExitReason
from worker.devices.ascend import Action, diagnose, variables

RUN_DIR = Path("/data/jobs/j/a1")


def test_visible_devices_ascend_and_everything_is_of_this_attempt() -> None:
    found = variables({}, devices=(5, 2), run_dir=RUN_DIR)
    assert found["ASCEND_RT_VISIBLE_DEVICES"] == "2,5"
    assert found["ASCEND_PROCESS_LOG_PATH"] == "/data/jobs/j/a1/plog"
    assert found["HCCL_WHITELIST_DISABLE"] == "1"
    assert int(found["HCCL_EVENT_TIMEOUT"]) > int(found["HCCL_EXEC_TIMEOUT"])
    assert int(found["HCCL_EXEC_TIMEOUT"]) % 68 == 0


def test_jobs_that_share_a_host_have_ports_of_their_own() -> None:
    ranges = [_ports(devices) for devices in ((0, 1), (2,), (3, 7), (4, 5), (6,))]
    for one, other in combinations(ranges, 2):
        assert not set(one) & set(other)
    assert all(len(ports) == 16 and ports[-1] < 65536 for ports in ranges)


def test_an_operator_s_own_timeout_goes_first_but_not_their_devices_or_ports() -> None:
    hosts = {"HCCL_CONNECT_TIMEOUT": "77", "ASCEND_RT_VISIBLE_DEVICES": "7", "HCCL_HOST_SOCKET_PORT_RANGE": "1-2"}
    found = variables(hosts, devices=(0,), run_dir=RUN_DIR)
    assert found["HCCL_CONNECT_TIMEOUT"] == "77"
    assert found["ASCEND_RT_VISIBLE_DEVICES"] == "0"
    assert found["HCCL_HOST_SOCKET_PORT_RANGE"] == "60000-60015"


@pytest.mark.parametrize(
    ("text", "reason", "action"),
    [
        ("[ERROR] error code 0x80E01801 reported", ExitReason.DEVICE_ERROR, Action.CORDON),
        ("device heartbeat 0x80fa4e00", ExitReason.DEVICE_ERROR, Action.CORDON),
        ("fault 0x80C9800A", ExitReason.DEVICE_ERROR, Action.RESET),
        ("RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB", ExitReason.OUT_OF_MEMORY, Action.NONE),
        ("EL0004: failed to allocate memory", ExitReason.OUT_OF_MEMORY, Action.NONE),
        ("[PID: 1] ERR00006 PTA memory error", ExitReason.OUT_OF_MEMORY, Action.NONE),
        ("EZ9999: Inner Error!", ExitReason.DEVICE_ERROR, Action.NONE),
        ("EJ0001: Failed to initialize the HCCP process", ExitReason.DEVICE_ERROR, Action.NONE),
        ("EE1001: set_device", ExitReason.DEVICE_ERROR, Action.NONE),
        ("EI0008: CANN", ExitReason.LAUNCH_ERROR, Action.NONE),
        ("EI0003", ExitReason.LAUNCH_ERROR, Action.NONE),
        ("EI0001", ExitReason.LAUNCH_ERROR, Action.NONE),
        ("EI0006: getting socket times out", ExitReason.INFRA, Action.NONE),
        ("EI0002: The wait execution of the Notify register times out", ExitReason.INFRA, Action.NONE),
        ("ERR02200 DIST call hccl api failed", ExitReason.INFRA, Action.NONE),
        ("ERR01100 OPS call acl api failed", ExitReason.DEVICE_ERROR, Action.NONE),
        ("ERR02011 DIST timeout", ExitReason.INFRA, Action.NONE),
    ],
)
def test_a_code_is_told_in_plain_words(text: str, reason: ExitReason, action: Action) -> None:
    found = diagnose(text)
    assert found is not None
    assert (found.reason, found.action) == (reason, action)
    assert not found.pattern.search(found.words)


def test_the_cause_goes_before_what_follows_from_it() -> None:
    found = diagnose("EI0002: notify wait timeout\nEZ9999: inner error\nhardware event 0x80E01801")
    assert found is not None
    assert found.action is Action.CORDON


def test_other_words_are_nobody_s() -> None:
    assert diagnose("ValueError: the loss is ERR or EZ99999 at step 9") is None


def _ports(devices: tuple[int, ...]) -> range:
    low, high = variables({}, devices=devices, run_dir=RUN_DIR)["HCCL_HOST_SOCKET_PORT_RANGE"].split("-")
    return range(int(low), int(high) + 1)
