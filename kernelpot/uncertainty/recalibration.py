"""From what makes predictions uncertain to standard deviations of their errors, and to intervals.

A posterior is right where its assumptions are: labels with independent noise, a kernel that can
make the function. Fits take what the kernel cannot make for noise of the labels, which averages out
over many of them; real shortcomings do not, and the posterior is too narrow by a factor. So errors
on structures that were left out decide, for each kind of label (and each species, of forces), what
the terms of `TERMS` count (`fit`):

    s^2 = sum_t (scale_t sigma_t)^2 + floor^2

The terms are epistemic and shrink with more data, the floor is what stays (noise of the labels, and
what the descriptor does not see). What is left is the shape of the distribution: the sorted
``|error| / s`` of the same structures give the half-widths of intervals of any level, by
split-conformal prediction. (For central intervals their empirical distribution is also the
isotonic map of Kuleshov, Fenner and Ermon, ICML 80, 2796 (2018).)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from ase.data import chemical_symbols

from kernelpot.conventions import LABEL_KINDS, Float, Int, Settings, VarianceTerms
from kernelpot.uncertainty.metrics import central_half_width, conformal_factor

__all__ = ["ALL", "TERMS", "KindScale", "Recalibration", "is_open", "terms_of", "uncalibrated"]

ALL = ""
"""Name of the scale of all species together."""
TERMS = ("novelty", "open", "jackknife", "structure")
"""Of the variance of an error: those of `VarianceTerms`, and the mean of the jackknife over all
numbers of the kind in the structure. What a kernel cannot make grows everywhere in a structure that
is far from the data; a floor that is the same for all structures does not know of it."""

_KNOWN = 1e-4
"""Numbers whose sigma is below this share of the median are known by symmetry: they say nothing."""


def terms_of(variances: VarianceTerms) -> Float:
    """Variances by the terms of `TERMS`.

    Parameters
    ----------
    variances : VarianceTerms
        Of the numbers of one kind in one structure.

    Returns
    -------
    Float
        Shape (n_terms, ...). The last is 0 where there is but one number, which is its own mean.
    """
    jackknife = np.asarray(variances.jackknife, dtype=np.float64)
    known = np.isfinite(jackknife)
    mean = jackknife[known].mean() if np.count_nonzero(known) > 1 else 0.0
    return np.stack([*np.broadcast_arrays(*variances), np.where(known, mean, np.nan)])


class KindScale(NamedTuple):
    """How standard deviations of one kind of label, of one species, become those of errors."""

    scale_t: tuple[float, ...]  # of the square roots of the terms
    floor: float  # eV/atom, eV/angstrom, eV/angstrom^3
    scores_r: Float  # |error| / s, ascending; empty for those of a normal distribution
    n_structures: int

    def std(self, variance_t: Float) -> Float:
        """Standard deviation of errors.

        Parameters
        ----------
        variance_t : Float
            By term, shape (n_terms, ...); of energies per atom.

        Returns
        -------
        Float
            sqrt(sum_t scale_t^2 variance_t + floor^2).
        """
        return np.sqrt(np.tensordot(np.square(self.scale_t), variance_t, axes=1) + self.floor**2)

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

    def std(self, kind: str, variances: VarianceTerms, numbers_n: Int) -> Float:
        """Standard deviation of the errors of one structure.

        Parameters
        ----------
        kind : str
            "energy", "forces" or "stress".
        variances : VarianceTerms
            Of the predictions: of shape (1,), (n_atoms, 3) or (6,).
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        Float
            Of the same shape.
        """
        per = len(numbers_n) if kind == "energy" else 1
        variance_t = terms_of(variances.scaled(1.0 / per))
        return per * self._by_species(kind, variance_t, numbers_n, KindScale.std)

    def half_width(
        self, kind: str, variances: VarianceTerms, numbers_n: Int, level: float
    ) -> Float:
        """Half-widths of the intervals about predictions of one structure that hold its labels.

        Parameters
        ----------
        kind : str
            "energy", "forces" or "stress".
        variances : VarianceTerms
            Of the predictions: of shape (1,), (n_atoms, 3) or (6,).
        numbers_n : Int
            Atomic numbers.
        level : float
            Share of the labels that intervals are to hold, between 0 and 1.

        Returns
        -------
        Float
            Of the same shape.
        """
        std = self.std(kind, variances, numbers_n)
        return self._by_species(kind, std, numbers_n, lambda scale, s: scale.factor(level) * s)

    def level(self, kind: str, error: Float, variances: VarianceTerms, numbers_n: Int) -> Float:
        """Levels of the smallest intervals that hold the errors of one structure.

        Parameters
        ----------
        kind : str
            "energy", "forces" or "stress".
        error : Float
            Of shape (1,), (n_atoms, 3) or (6,).
        variances : VarianceTerms
            Of the predictions, likewise.
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        Float
            Of the same shape, 0 to 1.
        """
        score = np.abs(error) / self.std(kind, variances, numbers_n)
        return self._by_species(kind, score, numbers_n, KindScale.level)

    def _by_species(
        self,
        kind: str,
        values: Float,
        numbers_n: Int,
        function: Callable[[KindScale, Float], Float],
    ) -> Float:
        """Apply what holds for the kind, or for each species, to numbers of one structure.

        Their first axes may be others: atoms and components come last.
        """
        if kind != "forces":
            return np.asarray(function(self.scale_of(kind), values))
        found_nc = np.empty(values.shape[-2:])
        for number in np.unique(numbers_n).tolist():
            mine = numbers_n == number
            found_nc[mine] = function(self.scale_of(kind, number), values[..., mine, :])
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
                    "scales": list(one.scale_t),
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
            # Earlier files have one scale of the whole posterior.
            scale_t = tuple(one["scales"] if "scales" in one else (one["scale"],) * 2 + (0.0,) * 2)
            scale = KindScale(scale_t, one["floor"], arrays[str(k)], one["n_structures"])
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
    scales = {
        kind: KindScale((1.0, 1.0, 0.0, 0.0), noise[kind], np.zeros(0), 0) for kind in LABEL_KINDS
    }
    return Recalibration("none", {kind: {ALL: one} for kind, one in scales.items()})


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
