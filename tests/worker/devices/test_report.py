"""What npu-smi and nvidia-smi say, in each form that is known. The forms are recorded, the figures in them are made up."""

from __future__ import annotations

import pytest

from worker.devices.report import Card, CardProcess, Health, Unreadable, read_ascend, read_nvidia

ONE_CHIP = """
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 92.1        48                0    / 0             |
| 0                         | 0000:C1:00.0  | 31          0    / 0          41842/ 65536         |
+===========================+===============+====================================================+
| 1     910B3               | Alarm         | NA          47                0    / 0             |
| 0                         | NA            | 0           0    / 0          3386 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 4711          | python                   | 38456                   |
+===========================+===============+====================================================+
| No running processes found in NPU 1                                                            |
+===========================+===============+====================================================+
"""

TWO_CHIPS = """
| npu-smi 25.3.rc1                 Version: 25.3.rc1                                             |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 2     Ascend910           | OK            | 180.0       36                0    / 0             |
| 0     4                   | 0000:9D:00.0  | 0           0    / 0          3120 / 65536         |
+------------------------------------------------------------------------------------------------+
| 2     Ascend910           | Warning       | -           35                0    / 0             |
| 1     5                   | 0000:9F:00.0  | 7           0    / 0          62498/ 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 2       1                 | 845053        | trainer                  | 59656                   |
"""

NO_HBM = """
| npu-smi 25.2.0                                   Version: 25.2.0                                       |
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 96      310P3                 | OK              | NA           51                16885 / 16885         |
| 0       0                     | 0000:01:00.0    | 0            1529 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 96      310P3                 | OK              | NA           49                0     / 0             |
| 1       1                     | 0000:01:00.0    | 0            35270/ 43693                            |
+===============================+=================+======================================================+
"""

IN_CONTAINER = """
| NPU   Name                | Health        | Power(W)             Temp(C)                 Hugepages-Usage(page)   |
| Chip                      | Bus-Id        | AICore(%)            Memory-Usage(MB)        HBM-Usage(MB)           |
| 7     910B2               | Critical      | 90.0                 44                      0    / 0                |
| 0                         | 0000:C1:00.0  | 0                    0    / 0                3451 / 65536            |
| NPU     Chip              | Process id    | Process name       | Process memory(MB)    | Process id in container |
| 7       0                 | 1732754       | python             | 150                   | 212                     |
| 7       0                 | 1732755       | python             | 151                   | NA                      |
"""

CELLS_OF_THEIR_OWN = """
| npu-smi 99.0.rc1.b1    Version: 99.0.rc1.b1 |
| NPU ID | Name        | Health | Power(W) Temp(C) Hugepages-Usage(page) |
|        |             | Bus-Id | NPU Util(%) Memory-Usage(MB) HBM-Usage(MB) |
| 0      | Ascend950DT | OK     | 100.0 40 0 / 0 |
|        |             | NA     | 20 0 / 0 1024 / 8192 |
| 3      | Ascend950DT | UNKNOWN| 120.0 45 0 / 0 |
|        |             | NA     | 0 0 / 0 2048 / 8192 |
| NPU ID | Process id | Process name | Process memory(MB) | Process id in container |
| 3      | 1002       | python       | 512                | 101                     |
| No running processes found in NPU 0 |
"""


def test_one_chip_a_card_is_numbered_by_its_row() -> None:
    report = read_ascend(ONE_CHIP)
    assert report.version == "24.1.rc2"
    assert report.cards == (
        Card(0, "910B3", Health.OK, "0000:C1:00.0", 48.0, 31.0, 41842, 65536, 92.1),
        Card(1, "910B3", Health.ALARM, None, 47.0, 0.0, 3386, 65536, None),
    )
    assert report.processes == (CardProcess(0, 4711, None, "python", 38456),)


def test_two_chips_of_a_card_are_devices_by_their_physical_id() -> None:
    report = read_ascend(TWO_CHIPS)
    assert [(card.index, card.health, card.power_w, card.memory_used_mb) for card in report.cards] == [
        (4, Health.OK, 180.0, 3120),
        (5, Health.WARNING, None, 62498),
    ]
    assert report.processes == (CardProcess(5, 845053, None, "trainer", 59656),)


def test_a_card_without_hbm_tells_its_memory() -> None:
    report = read_ascend(NO_HBM)
    assert [(card.index, card.name, card.memory_used_mb, card.memory_total_mb) for card in report.cards] == [
        (0, "310P3", 1529, 44280),
        (1, "310P3", 35270, 43693),
    ]
    assert report.processes == ()


def test_the_process_id_in_a_container_is_told_apart() -> None:
    report = read_ascend(IN_CONTAINER)
    assert report.version is None
    assert report.cards[0].health is Health.CRITICAL
    assert [(one.index, one.pid, one.pid_in_container) for one in report.processes] == [
        (0, 1732754, 212),
        (0, 1732755, None),
    ]


