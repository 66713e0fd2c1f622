"""What the next exploration looks for, by what the ones before it found."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import molecule

from kernelpot.active.explorers.dynamics import Dynamics
from kernelpot.active.history import History
from kernelpot.active.journal import Entry
from kernelpot.active.plan import Plan
from kernelpot.active.settings import LearnerSettings


def plan_after(*rounds, left=(), **more):
    """A plan after rounds of (steps, whether it came to its end, whether something was unsure).

    What is left after learning is of four structures in each round.
    """
    history = History()
    for number, (n_steps, finished, unsure) in enumerate(rounds):
        picked = [{"structure": None}] if unsure else []
        for kind, content in (
            ("explored", {"explorer": 0, "n_steps": n_steps, "finished": finished, "last": None}),
            ("picked", {"structures": picked}),
            ("learned", {"left": list(left[4 * number : 4 * number + 4])}),
        ):
            history.add(Entry(0, "", kind, {"round": number, **content}))
    knowledge = SimpleNamespace(recent_errors=np.full(100, 0.6745))  # of a normal number of 1 eV/A
    settings = LearnerSettings(tolerance=0.01, multiple=4.0, **more)
    explorers = [Dynamics(temperature=300.0)]
    return Plan([molecule("H2O")], explorers, settings, history, knowledge)


def test_more_is_asked_of_a_model_where_nothing_was_unsure():
    rounds = [(500, True, False), (200, False, True), (500, True, False)]
    plan = plan_after(*rounds)
    found = [plan.threshold(number) for number in range(4)]
    assert found == pytest.approx([4.0, 2.0, 2.0, 1.0], rel=1e-3)


def test_an_exploration_that_ended_where_it_began_says_nothing_of_the_rest():
    """Its start was unsure, and had been labelled: asking for more would end the next one, too."""
    plan = plan_after((1, False, False), (1, False, False), (120, False, False))
    found = [plan.threshold(number) for number in range(4)]
    assert found == pytest.approx([4.0, 4.0, 4.0, 2.0], rel=1e-3)


def test_the_threshold_follows_what_is_left_after_learning():
    """As soon as there are ten numbers that neither jump nor drift; never below the tolerance."""
    rounds = [(500, False, True)] * 4
    steady = [0.1, 0.12] * 8
    plan = plan_after(*rounds, left=steady, threshold="history")
    found = [plan.threshold(number) for number in range(5)]
    assert found == pytest.approx([4.0, 4.0, 4.0, 0.11, 0.11], rel=1e-3)
    plan = plan_after(*rounds, left=[*steady[:12], 0.9, 0.1, 0.1, 0.1], threshold="history")
    assert plan.threshold(4) == pytest.approx(0.11)  # a history that jumps changes nothing
    plan = plan_after(*rounds, left=[1e-3] * 16, threshold="history")
    assert plan.threshold(4) == 0.01
    plan = plan_after(*rounds, left=steady)
    assert plan.threshold(4) == pytest.approx(4.0, rel=1e-3)
