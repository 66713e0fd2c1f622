"""Predictions for structures, of a potential that knows atomic numbers and pairs alone."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence

import numpy as np

from kernelpot._machine import n_threads
from kernelpot.conventions import (
    Covariance,
    Float,
    Int,
    Pairs,
    System,
    VarianceTerms,
    voigt_from_tensor,
)
from kernelpot.covariances import covariance
from kernelpot.data import Structure
from kernelpot.neighbours import find_pairs
from kernelpot.prediction import Predictor

__all__ = ["covariance_of", "evaluate_structure", "time_predictions", "variances_of"]


def evaluate_structure(
    predictor: Predictor, structure: Structure
) -> tuple[float, Float, Float, Float]:
    """Energy, forces, stress and local energies of a structure.

    Parameters
    ----------
    predictor : Predictor
        A fitted potential.
    structure : Structure
        Of species that it knows.

    Returns
    -------
    tuple[float, Float, Float, Float]
        eV; (n_atoms, 3), eV/angstrom; (6,), eV/angstrom^3, NaN without a volume; (n_atoms,), eV.
    """
    found = predictor.evaluate(structure.numbers_n, _pairs(predictor, structure), structure.name)
    stress_v = np.full(6, np.nan)
    if structure.periodic:
        stress_v = voigt_from_tensor(found.strain_cd) / structure.volume
    return float(found.energies_n.sum()), found.forces_nc, stress_v, found.energies_n


def variances_of(
    predictor: Predictor, structure: Structure, kinds: Collection[str], *, jackknife: bool = False
) -> dict[str, VarianceTerms]:
    """What makes predictions for a structure uncertain.

    Parameters
    ----------
    predictor : Predictor
        A fitted potential.
    structure : Structure
        Of species that it knows.
    kinds : Collection[str]
        Of "energy", "forces", "stress" and "energies".
    jackknife : bool
        Whether their jackknife is wanted.

    Returns
    -------
    dict[str, VarianceTerms]
        As of `Predictor.variance_terms`.
    """
    pairs = _pairs(predictor, structure)
    return predictor.variance_terms(
        structure.numbers_n, pairs, _volume(structure), kinds, structure.name, jackknife=jackknife
    )


def covariance_of(
    predictor: Predictor, structures: Sequence[Structure], kinds: Sequence[str]
) -> Covariance:
    """Posterior covariances of structures, any two of their numbers.

    Parameters
    ----------
    predictor : Predictor
        A fitted potential.
    structures : Sequence[Structure]
        Of species that it knows.
    kinds : Sequence[str]
        Of "energy", "forces", "stress" and "energies".

    Returns
    -------
    Covariance
        Structure by structure.
    """
    systems = [
        System(predictor.species_of(one.numbers_n, one.name), _pairs(predictor, one))
        for one in structures
    ]
    return covariance(predictor.process, systems, [_volume(one) for one in structures], kinds)


def _volume(structure: Structure) -> float:
    return structure.volume if structure.periodic else float("nan")


def _pairs(predictor: Predictor, structure: Structure) -> Pairs:
    return find_pairs(structure.positions_nc, structure.cell_cc, structure.pbc_c, predictor.cutoff)


def time_predictions(predictor: Predictor, timed: Sequence[tuple[Int, Pairs]]) -> float:
    """What energy, forces and strain derivative cost.

    Parameters
    ----------
    predictor : Predictor
        The potential.
    timed : Sequence[tuple[Int, Pairs]]
        Atomic numbers and neighbours of structures.

    Returns
    -------
    float
        Microseconds per atom, the best of three times: of the processor where there is one thread,
        which other work on the machine does not lengthen, else of the clock.
    """
    clock = time.process_time if n_threads() == 1 else time.perf_counter
    best = math.inf
    for _ in range(3):
        started = clock()
        for numbers_n, pairs in timed:
            predictor.evaluate(numbers_n, pairs)
        best = min(best, clock() - started)
    return 1e6 * best / sum(len(numbers_n) for numbers_n, _ in timed)
