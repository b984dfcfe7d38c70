"""Which checkpoints stay, and that what was written is read back, or refused."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.trainer.conftest import WITH_DROPOUT, Ranks
from trainer import checkpoint
from trainer.checkpoint import Keep, Published
from trainer.errors import BrokenCheckpoint
from trainer.spec.config import CheckpointRef

pytestmark = pytest.mark.timeout(900)
Spec = Callable[..., dict[str, Any]]
Forked = Callable[..., Ranks]


def steps(parent: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in parent.iterdir())


def make(parent: Path, sizes: dict[int, int]) -> None:
    for step, size in sizes.items():
        (parent / f"step-{step}").mkdir(parents=True)
        (parent / f"step-{step}" / "model.safetensors").write_bytes(bytes(size))


def keep(
    parent: Path,
    newest: int,
    budget: int | None = None,
    best: int | None = None,
    resumed: int | None = None,
    step: int = 1000,
) -> Keep:
    at = lambda step: None if step is None else parent / f"step-{step}"  # noqa: E731
    return Keep(newest, budget, at(best), at(resumed), step)


@pytest.mark.parametrize(
    ("rules", "stay"),
    [
        ({"newest": 2}, [40, 50]),
        ({"newest": 2, "best": 20}, [20, 40, 50]),
        ({"newest": 2, "resumed": 10}, [10, 40, 50]),
        ({"newest": 9}, [10, 20, 30, 40, 50]),
        ({"newest": 9, "budget": 250}, [40, 50]),
        ({"newest": 9, "budget": 250, "best": 20}, [20, 50]),
        ({"newest": 9, "budget": 250, "resumed": 10}, [10, 50]),
        ({"newest": 9, "budget": 199, "best": 20}, [50]),
        ({"newest": 9, "budget": 1, "best": 20, "resumed": 10}, [10, 50]),
        ({"newest": 1, "budget": 1}, [50]),
        ({"newest": 2, "step": 20}, [10, 20]),
        ({"newest": 3, "step": 20}, [10, 20, 50]),
        ({"newest": 1, "step": 20, "resumed": 10}, [10, 20]),
    ],
)
def test_what_stays(tmp_path: Path, rules: dict[str, int], stay: list[int]) -> None:
    make(tmp_path, dict.fromkeys((10, 20, 30, 40, 50), 100))
    assert checkpoint.prune(tmp_path, keep(tmp_path, **rules)) == 100 * len(stay)
    assert steps(tmp_path) == stay


def test_a_run_repeated_in_one_directory_keeps_its_own(forked: Forked, spec: Spec, tmp_path: Path) -> None:
    """What is there of later steps is an earlier run's: older than anything this one writes."""
    options = {"save_steps": 2, "save_total_limit": 2, "do_eval": False}
    first = forked(Ranks(tmp_path / "run", spec(max_steps=8, **options), 1, start=False))
    assert steps(first.directory / "checkpoints") == [6, 8]
    again = forked(Ranks(tmp_path / "run", spec(max_steps=5, **options), 1, start=False))
    assert steps(again.directory / "checkpoints") == [4, 5]


def test_the_start_is_no_best_checkpoint(forked: Forked, spec: Spec, tmp_path: Path) -> None:
    """At such a rate the text is never known better than at the start, of which there is no checkpoint."""
    options = {"eval_steps": 2, "save_steps": 2, "learning_rate": 10.0, "lr_scheduler_type": "constant"}
    run = forked(Ranks(tmp_path / "run", spec(max_steps=8, save_total_limit=1, **options), 1, start=False))
    losses = run.series("eval_loss")
    assert min(losses, key=lambda step: losses[step]) == 0
    best = min((step for step in losses if step), key=lambda step: losses[step])
    assert steps(run.directory / "checkpoints") == sorted({best, 8})


def test_room_is_made_before_the_next_one(tmp_path: Path) -> None:
    make(tmp_path, dict.fromkeys((10, 20, 30), 100))
    checkpoint.prune(tmp_path, keep(tmp_path, 9, budget=300), coming=True)
    assert steps(tmp_path) == [20, 30]
    checkpoint.prune(tmp_path, keep(tmp_path, 9, budget=10), coming=True)
    assert steps(tmp_path) == [30], "until the next one is whole, the newest is all there is"


