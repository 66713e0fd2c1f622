"""Energies along a path, its barrier, and how certain both are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.active.explorers.protocol import snapshot
from kernelpot.calculator import Calculator
from kernelpot.conventions import Covariance, Float
from kernelpot.data import structures_from_atoms
from kernelpot.structure_prediction import covariance_of

__all__ = ["Band", "band_of"]


class Band(NamedTuple):
    """What a model says of a path over a barrier."""

    energies: Float  # of each image, less that of the first, eV
    energies_std: Float  # posterior standard deviations of these differences, eV
    barrier: float  # of the highest image, from the first, eV
    barrier_std: float  # from the joint covariance of the two, eV
    reverse: float  # of the highest image, from the last, eV
    reverse_std: float
    saddle: int  # place of the highest image
    images: list[Atoms]
    cov: Covariance  # of the energies of all images

    @property
    def order(self) -> list[int]:
        """Images by how much a label would reduce the variance of the barrier, the most first.

        A label of image i takes cov(barrier, E_i)^2 / var(E_i) off the variance.
        """
        matrix = self.cov.matrix
        shared_i = matrix[self.saddle] - matrix[0]
        variance_i = np.maximum(np.diag(matrix), 1e-300)
        return np.argsort(-(shared_i**2) / variance_i, kind="stable").tolist()


def band_of(calculator: Calculator, images: Sequence[Atoms]) -> Band:
    """Energies and barrier of a path, with what is not known of them.

    Parameters
    ----------
    calculator : Calculator
        Of a model that keeps its posterior.
    images : Sequence[Atoms]
        From one end to the other, two at least.

    Returns
    -------
    Band
        Standard deviations are epistemic, not calibrated, and those of the differences themselves:
        what is unknown of all images alike cancels.

    Raises
    ------
    ValueError
        If there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"a path has two images at least, not {len(images)}")
    bare = [snapshot(atoms) for atoms in images]
    energies = []
    for atoms in bare:
        probe = atoms.copy()
        probe.calc = calculator
        energies.append(probe.get_potential_energy())
    energies = np.array(energies)
    structures = structures_from_atoms(bare, labels="ignore")
    cov = covariance_of(calculator.predictor, structures, ["energy"])
    saddle = int(energies.argmax())

    def std(i: int, j: int) -> float:
        weights = np.zeros(len(bare))
        weights[i] += 1.0
        weights[j] -= 1.0
        return cov.std(weights)

    return Band(
        energies - energies[0],
        np.array([std(i, 0) for i in range(len(bare))]),
        float(energies[saddle] - energies[0]),
        std(saddle, 0),
        float(energies[saddle] - energies[-1]),
        std(saddle, len(bare) - 1),
        saddle,
        bare,
        cov,
    )
