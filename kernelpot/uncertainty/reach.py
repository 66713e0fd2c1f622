"""How far vectors are from a sample of others: three measures, and their limits. Arrays only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

from kernelpot.conventions import Float, Int
from kernelpot.uncertainty.maxvol import maxvol

__all__ = ["FEATURE_MEASURES", "Reach", "reach_of"]

FEATURE_MEASURES = ("mahalanobis", "grade", "distance")
"""In the order of the columns of `Reach.measures`."""

_QUANTILE = 0.99
"""Of the training environments, each compared with all others. The highest of a few hundred
environments is often an isolated atom or a dimer, by which nothing else should be measured."""
_RIDGE = 1e-6
"""Variance that every direction has at least, in units of the sum of all variances. (Silicon: the
median of cells compressed by 15 per cent of their length is 2.5 times the limit; 1.1 with 1e-4.)"""
_SHARE = 1e-7
"""Share of the second moment outside of the axes on which the grade is computed."""
_PER_AXIS = 4
"""Training environments for each of these axes at least: with fewer, environments like those of
the training would often be above one."""
_SMALLEST = (1.0, 1.0, 1e-6)
"""Limits are not below these: one standard deviation, the active set itself, rounding."""


class Reach(NamedTuple):
    """What vectors are compared with: a sample, and what follows from it."""

    x_eq: Float  # the sample
    mean_q: Float
    ridge: float  # added to the covariance
    W_kq: Float  # 1 / ridge less the products with these rows is the inverse of the covariance
    grade_qk: Float  # features to coefficients on the active set
    active_k: Int  # the active set, among the sample
    limits: Float  # of the three measures of features

    def measures(self, x_nq: Float) -> Float:
        """How far vectors are from the sample.

        Parameters
        ----------
        x_nq : Float
            Unit vectors, or such as are shorter by what their axes leave out.

        Returns
        -------
        Float
            Shape (n, 3): `FEATURE_MEASURES`.
        """
        d_nq = x_nq - self.mean_q
        inside_n = np.sum((d_nq @ self.W_kq.T) ** 2, axis=1)
        square_n = np.sum(d_nq**2, axis=1) / self.ridge - inside_n
        grade_n = np.abs(x_nq @ self.grade_qk).max(axis=1)
        nearest_n = np.max(x_nq @ self.x_eq.T, axis=1)
        return np.stack([_root(square_n), grade_n, _root(2.0 - 2.0 * nearest_n)], axis=1)


def reach_of(x_eq: Float) -> Reach:
    """What follows from a sample of vectors.

    Parameters
    ----------
    x_eq : Float
        At least one.

    Returns
    -------
    Reach
        With limits such that the sample, and vectors like it, are within them.
    """
    n = len(x_eq)
    mean_q = x_eq.mean(axis=0)
    value_k, axes_kq = _principal_axes(x_eq - mean_q)
    # A sample of equal environments has no variance: any other is then far away.
    ridge = _RIDGE * (float(value_k.sum()) / n + _RIDGE)
    weight_k = 1.0 / ridge - 1.0 / (value_k / n + ridge)
    W_kq = np.sqrt(weight_k)[:, None] * axes_kq

    value_k, axes_kq = _principal_axes(x_eq)
    left_k = 1.0 - np.cumsum(value_k) / value_k.sum()
    n_axes = min(int(np.count_nonzero(left_k > _SHARE)) + 1, max(1, n // _PER_AXIS), len(value_k))
    axes_kq = axes_kq[:n_axes]
    active_k = maxvol(x_eq @ axes_kq.T)
    grade_qk = axes_kq.T @ scipy.linalg.inv(x_eq[active_k] @ axes_kq.T)

    reach = Reach(x_eq, mean_q, ridge, W_kq, grade_qk, active_k, np.ones(3))
    return reach._replace(limits=_limits(reach))


def _limits(reach: Reach) -> Float:
    """Limits such that the sample itself, and environments like it, are within them.

    Each measure's largest value on the sample, and, of distances, where almost all are that are
    compared with all others only.
    """
    x_eq, n = reach.x_eq, len(reach.x_eq)
    measured_ek = reach.measures(x_eq)
    limits = np.maximum(measured_ek.max(axis=0), _SMALLEST)
    if n > 1:
        # Without x_e the mean moves by (x_e - m) / (n - 1), and the scatter loses n / (n - 1) times
        # the square: Sherman and Morrison's formula gives the distance.
        square_e = measured_ek[:, 0] ** 2
        alone_e = _root(square_e / np.maximum(1.0 - square_e / (n - 1), 1e-12)) * n / (n - 1)
        products_ee = x_eq @ x_eq.T
        np.fill_diagonal(products_ee, -np.inf)
        nearest_e = _root(2.0 - 2.0 * products_ee.max(axis=1))
        limits[0] = max(limits[0], np.quantile(alone_e, _QUANTILE))
        limits[2] = max(limits[2], np.quantile(nearest_e, _QUANTILE))
    return limits


def _principal_axes(x_eq: Float) -> tuple[Float, Float]:
    """Squares of the singular values, descending, and right singular vectors; none of no length."""
    if len(x_eq) < x_eq.shape[1]:
        value_k, left_ek = scipy.linalg.eigh(x_eq @ x_eq.T)
    else:
        value_k, axes_qk = scipy.linalg.eigh(x_eq.T @ x_eq)
    kept = np.flatnonzero(value_k > 1e-14 * max(value_k[-1], 1e-300))[::-1]
    value_k = value_k[kept]
    if len(x_eq) < x_eq.shape[1]:
        axes_kq = (x_eq.T @ (left_ek[:, kept] / np.sqrt(value_k))).T
    else:
        axes_kq = axes_qk[:, kept].T
    return value_k, np.ascontiguousarray(axes_kq)


def _root(square_n: Float) -> Float:
    return np.sqrt(np.maximum(square_n, 0.0))
