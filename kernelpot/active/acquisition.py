r"""Which candidates are worth their labels. Pure functions of arrays.

A candidate s is a block of numbers (its force components, say) with a posterior covariance C_ss,
and a joint one with all others. Labels with noise N of these numbers tell

    I(s) = log det(1 + N^-1/2 C_ss N^-1/2) / 2        nats

about the potential. After a pick all covariances are conditioned on it, and the next pick is the
candidate that tells most of what is left: the sum of such steps is what the whole batch tells, so
that candidates which say the same are not picked twice. I of a batch is monotone and submodular,
and picking greedily comes within 1 - 1/e of the best batch of that size (Nemhauser, Wolsey and
Fisher, Math. Program. 14, 265 (1978); Krause, Singh and Guestrin, J. Mach. Learn. Res. 9, 235
(2008)). For neural networks: Kirsch, van Amersfoort and Gal, BatchBALD, NeurIPS 32 (2019);
Holzmueller, Zaverkin, Kaestner and Steinwart, J. Mach. Learn. Res. 24, 164 (2023).

The conditional covariances are a Cholesky factorisation by blocks whose pivots are the picks: a
pick costs one row of blocks. Only that row of the joint covariance is looked at, so that low-rank
factors, C_st = phi_s phi_t^T, serve as well and never need the square. And only the candidate that
looks best is brought up to date, since knowing more never makes one tell more (Minoux, in
Optimization Techniques, Springer (1978), page 234).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import ArrayLike

from kernelpot._machine import one_blas_thread
from kernelpot.conventions import Float, Int, as_float, as_int

__all__ = [
    "Beside",
    "Picked",
    "pick_by_covariance",
    "pick_by_factors",
]

LEAST_INFORMATION = 0.1
"""A label that tells less, in nats, is not worth a calculation."""

ALIKE = 0.95
"""Candidates whose covariances are alike by more than this are one and the same."""


class Beside(NamedTuple):
    """What counts beside information; None where it does not."""

    gamma: float = 1.0  # weight of information against relevance, 0 to 1: `exploration_share`
    relevance_s: Float | None = None  # the user's objective, larger is better; its order counts
    violation_s: Float | None = None  # added to the score: `violation_score`
    cost_s: Float | None = None  # predicted cost of each label, seconds say


_INFORMATION_ALONE = Beside()


class Picked(NamedTuple):
    """Candidates that are to be labelled, the best first."""

    picks: Int
    information: Float  # what each tells beyond those before it, nats
    score: Float  # by which each was picked
    why: str  # there are no more


class _Joint(NamedTuple):
    """A joint covariance of candidates, divided by the noise of the labels."""

    first_s: Int  # offsets of their numbers
    block: Callable[[slice], Float]  # of the numbers of one candidate with each other
    row: Callable[[slice], Float]  # with those of all

    def numbers(self, s: int) -> slice:
        """Places of the numbers of a candidate."""
        return slice(self.first_s[s], self.first_s[s + 1])


def pick_by_covariance(
    covariance_rr: ArrayLike,
    structure_r: ArrayLike,
    noise: ArrayLike,
    n: int,
    *,
    beside: Beside = _INFORMATION_ALONE,
    given: Sequence[int] = (),
    least: float = LEAST_INFORMATION,
    alike: float = ALIKE,
    budget: float = math.inf,
) -> Picked:
    """Pick a batch by what its labels tell together, from the joint covariance of candidates.

    The score of a candidate is

        (gamma I / I_max + (1 - gamma) rank + violation) / cost,

    where I is what it tells beyond the picks so far and I_max what the best tells alone; rank is
    the place of its relevance among all candidates, 0 the least and 1 the most. So both run from 0
    to 1 in whatever units the objective is, and one candidate far off does not drown the others.

    Parameters
    ----------
    covariance_rr : ArrayLike
        Posterior covariances of the candidates' numbers, candidate by candidate: the matrix of
        ``model.predict(candidates, return_cov="forces").cov``. It is not changed.
    structure_r : ArrayLike
        Candidate of each number, ascending from 0: ``structure_r`` of the same record.
    noise : ArrayLike
        Standard deviation of the noise of the labels, one or one per number, in their units.
    n : int
        How many at most.
    beside : Beside
        What else counts.
    given : Sequence[int]
        Candidates that are being labelled already: what they will tell is known.
    least : float
        A candidate that tells less, in nats, is never picked.
    alike : float
        Nor is one whose numbers vary with those of a pick as they do with themselves, by this
        measure: the root of Escoufier's RV coefficient, |C_st| / sqrt(|C_ss| |C_tt|), which is 1
        for a copy, also one turned around or with its atoms in another order. (The noise alone does
        not keep copies out: a model takes a second label for an average over noise, which an oracle
        does not have.)
    budget : float
        Largest sum of costs.

    Returns
    -------
    Picked
        Without duplicates, and perhaps fewer than asked for.

    Raises
    ------
    ValueError
        If arrays do not fit together, a number is not finite, or a noise or cost is not positive.

    Notes
    -----
    Robert and Escoufier, Appl. Stat. 25, 257 (1976), for the measure of likeness; Leskovec et al.,
    KDD 13, 420 (2007), for information per cost.
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
    n_candidates = int(structure_r[-1]) + 1 if n_rows else 0
    first_s = as_int(np.searchsorted(structure_r, np.arange(n_candidates + 1)))
    noise_r = _noise(noise, n_rows)

    def block(mine: slice) -> Float:
        return matrix_rr[mine, mine] / np.outer(noise_r[mine], noise_r[mine])

    def row(mine: slice) -> Float:
        return matrix_rr[mine] / noise_r[mine, None] / noise_r

    with one_blas_thread():  # picks must not depend on how many there are
        return _pick(_Joint(first_s, block, row), n, beside, given, least, alike, budget)


