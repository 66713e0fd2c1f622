"""What an exploration of a round is to be: where it begins, what it looks for, what ends it."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from kernelpot.active.explorers.protocol import Explorer
from kernelpot.active.history import History, Round
from kernelpot.active.knowledge import Knowledge
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.structure_json import structure_from_json
from kernelpot.active.thresholds import Band, force_tolerance, from_history
from kernelpot.active.triggers import Watch
from kernelpot.active.unphysical import Limits, temperature_limit

__all__ = ["NothingLearnedError", "Plan", "fitting"]

log = logging.getLogger("kernelpot")

_STD_EVERY = 20
"""Steps of an exploration from one look at the expected errors to the next."""
_STD_GAP = 10
"""And at least, where novelty is near its threshold."""
_TRUSTED = 0.2
"""Part of a typical force; below such errors explorations go on."""


class NothingLearnedError(RuntimeError):
    """No label of the first round succeeded."""


def fitting(explorers: Sequence[Explorer], start: Sequence[Atoms]) -> list[list[int]]:
    """Which structures explorers can begin at: a lone atom has no dynamics.

    Parameters
    ----------
    explorers : Sequence[Explorer]
        Those that have a method ``check`` are asked, others can begin anywhere.
    start : Sequence[Atoms]
        Structures.

    Returns
    -------
    list[list[int]]
        Their places, for each explorer.

    Raises
    ------
    ValueError
        If an explorer can begin at none, with its reason.
    """
    found = []
    for explorer in explorers:
        reasons = [_misfit(explorer, atoms) for atoms in start]
        found.append([place for place, reason in enumerate(reasons) if not reason])
        if not found[-1]:
            raise ValueError(f"{explorer.name} cannot begin: {reasons[0]}")
    return found


def _calm(one: Round) -> bool:
    """Whether it went somewhere and found nothing: what ended where it began has seen nothing."""
    went = [found["finished"] or found["n_steps"] > 1 for found in one.explored.values()]
    return one.picked == [] and any(went)


def _misfit(explorer: Explorer, atoms: Atoms) -> str:
    try:
        getattr(explorer, "check", lambda _: None)(atoms)
    except ValueError as error:
        return str(error)
    return ""


class Plan:
    """Of the explorations of a run, by what has happened and what is known.

    Parameters
    ----------
    start : Sequence[Atoms]
        Where the run begins.
    explorers : Sequence[Explorer]
        Of the run.
    settings : LearnerSettings
        Of the run.
    history : History
        What has happened; it grows.
    knowledge : Knowledge
        What is known; it grows, too.
    """

    def __init__(
        self,
        start: Sequence[Atoms],
        explorers: Sequence[Explorer],
        settings: LearnerSettings,
        history: History,
        knowledge: Knowledge,
    ):
        self._start, self._settings = start, settings
        self._history, self._knowledge = history, knowledge
        self._fitting = fitting(explorers, start)
        left = settings.most_seconds - history.seconds  # the parts of a run count together
        self._deadline = time.monotonic() + max(left, 0.0)
        self._left_out: set[int] = set()  # starts, as the log has it

    def threshold(self, number: int) -> float:
        """Expected error of a force from which on a structure is a candidate.

        Where a round finds nothing above it, the model has come away from where it began, and more
        can be asked of it. A tolerance that no label will meet is found out by the plateau of the
        uncertainty, not foretold here: what a young model is never certain of an older one is.

        Or it follows what is left after learning, once there is a history of it that is steady.

        Parameters
        ----------
        number : int
            Of the round.

        Returns
        -------
        float
            eV/angstrom.
        """
        before = self._history.rounds[:number]
        n_calm = sum(map(_calm, before))
        threshold = force_tolerance(
            self._settings.tolerance,
            errors=self._knowledge.recent_errors,
            multiple=self._settings.multiple * 0.5 ** min(n_calm, 30),  # never zero
        )
        if self._settings.threshold == "history":
            left: list[float] = []
            for one in before:
                left += (one.learned or {}).get("left", ())
                threshold = from_history(threshold, left)
        return max(threshold, self._settings.tolerance)

    def begin(self, number: int, e: int) -> tuple[Atoms, int] | None:
        """Where an explorer begins: where it came to in the last round, or at a start.

        Every other time at a start: what has gone astray does not stay there.

        Parameters
        ----------
        number : int
            Of the round.
        e : int
            Of the explorer.

        Returns
        -------
        tuple[Atoms, int] | None
            A copy, and the place of the start that it is or comes from; None where there is none.
        """
        places = self.starts(e)
        if not places:
            return None
        place = places[(number // 2) % len(places)]
        before = self._history.round(number - 1).explored.get(e) if number > 0 else None
        start = copy.deepcopy(self._start[place])
        if number % 2 == 0 or before is None or before["last"] is None:
            return start, place
        atoms = structure_from_json(before["last"])
        if len(atoms) == len(start):
            atoms.set_constraint(start.constraints)  # the journal has none
        return atoms, place

    def starts(self, e: int) -> list[int]:
        """Places of the structures that an explorer can begin at.

        Those are left out of whose species no label has succeeded: nothing can be said of them.

        Parameters
        ----------
        e : int
            Of the explorer.

        Returns
        -------
        list[int]
            Ascending.

        Raises
        ------
        NothingLearnedError
            If there is none for any explorer.
        """
        known = set(self._knowledge.model.species_)
        places = [
            place
            for place, atoms in enumerate(self._start)
            if known.issuperset(atoms.numbers.tolist())
        ]
        if not places:
            raise NothingLearnedError(
                "no structure to start from consists of species of which a label has succeeded;"
                f" the model knows {sorted(known)} (atomic numbers)"
            )
        for place in set(range(len(self._start))) - set(places) - self._left_out:
            self._left_out.add(place)
            log.warning(
                "%s, structure %d to start from, is left out until a label of its species succeeds",
                self._start[place].get_chemical_formula(),
                place + 1,
            )
        return [place for place in self._fitting[e] if place in places]

    def watch(self, explorer: Explorer, start: Atoms, threshold: float) -> Watch:
        """What looks on.

        Parameters
        ----------
        explorer : Explorer
            That is looked at.
        start : Atoms
            Where it begins.
        threshold : float
            Of the round, eV/angstrom.

        Returns
        -------
        Watch
            With thresholds for novelty and expected error, and limits.
        """
        # Novelty says what errors of forces are to be expected, and nothing of stresses: structures
        # that do not follow from one another are all looked at then.
        moves = hasattr(explorer, "n_steps")
        novelty = Band()
        if self._knowledge.model.predictor_.has_novelty:
            lower = self._knowledge.novelty_map.threshold(threshold, np.inf)
            novelty = Band(lower)  # it asks for a look at the expected error, which decides
        return Watch(
            novelty=novelty,
            error=Band(threshold, self._upper(threshold)),
            area=self._settings.area,
            limits=self._limits(explorer, start),
            std_every=_STD_EVERY if moves or not self._settings.area else 1,
            std_gap=_STD_GAP,
            deadline=self._deadline,
        )

    def final_watch(self, explorer: Explorer, start: Atoms) -> Watch:
        """What looks on in a final run, which uncertainty does not end.

        Parameters
        ----------
        explorer : Explorer
            That is looked at.
        start : Atoms
            Where it begins.

        Returns
        -------
        Watch
            With limits alone.
        """
        return Watch(limits=self._limits(explorer, start), deadline=self._deadline)

    def _upper(self, threshold: float) -> float:
        """Expected error of a force at which an exploration ends, eV/angstrom.

        However small the tolerance, dynamics on forces that are right to a part of their size goes
        where it should.
        """
        return max(self._settings.upper * threshold, _TRUSTED * self._knowledge.typical_force)

    def _limits(self, explorer: Explorer, start: Atoms) -> Limits:
        """States that no potential should be followed into."""
        temperature = np.inf
        if hasattr(explorer, "temperature"):
            temperature = temperature_limit(float(np.max(explorer.temperature)), len(start))
        return Limits(closest=self._knowledge.closest, temperature=temperature)
