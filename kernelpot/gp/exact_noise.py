"""Amplitude and noise of exact regression: by the evidence, and by errors on what is left out.

The evidence of some labels says what their own density makes likely; with a kernel that is not that
of the data, it may take noise for none that predictions need as a regulariser, or the other way
round. What predicts others best is asked of the errors on blocks left out, which are closed
(`exact.leave_out`); where they do not depend on the noise, that of the evidence stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack
from scipy.optimize import minimize

from kernelpot.conventions import Float, Int
from kernelpot.gp.exact import leave_out, solve
from kernelpot.gp.packed import Packed

__all__ = ["Labels", "extrapolate", "left_out_noise", "maximise_noise"]

_GAIN = 1e-3
"""Least gain of the mean logarithm of the errors for another noise."""


class Labels(NamedTuple):
    """Labels in blocks that are left out in turn."""

    y_r: Float
    sigma_r: Float  # assumed noise
    set_r: Int  # set that each label belongs to
    judged_r: Float  # 1 where its error counts, 0 where it does not
    counts: Sequence[int]  # labels of each block, in their order


def maximise_noise(
    K_rr: Float,
    y_r: Float,
    set_r: Int,
    sigma_r: Float,
    *,
    delta: float | None,
    noise_l: Sequence[float | None],
    least_l: Sequence[float],
) -> tuple[float, Float]:
    """Prior amplitude and noise factors of the largest evidence.

    Parameters
    ----------
    K_rr : Float
        Covariance of the labels in units of delta^2; its lower triangle counts.
    y_r : Float
        Labels.
    set_r : Int
        Set that each label belongs to.
    sigma_r : Float
        Assumed noise of each label.
    delta : float | None
        Prior amplitude; None to find it.
    noise_l : Sequence[float | None]
        Factor on the assumed noise of each set; None to find it.
    least_l : Sequence[float]
        Least factor of each set.

    Returns
    -------
    tuple[float, Float]
        delta, and one factor for each set.
    """
    free_l = np.array([factor is None for factor in noise_l], dtype=bool)
    known_l = np.array([1.0 if factor is None else factor for factor in noise_l])
    n = len(y_r)

    def parts(theta: Float) -> tuple[float, Float]:
        factor_l = known_l.copy()
        factor_l[free_l] = np.maximum(np.exp(theta[:-1]), np.asarray(least_l)[free_l])
        return (math.exp(theta[-1]) if delta is None else delta), factor_l

    def loss(theta: Float) -> float:
        amplitude, factor_l = parts(theta)
        C_rr = amplitude**2 * K_rr
        np.einsum("rr->r", C_rr)[:] += (factor_l[set_r] * sigma_r) ** 2
        # Upper in columns is lower in rows: no copy is made.
        U_rr, info = lapack.dpotrf(C_rr.T, lower=0, clean=0, overwrite_a=1)
        if info != 0:
            return 1e10
        z_r = scipy.linalg.solve_triangular(U_rr, y_r, trans=1, check_finite=False)
        value = 0.5 * float(z_r @ z_r) + float(np.sum(np.log(np.diag(U_rr))))
        return value / n

    start = np.zeros(int(free_l.sum()) + 1)
    start[:-1] = math.log(0.1)
    result = minimize(
        loss,
        start,
        method="Nelder-Mead",
        options={
            "xatol": 0.1,
            "fatol": 1e-4,
            "initial_simplex": np.vstack([start, start + 2.0 * np.eye(len(start))]),
        },
    )
    return parts(result.x)


def left_out_noise(
    K: Packed,
    labels: Labels,
    *,
    delta: float,
    noise_l: Float,
    free_l: Sequence[bool],
    least_l: Sequence[float],
    importance_l: Sequence[float],
    step: float,
    patience: int,
) -> Float:
    """Noise factors of the least errors on blocks left out, near given ones.

    One set of labels after the other, the most important first: steps up and down for as long as
    errors fall.

    Parameters
    ----------
    K : Packed
        Covariance of the labels in units of delta^2; stays as it is.
    labels : Labels
        The labels.
    delta : float
        Prior amplitude.
    noise_l : Float
        Factor on the assumed noise of each set to start from.
    free_l : Sequence[bool]
        Whether it may be changed.
    least_l : Sequence[float]
        Its least value.
    importance_l : Sequence[float]
        How much a per cent of error of each set counts.
    step : float
        Factor by which it is changed.
    patience : int
        Steps in a row without less error after which a direction is given up.

    Returns
    -------
    Float
        One factor for each set.
    """
    n_sets = len(noise_l)
    n_l = np.bincount(labels.set_r, labels.judged_r, n_sets)
    weight_l = np.where(n_l > 0, importance_l, 0.0)
    if not weight_l.any():
        return np.array(noise_l)

    def score(log_l: Float) -> float:
        part = K.part(np.arange(K.n))
        noise_r = np.exp(log_l)[labels.set_r] * labels.sigma_r
        try:
            solution = solve(part, labels.y_r / delta, noise_r / delta)
        except ValueError:  # singular to rounding
            return math.inf
        error_r = leave_out(part, solution.alpha_r, labels.counts)
        square_l = np.bincount(labels.set_r, labels.judged_r * error_r**2, n_sets)
        log_mse_l = np.log(np.maximum(square_l / np.maximum(n_l, 1.0), 1e-300))
        return 0.5 * float(weight_l @ log_mse_l) / float(weight_l.sum())

    log_l = np.log(noise_l)
    for k in np.argsort(-weight_l, kind="stable"):
        if free_l[k] and weight_l[k]:
            log_l[k] = _along(score, log_l, k, math.log(least_l[k]), math.log(step), patience)
    return np.exp(log_l)


def _along(
    score: Callable[[Float], float],
    start_l: Float,
    k: int,
    least: float,
    step: float,
    patience: int,
) -> float:
    """Entry k of the least score: steps both ways, then the vertex of a parabola."""

    def at(n_steps: int) -> float:
        log_l = start_l.copy()
        log_l[k] += n_steps * step
        return score(log_l)

    found = {0: at(0)}
    for direction in (1, -1):
        n_steps, n_worse = direction, 0
        while n_worse < patience and start_l[k] + n_steps * step >= least:
            value = at(n_steps)
            n_worse = 0 if value < min(found.values()) else n_worse + 1
            found[n_steps] = value
            n_steps += direction
    best = min(found, key=found.__getitem__)
    if not found[0] > found[best] + _GAIN:
        best = 0
    left, right = (found.get(n, math.inf) for n in (best - 1, best + 1))
    bend = left - 2.0 * found[best] + right
    shift = 0.5 * (left - right) / bend if _GAIN < bend < math.inf else 0.0
    return float(start_l[k] + (best + np.clip(shift, -0.5, 0.5)) * step)


def extrapolate(
    n_few: int, few_l: Float, n_more: int, more_l: Float, n_all: int, least_l: Sequence[float]
) -> Float:
    """Noise factors of more labels than those from which they were found, by a power law.

    What predicts best falls with the number of labels where it stands for what the kernel does not
    know, and not at all where the labels are noisy.

    Parameters
    ----------
    n_few : int
        A number of labels.
    few_l : Float
        Their noise factors.
    n_more : int
        A larger number.
    more_l : Float
        Their noise factors.
    n_all : int
        The number that is asked for.
    least_l : Sequence[float]
        Least factors.

    Returns
    -------
    Float
        Noise factors; the exponent is kept between -1 and 0.
    """
    slope_l = np.clip(np.log(more_l / few_l) / math.log(n_more / n_few), -1.0, 0.0)
    return np.maximum(more_l * (n_all / n_more) ** slope_l, least_l)
