"""Batches that lower the mean variance of what is wanted. Pure functions of arrays.

The logarithm of the determinant (`acquisition`) picks what is least certain: the edges of what
was explored. Where errors on typical structures count, as for averages over dynamics, the better
pick is what tells most about those (Cohn, Ghahramani and Jordan, J. Artif. Intell. Res. 4, 129
(1996)).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from kernelpot._machine import one_blas_thread
from kernelpot.active.batches import (
    ALIKE,
    Beside,
    Picked,
    checked_covariance,
    information,
    likeness,
    noise_of,
    weights_beside,
    whitened,
)
from kernelpot.conventions import Float, as_float

__all__ = ["pick_for_mean"]

_MOST = 4.0
"""A target counts for no more than with so many times the median variance: one that is far off does
not decide alone what the batch is good for."""


def pick_for_mean(
    covariance_rr: ArrayLike,
    structure_r: ArrayLike,
    target_s: ArrayLike,
    noise: ArrayLike,
    n: int,
    *,
    beside: Beside | None = None,
    alike: float = ALIKE,
) -> Picked:
    """Pick a batch by how far its labels lower the mean variance of targets.

    The score of a structure is the part of the targets' variance (mean over a target's numbers,
    sum over targets) that its labels would take away after those of the picks before it, plus
    violations, over the cost.

    Parameters
    ----------
    covariance_rr : ArrayLike
        Posterior covariances of the numbers of all structures, structure by structure.
    structure_r : ArrayLike
        Structure of each number, ascending from 0.
    target_s : ArrayLike
        Of each structure whether it is a target. Targets may be picked as all others.
    noise : ArrayLike
        Standard deviation of the noise of the labels, one or one per number, in their units.
    n : int
        How many at most.
    beside : Beside | None
        Violations and costs; relevance does not count here.
    alike : float
        As of `pick_by_covariance`: copies of a pick are not picked.

    Returns
    -------
    Picked
        The best first; scores are parts of the variance over costs.

    Raises
    ------
    ValueError
        If arrays do not fit together, there is no target, a number is not finite, or a noise or
        cost is not positive.
    """
    matrix_rr, first_s = checked_covariance(covariance_rr, structure_r)
    n_structures = len(first_s) - 1
    target_s = np.asarray(target_s, dtype=bool)
    if target_s.shape != (n_structures,) or (n_structures and not target_s.any()):
        raise ValueError(
            f"target_s must say of each of the {n_structures} structures whether it is a target,"
            f" and name one at least; got shape {target_s.shape}, {int(target_s.sum())} targets"
        )
    if n < 0 or not 0.0 < alike <= 1.0:
        raise ValueError(f"n must not be negative and alike in (0, 1]; got {n!r} and {alike!r}")
    noise_r = noise_of(noise, len(matrix_rr))
    bonus_s, _, cost_s = weights_beside((beside or Beside())._replace(gamma=1.0), n_structures)
    numbers = [slice(*first_s[s : s + 2]) for s in range(n_structures)]
    weight_r = _weights(np.diag(matrix_rr), numbers, target_s)
    C_rr = matrix_rr / np.outer(noise_r, noise_r)
    root_r = np.sqrt(weight_r) * noise_r
    size_s = np.array([np.linalg.norm(C_rr[mine, mine]) for mine in numbers])
    whole_rr = C_rr.copy()  # by which copies are known
    open_s = np.diff(first_s) > 0
    picks: list[int] = []
    told: list[float] = []
    scores: list[float] = []
    with one_blas_thread():
        while len(picks) < min(n, n_structures):
            rows = {s: _rows(C_rr, numbers[s]) for s in np.flatnonzero(open_s).tolist()}
            score_s = np.full(n_structures, -np.inf)
            for s, W_br in rows.items():
                score_s[s] = (float(np.sum((W_br * root_r) ** 2)) + bonus_s[s]) / cost_s[s]
            if not score_s.max(initial=-np.inf) > 0.0:
                return Picked.of(picks, told, scores, "no other structure tells anything")
            pick = int(np.argmax(score_s))
            picks.append(pick)
            told.append(information(C_rr[numbers[pick], numbers[pick]]))
            scores.append(float(score_s[pick]))
            C_rr -= rows[pick].T @ rows[pick]
            open_s[likeness(whole_rr[numbers[pick]], first_s, size_s, pick) >= alike] = False
            open_s[pick] = False
    return Picked.of(picks, told, scores, "the batch is full")


def _rows(C_rr: Float, mine: slice) -> Float:
    """What labels of a structure take from all variances, as the roots of it."""
    return whitened(C_rr[mine, mine] + np.eye(mine.stop - mine.start), C_rr[mine])


def _weights(variance_r: Float, numbers: list[slice], target_s: Float) -> Float:
    """Of the numbers of all structures; those of all targets' variances sum to one at most."""
    mean_s = as_float([variance_r[one].mean() if one.stop > one.start else 0.0 for one in numbers])
    mean_s = np.maximum(mean_s, 0.0)
    most = _MOST * float(np.median(mean_s[target_s]))
    weight_r = np.zeros(len(variance_r))
    for s in np.flatnonzero(target_s & (mean_s > 0.0)):
        counted = min(mean_s[s], most) / mean_s[s] if most > 0.0 else 1.0
        weight_r[numbers[s]] = counted / (numbers[s].stop - numbers[s].start)
    total = float(weight_r @ np.maximum(variance_r, 0.0))
    return weight_r / total if total > 0.0 else weight_r
