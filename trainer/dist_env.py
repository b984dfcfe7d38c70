"""Owns where this rank stands among the ranks of its job. Must not import torch: errors before torch need the rank too."""

import os
from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One rank among `world_size`, and among the `local_world_size` of its host."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def here() -> Place:
    """This rank's place as torchrun, mpirun launchers and ours set it; what is not set is of one host."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", str(rank)))
    return Place(rank, local_rank, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))))


def keep_to_share(place: Place) -> None:
    """Binds this process, and every thread and worker it starts from here on, to its share of the host's cores."""
    os.sched_setaffinity(0, share_of_cores(os.sched_getaffinity(0), place))


def share_of_cores(cores: Set[int], place: Place) -> Set[int]:
    """The cores of one rank among those of its host: neighbours, an equal number for each, all where there are too few.

    As the recipe's taskset does it, but of the cores that this process may use at all.
    """
    each = len(cores) // place.local_world_size
    if place.local_world_size == 1 or not each:
        return cores
    first = each * place.local_rank
    return set(sorted(cores)[first : first + each])
