"""What is known so far: labels, the model that has learned them, and how wrong it was before."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.active.thresholds import NoveltyMap, fit_novelty_map
from kernelpot.active.unphysical import Closest
from kernelpot.calculator import Calculator
from kernelpot.conventions import Float, VarianceTerms, as_int
from kernelpot.data import Structure, structures_from_atoms
from kernelpot.data_checks import DataError
from kernelpot.leave_out import left_out_terms
from kernelpot.potential import KernelPotential
from kernelpot.terms.repulsion import closest_distances
from kernelpot.training_data import say_nothing
from kernelpot.uncertainty.calibration_fit import errors_by_kind, recalibrate

log = logging.getLogger("kernelpot")

__all__ = ["Knowledge", "Learned", "Surprise"]

_LEVEL = 0.9
"""Of the intervals by which it is judged whether errors were foreseen."""
_BEYOND, _BEYOND_EXPECTATION = 10.0, 30.0
"""A label is not believed whose forces, and their error, are so many times the forces of all
others, and the error so many times what was expected of it."""
_NEVER_DOUBTED = 50.0
"""Forces, or their error, below which a label is always believed, eV/angstrom: all others may be of
minima."""
_RECENT = 8
"""Structures by whose errors thresholds are set."""


class Surprise(NamedTuple):
    """A structure as the model had expected it, before it learned its labels."""

    error: float  # root mean square of the errors of the forces, eV/angstrom
    expected: float  # of their standard deviations as calibrated
    inside: float  # share of the forces within their 90 % intervals
    energy_error: float  # eV/atom
    energy_expected: float


class Learned(NamedTuple):
    """What became of new labels."""

    how: str  # "fit", "update", or "nothing"
    why: str
    surprises: list[Surprise]  # of the new structures; none where the model knew no such species
    seconds: float
    doubted: list[tuple[int, str]]  # places of the new structures that were not learned, and why
    maintained: str  # what was done with all earlier labels before, and why; "" where nothing was
    maintenance: float  # seconds of it, most of them while the labels were computed


class Knowledge:
    """A model and what it has learned, step by step; the same labels give the same model.

    Parameters
    ----------
    model : KernelPotential
        Its parameters are used; it is not changed.
    window : int
        The last structures whose errors, from before they were learned, say how wide intervals are.

    Attributes
    ----------
    model : KernelPotential
        Fitted once there are labels.
    images : list[Atoms]
        All labels.
    """

    def __init__(self, model: KernelPotential, window: int = 40):
        self._prototype = model
        self._window = window
        self.model = self._unfitted()
        self.images: list[Atoms] = []
        self._structures: list[Structure] = []
        self._looked: list[Structure] = []  # the last ones of which errors are known
        self._found: list[dict[str, tuple[Float, VarianceTerms]]] = []  # of these
        self._novelty: list[Float] = []  # of the atoms of structures with labels
        self._error: list[Float] = []  # of the force on each
        self._closest: Closest | None = None
        self._maintained = "", 0.0  # since labels were learned last: what, and seconds

    def _unfitted(self) -> KernelPotential:
        return KernelPotential(**self._prototype.get_params(deep=False))

    @property
    def fitted(self) -> bool:
        """Whether there is a model."""
        return hasattr(self.model, "fitted_")

    def maintain(self, check: Callable[[], None] = lambda: None) -> None:
        """What the schedule asks for: a fit to all labels, or hyperparameters anew.

        It can be done beside other work, before the next labels are learned; `learn` does it first
        where it has not been done.

        Parameters
        ----------
        check : Callable[[], None]
            Called now and then; what it raises ends the work, and nothing has changed.
        """
        if not self.fitted:
            return
        started = time.perf_counter()
        advice = self.model.schedule_.advice
        if advice.refit:
            model, told = self._unfitted(), self._prototype.progress or say_nothing

            def progress(stage: str, done: int, total: int) -> None:
                check()
                told(stage, done, total)

            model.progress = progress
            model.fit(self.images)
            model.progress = self._prototype.progress
            self.model = model
            self._recall()
            what = f"fit to all, {advice.refit}"
        elif advice.tune:
            self.model.tune()
            what = f"hyperparameters, {advice.tune}"
        else:
            return
        self._calibrate()
        self._maintained = what, time.perf_counter() - started

    def learn(self, new: Sequence[Atoms]) -> Learned:
        """Learn labels: by an update, or by a fit to all where there is a new species.

        Parameters
        ----------
        new : Sequence[Atoms]
            Labelled structures.

        Returns
        -------
        Learned
            With what the model had expected of them.
        """
        started = time.perf_counter()
        if new:
            self.maintain()
        maintained, self._maintained = self._maintained, ("", 0.0)

        def learned(how: str, why: str) -> Learned:
            seconds = time.perf_counter() - started
            return Learned(how, why, surprises, seconds, doubted, *maintained)

        surprises: list[Surprise] = []
        doubted: list[tuple[int, str]] = []
        if not new:
            return learned("nothing", "no new labels")
        structures = structures_from_atoms(new, *self.model._labels())
        known = set(self.model.species_) if self.fitted else set()
        unknown = {z for one in structures for z in one.numbers_n.tolist()} - known
        found = [] if unknown else self.model.errors_with_terms(structures)
        if found:
            surprises = [self._surprise(*one) for one in zip(structures, found, strict=True)]
        doubted = self._doubted(structures, surprises)
        for place, reason in doubted:
            log.warning("the label of %s is not learned: %s", structures[place].name, reason)
        kept = sorted(set(range(len(new))) - {place for place, _ in doubted})
        if not kept:
            return learned("nothing", "no label can be believed")
        new, structures = [new[k] for k in kept], [structures[k] for k in kept]
        if found:
            self._remember(new, structures, [found[k] for k in kept])
        self.images += new
        self._structures += structures
        self._see_distances(structures)
        if not self.fitted or unknown:
            why = "new species" if self.fitted else "the first labels"
            self.model = self._unfitted().fit(self.images)
            self._recall()
            how = "fit"
        else:
            self.model.partial_fit(new, grow=True, tune=False)
            how, why = "update", f"{len(new)} new"
        self._calibrate()
        return learned(how, why)

    def errors_left(self, n_last: int) -> list[float]:
        """What is expected of the last structures now that they have been learned.

        Parameters
        ----------
        n_last : int
            How many of them.

        Returns
        -------
        list[float]
            Of each the largest expected error of a force, root mean square of a component,
            eV/angstrom.
        """
        calculator = Calculator(self.model)
        found = []
        for atoms in self.images[len(self.images) - n_last :]:
            error_nc = calculator.get_property("forces_error", atoms.copy())
            found.append(float(np.sqrt(np.mean(error_nc**2, axis=1)).max()))
        return found

    def _surprise(self, one: Structure, found: dict[str, tuple[Float, VarianceTerms]]) -> Surprise:
        """Of errors from before the label is learned."""
        calibration = self.model.calibration_
        error_nc, terms = found["forces"]
        known = np.isfinite(error_nc)
        std_nc = calibration.std("forces", terms, one.numbers_n)
        level_nc = calibration.level("forces", error_nc, terms, one.numbers_n)
        energy_error, energy_terms = found["energy"]
        energy_std = calibration.std("energy", energy_terms, one.numbers_n)
        return Surprise(
            _rms(error_nc[known]),
            _rms(std_nc[known]),
            float(np.mean(level_nc[known] <= _LEVEL)) if known.any() else np.nan,
            float(energy_error[0]) / one.n_atoms,
            float(energy_std[0]) / one.n_atoms,
        )

    def _doubted(
        self, structures: Sequence[Structure], surprises: Sequence[Surprise]
    ) -> list[tuple[int, str]]:
        """Labels that cannot be: one of them would spoil the model for all the others."""
        force_s = [_rms(one.forces_nc[np.isfinite(one.forces_nc)]) for one in structures]
        known = force_s if not surprises else [_rms(one.forces_nc) for one in self._structures]
        known = [one for one in known if one > 0.0]
        largest = max(known, default=np.inf) if surprises else 10.0 * np.median(known or [np.inf])
        doubted = []
        for k, force in enumerate(force_s):
            expected = surprises[k].expected if surprises else 0.0
            error = surprises[k].error if surprises else force
            # A large error alone may be the model's: where atoms are closer than in any label.
            least = min(force, error)
            if least > max(_BEYOND * largest, _NEVER_DOUBTED) and (
                error > _BEYOND_EXPECTATION * expected
            ):
                what = "" if not surprises else f", {error:.3g} off what was expected"
                reason = (
                    f"its forces are of {force:.3g} eV/A (root mean square){what}, and those of all"
                    " others are far smaller. The oracle has probably converged to something else"
                )
                doubted.append((k, reason))
        return doubted

    def _remember(
        self,
        new: Sequence[Atoms],
        structures: Sequence[Structure],
        found: Sequence[dict[str, tuple[Float, VarianceTerms]]],
    ) -> None:
        """Errors from before the labels are learned."""
        calculator = Calculator(self.model)
        for atoms, one, of_kind in zip(new, structures, found, strict=True):
            self._looked.append(one)
            self._found.append(of_kind)
            error_nc = of_kind["forces"][0]
            if calculator.novelty and np.isfinite(error_nc).all():
                self._novelty.append(calculator.get_property("novelty", atoms.copy()))
                self._error.append(np.sqrt(np.mean(error_nc**2, axis=1)))

    def _recall(self) -> None:
        """After a fit to all: what it would have expected of the last structures without them."""
        last = self._structures[-self._window :]
        try:
            self._found = left_out_terms(self.model.fitted_, last, self.model.doubts_)
            self._looked = last
        except DataError:
            # Noise so small that a structure alone decides what the model says of it: nothing is
            # known of it without itself. What was expected before it was learned has to do.
            log.info(
                "errors are those from before the fit: its noise is too small to leave one out"
            )

    def _calibrate(self) -> None:
        self._found = self._found[-self._window :]
        self._looked = self._looked[-self._window :]
        errors = errors_by_kind(self._looked, self._found)
        self.model.calibration_ = recalibrate(
            errors, self.model.reference_noise_, "before learning"
        )

    def _see_distances(self, structures: Sequence[Structure]) -> None:
        before = [] if self._closest is None else self._closest.numbers.tolist()
        new = {z for one in structures for z in one.numbers_n.tolist()}
        numbers = as_int(sorted(new.union(before)))
        cutoff = 6.0
        if self._closest is not None and np.array_equal(numbers, self._closest.numbers):
            found_zz = closest_distances(structures, numbers, cutoff)
            found_zz = np.minimum(found_zz, self._closest.distance_zz)
        else:
            found_zz = closest_distances(self._structures, numbers, cutoff)
        self._closest = Closest(numbers, found_zz)

    @property
    def closest(self) -> Closest | None:
        """Shortest distances in the labels."""
        return self._closest

    @property
    def recent_errors(self) -> Float:
        """Errors of forces of the last structures, from before they were learned, eV/angstrom."""
        parts = [of_kind["forces"][0].ravel() for of_kind in self._found[-_RECENT:]]
        error_r = np.concatenate([np.zeros(0), *parts])
        return error_r[np.isfinite(error_r)]

    @property
    def typical_force(self) -> float:
        """Root mean square of the components of all forces of the labels, eV/angstrom."""
        force_r = np.concatenate(
            [np.zeros(0), *(one.forces_nc.ravel() for one in self._structures)]
        )
        return _rms(force_r[np.isfinite(force_r)]) if np.isfinite(force_r).any() else 0.0

    @property
    def n_errors(self) -> int:
        """Structures by whose errors the model is calibrated."""
        return len(self._found)

    @property
    def novelty_map(self) -> NoveltyMap:
        """What error of the forces goes with a novelty."""
        novelty_n = np.concatenate([np.zeros(0), *self._novelty[-self._window :]])
        error_n = np.concatenate([np.zeros(0), *self._error[-self._window :]])
        return fit_novelty_map(novelty_n, error_n)

    @property
    def least_error(self) -> float:
        """Error of a force that the model is certain of, the largest among species, eV/angstrom."""
        return max(one.floor for one in self.model.calibration_.kinds["forces"].values())

    def fingerprint(self) -> str:
        """Of the weights: by it two models are known to be the same to the bit.

        Returns
        -------
        str
            Sixteen hexadecimal digits.
        """
        weights_m = np.ascontiguousarray(self.model.fitted_.weights_m)
        return hashlib.sha256(weights_m.tobytes()).hexdigest()[:16]


def _rms(values: Float) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")
