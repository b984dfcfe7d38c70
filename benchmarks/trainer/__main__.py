"""Measures the trainer against stock transformers in the same run: `./run bench trainer`.

Both sides take turns on the same inputs and are compared by their medians; each comparison checks first that both compute
the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
import transformers
from tqdm import tqdm

from benchmarks import chart
from benchmarks.report import Line, machine, show, write_json
from benchmarks.timing import Effort
from benchmarks.trainer import cuda_step, data_pipeline, layer_speed, peak_memory, step_speed

FULL: Final = Effort(layers=12, long=4096, turns=3, cheap_turns=5)
QUICK: Final = Effort(layers=1, long=1024, turns=1, cheap_turns=1)
TITLE: Final = "Trainer, against stock transformers"
# By the name that --only takes, in the order of the table.
PARTS: Final[dict[str, Callable[[Effort], list[Line]]]] = {
    "attention": layer_speed.attention_lines,
    "steps": step_speed.step_lines,
    "memory": peak_memory.memory_lines,
    "head": lambda effort: [layer_speed.head_line(effort)],
    "packing": data_pipeline.packing_lines,
    "length": lambda effort: [layer_speed.length_line(effort)],
    "ngram": lambda effort: [data_pipeline.ngram_line(effort)],
    "parity": lambda effort: [layer_speed.parity_line()],
    "gpu": cuda_step.gpu_lines,
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./run bench trainer", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one layer and 1,024 tokens instead of twelve and 4,096, fewer turns"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the lines as an array of objects")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw them: .svg or .png")
    arguments = parser.parse_args(argv)
    effort = QUICK if arguments.quick else FULL
    facts = _facts(effort)
    # Taken before the work, whose own load it would be afterwards.
    surroundings = machine()
    chosen = [name for name in PARTS if not arguments.only or name in arguments.only]
    lines = [
        line
        for name in tqdm(chosen, desc="measuring", disable=not sys.stderr.isatty())
        for line in _measure(name, effort)
    ]
    show(lines, title=TITLE, facts=facts | {"load average when it began": surroundings["load average"]})
    if arguments.json:
        write_json(lines, arguments.json)
    if arguments.picture:
        chart.draw(lines, arguments.picture, title=TITLE, facts=surroundings | facts)
    return 1 if any(line.name in chosen for line in lines) else 0


def _measure(part: str, effort: Effort) -> list[Line]:
    """A part whose two sides do not compute the same has no figures, and does not take those of the others with it."""
    try:
        return PARTS[part](effort)
    except RuntimeError as error:
        return [Line(part, None, "", why=str(error))]


def _facts(effort: Effort) -> dict[str, str]:
    return {
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads; transformers {transformers.__version__}",
        "model": f"{effort.layers} layers, 768 wide, window 512, dropout 0.1; steps by fused AdamW on both sides",
        "turns": f"{effort.turns} of steps, {effort.cheap_turns} of attention, interleaved; medians, with the range of both",
    }
