"""Thresholds of uncertainty that set themselves. Pure functions of arrays.

Two ways. By errors: the threshold is where the expected error of a force is more than can be borne,
as calibration or the labels so far tell. By history: it follows the uncertainties that are left
right after learning, as in VASP (Jinnouchi, Karsai and Kresse, Phys. Rev. B 100, 014105 (2019)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import ArrayLike

from kernelpot.conventions import Float, as_float

__all__ = [
    "Band",
    "NoveltyMap",
    "fit_novelty_map",
    "force_tolerance",
    "from_history",
    "hold",
]

_PRIOR_PAIRS = 20
"""As many pairs of novelty and error have as much say as the square-root law."""
_OUTLIER = 10.0
"""Squared errors count up to so many times their geometric mean at their novelty; one in 8000 is
above where components are normal."""
_MEDIAN_OF_THREE = float(scipy.stats.chi2.median(3)) / 3.0
"""Median of the mean square of three normal numbers."""
_BELOW, _ABOVE = 0.25, 2.0
"""Thresholds stay between these parts of the least and the largest novelty that has a label."""


class Band(NamedTuple):
    """Two thresholds: above the lower one a structure is a candidate, above the upper one no step
    further is taken. Infinite ones are never passed.
    """

    lower: float = math.inf
    upper: float = math.inf


def force_tolerance(
    asked: float | None = None,
    *,
    errors: ArrayLike = (),
    multiple: float | None = None,
    floor: float = 0.0,
) -> float:
    """The expected error of a force from which on a structure deserves a label.

    Whichever is largest of: what was asked for; a multiple of the present errors, so that a model
    that has just begun does not take every step for a candidate; sqrt(2) times what no label will
    take away, since a tolerance below it would never be met.

    Parameters
    ----------
    asked : float | None
        Tolerance, eV/angstrom, root mean square of a component.
    errors : ArrayLike
        Of force components on the last labels, before they were learned, eV/angstrom.
    multiple : float | None
        By which the median size of these errors (as that of normal numbers gives their standard
        deviation) is multiplied; None to ignore them.
    floor : float
        Expected error of a force that the model is certain of, eV/angstrom: what its calibration
        says of no variance, the largest among species.

    Returns
    -------
    float
        eV/angstrom.

    Raises
    ------
    ValueError
        If neither a tolerance nor a multiple with errors is given, or a number is out of range.
    """
    found = []
    if asked is not None:
        if not (asked > 0.0 and math.isfinite(asked)):
            raise ValueError(f"the tolerance must be positive (eV/A), not {asked!r}")
        found.append(asked)
    error_r = np.abs(as_float(errors)).ravel()
    if not np.isfinite(error_r).all():
        raise ValueError("errors of labels must be finite: leave out what has no label")
    if multiple is not None:
        if not multiple > 0.0:
            raise ValueError(f"multiple must be positive, not {multiple!r}")
        if len(error_r):
            found.append(multiple * 1.4826 * float(np.median(error_r)))
    if not any(one > 0.0 for one in found):
        raise ValueError(
            "a threshold needs a tolerance in eV/A, or a multiple of errors of which there are some"
        )
    if not (floor >= 0.0 and math.isfinite(floor)):
        raise ValueError(f"floor must be an error (eV/A), not {floor!r}")
    return max(*found, math.sqrt(2.0) * floor)


class NoveltyMap(NamedTuple):
    """Expected error of the forces on an atom by its novelty."""

    novelty_k: Float  # ascending
    square_k: Float  # mean squared error of a component there, ascending, (eV/angstrom)^2
    slope: float  # of the square-root law, error^2 = slope * novelty; NaN without pairs
    least: float  # novelty with a label, above zero
    most: float
    n_pairs: int

    def expected_error(self, novelty: ArrayLike) -> Float:
        """Root mean square of the error of a force component.

        Parameters
        ----------
        novelty : ArrayLike
            Any shape.

        Returns
        -------
        Float
            eV/angstrom, never falling with novelty; NaN without pairs.
        """
        novelty = np.asarray(novelty, dtype=np.float64)
        law = self.slope * novelty
        if not self.n_pairs:
            return np.full(novelty.shape, np.nan)
        seen = np.interp(novelty, self.novelty_k, self.square_k)
        share = self.n_pairs / (self.n_pairs + _PRIOR_PAIRS)
        return np.sqrt(share * seen + (1.0 - share) * law)

    def threshold(self, tolerance: float, otherwise: float) -> float:
        """Novelty from which on the expected error is more than the tolerance.

        Parameters
        ----------
        tolerance : float
            eV/angstrom, by `force_tolerance`.
        otherwise : float
            Threshold while there are no pairs.

        Returns
        -------
        float
            Not below a quarter of the least novelty that has a label, nor above twice the largest.

        Raises
        ------
        ValueError
            If a number is not positive.
        """
        if not (tolerance > 0.0 and otherwise > 0.0):
            raise ValueError(f"thresholds must be positive, not {tolerance!r} and {otherwise!r}")
        if not self.n_pairs:
            return otherwise
        low, high = math.log(_BELOW * self.least), math.log(_ABOVE * self.most)

        def over(log_novelty: float) -> float:
            return float(self.expected_error(math.exp(log_novelty))) - tolerance

        if over(low) >= 0.0:
            return math.exp(low)
        if over(high) <= 0.0:
            return math.exp(high)
        return math.exp(scipy.optimize.brentq(over, low, high, xtol=1e-6))


def fit_novelty_map(novelty: ArrayLike, error: ArrayLike) -> NoveltyMap:
    """Learn from labels what error of the forces goes with a novelty.

    Novelty is a share of the prior variance, so that errors grow with its square root where the
    labels follow the prior: the law that few pairs obey. What many pairs say (isotonic regression
    of squared errors, Barlow, Bartholomew, Bremner and Brunk, Statistical inference under order
    restrictions, Wiley (1972)) is averaged with it, at equal weight for 20 pairs.

    Parameters
    ----------
    novelty : ArrayLike
        Of atoms of the structures that got labels, before they were learned.
    error : ArrayLike
        Root mean square of the errors of the three components of each atom's force, eV/angstrom.

    Returns
    -------
    NoveltyMap
        Of no pairs if none has a novelty above zero.

    Raises
    ------
    ValueError
        If shapes differ, or a number is negative or not finite.
    """
    novelty_k, square_k = as_float(novelty).ravel(), as_float(error).ravel() ** 2
    if novelty_k.shape != square_k.shape:
        raise ValueError(
            f"{len(novelty_k)} novelties with {len(square_k)} errors: pairs are needed"
        )
    if not (np.isfinite(novelty_k) & np.isfinite(square_k) & (novelty_k >= 0.0)).all():
        raise ValueError("novelties must be finite and not negative, errors finite")
    some_k = novelty_k > 0.0
    novelty_k, square_k = novelty_k[some_k], square_k[some_k]
    if not len(novelty_k):
        nothing = np.zeros(0)
        return NoveltyMap(nothing, nothing, math.nan, math.nan, math.nan, 0)
    order = np.argsort(novelty_k, kind="stable")
    novelty_k, square_k = novelty_k[order], square_k[order]
    if square_k.max() > 0.0:
        # One label that has gone wrong must not decide what all others are good for.
        log_k = np.log(np.maximum(square_k, 1e-12 * square_k.max()))
        typical_k = np.exp(scipy.optimize.isotonic_regression(log_k).x)
        square_k = np.minimum(square_k, _OUTLIER * typical_k)
    fit = scipy.optimize.isotonic_regression(square_k)
    first_b, count_b = fit.blocks[:-1], np.diff(fit.blocks)
    return NoveltyMap(
        np.add.reduceat(novelty_k, first_b) / count_b,
        fit.x[first_b],
        float(np.median(square_k / novelty_k)) / _MEDIAN_OF_THREE,
        float(novelty_k[0]),
        float(novelty_k[-1]),
        len(novelty_k),
    )


def hold(
    previous: float | None, proposed: float, *, hysteresis: float = 0.2, most: float = 3.0
) -> float:
    """The next threshold from the last one and a proposal, without chatter and without leaps.

    Parameters
    ----------
    previous : float | None
        That of the last round; None in the first.
    proposed : float
        What the present labels suggest.
    hysteresis : float
        A proposal that differs by no more than this part changes nothing.
    most : float
        Largest factor by which the threshold rises or falls in one round.

    Returns
    -------
    float
        Positive.

    Raises
    ------
    ValueError
        If a threshold is not positive and finite, or a setting is out of range.
    """
    for one in (proposed,) if previous is None else (previous, proposed):
        if not (one > 0.0 and math.isfinite(one)):
            raise ValueError(f"thresholds must be positive and finite, not {one!r}")
    if not (hysteresis >= 0.0 and most >= 1.0):
        raise ValueError(f"hysteresis must be >= 0 and most >= 1; got {hysteresis!r} and {most!r}")
    if previous is None:
        return proposed
    if abs(math.log(proposed / previous)) <= math.log1p(hysteresis):
        return previous
    return min(max(proposed, previous / most), previous * most)


def from_history(
    threshold: float,
    history: Sequence[float],
    *,
    length: int = 10,
    spread: float = 0.4,
    slope: float = 0.2,
    excess: float = 0.0,
    mixing: float = 1.0,
) -> float:
    """The next threshold from uncertainties that were left right after learning, as VASP has it.

    Each time structures have been learned, the largest uncertainty of a force in them is computed
    again and added to the history. The threshold becomes the mean of the last ones times 1 + excess
    if their scatter and trend are small; else it stays, since a history that jumps tells of
    something new.

    Parameters
    ----------
    threshold : float
        The present one (ML_CTIFOR), eV/angstrom.
    history : Sequence[float]
        Uncertainties after learning, the latest last, eV/angstrom.
    length : int
        How many of the last are looked at, and needed (ML_MHIS), 2 at least.
    spread : float
        Largest standard deviation, as a part of their mean (ML_CSIG).
    slope : float
        Largest slope of the fitted line from one to the next, as a part of their mean (ML_CSLOPE).
    excess : float
        By what part the threshold is above the mean (ML_CX).
    mixing : float
        Weight of the mean against the present threshold (ML_XMIX); 1 is without.

    Returns
    -------
    float
        eV/angstrom.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    The meaning of the numbers is that of the VASP manual (ML_ICRITERIA = 1), defaults included; how
    exactly VASP normalises scatter and slope is not published, and parts of the mean are ours.
    """
    values = as_float(list(history))
    if not (threshold > 0.0 and length >= 2 and excess > -1.0 and 0.0 < mixing <= 1.0):
        raise ValueError(
            "from_history needs threshold > 0, length >= 2, excess > -1 and 0 < mixing <= 1; got"
            f" {threshold!r}, {length!r}, {excess!r}, {mixing!r}"
        )
    if not (np.isfinite(values) & (values >= 0.0)).all():
        raise ValueError("uncertainties of the history must be finite and not negative")
    if len(values) < length:
        return threshold
    last = values[-length:]
    mean = float(last.mean())
    if mean <= 0.0:
        return threshold
    place = np.arange(length) - 0.5 * (length - 1)
    trend = abs(float(place @ last) / float(place @ place)) / mean
    if float(last.std(ddof=1)) / mean > spread or trend > slope:
        return threshold
    return (1.0 - mixing) * threshold + mixing * (1.0 + excess) * mean
