"""Rows of a tall matrix that span the largest volume: the active set of D-optimality."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from kernelpot.conventions import Float, Int, as_int

__all__ = ["TOLERANCE", "coefficients", "maxvol"]

TOLERANCE = 1e-3
"""By how much coefficients may exceed one."""


def maxvol(X_nk: Float, tolerance: float = TOLERANCE) -> Int:
    """Rows of which all others are combinations with coefficients of at most one.

    Goreinov, Oseledets, Savostyanov, Tyrtyshnikov and Zamarashkin, in Matrix Methods: Theory,
    Algorithms and Applications, World Scientific (2010), p. 247: from the rows of a pivoted QR
    factorisation, the row with the largest coefficient takes the place of the one to which this
    belongs, as long as it is above one. Each exchange multiplies the volume by that coefficient, so
    the exchanges come to an end.

    Parameters
    ----------
    X_nk : Float
        Shape (n, k) with n >= k, of full rank.
    tolerance : float
        By how much coefficients may exceed one, above 0.

    Returns
    -------
    Int
        Indices of k rows.

    Raises
    ------
    ValueError
        If there are fewer rows than columns, or the rank is smaller than that.
    """
    n, k = X_nk.shape
    if n < k:
        raise ValueError(f"{n} rows cannot span {k} dimensions: give at least {k}")
    R, pivots = scipy.linalg.qr(X_nk.T, mode="r", pivoting=True)
    diagonal_k = np.abs(np.diag(R))
    if not diagonal_k[-1] > 1e-13 * diagonal_k[0]:
        raise ValueError(
            f"the rows span {np.count_nonzero(diagonal_k > 1e-13 * diagonal_k[0])} of {k} "
            "dimensions: take fewer columns, those of the largest principal axes"
        )
    active_k = as_int(pivots[:k])
    while True:
        # Anew, because the updates gather rounding; when nothing is left to do, this was exact.
        B_nk = coefficients(X_nk, X_nk[active_k])
        if not _exchange(B_nk, active_k, tolerance):
            return active_k


def coefficients(X_nk: Float, active_kk: Float) -> Float:
    """Coefficients with which rows are combinations of those of the active set.

    Parameters
    ----------
    X_nk : Float
        Shape (n, k).
    active_kk : Float
        Shape (k, k), the active rows.

    Returns
    -------
    Float
        ``B`` with ``B @ active = X``, shape (n, k); the largest |coefficient| of a row is its
        extrapolation grade.
    """
    return scipy.linalg.solve(active_kk.T, X_nk.T, check_finite=False).T


def _exchange(B_nk: Float, active_k: Int, tolerance: float) -> bool:
    """Exchange rows until no coefficient is above one; whether any was."""
    changed = False
    while True:
        n, j = np.unravel_index(np.argmax(np.abs(B_nk)), B_nk.shape)
        pivot = B_nk[n, j]
        if np.abs(pivot) <= 1.0 + tolerance:
            return changed
        step_k = B_nk[n].copy()
        step_k[j] -= 1.0
        B_nk -= np.outer(B_nk[:, j], step_k / pivot)
        active_k[j] = n
        changed = True
