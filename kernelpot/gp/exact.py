"""Exact Gaussian process regression: every label is its own inducing variable.

The covariance of n labels is kept and factorised in half of its memory (`packed.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float
from kernelpot.gp.packed import Packed

__all__ = ["Solution", "leave_out", "solve"]


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
            lower_ss = np.tril(inverse_rr[block, block])
            inverse_ss = lower_ss + np.tril(lower_ss, -1).T
            errors_r[block] = np.linalg.solve(inverse_ss, alpha_r[block])
        first += n
    return errors_r
