"""What torch_npu's documentation says npu_fusion_attention does, in plain torch, for the parts the trainer uses.

Mask True drops. sparse_mode 0 takes an explicit mask; 4 a band between the tokens given by pre_tockens and
next_tockens, anchored at the bottom right, and only if the compressed 2048×2048 triangle is given: with atten_mask
None the sparse arguments are ignored. TND's actual_seq_qlen are cumulative. The statistics are repeated eight times.
Names come from the wheel's own signatures (fixtures/npu_signatures.json); an unknown one fails the test.
"""

import json
from pathlib import Path
from typing import Any

import torch

SIGNATURES = json.loads((Path(__file__).parent / "fixtures" / "npu_signatures.json").read_text())["signatures"]
calls: list[dict[str, Any]] = []


def npu_fusion_attention(*args: Any, **options: Any) -> tuple[Any, ...]:
    q, k, v = args
    _check("npu_fusion_attention", options)
    calls.append(options)
    scores, v = _scores(q, k, v, options["scale"], options)
    top = scores.amax(-1, keepdim=True)
    exponentials = (scores - top).exp()
    total = exponentials.sum(-1, keepdim=True)
    out = exponentials / total @ v
    statistics = [x.detach().float().expand(*x.shape[:-1], 8) for x in (top, total)]
    if options["input_layout"] == "TND":
        out, *statistics = (x[0].transpose(0, 1) for x in (out, *statistics))
    return out, *statistics, torch.empty(0), 0, 0, 0


def npu_fusion_attention_grad(*args: Any, **options: Any) -> tuple[Any, ...]:
    """From the statistics and the output it is handed, as the kernel does: not by recomputing either."""
    q, k, v, dy = args
    _check("npu_fusion_attention_grad", options)
    top, total, out = (options[name] for name in ("softmax_max", "softmax_sum", "attention_in"))
    if options["input_layout"] == "TND":
        top, total, out, dy = (x.transpose(0, 1)[None] for x in (top, total, out, dy))
    scores, v4 = _scores(q, k, v, options["scale_value"], options)
    probabilities = (scores - top[..., :1]).exp() / total[..., :1]
    dv = probabilities.mT @ dy
    slopes = probabilities * (dy @ v4.mT - (dy * out).sum(-1, keepdim=True)) * options["scale_value"]
    q4, k4 = _four(q, options), _four(k, options)
    found = slopes @ k4, slopes.mT @ q4, dv
    if options["input_layout"] == "TND":
        found = tuple(x[0].transpose(0, 1) for x in found)
    return *found, None, torch.empty(0)


def _check(name: str, options: dict[str, Any]) -> None:
    known = {*SIGNATURES[name]["args"], *SIGNATURES[name]["kwonly"]}
    assert set(options) <= known, set(options) - known
    assert options["keep_prob"] == 1, "the emulator draws no dropout"
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
        segment = torch.bucketize(torch.arange(queries), torch.tensor(ends), right=True)
        dropped = segment[:, None] != segment[None, :]
    if mask is None:
        return dropped
    assert mask.dtype == torch.bool
    if options["sparse_mode"] == 0:
        assert mask.shape[-2:] == (queries, keys)
        return dropped | mask
    assert options["sparse_mode"] == 4
    assert torch.equal(mask, torch.ones(2048, 2048, dtype=torch.bool).triu(1))
    # Every part has as many queries as keys, so the anchor at its bottom right is its diagonal.
    distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
    return dropped | (distance < -options["pre_tockens"]) | (distance > options["next_tockens"])
