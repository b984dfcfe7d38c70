"""Owns what differs between npu, cuda and cpu. The rest is device-blind."""

import importlib
import random
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.dist_env import Place
from trainer.errors import BadInput
from trainer.spec.config import RunConfig

_BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
# Ranks of one job reach a collective within the longest save or evaluation of rank 0.
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Device:
    """One rank's accelerator and its way to the other ranks."""

    type: str
    torch_device: torch.device
    place: Place

    @property
    def pins_memory(self) -> bool:
        return self.type != "cpu"

    @property
    def fixes_shapes(self) -> bool:
        """Whether tensors should have the same shapes from step to step: a new one would be compiled anew."""
        return self.type == "npu"

    def autocast(self, config: RunConfig) -> AbstractContextManager[Any]:
        """Mixed precision as the spec asks for it; the weights stay fp32."""
        if not (config.bf16 or config.fp16):
            return nullcontext()
        return torch.autocast(self.type, dtype=torch.bfloat16 if config.bf16 else torch.float16)

    def scaler(self, config: RunConfig) -> torch.amp.GradScaler:
        """Loss scaling under fp16; without fp16 it does nothing."""
        if config.fp16 and self.type == "npu":
            # Older cards tell an overflow by a flag instead of an infinity, which only their own scaler reads.
            from torch_npu.npu.amp import GradScaler  # pyright: ignore[reportMissingImports]

            return cast(torch.amp.GradScaler, GradScaler())
        return torch.amp.GradScaler(self.type, enabled=config.fp16)

    def adamw(self, groups: list[dict[str, Any]], config: RunConfig) -> torch.optim.Optimizer:
        """AdamW over parameter groups, in the fastest form that the device and config.optim allow."""
        options: dict[str, Any] = {
            "lr": config.learning_rate,
            "betas": (config.adam_beta1, config.adam_beta2),
            "eps": config.adam_epsilon,
        }
        if config.optim == "adamw_torch_npu_fused" and self.type == "npu":
            from torch_npu.optim import NpuFusedAdamW  # pyright: ignore[reportMissingImports]

            return cast(torch.optim.Optimizer, NpuFusedAdamW(groups, **options))
        # NPU has no kernel behind torch's own fused=True.
        fused = config.optim != "adamw_torch" and self.type != "npu"
        return torch.optim.AdamW(groups, fused=fused, **options)

    def over_ranks(self, module: nn.Module) -> nn.Module:
        """A module whose gradients are averaged over all ranks in backward."""
        if self.place.world_size == 1:
            return module
        own = None if self.type == "cpu" else [self.torch_device]
        # The only buffers count positions and never change.
        return DistributedDataParallel(module, device_ids=own, forward_sync_buffers=False)

    def synchronize(self) -> None:
        """Waits until the device has done what it was given, so that a clock read next means something."""
        if self.type != "cpu":
            torch.get_device_module(self.type).synchronize()

    def peak_memory_bytes(self) -> int:
        """Most memory used so far: of the device, or the resident size of the process on a CPU."""
        if self.type != "cpu":
            return int(torch.get_device_module(self.type).max_memory_allocated())
        # Not ru_maxrss: that begins with the peak of the process that started this one.
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"VmHWM:")) * 1024

    def sum(self, values: Iterable[float]) -> list[float]:
        """The elementwise sum over all ranks, in double precision where the device has it."""
        if self.place.world_size == 1:
            return [float(value) for value in values]
        dtype = torch.float32 if self.type == "npu" else torch.float64
        totals = torch.tensor(list(values), dtype=dtype, device=self.torch_device)
        dist.all_reduce(totals)
        return totals.tolist()

    def barrier(self) -> None:
        if self.place.world_size > 1:
            self.sum([0.0])

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def join(config: RunConfig, here: Place) -> Device:
    """Takes this rank's device and meets the other ranks.

    Raises BadInput when the device is not there.
    """
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    device = _take(config.device_type, here)
    if here.world_size > 1:
        dist.init_process_group(
            _BACKENDS[config.device_type],
            init_method=config.rendezvous or "env://",
            rank=here.rank,
            world_size=here.world_size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    return device


def _take(device_type: str, here: Place) -> Device:
    if device_type == "cpu":
        return Device("cpu", torch.device("cpu"), here)
    if device_type == "npu":
        try:
            importlib.import_module("torch_npu")
        except ImportError as error:
            raise BadInput(f"device_type npu needs torch_npu and CANN on this host: {error}") from error
    module = torch.get_device_module(device_type)
    if not module.is_available() or module.device_count() <= here.local_rank:
        count = module.device_count() if module.is_available() else 0
        raise BadInput(f"rank {here.rank} needs {device_type} device {here.local_rank}, and this host shows {count}")
    module.set_device(here.local_rank)
    return Device(device_type, torch.device(device_type, here.local_rank), here)


def seed_all(seed: int, *more: int) -> None:
    """Seeds every generator from the given numbers alone, so that a step's dropout needs no saved state."""
    words = np.random.SeedSequence([seed, *more]).generate_state(2, np.uint32)
    value = int(words[0]) << 31 ^ int(words[1])
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.manual_seed(value)
