"""Owns the recipe's n-gram masking as its collator goes about it: loops over rows, tokens and the tokens of a span.

Written from a description of the rule; the reference defines such a collator and never uses it.
"""

from __future__ import annotations

import numpy as np
import torch

_LENGTHS, _SHARES = (1, 2, 3), np.array([6, 3, 2]) / 11


def mask_ngrams(
    tokens: torch.Tensor, is_special: torch.Tensor, *, rate: float, mask_id: int, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Begins a span at `rate` of the tokens, lengthens it until the next one begins, then 80 % mask, 10 % random, 10 % kept.

    Returns the changed tokens and which were chosen: B×L each.
    """
    begins = torch.bernoulli(torch.full(tokens.shape, rate).masked_fill(is_special, 0.0)).bool()
    chosen = begins.clone()
    rows, length = tokens.shape
    for row in range(rows):
        for begin in range(length):
            if not begins[row, begin]:
                continue
            span = int(np.random.choice(_LENGTHS, p=_SHARES))
            for position in range(begin + 1, min(begin + span, length)):
                if begins[row, position] or is_special[row, position]:
                    break
                chosen[row, position] = True
    inputs = tokens.clone()
    masked = torch.bernoulli(torch.full(tokens.shape, 0.8)).bool() & chosen
    inputs[masked] = mask_id
    random = torch.bernoulli(torch.full(tokens.shape, 0.5)).bool() & chosen & ~masked
    inputs[random] = torch.randint(vocab_size, tokens.shape)[random]
    return inputs, chosen
