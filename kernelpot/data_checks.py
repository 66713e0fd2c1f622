"""Checks of what people hand in: geometries that cannot be meant, energies in mixed units."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from ase.units import Hartree, Rydberg, kcal, kJ, mol

from kernelpot.conventions import MIN_DISTANCE, Float, Int
from kernelpot.data_records import Outlined
from kernelpot.neighbours import find_pairs

__all__ = ["DataError", "DataWarning", "check_energy_scale", "check_geometry", "check_numbers"]

_SEARCH_RADIUS = 1.0
# angstrom; a search out to MIN_DISTANCE itself is 40 to 100 times slower: vesin's cells are as
# small as the cutoff, and most of them are empty (8 ms against 0.07 ms for an aspirin molecule).

_MAX_EXTENT = 1e4
# angstrom; no calculation is larger, and vesin 0.6 divides by zero, which ends the process, where
# a long and thin structure has some 1e5 cutoffs from end to end.

_MIN_SINE = 1e-4  # cell vectors flatter than this against each other enclose no volume

_UNITS = {
    "Hartree": Hartree,
    "Rydberg": Rydberg,
    "kcal/mol": kcal / mol,
    "kJ/mol": kJ / mol,
    "meV": 1e-3,
}  # eV each


class DataError(ValueError):
    """Structures or labels that cannot be used as they are."""


class DataWarning(UserWarning):
    """Structures or labels that can be used but look wrong."""


def check_numbers(numbers_n: Int, name: str) -> None:
    """Refuse a structure without atoms or with unknown elements.

    Parameters
    ----------
    numbers_n : Int
        Atomic numbers.
    name : str
        What errors call the structure.

    Raises
    ------
    DataError
        If there is no atom, or a number that is no element's.
    """
    if len(numbers_n) == 0:
        raise DataError(f"{name} has no atoms; leave it out.")
    wrong_n = (numbers_n < 1) | (numbers_n >= len(chemical_symbols))
    if np.any(wrong_n):
        n = int(np.argmax(wrong_n))
        raise DataError(
            f"{name}: atom {n} has atomic number {numbers_n[n]}, which is no element "
            "(0 is ASE's dummy atom X). Set its element or remove the atom."
        )


def check_geometry(positions_nc: Float, cell_cc: Float, pbc_c: np.ndarray, name: str) -> None:
    """Refuse positions and cells that cannot be meant.

    Parameters
    ----------
    positions_nc : Float
        Shape (n_atoms, 3), angstrom.
    cell_cc : Float
        Shape (3, 3), cell vectors in rows, angstrom.
    pbc_c : np.ndarray
        Shape (3,), which directions are periodic.
    name : str
        What errors call the structure.

    Raises
    ------
    DataError
        If a number is not finite, a periodic direction has no usable cell vector, the
        structure is too large to be one, or two atoms (or periodic images) are nearer than
        ``conventions.MIN_DISTANCE``.
    """
    finite_n = np.isfinite(positions_nc).all(axis=1)
    if not finite_n.all():
        n = int(np.argmin(finite_n))
        raise DataError(
            f"{name}: the position of atom {n} is {positions_nc[n].tolist()}, not three finite "
            "numbers. The calculation or the file is damaged; leave the structure out."
        )
    if not np.isfinite(cell_cc).all():
        raise DataError(
            f"{name}: the cell {cell_cc.tolist()} has entries that are not finite; mend it or "
            "leave the structure out."
        )
    _check_cell(cell_cc, pbc_c, name)
    extent = max(np.ptp(positions_nc, axis=0).max(), np.abs(cell_cc[pbc_c]).max(initial=0.0))
    if extent > _MAX_EXTENT:
        raise DataError(
            f"{name} is {extent:.3g} A large, more than {_MAX_EXTENT:g} A. Look for an atom that "
            "flew away, positions that were never wrapped, or lengths in another unit."
        )
    pairs = find_pairs(positions_nc, cell_cc, pbc_c, _SEARCH_RADIUS)
    if np.min(pairs.r_p, initial=np.inf) < MIN_DISTANCE:
        p = int(np.argmin(pairs.r_p))
        i, j = int(pairs.i_p[p]), int(pairs.j_p[p])
        what = f"atom {i} and its own periodic image" if i == j else f"atoms {i} and {j}"
        raise DataError(
            f"{name}: {what} are {pairs.r_p[p]:.3g} A apart, nearer than {MIN_DISTANCE} A. Look "
            "for a duplicated atom, a cell that is too small, positions in fractions of the "
            "cell, or lengths in nm or bohr instead of A."
        )


def _check_cell(cell_cc: Float, pbc_c: np.ndarray, name: str) -> None:
    periodic = np.flatnonzero(pbc_c)
    length_c = np.linalg.norm(cell_cc, axis=1)
    for c in periodic:
        if length_c[c] < MIN_DISTANCE:
            raise DataError(
                f"{name} is periodic along cell vector {c}, which is {length_c[c]:.3g} A long. "
                "Give it a cell, or set atoms.pbc to False along this direction (a molecule "
                "has pbc=False)."
            )
    if len(periodic) > 1:
        unit_cc = cell_cc[periodic] / length_c[periodic, None]
        if np.linalg.svd(unit_cc, compute_uv=False)[-1] < _MIN_SINE:
            raise DataError(
                f"{name}: its periodic cell vectors {cell_cc[periodic].tolist()} lie in one "
                f"{'line' if len(periodic) == 2 else 'plane'}, so the cell has no volume. Mend "
                "the cell, or set atoms.pbc to False along the direction that is not periodic."
            )


def check_energy_scale(structures: Sequence[Outlined]) -> None:
    """Warn where some energies are in another unit, or per atom, and the others are not.

    A robust (least absolute residuals) composition fit says what energy per atom to expect.
    A structure is suspect where its own is far from that and comes near once multiplied by the
    ratio of two units or by its number of atoms. Dissociation curves and gases also have
    energies far from the rest, but with others in between, and then nothing is said; single
    atoms are never suspect.

    Parameters
    ----------
    structures : Sequence[Outlined]
        With energies; those without are passed over.
    """
    labelled = [s for s in structures if np.isfinite(s.energy)]
    if len(labelled) < 4:
        return
    sizes_s = np.array([s.n_atoms for s in labelled], dtype=float)
    energy_s = np.array([s.energy for s in labelled]) / sizes_s  # per atom
    expected_s = _robust_composition_fit(labelled, energy_s)
    suspicion = _mixed_units(energy_s, expected_s, sizes_s)
    if suspicion is None:
        return
    odd, even = labelled[suspicion.example], labelled[suspicion.counterexample]
    warnings.warn(
        f"{suspicion.n_suspects} of {len(labelled)} energies look as if they were "
        f"{suspicion.what}, the others not: {odd.name} has "
        f"{energy_s[suspicion.example]:.6g} eV per atom where its composition suggests "
        f"{expected_s[suspicion.example]:.6g}, while {even.name} has "
        f"{energy_s[suspicion.counterexample]:.6g} and its composition suggests "
        f"{expected_s[suspicion.counterexample]:.6g}. Energies are total energies in eV: "
        "convert them, or name the key under which the right ones stand.",
        DataWarning,
        stacklevel=2,
    )


class _Suspicion(NamedTuple):
    what: str
    n_suspects: int
    example: int
    counterexample: int


def _mixed_units(energy_s: Float, expected_s: Float, sizes_s: Float) -> _Suspicion | None:
    """The unit that explains the most structures that nothing else explains."""
    off_s = np.abs(energy_s - expected_s)
    scale_s = np.abs(expected_s)
    # Energies that scatter about zero say nothing about units.
    if np.quantile(off_s, 0.3) > 0.1 * np.median(scale_s):
        return None
    normal_s = off_s <= 0.4 * scale_s
    candidates_s = ~normal_s & (sizes_s > 1.0)
    enough = max(2.0, 0.01 * len(energy_s))
    found = []
    for what, factor_s in _factors(sizes_s):
        miss_s = np.abs(factor_s * energy_s - expected_s)
        suspect_s = candidates_s & (miss_s <= 0.2 * scale_s)
        n_suspects = int(suspect_s.sum())
        n_between = int(candidates_s.sum()) - n_suspects
        if n_suspects >= enough and 4 * n_between <= n_suspects and normal_s.any():
            found.append((np.median(miss_s[suspect_s] / scale_s[suspect_s]), what, suspect_s))
    if not found:
        return None
    _, what, suspect_s = min(found, key=lambda entry: entry[0])
    return _Suspicion(
        what,
        int(suspect_s.sum()),
        int(np.argmax(np.where(suspect_s, off_s / scale_s, -1.0))),
        int(np.argmin(np.where(normal_s, off_s, np.inf))),
    )


def _factors(sizes_s: Float) -> list[tuple[str, Float]]:
    """What an energy per atom is multiplied by to become what the others are."""
    ones_s = np.ones_like(sizes_s)
    factors = [("given per atom", sizes_s), ("totals among energies per atom", 1.0 / sizes_s)]
    for unit, value in _UNITS.items():
        factors.append((f"in {unit}", value * ones_s))
        factors.append((f"in eV among energies in {unit}", ones_s / value))
    return factors


def _robust_composition_fit(structures: Sequence[Outlined], energy_s: Float) -> Float:
    """Energy per atom by composition, least absolute residuals (reweighted least squares)."""
    species = np.unique(np.concatenate([s.numbers_n for s in structures]))
    fraction_sz = np.array([[np.mean(s.numbers_n == z) for z in species] for s in structures])
    weight_s = np.ones(len(structures))
    floor = 1e-6 * np.median(np.abs(energy_s)) + np.finfo(float).tiny
    for _ in range(40):
        root_s = np.sqrt(weight_s)
        weighted_sz = fraction_sz * root_s[:, None]
        solution_z = np.linalg.lstsq(weighted_sz, energy_s * root_s, rcond=None)[0]
        expected_s = fraction_sz @ solution_z
        weight_s = 1.0 / np.maximum(np.abs(energy_s - expected_s), floor)
        weight_s /= weight_s.max()
    return expected_s
