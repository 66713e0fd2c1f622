"""What crosses the rooms of active learning."""

from __future__ import annotations

from typing import NamedTuple

from ase import Atoms

__all__ = ["NEW_SPECIES", "Candidate", "Exploration", "Label", "Verdict"]

NEW_SPECIES = "new species"
"""Reason of a candidate of species that the model does not know."""


class Candidate(NamedTuple):
    """A structure that might be worth a label."""

    atoms: Atoms  # bare: no labels, no calculator; momenta where it moved
    origin: str  # the explorer that met it
    step: int  # of the explorer
    reason: str  # "novelty", "forces_std", "too close", "temperature", "end", "given"
    score: float  # largest uncertainty over its threshold; NaN where it is not known


class Exploration(NamedTuple):
    """What an explorer met on its way."""

    candidates: list[Candidate]  # in the order met
    frames: list[Atoms]  # evenly spaced over the way, bare
    n_steps: int  # calls of the potential
    finished: bool  # False where it was ended before its planned end
    last: Atoms | None  # where to go on from
    note: str  # what it did, in a line


class Verdict(NamedTuple):
    """What is thought of a structure on the way."""

    stop: bool  # whether to go no further
    unsure: bool  # whether it should become a candidate
    reason: str  # of either; "" where neither
    score: float  # largest uncertainty over its threshold


class Label(NamedTuple):
    """What became of a structure that was given to the oracle."""

    atoms: Atoms | None  # with a SinglePointCalculator; None where it failed
    reason: str  # of the failure, in a line; "" where there is none
    seconds: float  # that it took
