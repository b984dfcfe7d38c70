"""Owns reading a tokenizer directory. Uses the tokenizers library alone: transformers' wrapper costs seconds."""

# ruff: noqa: N815

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from trainer.errors import BadInput

_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# RoBERTa's names first, as Longformer's tokenizers use them, then BERT's.
_NAMES = {
    "bos": ("<s>", "[CLS]"),
    "pad": ("<pad>", "[PAD]"),
    "eos": ("</s>", "[SEP]"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with the ids of its special tokens; `size` counts every id.

    `is_special_V` and `starts_word_V` answer for each of the V ids; `digest` changes when its tokens would.
    """

    tokenizer: Tokenizer
    directory: Path
    digest: str
    size: int
    is_special_V: npt.NDArray[np.bool_]
    starts_word_V: npt.NDArray[np.bool_]
    bos: int
    pad: int
    eos: int
    unk: int
    mask: int

    def save(self, directory: Path) -> None:
        """Copies the tokenizer's files, and adds tokenizer.json where it had none."""
        for name in _FILES:
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, directory / name)
        if not (directory / "tokenizer.json").exists():
            self.tokenizer.save(str(directory / "tokenizer.json"))


def load(directory: Path) -> Vocabulary:
    """Reads tokenizer.json, or vocab.json and merges.txt as RoBERTa lays them out.

    Raises BadInput when the files are missing, broken, or lack a special token.
    """
    try:
        tokenizer = _read(directory)
    except BadInput:
        raise
    except Exception as error:  # the library raises bare Exception for any broken file
        raise BadInput(f"tokenizer_name: the tokenizer in {directory} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = {role: _special_id(tokenizer, role, directory) for role in _NAMES}
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    is_special_V = np.zeros(size, np.bool_)
    is_special_V[list(ids.values())] = True
    starts_word_V = _word_starts([tokenizer.id_to_token(i) or "" for i in range(size)]) | is_special_V
    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return Vocabulary(tokenizer, directory, digest, size, is_special_V, starts_word_V, **ids)


def _read(directory: Path) -> Tokenizer:
    if (directory / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        raise BadInput(f"tokenizer_name: {directory} holds neither tokenizer.json nor vocab.json with merges.txt")
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    prefix = _adds_prefix_space(directory)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    known = [name for names in _NAMES.values() for name in names if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens([AddedToken(name, lstrip="mask" in name.lower(), special=True) for name in known])
    bos, eos = _special_id(tokenizer, "bos", directory), _special_id(tokenizer, "eos", directory)
    names = tokenizer.id_to_token(bos), tokenizer.id_to_token(eos)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=(str(names[1]), eos), cls_token=(str(names[0]), bos), add_prefix_space=prefix
    )
    return tokenizer


def _word_starts(tokens: list[str]) -> npt.NDArray[np.bool_]:
    """BERT's pieces go on with ##. Byte-level BPE writes a space as Ġ, a newline as Ċ; punctuation stands alone."""
    if any(token.startswith("##") for token in tokens):
        return np.array([not token.startswith("##") for token in tokens])
    return np.array([t.startswith(("Ġ", "Ċ")) or (t[:1].isascii() and not t[:1].isalnum()) for t in tokens])


def _adds_prefix_space(directory: Path) -> bool:
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return False
    settings: Any = json.loads(path.read_bytes())
    return bool(cast(dict[str, Any], settings).get("add_prefix_space", False)) if isinstance(settings, dict) else False


def _special_id(tokenizer: Tokenizer, role: str, directory: Path) -> int:
    for name in _NAMES[role]:
        token_id = tokenizer.token_to_id(name)
        if token_id is not None:
            return token_id
    raise BadInput(f"tokenizer_name: the tokenizer in {directory} has no {_NAMES[role][0]} token")
