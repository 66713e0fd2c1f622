"""The repulsion of two cores at distances that no training structure has.

The screened nuclear repulsion of Ziegler, Biersack and Littmark, switched off before the shortest
distance of the data, so that it changes no label and keeps atoms apart where the Gaussian process
knows nothing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from ase import units
from ase.data import chemical_symbols, covalent_radii
from scipy.special import expit

from kernelpot.conventions import Float, Int, Pairs, Settings, as_int
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.neighbours import find_pairs

__all__ = [
    "Contribution",
    "CoreRepulsion",
    "closest_distances",
    "fit_repulsion",
    "repulsion_from",
    "zbl",
]

log = logging.getLogger("kernelpot")

# Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Solids, vol. 1, Pergamon (1985),
# with the digits of LAMMPS's pair style zbl.
_COULOMB = units.Hartree * units.Bohr  # e^2 / (4 pi epsilon_0), eV angstrom
_LENGTH = 0.46850  # angstrom
_POWER = 0.23
_SCREENING = (
    (0.18175, 3.19980),
    (0.50986, 0.94229),
    (0.28022, 0.40290),
    (0.02817, 0.20162),
)

_INNER = 0.7
"""Inner radius as a part of the outer one."""
_MARGIN = 0.9
"""Outer radius as a part of the shortest distance, so that dynamics beyond the data are free."""
_COMPACT = 0.6
"""Hot and compressed metals come this near, in sums of covalent radii; nothing bonds below."""
_MANY = 6
"""More species pairs than this are summed up in one line."""


class Contribution(NamedTuple):
    """What an additive term gives for one structure."""

    energies_n: Float  # eV
    gradient_pc: Float  # (n_pairs, 3), dE/dD of each pair as it stands in the list, eV/angstrom


class _Table(NamedTuple):
    """Parameters by index of species."""

    numbers: Int
    inner_zz: Float
    outer_zz: Float


def zbl(z_p: Int, other_p: Int, r_p: Float) -> tuple[Float, Float]:
    """Universal screened repulsion of two nuclei, and its derivative.

    ``V(r) = Z Z' e^2 / (4 pi epsilon_0 r) phi(r / a)`` with
    ``a = 0.46850 / (Z^0.23 + Z'^0.23)`` angstrom and ``phi(x) = 0.18175 exp(-3.19980 x) +
    0.50986 exp(-0.94229 x) + 0.28022 exp(-0.40290 x) + 0.02817 exp(-0.20162 x)``.

    Parameters
    ----------
    z_p : Int
        Atomic numbers of the centres.
    other_p : Int
        Atomic numbers of the neighbours.
    r_p : Float
        Distances, positive, angstrom.

    Returns
    -------
    tuple[Float, Float]
        Energies (eV) and derivatives by the distance (eV/angstrom).

    References
    ----------
    J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Solids, vol. 1,
    Pergamon, New York (1985). The digits are those of the pair style ``zbl`` of LAMMPS.
    """
    a_p = _LENGTH / (np.power(z_p, _POWER) + np.power(other_p, _POWER))
    x_p = r_p / a_p
    phi_p, slope_p = np.zeros(len(x_p)), np.zeros(len(x_p))
    for weight, decay in _SCREENING:
        part_p = weight * np.exp(-decay * x_p)
        phi_p += part_p
        slope_p -= decay * part_p
    coulomb_p = _COULOMB * (z_p * other_p) / r_p
    return coulomb_p * phi_p, coulomb_p * (slope_p / a_p - phi_p / r_p)


@dataclass(frozen=True)
class CoreRepulsion:
    """The repulsion of Ziegler, Biersack and Littmark (`zbl`) at short distances.

    In full below the inner radius of a pair of species; between the two radii multiplied by
    ``w(t) = 1 / (1 + exp(1/(1 - t) - 1/t))`` with ``t = (r - inner) / (outer - inner)``, whose
    derivatives of every order are continuous; exactly zero from the outer radius on.

    Parameters
    ----------
    pairs : tuple[tuple[int, int], ...]
        Atomic numbers of each pair of species, the smaller one first, ascending; every pair of
        the species that occur.
    inner : tuple[float, ...]
        Radius of each pair, up to which the repulsion acts in full, angstrom.
    outer : tuple[float, ...]
        Radius of each pair, from which on there is none, angstrom.

    Raises
    ------
    ValueError
        If a pair of species is missing or stands there twice, or the radii are not
        ``0 < inner < outer``.
    """

    pairs: tuple[tuple[int, int], ...]
    inner: tuple[float, ...]
    outer: tuple[float, ...]

    def __post_init__(self):
        species = sorted({z for pair in self.pairs for z in pair})
        if list(self.pairs) != list(combinations_with_replacement(species, 2)):
            raise ValueError(
                f"pairs must hold every pair of {_symbols(species)} once, the smaller atomic "
                f"number first, ascending; got {self.pairs}"
            )
        for pair, inner, outer in zip(self.pairs, self.inner, self.outer, strict=True):
            if not 0.0 < inner < outer < np.inf:
                raise ValueError(
                    f"radii of {_name(pair)} must be 0 < inner < outer (angstrom); got {inner!r} "
                    f"and {outer!r}"
                )

    @property
    def reach(self) -> float:
        """Largest outer radius, angstrom; 0 without species."""
        return max(self.outer, default=0.0)

    def evaluate(self, numbers_n: Int, pairs: Pairs) -> Contribution:
        """Energy of each atom, and the derivative by the vector of each pair.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers.
        pairs : Pairs
            The full list, to a cutoff of at least `reach`; an atom gets half the energy of each
            of its pairs.

        Returns
        -------
        Contribution
            ``energies_n`` (n_centres,), eV, and ``gradient_pc`` (n_pairs, 3), eV/angstrom, in the
            convention of the descriptors' adjoint: the force on the centre is plus, that on the
            neighbour minus, the gradient.

        Raises
        ------
        DataError
            If an element is none of the term's.
        """
        numbers_n = as_int(numbers_n)
        table = self._table
        place_n = np.minimum(np.searchsorted(table.numbers, numbers_n), len(table.numbers) - 1)
        if (table.numbers[place_n] != numbers_n).any():
            unknown = np.setdiff1d(numbers_n, table.numbers)
            raise DataError(
                f"The core repulsion knows {_symbols(table.numbers)}, but not "
                f"{_symbols(unknown)}; fit the model again with structures of these elements."
            )
        gradient_pc = np.zeros((len(pairs.r_p), 3))
        # Few pairs, most often none, are this near: the others cost one comparison.
        near_p = np.flatnonzero(pairs.r_p < self.reach)
        if len(near_p) == 0:
            return Contribution(np.zeros(pairs.n_centres), gradient_pc)
        i_p, j_p, r_p = pairs.i_p[near_p], pairs.j_p[near_p], pairs.r_p[near_p]
        z_p, other_p = place_n[i_p], place_n[j_p]
        V_p, slope_p = zbl(numbers_n[i_p], numbers_n[j_p], r_p)
        w_p, w_slope_p = _switch(r_p, table.inner_zz[z_p, other_p], table.outer_zz[z_p, other_p])
        energies_n = np.bincount(i_p, 0.5 * V_p * w_p, minlength=pairs.n_centres)
        along_p = 0.5 * (slope_p * w_p + V_p * w_slope_p) / r_p
        gradient_pc[near_p] = along_p[:, None] * pairs.D_pc[near_p]
        return Contribution(energies_n, gradient_pc)

    @functools.cached_property
    def _table(self) -> _Table:
        numbers = np.unique(np.array(self.pairs, dtype=np.intp))
        radii_zz = np.zeros((2, len(numbers), len(numbers)))
        for (z, other), *radii in zip(self.pairs, self.inner, self.outer, strict=True):
            a, b = np.searchsorted(numbers, (z, other))
            radii_zz[:, a, b] = radii_zz[:, b, a] = radii
        return _Table(numbers, *radii_zz)

    def describe(self) -> str:
        """One line for people.

        Returns
        -------
        str
            As in "ZBL below 2.12 A (Si-Si)"; the range of the radii where there are many pairs.
        """
        if not self.pairs:
            return "none"
        if len(self.pairs) > _MANY:
            low, high = min(self.outer), max(self.outer)
            return f"ZBL below {low:.2f} to {high:.2f} A ({len(self.pairs)} pairs of species)"
        radii = zip(self.pairs, self.outer, strict=True)
        return "ZBL below " + ", ".join(f"{outer:.2f} A ({_name(p)})" for p, outer in radii)

    def to_settings(self) -> Settings:
        """JSON-ready settings from which `from_settings` makes an equal term.

        Returns
        -------
        Settings
            The fields by name.
        """
        return {
            "pairs": [[int(z) for z in pair] for pair in self.pairs],
            "inner": [float(r) for r in self.inner],
            "outer": [float(r) for r in self.outer],
        }

    @classmethod
    def from_settings(cls, settings: Settings) -> CoreRepulsion:
        """Make the term that `to_settings` described.

        Parameters
        ----------
        settings : Settings
            The fields by name.

        Returns
        -------
        CoreRepulsion
            Equal to the one described.
        """
        pairs = tuple((int(z), int(other)) for z, other in settings["pairs"])
        return cls(pairs, tuple(settings["inner"]), tuple(settings["outer"]))


def fit_repulsion(structures: Sequence[Structure], cutoff: float) -> CoreRepulsion:
    """Radii for every pair of the species in labelled structures.

    The yardstick is the sum of the covalent radii s of a pair. With q the smallest ratio r/s of
    all distances in the structures, at least 0.6 and at most 1, the outer radius of a pair is 0.9
    times the smaller of q s and its own shortest distance; the inner radius is 0.7 of that. So
    the term is zero on all structures, and a pair that they do not show, or only far apart, may
    come as near as the others do.

    Parameters
    ----------
    structures : Sequence[Structure]
        All that the model learns from, at least one.
    cutoff : float
        Of the descriptor, angstrom; no radius is larger.

    Returns
    -------
    CoreRepulsion
        Zero for every structure given.
    """
    numbers = np.unique(np.concatenate([s.numbers_n for s in structures]))
    return repulsion_from(numbers, closest_distances(structures, numbers, cutoff))


def closest_distances(structures: Sequence[Structure], numbers: Int, cutoff: float) -> Float:
    """Shortest distance of each pair of species; of several lists the least counts.

    Parameters
    ----------
    structures : Sequence[Structure]
        Some of those that the model learns from.
    numbers : Int
        Atomic numbers of all of them, ascending.
    cutoff : float
        Of the descriptor, angstrom.

    Returns
    -------
    Float
        angstrom, by pair of species; no more than the sum of covalent radii and the cutoff.
    """
    closest_zz = np.minimum(_covalent(numbers), cutoff)
    radius = float(closest_zz.max())
    for s in structures:
        pairs = find_pairs(s.positions_nc, s.cell_cc, s.pbc_c, radius)
        species_n = np.searchsorted(numbers, s.numbers_n)
        np.minimum.at(closest_zz, (species_n[pairs.i_p], species_n[pairs.j_p]), pairs.r_p)
    return closest_zz


def _covalent(numbers: Int) -> Float:
    """Sums of covalent radii of pairs of species, angstrom."""
    return covalent_radii[numbers][:, None] + covalent_radii[numbers]


def repulsion_from(numbers: Int, closest_zz: Float) -> CoreRepulsion:
    """The repulsion that `fit_repulsion` describes, from the shortest distances.

    Parameters
    ----------
    numbers : Int
        Atomic numbers, ascending.
    closest_zz : Float
        By `closest_distances`, of all structures, angstrom.

    Returns
    -------
    CoreRepulsion
        Zero for structures without shorter distances.
    """
    covalent_zz = _covalent(numbers)
    q = max(_COMPACT, float(np.min(closest_zz / covalent_zz)))
    outer_zz = _MARGIN * np.minimum(closest_zz, q * covalent_zz)
    indices = list(combinations_with_replacement(range(len(numbers)), 2))
    outer = tuple(float(outer_zz[a, b]) for a, b in indices)
    repulsion = CoreRepulsion(
        tuple((int(numbers[a]), int(numbers[b])) for a, b in indices),
        tuple(_INNER * r for r in outer),
        outer,
    )
    log.info("Core repulsion: %s", repulsion.describe())
    return repulsion


def _switch(r_p: Float, inner_p: Float, outer_p: Float) -> tuple[Float, Float]:
    """From 1 at the inner to 0 at the outer radius, and the derivative."""
    width_p = outer_p - inner_p
    t_p = (r_p - inner_p) / width_p
    # 1/t at 1e-3 is 1000: exp underflows, and the switch is exactly 0 or 1 before the clip.
    t_p = np.clip(t_p, 1e-3, 1.0 - 1e-3)
    u_p, v_p = 1.0 / t_p, 1.0 / (1.0 - t_p)
    w_p = expit(u_p - v_p)
    return w_p, -w_p * expit(v_p - u_p) * (u_p * u_p + v_p * v_p) / width_p


def _symbols(numbers: Sequence[int] | Int) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)


def _name(pair: tuple[int, int]) -> str:
    return "-".join(chemical_symbols[z] for z in pair)
