"""What a descriptor cannot see: errors that differ where environments do not.

The semivariance of a number f that belongs to environments,

    gamma(d) = < (f_i - f_j)^2 > / 2    over pairs of environments at the distance d,

goes to zero with d where f is a continuous function of what the descriptor sees. What is left of
it for the nearest pairs (the nugget of geostatistics: Matheron, Econ. Geol. 58, 1246 (1963)) is
noise of the labels, or something that the descriptor does not see: atoms beyond the cutoff,
correlations of more atoms than it has. Here f is the error of the norm of the force on an atom,
which does not depend on the orientation; what the model has learned is taken off by that.

Where the nugget is the whole variance of the errors, more data of the same kind, or more inducing
variables, will not make them smaller: a longer cutoff, another descriptor or cleaner labels may.
Where it is little of it, neighbouring environments have errors in common, which can be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float, as_int
from kernelpot.data import Structure
from kernelpot.fitted import Fitted
from kernelpot.prediction import Predictor
from kernelpot.selection import system_of
from kernelpot.structure_prediction import evaluate_structure

__all__ = ["Nugget", "nugget", "nuggets_of"]

_NEAREST = 0.1
"""Share of the environments, those with the nearest neighbours, whose pairs count."""
_LEAST_PAIRS = 30
_BLOCK = 1024


class Nugget(NamedTuple):
    """Errors of nearest environments, and of all."""

    nugget: float  # standard deviation of what nearest environments do not have in common
    sill: float  # standard deviation of all
    distance: float  # median distance of the pairs, of unit vectors: 0 to sqrt(2)
    count: int  # pairs

    @property
    def share(self) -> float:
        """Of the variance of the errors that nearest environments do not have in common."""
        return (self.nugget / self.sill) ** 2 if self.sill > 0.0 else float("nan")


def nugget(x_nq: Float, error_n: Float) -> Nugget:
    """Semivariance of errors at the smallest distances of their environments.

    Parameters
    ----------
    x_nq : Float
        Unit vectors of environments, shape (n, n_features).
    error_n : Float
        Of each, shape (n,).

    Returns
    -------
    Nugget
        Of each environment with its nearest other one, a tenth of such pairs, the nearest; NaN with
        fewer than two environments.
    """
    if len(x_nq) < 2:
        return Nugget(float("nan"), 0.0, float("nan"), 0)
    nearest_n = np.empty(len(x_nq), dtype=np.intp)
    X_n = np.empty(len(x_nq))
    for first in range(0, len(x_nq), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(x_nq)))
        X_bn = x_nq[rows] @ x_nq.T
        X_bn[np.arange(len(X_bn)), np.arange(rows.start, rows.stop)] = -np.inf
        nearest_n[rows] = X_bn.argmax(axis=1)
        X_n[rows] = X_bn.max(axis=1)
    chosen = np.argsort(-X_n, kind="stable")[: max(_LEAST_PAIRS, int(_NEAREST * len(x_nq)))]
    # Two environments that are nearest to one another are one pair.
    pairs = np.unique(np.sort(np.stack([chosen, nearest_n[chosen]], axis=1), axis=1), axis=0)
    half = 0.5 * (error_n[pairs[:, 0]] - error_n[pairs[:, 1]]) ** 2
    X_p = np.sum(x_nq[pairs[:, 0]] * x_nq[pairs[:, 1]], axis=1)
    apart = np.sqrt(np.maximum(2.0 - 2.0 * X_p, 0.0))
    return Nugget(
        float(np.sqrt(half.mean())), float(np.std(error_n)), float(np.median(apart)), len(pairs)
    )


def nuggets_of(
    fitted: Fitted,
    predictor: Predictor,
    structures: Sequence[Structure],
    *,
    n_sample: int = 5000,
    random_state: int | None = 0,
) -> dict[int, Nugget]:
    """Of the errors of the norms of forces, species by species.

    Parameters
    ----------
    fitted : Fitted
        A fit, whose first descriptor compares environments.
    predictor : Predictor
        Its potential.
    structures : Sequence[Structure]
        With forces; those it was fitted to, or others.
    n_sample : int
        Atoms of each species at most.
    random_state : int | None
        Seed of their choice.

    Returns
    -------
    dict[int, Nugget]
        By atomic number, eV/angstrom; species without forces are left out.
    """
    bound = fitted.components[0].descriptor
    x_parts: list[Float] = []
    numbers: list[np.ndarray] = []
    errors: list[Float] = []
    for one in structures:
        known_n = np.isfinite(one.forces_nc).all(axis=1)
        if not known_n.any():
            continue
        x_nq, _ = bound.features(system_of(bound, one), as_int(np.arange(one.n_atoms)))
        forces_nc = evaluate_structure(predictor, one)[1]
        error_n = np.linalg.norm(forces_nc, axis=1) - np.linalg.norm(one.forces_nc, axis=1)
        x_parts.append(x_nq[known_n])
        numbers.append(one.numbers_n[known_n])
        errors.append(error_n[known_n])
    if not x_parts:
        return {}
    x_nq, numbers_n, error_n = map(np.concatenate, (x_parts, numbers, errors))
    rng = np.random.default_rng(random_state)
    found = {}
    for number in np.unique(numbers_n).tolist():
        mine = np.flatnonzero(numbers_n == number)
        mine = np.sort(rng.choice(mine, min(n_sample, len(mine)), replace=False))
        # Principal axes shorten vectors a little; distances are those of unit vectors.
        x_mq = x_nq[mine] / np.maximum(np.linalg.norm(x_nq[mine], axis=1), 1e-300)[:, None]
        found[number] = nugget(x_mq, error_n[mine])
    return found