@settings(deadline=None)
@given(
    sizes=st.dictionaries(st.integers(1, 30), st.integers(0, 50), min_size=1, max_size=8),
    newest=st.integers(1, 5),
    budget=st.none() | st.integers(0, 300),
    best=st.none() | st.integers(1, 30),
    resumed=st.none() | st.integers(1, 30),
)
def test_rules_hold_for_any(
    tmp_path_factory: Any, sizes: dict[int, int], newest: int, budget: int | None, best: int | None, resumed: int | None
) -> None:
    parent = tmp_path_factory.mktemp("any")
    make(parent, sizes)
    taken = checkpoint.prune(parent, keep(parent, newest, budget, best, resumed))
    left = set(steps(parent))
    fixed = {max(sizes), resumed} & set(sizes)
    assert taken == sum(sizes[step] for step in left)
    assert fixed <= left
    assert left <= set(sorted(sizes)[-newest:]) | fixed | {best}
    if budget is None:
        assert left == (set(sorted(sizes)[-newest:]) | fixed | {best}) & set(sizes)
    elif taken > budget:
        assert left == fixed
    # Whatever else went for want of room, the best went after it, and the older before the newer.
    others = sorted(set(sorted(sizes)[-newest:]) - fixed - {best})
    assert left & set(others) == set(others[len(others) - len(left & set(others)) :])
    if best in sizes and best not in left:
        assert not left & set(others)


def network() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return checkpoint.write(tmp_path, 3, *trained(3), {"number": 0.1, "nothing": None})


def reference(published: Published, *, by_hand: bool = False) -> CheckpointRef:
    """By hand it has no hash."""
    return CheckpointRef(dir=str(published.dir), manifest_sha256=None if by_hand else published.manifest_sha256)


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_was_written_is_read_back(published: Published, by_hand: bool) -> None:
    module, optimizer = trained(0)
    assert checkpoint.read(reference(published, by_hand=by_hand), module, optimizer) == {"number": 0.1, "nothing": None}
    expected, of_expected = trained(3)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))
    mine, theirs = optimizer.state_dict()["state"], of_expected.state_dict()["state"]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[i][name], theirs[i][name]) for i in theirs for name in theirs[i])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["missing", "shorter", "changed"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_harmed_checkpoint_is_refused(published: Published, name: str, harm: str, by_hand: bool) -> None:
    path = published.dir / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[:-1] if harm == "shorter" else content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(BrokenCheckpoint, match=r"manifest|missing, or not the file"):
        checkpoint.read(reference(published, by_hand=by_hand), *trained(0))


def test_a_manifest_that_was_replaced_is_trusted_by_hand_alone(published: Published, tmp_path: Path) -> None:
    other = checkpoint.write(tmp_path / "other", 3, *trained(2), {"number": 0.2})
    for path in other.dir.iterdir():
        path.replace(published.dir / path.name)
    assert checkpoint.read(reference(published, by_hand=True), *trained(0)) == {"number": 0.2}
    with pytest.raises(BrokenCheckpoint, match=r"resume_from_checkpoint.manifest_sha256: .*; give another checkpoint"):
        checkpoint.read(reference(published), *trained(0))


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("[]", "is not a checkpoint's manifest"),
        ('{"format": 1}', "is not a checkpoint's manifest"),
        ('{"format": 1, "files": 3}', "is not a checkpoint's manifest"),
        ('{"format": 2, "files": {}}', "has format 2, this trainer reads 1"),
        ('{"format": 1, "files": {}}', "names [], a checkpoint has ['model.safetensors', "),
        ('{"format": 1, "files": {"../notes": {}}}', "names ['../notes'], a checkpoint has"),
    ],
)
def test_by_hand_a_manifest_may_be_anything(published: Published, manifest: str, says: str) -> None:
    (published.dir / "manifest.json").write_text(manifest)
    with pytest.raises(BrokenCheckpoint, match=re.escape(says)):
        checkpoint.read(reference(published, by_hand=True), *trained(0))


def test_what_is_no_checkpoint_is_told_by_field_and_remedy(tmp_path: Path) -> None:
    says = f"resume_from_checkpoint.dir: {tmp_path} has no manifest.json .*; give a directory checkpoints/step-<n>"
    with pytest.raises(BrokenCheckpoint, match=says):
        checkpoint.read(CheckpointRef(dir=str(tmp_path)), *trained(0))
    with pytest.raises(ValidationError, match=r"manifest_sha256 is not 64 digits of 0-9a-f; .* or leave it out"):
        CheckpointRef(dir=str(tmp_path), manifest_sha256="step-3")
    with pytest.raises(ValidationError, match=r'dir is wanted by its name: write \{"dir": '):
        CheckpointRef.model_validate(str(tmp_path))


def test_another_models_checkpoint_is_refused(published: Published) -> None:
    other = torch.nn.Sequential(torch.nn.Linear(3, 4))
    with pytest.raises(BrokenCheckpoint, match="is of another model"):
        checkpoint.read(reference(published), other, torch.optim.AdamW(other.parameters()))


