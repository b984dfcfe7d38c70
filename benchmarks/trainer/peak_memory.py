"""Measures the most memory that a side takes, each in a process of its own: a process's peak never goes down.

`python -m benchmarks.trainer.peak_memory step|attention stock|ours LAYERS LENGTH` prints MiB: of the whole process for a step, of
what forward and backward add for attention.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks.report import Line
from benchmarks.timing import Effort
from benchmarks.trainer import baseline, layer_speed

_STATUS: Final = Path("/proc/self/status")


def memory_lines(effort: Effort) -> list[Line]:
    lines: list[Line] = []
    for what, share, name in (
        ("step", 0.45, f"peak memory of a step, 1×{effort.long}"),
        ("attention", 0.2, f"memory that attention adds, 1×{effort.long}"),
    ):
        stock, ours = (_in_a_process(what, side, effort) for side in ("stock", "ours"))
        note = f"target: {share:.0%} of stock"
        lines.append(Line(name, ours, "MiB", target=share * stock, baseline=stock, note=note))
    return lines


def main(argv: Sequence[str]) -> int:
    what, side, num_layers, length = argv[0], argv[1], int(argv[2]), int(argv[3])
    mib = _step(side, num_layers, length) if what == "step" else _attention(side, length)
    sys.stdout.write(f"{mib}\n")
    return 0


def _in_a_process(what: str, side: str, effort: Effort) -> float:
    command = [sys.executable, "-m", "benchmarks.trainer.peak_memory", what, side, str(effort.layers), str(effort.long)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _step(side: str, num_layers: int, length: int) -> float:
    stock, ours = baseline.models(num_layers)
    batch = baseline.batch(1, length)
    if side == "stock":
        del ours
        baseline.stepper(stock)(lambda: baseline.stock_loss(stock, batch))
    else:
        del stock
        baseline.stepper(ours)(lambda: baseline.our_loss(ours, batch))
    return _status("VmHWM")


def _attention(side: str, length: int) -> float:
    stock, ours = layer_speed.modules(baseline.config(1))
    module = stock if side == "stock" else ours
    # What the libraries take once, at the first call, is not the attention's.
    layer_speed.forward_backward(module, torch.randn(1, 512, baseline.HIDDEN))
    hidden = torch.randn(1, length, baseline.HIDDEN)
    # The kernel then counts the peak from here on.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    layer_speed.forward_backward(module, hidden)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
