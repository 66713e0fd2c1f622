"""Properties of crystals that uncertainties are propagated to: each runs what it needs itself.

All take atoms with any ASE calculator, do not change them, and raise where there is no answer: so
that a sample of a model for which a relaxation fails is one failure of `propagate`.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.optimize import BFGS
from ase.units import GPa
from scipy.optimize import minimize_scalar

from kernelpot.conventions import Float

__all__ = ["elastic_constants", "lattice_constant", "vacancy_energy"]

_YZ = 3
"""Place of yz in Voigt's order."""


def lattice_constant(atoms: Atoms, max_strain: float = 0.1) -> float:
    """Edge of the cubic cell at which the energy is least.

    Parameters
    ----------
    atoms : Atoms
        A crystal in a cubic cell, periodic in three directions, with a calculator. Positions scale
        with the cell: symmetry has to hold atoms in place.
    max_strain : float
        How far from the given edge it is looked for, as a part of it.

    Returns
    -------
    float
        Angstrom; of the whole cell where that is a multiple of the conventional one.

    Raises
    ------
    ValueError
        If the cell is not cubic.
    RuntimeError
        If the energy has no minimum so near.
    """
    return float(_at_least_energy(atoms, max_strain).cell.lengths()[0])


def elastic_constants(
    atoms: Atoms, strain: float = 0.002, max_strain: float = 0.1, fmax: float = 1e-4
) -> Float:
    """C11, C12 and C44 of a cubic crystal at its own lattice constant.

    Central differences of the stress. Under shear the atoms of a cell are relaxed, which matters
    for diamond and not where every atom is a centre of inversion.

    Parameters
    ----------
    atoms : Atoms
        A crystal in a cubic cell with axes along x, y and z, and with a calculator that has stress.
    strain : float
        By how much the cell is strained, forth and back.
    max_strain : float
        As of `lattice_constant`.
    fmax : float
        Largest force that is left when atoms are relaxed, eV/angstrom.

    Returns
    -------
    Float
        C11, C12, C44, GPa.

    Raises
    ------
    ValueError
        If the cell is not cubic.
    RuntimeError
        If the energy has no minimum so near, or a relaxation does not end.
    """
    atoms = _at_least_energy(atoms, max_strain)

    def slope(c: int, d: int) -> Float:
        stresses = []
        for sign in (1.0, -1.0):
            strained = _copy(atoms)
            strain_cd = np.zeros((3, 3))
            strain_cd[c, d] = strain_cd[d, c] = sign * strain
            strained.set_cell(strained.cell[:] @ (np.eye(3) + strain_cd), scale_atoms=True)
            _relax(strained, fmax)
            stresses.append(strained.get_stress(voigt=True))
        return (stresses[0] - stresses[1]) / (2.0 * strain)

    stretched_v, sheared_v = slope(0, 0), slope(1, 2)
    # A component off the diagonal is half of the angle by which the cell is sheared.
    found = [stretched_v[0], 0.5 * (stretched_v[1] + stretched_v[2]), 0.5 * sheared_v[_YZ]]
    return np.array(found) / GPa


def vacancy_energy(
    atoms: Atoms, index: int = 0, max_strain: float = 0.1, fmax: float = 1e-3
) -> float:
    """Energy of taking an atom out of a crystal of one element and putting it back as bulk.

    Parameters
    ----------
    atoms : Atoms
        The whole crystal, a cubic supercell, with a calculator. It is brought to its own lattice
        constant, which the cell with the vacancy keeps.
    index : int
        The atom that is taken out.
    max_strain : float
        As of `lattice_constant`.
    fmax : float
        Largest force that is left when the atoms around are relaxed, eV/angstrom.

    Returns
    -------
    float
        E(N - 1 atoms) - (N - 1) / N E(N atoms), eV.

    Raises
    ------
    ValueError
        If the cell is not cubic or there are several elements.
    RuntimeError
        If the energy has no minimum so near, or a relaxation does not end.
    """
    if len(set(atoms.numbers.tolist())) > 1:
        raise ValueError(
            "the vacancy energy needs a crystal of one element, not"
            f" {atoms.get_chemical_formula()}: with several, it depends on where the atom goes to"
        )
    whole = _at_least_energy(atoms, max_strain)
    energy = whole.get_potential_energy()
    vacant = _copy(whole)
    del vacant[index]
    _relax(vacant, fmax)
    return float(vacant.get_potential_energy() - (len(whole) - 1) / len(whole) * energy)


def _copy(atoms: Atoms) -> Atoms:
    """A copy with the same calculator."""
    other = atoms.copy()
    other.calc = atoms.calc
    return other


def _at_least_energy(atoms: Atoms, max_strain: float) -> Atoms:
    """The crystal in the cubic cell of least energy."""
    lengths_c, angles_c = atoms.cell.lengths(), atoms.cell.angles()
    cubic = np.allclose(lengths_c, lengths_c[0], rtol=1e-6) and np.allclose(angles_c, 90.0)
    if not (cubic and atoms.pbc.all()):
        raise ValueError(
            f"a cubic cell is needed, periodic in three directions; edges are {lengths_c.tolist()},"
            f" angles {angles_c.tolist()}, pbc is {atoms.pbc.tolist()}. Take the conventional cell:"
            " ase.build.bulk(..., cubic=True)"
        )
    given = atoms
    atoms = _copy(given)

    def energy(scale: float) -> float:
        atoms.set_cell(scale * given.cell[:], scale_atoms=True)
        return atoms.get_potential_energy()

    low, high = 1.0 - max_strain, 1.0 + max_strain
    found = minimize_scalar(energy, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    if min(found.x - low, high - found.x) < 1e-3 * max_strain:
        raise RuntimeError(
            f"the energy of the crystal has no minimum within {100 * max_strain:g} % of the cell's"
            f" edge, {lengths_c[0]:.4g} A: it falls towards {found.x * lengths_c[0]:.4g} A"
        )
    atoms.set_cell(found.x * given.cell[:], scale_atoms=True)
    return atoms


def _relax(atoms: Atoms, fmax: float, steps: int = 500) -> None:
    if not BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps):
        left = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        raise RuntimeError(
            f"atoms are not relaxed after {steps} steps: a force of {left:.2g} eV/A is left, and"
            f" {fmax:g} was asked for"
        )
