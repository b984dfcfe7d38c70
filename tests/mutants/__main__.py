"""`python -m tests.mutants`: every mutant, and which test catches it; exit code 1 if one survives."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.mutants.catalogue import MUTANTS
from tests.mutants.run import Outcome, check, run, unmutated


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this one; may be given again")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="so many at a time (2)")
    parser.add_argument("--seed", type=int, default=0, help="of Hypothesis (0)")
    parser.add_argument("--verbose", action="store_true", help="what pytest said of each")
    options = parser.parse_args(argv)
    unknown = set(options.only) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    check(MUTANTS)
    plain = unmutated(chosen, seed=options.seed)
    if plain.caught_by is not None:
        print(plain.output)
        print(f"The code as it is fails {plain.caught_by}: nothing can be said of its mutants.")
        return 1
    print(f"| mutant ({len(chosen)}, seed {options.seed}) | what is wrong with it | caught by |\n| --- | --- | --- |")
    survivors = [
        one.mutant.name
        for one in run(chosen, num_jobs=options.jobs, seed=options.seed)
        if not _tell(one, options.verbose)
    ]
    print(f"\n{', '.join(survivors)} survived." if survivors else f"\nAll {len(chosen)} are caught.")
    return 1 if survivors else 0


def _tell(outcome: Outcome, verbose: bool) -> bool:
    print(f"| {outcome.mutant.name} | {outcome.mutant.fault} | {outcome.caught_by or 'SURVIVED'} |", flush=True)
    if verbose:
        print(outcome.output, flush=True)
    return outcome.caught_by is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
