"""Owns which tokens are hidden from the model and what it sees in their place. Pure; a batch at a time, in numpy.

Shapes: S sequences back to back, T tokens of all of them, M of those to predict.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainer.data.tokenizer import Vocabulary
from trainer.spec.config import Masking

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Draws = npt.NDArray[np.uint64]

# Spans of 1 to 3 tokens, each as likely as one over its length.
_SPAN_SHARES = np.array([6, 3, 2]) / 11
_SHARE_MASKED, _SHARE_RANDOM = 0.8, 0.1
_ALL = 2**64
_LOW_BITS = np.uint64(2**32 - 1)
# The steps and multipliers of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def draw(seed: int, epoch: int, sequences_S: IntArray, lengths_S: IntArray, at_T: IntArray) -> Draws:
    """64 random bits for each token, by seed, epoch, sequence and the token's place in it alone.

    So neither loader workers, nor ranks, nor what else is in the batch change a sequence's masks.
    """
    keys_S = _mix(_base(seed, epoch) + sequences_S.view(np.uint64) * _STEP)
    draws_T = np.repeat(keys_S, lengths_S)
    draws_T += at_T.view(np.uint64) * _STEP
    return _mix(draws_T)


def mask(
    tokens_T: IntArray, at_T: IntArray, draws_T: Draws, vocabulary: Vocabulary, masking: Masking, rate: float
) -> tuple[IntArray, IntArray]:
    """Chooses tokens at the rate, then as BERT does: 80 % become <mask>, 10 % a random token, 10 % stay.

    `at_T` counts from 0 in each sequence. Returns the changed tokens (T) and the positions to predict (M), both over
    all sequences; special tokens are never chosen.
    """
    if not len(tokens_T):
        return tokens_T, np.empty(0, np.int64)
    positions_M = np.flatnonzero(_CHOOSE[masking](tokens_T, at_T, draws_T, vocabulary, rate))
    shown_M = tokens_T[positions_M]
    plain_M = ~vocabulary.is_special_V[shown_M]
    positions_M, shown_M = positions_M[plain_M], shown_M[plain_M]
    # A token was chosen by the upper bits; its fate is in the lower ones, and they also say which random token.
    fate_M = draws_T[positions_M] & _LOW_BITS
    masked, random = int(_SHARE_MASKED * 2**32), int(_SHARE_RANDOM * 2**32)
    is_random_M = (fate_M >= masked) & (fate_M < masked + random)
    shown_M[is_random_M] = (fate_M[is_random_M] - np.uint64(masked)) * np.uint64(vocabulary.size) // np.uint64(random)
    shown_M[fate_M < masked] = vocabulary.mask
    inputs_T = tokens_T.copy()
    inputs_T[positions_M] = shown_M
    return inputs_T, positions_M


def expected_rate(masking: Masking, rate: float) -> float:
    """The share of the tokens that is chosen in the mean; only the recipe's spans miss what they are asked for."""
    if masking != "ngram_recipe":
        return rate
    second, third = rate * (_SPAN_SHARES[1] + _SPAN_SHARES[2]), rate * _SPAN_SHARES[2]
    return float(rate + (1 - rate) * (second + (1 - rate) * third))


@lru_cache(maxsize=4)
def _base(seed: int, epoch: int) -> Draws:
    return _mix(np.array([seed << 32 | epoch], np.uint64))


def _mix(x: Draws) -> Draws:
    """splitmix64's finalizer, in place: neighbouring numbers become independent ones."""
    shifted = np.empty_like(x)
    for shift, mixer in zip(_SHIFTS, (*_MIXERS, None), strict=True):
        np.right_shift(x, shift, out=shifted)
        x ^= shifted
        if mixer is not None:
            x *= mixer
    return x


def _choose_tokens(
    tokens_T: IntArray, at_T: IntArray, draws_T: Draws, vocabulary: Vocabulary, rate: float
) -> BoolArray:
    return draws_T < _threshold(rate)


def _choose_words(tokens_T: IntArray, at_T: IntArray, draws_T: Draws, vocabulary: Vocabulary, rate: float) -> BoolArray:
    """All tokens of a word or none, so the rate holds for words and for tokens alike."""
    begins_T = vocabulary.starts_word_V[tokens_T] | (at_T == 0)
    first_T = np.maximum.accumulate(np.where(begins_T, np.arange(len(tokens_T)), 0))
    return draws_T[first_T] < _threshold(rate)


def _choose_spans(tokens_T: IntArray, at_T: IntArray, draws_T: Draws, vocabulary: Vocabulary, rate: float) -> BoolArray:
    """Spans begin at such a rate that, overlaps counted once, the wanted share of tokens is covered."""
    starts_T, two_T, three_T = _spans(at_T, draws_T, _begin_rate(rate))
    starts_T[1:] |= two_T[:-1]
    starts_T[2:] |= three_T[:-2]
    return starts_T


def _choose_spans_as_the_recipe(
    tokens_T: IntArray, at_T: IntArray, draws_T: Draws, vocabulary: Vocabulary, rate: float
) -> BoolArray:
    """Spans begin at the rate itself and stop where another one begins: at 0.15 they cover nearly 0.23 of the tokens."""
    starts_T, two_T, three_T = _spans(at_T, draws_T, rate)
    # Stopped by a span at its second token, the third is not its own any more.
    three_T[:-1] &= ~starts_T[1:]
    chosen_T = starts_T
    chosen_T[1:] |= two_T[:-1]
    chosen_T[2:] |= three_T[:-2]
    return chosen_T


def _spans(at_T: IntArray, draws_T: Draws, begin: float) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Where a span starts, where it takes in the token after that, and where the one after that too: T each."""
    # One draw decides both: below `begin` a span starts, and where below it says how long.
    starts_T = draws_T < _threshold(begin)
    two_T = draws_T < _threshold(begin * (_SPAN_SHARES[1] + _SPAN_SHARES[2]))
    three_T = draws_T < _threshold(begin * _SPAN_SHARES[2])
    # No span goes on into the next sequence.
    last_S = np.append(np.flatnonzero(at_T == 0)[1:], len(at_T)) - 1
    two_T[last_S] = three_T[last_S] = three_T[last_S - 1] = False
    return starts_T, two_T, three_T


@lru_cache(maxsize=16)
def _threshold(share: float) -> np.uint64:
    """Draws below it are this share of all."""
    return np.uint64(min(_ALL - 1, int(share * _ALL)))


@lru_cache(maxsize=16)
def _begin_rate(rate: float) -> float:
    """Solves 1 - (1 - s)(1 - s·P(n ≥ 2))(1 - s·P(n ≥ 3)) = rate by bisection: a token is free if no span covers it."""
    reach = _SPAN_SHARES[::-1].cumsum()[::-1]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - np.prod(1 - middle * reach) < rate else (low, middle)
    return low


_CHOOSE = {
    "token": _choose_tokens,
    "whole_word": _choose_words,
    "ngram": _choose_spans,
    "ngram_recipe": _choose_spans_as_the_recipe,
}
