"""Inducing variables: environments and tangents, and the choice of environments.

An environment is u_s = f(x_s); a tangent is the derivative of f at x_s along a unit vector
tau_sr orthogonal to x_s (inter-domain features, Lazaro-Gredilla and Figueiras-Vidal, NIPS 22,
1087 (2009)). The tangents of an environment are the leading right singular vectors of its
Jacobian: the directions in feature space in which its neighbours can move it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from kernelpot.conventions import Float, Int, as_float, as_int
from kernelpot.gp.kernels import power_kernel

VARIANCE_FLOOR = 1e-10
"""A candidate whose variance, given the chosen ones, is below this part of its prior is known."""


class Inducing(NamedTuple):
    """Inducing variables of one block of centres, environment by environment.

    Rows ``first_e[e]`` of ``Z_mq`` is the unit vector of environment e; the rows after it, up to
    ``first_e[e + 1]``, are its unit tangents.
    """

    Z_mq: Float
    first_e: Int  # (n_environments + 1,)

    @property
    def x_eq(self) -> Float:
        """Unit vectors of the environments, without the tangents."""
        return self.Z_mq[self.first_e[:-1]]

    @property
    def owner_m(self) -> Int:
        """Index of the environment that each inducing variable belongs to."""
        return np.repeat(np.arange(len(self.first_e) - 1), np.diff(self.first_e))

    @property
    def is_tangent_m(self) -> np.ndarray:
        """Which inducing variables are tangents."""
        mask = np.ones(len(self.Z_mq), dtype=bool)
        mask[self.first_e[:-1]] = False
        return mask


def join(x_eq: Float, tangents: list[Float]) -> Inducing:
    """Interleave environments with their tangents.

    Parameters
    ----------
    x_eq : Float
        Unit vectors, shape (n_environments, n_features).
    tangents : list[Float]
        For each environment its tangents, shape (any number, n_features).

    Returns
    -------
    Inducing
        The record that covariances work on.
    """
    rows = [np.vstack([x_q, tau_tq]) for x_q, tau_tq in zip(x_eq, tangents, strict=True)]
    first_e = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    Z_mq = np.vstack(rows) if rows else np.zeros((0, x_eq.shape[1]))
    return Inducing(as_float(Z_mq), as_int(first_e))


def merge(groups: Sequence[Inducing]) -> Inducing:
    """All inducing variables of several records in one.

    Parameters
    ----------
    groups : Sequence[Inducing]
        With the same features.

    Returns
    -------
    Inducing
        Environments of one after those of the other.
    """
    first_e = [np.diff(group.first_e) for group in groups]
    first_e = np.concatenate([[0], np.cumsum(np.concatenate(first_e))])
    return Inducing(as_float(np.vstack([group.Z_mq for group in groups])), as_int(first_e))


def singular_tangents(J_pcq: Float, n_tangents: int, threshold: float) -> tuple[Float, Float]:
    """Leading singular values and right singular vectors of the Jacobian of one environment.

    Parameters
    ----------
    J_pcq : Float
        Derivatives of the unit vector with respect to each neighbour's position, shape
        (n_neighbours, 3, n_features), 1/angstrom.
    n_tangents : int
        At most this many.
    threshold : float
        Directions whose singular value is below this fraction of the largest are left out.

    Returns
    -------
    tuple[Float, Float]
        Singular values (1/angstrom), the largest first, shape (number kept,), and orthonormal rows,
        shape (number kept, n_features); orthogonal to the environment's unit vector, because the
        Jacobian is.
    """
    J_rq = J_pcq.reshape(-1, J_pcq.shape[-1])
    if n_tangents == 0 or len(J_rq) == 0:
        return np.zeros(0), np.zeros((0, J_pcq.shape[-1]))
    _, singular, tau_tq = scipy.linalg.svd(J_rq, full_matrices=False, lapack_driver="gesdd")
    # Symmetric environments have exact zeros, whose vectors are rounding errors.
    floor = max(threshold, 1e-8) * singular[0]
    n_kept = min(n_tangents, int(np.count_nonzero(singular > floor)))
    return singular[:n_kept], tau_tq[:n_kept]


def tangents(J_pcq: Float, n_tangents: int, threshold: float) -> Float:
    """Leading right singular vectors of the Jacobian of one environment.

    Parameters
    ----------
    J_pcq : Float
        Derivatives of the unit vector with respect to each neighbour's position, shape
        (n_neighbours, 3, n_features), 1/angstrom.
    n_tangents : int
        At most this many.
    threshold : float
        Directions whose singular value is below this fraction of the largest are left out.

    Returns
    -------
    Float
        Orthonormal rows, shape (number kept, n_features), as of `singular_tangents`.
    """
    return singular_tangents(J_pcq, n_tangents, threshold)[1]


# ------------------------------------------------------------------ choice of environments

Selector = Callable[[Float, int, np.random.Generator], Int]


def select_fps(x_nq: Float, n_select: int, rng: np.random.Generator) -> Int:
    """Farthest-point sampling in feature space, from a random start.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of the candidates, shape (n_candidates, n_features).
    n_select : int
        How many to choose, at most n_candidates.
    rng : np.random.Generator
        Chooses the start.

    Returns
    -------
    Int
        Indices in the order of choice; fewer than asked for when the rest are duplicates.
    """
    chosen = np.empty(n_select, dtype=np.intp)
    chosen[0] = rng.integers(len(x_nq))
    distance_n = np.full(len(x_nq), np.inf)
    for e in range(1, n_select):
        # |x - x'|^2 = 2 - 2 x . x' for unit vectors
        np.minimum(distance_n, 2.0 - 2.0 * (x_nq @ x_nq[chosen[e - 1]]), out=distance_n)
        chosen[e] = np.argmax(distance_n)
        if distance_n[chosen[e]] < 1e-14:
            return chosen[:e]
    return chosen


def select_cur(x_nq: Float, n_select: int, rng: np.random.Generator) -> Int:
    """CUR with orthogonalisation: the leading direction's strongest sample, again and again.

    Imbalzano et al., J. Chem. Phys. 148, 241730 (2018), section II.B, applied to samples. Once
    the chosen samples span the feature space the scores are taken anew among the rest.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of the candidates, shape (n_candidates, n_features).
    n_select : int
        How many to choose, at most n_candidates.
    rng : np.random.Generator
        Starts the eigenvalue iteration.

    Returns
    -------
    Int
        Indices in the order of choice.
    """
    chosen: list[int] = []
    free_n = np.ones(len(x_nq), dtype=bool)
    while len(chosen) < n_select:
        rest_nq = np.where(free_n[:, None], x_nq, 0.0)
        C_qq = rest_nq.T @ rest_nq
        scale = np.trace(C_qq)
        basis_qk = np.zeros((len(C_qq), len(C_qq)))
        n_basis = 0
        while (
            len(chosen) < n_select
            and n_basis < len(C_qq)
            and (n_basis == 0 or np.trace(C_qq) > 1e-10 * scale)
        ):
            u_q = _leading_eigenvector(C_qq, rng)
            score_n = np.where(free_n, (x_nq @ u_q) ** 2, -1.0)
            best = int(np.argmax(score_n))
            chosen.append(best)
            free_n[best] = False
            # Project the chosen sample's residual direction out of the Gram matrix.
            d_q = x_nq[best] - basis_qk[:, :n_basis] @ (x_nq[best] @ basis_qk[:, :n_basis])
            d_q /= np.linalg.norm(d_q)
            basis_qk[:, n_basis] = d_q
            n_basis += 1
            Cd_q = C_qq @ d_q
            C_qq -= np.outer(d_q, Cd_q) + np.outer(Cd_q, d_q) - (d_q @ Cd_q) * np.outer(d_q, d_q)
    return as_int(chosen)


def _leading_eigenvector(C_qq: Float, rng: np.random.Generator) -> Float:
    if len(C_qq) < 200:
        return scipy.linalg.eigh(C_qq, subset_by_index=[len(C_qq) - 1] * 2)[1][:, 0]
    start_q = rng.standard_normal(len(C_qq))
    return scipy.sparse.linalg.eigsh(C_qq, k=1, v0=start_q, tol=1e-4)[1][:, 0]


def select_leverage(x_nq: Float, n_select: int, rng: np.random.Generator) -> Int:
    """Sampling without replacement in proportion to ridge leverage scores.

    Alaoui and Mahoney, NIPS 28 (2015): l_n = x_n^T (X^T X + lambda)^-1 x_n, with lambda such that
    the scores sum to about half the number of samples asked for.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of the candidates, shape (n_candidates, n_features).
    n_select : int
        How many to choose, at most n_candidates.
    rng : np.random.Generator
        Draws the sample.

    Returns
    -------
    Int
        Indices in the order of choice.
    """
    value_q, U_qq = scipy.linalg.eigh(x_nq.T @ x_nq)
    value_q = np.maximum(value_q, 0.0)
    target = 0.5 * min(n_select, np.count_nonzero(value_q > 1e-12 * value_q[-1]))
    low, high = -32.0, 2.0
    for _ in range(50):  # bisection in log10(lambda), the sum falls with lambda
        middle = 0.5 * (low + high)
        total = np.sum(value_q / (value_q + 10.0**middle * value_q[-1]))
        low, high = (middle, high) if total > target else (low, middle)
    scaled_qq = U_qq / np.sqrt(value_q + 10.0**high * value_q[-1])
    leverage_n = np.sum((x_nq @ scaled_qq) ** 2, axis=1)
    return as_int(rng.choice(len(x_nq), n_select, replace=False, p=leverage_n / leverage_n.sum()))


def select_variance(x_nq: Float, n_select: int, rng: np.random.Generator, zeta: int = 4) -> Int:
    """Largest variance of the local energy, given the local energies already chosen.

    Harbrecht et al., Appl. Numer. Math. 62, 428 (2012), algorithm 1: n_candidates n_select^2
    operations, and n_candidates n_select numbers in memory.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of the candidates, shape (n_candidates, n_features).
    n_select : int
        How many to choose, at most n_candidates.
    rng : np.random.Generator
        Chooses the start: all prior variances are equal.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Int
        Indices in the order of choice; fewer than asked for when the rest are, to rounding,
        combinations of the chosen ones.
    """
    variance_n = np.ones(len(x_nq))
    phi_kn = np.empty((n_select, len(x_nq)))  # whitened covariances with the chosen ones
    chosen = np.empty(n_select, dtype=np.intp)
    for k in range(n_select):
        best = int(np.argmax(variance_n)) if k else int(rng.integers(len(x_nq)))
        if variance_n[best] < VARIANCE_FLOOR:
            return chosen[:k]
        chosen[k] = best
        covariance_n = power_kernel(x_nq @ x_nq[best], zeta)[0]
        covariance_n -= phi_kn[:k, best] @ phi_kn[:k]
        phi_kn[k] = covariance_n / np.sqrt(variance_n[best])
        variance_n -= phi_kn[k] ** 2
        variance_n[best] = 0.0
    return chosen


def select_uniform(x_nq: Float, n_select: int, rng: np.random.Generator) -> Int:
    """Evenly spaced in the order of the data.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of the candidates, shape (n_candidates, n_features).
    n_select : int
        How many to choose, at most n_candidates.
    rng : np.random.Generator
        Not used: this selector is deterministic.

    Returns
    -------
    Int
        Indices, ascending.
    """
    return as_int((np.arange(n_select) + 0.5) * len(x_nq) / n_select)


def select_random(x_nq: Float, n_select: int, rng: np.random.Generator) -> Int:
    """Every candidate with the same chance.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of the candidates, shape (n_candidates, n_features).
    n_select : int
        How many to choose, at most n_candidates.
    rng : np.random.Generator
        Draws the sample.

    Returns
    -------
    Int
        Indices in the order of choice.
    """
    return as_int(rng.permutation(len(x_nq))[:n_select])


SELECTORS: dict[str, Selector] = {
    "fps": select_fps,
    "cur": select_cur,
    "leverage": select_leverage,
    "variance": select_variance,
    # With tangents `kernelpot.selection` chooses by `greedy.choose_jointly`; without, it is this.
    "joint": select_variance,
    "uniform": select_uniform,
    "random": select_random,
}
"""Selectors by the name that users give."""


def select(x_nq: Float, n_select: int, selector: str | Selector, rng: np.random.Generator) -> Int:
    """Choose environments among candidates.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of the candidates, shape (n_candidates, n_features).
    n_select : int
        How many; all candidates when there are no more.
    selector : str | Selector
        A name from `SELECTORS`, or a function of the same signature.
    rng : np.random.Generator
        Source of all randomness.

    Returns
    -------
    Int
        Indices of distinct candidates.

    Raises
    ------
    ValueError
        If the name is not known.
    """
    if isinstance(selector, str):
        if selector not in SELECTORS:
            raise ValueError(f"selector {selector!r} is not one of {', '.join(SELECTORS)}")
        selector = SELECTORS[selector]
    n_select = min(n_select, len(x_nq))
    if n_select == 0:
        return as_int([])
    return as_int(selector(x_nq, n_select, rng))
