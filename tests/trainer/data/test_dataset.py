"""The token cache: of any text in bounded memory, built once whoever comes, the same however it is cut up."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import zstandard

from tests.trainer.conftest import LIMIT_S, ROOT, Inputs
from trainer.data import dataset, sources, tokenizer
from trainer.data.tokenizer import Vocabulary
from trainer.errors import BadInput
from trainer.spec.config import RunConfig

pytestmark = pytest.mark.timeout(900)
Spec = Callable[..., dict[str, Any]]
MIB = 1 << 20
BUILDER = """
import json, resource, sys
from pathlib import Path
from trainer.data import dataset, tokenizer
from trainer.spec.config import RunConfig
from trainer.errors import BadInput

spec, cache = json.loads(sys.argv[1]), Path(sys.argv[2])
config = RunConfig.model_validate(spec)
vocabulary = tokenizer.load(Path(spec["tokenizer_name"]))
before, told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set()

def work(what, done, total):
    if what not in told:
        told.add(what)
        print(what, flush=True)

try:
    found = dataset.read(Path(spec["train_file"]), "train_file", config, vocabulary, cache, print, work)
    print("digest", found.digest, len(found.tokens_T))
except BadInput as error:
    print("refused", error)
print("grew", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, flush=True)
"""


@pytest.fixture
def vocabulary(inputs: Inputs) -> Vocabulary:
    return tokenizer.load(inputs.tokenizer)


@pytest.fixture
def build(spec: Spec, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that reads a corpus through the cache and tells what it does."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, **options: Any) -> subprocess.Popen[str]:
        arguments = [json.dumps(spec(train_file=str(path), do_eval=False, **options)), str(tmp_path / "cache")]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", BUILDER, *arguments],
                cwd=ROOT,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> list[str]:
    lines = process.communicate(timeout=LIMIT_S)[0].splitlines()
    assert process.returncode == 0
    return lines


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def repeated(inputs: Inputs, path: Path, size: int) -> Path:
    """English of a wanted size; the lines of each round differ, so that nothing is known already."""
    lines = inputs.train_file.read_text(encoding="utf-8").splitlines()
    with path.open("w", encoding="utf-8") as file:
        round_ = 0
        while file.tell() < size:
            round_ += 1
            file.writelines(f"{round_} {line}\n" for line in lines)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("line_by_line", [True, False])
def test_memory_does_not_grow_with_the_corpus(build: Any, inputs: Inputs, tmp_path: Path, line_by_line: bool) -> None:
    """Its text and tokens together are more than twice the growth that is allowed."""
    grew: list[int] = []
    for size in (2 * MIB, 14 * MIB):
        lines = said(build(repeated(inputs, tmp_path / f"{size}.txt", size), line_by_line=line_by_line))
        grew.append(int(lines[-1].split()[1]))
        assert int(lines[-2].split()[2]) * 4 > size / 2
    assert grew[1] - grew[0] < 10, grew


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
def test_a_line_larger_than_memory_is_refused_in_little_memory(build: Any, tmp_path: Path, kind: str) -> None:
    size = 512 * MIB
    path = tmp_path / {"plain": "a.txt", "gzip": "a.txt.gz", "zstd": "a.jsonl.zst"}[kind]
    first = b'{"text": "a short line"}\n' if kind == "zstd" else b"a short line\n"
    with path.open("wb") as file:
        file.write(first if kind == "plain" else {"gzip": gzip.compress, "zstd": zstandard.compress}[kind](first))
        if kind == "plain":
            file.truncate(size)
        elif kind == "gzip":
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
                packed.writelines(bytes(MIB) for _ in range(size // MIB))
        else:
            with zstandard.open(file, "wb", closefd=False) as packed:
                for _ in range(size // MIB):
                    packed.write(bytes(MIB))
    lines = said(build(path, line_by_line=True))
    assert lines[-2] == f"refused train_file: {path}:2: the line is longer than 16 MiB; break it up"
    assert int(lines[-1].split()[1]) < 120


def test_who_waits_takes_over_from_a_builder_that_died(build: Any, inputs: Inputs, tmp_path: Path) -> None:
    path, cache = repeated(inputs, tmp_path / "a.txt", 3 * MIB), tmp_path / "cache"
    first = build(path)
    until(lambda: list(cache.glob("*.tmp/tokens.int32")))
    first.send_signal(signal.SIGSTOP)
    assert not [p for p in cache.iterdir() if len(p.name) == 64], "it was not done yet"
    second = build(path)
    assert second.stdout is not None
    assert "waiting until a.txt is tokenized\n" in iter(second.stdout.readline, "")
    first.kill()
    lines = said(second)
    assert f"tokenizing {path}" in lines
    assert not list(cache.glob("*.tmp"))

    # Whoever comes next finds what is there, and that is what an undisturbed builder would have made.
    (again,) = {line for line in said(build(path)) if line.startswith("digest")}
    assert again in lines
    whole = next(p for p in cache.iterdir() if len(p.name) == 64)
    tokens = (whole / "tokens.int32").read_bytes()
    (whole / "tokens.int32").unlink()
    (whole / "starts.int64").unlink()
    whole.rmdir()
    assert again in said(build(path))
    assert (whole / "tokens.int32").read_bytes() == tokens


def test_three_that_come_at_once_build_once(build: Any, inputs: Inputs, tmp_path: Path) -> None:
    path = repeated(inputs, tmp_path / "a.txt", MIB)
    told = [said(process) for process in [build(path) for _ in range(3)]]
    assert sum(line == f"tokenizing {path}" for lines in told for line in lines) == 1
    assert len({line for lines in told for line in lines if line.startswith("digest")}) == 1


def sequences(path: Path, config: RunConfig, vocabulary: Vocabulary, cache: Path) -> list[list[int]]:
    found = dataset.read(path, "train_file", config, vocabulary, cache, lambda _: None)
    return [found[i].tolist() for i in range(len(found))]


@pytest.mark.parametrize("line_by_line", [True, False])
@pytest.mark.parametrize("characters", [1, 50, 1000])
def test_long_documents_give_the_same_tokens_however_they_are_cut(
    spec: Spec,
    vocabulary: Vocabulary,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line_by_line: bool,
    characters: int,
) -> None:
    path = tmp_path / "a.txt"
    lines = inputs.train_file.read_text(encoding="utf-8").splitlines()
    odd = ["  two  spaces , and a comma. x=1 ; y = 2 !", "", "tab\tand <mask> é ü 语 言 mixed 1 2 3 " * 9, "word" * 500]
    path.write_text("\n".join([" ".join(lines[:40]), *odd, *lines[40:60]]), encoding="utf-8")
    config = RunConfig.model_validate(spec(line_by_line=line_by_line, max_seq_length=64))
    whole = sequences(path, config, vocabulary, tmp_path / "whole")
    monkeypatch.setattr(dataset, "_PIECE_CHARACTERS", characters)
    monkeypatch.setattr(dataset, "_BATCH_CHARACTERS", 200)
    monkeypatch.setattr(dataset, "_BATCH_PIECES", 3)
    assert sequences(path, config, vocabulary, tmp_path / "cut") == whole


def test_frames_and_members_behind_each_other_are_all_read(spec: Spec, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """What pigz, pzstd or `cat a.gz b.gz` leave: readers that stop behind the first lose text in silence."""
    config = RunConfig.model_validate(spec(line_by_line=True))
    parts = [b"the first part\n", b"the second part\n", b"the third\n"]
    # pzstd tells sizes in frames that are to be skipped.
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"
    packs: dict[str, Callable[[bytes], bytes]] = {
        "a.txt": bytes,
        "a.txt.gz": gzip.compress,
        "a.txt.zst": lambda part: skipped + zstandard.compress(part),
    }
    found: list[Any] = []
    for name, pack in packs.items():
        (tmp_path / name).write_bytes(b"".join(pack(part) for part in parts))
        found.append(sequences(tmp_path / name, config, vocabulary, tmp_path / "cache"))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "ok"}\n\n{"text": "\\ud800"}\n', "a.jsonl:3: its text has half of a surrogate pair"),
        ("a.jsonl", b'{"text": ["ok"]}\n', 'a.jsonl:1: has no "text" column'),
        ("a.jsonl", b'["text"]\n', 'a.jsonl:1: has no "text" column'),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1: not JSON"),
        ("a.json", b'[\n{"text": "ok"}\n]\n', "a.json:1: not JSON"),
        ("a.txt", "héllo\n".encode("utf-16"), "a.txt:1: not UTF-8 at byte 0"),
        ("a.txt", b"one\n" * 3000 + b"\xe9t\xe9\n", "a.txt:3001: not UTF-8 at byte 0"),
        ("a.txt.gz", gzip.compress(b"one\n" * 3000 + b"\xff\n", mtime=0), "a.txt.gz:3001: not UTF-8 at byte 0"),
        ("a.txt.zst", zstandard.compress(os.urandom(1000).hex().encode() * 99)[:-9], "a.txt.zst:1: the compressed"),
        ("a.txt", b" \n" * 5000, "a.txt has no text in it"),
        ("a.jsonl", b'{"text": ""}\n', "a.jsonl has no text in it"),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("line_by_line", [True, False])
def test_bad_text_is_told_by_file_and_line(
    spec: Spec, vocabulary: Vocabulary, tmp_path: Path, name: str, content: bytes, says: str, line_by_line: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    config = RunConfig.model_validate(spec(line_by_line=line_by_line))
    with pytest.raises(BadInput, match="train_file: ") as caught:
        sequences(tmp_path / name, config, vocabulary, tmp_path / "cache")
    assert says in str(caught.value)


def test_a_tokenizer_that_makes_nothing_of_the_text_is_blamed_for_it(
    spec: Spec, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("hello world\n")
    bare = tokenizers.Tokenizer(tokenizers.models.BPE())
    bare.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bare.save(str(tmp_path / "tokenizer.json"))
    config = RunConfig.model_validate(spec(line_by_line=True))
    with pytest.raises(BadInput, match=r"tokenizer_name: it makes no token of the text in .*a\.txt"):
        sequences(tmp_path / "a.txt", config, tokenizer.load(tmp_path), tmp_path / "cache")


def test_a_byte_order_mark_is_no_text(spec: Spec, vocabulary: Vocabulary, tmp_path: Path) -> None:
    config = RunConfig.model_validate(spec(line_by_line=True))
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "ok"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfok\r\n")
    first, second = (sequences(tmp_path / n, config, vocabulary, tmp_path / "cache") for n in ("a.jsonl", "b.txt"))
    assert first == second
    assert vocabulary.tokenizer.decode(first[0][1:-1]) == "ok"


@pytest.mark.parametrize("name", [".", "fifo", "missing.txt"])
def test_what_is_no_file_is_refused_at_once(spec: Spec, vocabulary: Vocabulary, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadInput, match=r"is not a file|No such file"):
        sequences(tmp_path / name, RunConfig.model_validate(spec()), vocabulary, tmp_path / "cache")


def test_a_large_file_is_hashed_once_until_it_is_touched(
    spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_REMEMBERED_BYTES", 1)
    # As if the text had been there for a minute.
    now = time.time
    monkeypatch.setattr(dataset.time, "time", lambda: now() + 60)
    hashed: list[str] = []
    real = dataset._hash
    monkeypatch.setattr(dataset, "_hash", lambda path, work: hashed.append(path.name) or real(path, work))
    path = tmp_path / "a.txt"
    path.write_bytes(inputs.train_file.read_bytes())
    config = RunConfig.model_validate(spec())

    def read() -> dataset.Sequences:
        return dataset.read(path, "train_file", config, vocabulary, tmp_path / "cache", lambda _: None)

    first, second = read(), read()
    assert hashed == ["a.txt"]
    assert first.digest == second.digest
    path.write_bytes(inputs.train_file.read_bytes().swapcase())
    third = read()
    assert hashed == ["a.txt", "a.txt"]
    assert third.content_sha256 != first.content_sha256
    assert third.content_sha256 == real(path, lambda *_: None)

    # What was written in this very moment may be written again in it: it is not remembered.
    monkeypatch.setattr(dataset.time, "time", now)
    path.write_bytes(b"new\n")
    read()
    read()
    assert hashed == ["a.txt"] * 4


def test_work_is_told_in_bytes(spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path, size = inputs.train_file, inputs.train_file.stat().st_size
    dataset.read(
        path, "f", RunConfig.model_validate(spec()), vocabulary, tmp_path, lambda _: None, lambda *x: told.append(x)
    )
    assert told[0] == (f"reading {path.name}", size, size)
    assert told[-1] == (f"tokenizing {path.name}", size, size)


def test_starts_and_tokens_fit_each_other(spec: Spec, vocabulary: Vocabulary, inputs: Inputs, tmp_path: Path) -> None:
    found = dataset.read(
        inputs.train_file, "f", RunConfig.model_validate(spec(line_by_line=True)), vocabulary, tmp_path, lambda _: None
    )
    assert found.starts_N1[0] == 0
    assert found.starts_N1[-1] == len(found.tokens_T)
    assert np.all(found.tokens_T[found.starts_N1[:-1]] == vocabulary.bos)
    assert np.all(found.tokens_T[found.starts_N1[1:] - 1] == vocabulary.eos)
    assert sources.layout(Path("a.jsonl.gz")) == (True, ".gz")
