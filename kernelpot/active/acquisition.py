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
from numpy.typing import ArrayLike

from kernelpot._machine import one_blas_thread
from kernelpot.active.batches import (
    ALIKE,
    Beside,
    Picked,
    checked_covariance,
    information,
    likeness,
    noise_of,
    weights_beside,
    whitened,
)
from kernelpot.conventions import Float, Int, as_float, as_int

__all__ = ["pick_by_covariance", "pick_by_factors"]

LEAST_INFORMATION = 0.1
"""A label that tells less, in nats, is not worth a calculation."""

_INFORMATION_ALONE = Beside()


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
    matrix_rr, first_s = checked_covariance(covariance_rr, structure_r)
    noise_r = noise_of(noise, len(matrix_rr))

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
    phi_rk = phi_rk / noise_of(noise, len(phi_rk))[:, None]
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
    bonus_s, gamma, cost_s = weights_beside(beside, n_candidates)
    left = [joint.block(joint.numbers(s)) for s in range(n_candidates)]
    size_s = np.array([np.linalg.norm(block) for block in left])
    information_s = np.array([information(block) for block in left])
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
        open_s[likeness(whole_br, joint.first_s, size_s, pick) >= alike] = False
        open_s[pick] = False
        for W_br in rows:
            whole_br = whole_br - W_br[:, mine].T @ W_br
        noisy_bb = whole_br[:, mine] + np.eye(len(whole_br))
        rows.append(whitened(noisy_bb, whole_br))

    def update(s: int) -> None:
        """Take from the covariance of a candidate what all picks so far tell."""
        for W_br in rows[known_s[s] :]:
            W_bs = W_br[:, joint.numbers(s)]
            left[s] -= W_bs.T @ W_bs
        known_s[s] = len(rows)
        information_s[s] = min(information_s[s], information(left[s]))

    for s in dict.fromkeys(given):
        condition(s)
    while len(picks) < n:
        possible_s = open_s & (information_s >= least) & (information_s > 0.0)
        if not possible_s.any():
            return Picked.of(picks, told, scores, f"no other candidate tells {least:g} nats")
        affordable_s = possible_s & (cost_s <= budget)
        if not affordable_s.any():
            return Picked.of(picks, told, scores, "no other candidate is within the budget")
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
    return Picked.of(picks, told, scores, "the batch is full")
