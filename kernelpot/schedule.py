"""When a fit that learns label by label is to look at its hyperparameters, or to begin anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Settings
from kernelpot.streaming import Surprise

__all__ = ["Advice", "Schedule"]

_REFIT = 2.0
"""Factor in the number of structures after which a fit to all of them is due: what is paid for each
structure stays the same then, though all are looked at."""
_TUNE = 1.25
"""The same for hyperparameters, which cost less to find."""
_PAUSE = 1.1
"""Factor before which they are left alone, whatever labels say."""
_FEWEST = 5
"""Structures by which surprise is judged."""
_RECENT = 20
"""Most structures by which it is."""
_SIGMAS = 3.0
"""Standard errors by which labels have to be less probable than expected."""
_MOST = 10.0
"""A structure counts for no more times its expectation: one outlier is no trend."""


class Advice(NamedTuple):
    """What to do after new labels, and why; nothing where the reason is empty."""

    tune: str  # find noise levels and amplitudes anew
    refit: str  # fit to all structures: other features, inducing variables, hyperparameters


class Schedule(NamedTuple):
    """How many structures were learned when, and how far the last ones surprised.

    Divided by the number of labels, chi^2 of a structure is 1 on average where noise levels and
    amplitudes are right, and above where the fit is too sure of itself: the logarithm of their
    probability falls short of its expectation by half of the excess. (Below, the labels are more
    probable than expected: the prior variance of what is new is generous by itself.)
    """

    n_refit: int  # structures of the last fit to all of them
    n_tuned: int  # when hyperparameters were found last
    n_structures: int
    ratios: tuple[float, ...] = ()  # chi^2 per label of the last structures, since then
    tunings: tuple[tuple[int, str], ...] = ()  # structures when it was done, and why

    def after(self, surprises: Sequence[Surprise]) -> Schedule:
        """The schedule once more labels are learned.

        Parameters
        ----------
        surprises : Sequence[Surprise]
            Of each new structure, in the order of learning.

        Returns
        -------
        Schedule
            Of all structures.
        """
        new = [one.chi_squared / one.n_rows for one in surprises if one.n_rows]
        ratios = (*self.ratios, *new)[-_RECENT:]
        return self._replace(n_structures=self.n_structures + len(surprises), ratios=ratios)

    def tuned(self, why: str) -> Schedule:
        """The schedule once hyperparameters are found anew.

        Parameters
        ----------
        why : str
            The reason, as `advice` gave it.

        Returns
        -------
        Schedule
            Which judges by the structures to come.
        """
        tunings = (*self.tunings, (self.n_structures, why))
        return self._replace(n_tuned=self.n_structures, ratios=(), tunings=tunings)

    @property
    def advice(self) -> Advice:
        """What is due."""
        tune = refit = ""
        if self.n_structures >= _REFIT * self.n_refit:
            refit = f"{self.n_structures} structures, {self.n_refit} at the last fit to all"
        if self.n_structures >= _TUNE * self.n_tuned:
            tune = f"{self.n_structures} structures, {self.n_tuned} when they were found"
        elif self.n_structures >= _PAUSE * self.n_tuned and len(self.ratios) >= _FEWEST:
            ratios = np.minimum(self.ratios, _MOST)
            mean = float(ratios.mean())
            error = float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
            if mean - 1.0 > _SIGMAS * error:
                tune = (
                    f"labels of the last {len(ratios)} structures: chi^2 is {mean:.2f} +- "
                    f"{error:.2f} times its expectation"
                )
        return Advice(tune, refit)

    def to_settings(self) -> Settings:
        """JSON-ready settings from which `from_settings` makes an equal schedule.

        Returns
        -------
        Settings
            The fields by name.
        """
        tunings = [list(one) for one in self.tunings]
        return {**self._asdict(), "ratios": list(self.ratios), "tunings": tunings}

    @classmethod
    def from_settings(cls, settings: Settings) -> Schedule:
        """Make the schedule that `to_settings` described.

        Parameters
        ----------
        settings : Settings
            The fields by name.

        Returns
        -------
        Schedule
            Equal to the one described.
        """
        tunings = tuple((n, why) for n, why in settings["tunings"])
        return cls(**{**settings, "ratios": tuple(settings["ratios"]), "tunings": tunings})
