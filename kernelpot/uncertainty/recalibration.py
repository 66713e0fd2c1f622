"""From standard deviations of the posterior to those of errors, and to intervals that hold.

A posterior is right where its assumptions are: labels with independent noise, a kernel that can
make the function. Fits take what the kernel cannot make for noise of the labels, which averages out
over many of them; real shortcomings do not, and the posterior is too narrow by a factor. So errors
on structures that were left out decide, for each kind of label (and each species, of forces),

    s^2 = (scale sigma)^2 + floor^2

by maximum likelihood: sigma is epistemic and shrinks with more data, the floor is what stays (noise
of the labels, and what the descriptor does not see). What is left is the shape of the distribution:
the sorted ``|error| / s`` of the same structures give the half-widths of intervals of any level, by
split-conformal prediction. (For central intervals their empirical distribution is also the
isotonic map of Kuleshov, Fenner and Ermon, ICML 80, 2796 (2018).)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from ase.data import chemical_symbols

from kernelpot.conventions import LABEL_KINDS, Float, Int, Settings
from kernelpot.data import Structure
from kernelpot.doubts import LabelErrors
from kernelpot.uncertainty.metrics import central_half_width, conformal_factor

__all__ = [
    "Errors",
    "KindScale",
    "Recalibration",
    "errors_by_kind",
    "is_open",
    "recalibrate",
    "uncalibrated",
]

ALL = ""
"""Name of the scale of all species together."""

_LEAST_NUMBERS = 300
_LEAST_STRUCTURES = 5
"""A species with fewer force components, or in fewer structures, shares the scale of all."""
_LEAST_ERRORS = 8
"""Errors of a kind of label below which nothing is fitted."""
_KNOWN = 1e-4
"""Numbers whose sigma is below this share of the median are known by symmetry: they say nothing."""
_PRIOR_WIDTH = 2.0
"""Of the logarithms of scale and floor, about 1 and the noise of the fit: it decides only where
errors say nothing."""
_MOST_SCORES = 20_000


class Errors(NamedTuple):
    """Errors of one kind of label on structures that the model was not fitted to."""

    error_r: Float  # prediction less label; energies per atom
    sigma_r: Float  # posterior standard deviations, in the same units
    symbol_r: np.ndarray  # chemical symbol of the atom; "" for energies and stresses
    structure_r: Int


class KindScale(NamedTuple):
    """How standard deviations of one kind of label, of one species, become those of errors."""

    scale: float
    floor: float  # eV/atom, eV/angstrom, eV/angstrom^3
    scores_r: Float  # |error| / s, ascending; empty for those of a normal distribution
    n_structures: int

    def std(self, sigma: Float) -> Float:
        """Standard deviation of errors.

        Parameters
        ----------
        sigma : Float
            Of the posterior, any shape; of energies per atom.

        Returns
        -------
        Float
            sqrt((scale sigma)^2 + floor^2).
        """
        return np.hypot(self.scale * sigma, self.floor)

    def level(self, score: Float) -> Float:
        """Level of the smallest interval that holds an error.

        Parameters
        ----------
        score : Float
            ``|error| / s``, any shape.

        Returns
        -------
        Float
            The inverse of `factor`, as far as there are scores: 1 for what is above all of them.
        """
        n = len(self.scores_r)
        if n == 0:
            return scipy.special.erf(score / math.sqrt(2.0))
        smaller = np.searchsorted(self.scores_r, score, side="left")
        # The next score is the factor of all levels above this one, which itself has the last.
        return np.where(smaller < n, (smaller + 1e-6) / (n + 1), 1.0)

    def factor(self, level: float) -> float:
        """By what it is multiplied for an interval of this level.

        Parameters
        ----------
        level : float
            Between 0 and 1.

        Returns
        -------
        float
            Conformal where there are scores enough; else of a Student distribution with as many
            degrees of freedom as there are scores (normal for none), times their size.
        """
        n = len(self.scores_r)
        if n:
            factor = conformal_factor(self.scores_r, level)
            if math.isfinite(factor):
                return factor
            size = float(np.sqrt(np.mean(self.scores_r**2)))
            return max(size * float(scipy.stats.t.ppf(0.5 + 0.5 * level, n)), self.scores_r[-1])
        return float(central_half_width(level))


class Recalibration(NamedTuple):
    """Standard deviations of errors from those of the posterior, and intervals."""

    source: str  # "held-out", "leave-one-out", or "none"
    kinds: dict[str, dict[str, KindScale]]  # by kind of label, and symbol; "" for all

    def scale_of(self, kind: str, number: int | None = None) -> KindScale:
        """What holds for a kind of label.

        Parameters
        ----------
        kind : str
            "energy", "forces" or "stress".
        number : int | None
            Atomic number of the atom that a force is on.

        Returns
        -------
        KindScale
            Of the species where it has one of its own.
        """
        mine = self.kinds[kind]
        symbol = ALL if number is None else chemical_symbols[number]
        return mine.get(symbol, mine[ALL])

    def std(self, kind: str, sigma: Float, numbers_n: Int) -> Float:
        """Standard deviation of the errors of one structure.

        Parameters
        ----------
        kind : str
            "energy", "forces" or "stress".
        sigma : Float
            Of the posterior: a number, shape (n_atoms, 3) or (6,).
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        Float
            Of the same shape.
        """
        per = len(numbers_n) if kind == "energy" else 1
        return per * self._by_species(kind, np.asarray(sigma) / per, numbers_n, KindScale.std)

    def half_width(self, kind: str, sigma: Float, numbers_n: Int, level: float) -> Float:
        """Half-widths of the intervals about predictions of one structure that hold its labels.

        Parameters
        ----------
        kind : str
            "energy", "forces" or "stress".
        sigma : Float
            Of the posterior: a number, shape (n_atoms, 3) or (6,).
        numbers_n : Int
            Atomic numbers.
        level : float
            Share of the labels that intervals are to hold, between 0 and 1.

        Returns
        -------
        Float
            Of the same shape.
        """
        std = self.std(kind, sigma, numbers_n)
        return self._by_species(kind, std, numbers_n, lambda scale, s: scale.factor(level) * s)

    def level(self, kind: str, error: Float, sigma: Float, numbers_n: Int) -> Float:
        """Levels of the smallest intervals that hold the errors of one structure.

        Parameters
        ----------
        kind : str
            "energy", "forces" or "stress".
        error : Float
            A number, shape (n_atoms, 3) or (6,).
        sigma : Float
            Of the posterior, likewise.
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        Float
            Of the same shape, 0 to 1.
        """
        score = np.abs(error) / self.std(kind, sigma, numbers_n)
        return self._by_species(kind, score, numbers_n, KindScale.level)

    def _by_species(
        self,
        kind: str,
        values: Float,
        numbers_n: Int,
        function: Callable[[KindScale, Float], Float],
    ) -> Float:
        """Apply what holds for the kind, or for each species, to numbers of one structure."""
        values = np.asarray(values, dtype=np.float64)
        if kind != "forces":
            return np.asarray(function(self.scale_of(kind), values))
        found_nc = np.empty_like(values)
        for number in np.unique(numbers_n).tolist():
            mine = numbers_n == number
            found_nc[mine] = function(self.scale_of(kind, number), values[mine])
        return found_nc

    def to_settings(self) -> Settings:
        """JSON-ready settings, without the scores.

        Returns
        -------
        Settings
            For `from_settings`, with the arrays of `to_arrays`.
        """
        return {
            "source": self.source,
            "scales": [
                {
                    "kind": kind,
                    "symbol": symbol,
                    "scale": one.scale,
                    "floor": one.floor,
                    "n_structures": one.n_structures,
                }
                for kind, symbol, one in self._each()
            ],
        }

    def to_arrays(self) -> dict[str, Float]:
        """The scores.

        Returns
        -------
        dict[str, Float]
            By the place of their scale in the settings.
        """
        return {str(k): one.scores_r for k, (_, _, one) in enumerate(self._each())}

    @classmethod
    def from_settings(cls, settings: Settings, arrays: Mapping[str, Float]) -> Recalibration:
        """What `to_settings` and `to_arrays` gave.

        Parameters
        ----------
        settings : Settings
            Of the first.
        arrays : Mapping[str, Float]
            Of the second.

        Returns
        -------
        Recalibration
            The same.
        """
        kinds: dict[str, dict[str, KindScale]] = {}
        for k, one in enumerate(settings["scales"]):
            scale = KindScale(one["scale"], one["floor"], arrays[str(k)], one["n_structures"])
            kinds.setdefault(one["kind"], {})[one["symbol"]] = scale
        return cls(settings["source"], kinds)

    def _each(self) -> list[tuple[str, str, KindScale]]:
        return [
            (kind, symbol, one) for kind, mine in self.kinds.items() for symbol, one in mine.items()
        ]


def uncalibrated(noise: Mapping[str, float]) -> Recalibration:
    """What the fit itself says: the posterior as it is, the noise that it found, normal numbers.

    Parameters
    ----------
    noise : Mapping[str, float]
        By kind of label.

    Returns
    -------
    Recalibration
        Of the source "none".
    """
    nothing = np.zeros(0)
    scales = {kind: KindScale(1.0, noise[kind], nothing, 0) for kind in LABEL_KINDS}
    return Recalibration("none", {kind: {ALL: one} for kind, one in scales.items()})


def recalibrate(
    errors: Mapping[str, Errors], noise: Mapping[str, float], source: str
) -> Recalibration:
    """Scales, floors and scores by errors.

    Parameters
    ----------
    errors : Mapping[str, Errors]
        By kind of label.
    noise : Mapping[str, float]
        That the fit found, by kind of label.
    source : str
        Where the errors come from.

    Returns
    -------
    Recalibration
        Kinds with fewer than eight errors stay as the fit has them.
    """
    kinds = dict(uncalibrated(noise).kinds)
    for kind, of_kind in errors.items():
        if len(of_kind.error_r) < _LEAST_ERRORS:
            continue
        kinds[kind] = {ALL: _scale(of_kind, noise[kind])}
        symbols = sorted(set(of_kind.symbol_r.tolist()) - {ALL})
        for symbol in symbols if len(symbols) > 1 else []:
            mine = of_kind.symbol_r == symbol
            part = Errors(*(values[mine] for values in of_kind))
            if mine.sum() >= _LEAST_NUMBERS and _n_structures(part) >= _LEAST_STRUCTURES:
                kinds[kind][symbol] = _scale(part, noise[kind])
    return Recalibration(source, kinds)


def is_open(sigma_r: Float) -> np.ndarray:
    """Whether numbers are not known by symmetry: the force on an atom of a perfect crystal is.

    Parameters
    ----------
    sigma_r : Float
        Posterior standard deviations of numbers of one kind.

    Returns
    -------
    np.ndarray
        False where they are below 1e-4 of the median of those above zero.
    """
    some_r = sigma_r[sigma_r > 0.0]
    return sigma_r > _KNOWN * (np.median(some_r) if len(some_r) else 0.0)


def _n_structures(errors: Errors) -> int:
    return len(np.unique(errors.structure_r))


def _scale(errors: Errors, noise: float) -> KindScale:
    told_r = is_open(errors.sigma_r)
    error_r, sigma_r = errors.error_r[told_r], errors.sigma_r[told_r]
    if not len(error_r):
        return KindScale(1.0, noise, np.zeros(0), 0)
    scale, floor = _most_likely(error_r, sigma_r, noise)
    scores_r = np.abs(error_r) / np.hypot(scale * sigma_r, floor)
    if len(scores_r) > _MOST_SCORES:
        scores_r = np.random.default_rng(0).choice(scores_r, _MOST_SCORES, replace=False)
    return KindScale(scale, floor, np.sort(scores_r), _n_structures(errors))


def _most_likely(error_r: Float, sigma_r: Float, noise: float) -> tuple[float, float]:
    """Scale and floor of normal errors."""
    # In units of the errors, so that the search knows steps of any unit.
    unit = math.sqrt(float(np.mean(error_r**2))) or noise
    square_r, variance_r = (error_r / unit) ** 2, (sigma_r / unit) ** 2
    centre = np.array([0.0, math.log(noise / unit)])

    def loss(logs: Float) -> tuple[float, Float]:
        a, b = np.exp(2.0 * logs)
        total_r = a * variance_r + b
        slope_r = 1.0 / total_r - square_r / total_r**2
        off = (logs - centre) / _PRIOR_WIDTH
        value = 0.5 * float(np.sum(np.log(total_r) + square_r / total_r)) + 0.5 * float(off @ off)
        slopes = np.array([a * float(slope_r @ variance_r), b * float(slope_r.sum())])
        return value, slopes + off / _PRIOR_WIDTH

    bounds = [(math.log(1e-3), math.log(1e3)), (centre[1] - math.log(1e4), math.log(1e2))]
    starts = [centre, np.array([math.log(3.0), centre[1] - 3.0])]
    found: list[Any] = [
        scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
        for start in starts
    ]
    scale, floor = np.exp(min(found, key=lambda one: one.fun).x)
    return float(scale), float(unit * floor)


def errors_by_kind(structures: Sequence[Structure], errors: LabelErrors) -> dict[str, Errors]:
    """Errors of single numbers, of those that have labels.

    Parameters
    ----------
    structures : Sequence[Structure]
        With their labels.
    errors : LabelErrors
        Of them; their standard deviations those of the posterior.

    Returns
    -------
    dict[str, Errors]
        By kind of label.
    """
    n_atoms_s = np.array([s.n_atoms for s in structures])
    place_s = np.arange(len(structures))
    by_kind = {
        "energy": (errors.energy / n_atoms_s, errors.energy_std / n_atoms_s, place_s),
        "forces": (
            np.concatenate([one.ravel() for one in errors.forces]),
            np.concatenate([one.ravel() for one in errors.forces_std]),
            np.repeat(place_s, 3 * n_atoms_s),
        ),
        "stress": (errors.stress.ravel(), errors.stress_std.ravel(), np.repeat(place_s, 6)),
    }
    numbers_n = np.concatenate([s.numbers_n for s in structures])
    symbol_n = np.array(chemical_symbols)[numbers_n]
    found = {}
    for kind, (error_r, sigma_r, structure_r) in by_kind.items():
        symbol_r = np.repeat(symbol_n, 3) if kind == "forces" else np.full(len(error_r), ALL)
        finite_r = np.isfinite(error_r) & np.isfinite(sigma_r)
        columns = (error_r, sigma_r, symbol_r, structure_r)
        found[kind] = Errors(*(values[finite_r] for values in columns))
    return found
