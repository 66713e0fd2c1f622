"""What all ways of picking a batch of labels have in common. Pure functions of arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import ArrayLike

from kernelpot.conventions import Float, Int, as_float, as_int

__all__ = [
    "ALIKE",
    "Beside",
    "Picked",
    "checked_covariance",
    "information",
    "likeness",
    "noise_of",
    "weights_beside",
    "whitened",
]

ALIKE = 0.95
"""Candidates whose covariances are alike by more than this are one and the same."""

_ROUNDING = 1e-6
"""Part of the largest covariance by which a matrix may be asymmetric."""


class Beside(NamedTuple):
    """What counts beside information; None where it does not."""

    gamma: float = 1.0  # weight of information against relevance, 0 to 1: `exploration_share`
    relevance_s: Float | None = None  # the user's objective, larger is better; its order counts
    violation_s: Float | None = None  # added to the score: `violation_score`
    cost_s: Float | None = None  # predicted cost of each label, seconds say


class Picked(NamedTuple):
    """Candidates that are to be labelled, the best first."""

    picks: Int
    information: Float  # what each tells beyond those before it, nats
    score: Float  # by which each was picked
    why: str  # there are no more

    @classmethod
    def of(cls, picks: list[int], told: list[float], scores: list[float], why: str) -> Picked:
        """From lists.

        Parameters
        ----------
        picks : list[int]
            Places of the candidates.
        told : list[float]
            What each tells.
        scores : list[float]
            Of each.
        why : str
            There are no more.

        Returns
        -------
        Picked
            Of arrays.
        """
        return cls(as_int(picks), as_float(told), as_float(scores), why)


def checked_covariance(covariance_rr: ArrayLike, structure_r: ArrayLike) -> tuple[Float, Int]:
    """A joint covariance, and where the numbers of each structure begin.

    Parameters
    ----------
    covariance_rr : ArrayLike
        Of the numbers of all structures, structure by structure.
    structure_r : ArrayLike
        Structure of each number, ascending from 0.

    Returns
    -------
    tuple[Float, Int]
        The matrix, and offsets of the structures, one more than there are.

    Raises
    ------
    ValueError
        If they do not fit together, or the matrix is not finite and symmetric.
    """
    matrix_rr = as_float(covariance_rr)
    structure_r = as_int(structure_r).ravel()
    n_rows = len(structure_r)
    if matrix_rr.shape != (n_rows, n_rows):
        raise ValueError(
            f"a covariance of shape {matrix_rr.shape} with candidates of {n_rows} numbers: it must"
            " be square, and structure_r say of each row whose it is"
        )
    if n_rows and (structure_r[0] < 0 or np.any(np.diff(structure_r) < 0)):
        raise ValueError("structure_r must ascend from 0: numbers stand candidate by candidate")
    if not np.isfinite(matrix_rr).all():
        raise ValueError("the covariance is not finite: leave out candidates without one")
    largest = np.abs(matrix_rr).max(initial=0.0)
    if np.abs(matrix_rr - matrix_rr.T).max(initial=0.0) > _ROUNDING * largest:
        raise ValueError("the covariance is not symmetric: give that of all numbers together")
    n_structures = int(structure_r[-1]) + 1 if n_rows else 0
    return matrix_rr, as_int(np.searchsorted(structure_r, np.arange(n_structures + 1)))


def whitened(noisy_bb: Float, whole_br: Float) -> Float:
    """L^-1 times rows.

    Parameters
    ----------
    noisy_bb : Float
        A covariance with unit noise, L L^T.
    whole_br : Float
        Its rows of a larger matrix.

    Returns
    -------
    Float
        Whose square is what labels take from the larger matrix.
    """
    noisy_bb = 0.5 * (noisy_bb + noisy_bb.T)
    try:
        L_bb = np.linalg.cholesky(noisy_bb)
    except np.linalg.LinAlgError:
        # The variance of what inducing variables do not see is a difference of large numbers where
        # the amplitude is large and the noise small: what is below the noise is rounding.
        value_b, axes_bb = np.linalg.eigh(noisy_bb)
        return (axes_bb.T @ whole_br) / np.sqrt(np.maximum(value_b, 1.0))[:, None]
    return scipy.linalg.solve_triangular(L_bb, whole_br, lower=True)


def information(block_bb: Float) -> float:
    """log det(1 + C) / 2, of a matrix that rounding may have moved below zero.

    Parameters
    ----------
    block_bb : Float
        Covariance over that of the noise.

    Returns
    -------
    float
        Nats.
    """
    if not len(block_bb):
        return 0.0
    try:
        L_bb = np.linalg.cholesky(block_bb + np.eye(len(block_bb)))
    except np.linalg.LinAlgError:
        value_b = np.linalg.eigvalsh(block_bb)
        return 0.5 * float(np.log1p(np.maximum(value_b, 0.0)).sum())
    return max(float(np.log(np.diag(L_bb)).sum()), 0.0)


def likeness(row_br: Float, first_s: Int, size_s: Float, pick: int) -> Float:
    """Likeness of all candidates to one: the root of Escoufier's RV coefficient.

    Parameters
    ----------
    row_br : Float
        Covariances of its numbers with those of all.
    first_s : Int
        Offsets of the candidates' numbers.
    size_s : Float
        Frobenius norm of the covariance of each.
    pick : int
        Which it is.

    Returns
    -------
    Float
        Shape (n_candidates,), 0 to 1.
    """
    square_r = np.concatenate([[0.0], np.cumsum(np.einsum("br,br->r", row_br, row_br))])
    norm_s = np.sqrt(np.maximum(np.diff(square_r[first_s]), 0.0))
    scale_s = np.sqrt(size_s[pick] * size_s)
    return np.divide(norm_s, scale_s, out=np.zeros_like(norm_s), where=scale_s > 0.0)


def weights_beside(beside: Beside, n_candidates: int) -> tuple[Float, float, Float]:
    """What is added to the weighted information, its weight, and the costs.

    Parameters
    ----------
    beside : Beside
        What else counts.
    n_candidates : int
        How many there are.

    Returns
    -------
    tuple[Float, float, Float]
        Of each candidate; the weight of all.

    Raises
    ------
    ValueError
        If a number is out of range, or there are not as many as candidates.
    """
    if not 0.0 <= beside.gamma <= 1.0:
        raise ValueError(f"gamma must be between 0 and 1, not {beside.gamma!r}")
    if beside.relevance_s is None and beside.gamma < 1.0:
        raise ValueError("gamma below 1 weighs information against relevance_s, which is None")
    bonus_s = np.zeros(n_candidates)
    if beside.relevance_s is not None:
        relevance_s = _each(beside.relevance_s, n_candidates, "relevance")
        bonus_s += (1.0 - beside.gamma) * _ranks(relevance_s)
    if beside.violation_s is not None:
        bonus_s += _each(beside.violation_s, n_candidates, "violation")
    if beside.cost_s is None:
        return bonus_s, beside.gamma, np.ones(n_candidates)
    cost_s = _each(beside.cost_s, n_candidates, "cost")
    if np.any(cost_s <= 0.0):
        raise ValueError("costs must be positive")
    return bonus_s, beside.gamma, cost_s


def _each(values: ArrayLike, n_candidates: int, name: str) -> Float:
    values_s = as_float(values)
    if values_s.shape != (n_candidates,) or not np.isfinite(values_s).all():
        raise ValueError(
            f"{name}_s must be {n_candidates} finite numbers, one per candidate; got shape"
            f" {values_s.shape}, {np.count_nonzero(~np.isfinite(values_s))} not finite"
        )
    return values_s


def _ranks(values_s: Float) -> Float:
    """From 0, the least, to 1, the most; equal ones share theirs."""
    return (scipy.stats.rankdata(values_s) - 1.0) / max(len(values_s) - 1, 1)


def noise_of(noise: ArrayLike, n_rows: int) -> Float:
    """Of each number.

    Parameters
    ----------
    noise : ArrayLike
        One, or one per number.
    n_rows : int
        How many numbers.

    Returns
    -------
    Float
        Shape (n_rows,).

    Raises
    ------
    ValueError
        If it is not positive, or not as many.
    """
    noise_r = as_float(noise)
    if noise_r.shape not in ((), (1,), (n_rows,)) or not np.all(noise_r > 0.0):
        raise ValueError(
            f"noise must be one positive number or one per number ({n_rows}); got shape"
            f" {noise_r.shape}. It is that of the labels: model.noise_"
        )
    return np.broadcast_to(noise_r, (n_rows,))
