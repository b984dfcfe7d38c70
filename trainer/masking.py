"""Owns which tokens are hidden from the model and what it sees in their place. Pure; no state between samples.

Shapes: L tokens of one sequence, M of them to predict.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainer.config import Masking
from trainer.tokenizer import Vocabulary

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Spans of 1 to 3 tokens, each as likely as one over its length.
_SPAN_SHARES = np.array([6, 3, 2]) / 11


def mask(
    tokens_L: IntArray, vocabulary: Vocabulary, masking: Masking, rate: float, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Chooses tokens at the rate, then as BERT does: 80 % become <mask>, 10 % a random token, 10 % stay.

    Returns the changed tokens (L) and the positions to predict (M); special tokens are never chosen.
    """
    chosen_L = _CHOOSE[masking](tokens_L, vocabulary, rate, rng) & ~vocabulary.is_special_V[tokens_L]
    positions_M = np.flatnonzero(chosen_L)
    fate_M = rng.random(len(positions_M))
    inputs_L = tokens_L.copy()
    inputs_L[positions_M[fate_M < 0.8]] = vocabulary.mask
    random_R = positions_M[fate_M >= 0.9]
    inputs_L[random_R] = rng.integers(0, vocabulary.size, len(random_R))
    return inputs_L, positions_M


def _choose_tokens(tokens_L: IntArray, vocabulary: Vocabulary, rate: float, rng: np.random.Generator) -> BoolArray:
    return rng.random(len(tokens_L)) < rate


def _choose_words(tokens_L: IntArray, vocabulary: Vocabulary, rate: float, rng: np.random.Generator) -> BoolArray:
    """All tokens of a word or none, so the rate holds for words and for tokens alike."""
    word_L = np.cumsum(vocabulary.starts_word_V[tokens_L])
    return (rng.random(len(tokens_L) + 1) < rate)[word_L]


def _choose_spans(tokens_L: IntArray, vocabulary: Vocabulary, rate: float, rng: np.random.Generator) -> BoolArray:
    """Spans begin at such a rate that, overlaps counted once, the wanted share of tokens is covered."""
    draws_L = rng.random(len(tokens_L))
    begin = _begin_rate(rate)
    # One draw decides both: below `begin` a span starts, and where below it says how long.
    longest_2 = begin * (_SPAN_SHARES[1] + _SPAN_SHARES[2])
    longest_3 = begin * _SPAN_SHARES[2]
    chosen_L = draws_L < begin
    chosen_L[1:] |= draws_L[:-1] < longest_2
    chosen_L[2:] |= draws_L[:-2] < longest_3
    return chosen_L


@lru_cache(maxsize=16)
def _begin_rate(rate: float) -> float:
    """Solves 1 - (1 - s)(1 - s·P(n ≥ 2))(1 - s·P(n ≥ 3)) = rate by bisection: a token is free if no span covers it."""
    reach = _SPAN_SHARES[::-1].cumsum()[::-1]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - np.prod(1 - middle * reach) < rate else (low, middle)
    return low


_CHOOSE = {"token": _choose_tokens, "whole_word": _choose_words, "ngram": _choose_spans}
