"""What a prediction costs, beside a Lennard-Jones field and a step of density functional theory.

Counts of floating-point operations and bytes per atom, for energy, forces and stress; divided by
the speed of a matrix product on this machine they are floors that no program falls below. What this
library takes above its floor is the share that `benchmarks/speed.py` measured, stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelpot.descriptors._soap_bound import BoundSoap
from kernelpot.descriptors.projected import projection_pays
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear, widths
from kernelpot.rows import Component

__all__ = [
    "DFT_ATOMS",
    "LENNARD_JONES_FLOPS",
    "PredictionCost",
    "dft_step_flops",
    "lennard_jones_flops",
    "neighbours_of_density",
    "prediction_cost",
    "prediction_flops",
    "valence_electrons",
]

SHARES = {"density": 0.11, "power spectrum": 0.11, "kernel": 0.85, "adjoint": 0.15}
"""Part of the speed of a matrix product that each stage reaches, as `benchmarks/speed.py` found it
on silicon with n_max 8, l_max 6 and 8, in structures of 64 to 4096 atoms."""
_REST_FLOPS = 3.5e5
"""What the rest of a step (neighbours, sums over pairs) takes, as operations of a matrix product
that would take as long: 5 microseconds per atom at 71 GFLOP/s, in the same benchmark."""
LENNARD_JONES_FLOPS = 29.0
"""Of a pair, counted once: vector 3, its square 5, inverse square and powers 5, force 4, energy 4
with its sum, force on both atoms 8."""
DFT_ATOMS = (10, 100, 1000)
"""Numbers of atoms for which a step of density functional theory is stated."""
_BANDS = 1.2
"""Bands for each pair of valence electrons."""
_CUTOFF_WAVES = 400.0
"""eV: kinetic energy of the highest plane wave."""
_ITERATIONS = 15
"""To self-consistency."""
_HBAR2_2M = 3.80998
"""hbar^2 / 2 m of the electron, eV angstrom^2 (CODATA 2018)."""
_NOBLE = (0, 2, 10, 18, 36, 54, 86)


class PredictionCost(NamedTuple):
    """Per atom, for energy, forces and stress."""

    n_neighbours: float
    flops: dict[str, float]  # by stage
    n_bytes: float  # that are read and written: pairs, features, their products
    model_bytes: float  # of the model itself, read for every block of atoms

    @property
    def total(self) -> float:
        """Operations of all stages."""
        return sum(self.flops.values())

    def floor(self, rate: float) -> float:
        """Least time at a speed.

        Parameters
        ----------
        rate : float
            Floating-point operations per second of a matrix product.

        Returns
        -------
        float
            Microseconds per atom.
        """
        return 1e6 * self.total / rate

    def expected(self, rate: float) -> float:
        """Time to be expected of this library.

        Parameters
        ----------
        rate : float
            Floating-point operations per second of a matrix product.

        Returns
        -------
        float
            Microseconds per atom.
        """
        work = sum(flops / SHARES[stage] for stage, flops in self.flops.items())
        return 1e6 * (work + _REST_FLOPS) / rate


def prediction_flops(
    n_max: int,
    l_max: int,
    n_features: int,
    n_kept: int,
    n_environments: float,
    n_neighbours: float,
) -> dict[str, float]:
    """Operations per atom that no implementation of this model can leave out.

    Parameters
    ----------
    n_max : int
        Radial functions.
    l_max : int
        Highest degree of the harmonics.
    n_features : int
        Of the power spectrum.
    n_kept : int
        Features that the kernel sees, after a projection on principal axes where they are fewer.
    n_environments : float
        Inducing environments of the atom's block.
    n_neighbours : float
        Within the cutoff.

    Returns
    -------
    dict[str, float]
        By stage; a product and its sum are two operations.
    """
    lm = (l_max + 1) ** 2
    project = 2.0 * n_features * n_kept if n_kept < n_features else 0.0
    return {
        "density": 2.0 * n_neighbours * lm * n_max,
        "power spectrum": n_features * (2.0 * l_max + 1.0) + project,
        "kernel": 2.0 * 4.0 * n_environments * n_kept,
        "adjoint": 2.0 * (2.0 * n_neighbours * lm * n_max + n_features * (2.0 * l_max + 1.0))
        + project,
    }


def prediction_cost(
    components: Sequence[Component], neighbours_g: Sequence[float]
) -> PredictionCost:
    """Operations and bytes of a prediction, per atom.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    neighbours_g : Sequence[float]
        Neighbours of an atom within the cutoff of each.

    Returns
    -------
    PredictionCost
        Of an atom of average species.
    """
    flops = dict.fromkeys(SHARES, 0.0)
    n_bytes = model_bytes = 0.0
    for component, n_neighbours in zip(components, neighbours_g, strict=True):
        bound = component.descriptor
        numbers = widths(bound)
        counts = [len(group.first_e) - 1 for group in component.inducing]
        n_environments = 1.0 if component.zeta == 1 else float(np.mean(counts))
        if not projection_pays(numbers[0], numbers[-1], n_environments):
            numbers = [numbers[0]]
        n_max, l_max = _resolution(bound)
        one = prediction_flops(n_max, l_max, numbers[0], numbers[-1], n_environments, n_neighbours)
        flops = {stage: flops[stage] + one[stage] for stage in flops}
        # Vector, length, indices and gradient of a pair; features and their gradient; products.
        n_bytes += 8.0 * (9.0 * n_neighbours + 2.0 * sum(numbers) + 4.0 * n_environments)
        model_bytes += 16.0 * numbers[-1] * (len(counts) if component.zeta == 1 else sum(counts))
    return PredictionCost(max(neighbours_g), flops, n_bytes, model_bytes)


def _resolution(bound: BoundDescriptor) -> tuple[int, int]:
    """Radial functions and highest degree; a pair potential has neither, but for four splines."""
    inner: Any = getattr(bound, "inner", None)
    if inner is not None:
        return _resolution(inner)
    if isinstance(bound, BoundSoap):
        return bound.resolution
    return (4, 0) if is_linear(bound) else (1, 0)


def neighbours_of_density(cutoff: float, density: float) -> float:
    """Neighbours of an atom where atoms are spread evenly.

    Parameters
    ----------
    cutoff : float
        Radius, angstrom.
    density : float
        Atoms per cubic angstrom.

    Returns
    -------
    float
        Their number.
    """
    return 4.0 / 3.0 * math.pi * cutoff**3 * density


def lennard_jones_flops(n_neighbours: float) -> float:
    """Operations per atom of energy and forces of a Lennard-Jones field.

    Parameters
    ----------
    n_neighbours : float
        Within its cutoff; every pair is computed once.

    Returns
    -------
    float
        `LENNARD_JONES_FLOPS` for half of them.
    """
    return 0.5 * n_neighbours * LENNARD_JONES_FLOPS


def dft_step_flops(n_atoms: int, electrons: float, volume: float) -> float:
    """Cubic part of a self-consistent calculation with plane waves, one k-point, no spin.

    In every iteration the overlaps of all bands and the Hamiltonian between them are computed, and
    the bands are rotated twice: four products of complex matrices, 8 n_bands^2 n_waves operations
    each (the part that grows as the cube of the number of atoms: Payne, Teter, Allan, Arias and
    Joannopoulos, Rev. Mod. Phys. 64, 1045 (1992)). n_waves = V k^3 / (6 pi^2) up to 400 eV, 1.2
    bands for two electrons, 15 iterations. Fourier transforms are left out.

    Parameters
    ----------
    n_atoms : int
        Atoms in the cell.
    electrons : float
        Valence electrons of an atom.
    volume : float
        Of an atom, angstrom^3.

    Returns
    -------
    float
        Operations for the whole cell.
    """
    n_bands = _BANDS * 0.5 * electrons * n_atoms
    k = math.sqrt(_CUTOFF_WAVES / _HBAR2_2M)
    n_waves = volume * n_atoms * k**3 / (6.0 * math.pi**2)
    return _ITERATIONS * 4.0 * 8.0 * n_bands**2 * n_waves


def valence_electrons(number: int) -> int:
    """Electrons of an atom outside of closed shells.

    Parameters
    ----------
    number : int
        Atomic number.

    Returns
    -------
    int
        Outside of the last noble gas, and of filled d and f shells.
    """
    core = max(z for z in _NOBLE if z < number)
    outside = number - core
    if core >= 54 and outside > 16:
        outside -= 14
    if core >= 18 and outside > 12:
        outside -= 10
    return outside
