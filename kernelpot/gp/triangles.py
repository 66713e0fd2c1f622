"""Streaming QR: the upper triangle of a least-squares problem, rows block by block.

Nothing here knows what the rows and columns mean (TSQR: Demmel et al., SIAM J. Sci. Comput. 34,
A206 (2012)); the triangle of the augmented matrix [A | y] is all that the posterior needs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float
from kernelpot.gp.householder import absorb

__all__ = [
    "N_BUFFER",
    "RowReducer",
    "Triangle",
    "empty_triangle",
    "join_triangles",
    "without_empty_rows",
]


N_BUFFER = 2048
"""Rows that are collected before they are reduced."""


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
    in_place = len(large.R) == large.R.shape[1]
    R = large.R if overwrite or not in_place else large.R.copy(order="F")
    rows = small.R if overwrite else small.R.copy(order="F")
    R = absorb(np.asfortranarray(R), np.asfortranarray(rows), triangular=True)
    return Triangle(without_empty_rows(R), n_rows, log_noise)


class RowReducer:
    """Collects rows in a buffer and absorbs them into a triangle whenever it is full.

    Memory is one triangle and the buffer, whatever the number of rows.

    Parameters
    ----------
    triangle : Triangle
        What is known already.
    n_buffer : int
        Rows to collect before a reduction.
    """

    def __init__(self, triangle: Triangle, n_buffer: int = N_BUFFER):
        n_columns = triangle.R.shape[1]
        self._R = triangle.R.copy(order="F")
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
        self._R = absorb(self._R, self._buffer[: self._n_waiting])
        self._n_waiting = 0

    def finish(self) -> Triangle:
        """Reduce what is left.

        Returns
        -------
        Triangle
            The statistic of all rows.
        """
        self._flush()
        return Triangle(without_empty_rows(self._R), self._n_rows, self._log_noise)


def without_empty_rows(R: Float) -> Float:
    """Rows that hold something: with fewer rows than columns most of the triangle is empty.

    Which rows stay empty depends on the columns that are zero, so the first ones are not simply
    the full ones.

    Parameters
    ----------
    R : Float
        Upper trapezoid, Fortran order.

    Returns
    -------
    Float
        An upper trapezoid still; the one given where no row is empty.
    """
    largest = max(R.max(initial=0.0), -R.min(initial=0.0))
    diagonal_r = np.abs(np.diagonal(R))
    if len(diagonal_r) == len(R) and diagonal_r.min(initial=np.inf) > 1e-15 * largest:
        return R  # as it mostly is where there are as many rows as columns
    size_r = np.zeros(len(R))
    for column_r in R.T:
        np.maximum(size_r, np.abs(column_r), out=size_r)
    kept_r = size_r > 1e-15 * largest
    return R if kept_r.all() else np.compress(kept_r, R.T, axis=1).T  # in Fortran order still
