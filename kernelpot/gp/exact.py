"""Exact Gaussian process regression: every label is its own inducing variable.

The covariance of n labels is kept and factorised in half of its memory (`packed.py`).
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
from kernelpot.gp.packed import Packed

__all__ = ["Solution", "leave_out", "maximise_noise", "minimise_left_out", "solve"]


class Solution(NamedTuple):
    """Weights of the labels, and the evidence."""

    alpha_r: Float
    log_evidence: float
    data_fit: float  # -y^T (K + sigma^2)^-1 y / 2, the part that is not the Occam factor


def solve(
    K: Packed,
    y_r: Float,
    sigma_r: Float,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Solution:
    """Solve (K + sigma^2) alpha = y.

    Parameters
    ----------
    K : Packed
        Covariance of the labels; overwritten by the factor of K + sigma^2.
    y_r : Float
        Labels.
    sigma_r : Float
        Standard deviation of their noise.
    tell : Callable[[int, int], None]
        Told of the progress.

    Returns
    -------
    Solution
        alpha and the log density of y.
    """
    K.add_to_diagonal(sigma_r**2)
    K.factorise(tell)
    alpha_r = K.solve(y_r)
    log_det = 2.0 * float(np.sum(np.log(K.diagonal())))
    data_fit = -0.5 * float(y_r @ alpha_r)
    value = data_fit - 0.5 * (log_det + len(y_r) * math.log(2.0 * math.pi))
    return Solution(alpha_r, value, data_fit)


def leave_out(K: Packed, alpha_r: Float, counts: Sequence[int]) -> Float:
    """Errors of the labels of each block, predicted from all other blocks.

    With C = K + sigma^2 and alpha = C^-1 y, those of block s are ((C^-1)_ss)^-1 alpha_s: no fit is
    repeated (Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equation
    5.12, for blocks).

    Parameters
    ----------
    K : Packed
        The factor that `solve` left.
    alpha_r : Float
        The weights that it returned.
    counts : Sequence[int]
        Number of labels of each block, in their order.

    Returns
    -------
    Float
        Label less prediction, shape (n,).
    """
    return _left_out(K.inverse(), alpha_r, counts)


def _left_out(inverse_rr: Float, alpha_r: Float, counts: Sequence[int]) -> Float:
    errors_r = np.empty(len(alpha_r))
    first = 0
    for n in counts:
        block = slice(first, first + n)
        if n:
            errors_r[block] = np.linalg.solve(inverse_rr[block, block], alpha_r[block])
        first += n
    return errors_r


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
        Covariance of the labels in units of delta^2.
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
        L_rr, info = lapack.dpotrf(C_rr, lower=1, clean=0, overwrite_a=1)
        if info != 0:
            return 1e10
        z_r = scipy.linalg.solve_triangular(L_rr, y_r, lower=True, check_finite=False)
        value = 0.5 * float(z_r @ z_r) + float(np.sum(np.log(np.diag(L_rr))))
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


def minimise_left_out(
    K_rr: Float,
    y_r: Float,
    set_r: Int,
    sigma_r: Float,
    counts: Sequence[int],
    *,
    delta: float,
    noise_l: Float,
    free_l: np.ndarray,
    range_l: Sequence[tuple[float, float]],
    importance_l: Sequence[float],
    counted_r: np.ndarray,
) -> Float:
    """Noise factors of the least errors on blocks that are left out.

    Labels without noise have their largest evidence at none, where the fit passes through all of
    them; but where the kernel is too rough, or sees things too little alike, the best predictions
    are those of a fit that does not. Errors of each block come from the inverse (`leave_out`).

    Parameters
    ----------
    K_rr : Float
        Covariance of the labels in units of delta^2.
    y_r : Float
        Labels.
    set_r : Int
        Set that each label belongs to.
    sigma_r : Float
        Assumed noise of each label.
    counts : Sequence[int]
        Number of labels of each block, in their order.
    delta : float
        Prior amplitude.
    noise_l : Float
        Factor on the assumed noise of each set, from which the search starts.
    free_l : np.ndarray
        Which of them are to be found.
    range_l : Sequence[tuple[float, float]]
        Least and largest factor of each set.
    importance_l : Sequence[float]
        Weight of the logarithm of each set's error.
    counted_r : np.ndarray
        Which labels' errors count.

    Returns
    -------
    Float
        One factor for each set.
    """
    low_l, high_l = np.array(range_l).T
    parts = [(importance_l[k], counted_r & (set_r == k)) for k in np.unique(set_r)]
    parts = [(weight, mine) for weight, mine in parts if weight > 0.0 and mine.any()]

    def factors(theta: Float) -> Float:
        factor_l = np.array(noise_l, dtype=float)
        factor_l[free_l] = np.clip(np.exp(theta), low_l[free_l], high_l[free_l])
        return factor_l

    def loss(theta: Float) -> float:
        C_rr = delta**2 * K_rr
        np.einsum("rr->r", C_rr)[:] += (factors(theta)[set_r] * sigma_r) ** 2
        # Symmetric, so the transpose of the rows is the matrix in the order of LAPACK.
        upper, info = lapack.dpotrf(C_rr.T, lower=0, clean=0, overwrite_a=1)
        if info != 0:
            return 1e10
        alpha_r, _ = lapack.dpotrs(upper, y_r, lower=0)
        upper, _ = lapack.dpotri(upper, lower=0, overwrite_c=1)
        inverse_rr = np.triu(upper) + np.triu(upper, 1).T
        errors_r = _left_out(inverse_rr, alpha_r, counts)
        return sum(
            0.5 * weight * math.log(np.mean(errors_r[mine] ** 2) + 1e-300) for weight, mine in parts
        )

    start = np.log(np.clip(noise_l[free_l], low_l[free_l], high_l[free_l]))
    # Evidence errs towards less noise.
    simplex = np.vstack([start, start + 2.5 * np.eye(len(start))])
    result = minimize(
        loss,
        start,
        method="Nelder-Mead",
        options={
            "xatol": 0.2,
            "fatol": 1e-3,
            "maxfev": 25 * len(start),
            "initial_simplex": simplex,
        },
    )
    return factors(result.x)
