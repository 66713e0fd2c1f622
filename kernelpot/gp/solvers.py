"""Linear algebra of the sparse posterior: whitening, streaming QR, triangular solves.

Nothing here knows what the rows and columns mean. A least-squares problem is reduced to the
upper triangle of its QR factorisation, block by block (TSQR: Demmel et al., SIAM J. Sci. Comput.
34, A206 (2012)); the triangle of the augmented matrix [A | y] is all that the posterior needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from kernelpot.conventions import Float, Int, as_float, as_int

# ------------------------------------------------------------------------------ whitening


class WhiteningBlock(NamedTuple):
    """K = L L^T on the pivots of one block: the numerically independent variables.

    Variables that are not pivots are, to the tolerance, linear combinations of those that are;
    their weights are zero.
    """

    pivots_k: Int  # raw columns, in the order of elimination
    columns: slice  # whitened columns
    L_kk: Float  # lower triangle


class Whitening(NamedTuple):
    """Whitening of a block-diagonal prior covariance: Phi = K L^-T block by block."""

    blocks: tuple[WhiteningBlock, ...]
    n_raw: int
    n_whitened: int

    def whiten(self, K_rm: Float) -> Float:
        """Solve Phi L^T = K on the pivots.

        Parameters
        ----------
        K_rm : Float
            Covariances with the raw variables.

        Returns
        -------
        Float
            Shape (n_rows, n_whitened).
        """
        phi_rk = np.empty((len(K_rm), self.n_whitened))
        for block in self.blocks:
            phi_rk[:, block.columns] = scipy.linalg.solve_triangular(
                block.L_kk, K_rm[:, block.pivots_k].T, lower=True, check_finite=False
            ).T
        return phi_rk

    def leading(self, n_columns: int, whole_b: Sequence[bool] | bool = False) -> Whitening:
        """The whitening of the first pivots of each block: a smaller model of its own.

        The pivots come in the order of what they explain, so that the first ones do most.

        Parameters
        ----------
        n_columns : int
            Whitened columns to keep in all, shared out in proportion to the blocks' ranks.
        whole_b : Sequence[bool] | bool
            Which blocks stay whole; the others share what these leave, a quarter at least.

        Returns
        -------
        Whitening
            Of the same raw variables; itself where it has no more columns than that.
        """
        if self.n_whitened <= n_columns:
            return self
        rank_b = np.array([len(block.pivots_k) for block in self.blocks])
        n_whole = int(np.sum(rank_b, where=whole_b))
        n_shared = max(n_columns - n_whole, n_columns // 4)
        share_b = -(-rank_b * n_shared // max(1, self.n_whitened - n_whole))
        n_b = np.where(whole_b, rank_b, np.minimum(rank_b, share_b)).tolist()
        blocks, first = [], 0
        for block, n in zip(self.blocks, n_b, strict=True):
            L_kk = np.asfortranarray(block.L_kk[:n, :n])
            blocks.append(WhiteningBlock(block.pivots_k[:n], slice(first, first + n), L_kk))
            first += n
        return Whitening(tuple(blocks), self.n_raw, first)

    def spread(self, values_b: Sequence[float]) -> Float:
        """One value per block, repeated for each of its whitened columns.

        Parameters
        ----------
        values_b : Sequence[float]
            As many as there are blocks.

        Returns
        -------
        Float
            Shape (n_whitened,).
        """
        counts = [len(block.pivots_k) for block in self.blocks]
        return np.repeat(as_float(values_b), counts)

    def raw_weights(self, w_k: Float) -> Float:
        """Solve L^T a = w on the pivots; zero elsewhere.

        Parameters
        ----------
        w_k : Float
            Weights of the whitened features, shape (n_whitened,).

        Returns
        -------
        Float
            Weights of the raw variables, shape (n_raw,).
        """
        a_m = np.zeros(self.n_raw)
        for block in self.blocks:
            a_m[block.pivots_k] = scipy.linalg.solve_triangular(
                block.L_kk, w_k[block.columns], lower=True, trans="T", check_finite=False
            )
        return a_m


def whiten_blocks(K_blocks: Sequence[Float], tolerance: float) -> Whitening:
    """Pivoted Cholesky factors of the blocks of a covariance, stopped where the rest is dependent.

    Parameters
    ----------
    K_blocks : Sequence[Float]
        Symmetric positive semi-definite blocks of a block-diagonal covariance.
    tolerance : float
        A block's factorisation stops when its largest remaining variance falls below this
        fraction of its largest diagonal entry.

    Returns
    -------
    Whitening
        Pivots and factors, of the numerical ranks.
    """
    blocks = []
    first_raw = first_white = 0
    for K_mm in K_blocks:
        rank, pivots, factor = 0, np.zeros(0, dtype=np.intp), np.zeros((0, 0))
        if len(K_mm):
            scale = float(np.max(np.diag(K_mm)))
            factor, pivots, rank, _ = lapack.dpstrf(K_mm, tol=tolerance * scale, lower=1)
        blocks.append(
            WhiteningBlock(
                as_int(pivots[:rank] - 1 + first_raw) if rank else as_int([]),
                slice(first_white, first_white + rank),
                np.asfortranarray(np.tril(factor[:rank, :rank])),
            )
        )
        first_raw += len(K_mm)
        first_white += rank
    return Whitening(tuple(blocks), first_raw, first_white)


def cholesky(A_kk: Float) -> Float:
    """Lower Cholesky factor of a matrix that rounding may have moved below zero.

    Parameters
    ----------
    A_kk : Float
        Symmetric, Fortran order; the lower triangle counts. Up to 1e-10 of its largest entry is
        added to its diagonal, in place, where it is not positive definite without.

    Returns
    -------
    Float
        Factor in the lower triangle; what stands above is not part of it.

    Raises
    ------
    ValueError
        If it is not positive definite even then.
    """
    diagonal = np.einsum("kk->k", A_kk)
    size = float(diagonal.max(initial=1.0))
    for jitter in (0.0, 1e-14, 1e-12, 1e-10):
        diagonal += jitter * size
        L_kk, failed = lapack.dpotrf(A_kk, lower=1, clean=0)
        if not failed:
            return L_kk
    raise ValueError("the normal equations are singular: is a label NaN or infinite?")


# --------------------------------------------------------------------------- streaming QR


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
    has been absorbed before. Panels of 96 columns: narrower ones are memory-bound.

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
    n_panel = min(96, len(R))
    R, _, _, info = lapack.dtpqrt(
        len(rows) if triangular else 0, n_panel, R, rows, overwrite_a=1, overwrite_b=1
    )
    if info != 0:
        raise ValueError(f"LAPACK's tpqrt refused its argument {-info}: NaN or a wrong shape")
    return R


def join_triangles(one: Triangle, other: Triangle) -> Triangle:
    """The statistic of two sets of rows together.

    Parameters
    ----------
    one : Triangle
        Of some rows.
    other : Triangle
        Of other rows, of the same inducing variables.

    Returns
    -------
    Triangle
        Of all of them.
    """
    small, large = sorted((one, other), key=lambda triangle: len(triangle.R))
    n_columns = large.R.shape[1]
    R = np.zeros((n_columns, n_columns), order="F")
    R[: len(large.R)] = large.R
    R = absorb(R, np.array(small.R, order="F"), triangular=len(small.R) == n_columns)
    return Triangle(
        _without_empty_rows(R), one.n_rows + other.n_rows, one.log_noise + other.log_noise
    )


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

    def __init__(self, triangle: Triangle, n_buffer: int = 2048):
        n_columns = triangle.R.shape[1]
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
            n = min(len(y_r) - done, len(self._buffer) - self._n_waiting)
            new, old = slice(self._n_waiting, self._n_waiting + n), slice(done, done + n)
            self._buffer[new, :first] = 0.0
            self._buffer[new, first:-1] = A_rm[old] / sigma_r[old, None]
            self._buffer[new, -1] = y_r[old] / sigma_r[old]
            self._n_waiting += n
            done += n
            if self._n_waiting == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
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
        self._flush()
        return Triangle(_without_empty_rows(self._R), self._n_rows, self._log_noise)


def _without_empty_rows(R: Float) -> Float:
    """Rows that hold something: with fewer rows than columns most of the triangle is empty.

    Which rows stay empty depends on the columns that are zero, so the first ones are not simply
    the full ones. What is left is an upper trapezoid still.
    """
    size_r = np.abs(R).max(axis=1, initial=0.0)
    return np.ascontiguousarray(R[size_r > 1e-15 * size_r.max(initial=0.0)])


# ------------------------------------------------------------------------------ posterior


class Posterior(NamedTuple):
    """Gaussian posterior of the whitened weights, prior w_k ~ N(0, delta_k^2).

    Mean ``w_k``, covariance R^-1 R^-T; -y^T C^-1 y / 2 and the Occam factor -log det(2 pi C) / 2.
    """

    whitening: Whitening
    delta_k: Float
    R_kk: Float
    w_k: Float
    data_fit: float
    occam: float

    @property
    def log_evidence(self) -> float:
        """The sum of the two."""
        return self.data_fit + self.occam

    def weights(self) -> Float:
        """Mean weights of the raw inducing variables.

        Returns
        -------
        Float
            Shape (n_inducing,).
        """
        return self.whitening.raw_weights(self.w_k)

    def variance(self, prior_r: Float, K_rm: Float) -> Float:
        """k - phi delta^2 phi^T + phi R^-1 R^-T phi^T of each row: the DTC variance.

        Quinonero-Candela and Rasmussen, J. Mach. Learn. Res. 6, 1939 (2005), equation 20b.

        Parameters
        ----------
        prior_r : Float
            Prior variance of each row's quantity (delta^2 included).
        K_rm : Float
            Its covariances with the raw inducing variables, in units of delta^2.

        Returns
        -------
        Float
            One variance per row, never negative.
        """
        phi_rk = self.whitening.whiten(K_rm)
        inside_kr = scipy.linalg.solve_triangular(
            self.R_kk, phi_rk.T, trans="T", check_finite=False
        )
        novelty_r = np.maximum(prior_r - np.sum((phi_rk * self.delta_k) ** 2, axis=1), 0.0)
        return novelty_r + np.sum(inside_kr**2, axis=0)


def posterior(
    triangles: Sequence[Triangle],
    whitening: Whitening,
    delta_b: Sequence[float],
    noise: Sequence[float] | None = None,
) -> Posterior:
    """Solve min sum_l |(Phi_l w - y_l) / noise_l|^2 + sum_k (w_k / delta_k)^2.

    The log evidence is that of y ~ N(0, Phi delta^2 Phi^T + noise^2) (DTC): by the matrix
    determinant lemma and the residual of the least-squares problem, all from one triangle.

    Parameters
    ----------
    triangles : Sequence[Triangle]
        Statistics of sets of rows, of the raw inducing variables.
    whitening : Whitening
        Of the prior covariance of the raw inducing variables.
    delta_b : Sequence[float]
        Prior standard deviation of the whitened weights of each of its blocks.
    noise : Sequence[float] | None
        Factor on the standard deviations by which each set's rows were divided; 1 where None.

    Returns
    -------
    Posterior
        Mean weights, factor of the covariance, log evidence in two terms.
    """
    noise = [1.0] * len(triangles) if noise is None else list(noise)
    n_k = whitening.n_whitened
    delta_k = whitening.spread(delta_b)
    R = np.zeros((n_k + 1, n_k + 1), order="F")
    for triangle, factor in zip(triangles, noise, strict=True):
        R = absorb(R, whitened_rows(triangle, whitening, factor), triangular=False)
    prior = np.zeros((n_k, n_k + 1), order="F")
    np.fill_diagonal(prior, 1.0 / delta_k)
    R = absorb(R, prior, triangular=True)
    R_kk = np.asfortranarray(R[:n_k, :n_k])
    w_k = scipy.linalg.solve_triangular(R_kk, R[:n_k, n_k], check_finite=False)
    n_rows = sum(triangle.n_rows for triangle in triangles)
    log_noise = sum(
        triangle.log_noise + triangle.n_rows * math.log(factor)
        for triangle, factor in zip(triangles, noise, strict=True)
    )
    log_det = 2.0 * float(np.sum(np.log(delta_k * np.abs(np.diag(R_kk))))) + 2.0 * log_noise
    occam = -0.5 * (log_det + n_rows * math.log(2.0 * math.pi))
    return Posterior(whitening, delta_k, R_kk, w_k, -0.5 * float(R[n_k, n_k]) ** 2, occam)


def whitened_rows(triangle: Triangle, whitening: Whitening, noise: float = 1.0) -> Float:
    """[Phi | y] / noise of a triangle's rows.

    Parameters
    ----------
    triangle : Triangle
        Of the raw inducing variables.
    whitening : Whitening
        Of their prior covariance.
    noise : float
        What to divide by.

    Returns
    -------
    Float
        Shape (rows of the triangle, n_whitened + 1), Fortran order.
    """
    rows = np.empty((len(triangle.R), whitening.n_whitened + 1), order="F")
    rows[:, :-1] = whitening.whiten(triangle.R[:, :-1])
    rows[:, -1] = triangle.R[:, -1]
    return rows if noise == 1.0 else np.divide(rows, noise, out=rows)
