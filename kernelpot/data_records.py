"""The records of data: structures, where their labels stand, how noisy they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase.symbols import Symbols

from kernelpot.conventions import Float, Int

__all__ = ["ORIGIN_KEY", "LabelKeys", "Noise", "Outline", "Outlined", "Structure"]

ORIGIN_KEY = "kernelpot_origin"
"""Key of ``atoms.info`` under which `read_images` keeps "train.xyz, frame 12"."""


class LabelKeys(NamedTuple):
    """Where labels stand in ``atoms.info`` and ``atoms.arrays``.

    A kind whose key is None is taken from the calculator's results. A kind whose key is named
    is taken from there only: a structure without the key has no label of this kind. (ASE moves
    an extended-XYZ ``energy`` or ``forces`` into the calculator; naming them finds them there.)
    """

    energy: str | None = None  # eV, of the whole structure
    forces: str | None = None  # eV/angstrom, (n_atoms, 3)
    stress: str | None = None  # eV/angstrom^3; 6 Voigt components, 9 or 3x3; tension positive
    virial: str | None = None  # eV; minus volume times stress, as in GAP; instead of stress


class Noise(NamedTuple):
    """Standard deviations of the labels; a dict gives one per ``atoms.info["source"]``.

    A dict's key "default" serves all sources that it does not name. ``atoms.info`` of one
    structure overrides: ``sigma_energy``, ``sigma_forces``, ``sigma_stress``.
    """

    energy: float | dict[str, float] = 1e-3  # eV/atom
    forces: float | dict[str, float] = 0.05  # eV/angstrom
    stress: float | dict[str, float] = 1e-3  # eV/angstrom^3


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure with its labels; NaN where a label, or a component of one, is missing."""

    numbers_n: Int
    positions_nc: Float  # angstrom
    cell_cc: Float  # vectors in rows, angstrom
    pbc_c: np.ndarray  # (3,) bool
    energy: float  # eV
    forces_nc: Float  # eV/angstrom
    stress_v: Float  # eV/angstrom^3
    sigma_energy: float  # eV/atom, divided by the root of the label's weight; likewise:
    sigma_forces: float  # eV/angstrom
    sigma_stress: float  # eV/angstrom^3
    group: str = ""
    source: str = ""
    name: str = "structure"

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers_n)

    @property
    def periodic(self) -> bool:
        """Whether all three directions are periodic, so that there is a volume and a stress."""
        return bool(np.all(self.pbc_c))

    @property
    def volume(self) -> float:
        """Volume of the cell, angstrom^3; NaN unless all three directions are periodic."""
        return abs(float(np.linalg.det(self.cell_cc))) if self.periodic else math.nan

    @property
    def n_labels(self) -> int:
        """Number of energies, force and stress components that are there."""
        values = (self.energy, self.forces_nc, self.stress_v)
        return int(sum(np.count_nonzero(np.isfinite(value)) for value in values))

    @property
    def has_labels(self) -> bool:
        """Whether there is any energy, force or stress component."""
        return self.n_labels > 0

    @property
    def formula(self) -> str:
        """Chemical formula, as in "Si64"."""
        return Symbols(self.numbers_n).get_chemical_formula()


class Outline(NamedTuple):
    """What a fit must know of all structures at once, some 400 bytes each.

    Geometry and forces stay where the structure is. A single atom, which may be an isolated one,
    keeps its few numbers; of all others they are None.
    """

    numbers_n: Int
    positions_nc: Float | None  # angstrom
    cell_cc: Float | None  # angstrom
    pbc_c: np.ndarray | None
    energy: float  # eV
    sigma_energy: float  # eV/atom
    group: str
    source: str
    name: str
    key: str  # SHA-256 of the structure and its labels

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers_n)


Outlined = Structure | Outline
"""What has at least an outline."""
