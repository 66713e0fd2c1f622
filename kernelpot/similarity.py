"""How alike the species are, learned from systems that are left out.

A system is a set of species that occur together. What a model says of a system that it never saw
rests on how alike it takes the species to be, and errors on left-out structures of known systems
depend on that little (NbMoTaW, 300 structures: forces of known binaries 41 to 55 meV/angstrom for
similarities of 0 to 0.95, those of unknown ones 28 to 147). So whole systems are left out in turn
(`folds`).

The similarity matrix starts from the best single number for all pairs. With it, environments of
unlike centres share what is learned of them (`SharedCentres`), where that helps: what is known of
tungsten in hot tungsten then counts for niobium in an alloy. A second process that tells no species
apart may stand beside it: what all have in common is then learned from all, and the first one
learns what sets them apart. Then one pair of species after the other is made more or less alike,
for as long as that lowers the error. The matrix is kept positive semi-definite with a unit
diagonal, and written as the fewest channels that reproduce it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, Progress

__all__ = [
    "SCATTER",
    "Alike",
    "channels",
    "learn_similarity",
    "nearest_similarity",
]

_UNIFORM = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
"""Similarities of all pairs that are tried first."""
_CENTRES = 0.95
"""Similarity of unlike centres that is tried then (NbMoTaW, systems left out: independent 39.6
meV/angstrom, 0.7 28.6, 0.9 22.5, 0.95 21.7, 1 21.7; hot crystals of one species 89.9, 84.5, 82.0,
81.0, 79.8)."""
_BESIDE_COMMON = (0.9, 0.9)
"""Similarities of neighbours and of centres that are tried beside a process that tells no species
apart, other than those that are best alone: less alike, as what is common is taken care of (mean
of an earlier score, three parts of NbMoTaW: 0.98 and 0.95 -1.57, 0.95 and 0.95 -1.67, 0.9 and 0.9
-1.72, 0.8 and 0.7 -1.59)."""
_FACTORS = (1.0 / 3.0, 3.0)
"""By these the dissimilarity of one pair is changed."""
_LEAST = 0.005
"""Least dissimilarity: below it there is nothing to be told apart."""
SCATTER = 0.05
"""Least gain of the score for which anything but one number for all is preferred: by as much do
differences of scores vary between parts of the data (an earlier score, that weighed systems more,
on four parts of NbMoTaW, 121 structures each: 0.8 and 0.7 instead of 0.9 beside a common process
are better by 0.04 and 0.00, worse by 0.15 and 0.21)."""
_DROPPED = 1e-3
"""Channels of less weight than this, of one for each species, are left out."""


class Alike(NamedTuple):
    """How alike species are as neighbours, and as centres."""

    neighbours_zz: Float
    centres: float | None  # None: environments of unlike centres are independent
    common: bool = False  # whether a process that tells no species apart is added


def learn_similarity(
    species: Sequence[int],
    judge: Callable[[str, Alike], float],
    *,
    start: float,
    deadline: float,
    tell: Progress,
) -> Alike:
    """The similarity of least error on systems left out.

    Parameters
    ----------
    species : Sequence[int]
        Atomic numbers.
    judge : Callable[[str, Alike], float]
        Score of a similarity, which it gets with its description; lower is better.
    start : float
        Similarity of all pairs that is tried first: the result is not worse, whatever the time.
    deadline : float
        ``time.perf_counter()`` after which nothing new is tried.
    tell : Progress
        Told of the stage "species".

    Returns
    -------
    Alike
        The matrix, shape (n_species, n_species), the similarity of unlike centres, and whether
        there is a second process.
    """
    n = len(species)
    names = [chemical_symbols[z] for z in species]
    pairs = list(itertools.combinations(range(n), 2))
    total = len(_UNIFORM) + 4 + len(_FACTORS) * len(pairs)
    n_done, best, least = 0, Alike(np.eye(n), None), np.inf

    def judged(words: str, alike: Alike) -> float:
        nonlocal n_done
        score = judge(words, alike)
        n_done += 1
        tell("species", min(n_done, total), total)
        return score

    def uniform(value: float) -> Float:
        return np.full((n, n), value) + (1.0 - value) * np.eye(n)

    for value in dict.fromkeys((start, *_UNIFORM)):
        if n_done and time.perf_counter() > deadline:
            break
        alike = Alike(uniform(value), None)
        score = judged(f"all species alike by {value:g}", alike)
        if score < least:
            best, least = alike, score
    if time.perf_counter() < deadline:
        alike = best._replace(centres=_CENTRES)
        score = judged(f"unlike centres alike by {_CENTRES:g}", alike)
        if score < least - SCATTER:
            best, least = alike, score
    beside = [Alike(uniform(_BESIDE_COMMON[0]), _BESIDE_COMMON[1])]
    beside += [best] if best.centres is not None else []
    for alike in beside:
        if time.perf_counter() > deadline:
            break
        words = f"all species alike by {alike.neighbours_zz[0, -1]:g}, centres {alike.centres:g}"
        score = judged(f"{words}, and what all have in common", alike._replace(common=True))
        if score < least - SCATTER:
            best, least = alike._replace(common=True), score
    for i, j in pairs:
        for factor in _FACTORS:
            steps = 0
            while time.perf_counter() < deadline:
                similarity_zz = best.neighbours_zz.copy()
                unlike = np.clip(factor * (1.0 - similarity_zz[i, j]), _LEAST, 1.0)
                similarity_zz[i, j] = similarity_zz[j, i] = 1.0 - unlike
                similarity_zz = nearest_similarity(similarity_zz)
                if np.abs(similarity_zz - best.neighbours_zz).max() < 1e-3:
                    break
                words = f"{names[i]} and {names[j]} alike by {similarity_zz[i, j]:.3g}"
                changed = best._replace(neighbours_zz=similarity_zz)
                score = judged(words, changed)
                if score > least - SCATTER:
                    break
                best, least, steps = changed, score, steps + 1
            if steps:
                break
    tell("species", total, total)
    return best


def nearest_similarity(matrix_zz: Float) -> Float:
    """A similarity matrix near a symmetric matrix of unit diagonal.

    Parameters
    ----------
    matrix_zz : Float
        Not necessarily positive semi-definite.

    Returns
    -------
    Float
        Without its negative eigenvalues, scaled to the unit diagonal.
    """
    value_k, vectors_zk = np.linalg.eigh(matrix_zz)
    positive_zz = (vectors_zk * np.maximum(value_k, 0.0)) @ vectors_zk.T
    scale_z = 1.0 / np.sqrt(np.diag(positive_zz))
    return positive_zz * scale_z[:, None] * scale_z


def channels(similarity_zz: Float, species: Sequence[int]) -> dict[str, list[float]]:
    """What `Soap` takes as ``species_mixing``: the weights of each species in every channel.

    Parameters
    ----------
    similarity_zz : Float
        Positive semi-definite, with unit diagonal.
    species : Sequence[int]
        Atomic numbers.

    Returns
    -------
    dict[str, list[float]]
        By chemical symbol; channels that weigh little are left out.
    """
    value_k, vectors_zk = np.linalg.eigh(similarity_zz)
    kept = value_k > _DROPPED * len(species)
    weights_zk = (np.sqrt(value_k[kept]) * vectors_zk[:, kept])[:, ::-1]
    return {
        chemical_symbols[z]: [round(float(w), 6) for w in weights]
        for z, weights in zip(species, weights_zk, strict=True)
    }