def pick_by_factors(
    factors: Sequence[Float],
    noise: ArrayLike,
    n: int,
    *,
    beside: Beside = _INFORMATION_ALONE,
    given: Sequence[int] = (),
    least: float = LEAST_INFORMATION,
    alike: float = ALIKE,
    budget: float = math.inf,
) -> Picked:
    """The same from low-rank factors: their memory and not its square.

    Samples of the posterior make factors: with ``forces`` of shape (n_samples, n_atoms, 3) from
    ``model.sample(n_samples).predict(candidates)``, the transpose of ``forces - forces.mean(0)`` as
    (n_samples, 3 n_atoms), over sqrt(n_samples - 1). Samples should outnumber the numbers of a
    candidate: else all candidates move in all of the few directions there are, and look alike.

    Parameters
    ----------
    factors : Sequence[Float]
        phi_s of each candidate, shape (n_numbers, k), with C_st = phi_s phi_t^T.
    noise : ArrayLike
        As of `pick_by_covariance`.
    n : int
        As there.
    beside : Beside
        As there.
    given : Sequence[int]
        As there.
    least : float
        As there.
    alike : float
        As there.
    budget : float
        As there.

    Returns
    -------
    Picked
        That of `pick_by_covariance` for this covariance, to rounding.

    Raises
    ------
    ValueError
        As there; and if the factors have different numbers of columns.
    """
    blocks = [as_float(phi_bk) for phi_bk in factors]
    shapes = {phi_bk.shape[1:] for phi_bk in blocks}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(
            f"factors must be of shape (n_numbers, k) with one k; got {[b.shape for b in blocks]}"
        )
    counts = [len(phi_bk) for phi_bk in blocks]
    phi_rk = np.concatenate(blocks) if blocks else np.zeros((0, 1))
    if not np.isfinite(phi_rk).all():
        raise ValueError("factors are not finite: leave out candidates without them")
    first_s = as_int(np.concatenate([[0], np.cumsum(counts)]))
    phi_rk = phi_rk / _noise(noise, len(phi_rk))[:, None]
    joint = _Joint(
        first_s, lambda mine: phi_rk[mine] @ phi_rk[mine].T, lambda mine: phi_rk[mine] @ phi_rk.T
    )
    with one_blas_thread():
        return _pick(joint, n, beside, given, least, alike, budget)


