"""One rank's entry, seen from outside: files, exit codes, ranks, signals.

Real processes throughout: `launch` where their start or what happens to them is what the test is about, `train` else.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.conftest import LIMIT_S, ROOT, SHAPE, WITH_DROPOUT, Inputs, Ranks

Launch = Callable[..., Ranks]
Train = Callable[..., Ranks]
Spec = Callable[..., dict[str, Any]]
Torchrun = Callable[[dict[str, Any]], "subprocess.Popen[bytes]"]
# Real processes on a machine that may be busy with other things.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Torchrun]:
    """Starts two ranks with a config by hand; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer"]

    def start(config: dict[str, Any]) -> "subprocess.Popen[bytes]":
        (tmp_path / "config.json").write_text(json.dumps(config))
        with (tmp_path / "r0.log").open("wb") as log:
            run = [*command, "--config", str(tmp_path / "config.json")]
            started.append(subprocess.Popen(run, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
        process.wait()


def test_a_run_leaves_what_the_contract_says(launch: Launch, spec: Spec, inputs: Inputs) -> None:
    ranks = launch("run", spec(max_steps=30, learning_rate=5e-3, eval_steps=15, logging_steps=5)).succeed()

    phases = [line["phase"] for line in ranks.lines("phase")]
    first = ["load", "evaluate", "train", "evaluate", "train"]
    assert phases == [*first, "save", "train", "evaluate", "train", "save", "end"], (
        "the last step is saved, then evaluated"
    )
    perplexity = ranks.series("perplexity")
    assert list(perplexity) == [0, 15, 30]
    assert perplexity[30] < perplexity[0] / 1.5
    assert list(ranks.series("loss")) == [1, 5, 10, 15, 20, 25, 30]
    assert ranks.progress()["step"] == ranks.progress()["total_steps"] == 30
    assert ranks.progress()["phase"] == "end"

    results = ranks.results()
    assert results["perplexity"] == perplexity[30]
    assert results["initial_perplexity"] == perplexity[0]
    assert results["fps"] > 0
    assert results["fps_wall"] > 0
    assert results["steps"] == 30
    assert {"torch", "transformers", "python"} <= set(results["versions"])
    texts = {"train_file": inputs.train_file, "validation_file": inputs.validation_file}
    assert results["data_sha256"] == {
        field: hashlib.sha256(path.read_bytes()).hexdigest() for field, path in texts.items()
    }
    assert all(re.fullmatch("[0-9a-f]{64}", results[f"{what}_sha256"]) for what in ("config", "code", "tokenizer"))
    reported = "loss learning_rate grad_norm step_time data_time samples_per_second tokens_per_second epoch memory_bytes masked_rate"
    assert set(reported.split()) <= set(ranks.lines("metrics")[1]["values"])
    assert not (ranks.directory / "r0.error.json").exists()

    from transformers import AutoTokenizer, LongformerForMaskedLM

    output = ranks.directory / "output"
    loaded: Any = LongformerForMaskedLM.from_pretrained(output, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert model.config.attention_window == [8, 8]
    text = inputs.train_file.read_text().splitlines()[0]
    tokenizer: Any = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_loss_does_not_depend_on_how_the_batch_is_split(train: Train, spec: Spec) -> None:
    one = train("one", spec(per_device_train_batch_size=8))
    two = train("two", spec(per_device_train_batch_size=4), world_size=2)
    accumulated = train("accumulated", spec(per_device_train_batch_size=2, gradient_accumulation_steps=2), world_size=2)
    for name in ("loss", "grad_norm", "eval_loss", "masked_rate"):
        for other in (two, accumulated):
            assert other.series(name) == pytest.approx(one.series(name), rel=1e-5), name
    assert one.results()["global_batch_size"] == two.results()["global_batch_size"] == 8
    assert two.results()["world_size"] == 2
    assert two.progress(1)["step"] == 6


def test_a_killed_run_resumes_bitwise(launch: Launch, train: Train, spec: Spec) -> None:
    config = spec(
        from_scratch=WITH_DROPOUT, max_steps=9, save_steps=4, dataloader_num_workers=1, gradient_accumulation_steps=2
    )
    whole = train("whole", config, world_size=2)
    killed = launch("killed", config, world_size=2)
    killed.until(lambda: bool(killed.lines("checkpoint")))
    killed.signal(signal.SIGKILL)
    assert killed.wait() == [-signal.SIGKILL] * 2

    reference = killed.newest_checkpoint()
    assert Path(reference["dir"]).name == "step-4"
    resumed = train("resumed", config | {"resume_from_checkpoint": reference}, world_size=2)
    losses = whole.series("loss")
    assert resumed.series("loss") == {step: losses[step] for step in range(5, 10)}
    assert resumed.weights() == whole.weights()
    for name in ("perplexity", "initial_perplexity", "train_loss"):
        assert resumed.results()[name] == whole.results()[name]


def test_a_run_goes_on_with_another_number_of_ranks(train: Train, spec: Spec) -> None:
    config = spec(max_steps=8, save_steps=2, eval_steps=2)
    two = train("two", config, world_size=2)
    saved = two.lines("checkpoint")
    assert [line["step"] for line in saved] == [2, 4, 6, 8]
    assert [Path(line["dir"]).exists() for line in saved] == [False, False, True, True]

    reference = {"dir": saved[2]["dir"], "manifest_sha256": saved[2]["manifest_sha256"]}
    one = train("one", config | {"resume_from_checkpoint": reference})
    assert "2 batches a step keep its 8 rows" in one.log()
    losses = two.series("loss")
    assert one.series("loss") == pytest.approx({step: losses[step] for step in (7, 8)}, rel=1e-5)

    odd = config | {"resume_from_checkpoint": reference, "per_device_train_batch_size": 3}
    refused = train("refused", odd, code=2)
    assert "cannot take in batches of 3" in refused.error()["message"]


def test_one_asked_rank_saves_for_all_and_the_next_run_goes_on_bitwise(
    launch: Launch, train: Train, spec: Spec
) -> None:
    config = spec(from_scratch=WITH_DROPOUT, max_steps=60, logging_steps=7, save_steps=1000)
    whole = train("whole", config, world_size=2)
    stopped = launch("stopped", config, world_size=2)
    stopped.until(lambda: stopped.progress(1)["step"] >= 2)
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.wait() == [3, 3]
    (published,) = stopped.lines("checkpoint")
    assert published["step"] == stopped.progress(0)["step"] == stopped.progress(1)["step"] < 60
    assert not list(stopped.directory.glob("*.error.json"))

    resumed = train("resumed", config | {"resume_from_checkpoint": stopped.newest_checkpoint()}, world_size=2)
    assert resumed.weights() == whole.weights()
    assert resumed.results()["train_loss"] == whole.results()["train_loss"]
    after = {step: loss for step, loss in whole.series("loss").items() if step > published["step"]}
    assert resumed.series("loss") == after


def test_a_terminals_interrupt_leaves_the_loader_workers_at_work(launch: Launch, spec: Spec) -> None:
    """^C is a SIGINT to everybody, as torchrun's is a SIGTERM."""
    ranks = launch("run", spec(max_steps=10_000, dataloader_num_workers=2, do_eval=False), world_size=2)
    ranks.until(lambda: ranks.progress()["step"] >= 2)
    everybody = [one for p in ranks.processes for one in psutil.Process(p.pid).children(recursive=True)]
    assert len(everybody) >= 4
    for worker in everybody:
        worker.send_signal(signal.SIGINT)
    ranks.signal(signal.SIGINT)
    assert ranks.wait() == [3, 3], ranks.log()
    assert ranks.lines("checkpoint")[-1]["step"] == ranks.progress(0)["step"]
    psutil.wait_procs(everybody, timeout=60)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in everybody)


def test_what_a_resumed_run_changes_is_told(train: Train, spec: Spec) -> None:
    config = spec(max_steps=4, save_steps=2, do_eval=False)
    first = train("first", config)
    line = first.lines("checkpoint")[0]
    reference = {"dir": line["dir"], "manifest_sha256": line["manifest_sha256"]}
    other = config | {"resume_from_checkpoint": reference, "seed": 7, "masking": "whole_word"}
    assert "other than in the checkpoint: masking, seed." in train("other", other).log()
    same = train("same", config | {"resume_from_checkpoint": reference})
    assert "other than in the checkpoint" not in same.log()
    assert same.weights() == first.weights()


@pytest.mark.parametrize("name", ["none.json", "no/such/place.json"])
def test_a_config_that_is_not_there(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "trainer", "--config", name]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"{tmp_path / name} is not a file" in done.stderr


def test_another_models_config_is_refused_before_anything_is_loaded(launch: Launch, spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    ranks = launch("run", spec(from_scratch=None, config_name=str(tmp_path / "bert")))
    assert ranks.wait() == [2]
    assert "config_name: config.json says another model_type than longformer" in ranks.error()["message"]


def test_sigterm_during_start_up_leaves_at_once(launch: Launch, spec: Spec) -> None:
    ranks = launch("run", spec(rendezvous=None) | {"max_steps": 10_000}, world_size=1)
    # The signals are blocked from the first moment that shows in /proc; nothing of torch is loaded yet.
    status = Path(f"/proc/{ranks.processes[0].pid}/status")
    ranks.until(lambda: int(status.read_text().split("SigBlk:")[1].split()[0], 16) & 1 << (signal.SIGTERM - 1) > 0)
    ranks.signal(signal.SIGTERM)
    assert ranks.wait() == [3]
    assert "no checkpoint" in ranks.log()
    assert ranks.lines("checkpoint") == []


def test_sigterm_reaches_a_rank_that_waits_for_its_peers(launch: Launch, spec: Spec, tmp_path: Path) -> None:
    config = spec() | {"rendezvous": (tmp_path / "nobody").as_uri()}
    ranks = launch("run", config, world_size=1)
    ranks.stop()
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    with (ranks.directory / "r0.log").open("wb") as log:
        command = [sys.executable, "-m", "trainer", "--config", str(ranks.directory / "config.json")]
        ranks.processes = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)]
    ranks.until((tmp_path / "nobody").exists)
    ranks.signal(signal.SIGTERM)
    assert ranks.wait() == [3]


def test_a_diverging_loss_ends_with_its_own_code(train: Train, spec: Spec) -> None:
    config = spec(from_scratch=SHAPE | {"initializer_range": 1.0}, learning_rate=10, max_grad_norm=0, weight_decay=10)
    config |= {"optim": "adamw_torch", "adam_epsilon": 1e-30, "max_steps": 2000, "do_eval": False, "warmup_steps": 0}
    ranks = train("run", config, code=4)
    error = ranks.error()
    assert error["kind"] == "diverged"
    assert "lower learning_rate" in error["message"]
    last = ranks.lines("metrics")[-1]["values"]
    assert {last["loss"], last["grad_norm"]} & {"nan", "inf"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "train_file: is empty; give a file with text"),
        (b"\n  \n", "has no text"),
        (b"good\nbad \xff\xfe\n", "train.txt:2: not UTF-8 at byte 4"),
    ],
)
def test_bad_text_ends_with_its_place(train: Train, spec: Spec, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    ranks = train("run", spec(train_file=str(path), line_by_line=True), code=2)
    assert says in ranks.error()["message"]
    assert says in ranks.log()


def test_a_bad_config_ends_before_torch_is_loaded(launch: Launch, spec: Spec) -> None:
    ranks = launch("run", spec(max_seq_length=1000))
    assert ranks.wait() == [2]
    assert "64 or less" in ranks.error()["message"]


def test_a_changed_checkpoint_is_not_opened(train: Train, spec: Spec) -> None:
    first = train("first", spec(max_steps=2))
    reference = first.newest_checkpoint()
    weights = Path(reference["dir"]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    second = train("second", spec(max_steps=2, resume_from_checkpoint=reference), code=6)
    assert "model.safetensors is missing, or not the file" in second.error()["message"]


def test_torchrun_runs_the_same_trainer_and_everybody_stops(spec: Spec, tmp_path: Path, torchrun: Torchrun) -> None:
    """A SIGTERM to every process, as a batch system sends it; then by hand from what was saved to the end."""
    config = spec(max_steps=10_000, dataloader_num_workers=1, do_eval=False)
    begun = torchrun(config)
    ranks = Ranks(tmp_path, config, 2, start=False)
    ranks.processes = [begun]
    ranks.until(lambda: min(ranks.progress(rank)["step"] for rank in range(2)) >= 2)
    everybody = [psutil.Process(begun.pid), *psutil.Process(begun.pid).children(recursive=True)]
    assert len(everybody) >= 5, "torchrun, two ranks, a loader worker each"
    for process in everybody:
        process.send_signal(signal.SIGTERM)
    begun.wait(timeout=LIMIT_S)
    psutil.wait_procs(everybody, timeout=60)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in everybody)
    steps = {ranks.progress(rank)["step"] for rank in range(2)}
    (saved,) = ranks.lines("checkpoint")
    assert steps == {saved["step"]}
    assert ranks.log().count("Stopped: stopped at step") == 2
    assert not list(tmp_path.glob("*.error.json"))

    ended = torchrun(config | {"max_steps": saved["step"] + 2, "resume_from_checkpoint": {"dir": saved["dir"]}})
    assert ended.wait(timeout=LIMIT_S) == 0, ranks.log()
    results = ranks.results()
    assert (results["world_size"], results["steps"]) == (2, saved["step"] + 2)
