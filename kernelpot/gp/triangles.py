"""Streaming QR: the upper triangle of a least-squares problem, rows block by block.

Nothing here knows what the rows and columns mean (TSQR: Demmel et al., SIAM J. Sci. Comput. 34,
A206 (2012)); the triangle of the augmented matrix [A | y] is all that the posterior needs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from kernelpot.conventions import Float

__all__ = [
    "N_BUFFER",
    "PANEL",
    "RowReducer",
    "Triangle",
    "absorb",
    "empty_triangle",
    "join_triangles",
]


N_BUFFER = 2048
"""Rows that are collected before they are reduced."""
PANEL = 96
"""Columns of a panel of the QR factorisation: narrower ones are memory-bound."""


class Triangle(NamedTuple):
    """Upper triangle of the QR factorisation of [A | y], rows already divided by their noise.

    The sufficient statistic of a set of rows: A^T A, A^T y and y^T y are products of its columns.
    """

    R: Float  # (at most n_columns + 1, n_columns + 1), no row of zeros
    n_rows: int
    log_noise: float  # sum of log(sigma_r) over the rows


def empty_triangle(n_columns: int) -> Triangle:
    """The statistic of no rows.

    Parameters
    ----------
    n_columns : int
        Columns of A.

    Returns
    -------
    Triangle
        With a factor of no rows.
    """
    return Triangle(np.zeros((0, n_columns + 1)), 0, 0.0)


def absorb(R: Float, rows: Float, *, triangular: bool = False) -> Float:
    """Upper triangle of the QR factorisation of [R; rows], in place.

    LAPACK's tpqrt leaves the zeros of R alone: 2 b n^2 flops for b rows of n columns, whatever
    has been absorbed before.

    Parameters
    ----------
    R : Float
        Upper triangle, square, Fortran order; overwritten.
    rows : Float
        New rows, Fortran order; overwritten.
    triangular : bool
        Whether the rows are an upper trapezoid, whose zeros need no work.

    Returns
    -------
    Float
        The new triangle (the array that was given, where LAPACK could work in place).
    """
    if len(rows) == 0:
        return R
    n_panel = min(PANEL, len(R))
    R, _, _, info = lapack.dtpqrt(
        len(rows) if triangular else 0, n_panel, R, rows, overwrite_a=1, overwrite_b=1
    )
    if info != 0:
        raise ValueError(f"LAPACK's tpqrt refused its argument {-info}: NaN or a wrong shape")
    return R


def join_triangles(one: Triangle, other: Triangle, *, overwrite: bool = False) -> Triangle:
    """The statistic of two sets of rows together.

    Parameters
    ----------
    one : Triangle
        Of some rows.
    other : Triangle
        Of other rows, of the same inducing variables.
    overwrite : bool
        Whether the memory of the two may be used for the result.

    Returns
    -------
    Triangle
        Of all of them.
    """
    small, large = sorted((one, other), key=lambda triangle: len(triangle.R))
    n_rows, log_noise = one.n_rows + other.n_rows, one.log_noise + other.log_noise
    n_columns = large.R.shape[1]
    if len(small.R) + len(large.R) <= n_columns:
        rows = np.asfortranarray(np.concatenate([large.R, small.R]))
        return Triangle(_trapezoid(rows), n_rows, log_noise)
    if overwrite and len(large.R) == n_columns and large.R.flags.f_contiguous:
        R = large.R
    else:
        R = np.zeros((n_columns, n_columns), order="F")
        R[: len(large.R)] = large.R
    rows = small.R if overwrite else small.R.copy(order="F")
    R = absorb(R, np.asfortranarray(rows), triangular=len(rows) == n_columns)
    return Triangle(_without_empty_rows(R), n_rows, log_noise)


class RowReducer:
    """Collects rows in a buffer and absorbs them into a triangle whenever it is full.

    Memory is one triangle and the buffer, whatever the number of rows; the buffer alone, for as
    long as all rows fit into it and are fewer than the columns.

    Parameters
    ----------
    triangle : Triangle
        What is known already.
    n_buffer : int
        Rows to collect before a reduction.
    """

    def __init__(self, triangle: Triangle, n_buffer: int = N_BUFFER):
        n_columns = triangle.R.shape[1]
        self._R: Float | None = None
        if len(triangle.R):
            self._R = np.zeros((n_columns, n_columns), order="F")
            self._R[: len(triangle.R)] = triangle.R
        self._buffer = np.empty((n_buffer, n_columns), order="F")
        self._n_waiting = 0
        self._n_rows = triangle.n_rows
        self._log_noise = triangle.log_noise

    def add(self, A_rm: Float, y_r: Float, sigma_r: Float) -> None:
        """Append rows, dividing each by its noise.

        Parameters
        ----------
        A_rm : Float
            Rows of the design matrix; columns that are missing on the left are zero.
        y_r : Float
            Labels.
        sigma_r : Float
            Standard deviation of the noise of each label.
        """
        self._n_rows += len(y_r)
        self._log_noise += float(np.log(sigma_r).sum())
        done, first = 0, self._buffer.shape[1] - 1 - A_rm.shape[1]
        while done < len(y_r):
            if self._n_waiting == len(self._buffer):
                self._flush()
            n = min(len(y_r) - done, len(self._buffer) - self._n_waiting)
            new, old = slice(self._n_waiting, self._n_waiting + n), slice(done, done + n)
            self._buffer[new, :first] = 0.0
            np.divide(A_rm[old], sigma_r[old, None], out=self._buffer[new, first:-1])
            self._buffer[new, -1] = y_r[old] / sigma_r[old]
            self._n_waiting += n
            done += n

    def _flush(self) -> None:
        n_columns = self._buffer.shape[1]
        if self._R is None:
            self._R = np.zeros((n_columns, n_columns), order="F")
        rows = np.asfortranarray(self._buffer[: self._n_waiting])
        self._R = absorb(self._R, rows)
        self._n_waiting = 0

    def finish(self) -> Triangle:
        """Reduce what is left.

        Returns
        -------
        Triangle
            The statistic of all rows.
        """
        if self._R is None and self._n_waiting < self._buffer.shape[1]:
            R = _trapezoid(np.asfortranarray(self._buffer[: self._n_waiting]))
        else:
            self._flush()
            R = _without_empty_rows(self._R)
        return Triangle(R, self._n_rows, self._log_noise)


def _trapezoid(rows: Float) -> Float:
    """Upper trapezoid of the QR factorisation of rows that are fewer than the columns.

    Costs 2 b^2 n flops for b rows of n columns, where `absorb` would take 2 b n^2.
    """
    if len(rows) == 0:
        return np.zeros_like(rows)
    factor, _, _, info = lapack.dgeqrf(rows, overwrite_a=1)
    if info != 0:
        raise ValueError(f"LAPACK's geqrf refused its argument {-info}: NaN or a wrong shape")
    return _without_empty_rows(np.triu(factor))


def _without_empty_rows(R: Float) -> Float:
    """Rows that hold something: with fewer rows than columns most of the triangle is empty.

    Which rows stay empty depends on the columns that are zero, so the first ones are not simply
    the full ones. What is left is an upper trapezoid still.
    """
    size_r = np.zeros(len(R))
    for column_r in R.T:
        np.maximum(size_r, np.abs(column_r), out=size_r)
    kept_r = size_r > 1e-15 * size_r.max(initial=0.0)
    return R if kept_r.all() else R[kept_r]
