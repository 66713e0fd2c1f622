"""Exact Gaussian process regression: every label is its own inducing variable.

The covariance of n labels is kept in rectangular full packed format, n (n + 1) / 2 numbers
(Gustavson, Wasniewski, Dongarra and Langou, ACM Trans. Math. Softw. 37, 18 (2010)), and factorised
in place by LAPACK's pftrf at the speed of matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack
from scipy.optimize import minimize

from kernelpot.conventions import Float, Int

__all__ = ["Packed", "Solution", "leave_out", "maximise_noise", "solve"]


class Packed:
    """The lower triangle of a symmetric matrix in half the memory.

    With k = n / 2 for even n (the order is rounded up to even, the last row of an odd one is that
    of the unit matrix): the columns 0..k-1 of the lower triangle, one row down, and above them the
    triangle of the columns k..n-1, transposed.

    Parameters
    ----------
    n : int
        Order of the matrix.
    """

    def __init__(self, n: int):
        self.n = n
        self._even = n + n % 2
        self._half = self._even // 2
        # Fortran order, as LAPACK reads it: one column after the other.
        self._data = np.zeros((self._even + 1, self._half), order="F")
        if n % 2:
            self.add_to_diagonal(np.ones(1), first=n)

    def set_rows(self, first: int, rows: Float) -> None:
        """Write rows of the lower triangle.

        Parameters
        ----------
        first : int
            Index of the first of them.
        rows : Float
            Shape (number of rows, first + number of rows) at least; what lies above the diagonal
            is not looked at.
        """
        half = self._half
        for k, row in enumerate(rows):
            i = first + k
            left = min(i + 1, half)
            self._data[i + 1, :left] = row[:left]
            if i >= half:
                self._data[: i - half + 1, i - half] = row[half : i + 1]

    def add_to_diagonal(self, values: Float, first: int = 0) -> None:
        """Add to entries of the diagonal.

        Parameters
        ----------
        values : Float
            What to add.
        first : int
            Index of the first entry concerned.
        """
        i = np.arange(first, first + len(values))
        left = i < self._half
        self._data[i[left] + 1, i[left]] += values[left]
        rest = i[~left] - self._half
        self._data[rest, rest] += values[~left]

    def diagonal(self) -> Float:
        """The diagonal.

        Returns
        -------
        Float
            Shape (n,).
        """
        left = self._data[np.arange(1, self._half + 1), np.arange(self._half)]
        rest = np.arange(self._half)
        return np.concatenate([left, self._data[rest, rest]])[: self.n]

    def factorise(self) -> None:
        """Replace the matrix by its Cholesky factor.

        Raises
        ------
        ValueError
            If it is not positive definite.
        """
        flat = self._data.reshape(-1, order="F")
        factor, info = lapack.dpftrf(self._even, flat, transr="N", uplo="L", overwrite_a=1)
        if info != 0:
            raise ValueError(
                f"the covariance of the labels is singular to rounding (row {info}): give a larger "
                "sigma_forces or sigma_energy, or leave out structures that stand there twice"
            )
        if factor.base is not self._data and factor is not flat:
            self._data = factor.reshape(self._data.shape, order="F")

    def solve(self, y_r: Float) -> Float:
        """Solve with the matrix, once it is factorised.

        Parameters
        ----------
        y_r : Float
            Right-hand side, shape (n,).

        Returns
        -------
        Float
            Shape (n,).
        """
        right = np.zeros((self._even, 1), order="F")
        right[: self.n, 0] = y_r
        flat = self._data.reshape(-1, order="F")
        out, _ = lapack.dpftrs(self._even, flat, right, transr="N", uplo="L")
        return out[: self.n, 0]

    def invert(self) -> None:
        """Replace the Cholesky factor by the inverse of the matrix."""
        flat = self._data.reshape(-1, order="F")
        inverse, _ = lapack.dpftri(self._even, flat, transr="N", uplo="L", overwrite_a=1)
        if inverse.base is not self._data and inverse is not flat:
            self._data = inverse.reshape(self._data.shape, order="F")

    def block(self, first: int, n: int) -> Float:
        """A square block on the diagonal.

        Parameters
        ----------
        first : int
            Its first row.
        n : int
            Its order.

        Returns
        -------
        Float
            Symmetric, shape (n, n).
        """
        i, j = (index + first for index in np.tril_indices(n))
        left = j < self._half
        out = np.zeros((n, n))
        values = np.empty(len(i))
        values[left] = self._data[i[left] + 1, j[left]]
        values[~left] = self._data[j[~left] - self._half, i[~left] - self._half]
        out[i - first, j - first] = values
        out[j - first, i - first] = values
        return out


class Solution(NamedTuple):
    """Weights of the labels, and the evidence."""

    alpha_r: Float
    log_evidence: float
    data_fit: float  # -y^T (K + sigma^2)^-1 y / 2, the part that is not the Occam factor


def solve(K: Packed, y_r: Float, sigma_r: Float) -> Solution:
    """Solve (K + sigma^2) alpha = y.

    Parameters
    ----------
    K : Packed
        Covariance of the labels; overwritten by the factor of K + sigma^2.
    y_r : Float
        Labels.
    sigma_r : Float
        Standard deviation of their noise.

    Returns
    -------
    Solution
        alpha and the log density of y.
    """
    K.add_to_diagonal(sigma_r**2)
    K.factorise()
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
        The factor that `solve` left; overwritten by the inverse.
    alpha_r : Float
        The weights that it returned.
    counts : Sequence[int]
        Number of labels of each block, in their order.

    Returns
    -------
    Float
        Label less prediction, shape (n,).
    """
    K.invert()
    errors_r = np.empty(len(alpha_r))
    first = 0
    for n in counts:
        block = slice(first, first + n)
        if n:
            errors_r[block] = np.linalg.solve(K.block(first, n), alpha_r[block])
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
