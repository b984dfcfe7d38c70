from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from store import data_roots
from store.errors import PathRefused, PathUnreachable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "lf_token").mkdir(parents=True)
    (root / "train.txt").write_text("text")
    (tmp_path / "secret.txt").write_text("secret")
    os.symlink(root / "train.txt", root / "inside.txt")
    os.symlink(tmp_path / "secret.txt", root / "outside.txt")
    os.symlink(root / "loop", root / "loop")
    os.mkfifo(root / "fifo")
    return root


def test_what_lies_under_a_root_is_resolved(root: Path) -> None:
    assert data_roots.resolve(f"{root}/train.txt", roots=[root], kind="file") == root / "train.txt"
    assert data_roots.resolve(f"{root}/inside.txt", roots=[root], kind="file") == root / "train.txt"
    assert data_roots.resolve(f"{root}/lf_token/", roots=[root], kind="directory") == root / "lf_token"


@pytest.mark.parametrize(
    "path",
    [
        "", "train.txt", "{root}/../secret.txt", "{root}/lf_token/../../secret.txt", "{root}/outside.txt", "{root}/loop", "{root}/fifo",
        "{root}/none.txt", "{root}/lf_token", "/etc/passwd", "/proc/self/environ", "{root}/a\0b", "{root}/%2e%2e/secret.txt",
        "file://{root}/train.txt", "{root}x/train.txt", "{root}\\train.txt", "{root}/" + "a" * 5000, "{root}/" + "a" * 300,
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_way_out(root: Path, path: str) -> None:
    with pytest.raises(PathRefused) as caught:
        data_roots.resolve(path.replace("{root}", str(root)), roots=[root], kind="file")
    assert caught.value.fix


def test_a_way_back_up_is_named_as_what_it_is(root: Path) -> None:
    with pytest.raises(PathRefused, match=r"has `\.\.` in it"):
        data_roots.resolve(f"{root}/lf_token/../train.txt", roots=[root], kind="file")


def test_what_a_directory_holds_leads_nowhere_else(root: Path, tmp_path: Path) -> None:
    inner = root / "lf_token"
    os.symlink(root / "train.txt", inner / "merges.txt")
    assert data_roots.resolve(str(inner), roots=[root], kind="directory") == inner
    os.symlink(tmp_path / "secret.txt", inner / "tokenizer_config.json")
    with pytest.raises(PathRefused, match=r"tokenizer_config\.json"):
        data_roots.resolve(str(inner), roots=[root], kind="directory")


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_mount_that_does_not_answer_is_not_the_paths_fault(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(_path: str | Path) -> tuple[str, int]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(data_roots, "_look_up", fail)
    with pytest.raises(PathUnreachable, match=os.strerror(number)):
        data_roots.resolve(f"{root}/train.txt", roots=[root], kind="file")


def test_a_file_is_no_directory(root: Path) -> None:
    with pytest.raises(PathRefused):
        data_roots.resolve(f"{root}/train.txt", roots=[root], kind="directory")


def test_a_root_that_is_elsewhere_is_left_to_the_worker(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "on-the-host"
    assert data_roots.covered(f"{there}/x", roots=[root, there])
    assert not data_roots.visible(f"{there}/x", roots=[root, there])
    assert data_roots.visible(f"{root}/x", roots=[root, there])