def _pick(
    joint: _Joint,
    n: int,
    beside: Beside,
    given: Sequence[int],
    least: float,
    alike: float,
    budget: float,
) -> Picked:
    n_candidates = len(joint.first_s) - 1
    if n < 0 or not 0.0 < alike <= 1.0:
        raise ValueError(f"n must not be negative and alike in (0, 1]; got {n!r} and {alike!r}")
    if any(not 0 <= s < n_candidates for s in given):
        raise ValueError(f"given names candidates {list(given)}; there are 0 to {n_candidates - 1}")
    bonus_s, gamma, cost_s = _beside(beside, n_candidates)
    left = [joint.block(joint.numbers(s)) for s in range(n_candidates)]
    size_s = np.array([np.linalg.norm(block) for block in left])
    information_s = np.array([_information(block) for block in left])
    most = float(information_s.max(initial=0.0))
    rows: list[Float] = []
    known_s = np.zeros(n_candidates, dtype=int)  # how many of the rows are taken into account
    open_s = np.ones(n_candidates, dtype=bool)
    picks: list[int] = []
    told: list[float] = []
    scores: list[float] = []

    def condition(pick: int) -> None:
        """Take from all covariances what labels of the pick will tell."""
        mine = joint.numbers(pick)
        whole_br = joint.row(mine)
        open_s[_alike(whole_br, joint.first_s, size_s, pick) >= alike] = False
        open_s[pick] = False
        for W_br in rows:
            whole_br = whole_br - W_br[:, mine].T @ W_br
        noisy_bb = whole_br[:, mine] + np.eye(len(whole_br))
        try:
            L_bb = np.linalg.cholesky(0.5 * (noisy_bb + noisy_bb.T))
        except np.linalg.LinAlgError:
            raise ValueError(
                f"the covariance of candidate {pick} is not positive beyond the noise of its"
                " labels: is the matrix symmetric, or the noise too small for its rounding?"
            ) from None
        rows.append(scipy.linalg.solve_triangular(L_bb, whole_br, lower=True))

    def update(s: int) -> None:
        """Take from the covariance of a candidate what all picks so far tell."""
        for W_br in rows[known_s[s] :]:
            W_bs = W_br[:, joint.numbers(s)]
            left[s] -= W_bs.T @ W_bs
        known_s[s] = len(rows)
        information_s[s] = min(information_s[s], _information(left[s]))

    for s in dict.fromkeys(given):
        condition(s)
    while len(picks) < n:
        possible_s = open_s & (information_s >= least) & (information_s > 0.0)
        if not possible_s.any():
            return _picked(picks, told, scores, f"no other candidate tells {least:g} nats")
        affordable_s = possible_s & (cost_s <= budget)
        if not affordable_s.any():
            return _picked(picks, told, scores, "no other candidate is within the budget")
        score_s = (gamma * information_s / most + bonus_s) / cost_s
        pick = int(np.argmax(np.where(affordable_s, score_s, -np.inf)))
        # Knowing more never makes a candidate tell more: only the best has to be up to date.
        if known_s[pick] < len(rows):
            update(pick)
            continue
        picks.append(pick)
        told.append(float(information_s[pick]))
        scores.append(float(score_s[pick]))
        budget -= cost_s[pick]
        if len(picks) < n:
            condition(pick)
    return _picked(picks, told, scores, "the batch is full")


def _picked(picks: list[int], told: list[float], scores: list[float], why: str) -> Picked:
    return Picked(as_int(picks), as_float(told), as_float(scores), why)


def _information(block_bb: Float) -> float:
    """log det(1 + C) / 2, of a matrix that rounding may have moved below zero."""
    if not len(block_bb):
        return 0.0
    try:
        L_bb = np.linalg.cholesky(block_bb + np.eye(len(block_bb)))
    except np.linalg.LinAlgError:
        value_b = np.linalg.eigvalsh(block_bb)
        return 0.5 * float(np.log1p(np.maximum(value_b, 0.0)).sum())
    return max(float(np.log(np.diag(L_bb)).sum()), 0.0)


def _alike(row_br: Float, first_s: Int, size_s: Float, pick: int) -> Float:
    """Likeness of all candidates to one, 0 to 1."""
    square_r = np.concatenate([[0.0], np.cumsum(np.einsum("br,br->r", row_br, row_br))])
    norm_s = np.sqrt(np.maximum(np.diff(square_r[first_s]), 0.0))
    scale_s = np.sqrt(size_s[pick] * size_s)
    return np.divide(norm_s, scale_s, out=np.zeros_like(norm_s), where=scale_s > 0.0)


def _beside(beside: Beside, n_candidates: int) -> tuple[Float, float, Float]:
    """What is added to the weighted information, its weight, and the costs."""
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


def _noise(noise: ArrayLike, n_rows: int) -> Float:
    noise_r = as_float(noise)
    if noise_r.shape not in ((), (1,), (n_rows,)) or not np.all(noise_r > 0.0):
        raise ValueError(
            f"noise must be one positive number or one per number ({n_rows}); got shape"
            f" {noise_r.shape}. It is that of the labels: model.noise_"
        )
    return np.broadcast_to(noise_r, (n_rows,))
