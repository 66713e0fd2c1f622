"""States that no potential should be followed into: what says so at every step, at little cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.stats
from ase import Atoms, units
from ase.data import chemical_symbols, covalent_radii

from kernelpot.conventions import Float, Int, as_int
from kernelpot.neighbours import PairList

__all__ = ["Closest", "Limits", "Sanity", "Unphysical", "temperature_limit"]

_SKIN = 1.5
"""Pairs are searched anew when an atom has moved by half of it, angstrom. A search takes as long as
a hundred looks at the pairs, of which there are few at such short distances
(``benchmarks/watch.py``)."""
_FRAGMENTS_EVERY = 10
"""Steps from one look at the bonds to the next: none breaks in fewer."""


class Closest(NamedTuple):
    """Shortest distances of the training structures, by pair of species."""

    numbers: Int  # atomic numbers, ascending
    distance_zz: Float  # angstrom: `kernelpot.terms.repulsion.closest_distances`


@dataclass(frozen=True)
class Limits:
    """What is unphysical. Infinite limits and None are never passed.

    Parameters
    ----------
    closest : Closest | None
        Shortest distances that the model has learned from.
    near : float
        Atoms closer than this part of them end an exploration; the structure is worth a label.
    hopeless : float
        Closer than this part, it is not: reference calculations fail there, or teach nothing.
    temperature : float
        Highest, kelvin: `temperature_limit`.
    volume : float
        Largest factor by which the volume per atom may grow or shrink from that of the first step.
    lowest_energy : float
        Potential energy, eV/atom, below which only a hole of the model can be.
    drift : float
        Largest change of the total energy from that of the first step, eV/atom: for dynamics
        without thermostat alone.
    stretch : float | None
        Bonds are as long as this times the sum of covalent radii; an exploration ends when there
        are more separate fragments than at its first step. 1.5 serves for molecules.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    closest: Closest | None = None
    near: float = 0.8
    hopeless: float = 0.5
    temperature: float = math.inf
    volume: float = 2.0
    lowest_energy: float = -math.inf
    drift: float = math.inf
    stretch: float | None = None

    def __post_init__(self):
        if not 0.0 <= self.hopeless <= self.near <= 1.0:
            raise ValueError(
                "0 <= hopeless <= near <= 1 must hold, parts of the shortest distances; got"
                f" {self.hopeless!r} and {self.near!r}"
            )
        if not (self.temperature > 0.0 and self.volume > 1.0 and self.drift > 0.0):
            raise ValueError(
                "limits must be: temperature > 0, volume > 1, drift > 0; got"
                f" {self.temperature!r}, {self.volume!r}, {self.drift!r}"
            )
        if self.stretch is not None and not self.stretch > 1.0:
            raise ValueError(f"stretch must be above 1, a part of bond lengths: {self.stretch!r}")
        if math.isnan(self.lowest_energy):
            raise ValueError("lowest_energy must be a number, or minus infinity for none")


class Unphysical(NamedTuple):
    """What is wrong with a structure."""

    reason: (
        str  # "not finite", "too close", "temperature", "volume", "energy", "drift", "fragments"
    )
    worth_a_label: bool  # whether the truth about it would teach the model


def temperature_limit(temperature: float, n_atoms: int) -> float:
    """A temperature that only a run-away reaches.

    Parameters
    ----------
    temperature : float
        The highest of the thermostat, kelvin.
    n_atoms : int
        Of the structure: kinetic energies of few atoms fluctuate more.

    Returns
    -------
    float
        Twice it, or what kinetic energies in equilibrium exceed once in 10^9 times, kelvin.
    """
    n_free = 3 * n_atoms
    return temperature * max(2.0, float(scipy.stats.chi2.isf(1e-9, n_free)) / n_free)


