"""When to stop: criteria that say whether there is more to learn, and budgets. Pure functions.

Each gives a `Criterion` with its number, what it should be, and a sentence for people. A criterion
that cannot be judged yet is not met: its number is NaN and the sentence says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from kernelpot.active.blocking import BlockedMean, block_average
from kernelpot.conventions import Float, as_float

__all__ = [
    "Criterion",
    "Decision",
    "Estimate",
    "combine",
    "coverage",
    "label_budget",
    "observable_converged",
    "patience",
    "plateau",
    "time_budget",
]

_MEDIAN = math.sqrt(math.pi / 2.0)
"""Standard error of a median, in those of the mean of a normal distribution."""
_NORMAL = 1.0 / float(scipy.stats.norm.ppf(0.75))
"""Standard deviation of a normal distribution, in medians of the absolute deviation."""


class Criterion(NamedTuple):
    """A reason to stop, met or not."""

    name: str
    met: bool
    value: float  # NaN where it cannot be judged yet
    target: float
    text: str


class Decision(NamedTuple):
    """Whether to stop, and why."""

    stop: bool
    why: str
    criteria: tuple[Criterion, ...]  # all of them, budgets last


class Estimate(NamedTuple):
    """What one round found for an observable; a `BlockedMean` serves as well."""

    mean: ArrayLike
    standard_error: ArrayLike  # 0 for what comes without scatter: a relaxed lattice constant
    settled: bool = True


def plateau(
    sigma_by_round: Sequence[ArrayLike],
    *,
    rounds: int = 6,
    tolerance: float = 0.1,
    level: float = 0.95,
) -> Criterion:
    """Whether uncertainty has ceased to change from round to round.

    The medians of log sigma of the last rounds have a slope (Theil and Sen: the median of those
    between any two of them) with an error, from the scatter of the medians about their line or that
    within rounds, whichever is larger. The criterion is met where the slope is within the tolerance
    with that confidence, not where it fails to differ from zero: one lucky round changes neither
    slope nor error enough, and noisy rounds have to be many.

    Parameters
    ----------
    sigma_by_round : Sequence[ArrayLike]
        Uncertainties met in each round, in one unit: the largest standard deviation of a force in
        each of evenly spaced frames, say. Zeros, which symmetry makes, and rounds without any
        number are left out.
    rounds : int
        How many of the last rounds are looked at, 4 at least.
    tolerance : float
        Largest change of log sigma per round: 0.1 is ten per cent.
    level : float
        Confidence, between 0.5 and 1.

    Returns
    -------
    Criterion
        Its value is the change per round that is certainly not exceeded.

    Raises
    ------
    ValueError
        If a sigma is negative or not finite, or a setting is out of range.
    """
    if rounds < 4 or not tolerance > 0.0 or not 0.5 < level < 1.0:
        raise ValueError(
            f"a plateau needs 4 rounds or more, a positive tolerance and a level between 0.5 and 1;"
            f" got {rounds!r}, {tolerance!r} and {level!r}"
        )
    medians, errors = [], []
    for k, sigma in enumerate(sigma_by_round):
        sigma_r = as_float(sigma).ravel()
        if not (np.isfinite(sigma_r) & (sigma_r >= 0.0)).all():
            raise ValueError(f"uncertainties of round {k} must be finite and not negative")
        log_r = np.log(sigma_r[sigma_r > 0.0])
        if not len(log_r):
            continue
        medians.append(float(np.median(log_r)))
        spread = _NORMAL * float(np.median(np.abs(log_r - medians[-1])))
        errors.append(_MEDIAN * spread / math.sqrt(len(log_r)))
    if len(medians) < rounds:
        text = f"uncertainty is known of {len(medians)} rounds, {rounds} are needed for a plateau"
        return Criterion("plateau", False, math.nan, tolerance, text)
    place = np.arange(rounds, dtype=float)
    median_k = np.array(medians[-rounds:])
    a, b = np.triu_indices(rounds, 1)
    slope = float(np.median((median_k[b] - median_k[a]) / (b - a)))
    rest_k = median_k - slope * place
    scatter = math.sqrt(float(np.sum((rest_k - np.median(rest_k)) ** 2)) / (rounds - 2))
    error = max(scatter, float(np.median(errors[-rounds:])))
    error /= math.sqrt(float(np.sum((place - place.mean()) ** 2)))
    bound = abs(slope) + float(scipy.stats.t.ppf(level, rounds - 2)) * error
    met = bound <= tolerance
    text = (
        f"uncertainty changed by {100 * math.expm1(slope):+.1f} % per round over the last {rounds},"
        f" give or take {100 * error:.1f} %: {'a' if met else 'not yet a'} plateau (within"
        f" {100 * tolerance:g} % with {100 * level:g} % confidence)"
    )
    return Criterion("plateau", met, bound, tolerance, text)


def observable_converged(
    estimates: Sequence[Estimate | BlockedMean],
    tolerance: ArrayLike,
    *,
    rounds: int = 3,
    level: float = 0.95,
    name: str = "observable",
) -> Criterion:
    """Whether an observable is the same in the last rounds, as far as it matters.

    Any two of the last rounds must agree to the tolerance, with their combined standard error on
    top: |m_a - m_b| + z sqrt(se_a^2 + se_b^2). Large errors do not pass for agreement.

    Parameters
    ----------
    estimates : Sequence[Estimate | BlockedMean]
        Of each round, the latest last: by `block_average` for averages over a trajectory.
    tolerance : ArrayLike
        By how much it may differ, in its unit; one number, or one for each component.
    rounds : int
        How many of the last rounds have to agree, 2 at least.
    level : float
        Confidence, between 0.5 and 1.
    name : str
        Of the observable, for people.

    Returns
    -------
    Criterion
        Its value is the largest difference with its error, in tolerances: it is met up to 1.

    Raises
    ------
    ValueError
        If a setting is out of range, shapes differ from round to round, or a number is not finite
        although the round is settled.
    """
    tolerance_k = np.asarray(tolerance, dtype=np.float64)
    if rounds < 2 or not np.all(tolerance_k > 0.0) or not 0.5 < level < 1.0:
        raise ValueError(
            "an observable needs 2 rounds or more, a positive tolerance and a level between 0.5"
            f" and 1; got {rounds!r}, {tolerance!r} and {level!r}"
        )
    last = list(estimates)[-rounds:]
    if len(last) < rounds:
        text = f"{name} is known of {len(last)} rounds, {rounds} have to agree"
        return Criterion(name, False, math.nan, 1.0, text)
    if not all(one.settled for one in last):
        text = (
            f"{name} is an average over {sum(not one.settled for one in last)} trajectories among"
            f" the last {rounds} that are too short for their correlations"
        )
        return Criterion(name, False, math.nan, 1.0, text)
    shape = np.shape(last[-1].mean)
    if any(np.shape(one.mean) != shape for one in last):
        raise ValueError(f"{name} has shapes {[np.shape(one.mean) for one in last]}: one is needed")
    mean_ak = np.array([one.mean for one in last], dtype=np.float64)
    error_ak = np.array([np.broadcast_to(one.standard_error, shape) for one in last], np.float64)
    if not (np.isfinite(mean_ak).all() and np.isfinite(error_ak).all() and np.all(error_ak >= 0)):
        raise ValueError(f"{name} has means or standard errors that are not finite, or negative")
    z = float(scipy.stats.norm.ppf(0.5 + 0.5 * level))
    off_abk = np.abs(mean_ak[:, None] - mean_ak)
    both_abk = np.hypot(error_ak[:, None], error_ak)
    total_abk = off_abk + z * both_abk
    pairs_ab = ~np.eye(rounds, dtype=bool)
    value = float((total_abk / tolerance_k)[pairs_ab].max(initial=0.0))
    met = value <= 1.0
    resolved = bool(np.any((off_abk > z * both_abk)[pairs_ab]))
    text = (
        f"{name} of the last {rounds} rounds {'agrees' if met else 'does not agree yet'}: with"
        f" errors, the largest difference is {value:.2g} of the tolerance"
        f" ({'it is' if resolved else 'it is not'} larger than its error)"
    )
    return Criterion(name, met, value, 1.0, text)


def coverage(
    scores: Sequence[ArrayLike], *, share: float = 0.999, level: float = 0.95
) -> Criterion:
    """Whether environments of a final long run are within what the model is sure of.

    Judged is the lower bound of Clopper and Pearson (Biometrika 26, 404 (1934)) of the share that
    is inside. Environments are not independent, so that they count for fewer: as many independent
    numbers as would know the mean of the scores as well as the run does, by blocking, which takes
    the correlations of neighbours and of frames together. Where some are outside, and come in
    clusters, their own effective number counts if it is smaller. A run that is too short to
    tell counts for one. With 95 % confidence, 99.9 % takes 2995 that count, and none outside.

    Parameters
    ----------
    scores : Sequence[ArrayLike]
        Of each run: uncertainty over its bound, by evenly spaced frame and atom, shape (n_frames,
        n_atoms). An environment is inside up to 1.
    share : float
        That is to be inside, between 0 and 1.
    level : float
        Confidence, between 0 and 1.

    Returns
    -------
    Criterion
        Its value is the lower bound.

    Raises
    ------
    ValueError
        If a score is NaN or negative, an array has another shape, or a setting is out of range.
    """
    if not (0.0 < share < 1.0 and 0.0 < level < 1.0):
        raise ValueError(f"share and level must be between 0 and 1, not {share!r} and {level!r}")
    n, n_outside, n_effective = 0, 0, 0.0
    for one in scores:
        score_fn = as_float(one)
        if score_fn.ndim != 2 or not np.all(score_fn >= 0.0):
            raise ValueError(
                f"scores must be of shape (n_frames, n_atoms), none NaN or negative; got shape"
                f" {score_fn.shape}"
            )
        if not score_fn.size:
            continue
        outside_fn = score_fn > 1.0
        n += score_fn.size
        n_outside += int(outside_fn.sum())
        # How far outside says nothing of how many frames count.
        effective = _effective_number(np.minimum(score_fn, 2.0))
        if outside_fn.any() and not outside_fn.all():
            effective = min(effective, _effective_number(outside_fn.astype(float)))
        n_effective += effective
    if n == 0:
        text = "there are no environments of a final run yet"
        return Criterion("coverage", False, math.nan, share, text)
    found = 1.0 - n_outside / n
    bound = _clopper_pearson(n_effective * n_outside / n, n_effective, level)
    met = bound >= share
    text = (
        f"{100 * found:.2f} % of {n} environments of the final run, which count for"
        f" {n_effective:.0f}, are inside what the model is sure of: with {100 * level:g} %"
        f" confidence at least {100 * bound:.2f} % (target {100 * share:g} %)"
    )
    if not met and found >= share:
        text += (
            ". Too few to tell: longer explorations, larger cells or a lower target (coverage) help"
        )
    return Criterion("coverage", met, bound, share, text)


def _effective_number(values_fn: Float) -> float:
    """How many independent numbers know the mean as well."""
    n_frames = len(values_fn)
    if n_frames < 2:
        return 1.0
    # Atoms that differ for good are no scatter of the mean: only what changes in time counts.
    variance = float(values_fn.var(axis=0, ddof=1).mean())
    mean = block_average(values_fn.mean(axis=1), warn=False)
    error = float(mean.standard_error)
    if not mean.settled or variance <= 0.0:
        return 1.0
    if error**2 * values_fn.size <= variance:
        return float(values_fn.size)
    return max(variance / error**2, 1.0)


def _clopper_pearson(n_outside: float, n: float, level: float) -> float:
    """Lower bound of the share inside; the numbers need not be whole."""
    if n_outside >= n:
        return 0.0
    return 1.0 - float(scipy.stats.beta.ppf(level, n_outside + 1.0, n - n_outside))


def label_budget(n_labels: int, most: int) -> Criterion:
    """Whether all labels that may be asked for have been.

    Parameters
    ----------
    n_labels : int
        Asked for so far, those that failed among them.
    most : int
        The budget.

    Returns
    -------
    Criterion
        Met where nothing is left.

    Raises
    ------
    ValueError
        If a number is negative.
    """
    if n_labels < 0 or most < 0:
        raise ValueError(f"numbers of labels must not be negative: {n_labels!r} of {most!r}")
    text = f"{n_labels} of {most} labels are used"
    return Criterion("labels", n_labels >= most, float(n_labels), float(most), text)


def time_budget(seconds: float, most: float) -> Criterion:
    """Whether the time is over.

    Parameters
    ----------
    seconds : float
        Since the start, earlier parts of a resumed run included.
    most : float
        The budget, s.

    Returns
    -------
    Criterion
        Met where nothing is left.

    Raises
    ------
    ValueError
        If a number is negative or NaN.
    """
    if not (seconds >= 0.0 and most >= 0.0):
        raise ValueError(f"seconds must not be negative: {seconds!r} of {most!r}")
    text = f"{_duration(seconds)} of {_duration(most)} are over"
    if math.isinf(most):
        text = f"{_duration(seconds)} are over; there is no limit"
    return Criterion("time", seconds >= most, float(seconds), float(most), text)


def patience(n_calm: int, most: int) -> Criterion:
    """Whether there has been nothing to learn for so long that going on is in vain.

    Parameters
    ----------
    n_calm : int
        Rounds since the last that asked for a label.
    most : int
        After which a run ends though not every criterion is met: some cannot be, such as the
        coverage of a few structures that never change.

    Returns
    -------
    Criterion
        Met where nothing is left.

    Raises
    ------
    ValueError
        If a number is negative.
    """
    if n_calm < 0 or most < 0:
        raise ValueError(f"numbers of rounds must not be negative: {n_calm!r} of {most!r}")
    text = f"no label was wanted in {n_calm} rounds; {most} of them end the run"
    return Criterion("patience", n_calm >= most, float(n_calm), float(most), text)


def _duration(seconds: float) -> str:
    if not seconds < 6000.0:
        return f"{seconds / 3600.0:.1f} h"
    return f"{seconds:.0f} s" if seconds < 100.0 else f"{seconds / 60.0:.0f} min"


def combine(criteria: Sequence[Criterion], budgets: Sequence[Criterion] = ()) -> Decision:
    """Stop where every criterion is met, or a budget is used up.

    Parameters
    ----------
    criteria : Sequence[Criterion]
        That all have to be met; without any, only budgets end a run.
    budgets : Sequence[Criterion]
        Each of which ends it alone.

    Returns
    -------
    Decision
        With a sentence that says why, or what is missing.
    """
    every = (*criteria, *budgets)
    spent = [one for one in budgets if one.met]
    missing = [one for one in criteria if not one.met]
    if criteria and not missing:
        return Decision(True, "every criterion is met: " + _names(criteria), every)
    if spent:
        why = "a budget is used up: " + "; ".join(one.text for one in spent)
        if missing:
            why += f" (not met: {_names(missing)})"
        return Decision(True, why, every)
    why = f"not met yet: {_names(missing)}" if missing else "there is no criterion, and budget left"
    return Decision(False, why, every)


def _names(criteria: Sequence[Criterion]) -> str:
    return ", ".join(one.name for one in criteria)