def test_number_and_name_in_cells_of_their_own() -> None:
    report = read_ascend(CELLS_OF_THEIR_OWN)
    assert [(card.index, card.name, card.health, card.utilisation_percent) for card in report.cards] == [
        (0, "Ascend950DT", Health.OK, 20.0),
        (1, "Ascend950DT", Health.UNKNOWN, 0.0),
    ]
    assert report.processes == (CardProcess(1, 1002, 101, "python", 512),)


def test_an_answer_without_cards() -> None:
    assert read_ascend("").cards == ()
    assert read_nvidia("").cards == ()


@pytest.mark.parametrize(
    "text",
    [
        ONE_CHIP.replace("3386 / 65536", "much").replace("41842/ 65536", "more"),
        ONE_CHIP.replace("| 0     910B3 ", "| ?     910B3 "),
        ONE_CHIP.replace("| 0       0                 | 4711", "| 5       0                 | 4711"),
        "| 0     910B3               | OK            | 92.1        48                0    / 0             |",
        TWO_CHIPS.replace("| 1     5  ", "| 1     4  "),
        TWO_CHIPS.replace("845053", "trainer"),
    ],
    ids=["memory", "number", "process on no card", "half a chip", "one number twice", "pid"],
)
def test_what_cannot_be_read_is_said_and_not_guessed(text: str) -> None:
    with pytest.raises(Unreadable):
        read_ascend(text)


@pytest.mark.parametrize(
    "text",
    [
        ONE_CHIP.replace("47                0    / 0  ", "NA                NA / NA  "),
        ONE_CHIP.replace("3386 / 65536", "NA / NA"),
    ],
    ids=["pages", "memory"],
)
def test_figures_that_a_card_does_not_tell_are_unknown_and_the_others_are_read(text: str) -> None:
    one, other = read_ascend(text).cards
    assert one == read_ascend(ONE_CHIP).cards[0]
    assert (other.health, other.unread) == (Health.ALARM, None)
    assert None in (other.temperature_c, other.memory_used_mb)


def test_a_card_in_words_of_no_known_form_is_unread_and_the_others_are_read() -> None:
    odd = ONE_CHIP.replace("3386 / 65536", "much").replace("NA          47 ", "device lost ")
    one, other = read_ascend(odd).cards
    assert one == read_ascend(ONE_CHIP).cards[0]
    assert (other.index, other.memory_used_mb, other.temperature_c) == (1, None, None)
    assert "device lost" in (other.unread or "")


def test_a_card_of_which_nothing_is_said_is_unread_and_not_merely_of_unknown_health() -> None:
    silent = ONE_CHIP.replace("| Alarm   ", "| UNKNOWN ").replace("3386 / 65536", "NA   / NA   ")
    one, other = read_ascend(silent).cards
    assert one.unread is None
    assert "UNKNOWN" in (other.unread or "")
    assert read_ascend(ONE_CHIP.replace("| Alarm   ", "| UNKNOWN ")).cards[1].unread is None


def test_a_process_may_be_named_as_it_likes() -> None:
    (process,) = read_ascend(ONE_CHIP.replace("| python  ", "| a|b, c ")).processes
    assert (process.name, process.pid, process.memory_mb) == ("a|b, c", 4711, 38456)
    container = IN_CONTAINER.replace("| python   ", "| a|b      ", 1)
    assert [(one.name, one.pid_in_container) for one in read_ascend(container).processes] == [
        ("a|b", 212),
        ("python", None),
    ]
    card = "1, NVIDIA H200, SXM, 00000000:4E:00.0, 41, 87, 70211, 143771, 511.20\n"
    found = read_nvidia(card, "00000000:4E:00.0, 4711, python train.py, v2, 69000\n")
    assert found.cards[0].name == "NVIDIA H200, SXM"
    assert found.processes == (CardProcess(1, 4711, None, "python train.py, v2", 69000),)


def test_the_list_of_nvidia_smi() -> None:
    report = read_nvidia(
        "1, NVIDIA H200, 00000000:4E:00.0, 41, 87, 70211, 143771, 511.20\n"
        '0, "NVIDIA A100, SXM4", 00000000:4D:00.0, 33, [N/A], 0, 81920, [N/A]\n'
    )
    assert report.cards == (
        Card(0, "NVIDIA A100, SXM4", Health.UNKNOWN, "00000000:4D:00.0", 33.0, None, 0, 81920, None),
        Card(1, "NVIDIA H200", Health.UNKNOWN, "00000000:4E:00.0", 41.0, 87.0, 70211, 143771, 511.2),
    )
    with pytest.raises(Unreadable):
        read_nvidia("No devices were found\n")


def test_the_processes_of_nvidia_smi_are_found_by_the_bus() -> None:
    cards = "1, NVIDIA H200, 00000000:4E:00.0, 41, 87, 70211, 143771, 511.20\n"
    report = read_nvidia(
        cards, "00000000:4E:00.0, 4711, /usr/bin/python3, 69000\n00000000:4E:00.0, 12, [Not Found], [N/A]\n"
    )
    assert report.processes == (
        CardProcess(1, 4711, None, "/usr/bin/python3", 69000),
        CardProcess(1, 12, None, "[Not Found]", None),
    )
    with pytest.raises(Unreadable):
        read_nvidia(cards, "00000000:4F:00.0, 4711, python, 69000\n")
