"""What is renamed into place is on the disk before it has its name: seen by the order in which the kernel is asked."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import Inputs
from trainer import atomic_files, checkpoint
from trainer.data import dataset, tokenizer
from trainer.spec.config import RunConfig

Spec = Callable[..., dict[str, Any]]


class Disk:
    """What of the files and directories would outlast a power cut, as far as they were synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renamed: list[Path] = []
        self._synced: dict[int, Any] = {}
        self._fsync, self._rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._synced[path.stat().st_ino] = content(path)

    def rename(self, source: Any, target: Any) -> None:
        source, target = Path(source), Path(target)
        for path in [source, *(source.iterdir() if source.is_dir() else [])]:
            assert self.holds(path), f"{path} is not on the disk as it stands"
        self._rename(source, target)
        self.renamed.append(target)

    def holds(self, path: Path) -> bool:
        return self._synced.get(path.stat().st_ino) == content(path)


def content(path: Path) -> Any:
    return sorted(one.name for one in path.iterdir()) if path.is_dir() else path.read_bytes()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_the_token_cache(
    spec: Spec, inputs: Inputs, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the text were large, and had been there for a minute: its hash is remembered.
    monkeypatch.setattr(dataset, "_REMEMBERED_BYTES", 1)
    now = time.time
    monkeypatch.setattr(dataset.time, "time", lambda: now() + 60)
    cache, vocabulary = tmp_path / "cache", tokenizer.load(inputs.tokenizer)
    config = RunConfig.model_validate(spec())
    found = dataset.read(inputs.train_file, "train_file", config, vocabulary, cache, lambda _: None)
    remembered, tokens = disk.renamed
    assert remembered.suffix == ".content"
    assert tokens == cache / found.digest
    assert disk.holds(cache), "its names too"


def test_a_checkpoint(tmp_path: Path, disk: Disk) -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    parent = tmp_path / "checkpoints"
    published = checkpoint.write(parent, 1, network, optimizer, {})
    assert disk.renamed == [published.dir]
    assert disk.holds(parent)
    assert disk.holds(tmp_path), "the directory of checkpoints is new itself"


def test_a_directory_of_the_name_is_replaced_and_a_file_published(tmp_path: Path, disk: Disk) -> None:
    for number in (1, 2):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / str(number)).write_text("text")
        atomic_files.publish(tmp_path / "new", tmp_path / "target")
    assert content(tmp_path / "target") == ["2"]
    (tmp_path / "file.tmp").write_text("more")
    atomic_files.publish(tmp_path / "file.tmp", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "more"
    assert len(disk.renamed) == 3
