"""An NPU for ranks of the trainer, made of the emulator and of what torch_npu 2.13's source says of its optimizer and scaler.

`install` is called in a rank before it begins: the trainer then selects npu, hccl, NpuFusedAdamW and torch_npu's loss scaling by
itself; only the tensors stay on the CPU, and hccl is gloo.
"""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils import backend_registration

from tests.trainer import npu_emulator


class NpuFusedAdamW(torch.optim.Optimizer):
    """All weights, gradients and moments each as one tensor from the first step on; what is loaded later is not seen."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        )
        self.is_fused_optimizer = True
        self.flat: list[dict[str, Any]] = []
        self.has_moments = False

    def fuse(self) -> None:
        if not self.flat:
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                assert all(p.dtype == torch.float32 for p in params)
                self.flat.append(
                    {"params": params, "weights": fused(params), "gradients": fused([p.grad for p in params])}
                )

    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        self.fuse()
        for flat in self.flat:
            flat["gradients"].zero_()

    def fuse_moments(self) -> None:
        if self.has_moments:
            return
        self.has_moments = True
        for flat in self.flat:
            for p in flat["params"]:
                state = self.state[p]
                state.setdefault("step", 0)
                assert type(state["step"]) is int
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(p).copy_(state.get(name, torch.zeros_like(p)))
            flat["step"] = self.state[flat["params"][0]]["step"]
            for name in ("exp_avg", "exp_avg_sq"):
                flat[name] = fused([self.state[p][name] for p in flat["params"]])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.fuse()
        self.fuse_moments()
        for group, flat in zip(self.param_groups, self.flat, strict=True):
            for p in flat["params"]:
                self.state[p]["step"] += 1
            flat["step"] += 1
            (beta1, beta2), rate = group["betas"], group["lr"]
            weights, gradients = flat["weights"], flat["gradients"]
            weights.mul_(1 - rate * group["weight_decay"])
            flat["exp_avg"].mul_(beta1).add_(gradients, alpha=1 - beta1)
            flat["exp_avg_sq"].mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
            spread = (flat["exp_avg_sq"] / (1 - beta2 ** flat["step"])).sqrt() + group["eps"]
            weights.addcdiv_(flat["exp_avg"], spread, value=-rate / (1 - beta1 ** flat["step"]))


def fused(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Lays tensors end to end; each of them is a part of the whole from here on."""
    whole, start = torch.cat([x.detach().flatten() for x in tensors]), 0
    for x in tensors:
        # As the card's own way, and unlike `set_`, this leaves alone what autograd and DDP know of the tensor.
        x.data = whole[start : start + x.numel()].view(x.shape)
        start += x.numel()
    return whole


class GradScaler(torch.amp.GradScaler):
    """torch_npu's takes no device, and adds a key to its state that it wants back."""

    def __init__(self, init_scale: float = 2.0**16, enabled: bool = True) -> None:
        super().__init__("cpu", init_scale=init_scale, enabled=enabled)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"dynamic": True}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict["dynamic"]
        super().load_state_dict(state_dict)


class Card:
    """What torch.npu is asked for."""

    chosen: int | None = None

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def set_device(self, index: int) -> None:
        self.chosen = index

    def current_device(self) -> int:
        return self.chosen or 0

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def max_memory_allocated(self) -> int:
        return 123_456


def install(directory: Path) -> None:
    """Shapes that the model and the operator see are noted in shapes.jsonl, each once; what was chosen, in chosen.json."""
    modules = {name: types.ModuleType(name) for name in ("torch_npu", "torch_npu.optim", "torch_npu.npu.amp")}
    vars(modules["torch_npu"]).update(vars(npu_emulator))
    vars(modules["torch_npu.optim"])["NpuFusedAdamW"] = NpuFusedAdamW
    vars(modules["torch_npu.npu.amp"])["GradScaler"] = GradScaler
    sys.modules |= modules | {"torch_npu.npu": types.ModuleType("torch_npu.npu")}
    card = Card()
    backend_registration._setup_privateuseone_for_python_backend("npu", backend_module=card)
    dist.Backend.register_backend("hccl", _gloo, devices=["cpu", "npu"])
    _stay_on_cpu(directory, card)
    _note_shapes(directory)


def _gloo(store: Any, rank: int, size: int, timeout: Any) -> Any:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def _stay_on_cpu(directory: Path, card: Card) -> None:
    from trainer import device

    take, chosen = device._take, {}

    def take_cpu(device_type: str, here: Any) -> Any:
        taken = take(device_type, here)
        chosen.update(device=str(taken.torch_device), set_device=card.chosen)
        return dataclasses.replace(taken, torch_device=torch.device("cpu"))

    def over_ranks(module: Any, device_ids: Any, **options: Any) -> Any:
        assert len(device_ids) == 1
        chosen["backend"] = dist.get_backend()
        (directory / "chosen.json").write_text(json.dumps(chosen))
        return DistributedDataParallel(module, **options)

    def autocast(kind: str, dtype: torch.dtype) -> Any:
        assert kind == "npu"
        return real_autocast("cpu", dtype=dtype)

    real_autocast = torch.autocast
    device._take = take_cpu
    device.DistributedDataParallel = over_ranks  # pyright: ignore[reportAttributeAccessIssue]
    device.torch = types.SimpleNamespace(**vars(torch) | {"autocast": autocast})  # pyright: ignore[reportAttributeAccessIssue]


def _note_shapes(directory: Path) -> None:
    from trainer.model import MaskedLanguageModel

    seen: set[str] = set()
    forward = MaskedLanguageModel.forward

    def noted(self: Any, batch: Any) -> Any:
        npu_emulator.calls.clear()
        loss = forward(self, batch)
        operator = [call["shapes"] + [list(call["atten_mask"].shape)] for call in npu_emulator.calls]
        line = json.dumps(
            {"training": self.training, "batch": [list(x.shape) for x in batch[:5]], "operator": operator}
        )
        if line not in seen:
            seen.add(line)
            with (directory / "shapes.jsonl").open("a") as file:
                file.write(line + "\n")
        return loss

    MaskedLanguageModel.forward = noted
