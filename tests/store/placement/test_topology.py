from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.placement import topology

MASKS = st.integers(0, (1 << 20) - 1)


@given(MASKS, st.integers(1, 12), st.sampled_from([0, 2, 4]))
def test_a_fit_is_so_many_of_the_free_ones_in_one_group_and_there_is_one_where_there_can_be(
    free: int, count: int, group: int
) -> None:
    found = topology.fit(free, count, group)
    groups = [free >> start & ((1 << group) - 1) for start in range(0, 20, group)] if count <= group else [free]
    assert (found is not None) == any(one.bit_count() >= count for one in groups)
    if found is not None:
        assert found.devices & ~free == 0
        assert found.devices.bit_count() == count
        if count <= group:
            assert len({index // group for index in topology.indices_of(found.devices)}) == 1


@pytest.mark.parametrize(
    ("free", "count", "taken"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 1, [0]),
        ([0, 1, 2, 3, 4, 5, 6], 1, [6]),
        ([0, 1, 2, 3, 6, 7], 2, [6, 7]),
        ([0, 1, 2, 3, 4, 6], 2, [0, 1]),
        ([1, 2, 4, 6, 7], 2, [6, 7]),
        ([1, 2, 4, 7], 2, [1, 2]),
        ([2, 3, 4, 5, 6, 7], 4, [4, 5, 6, 7]),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 2, 4, 5, 6, 7], 3, [0, 1, 2]),
    ],
)
def test_neighbours_that_break_the_least(free: list[int], count: int, taken: list[int]) -> None:
    found = topology.fit(topology.mask_of(free), count, 4)
    assert found is not None
    assert list(topology.indices_of(found.devices)) == taken


def test_the_soonest_devices_are_of_one_linked_group() -> None:
    ready_at = [(10.0, 0), (20.0, 1), (float("inf"), 2), (0.0, 4), (0.0, 5), (30.0, 6), (40.0, 7)]
    assert topology.soonest(ready_at, 2, 4) == ([0.0, 0.0], topology.mask_of([4, 5]))
    assert topology.soonest(ready_at, 3, 4) == ([0.0, 0.0, 30.0], topology.mask_of([4, 5, 6]))
    assert topology.soonest(ready_at, 3) == ([0.0, 0.0, 10.0], topology.mask_of([0, 4, 5]))
    assert topology.soonest(ready_at, 8) is None