class Sanity:
    """Looks at structure after structure of one exploration.

    Parameters
    ----------
    limits : Limits
        What is unphysical.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        closest = limits.closest
        self._near = self._bonds = None
        if closest is not None and limits.near > 0.0:
            self._near = PairList(limits.near * float(closest.distance_zz.max()), skin=_SKIN)
        self.restart()

    def restart(self) -> None:
        """Forget the first step: the next one is."""
        self._step = 0
        self._volume = self._total = math.nan
        self._fragments = -1

    def look(self, atoms: Atoms) -> Unphysical | None:
        """What is wrong with the next structure.

        Parameters
        ----------
        atoms : Atoms
            With a calculator whose results are those of this structure.

        Returns
        -------
        Unphysical | None
            The worst, or None.

        Raises
        ------
        ValueError
            If energy or forces are missing, or shortest distances of a species that is there.
        """
        limits, results = self.limits, atoms.calc.results
        first, self._step = self._step == 0, self._step + 1
        if not {"energy", "forces"} <= results.keys():
            raise ValueError(
                "a watch looks at energy and forces of this structure, which its calculator has not"
                f" computed (results: {sorted(results)}): call atoms.get_forces() before"
            )
        energy, forces_nc = results["energy"], results["forces"]
        # A sum is finite only if everything in it is, and takes a tenth of the time.
        if not math.isfinite(
            energy + float(forces_nc.sum()) + float(atoms.positions.sum() + atoms.cell.array.sum())
        ):
            return Unphysical("not finite", False)
        nearest = self._nearest(atoms)
        if nearest < limits.near:
            return Unphysical("too close", nearest >= limits.hopeless)
        kinetic, n_free = self._kinetic(atoms)
        if kinetic > 0.5 * n_free * units.kB * limits.temperature:
            return Unphysical("temperature", False)
        if energy < len(atoms) * limits.lowest_energy:
            return Unphysical("energy", True)
        total = energy + kinetic
        volume = math.nan
        if atoms.pbc.all():
            volume = abs(float(np.linalg.det(atoms.cell.array))) / len(atoms)
        if first:
            self._volume, self._total = volume, total
        if abs(total - self._total) > len(atoms) * limits.drift:
            return Unphysical("drift", False)
        if volume > limits.volume * self._volume or self._volume > limits.volume * volume:
            return Unphysical("volume", True)
        if limits.stretch is not None and self._step % _FRAGMENTS_EVERY == 1:
            n_fragments = self._count_fragments(atoms, limits.stretch)
            if first:
                self._fragments = n_fragments
            if n_fragments > self._fragments:
                return Unphysical("fragments", True)
        return None

    def _nearest(self, atoms: Atoms) -> float:
        """Shortest distance, as a part of that in training."""
        if self._near is None:
            return math.inf
        pairs = self._near.update(atoms.positions, atoms.cell.array, atoms.pbc)
        if not len(pairs.r_p):
            return math.inf
        closest = self.limits.closest
        i_p, j_p = atoms.numbers[pairs.i_p], atoms.numbers[pairs.j_p]
        z_p, other_p = np.searchsorted(closest.numbers, i_p), np.searchsorted(closest.numbers, j_p)
        if z_p.max() >= len(closest.numbers) or np.any(closest.numbers[z_p] != i_p):
            strange = sorted(set(atoms.numbers.tolist()) - set(closest.numbers.tolist()))
            raise ValueError(
                f"shortest distances are known of {_symbols(closest.numbers)}, not of"
                f" {_symbols(strange)}: leave out such structures, or give limits of all species"
            )
        return float((pairs.r_p / closest.distance_zz[z_p, other_p]).min())

    def _count_fragments(self, atoms: Atoms, stretch: float) -> int:
        """How many sets of atoms are not bonded to each other."""
        reach_n = stretch * covalent_radii[atoms.numbers]
        cutoff = 2.0 * float(reach_n.max())
        if self._bonds is None or self._bonds.cutoff != cutoff:
            self._bonds = PairList(cutoff, skin=_SKIN)
        pairs = self._bonds.update(atoms.positions, atoms.cell.array, atoms.pbc)
        bonded_p = pairs.r_p < reach_n[pairs.i_p] + reach_n[pairs.j_p]
        i_p, j_p = pairs.i_p[bonded_p], pairs.j_p[bonded_p]
        graph = scipy.sparse.coo_array((np.ones(len(i_p)), (i_p, j_p)), shape=(len(atoms),) * 2)
        return int(scipy.sparse.csgraph.connected_components(graph, directed=False)[0])

    def _kinetic(self, atoms: Atoms) -> tuple[float, int]:
        momenta_nc = atoms.arrays.get("momenta")
        if momenta_nc is None:
            return 0.0, 1
        square_n = np.einsum("nc,nc->n", momenta_nc, momenta_nc)
        n_free = atoms.get_number_of_degrees_of_freedom() if atoms.constraints else 3 * len(atoms)
        return 0.5 * float((square_n / atoms.get_masses()).sum()), max(n_free, 1)


def _symbols(numbers: Int | list[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in as_int(numbers))
