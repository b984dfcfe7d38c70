"""The trainer's bench as a person starts it, on one measurement that is soon done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__


def test_a_table_is_printed_and_its_lines_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lines.json"
    assert __main__.main(["trainer", "--quick", "--only", "ngram", "--json", str(file)]) == 0
    (line,) = json.loads(file.read_text(encoding="utf-8"))
    assert list(line)[:7] == ["name", "ours", "baseline", "ratio", "unit", "target", "met"]
    assert line["ratio"] == pytest.approx(line["baseline"] / line["ours"])
    assert line["ratio"] > 1, "loops over tokens are no match, however busy the machine"
    table = capsys.readouterr().out
    assert "Trainer, against stock transformers" in table
    assert line["name"] in " ".join(table.split())
