"""What a run is about, as those hand it on who work on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from ase import Atoms

from kernelpot.active.explorers.protocol import Explorer
from kernelpot.active.scores import Law, Relevance
from kernelpot.active.settings import LearnerSettings
from kernelpot.potential import KernelPotential

__all__ = ["Observable", "Task", "Tell"]

Observable = Callable[[list[Atoms]], Any]
"""Of the frames of an exploration, each with the model's calculator: a series, one value or array
for each frame."""

Tell = Callable[[str, dict[str, Any]], None]
"""Called with the kind of each entry of the journal and its content, as it is written.

Kinds that end in -ing are of what begins, and are not in the journal: "exploring" (round, explorer,
name, final: which start of how many, n_steps: planned, 0 where that is not known, steps_done: a
function that gives those made) and "learning" (round), also of rounds that the journal has.
"""


class Task(NamedTuple):
    """What a run is about."""

    model: KernelPotential
    oracle: Any
    start: list[Atoms]
    explorers: list[Explorer]
    settings: LearnerSettings
    images: list[Atoms]
    observable: Observable | None
    laws: Sequence[Law]
    relevance: Relevance | None
    executor: Executor | None
    tell: Tell | None
