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

__all__ = ["Solution", "leave_out", "maximise_noise", "solve"]


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
    inverse_rr = K.inverse()
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
