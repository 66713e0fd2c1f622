"""New inducing variables for statistics whose rows are gone.

With K = L L^T of the variables that are there, Phi = K_rm L^-T of the rows that were reduced, and
Phi_n = K_nm L^-T of the new variables, the covariances of rows and new variables are interpolated
(Nystroem): K_rn = Phi Phi_n^T. What that neglects is the prior covariance of the two when all
variables that are there are known, at most the root of the product of both conditional variances:
it vanishes where these told everything of the rows. (The same projection carries data over to new
inducing variables in Bui, Nguyen and Turner, NIPS 30, 3299 (2017), and Csato and Opper, Neural
Comput. 14, 641 (2002).)

The whitened features of the new variables are (K_rn - Phi Phi_n^T) L_nn^-T, with L_nn of their
conditional covariance: zero, in all rows that are gone. So the factor of a posterior grows by the
prior of the new ones on its diagonal, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from kernelpot.conventions import Float, Int, as_int
from kernelpot.gp.covariances import K_ab, K_mm
from kernelpot.gp.greedy import leading_block
from kernelpot.gp.householder import absorb
from kernelpot.gp.inducing import Inducing, merge
from kernelpot.gp.lapack import trsm
from kernelpot.gp.solvers import Posterior
from kernelpot.gp.triangles import Triangle, without_empty_rows
from kernelpot.gp.whitening import Whitening, WhiteningBlock

__all__ = [
    "Added",
    "Candidates",
    "Extension",
    "extend",
    "extend_posterior",
    "extend_rows",
    "extend_triangle",
]


class Added(NamedTuple):
    """Prior covariances of the new variables of one block, which come behind its own."""

    K_on: Float  # of those that are there, (n_there, n_new)
    K_nn: Float


class Extension(NamedTuple):
    """Variables that are there, and new ones behind those of their block."""

    whitening: Whitening  # of all; the independent ones that are there come first in each block
    raw_m: Int  # where each variable that is there is now
    whitened_k: Int  # the same of the whitened ones
    weights: tuple[Interpolation, ...]  # of the blocks that have new ones


class Interpolation(NamedTuple):
    """New variables as a linear combination of those that are there: L^-T Phi_n^T."""

    pivots_k: Int  # of the raw ones that are there
    new: slice  # among all raw ones
    weights_kn: Float


def extend(whitening: Whitening, added_b: Sequence[Added], tolerance: float) -> Extension:
    """Whitening of more variables, which leaves the whitened ones that are there as they are.

    Parameters
    ----------
    whitening : Whitening
        Of the variables that are there.
    added_b : Sequence[Added]
        What each of its blocks gets; nothing where there are no columns.
    tolerance : float
        New variables whose variance, given all before, is below this fraction of the largest prior
        one of the new ones are dependent.

    Returns
    -------
    Extension
        For `extend_triangle` and `extend_posterior`.
    """
    blocks, weights = [], []
    raw_m, whitened_k = [], []
    first_there = first_raw = first_white = 0
    for block, (K_on, K_nn) in zip(whitening.blocks, added_b, strict=True):
        n_there, n_new = K_on.shape
        rank = len(block.pivots_k)
        phi_kn = np.asfortranarray(K_on[block.pivots_k - first_there])
        trsm(block.L_kk, phi_kn)
        new, factor = _independent(K_nn - phi_kn.T @ phi_kn, K_nn, tolerance)
        size = rank + len(new)
        L_kk = np.zeros((size, size), order="F")
        L_kk[:rank, :rank] = block.L_kk
        L_kk[rank:, :rank] = phi_kn[:, new].T
        L_kk[rank:, rank:] = factor
        there_k = block.pivots_k - first_there + first_raw
        pivots_k = as_int(np.concatenate([there_k, first_raw + n_there + new]))
        blocks.append(WhiteningBlock(pivots_k, slice(first_white, first_white + size), L_kk))
        raw_m.append(first_raw + np.arange(n_there))
        whitened_k.append(first_white + np.arange(rank))
        if n_new:
            weights_kn = scipy.linalg.solve_triangular(block.L_kk, phi_kn, lower=True, trans="T")
            place = slice(first_raw + n_there, first_raw + n_there + n_new)
            weights.append(Interpolation(block.pivots_k, place, weights_kn))
        first_there += n_there
        first_raw += n_there + n_new
        first_white += size
    return Extension(
        Whitening(tuple(blocks), first_raw, first_white),
        as_int(np.concatenate(raw_m)),
        as_int(np.concatenate(whitened_k)),
        tuple(weights),
    )


def _independent(C_nn: Float, K_nn: Float, tolerance: float) -> tuple[Int, Float]:
    """Pivots of a conditional covariance, and their Cholesky factor."""
    floor = tolerance * float(np.max(np.diag(K_nn), initial=0.0))
    if len(C_nn) == 0 or np.max(np.diag(C_nn)) <= floor:
        return as_int([]), np.zeros((0, 0))
    factor, pivots, rank, _ = lapack.dpstrf(C_nn, tol=floor, lower=1)
    return as_int(pivots[:rank] - 1), np.tril(factor[:rank, :rank])


def extend_rows(K_rm: Float, extension: Extension) -> Float:
    """Rows of covariances with columns for the new variables, interpolated.

    Parameters
    ----------
    K_rm : Float
        Covariances with the variables that were there, or sums of such rows.
    extension : Extension
        Of these.

    Returns
    -------
    Float
        With all variables, Fortran order.
    """
    found = np.zeros((len(K_rm), extension.whitening.n_raw), order="F")
    found[:, extension.raw_m] = K_rm
    for pivots_k, new, weights_kn in extension.weights:
        found[:, new] = K_rm[:, pivots_k] @ weights_kn
    return found


def extend_triangle(triangle: Triangle, extension: Extension) -> Triangle:
    """The statistic of the same rows with columns for the new variables, interpolated.

    Columns in front of the first new one stay as they are, and so do all rows where the new ones
    are the last; rows that begin behind it are reduced anew.

    Parameters
    ----------
    triangle : Triangle
        Of the variables that were there.
    extension : Extension
        Of these.

    Returns
    -------
    Triangle
        Of all variables.
    """
    R = np.zeros((len(triangle.R), extension.whitening.n_raw + 1), order="F")
    R[:, :-1] = extend_rows(triangle.R[:, :-1], extension)
    R[:, -1] = triangle.R[:, -1]
    first = min((one.new.start for one in extension.weights), default=R.shape[1])
    # Rows of a trapezoid begin at or behind the diagonal: those after the first new column have a
    # new entry in front of their own, unless only the label stands behind it.
    there = np.flatnonzero(extension.raw_m >= first)
    if len(there) and len(R) > first:
        rows = np.asfortranarray(R[first:, first:])
        reduced = absorb(np.zeros((0, rows.shape[1]), order="F"), rows)
        R = np.vstack([R[:first], np.pad(reduced, ((0, 0), (first, 0)))])
        R = without_empty_rows(np.asfortranarray(R))
    return triangle._replace(R=R)


def extend_posterior(
    posterior: Posterior, extension: Extension, delta_b: Sequence[float]
) -> Posterior:
    """The posterior of the same rows with the new variables, which these say nothing of.

    Parameters
    ----------
    posterior : Posterior
        Of the variables that were there.
    extension : Extension
        Of these.
    delta_b : Sequence[float]
        Prior standard deviation of the whitened weights of each block.

    Returns
    -------
    Posterior
        Of all variables; its evidence is the same.
    """
    n_k, place_k = extension.whitening.n_whitened, extension.whitened_k
    delta_k = extension.whitening.spread(delta_b)
    R_kk = np.asfortranarray(np.diag(1.0 / delta_k))
    R_kk[np.ix_(place_k, place_k)] = posterior.R_kk
    w_k = np.zeros(n_k)
    w_k[place_k] = posterior.w_k
    return posterior._replace(
        whitening=extension.whitening, delta_k=delta_k, R_kk=R_kk, w_k=w_k, scores_kj=None
    )


class Candidates:
    """Environments of one block, and what the inducing variables leave open of them.

    Parameters
    ----------
    there : Inducing
        The inducing variables of the block.
    block : WhiteningBlock
        Of these.
    first : int
        Raw column of the first of them.
    x_nq : Float
        Feature vectors of the candidates.
    zeta : int
        Exponent of the kernel.

    Attributes
    ----------
    variance_n : Float
        Variance of each local energy, as far as these features tell it, given all inducing
        variables that are there or were taken.
    missing_n : Float
        What is left out where the vectors are shorter than unit vectors, because features are
        projected: no inducing variable of these features tells it.
    """

    def __init__(self, there: Inducing, block: WhiteningBlock, first: int, x_nq: Float, zeta: int):
        self._there, self._block, self._zeta = there, block, zeta
        self._places_k = block.pivots_k - first
        self._each = Inducing(x_nq, as_int(np.arange(len(x_nq) + 1)))
        self._phi_kn = self._known(self._each)
        prior_n = np.sum(x_nq**2, axis=1) ** zeta
        self.missing_n = np.maximum(1.0 - prior_n, 0.0)
        self.variance_n = np.maximum(prior_n - np.sum(self._phi_kn**2, axis=0), 0.0)
        # Of those taken: vectors, covariances with what is there (k) and with the candidates (n),
        # and the factor of their own, all given what came before.
        self._taken = Inducing(x_nq[:0], as_int([0]))
        self._phi_kt = self._phi_kn[:, :0]
        self._psi_tn = np.zeros((0, len(x_nq)))
        self._L_tt = np.zeros((0, 0))

    def _known(self, some: Inducing) -> Float:
        """Whitened covariances with the inducing variables that are there."""
        phi_kb = np.asfortranarray(K_ab(self._there, some, self._zeta)[self._places_k])
        trsm(self._block.L_kk, phi_kb)
        return phi_kb

    def take(self, n: int, tangents_tq: Float, n_tangents: int, threshold: float) -> None:
        """Add an environment, and of its tangents those that are known least.

        Parameters
        ----------
        n : int
            Which.
        tangents_tq : Float
            Singular vectors of its Jacobian, times the singular values (1/angstrom).
        n_tangents : int
            At most this many.
        threshold : float
            Tangents whose conditional standard deviation is below this fraction of the largest
            prior one are left out.
        """
        zeta = self._zeta
        Z_bq = np.vstack([self._each.Z_mq[n], tangents_tq])
        tried = Inducing(Z_bq, as_int([0, len(Z_bq)]))
        phi_kb = self._known(tried)
        C_tb = K_ab(self._taken, tried, zeta) - self._phi_kt.T @ phi_kb
        psi_tb = scipy.linalg.solve_triangular(self._L_tt, C_tb, lower=True)
        C_bb = K_mm(tried, zeta) - phi_kb.T @ phi_kb - psi_tb.T @ psi_tb
        kept, L_bb = leading_block(C_bb, Z_bq, n_tangents, threshold, zeta)
        new = Inducing(Z_bq[kept], as_int([0, len(kept)]))
        phi_kb, psi_tb = phi_kb[:, kept], psi_tb[:, kept]
        C_bn = K_ab(new, self._each, zeta) - phi_kb.T @ self._phi_kn - psi_tb.T @ self._psi_tn
        psi_bn = scipy.linalg.solve_triangular(L_bb, C_bn, lower=True)
        self.variance_n = np.maximum(self.variance_n - np.sum(psi_bn**2, axis=0), 0.0)
        self.variance_n[n] = 0.0
        self._taken = merge([self._taken, new])
        self._phi_kt = np.hstack([self._phi_kt, phi_kb])
        self._psi_tn = np.vstack([self._psi_tn, psi_bn])
        above = np.hstack([self._L_tt, np.zeros_like(psi_tb)])
        self._L_tt = np.vstack([above, np.hstack([psi_tb.T, L_bb])])

    @property
    def taken(self) -> Inducing:
        """What was taken, with unit tangents."""
        Z_mq = self._taken.Z_mq.copy()
        is_tangent_m = self._taken.is_tangent_m
        Z_mq[is_tangent_m] /= np.linalg.norm(Z_mq[is_tangent_m], axis=1, keepdims=True)
        return self._taken._replace(Z_mq=Z_mq)
