"""Makes examples/corpus and examples/lf_token: `python -m examples.build`. Does nothing when they are whole."""

import ast
import fcntl
import hashlib
import json
import os
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS, TOKENIZER = HERE / "corpus", HERE / "lf_token"
# In the order in which they are renamed into place: the last of a directory says that it is whole.
CORPUS_FILES = ("train_corpus.txt", "test_corpus.txt")
TOKENIZER_FILES = ("config.json", "merges.txt", "vocab.json")
# <s> is 0 and <pad> 1, as RoBERTa numbers them and Longformer's positions rely on.
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
VOCAB_SIZE = 4096
_TEST_SHARE = 20
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


def main() -> None:
    turn = os.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # One at a time: who waited finds all of it made.
        fcntl.flock(turn, fcntl.LOCK_EX)
        _build()
    finally:
        os.close(turn)
    for path in [*(CORPUS / name for name in CORPUS_FILES), *(TOKENIZER / name for name in TOKENIZER_FILES)]:
        print(f"{path.relative_to(HERE.parent)}  {path.stat().st_size:,} bytes")


def is_whole() -> bool:
    """Whether there is nothing to make."""
    return has_corpus(CORPUS) and has_tokenizer(TOKENIZER)


def has_corpus(directory: Path) -> bool:
    return all(_size(directory / name) for name in CORPUS_FILES)


def has_tokenizer(directory: Path) -> bool:
    """Its files, none of them empty, and those in JSON to their ends."""
    try:
        for name in ("config.json", "vocab.json"):
            json.loads((directory / name).read_bytes())
    except (OSError, ValueError):
        return False
    return _size(directory / "merges.txt") > 0


def build_corpus(directory: Path) -> None:
    """Writes CORPUS_FILES, a paragraph a line; which is in which depends on its text alone."""
    directory.mkdir(exist_ok=True)
    paragraphs = dict.fromkeys(p for text in _texts() for p in _paragraphs(text))
    parts = {
        "train_corpus.txt": [p for p in paragraphs if _digest(p) % _TEST_SHARE],
        "test_corpus.txt": [p for p in paragraphs if _digest(p) % _TEST_SHARE == 0],
    }
    with tempfile.TemporaryDirectory(dir=directory, prefix=".") as fresh:
        for name, lines in parts.items():
            _write(Path(fresh) / name, lines)
        _put(Path(fresh), directory, CORPUS_FILES)


def build_tokenizer(text: Path, directory: Path) -> None:
    """Trains a byte-level BPE and writes TOKENIZER_FILES."""
    # Here, since whoever only asks whether all is whole need not wait for it.
    from tokenizers import ByteLevelBPETokenizer

    directory.mkdir(exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train(str(text), vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=sys.stderr.isatty())
    config = {"model_type": "longformer", "vocab_size": tokenizer.get_vocab_size()}
    ids = {f"{name}_token_id": SPECIAL_TOKENS.index(token) for name, token in _ROLES.items()}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".") as fresh:
        (Path(fresh) / "config.json").write_text(json.dumps(config | ids, indent=2) + "\n", encoding="utf-8")
        tokenizer.save_model(fresh)
        _put(Path(fresh), directory, TOKENIZER_FILES)


def _build() -> None:
    if not has_corpus(CORPUS):
        build_corpus(CORPUS)
    if not has_tokenizer(TOKENIZER):
        build_tokenizer(CORPUS / "train_corpus.txt", TOKENIZER)


_ROLES = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>"}


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    from tqdm import tqdm

    yield from topics.values()
    root = Path(sysconfig.get_path("stdlib"))
    sources = [p for p in sorted(root.rglob("*.py")) if not _SKIPPED & set(p.relative_to(root).parts)]
    for path in tqdm(sources, desc="reading docstrings", unit="file"):
        yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    # Parsed, not imported: importing runs code, and some modules do surprising things.
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        # Shorter ones are headings and signatures rather than English.
        if len(paragraph) >= 40 and paragraph.isprintable():
            yield paragraph


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _put(fresh: Path, directory: Path, names: Iterable[str]) -> None:
    """All of them, written whole beside; the last one of an older set goes first, so that no mixture looks whole."""
    *others, last = names
    (directory / last).unlink(missing_ok=True)
    for name in (*others, last):
        (fresh / name).replace(directory / name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


if __name__ == "__main__":
    main()
