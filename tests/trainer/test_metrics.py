"""What a run adds up: fps as the recipe defines it, counting the same samples as the wall clock's does."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.trainer.conftest import Ranks
from trainer.metrics import WARM_STEPS, Step, Sums

pytestmark = pytest.mark.timeout(900)
Spec = Callable[..., dict[str, Any]]


def step(samples: int) -> Step:
    return Step(loss=1.0, grad_norm=1.0, labels=8, tokens=64, samples=samples)


def test_the_mean_is_of_the_steps_rates_and_leaves_the_first_out() -> None:
    """A slow step counts as much as a quick one: 16/1 and 16/4 are 10 a second, while 32 in 5 s are 6.4."""
    sums = Sums()
    sums.add(step(1000), 1.0, is_warm=False)
    assert sums.results()["fps"] is None
    sums.add(step(16), 1.0, is_warm=True)
    sums.add(step(16), 4.0, is_warm=True)
    assert sums.results()["fps"] == 10.0
    assert sums.results()["fps_wall"] == 1032 / 6


@pytest.mark.parametrize("layout", [{}, {"packing": True}])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_sample_is_a_line_however_many_a_row_holds(
    forked: Callable[..., Ranks], spec: Spec, tmp_path: Path, inputs: Any, layout: dict[str, Any], world_size: int
) -> None:
    text = tmp_path / "train.txt"
    lines = inputs.train_file.read_text(encoding="utf-8").splitlines()
    text.write_text("".join(f"{line[:20]}\n" for line in lines[:130]), encoding="utf-8")
    passes = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 4 // world_size}
    config = spec(train_file=str(text), line_by_line=True, do_eval=False, save_steps=1000, **passes | layout)
    run = forked(Ranks(tmp_path / "run", config, world_size, start=False))
    results, rates, times = run.results(), run.series("samples_per_second"), run.series("step_time")
    assert results["steps"] > WARM_STEPS + 1
    samples = {number: rates[number] * times[number] for number in rates}
    # Every line once in each of three passes, whatever fills up the last step of a pass.
    assert sum(samples.values()) == pytest.approx(results["num_samples"]) == pytest.approx(390)
    assert results["fps"] == pytest.approx(mean(rates[number] for number in rates if number > WARM_STEPS))
    by_rows = mean(results["global_batch_size"] / times[number] for number in times if number > WARM_STEPS)
    if layout:
        assert results["fps"] > 1.5 * by_rows, "rows are not what is counted"
    else:
        # But for the short steps it is the recipe's batch × world size / step time.
        full = {number for number in samples if round(samples[number]) == results["global_batch_size"]}
        assert len(full) == results["steps"] - 3
        assert results["fps"] <= by_rows
