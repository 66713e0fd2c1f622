"""The baseline energy of each species, taken off the labels before anything is learned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, Int, Settings, as_int
from kernelpot.data_checks import DataError
from kernelpot.data_records import Outlined
from kernelpot.neighbours import find_pairs

__all__ = [
    "CompositionBaseline",
    "energies_per_atom",
    "fit_composition",
    "is_isolated",
    "isolated_atoms",
    "least_squares",
]

log = logging.getLogger("kernelpot")

_SPREAD = 0.01  # eV; isolated atoms of one species further apart than this are worth a word


@dataclass(frozen=True)
class CompositionBaseline:
    """An energy for each species, which the composition alone decides.

    Parameters
    ----------
    numbers : tuple[int, ...]
        Atomic numbers, ascending.
    energies : tuple[float, ...]
        eV per atom of each species.
    kind : str
        Where they come from: "isolated atoms", "least squares", "isolated atoms, least squares
        for X, Y" or "none".
    """

    numbers: tuple[int, ...]
    energies: tuple[float, ...]
    kind: str

    def energies_of(self, numbers_n: Int) -> Float:
        """Baseline energy of each atom.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        Float
            Shape (n_atoms,), eV.

        Raises
        ------
        DataError
            If an element is none of the baseline's.
        """
        numbers_n = as_int(numbers_n)
        known = np.asarray(self.numbers, dtype=np.intp)
        place_n = np.minimum(np.searchsorted(known, numbers_n), len(known) - 1)
        if (known[place_n] != numbers_n).any():
            unknown = np.setdiff1d(numbers_n, known)
            raise DataError(
                f"The model knows {_symbols(self.numbers)}, but not {_symbols(unknown)}; fit it "
                "again with structures of these elements."
            )
        return np.asarray(self.energies, dtype=np.float64)[place_n]

    def energy_of(self, numbers_n: Int) -> float:
        """Baseline energy of a structure.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        float
            The sum over its atoms, eV.
        """
        return float(self.energies_of(numbers_n).sum())

    def describe(self) -> str:
        """One line for people.

        Returns
        -------
        str
            Kind and numbers, as in "isolated atoms: H -13.59, C -1029.49 eV".
        """
        if self.kind == "none":
            return "none: no energies are given"
        values = zip(self.numbers, self.energies, strict=True)
        return (
            f"{self.kind}: "
            + ", ".join(f"{chemical_symbols[z]} {e:.6g}" for z, e in values)
            + " eV"
        )

    def to_settings(self) -> Settings:
        """JSON-ready settings from which `from_settings` makes an equal baseline.

        Returns
        -------
        Settings
            The fields by name.
        """
        return {
            "numbers": [int(z) for z in self.numbers],
            "energies": [float(e) for e in self.energies],
            "kind": self.kind,
        }

    @classmethod
    def from_settings(cls, settings: Settings) -> CompositionBaseline:
        """Make the baseline that `to_settings` described.

        Parameters
        ----------
        settings : Settings
            The fields by name.

        Returns
        -------
        CompositionBaseline
            Equal to the one described.
        """
        return cls(tuple(settings["numbers"]), tuple(settings["energies"]), settings["kind"])


def fit_composition(
    structures: Sequence[Outlined], cutoff: float, reference: str | None = None
) -> tuple[CompositionBaseline, Int]:
    """Baseline of labelled structures, and which of them are left to learn from.

    Isolated atoms (no neighbour, no image within the cutoff) define it; the species without one
    get the weighted least-squares energies per atom of the other structures, of minimum norm
    where compositions do not tell species apart. Energies of other sources than the reference
    count for those species only that the reference does not have.

    Parameters
    ----------
    structures : Sequence[Outlined]
        With or without energies.
    cutoff : float
        Of the descriptor, angstrom.
    reference : str | None
        The source of labels on whose scale energies are; None where there is but one.

    Returns
    -------
    tuple[CompositionBaseline, Int]
        The baseline, and the indices of all structures but the isolated atoms that define it.
    """
    isolated = isolated_atoms(structures, cutoff)
    species = np.unique(np.concatenate([s.numbers_n for s in structures]))
    energies_z = np.zeros(len(species))
    alone_z, known_z = np.zeros((2, len(species)), dtype=bool)
    mine = [s for s, structure in enumerate(structures) if reference in (None, structure.source)]
    others = sorted(set(range(len(structures))) - set(mine))
    any_energy = False
    for part in (mine, others):
        for z, number in enumerate(species):
            atoms = [
                structures[s] for s in part
                if s in isolated and structures[s].numbers_n[0] == number
            ]  # fmt: skip
            if atoms and not known_z[z]:
                energies_z[z], alone_z[z], known_z[z] = _isolated_energy(atoms), True, True
        labelled = [
            structures[s] for s in part if s not in isolated and np.isfinite(structures[s].energy)
        ]
        if labelled:
            any_energy = True
            wanted_z = np.isin(species, np.concatenate([s.numbers_n for s in labelled])) & ~known_z
            rest_s = energies_per_atom(labelled, species, energies_z * ~wanted_z)
            energies_z[wanted_z] = least_squares(labelled, species[wanted_z], rest_s)
            known_z |= wanted_z
        if part is mine and len(others) and any_energy and not known_z.all():
            log.warning(
                "No energy of the source %r contains %s: their energies are on the scale of the "
                "other sources.", reference, _symbols(species[~known_z]),
            )  # fmt: skip
    baseline = CompositionBaseline(
        tuple(int(z) for z in species),
        tuple(float(e) for e in energies_z),
        _kind(species, alone_z, any_energy),
    )
    log.info("Baseline from %s", baseline.describe())
    return baseline, as_int([s for s in range(len(structures)) if s not in isolated])


def isolated_atoms(structures: Sequence[Outlined], cutoff: float) -> frozenset[int]:
    """Indices of single atoms with an energy that the descriptor sees alone.

    Parameters
    ----------
    structures : Sequence[Outlined]
        Where to look.
    cutoff : float
        Of the descriptor, angstrom.

    Returns
    -------
    frozenset[int]
        Indices of structures.
    """
    return frozenset(s for s, one in enumerate(structures) if is_isolated(one, cutoff))


def energies_per_atom(structures: Sequence[Outlined], species: Int, energies_z: Float) -> Float:
    """Energies per atom, less those of the composition.

    Parameters
    ----------
    structures : Sequence[Outlined]
        With energies.
    species : Int
        Atomic numbers.
    energies_z : Float
        Energy of each of these species, eV.

    Returns
    -------
    Float
        One number per structure, eV.
    """
    return np.array([s.energy / s.n_atoms for s in structures]) - (
        _fractions(structures, species) @ energies_z
    )


def least_squares(structures: Sequence[Outlined], species: Int, rest_s: Float) -> Float:
    """Energies of species that explain a rest of the energies per atom, of minimum norm.

    Parameters
    ----------
    structures : Sequence[Outlined]
        With the noise of their energies.
    species : Int
        Atomic numbers of those whose energies are wanted.
    rest_s : Float
        What they should explain, eV per atom of the whole structure.

    Returns
    -------
    Float
        One energy per species, eV.
    """
    weight_s = 1.0 / np.array([s.sigma_energy for s in structures])
    weight_s /= weight_s.max()
    matrix_sz = _fractions(structures, species) * weight_s[:, None]
    return np.linalg.lstsq(matrix_sz, rest_s * weight_s, rcond=None)[0]


def _fractions(structures: Sequence[Outlined], species: Int) -> Float:
    return np.array([[np.mean(s.numbers_n == z) for z in species] for s in structures])


def is_isolated(structure: Outlined, cutoff: float) -> bool:
    """Whether this is one atom with an energy that the descriptor sees alone.

    Parameters
    ----------
    structure : Outlined
        Any.
    cutoff : float
        Of the descriptor, angstrom.

    Returns
    -------
    bool
        True for one atom without neighbours, images included.
    """
    if structure.n_atoms != 1 or not np.isfinite(structure.energy):
        return False
    pairs = find_pairs(structure.positions_nc, structure.cell_cc, structure.pbc_c, cutoff)
    return len(pairs.r_p) == 0


def _isolated_energy(atoms: Sequence[Outlined]) -> float:
    energy_s = np.array([s.energy for s in atoms])
    if np.ptp(energy_s) > _SPREAD:
        low, high = atoms[int(np.argmin(energy_s))], atoms[int(np.argmax(energy_s))]
        log.warning(
            "Isolated atoms of one species have energies from %.6g eV (%s) to %.6g eV (%s), which "
            "may be different spin states; the lowest is used.",
            energy_s.min(), low.name, energy_s.max(), high.name,
        )  # fmt: skip
    return float(energy_s.min())


def _kind(species: Int, known_z: np.ndarray, any_energy: bool) -> str:
    if known_z.all():
        return "isolated atoms"
    if not known_z.any():
        return "least squares" if any_energy else "none"
    return f"isolated atoms, least squares for {_symbols(species[~known_z])}"


def _symbols(numbers: Sequence[int] | Int) -> str:
    return ", ".join(
        chemical_symbols[z] if 0 <= z < len(chemical_symbols) else str(z) for z in numbers
    )
