"""Environments and tangents chosen together: next comes what the chosen ones say least about.

A pivoted Cholesky factorisation of the prior covariance of all candidates, block by block, of which
only the chosen columns are computed (Harbrecht, Peters and Schneider, Appl. Numer. Math. 62, 428
(2012); as a choice of inducing variables: Burt, Rasmussen and van der Wilk, J. Mach. Learn. Res.
21, 131 (2020)). `inducing.select_variance` is the same for environments by themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from kernelpot.conventions import Float, Int, as_int
from kernelpot.gp.covariances import K_ab, K_mm
from kernelpot.gp.inducing import VARIANCE_FLOOR, Inducing

_STEP = 3.0
"""Displacement (angstrom) at which a tangent's variance counts as much as an environment's. With 3
the tangents decide; the errors with 1 and with 9 are the same to within their scatter."""


class _Block(NamedTuple):
    """An environment and the tangents chosen for it."""

    inducing: Inducing  # the environment, then its tangents, not normalised
    phi_kb: Float  # whitened covariances with everything chosen before
    L_bb: Float  # Cholesky factor of the covariance given everything chosen before


class _Chosen:
    """Everything chosen so far, and L^-1 of its prior covariance L L^T.

    The inverse, because a slice of it multiplies without a copy; a triangular solve would copy the
    factor at every step. Its error is that of the square root of the covariance's condition.
    """

    def __init__(self, n_features: int, n_most: int):
        self._Z_kq = np.empty((n_most, n_features))
        self._first: list[int] = [0]
        self._inverse_kk = np.zeros((n_most, n_most))

    @property
    def n_chosen(self) -> int:
        """Number of variables."""
        return self._first[-1]

    def add(self, Z_bq: Float, n_tangents: int, threshold: float, zeta: int) -> _Block:
        """Add an environment, and of its tangents the pivots of their conditional covariance."""
        k = self.n_chosen
        candidates = Inducing(Z_bq, as_int([0, len(Z_bq)]))
        chosen = Inducing(self._Z_kq[:k], as_int(self._first))
        phi_kb = self._inverse_kk[:k, :k] @ K_ab(chosen, candidates, zeta)
        C_bb = K_mm(candidates, zeta) - phi_kb.T @ phi_kb  # (b, b) conditional covariance
        kept, L_bb = leading_block(C_bb, Z_bq, n_tangents, threshold, zeta)
        last = k + len(kept)
        phi_kb = phi_kb[:, kept]
        # [L 0; phi^T L_bb]^-1 = [L^-1 0; -L_bb^-1 phi^T L^-1 L_bb^-1]
        inverse_bb = scipy.linalg.solve_triangular(L_bb, np.eye(len(kept)), lower=True)
        self._inverse_kk[k:last, :k] = -inverse_bb @ (phi_kb.T @ self._inverse_kk[:k, :k])
        self._inverse_kk[k:last, k:last] = inverse_bb
        self._Z_kq[k:last] = Z_bq[kept]
        self._first.append(last)
        return _Block(Inducing(Z_bq[kept], as_int([0, len(kept)])), phi_kb, L_bb)


def leading_block(
    C_bb: Float, Z_bq: Float, n_tangents: int, threshold: float, zeta: int
) -> tuple[Int, Float]:
    """An environment, and the pivots of its tangents' covariance given everything chosen.

    Parameters
    ----------
    C_bb : Float
        Conditional covariance of the environment and its tangents, in this order.
    Z_bq : Float
        Their vectors; those of tangents need not be unit vectors.
    n_tangents : int
        At most this many.
    threshold : float
        Tangents whose conditional standard deviation is below this fraction of the largest prior
        one are left out.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    tuple[Int, Float]
        Rows that are kept, the environment first, and the Cholesky factor of their covariance.
    """
    l_b = C_bb[:, 0] / np.sqrt(max(C_bb[0, 0], VARIANCE_FLOOR))
    C_tt = C_bb[1:, 1:] - np.outer(l_b[1:], l_b[1:])  # (t, t) given the environment as well
    largest = zeta * np.max(np.sum(Z_bq[1:] ** 2, axis=1), initial=0.0)
    pivots_t, L_tt = _pivots(C_tt, n_tangents, max(threshold**2, VARIANCE_FLOOR) * largest)
    kept = np.concatenate([[0], 1 + pivots_t])
    L_bb = np.zeros((len(kept), len(kept)))
    L_bb[:, 0], L_bb[1:, 1:] = l_b[kept], L_tt
    return kept, L_bb


def _pivots(C_tt: Float, n_most: int, floor: float) -> tuple[Int, Float]:
    """Pivots of a covariance, of variances above the floor, and their Cholesky factor."""
    if len(C_tt) == 0 or np.max(np.diag(C_tt)) <= floor:
        return as_int([]), np.zeros((0, 0))
    factor, pivots, rank, _ = lapack.dpstrf(C_tt, tol=floor, lower=1)
    n = min(n_most, rank)
    return as_int(pivots[:n] - 1), np.tril(factor[:n, :n])


def choose_jointly(
    pool: Inducing,
    *,
    n_tangents: int,
    n_lead: int,
    threshold: float,
    zeta: int,
    group_e: Int,
    quota_g: Int,
    n_first: int = 0,
) -> tuple[Int, list[Float]]:
    """Environments and tangents of largest variance, given the environments and tangents chosen.

    At each step comes the environment whose local energy and leading tangents have the largest sum
    of conditional variances; then its tangents one by one, each that of the largest conditional
    variance. The tangents of the pool carry their singular values, so that the variance of a
    tangent is that of the energy's derivative by a displacement of the neighbours.

    Parameters
    ----------
    pool : Inducing
        Candidates: unit vectors of environments and, not normalised, their tangents times their
        singular values (1/angstrom), the largest first.
    n_tangents : int
        At most this many for each environment.
    n_lead : int
        How many tangents count in the comparison of environments.
    threshold : float
        Tangents whose conditional standard deviation is below this fraction of the largest prior
        one of their environment are explained, and left out.
    zeta : int
        Exponent of the kernel.
    group_e : Int
        Group of each candidate environment.
    quota_g : Int
        How many environments of each group to choose.
    n_first : int
        The first so many of the pool are chosen before all others.

    Returns
    -------
    tuple[Int, list[Float]]
        Indices of the chosen environments in the order of choice, fewer than asked for when the
        rest are explained, and for each its unit tangents, shape (any number, n_features).
    """
    n_select = min(int(np.sum(quota_g)), len(group_e))
    n_most = n_select * (1 + n_tangents)
    scored = _leading(pool, n_lead)
    weight_m = np.where(scored.is_tangent_m, _STEP**2, 1.0)
    owner_m = scored.owner_m
    # The tangents of an environment are orthogonal to it: their prior covariance is zeta tau . tau.
    variance_m = np.where(scored.is_tangent_m, zeta, 1.0) * np.sum(scored.Z_mq**2, axis=1)
    phi_mk = np.empty((len(variance_m), n_most))  # whitened covariances with the chosen ones
    everything = _Chosen(pool.Z_mq.shape[1], n_most)
    left_g = np.array(quota_g)
    free_e = np.ones(len(group_e), dtype=bool)
    chosen: list[int] = []
    tangents: list[Float] = []
    while len(chosen) < n_select:
        score_e = np.bincount(owner_m, weight_m * variance_m, minlength=len(group_e))
        known_e = variance_m[scored.first_e[:-1]] < VARIANCE_FLOOR
        score_e[~free_e | known_e | (left_g[group_e] <= 0)] = -np.inf
        best = len(chosen) if len(chosen) < n_first else int(np.argmax(score_e))
        if score_e[best] == -np.inf:
            break
        free_e[best] = False
        left_g[group_e[best]] -= 1
        rows = slice(pool.first_e[best], pool.first_e[best + 1])
        first = everything.n_chosen
        block = everything.add(pool.Z_mq[rows], n_tangents, threshold, zeta)
        # (m, k) covariances with the new ones, less what the earlier ones explain, whitened
        C_mb = K_ab(scored, block.inducing, zeta) - phi_mk[:, :first] @ block.phi_kb
        last = everything.n_chosen
        phi_mk[:, first:last] = scipy.linalg.solve_triangular(block.L_bb, C_mb.T, lower=True).T
        variance_m = np.maximum(variance_m - np.sum(phi_mk[:, first:last] ** 2, axis=1), 0.0)
        chosen.append(best)
        T_tq = block.inducing.Z_mq[1:]
        tangents.append(T_tq / np.linalg.norm(T_tq, axis=1, keepdims=True))
    return as_int(chosen), tangents


def _leading(pool: Inducing, n_lead: int) -> Inducing:
    """The environments, each with the first tangents only."""
    rank_m = np.arange(len(pool.Z_mq)) - np.repeat(pool.first_e[:-1], np.diff(pool.first_e))
    counts_e = np.minimum(np.diff(pool.first_e), 1 + n_lead)
    return Inducing(pool.Z_mq[rank_m <= n_lead], as_int(np.concatenate([[0], np.cumsum(counts_e)])))
