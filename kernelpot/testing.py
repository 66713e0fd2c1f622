"""Contract checks for descriptors and potentials: what every new one must pass.

A potential is any function from an ``ase.Atoms`` to (energy, forces, stress); stress may be None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms

from kernelpot.conventions import VOIGT, Float, System, as_int
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear
from kernelpot.neighbours import find_pairs

__all__ = ["check_descriptor", "check_potential", "potential_errors"]

Potential = Callable[[Atoms], tuple[float, Float, Float | None]]

_SYMMETRY = 1e-10
_DERIVATIVE = 1e-6


def potential_errors(
    potential: Potential, atoms: Atoms, steps: Sequence[float] = (4e-3, 1e-3, 3e-4)
) -> dict[str, float]:
    """Worst relative violation of each law that a potential must keep.

    Forces and stress are compared with central differences of the energy, extrapolated to an error
    of the fourth order in the step; symmetries with the untransformed prediction. A difference
    quotient has errors of its own: a long step fails where a pair passes a jump of the cutoff's
    second derivative, a short one amplifies rounding. So each component is compared at several
    steps and counts with the nearest.

    Parameters
    ----------
    potential : Potential
        Gives energy (eV), forces (eV/angstrom) and stress (eV/angstrom^3) or None.
    atoms : Atoms
        A structure without symmetry, so that no force vanishes.
    steps : Sequence[float]
        Displacements of the finite differences, angstrom; strains are the same numbers.

    Returns
    -------
    dict[str, float]
        By law: "forces", "stress" (3D periodic only), "rotation", "permutation", "translation",
        "extensivity" (periodic only), "sum of forces".
    """
    atoms = atoms.copy()
    energy, forces_nc, stress_v = potential(atoms)
    largest = np.abs(forces_nc).max()

    def moved(n: int, c: int, h: float) -> float:
        copy = atoms.copy()
        copy.positions[n, c] += h
        return potential(copy)[0]

    off_nc = [
        [_off(lambda h, n=n, c=c: moved(n, c, h), -forces_nc[n, c], steps) for c in range(3)]
        for n in range(len(atoms))
    ]
    errors = {"forces": np.max(off_nc) / largest}

    if stress_v is not None and atoms.pbc.all():

        def strained(c: int, d: int, h: float) -> float:
            strain_cd = np.eye(3)
            strain_cd[c, d] += 0.5 * h
            strain_cd[d, c] += 0.5 * h
            copy = atoms.copy()
            copy.set_cell(atoms.cell[:] @ strain_cd, scale_atoms=True)
            return potential(copy)[0]

        slope_v = stress_v * atoms.get_volume()
        off_v = [
            _off(lambda h, v=v: strained(*v, h), slope_v[k], steps) for k, v in enumerate(VOIGT)
        ]
        errors["stress"] = np.max(off_v) / np.abs(slope_v).max()

    rng = np.random.default_rng(0)
    turn_cd, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ turn_cd)
    turned.positions = atoms.positions @ turn_cd
    order = rng.permutation(len(atoms))
    shifted = atoms.copy()
    shifted.positions += [1.7, -31.0, 4.4]
    variants = {
        "rotation": (turned, 1, lambda f_nc: f_nc @ turn_cd.T),
        "permutation": (atoms[order], 1, lambda f_nc: f_nc[np.argsort(order)]),
        "translation": (shifted, 1, lambda f_nc: f_nc),
    }
    if atoms.pbc.any():
        repeat = tuple(1 + int(periodic) for periodic in atoms.pbc)
        variants["extensivity"] = (
            atoms * repeat,
            int(np.prod(repeat)),
            lambda f_nc: f_nc[: len(atoms)],
        )
    for law, (variant, copies, back) in variants.items():
        other, other_nc, _ = potential(variant)
        errors[law] = max(
            abs(other / copies - energy) / abs(energy),
            np.abs(back(other_nc) - forces_nc).max() / largest,
        )
    errors["sum of forces"] = np.abs(forces_nc.sum(axis=0)).max() / largest
    return {law: float(error) for law, error in errors.items()}


def _off(energy: Callable[[float], float], expected: float, steps: Sequence[float]) -> float:
    """Distance of the expected slope from the nearest of the numeric ones."""
    return min(abs(_slope(energy, h) - expected) for h in steps)


def _slope(energy: Callable[[float], float], h: float) -> float:
    fine = (energy(h) - energy(-h)) / (2.0 * h)
    coarse = (energy(2.0 * h) - energy(-2.0 * h)) / (4.0 * h)
    return (4.0 * fine - coarse) / 3.0


def check_potential(potential: Potential, atoms: Atoms) -> None:
    """Raise where a potential breaks a law that it must keep.

    Derivatives must agree with finite differences to 1e-6 of the largest component, symmetries
    must hold to 1e-10.

    Parameters
    ----------
    potential : Potential
        Gives energy, forces and stress (or None).
    atoms : Atoms
        A structure without symmetry.

    Raises
    ------
    AssertionError
        Naming the law, the error and the tolerance.
    """
    for law, error in potential_errors(potential, atoms).items():
        tolerance = _DERIVATIVE if law in ("forces", "stress") else _SYMMETRY
        if not error < tolerance:
            raise AssertionError(f"{law}: relative error {error:.1e}, tolerance {tolerance:.0e}")


def check_descriptor(descriptor: BoundDescriptor, atoms: Atoms) -> None:
    """Raise where a bound descriptor breaks the contract of `BoundDescriptor`.

    Parameters
    ----------
    descriptor : BoundDescriptor
        For at least the species of the structure.
    atoms : Atoms
        A structure without symmetry, in which every atom has a neighbour.

    Raises
    ------
    AssertionError
        Naming the rule: unit length (unless it is linear), Jacobian, adjoint, blocks of centres,
        rotation.
    """

    def system(positions_nc: Float, cell_cc: Float) -> System:
        species_n = np.searchsorted(descriptor.species, atoms.numbers)
        pairs = find_pairs(positions_nc, cell_cc, atoms.pbc, descriptor.cutoff)
        return System(as_int(species_n), pairs)

    def require(rule: str, found: Float, expected: Float, tolerance: float) -> None:
        error = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300)
        if not error < tolerance:
            raise AssertionError(f"{rule}: relative error {error:.1e}, tolerance {tolerance:.0e}")

    here = system(atoms.positions, atoms.cell[:])
    centres_b = as_int(np.arange(len(atoms)))
    x_bq, state = descriptor.features(here, centres_b)
    if x_bq.shape != (len(atoms), descriptor.n_features):
        raise AssertionError(f"features have the shape {x_bq.shape}, not (centres, n_features)")
    if not is_linear(descriptor):
        require("unit length", np.sum(x_bq**2, axis=1), np.ones(len(atoms)), 1e-12)
    reversed_bq, _ = descriptor.features(here, centres_b[::-1].copy())
    require("blocks of centres", reversed_bq[::-1], x_bq, 1e-12)

    also_bq, J_pcq = descriptor.jacobian(here, centres_b)
    require("features beside the Jacobian", also_bq, x_bq, 1e-12)
    g_bq = np.random.default_rng(0).standard_normal(x_bq.shape)
    out_pc = np.zeros((len(here.pairs.i_p), 3))
    descriptor.vjp(here, centres_b, state, g_bq, out_pc)
    require("adjoint", out_pc, np.einsum("pcq,pq->pc", J_pcq, g_bq[here.pairs.i_p]), 1e-10)

    # The derivative of the sum of g . x by the first atom's position, by differences and by pairs.
    def total(c: int, h: float) -> float:
        positions_nc = atoms.positions.copy()
        positions_nc[0, c] += h
        x, _ = descriptor.features(system(positions_nc, atoms.cell[:]), centres_b)
        return float(np.sum(g_bq * x))

    numeric_c = np.array([_slope(lambda h, c=c: total(c, h), 1e-3) for c in range(3)])
    i_p, j_p = here.pairs.i_p, here.pairs.j_p
    require("Jacobian", out_pc[j_p == 0].sum(0) - out_pc[i_p == 0].sum(0), numeric_c, _DERIVATIVE)

    turn_cd, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    turned = system(atoms.positions @ turn_cd, atoms.cell[:] @ turn_cd)
    require("rotation", descriptor.features(turned, centres_b)[0], x_bq, _SYMMETRY)
