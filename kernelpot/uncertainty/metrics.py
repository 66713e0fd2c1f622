"""How good standard deviations are, judged by errors. Arrays only.

An error e comes with a standard deviation s. Where the s say all that is to be said, z = e / s is
a standard normal number; and where they say anything, large errors have large s. The first is
calibration, the second ranking, and neither implies the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erf, erfinv
from scipy.stats import rankdata

from kernelpot.conventions import Float, as_float

__all__ = [
    "COVERAGES",
    "LEVELS",
    "Calibration",
    "ErrorBins",
    "auroc",
    "calibration",
    "central_half_width",
    "conformal_factor",
    "empirical_coverage",
    "error_bins",
    "spearman",
]

LEVELS = tuple(k / 20 for k in range(1, 20))
"""Nominal levels over which the expected calibration error is a mean."""

COVERAGES = (0.5, 0.9, 0.95, 0.99)
"""Nominal levels whose coverage is printed."""

WORST = 0.1
"""Share of the numbers that counts as the largest errors."""


class Calibration(NamedTuple):
    """How good standard deviations are."""

    ece: float
    """Expected calibration error: the mean over `LEVELS` of how far the coverage of central
    Gaussian intervals is from their level. 0 is perfect."""
    miscalibration: float  # area between that coverage and the diagonal, over all levels, 0 to 0.5
    nll: float  # mean negative log likelihood of Gaussians, of errors in the unit of the table
    sharpness: float  # root mean square of the standard deviations
    rms_z: float  # root mean square of error over standard deviation, 1 where the scale is right
    coverage: tuple[float, ...]  # of the intervals at `COVERAGES`
    spearman: float  # of |error| and standard deviation; NaN where either is always the same
    auroc: float
    """How well the standard deviation finds the tenth of largest errors: the chance that one of
    these has the larger standard deviation. 0.5 is chance; NaN where all are equally large."""
    rmse: float
    count: int


class ErrorBins(NamedTuple):
    """Errors against standard deviations, in bins of (nearly) equal numbers."""

    sigma: Float  # (n_bins,), root mean square of each, ascending
    error: Float  # (n_bins,), root mean square of each
    standard_error: Float  # (n_bins,), of `error`; NaN in a bin of one number
    count: np.ndarray  # (n_bins,)


def calibration(
    error_r: ArrayLike,
    sigma_r: ArrayLike,
    level_r: ArrayLike | None = None,
) -> Calibration:
    """Judge standard deviations by the errors that were made.

    The expected calibration error is that of Kuleshov, Fenner and Ermon, Proc. Mach. Learn. Res. 80
    (ICML), 2796 (2018), with absolute in the place of squared differences, and for central
    intervals, so that errors of either sign count alike.

    Parameters
    ----------
    error_r : ArrayLike
        Errors, any shape.
    sigma_r : ArrayLike
        Standard deviations in the same unit and shape, positive.
    level_r : ArrayLike | None
        Level of the smallest interval that holds each error, where intervals are other than
        Gaussian ones (conformal ones, say); 1 for an error outside of all.

    Returns
    -------
    Calibration
        Of all numbers together; with a single one the measures by ranks are NaN.

    Raises
    ------
    ValueError
        If there are no numbers, the shapes differ, a number is not finite, or a standard deviation
        is not positive; or if a level is not between 0 and 1.
    """
    error_r, sigma_r = _checked(error_r, sigma_r)
    z_r = error_r / sigma_r
    if level_r is None:
        level_r = erf(np.abs(z_r) / math.sqrt(2.0))
    level_r = np.sort(as_float(level_r).ravel())
    if len(level_r) != len(error_r) or not (level_r[0] >= 0.0 and level_r[-1] <= 1.0):
        raise ValueError(
            f"level_r must be {len(error_r)} numbers between 0 and 1, one for each error; got "
            f"{len(level_r)} from {level_r[0]:g} to {level_r[-1]:g}"
        )
    log_likelihood_r = -0.5 * z_r**2 - np.log(sigma_r) - 0.5 * math.log(2.0 * math.pi)
    return Calibration(
        ece=float(np.mean(np.abs(_covered(level_r, LEVELS) - LEVELS))),
        miscalibration=_area(level_r),
        nll=-float(np.mean(log_likelihood_r)),
        sharpness=_rms(sigma_r),
        rms_z=_rms(z_r),
        coverage=tuple(_covered(level_r, COVERAGES).tolist()),
        spearman=spearman(np.abs(error_r), sigma_r),
        auroc=auroc(error_r, sigma_r),
        rmse=_rms(error_r),
        count=error_r.size,
    )


def central_half_width(level: ArrayLike) -> Float:
    """Half-width of the central interval of the standard normal distribution.

    Parameters
    ----------
    level : ArrayLike
        Probability of the interval, 0 to 1.

    Returns
    -------
    Float
        In standard deviations; 1.96 for 0.95.
    """
    return math.sqrt(2.0) * erfinv(np.asarray(level, dtype=float))


def empirical_coverage(
    error_r: ArrayLike,
    sigma_r: ArrayLike,
    level_r: ArrayLike | None = None,
    levels: Sequence[float] | Float = LEVELS,
) -> Float:
    """Coverage of intervals against their level: the points of a reliability diagram.

    Parameters
    ----------
    error_r : ArrayLike
        Errors.
    sigma_r : ArrayLike
        Standard deviations, positive.
    level_r : ArrayLike | None
        As for `calibration`; None for central Gaussian intervals.
    levels : Sequence[float] | Float
        Nominal levels, 0 to 1.

    Returns
    -------
    Float
        Shape (n_levels,); equal to ``levels`` where intervals are right.

    Raises
    ------
    ValueError
        As `calibration`.
    """
    error_r, sigma_r = _checked(error_r, sigma_r)
    if level_r is None:
        level_r = erf(np.abs(error_r / sigma_r) / math.sqrt(2.0))
    return _covered(np.sort(as_float(level_r).ravel()), levels)


def _covered(level_r: Float, levels: Sequence[float] | Float) -> Float:
    """Share of the errors within the intervals of each level; level_r ascending."""
    # Rounded: a level that is met exactly counts as held.
    return np.searchsorted(level_r - 1e-12, levels, side="right") / level_r.size


def error_bins(error_r: ArrayLike, sigma_r: ArrayLike, n_bins: int = 12) -> ErrorBins:
    """Root mean square errors of numbers with like standard deviations.

    Levi, Gispan, Giladi and Fetaya, Sensors 22, 5540 (2022). The standard error of a root mean
    square over n numbers is that of the mean square, by the scatter of the squares, divided by
    twice the root mean square.

    Parameters
    ----------
    error_r : ArrayLike
        Errors.
    sigma_r : ArrayLike
        Standard deviations, positive.
    n_bins : int
        At most; not more than there are numbers.

    Returns
    -------
    ErrorBins
        By standard deviation; equal ones stay in the order in which they were given.

    Raises
    ------
    ValueError
        As `calibration`, or if there is to be no bin.
    """
    error_r, sigma_r = _checked(error_r, sigma_r)
    if n_bins < 1:
        raise ValueError(f"n_bins must be 1 or more; got {n_bins!r}")
    order = np.argsort(sigma_r, kind="stable")
    bins = np.array_split(order, min(n_bins, len(order)))
    error_b = np.array([_rms(error_r[mine]) for mine in bins])
    with np.errstate(invalid="ignore", divide="ignore"):
        spread_b = np.array(
            [np.std(error_r[mine] ** 2, ddof=1) if len(mine) > 1 else np.nan for mine in bins]
        )
        counts = np.array([len(mine) for mine in bins])
        standard_error_b = np.where(
            spread_b == 0.0, 0.0, spread_b / np.sqrt(counts) / (2.0 * error_b)
        )
    sigma_b = np.array([_rms(sigma_r[mine]) for mine in bins])
    return ErrorBins(sigma_b, error_b, standard_error_b, counts)


def spearman(a_r: ArrayLike, b_r: ArrayLike) -> float:
    """Rank correlation of two lists of numbers; equal ones have the mean of their ranks.

    Parameters
    ----------
    a_r : ArrayLike
        Numbers.
    b_r : ArrayLike
        As many.

    Returns
    -------
    float
        -1 to 1; NaN where one of them is always the same.
    """
    ranks = [rankdata(x) for x in (a_r, b_r)]
    a_r, b_r = (x - x.mean() for x in ranks)
    norm = math.sqrt(float(a_r @ a_r) * float(b_r @ b_r))
    return float(a_r @ b_r) / norm if norm > 0.0 else math.nan


def auroc(error_r: ArrayLike, score_r: ArrayLike, worst: float = WORST) -> float:
    """Chance that a score is larger for one of the largest errors than for one of the others.

    The area under the receiver operating characteristic, by ranks (Mann and Whitney, Ann. Math.
    Stat. 18, 50 (1947)). Equal scores count half; an error as large as the least of the largest
    is one of them.

    Parameters
    ----------
    error_r : ArrayLike
        Errors.
    score_r : ArrayLike
        What is to find the large ones: standard deviations, novelty.
    worst : float
        Share of the numbers that are the largest errors, rounded up to whole numbers.

    Returns
    -------
    float
        0 to 1, 0.5 for chance; NaN where there are no others.

    Raises
    ------
    ValueError
        If there are no errors, the numbers of errors and scores differ, or one is not finite.
    """
    magnitude_r, score_r = np.abs(as_float(error_r).ravel()), as_float(score_r).ravel()
    n = magnitude_r.size
    if n == 0 or n != score_r.size or not np.isfinite([magnitude_r, score_r]).all():
        raise ValueError(
            f"{n} errors with {score_r.size} scores: at least one is needed, as many scores as "
            "errors, and all have to be finite"
        )
    n_worst = max(1, math.ceil(round(worst * n, 9)))
    large_r = magnitude_r >= np.partition(magnitude_r, n - n_worst)[n - n_worst]
    n_large = int(np.count_nonzero(large_r))
    if n_large == n:
        return math.nan
    ranks = rankdata(score_r)
    above = float(ranks[large_r].sum()) - 0.5 * n_large * (n_large + 1)
    return above / (n_large * (n - n_large))


def conformal_factor(score_r: ArrayLike, level: float) -> float:
    """By what standard deviations are multiplied to cover a share of new errors, for certain.

    Split-conformal prediction: if new numbers are exchangeable with those of ``score_r``, an
    ``|error|`` is at most this factor times its standard deviation with a probability of at least
    ``level``, whatever the distributions; and of at most ``level + 1 / (n + 1)`` if no two scores
    are the same. (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, Springer
    (2005); Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, J. Am. Stat. Assoc. 113, 1094 (2018).)
    Components of one structure are not exchangeable with those of another: the guarantee is for
    numbers drawn like those of ``score_r``.

    Parameters
    ----------
    score_r : ArrayLike
        ``|error|`` / standard deviation of numbers that the model was not fitted to, shape (n,).
    level : float
        Share that is to be covered, between 0 and 1.

    Returns
    -------
    float
        The ceil((n + 1) level)-th smallest score; infinite where n is too small for the level.

    Raises
    ------
    ValueError
        If the level is not between 0 and 1, there are no scores, or one is negative or NaN.
    """
    score_r = as_float(score_r).ravel()
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1; got {level!r} (0.95 is 95 per cent)")
    if score_r.size == 0 or not np.all(score_r >= 0.0):
        raise ValueError("scores must be |error| / sigma, at least one and none negative or NaN")
    # Rounded, or 0.07 * 100 would be more than 7.
    k = math.ceil(round((score_r.size + 1) * level, 9))
    return float(np.partition(score_r, k - 1)[k - 1]) if k <= score_r.size else math.inf


def _checked(error_r: ArrayLike, sigma_r: ArrayLike) -> tuple[Float, Float]:
    error_r, sigma_r = as_float(error_r), as_float(sigma_r)
    if error_r.shape != sigma_r.shape:
        raise ValueError(
            f"errors of shape {error_r.shape} with standard deviations of shape {sigma_r.shape}: "
            "each error needs its own"
        )
    error_r, sigma_r = error_r.ravel(), sigma_r.ravel()
    if error_r.size == 0:
        raise ValueError("there are no errors: at least one is needed, and a few hundred say more")
    unknown = np.flatnonzero(~(np.isfinite(error_r) & np.isfinite(sigma_r)))
    if unknown.size:
        raise ValueError(
            f"{unknown.size} of {error_r.size} errors or standard deviations are not finite, the "
            f"first is number {unknown[0]}: leave out what has no label"
        )
    not_positive = np.flatnonzero(sigma_r <= 0.0)
    if not_positive.size:
        raise ValueError(
            f"{not_positive.size} of {sigma_r.size} standard deviations are not positive, the "
            f"first is number {not_positive[0]}: {sigma_r[not_positive[0]]:g}. What symmetry makes "
            "certain has none: leave it out, or add the noise of the labels, "
            "sqrt(std**2 + noise**2)"
        )
    return error_r, sigma_r


def _rms(values_r: Float) -> float:
    # Scaled, so that squares neither overflow nor vanish.
    scale = float(np.max(np.abs(values_r)))
    return scale * float(np.sqrt(np.mean((values_r / scale) ** 2))) if scale > 0.0 else 0.0


def _area(level_r: Float) -> float:
    """Integral over p from 0 to 1 of |share of ``level_r`` up to p - p|; they are ascending."""
    edges = np.concatenate([[0.0], level_r, [1.0]])
    share = np.arange(level_r.size + 1) / level_r.size  # between one edge and the next
    low, high = edges[:-1] - share, edges[1:] - share
    return float(np.sum(high * np.abs(high) - low * np.abs(low))) / 2.0
