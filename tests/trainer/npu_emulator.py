"""What torch_npu's documentation says npu_fusion_attention does, in plain torch, for the parts the trainer uses.

Mask True drops. sparse_mode 0 takes an explicit mask; 4 a band between the tokens given by pre_tockens and
next_tockens, anchored at the bottom right, and only if the compressed 2048×2048 triangle is given: with atten_mask
None the sparse arguments are ignored. TND's actual_seq_qlen are cumulative, 1,024 at most. The statistics are repeated
eight times, in TND head by head unless softmax_layout says otherwise. Rows without a key give garbage. Dropout keeps
keep_prob of the probabilities, by a mask that follows from the returned seed and offset and has the returned length.
Names come from the wheel's own signatures (fixtures/npu_signatures.json); an unknown one fails the test.
"""

import itertools
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

SIGNATURES = json.loads((Path(__file__).parent / "fixtures" / "npu_signatures.json").read_text())["signatures"]
calls: list[dict[str, Any]] = []


def npu_fusion_attention(*args: Any, **options: Any) -> tuple[Any, ...]:
    q, k, v = args
    _check("npu_fusion_attention", options)
    calls.append(options | {"shapes": [tuple(x.shape) for x in args]})
    # A card keeps a generator of its own, which torch.manual_seed seeds too.
    draws = (int(torch.randint(2**31, ())), int(torch.randint(2**31, ())), _mask_length(q, k, options))
    scores, v = _scores(q, k, v, options["scale"], options)
    top = scores.amax(-1, keepdim=True)
    exponentials = (scores - top).exp()
    total = exponentials.sum(-1, keepdim=True)
    dropped = _dropped(scores.shape[2], scores.shape[3], options)
    no_key = dropped.all(-1, keepdim=True)
    out = (exponentials / total * _kept(scores, draws, options) @ v).masked_fill(no_key, float("nan"))
    # A card gives them in single precision; doubles, which it has none of, are only for gradcheck.
    precision = torch.promote_types(q.dtype, torch.float32)
    statistics = [x.detach().to(precision).expand(*x.shape[:-1], 8) for x in (top, total)]
    if options["input_layout"] == "TND":
        out = out[0].transpose(0, 1)
        if options.get("softmax_layout") == "TND":
            statistics = [x[0].transpose(0, 1) for x in statistics]
        else:
            statistics = [x[0].reshape(x.shape[2], x.shape[1], 8) for x in statistics]
    return out, *statistics, torch.empty(0), *draws


def npu_fusion_attention_grad(*args: Any, **options: Any) -> tuple[Any, ...]:
    """From the statistics and the output it is handed, as the kernel does: not by recomputing either."""
    q, k, v, dy = args
    _check("npu_fusion_attention_grad", options)
    top, total, out = (options[name] for name in ("softmax_max", "softmax_sum", "attention_in"))
    assert options["numels"] == _mask_length(q, k, options)
    if options["input_layout"] == "TND":
        assert options.get("softmax_layout") == "TND"
        top, total, out, dy = (x.transpose(0, 1)[None] for x in (top, total, out, dy))
    scores, v4 = _scores(q, k, v, options["scale_value"], options)
    probabilities = (scores - top[..., :1]).exp() / total[..., :1]
    kept = _kept(scores, (options["seed"], options["offset"]), options)
    dv = (probabilities * kept).mT @ dy
    slopes = probabilities * (dy @ v4.mT * kept - (dy * out).sum(-1, keepdim=True)) * options["scale_value"]
    q4, k4 = _four(q, options), _four(k, options)
    found = slopes @ k4, slopes.mT @ q4, dv
    if options["input_layout"] == "TND":
        found = tuple(x[0].transpose(0, 1) for x in found)
    return *found, None, torch.empty(0)


def _mask_length(q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> int:
    if options["input_layout"] == "BNSD":
        return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    ends = [0, *options["actual_seq_qlen"]]
    return q.shape[1] * sum((end - start) ** 2 for start, end in itertools.pairwise(ends))


def _kept(like: torch.Tensor, draws: tuple[int, ...], options: dict[str, Any]) -> torch.Tensor:
    if options["keep_prob"] == 1:
        return torch.ones(())
    generator = torch.Generator().manual_seed(draws[0] << 31 ^ draws[1])
    return torch.rand(like.shape, generator=generator).lt(options["keep_prob"]).to(like.dtype) / options["keep_prob"]


def _check(name: str, options: dict[str, Any]) -> None:
    known = {*SIGNATURES[name]["args"], *SIGNATURES[name]["kwonly"]}
    assert set(options) <= known, set(options) - known
    assert 0 < options["keep_prob"] <= 1
    assert options["input_layout"] in ("BNSD", "TND")


def _four(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    assert x.is_contiguous() or options["input_layout"] == "BNSD"
    return x.transpose(0, 1)[None] if options["input_layout"] == "TND" else x


def _scores(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (_four(x, options) for x in (q, k, v))
    assert options["head_num"] == q.shape[1]
    scores = q @ k.mT * scale
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(_dropped(q.shape[2], k.shape[2], options), lowest), v


def _dropped(queries: int, keys: int, options: dict[str, Any]) -> torch.Tensor:
    mask, dropped = options.get("atten_mask"), torch.zeros(queries, keys, dtype=torch.bool)
    if options["input_layout"] == "TND":
        ends = options["actual_seq_qlen"]
        assert ends == options["actual_seq_kvlen"] == sorted(ends)
        assert ends[-1] == queries == keys
        assert len(ends) <= 1024
        segment = torch.bucketize(torch.arange(queries), torch.tensor(ends), right=True)
        dropped = segment[:, None] != segment[None, :]
    if mask is None:
        return dropped
    assert mask.dtype == torch.bool
    if options["sparse_mode"] == 0:
        assert mask.shape[-2:] == (queries, keys)
        return dropped | mask
    assert options["sparse_mode"] == 4
    assert torch.equal(mask, _triangle())
    # Anchored at the bottom right: the last query's own key is the last one.
    distance = torch.arange(keys)[None, :] - (torch.arange(queries)[:, None] + keys - queries)
    return dropped | (distance < -options["pre_tockens"]) | (distance > options["next_tockens"])


@lru_cache(maxsize=1)
def _triangle() -> torch.Tensor:
    return torch.ones(2048, 2048, dtype=torch.bool).triu(1)
