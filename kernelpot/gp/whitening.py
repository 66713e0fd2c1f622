"""Whitening of a block-diagonal covariance: pivoted Cholesky factors, and solves with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from kernelpot._machine import side_by_side
from kernelpot.conventions import Float, Int, as_float, as_int
from kernelpot.gp.lapack import trsm

__all__ = ["BLOCK_ROWS", "Whitening", "WhiteningBlock", "whiten_blocks"]

BLOCK_ROWS = 256
"""Rows that are whitened at once: enough for matrix products at full speed."""


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
        self.whiten_into(phi_rk, K_rm)
        return phi_rk

    def whiten_into(self, phi_rk: Float, K_rm: Float) -> None:
        """The same into an array that is there.

        Parameters
        ----------
        phi_rk : Float
            Shape (n_rows, n_whitened), of any order; overwritten.
        K_rm : Float
            Covariances with the raw variables.
        """

        def solve(first: int) -> None:
            rows = slice(first, first + BLOCK_ROWS)
            for block in self.blocks:
                some_rk = np.take(K_rm[rows], block.pivots_k, axis=1)
                trsm(block.L_kk, some_rk.T)
                phi_rk[rows, block.columns] = some_rk

        side_by_side(solve, range(0, len(K_rm), BLOCK_ROWS))

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


def whiten_blocks(
    K_blocks: Iterable[Float], tolerance: float, *, overwrite: bool = False
) -> Whitening:
    """Pivoted Cholesky factors of the blocks of a covariance, stopped where the rest is dependent.

    Parameters
    ----------
    K_blocks : Iterable[Float]
        Symmetric positive semi-definite blocks of a block-diagonal covariance, taken one by one.
    tolerance : float
        A block's factorisation stops when its largest remaining variance falls below this
        fraction of its largest diagonal entry.
    overwrite : bool
        Whether the factors may take the place of the blocks.

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
            # Symmetric, so that rows may be read as columns: LAPACK's order.
            factor, pivots, rank, _ = lapack.dpstrf(
                K_mm.T, tol=tolerance * scale, lower=1, overwrite_a=overwrite
            )
        blocks.append(
            WhiteningBlock(
                as_int(pivots[:rank] - 1 + first_raw) if rank else as_int([]),
                slice(first_white, first_white + rank),
                _lower(factor, rank),
            )
        )
        first_raw += len(K_mm)
        first_white += rank
    return Whitening(tuple(blocks), first_raw, first_white)


def _lower(factor: Float, rank: int) -> Float:
    """The lower triangle of the leading columns, in the place of the factor where it is whole."""
    L_kk = np.asfortranarray(factor[:rank, :rank])
    for k in range(1, rank):
        L_kk[:k, k] = 0.0
    return L_kk
