"""Each mutant can still be made, and of three, that they are caught; `./run mutants` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Edit, Mutant, Rotten
from tests.mutants.run import check, run

TRIED = ("no-fence", "kept-devices", "offset-in-another-transaction")


def test_every_mutant_still_has_its_place() -> None:
    assert len(MUTANTS) >= 12
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    check(MUTANTS)


@pytest.mark.parametrize("old", ["no such line anywhere", "from __future__"])
def test_a_mutant_without_its_place_is_rotten(old: str) -> None:
    edits = (Edit("store/states.py", old, ""), Edit("store/states.py", old, ""))
    with pytest.raises(Rotten):
        check([Mutant("rotten", "its text is gone", edits)])


@pytest.mark.timeout(1800)
def test_mutants_are_caught() -> None:
    tried = [mutant for mutant in MUTANTS if mutant.name in TRIED]
    assert len(tried) == len(TRIED)
    for outcome in run(tried, num_jobs=1):
        assert outcome.caught_by is not None, f"{outcome.mutant.name} survived:\n{outcome.output}"


def test_what_the_documentation_lists_is_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mutants.md").read_text()
    missing = [mutant.name for mutant in MUTANTS if f"| {mutant.name} |" not in text]
    assert missing == []
