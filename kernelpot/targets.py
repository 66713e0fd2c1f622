"""What is left to learn of the labels: less the baseline and the additive terms."""

from __future__ import annotations

import numpy as np

from kernelpot.conventions import Float, Pairs, voigt_from_tensor
from kernelpot.data import Structure
from kernelpot.rows import collect
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion

__all__ = ["to_learn"]


def to_learn(
    structure: Structure,
    pairs: Pairs,
    baseline: CompositionBaseline,
    repulsion: CoreRepulsion | None,
) -> tuple[float, Float, Float]:
    """Labels less what is known beforehand.

    Parameters
    ----------
    structure : Structure
        With its labels.
    pairs : Pairs
        Its neighbours, within the reach of the repulsion at least.
    baseline : CompositionBaseline
        Energy of each species' free atom.
    repulsion : CoreRepulsion | None
        What keeps cores apart.

    Returns
    -------
    tuple[float, Float, Float]
        Energy (eV), force components (eV/angstrom, one after the other), stress (eV/angstrom^3).
    """
    energy = structure.energy - baseline.energy_of(structure.numbers_n)
    forces_nc, stress_v = structure.forces_nc, structure.stress_v
    if repulsion is not None and np.any(pairs.r_p < repulsion.reach):
        energies_n, gradient_pc = repulsion.evaluate(structure.numbers_n, pairs)
        known_nc, strain_ncd = collect(
            gradient_pc, pairs.i_p, pairs.j_p, pairs.D_pc, structure.n_atoms, pairs.n_centres
        )
        energy -= float(energies_n.sum())
        forces_nc = forces_nc - known_nc
        if structure.periodic:
            stress_v = stress_v - voigt_from_tensor(strain_ncd.sum(axis=0)) / structure.volume
    return energy, forces_nc.ravel(), stress_v
