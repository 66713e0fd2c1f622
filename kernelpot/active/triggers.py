"""What is thought of a structure on the way: a `Watch` is called at every step of an explorer."""

from __future__ import annotations

import math
import time

import numpy as np
from ase import Atoms

from kernelpot.active.records import Verdict
from kernelpot.active.thresholds import Band
from kernelpot.active.unphysical import Limits, Sanity

__all__ = ["OutOfTimeError", "Watch"]

_NOTHING = Limits()
_NEVER = Band()


class OutOfTimeError(Exception):
    """The time that there was for an exploration is over."""


class Watch:
    """Says of each structure whether it is unphysical, unsure, or neither.

    The novelty that comes with every call of the calculator is looked at in every step. Standard
    deviations of forces, which cost as much as many steps, are computed only in some: every so
    many, and where novelty is on its way to its threshold.

    Parameters
    ----------
    novelty : Band
        Thresholds of the largest novelty of an atom.
    error : Band
        Thresholds of the largest uncertainty of a force, eV/angstrom: root mean square of the
        three components of an atom.
    uncertainty : str
        Which: "forces_error", the errors to be expected as calibrated, or "forces_std", standard
        deviations of the posterior.
    area : float
        Uncertainties of stresses count as those of forces on such an area, angstrom^2; 0 where they
        do not.
    limits : Limits
        What is unphysical.
    cooldown : int
        Steps after a candidate in which there is no other: neighbouring frames say the same.
    leap : float
        But one whose score is so many times that of the last is, cooldown or not.
    std_every : int
        Steps from one evaluation of standard deviations to the next; 0 for none but near the
        threshold of novelty.
    std_near : float
        Part of the lower threshold of novelty from which on standard deviations are looked at.
    std_gap : int
        Least steps between two evaluations near that threshold: each costs as much as fifty steps.
    deadline : float
        By `time.monotonic`; whatever comes later ends the exploration by an `OutOfTimeError`.

    Attributes
    ----------
    n_steps : int
        Structures looked at since the (re)start.
    n_std : int
        Evaluations of standard deviations among them.
    looks : list[float]
        Largest uncertainties of a force, eV/angstrom, in the looks that come every so many steps,
        those from before a restart among them: a fair sample of the way, as those near the
        threshold are not.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    One watch looks at one exploration at a time: call `restart` before the next. All it does
    follows from the structures it has seen since.
    """

    def __init__(
        self,
        *,
        novelty: Band = _NEVER,
        error: Band = _NEVER,
        uncertainty: str = "forces_error",
        area: float = 0.0,
        limits: Limits = _NOTHING,
        cooldown: int = 20,
        leap: float = 1.5,
        std_every: int = 0,
        std_near: float = 0.5,
        std_gap: int = 50,
        deadline: float = math.inf,
    ):
        for name, band in (("novelty", novelty), ("error", error)):
            if not 0.0 < band.lower <= band.upper:
                raise ValueError(f"{name}: 0 < lower <= upper must hold, but the band is {band!r}")
        if uncertainty not in ("forces_error", "forces_std"):
            raise ValueError(
                f'uncertainty must be "forces_error" or "forces_std", not {uncertainty!r}'
            )
        if not (area >= 0.0 and math.isfinite(area)):
            raise ValueError(f"area must not be negative (angstrom^2), but is {area!r}")
        if cooldown < 0 or std_every < 0 or std_gap < 1 or not (std_near >= 0.0 and leap >= 1.0):
            raise ValueError(
                "cooldown and std_every must not be negative, std_gap and leap be at least 1 and"
                f" std_near at least 0; got {cooldown!r}, {std_every!r}, {std_gap!r}, {leap!r},"
                f" {std_near!r}"
            )
        self.novelty, self.error = novelty, error
        self.uncertainty, self.area, self.limits = uncertainty, area, limits
        self.cooldown, self.leap = cooldown, leap
        self.std_every, self.std_near, self.std_gap = std_every, std_near, std_gap
        self._sanity = Sanity(limits)
        self.deadline = deadline
        self.looks: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: another exploration begins."""
        self.n_steps = self.n_std = 0
        self._last_std = self._last_look = -math.inf
        self._quiet_until, self._last_score = 0, 0.0
        self._sanity.restart()

    def __call__(self, atoms: Atoms) -> Verdict:
        """Look at the next structure.

        Parameters
        ----------
        atoms : Atoms
            With a calculator whose results are those of this structure.

        Returns
        -------
        Verdict
            The score is the largest uncertainty of a force over its lower threshold; where that was
            not computed, novelty over its own; NaN where neither is known.

        Raises
        ------
        ValueError
            If the calculator has not computed energy and forces, or limits know shortest distances
            but not those of a species that is there.
        OutOfTimeError
            After the deadline.
        """
        if time.monotonic() > self.deadline:
            raise OutOfTimeError
        step, self.n_steps = self.n_steps, self.n_steps + 1
        wrong = self._sanity.look(atoms)
        if wrong is not None and wrong.reason == "not finite":
            return Verdict(True, False, wrong.reason, math.nan)
        score, reason, over = self._unsure(atoms, step)
        unsure = score > 1.0
        if wrong is not None:
            return Verdict(True, wrong.worth_a_label or unsure, wrong.reason, score)
        if over:
            return Verdict(True, True, reason, score)
        if not unsure or (step < self._quiet_until and score < self.leap * self._last_score):
            return Verdict(False, False, "", score)
        self._quiet_until, self._last_score = step + self.cooldown, score
        return Verdict(False, True, reason, score)

    def _unsure(self, atoms: Atoms, step: int) -> tuple[float, str, bool]:
        """Score, what it is of, and whether an upper threshold is passed."""
        score, reason, over = math.nan, "", False
        novelty_n = atoms.calc.results.get("novelty")
        if novelty_n is not None and len(novelty_n):
            novelty = float(novelty_n.max())
            score, reason = novelty / self.novelty.lower, "novelty"
            over = novelty > self.novelty.upper
        is_look = 0 < self.std_every <= step - self._last_look
        if math.isfinite(self.error.lower) and (is_look or self._is_near(step, score)):
            self.n_std += 1
            self._last_std = step
            error, reason = self._error(atoms)
            if is_look:
                self._last_look = step
                self.looks.append(error)
            # What is known better decides.
            score = error / self.error.lower
            over = over or error > self.error.upper
        return score, reason, over

    def _error(self, atoms: Atoms) -> tuple[float, str]:
        """Largest uncertainty, eV/angstrom, and what it is of."""
        std_nc = atoms.calc.get_property(self.uncertainty, atoms)
        error = math.sqrt(float(np.mean(std_nc**2, axis=1).max(initial=0.0)))
        if self.area > 0.0 and atoms.pbc.all():
            of_stress = self.uncertainty.replace("forces", "stress")
            std_v = atoms.calc.get_property(of_stress, atoms)
            on_area = self.area * math.sqrt(float(np.mean(std_v**2)))
            if on_area > error:
                return on_area, of_stress
        return error, self.uncertainty

    def _is_near(self, step: int, score: float) -> bool:
        """Whether novelty is on its way to its threshold, and the last look long ago.

        Not while there would be no other candidate anyway, but for a leap.
        """
        quiet = step < self._quiet_until and not score >= self.leap * self._last_score
        near = score >= self.std_near and math.isfinite(self.novelty.lower)
        return near and not quiet and step - self._last_std >= self.std_gap
