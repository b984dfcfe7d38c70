"""Makes examples/corpus and examples/lf_token: `python -m examples.build`. Does nothing when they are there."""

import ast
import hashlib
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
# <s> is 0 and <pad> 1, as RoBERTa numbers them and Longformer's positions rely on.
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
VOCAB_SIZE = 4096
_TEST_SHARE = 20
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


def main() -> None:
    corpus, tokenizer = HERE / "corpus", HERE / "lf_token"
    if not (corpus / "test_corpus.txt").is_file():
        build_corpus(corpus)
    if not (tokenizer / "vocab.json").is_file():
        build_tokenizer(corpus / "train_corpus.txt", tokenizer)
    for path in sorted([*corpus.iterdir(), *tokenizer.iterdir()]):
        print(f"{path.relative_to(HERE.parent)}  {path.stat().st_size:,} bytes")


def build_corpus(directory: Path) -> None:
    """Writes train_corpus.txt and test_corpus.txt, a paragraph a line; which is which depends on its text alone."""
    directory.mkdir(exist_ok=True)
    paragraphs = dict.fromkeys(p for text in _texts() for p in _paragraphs(text))
    train = [p for p in paragraphs if _digest(p) % _TEST_SHARE]
    test = [p for p in paragraphs if _digest(p) % _TEST_SHARE == 0]
    _write(directory / "train_corpus.txt", train)
    # Last, and renamed into place: its presence says that the corpus is whole.
    _write(directory / "test_corpus.txt", test)


def build_tokenizer(text: Path, directory: Path) -> None:
    """Trains a byte-level BPE and writes merges.txt, config.json and, last, vocab.json."""
    directory.mkdir(exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train(str(text), vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, show_progress=sys.stderr.isatty())
    config = {"model_type": "longformer", "vocab_size": tokenizer.get_vocab_size()}
    ids = {f"{name}_token_id": SPECIAL_TOKENS.index(token) for name, token in _ROLES.items()}
    (directory / "config.json").write_text(json.dumps(config | ids, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_model(str(directory))


_ROLES = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>"}


def _texts() -> Iterator[str]:
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
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    temporary.rename(path)


if __name__ == "__main__":
    main()
