"""Owns where this rank stands among the ranks of its job. Must not import torch: errors before torch need the rank too."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One rank among `world_size`; `local_rank` counts those of this host."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def here() -> Place:
    """This rank's place by RANK, LOCAL_RANK and WORLD_SIZE, as torchrun, mpirun launchers and ours set them."""
    rank = int(os.environ.get("RANK", "0"))
    return Place(rank, int(os.environ.get("LOCAL_RANK", str(rank))), int(os.environ.get("WORLD_SIZE", "1")))
