"""Corpora and tokenizers that are plainly none."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from store.settings import Settings
from tests.worker.conftest import TOKENIZER
from worker.doctor import inputs
from worker.doctor.inputs import HEAD_BYTES, Known, of_corpus, of_tokenizer

VOCABULARY = json.loads(TOKENIZER)["model"]["vocab"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("a.txt", gzip.compress(b"text", mtime=0), "give it the ending .gz"),
        ("a.txt.gz", b"text", "is named .gz and is not compressed so"),
        ("a.txt", "text".encode("utf-16"), "is UTF-16"),
        ("a.txt", b"te\0xt", "has a NUL at byte 2"),
        ("a.txt", b"caf\xe9 au lait", "not UTF-8 at byte 3"),
        ("a.txt", b"\n \n" * 100, "no text in its first 300 bytes"),
        ("a.txt", b"cut \xc3", "not UTF-8 at byte 4"),
    ],
)
def test_a_corpus_that_is_none(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert words in (of_corpus(tmp_path / name) or "")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", "naïve – 漢字\n".encode()),
        ("a.txt", b"\xef\xbb\xbftext"),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)),
        ("a.txt", b"x" * (HEAD_BYTES - 1) + "漢".encode()),
        ("a.txt", b"x" * HEAD_BYTES + b"\xff"),
    ],
    ids=["several scripts", "with a mark", "compressed", "cut in a character", "beyond the head"],
)
def test_a_corpus_that_is_one(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert of_corpus(tmp_path / name) is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer.json": "version https://git-lfs.github.com/spec/v1\n"}, "Git LFS in place of tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json that is not JSON"),
        ({"tokenizer.json": "{}"}, "no vocabulary in tokenizer.json"),
        ({"tokenizer.json": "[]"}, "no vocabulary in tokenizer.json"),
        ({"vocab.json": "[]", "merges.txt": ""}, "no vocabulary in vocab.json"),
        (
            {"vocab.json": '{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}', "merges.txt": ""},
            "no <mask> token in vocab.json",
        ),
    ],
)
def test_a_tokenizer_that_is_none(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert words in (of_tokenizer(tmp_path) or "")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": TOKENIZER},
        {"vocab.json": json.dumps(VOCABULARY), "merges.txt": ""},
        {"tokenizer.json": '{"model": {"vocab": {"a": 0}}, "added_tokens": %s}'},
        {
            "tokenizer.json": '{"model": {"vocab": [["[CLS]", 0], ["[PAD]", 1], ["[SEP]", 2], ["[UNK]", 3], ["[MASK]", 4]]}}'
        },
    ],
    ids=["whole", "as RoBERTa's", "added", "pairs"],
)
def test_a_tokenizer_that_is_one(tmp_path: Path, files: dict[str, str]) -> None:
    added = json.dumps([{"id": number, "content": name} for name, number in VOCABULARY.items()])
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace("%s", added))
    assert of_tokenizer(tmp_path) is None


def test_a_file_is_read_again_only_once_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path / "data", data_roots=(tmp_path,))
    corpus = tmp_path / "a.txt"
    corpus.write_bytes(b"\0")
    read: list[Path] = []
    monkeypatch.setattr(inputs, "of_corpus", lambda path: read.append(path) or of_corpus(path))
    known = Known()
    spec = {"train_file": str(corpus), "validation_file": "/etc/passwd", "tokenizer_name": "roberta-base"}
    for _ in range(3):
        assert [problem.field for problem in known.problems(settings, spec)] == ["train_file"]
    assert len(read) == 1
    other = Known(known.found)
    corpus.write_bytes(b"text")
    os.utime(corpus, ns=(1, 1))
    assert list(other.problems(settings, spec)) == []
    assert len(read) == 2
