"""Linear algebra of the sparse posterior: triangles of whitened rows and of the prior, solved.

Nothing here knows what the rows and columns mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from kernelpot._machine import side_by_side
from kernelpot.conventions import Float, VarianceTerms
from kernelpot.gp.householder import absorb
from kernelpot.gp.lapack import potrf, trsm
from kernelpot.gp.triangles import Triangle
from kernelpot.gp.whitening import BLOCK_ROWS, Whitening

__all__ = ["Posterior", "cholesky", "posterior", "update", "whitened_rows"]


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
        L_kk = A_kk.copy(order="F")
        if not potrf(L_kk):
            return L_kk
    raise ValueError("the normal equations are singular: is a label NaN or infinite?")


class Posterior(NamedTuple):
    """Gaussian posterior of the whitened weights, prior w_k ~ N(0, delta_k^2).

    Mean ``w_k``, covariance R^-1 R^-T; -y^T C^-1 y / 2 and the Occam factor -log det(2 pi C) / 2;
    R^-T times the scores of groups of rows where these are known (`jackknife`).
    """

    whitening: Whitening
    delta_k: Float
    R_kk: Float
    w_k: Float
    data_fit: float
    occam: float
    scores_kj: Float | None = None

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
        terms = self.variance_terms(prior_r, K_rm, jackknife=False)
        return terms.novelty + terms.open

    def variance_terms(self, prior_r: Float, K_rm: Float, *, jackknife: bool) -> VarianceTerms:
        """The two terms of `variance`, and |phi R^-1 G|^2 with G = R^-T times the scores.

        The last is the infinitesimal jackknife, the spread of predictions over fits to resampled
        groups of rows: it does not believe that errors of labels are independent (Huber, Proc.
        5th Berkeley Symp. 1, 221 (1967); Liang and Zeger, Biometrika 73, 13 (1986); Efron, J. R.
        Stat. Soc. B 54, 83 (1992)).

        Parameters
        ----------
        prior_r : Float
            Prior variance of each row's quantity (delta^2 included).
        K_rm : Float
            Its covariances with the raw inducing variables, in units of delta^2.
        jackknife : bool
            Whether the last is wanted; 0 where it is not, or not known.

        Returns
        -------
        VarianceTerms
            Of each row, never negative.
        """
        found = VarianceTerms(*np.zeros((3, len(K_rm))))

        def some(first: int) -> None:
            rows = slice(first, first + BLOCK_ROWS)
            known_rk, open_rk = self.parts(K_rm[rows])
            found.novelty[rows] = np.maximum(prior_r[rows] - np.sum(known_rk**2, axis=1), 0.0)
            found.open[rows] = np.sum(open_rk**2, axis=1)
            if jackknife and self.scores_kj is not None:
                found.jackknife[rows] = np.sum((open_rk @ self.scores_kj) ** 2, axis=1)

        side_by_side(some, range(0, len(K_rm), BLOCK_ROWS))
        return found

    def with_scores(self, scores_mj: Float) -> Posterior:
        """The same, knowing the scores of groups of rows.

        Parameters
        ----------
        scores_mj : Float
            Sum of A_r (y_r - A_r w) / noise_r^2 over each group of rows A_r of raw inducing
            variables, times any signs: shape (n_raw, n_groups).

        Returns
        -------
        Posterior
            Whose `variance_terms` have a jackknife.
        """
        scores_jk = self.whitening.whiten(np.ascontiguousarray(scores_mj.T))
        trsm(self.R_kk, scores_jk.T, upper=True)
        return self._replace(scores_kj=scores_jk.T)

    def covariance(self, prior_rr: Float, K_rm: Float) -> tuple[Float, VarianceTerms]:
        """The same of every two rows.

        Parameters
        ----------
        prior_rr : Float
            Prior covariances of the rows' quantities (delta^2 included).
        K_rm : Float
            Their covariances with the raw inducing variables, in units of delta^2.

        Returns
        -------
        tuple[Float, VarianceTerms]
            Shape (n_rows, n_rows), symmetric, with the variances of `variance` on its diagonal;
            and `variance_terms` of each row, with their jackknife.
        """
        known_rk, open_rk = self.parts(K_rm)
        novelty_rr = prior_rr - known_rk @ known_rk.T
        novelty_r = np.maximum(np.diag(novelty_rr), 0.0)
        np.fill_diagonal(novelty_rr, novelty_r)
        open_rr = open_rk @ open_rk.T
        jackknife_r = np.zeros(len(K_rm))
        if self.scores_kj is not None:
            jackknife_r = np.sum((open_rk @ self.scores_kj) ** 2, axis=1)
        terms = VarianceTerms(novelty_r, np.diag(open_rr).copy(), jackknife_r)
        covariance_rr = novelty_rr + open_rr
        return 0.5 * (covariance_rr + covariance_rr.T), terms

    def parts(self, K_rm: Float) -> tuple[Float, Float]:
        """What the inducing variables know of the rows a priori, and what of it the data leave.

        Parameters
        ----------
        K_rm : Float
            Covariances of some rows with the raw inducing variables, in units of delta^2.

        Returns
        -------
        tuple[Float, Float]
            Whitened covariances, shape (n_rows, n_whitened), of which the squares add up to the
            variances: phi delta, and phi R^-1.
        """
        known_rk = self.whitening.whiten(K_rm)
        open_rk = known_rk.copy()
        trsm(self.R_kk, open_rk.T, upper=True)
        known_rk *= self.delta_k
        return known_rk, open_rk


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
    np.fill_diagonal(R[:n_k, :n_k], 1.0 / delta_k)
    nothing = Posterior(whitening, delta_k, R[:n_k, :n_k], np.zeros(n_k), 0.0, 0.0)
    return _absorbed(nothing, 0.0, R, triangles, noise)


def update(
    posterior: Posterior, triangles: Sequence[Triangle], noise: Sequence[float]
) -> Posterior:
    """The posterior after more rows: some operations for each of these and each two weights.

    Parameters
    ----------
    posterior : Posterior
        Of the rows so far.
    triangles : Sequence[Triangle]
        Statistics of sets of further rows, of the raw inducing variables.
    noise : Sequence[float]
        Factor on the standard deviations by which each set's rows were divided.

    Returns
    -------
    Posterior
        Of all rows.
    """
    n_k = posterior.whitening.n_whitened
    R = np.zeros((n_k + 1, n_k + 1), order="F")
    R[:n_k, :n_k] = posterior.R_kk
    R[:n_k, n_k] = posterior.R_kk @ posterior.w_k
    R[n_k, n_k] = math.sqrt(-2.0 * posterior.data_fit)
    known = _log_size(posterior.R_kk, posterior.delta_k)
    return _absorbed(posterior, known, R, triangles, noise)


def _absorbed(
    before: Posterior,
    known: float,
    R: Float,
    triangles: Sequence[Triangle],
    noise: Sequence[float],
) -> Posterior:
    """The posterior after more rows; of those before, the `_log_size` and the whole triangle."""
    whitening, delta_k = before.whitening, before.delta_k
    n_k = whitening.n_whitened
    for triangle, factor in zip(triangles, noise, strict=True):
        R = absorb(R, whitened_rows(triangle, whitening, factor))
    R_kk = np.asfortranarray(R[:n_k, :n_k])
    w_k = scipy.linalg.solve_triangular(R_kk, R[:n_k, n_k], check_finite=False)
    n_rows = sum(triangle.n_rows for triangle in triangles)
    log_noise = sum(
        triangle.log_noise + triangle.n_rows * math.log(factor)
        for triangle, factor in zip(triangles, noise, strict=True)
    )
    log_det = 2.0 * (_log_size(R_kk, delta_k) - known) + 2.0 * log_noise
    occam = before.occam - 0.5 * (log_det + n_rows * math.log(2.0 * math.pi))
    return Posterior(whitening, delta_k, R_kk, w_k, -0.5 * float(R[n_k, n_k]) ** 2, occam)


def _log_size(R_kk: Float, delta_k: Float) -> float:
    """Logarithm of the determinant, in units of that of the prior."""
    return float(np.sum(np.log(delta_k * np.abs(np.diag(R_kk)))))


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
    whitening.whiten_into(rows[:, :-1], triangle.R[:, :-1])
    rows[:, -1] = triangle.R[:, -1]
    return rows if noise == 1.0 else np.divide(rows, noise, out=rows)
