"""How state machines are run. Hypothesis spends five of six examples on variations of the one before; of long lives each shall be new."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


class Fresh(HypothesisProvider):
    """Hypothesis's own choices; under another name they are drawn anew for each example. What fails is shrunk as ever."""


AVAILABLE_PROVIDERS["fresh"] = Fresh


def live(machine: type[RuleBasedStateMachine], *, lives: int, steps: int) -> None:
    """Raises what a life raises, with the shortest way to it."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            deadline=None,
            backend="fresh",
            suppress_health_check=list(HealthCheck),
        ),
    )
