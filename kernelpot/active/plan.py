"""What an exploration of a round is to be: where it begins, what it looks for, what ends it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from kernelpot.active.explorers.protocol import Explorer
from kernelpot.active.history import History
from kernelpot.active.knowledge import Knowledge
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.structure_json import structure_from_json
from kernelpot.active.thresholds import Band, force_tolerance
from kernelpot.active.triggers import Watch
from kernelpot.active.unphysical import Limits, temperature_limit

__all__ = ["NothingLearnedError", "Plan"]

_STD_EVERY = 20
"""Steps of an exploration from one look at the expected errors to the next."""
_STD_GAP = 10
"""And at least, where novelty is near its threshold."""
_TRUSTED = 0.2
"""Part of a typical force; below such errors explorations go on."""


class NothingLearnedError(RuntimeError):
    """No label of the first round succeeded."""


class Plan:
    """Of the explorations of a run, by what has happened and what is known.

    Parameters
    ----------
    start : Sequence[Atoms]
        Where the run begins.
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
        settings: LearnerSettings,
        history: History,
        knowledge: Knowledge,
    ):
        self._start, self._settings = start, settings
        self._history, self._knowledge = history, knowledge

    def threshold(self, number: int) -> float:
        """Expected error of a force from which on a structure is a candidate.

        Where a round finds nothing above it, the model has come away from where it began, and more
        can be asked of it. A tolerance that no label will meet is found out by the plateau of the
        uncertainty, not foretold here: what a young model is never certain of an older one is.

        Parameters
        ----------
        number : int
            Of the round.

        Returns
        -------
        float
            eV/angstrom.
        """
        n_calm = sum(one.picked == [] for one in self._history.rounds[:number])
        return force_tolerance(
            self._settings.tolerance,
            errors=self._knowledge.recent_errors,
            multiple=self._settings.multiple * 0.5 ** min(n_calm, 30),  # never zero
        )

    def begin(self, number: int, e: int) -> Atoms:
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
        Atoms
            A copy.
        """
        starts = self.starts
        before = self._history.round(number - 1).explored.get(e) if number > 0 else None
        if number % 2 == 0 or before is None or before["last"] is None:
            return copy.deepcopy(starts[(number // 2) % len(starts)])
        return structure_from_json(before["last"])

    @property
    def starts(self) -> list[Atoms]:
        """Without those of species of which no label has succeeded: nothing can be said of them."""
        known = set(self._knowledge.model.species_)
        starts = [atoms for atoms in self._start if known.issuperset(atoms.numbers.tolist())]
        if not starts:
            raise NothingLearnedError(
                "no structure to start from consists of species of which a label has succeeded;"
                f" the model knows {sorted(known)} (atomic numbers)"
            )
        return starts

    def watch(self, explorer: Explorer, threshold: float) -> Watch:
        """What looks on.

        Parameters
        ----------
        explorer : Explorer
            That is looked at.
        threshold : float
            Of the round, eV/angstrom.

        Returns
        -------
        Watch
            With thresholds for novelty and expected error, and limits.
        """
        novelty = Band()
        if self._knowledge.model.predictor_.has_novelty:
            lower = self._knowledge.novelty_map.threshold(threshold, np.inf)
            novelty = Band(lower)  # it asks for a look at the expected error, which decides
        return Watch(
            novelty=novelty,
            error=Band(threshold, self._upper(threshold)),
            limits=self.limits(explorer),
            std_every=_STD_EVERY,
            std_gap=_STD_GAP,
        )

    def _upper(self, threshold: float) -> float:
        """Expected error of a force at which an exploration ends, eV/angstrom.

        However small the tolerance, dynamics on forces that are right to a part of their size goes
        where it should.
        """
        return max(self._settings.upper * threshold, _TRUSTED * self._knowledge.typical_force)

    def limits(self, explorer: Explorer) -> Limits:
        """States that no potential should be followed into.

        Parameters
        ----------
        explorer : Explorer
            That might.

        Returns
        -------
        Limits
            Of distances by the labels, of temperature by what the explorer wants.
        """
        temperature = np.inf
        if hasattr(explorer, "temperature"):
            least = min(len(atoms) for atoms in self._start)
            temperature = temperature_limit(float(np.max(explorer.temperature)), least)
        return Limits(closest=self._knowledge.closest, temperature=temperature)