def test_what_a_dead_run_left_is_cleared(tmp_path: Path) -> None:
    make(tmp_path, {1: 5})
    (tmp_path / "step-2.tmp").mkdir()
    (tmp_path / "notes.txt").touch()
    checkpoint.prune(tmp_path, keep(tmp_path, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step-1"]


def test_a_run_keeps_its_best_within_its_budget(forked: Forked, spec: Spec, tmp_path: Path) -> None:
    """At such a rate the loss goes up and down: with one seed or another the best is not among the newest."""
    options = {
        "max_steps": 12,
        "save_steps": 2,
        "eval_steps": 2,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
    }
    for seed in range(12):
        config = spec(save_total_limit=3, seed=seed, **options)
        plain = forked(Ranks(tmp_path / f"plain{seed}", config, 1, start=False))
        losses = {step: loss for step, loss in plain.series("eval_loss").items() if step}
        best = min(losses, key=lambda step: losses[step])
        if best < 8:
            break
    else:
        pytest.fail("the best was always among the newest")
    assert steps(plain.directory / "checkpoints") == [best, 8, 10, 12]

    size = sum(file.stat().st_size for file in (plain.directory / "checkpoints" / "step-12").iterdir())
    # Room for three at any moment, the one that is being written among them.
    limit = {"save_total_limit_bytes": max(1 << 20, int(3.5 * size))}
    assert 3 * size < limit["save_total_limit_bytes"] < 4 * size, "the model has grown: adjust its size"
    bounded = forked(Ranks(tmp_path / "bounded", config | limit, 1, start=False))
    assert steps(bounded.directory / "checkpoints") == [best, 10, 12]
    assert bounded.weights() == plain.weights()


def test_the_one_resumed_from_stays(forked: Forked, spec: Spec, tmp_path: Path) -> None:
    """By hand, in one directory, with the least that may be kept."""
    config = spec(max_steps=3, save_steps=1, save_total_limit=1, do_eval=False)
    run = forked(Ranks(tmp_path / "run", config, 1, start=False))
    assert steps(run.directory / "checkpoints") == [3]
    again = config | {"max_steps": 6, "save_total_limit_bytes": 1 << 20}
    run = forked(Ranks(run.directory, again | {"resume_from_checkpoint": run.newest_checkpoint()}, 1, start=False))
    assert json.loads((run.directory / "config.json").read_text())["resume_from_checkpoint"]["dir"].endswith("step-3")
    assert steps(run.directory / "checkpoints") == [3, 6]


def die_in_the_second_save(directory: Path) -> None:
    """Called in a rank before it begins: it dies by SIGKILL in place of the n-th sync of that save."""
    left, real = int((directory / "die_at").read_text()), os.fsync
    has_begun = False

    def fsync(descriptor: int) -> None:
        nonlocal left, has_begun
        has_begun = has_begun or "/step-4.tmp" in os.readlink(f"/proc/self/fd/{descriptor}")
        left -= has_begun
        if has_begun and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync


# Four files, their directory, and, once it has its name, the directory of that.
@pytest.mark.parametrize(("sync", "goes_on_at"), [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 4)])
def test_a_run_killed_in_a_save_resumes_bitwise(
    forked: Forked, spec: Spec, tmp_path: Path, sync: int, goes_on_at: int
) -> None:
    """One rank, by hand: in the same directory, from the newest checkpoint that stands there."""
    config = spec(from_scratch=WITH_DROPOUT, max_steps=5, save_steps=2, do_eval=False)
    whole = forked(Ranks(tmp_path / "whole", config, 1, start=False))
    run = Ranks(tmp_path / "run", config, 1, start=False)
    (run.directory / "die_at").write_text(str(sync))
    hook = f"{__name__}:{die_in_the_second_save.__name__}"
    forked(run, hook, code=-signal.SIGKILL)
    parent = run.directory / "checkpoints"
    assert (parent / "step-4.tmp").exists() == (goes_on_at == 2)
    newest = max(parent.glob("step-[0-9]"), key=lambda path: path.name)
    assert newest.name == f"step-{goes_on_at}"
    losses = run.series("loss")
    resumed = forked(Ranks(run.directory, config | {"resume_from_checkpoint": {"dir": str(newest)}}, 1, start=False))
    assert f"resumed at step {goes_on_at}" in resumed.log()
    assert resumed.weights() == whole.weights()
    assert whole.series("loss") == losses | resumed.series("loss")
    assert not list(parent.glob("*.tmp"))
