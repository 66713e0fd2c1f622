"""Two atoms alone, at all distances: does a model keep them apart?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike

from kernelpot.conventions import MIN_DISTANCE, Float, as_float

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Dimer", "Hole", "Well", "dimer_scan", "dimer_table"]

_FIRST = 0.3  # angstrom
_STEP = 0.02  # angstrom
_SHORTEST_BOND = 0.6
"""In sums of covalent radii: that of the chromium dimer."""
_VISIBLE = 0.01
"""Wells and barriers of less than this (eV) hold no atom at 100 K."""


class Hole(NamedTuple):
    """Where two atoms fall into each other, once they have come over a barrier."""

    distance: float  # of the lowest energy inside the barrier, angstrom
    depth: float  # below the top of the barrier, eV
    barrier: float  # distance of its top, angstrom


class Well(NamedTuple):
    """The lowest energy outside of holes."""

    distance: float  # angstrom
    energy: float  # eV, negative


class Dimer(NamedTuple):
    """Energy and force of two atoms over their distance."""

    numbers: tuple[int, int]
    distances: Float  # (n_distances,), ascending, angstrom
    energies: Float  # (n_distances,), eV, less those of the two atoms alone
    forces: Float  # (n_distances,), eV/angstrom, positive where the atoms repel each other
    hole: Hole | None
    well: Well | None

    @property
    def name(self) -> str:
        """The two elements, as in "Si-O"."""
        return "-".join(chemical_symbols[z] for z in self.numbers)

    @property
    def repulsive(self) -> bool:
        """Whether the energy has no hole at short distances."""
        return self.hole is None


def dimer_scan(model: Any, distances: ArrayLike | None = None) -> tuple[Dimer, ...]:
    """Energy and force of two atoms alone, for every pair of a model's species.

    A dimer has one minimum, if any, and below the sum of its covalent radii there is no barrier
    inside of which the energy falls again, and no minimum below 0.6 of that sum (the shortest
    bond by this measure, that of Cr2). A model that has either there has a hole, into which atoms
    may fall in dynamics.

    Parameters
    ----------
    model : Any
        A fitted `KernelPotential`.
    distances : ArrayLike | None
        Ascending, angstrom; None for 0.3 A to the model's cutoff in steps of about 0.02 A.

    Returns
    -------
    tuple[Dimer, ...]
        One for each unordered pair of species, by atomic number.

    Raises
    ------
    ValueError
        The model is not fitted, or the distances do not ascend from at least ``MIN_DISTANCE``.
    """
    if not hasattr(model, "predictor_"):
        raise ValueError("the dimers need a fitted model: call fit first, or load one")
    if distances is None:
        last = max(model.predictor_.cutoff, 2.0 * _FIRST)
        distances = np.linspace(_FIRST, last, 1 + round((last - _FIRST) / _STEP))
    distances = as_float(distances).ravel()
    steps = np.diff(distances)
    if not (len(steps) and distances[0] >= MIN_DISTANCE and np.all(steps > 0.0)):
        raise ValueError(
            f"distances must be two or more, ascend, and start at {MIN_DISTANCE} A or above; got"
            f" {distances.tolist()}"
        )
    alone = model.predict([Atoms([z]) for z in model.species_]).energy
    free = dict(zip(model.species_, alone, strict=True))
    scan = []
    for pair in combinations_with_replacement(model.species_, 2):
        predicted = model.predict([Atoms(pair, [[0, 0, 0], [0, 0, r]]) for r in distances])
        energies = predicted.energy - sum(free[z] for z in pair)
        forces = np.array([forces_nc[1, 2] for forces_nc in predicted.forces])
        hole = _hole(distances, energies, float(covalent_radii[list(pair)].sum()))
        well = _well(distances, energies, 0.0 if hole is None else hole.barrier)
        numbers = (int(pair[0]), int(pair[1]))
        scan.append(Dimer(numbers, distances, energies, forces, hole, well))
    return tuple(scan)


def dimer_table(scan: Sequence[Dimer], title: str) -> Table:
    """Dimers as a table for the terminal.

    Parameters
    ----------
    scan : Sequence[Dimer]
        From `dimer_scan`.
    title : str
        Stands above the table.

    Returns
    -------
    Table
        For rich's console.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("pair")
    first = f"{scan[0].distances[0]:g} A" if scan else "short distance"
    for name in (f"eV at {first}", "barrier at A", "hole at A", "depth eV", "minimum at A", "eV"):
        table.add_column(name, justify="right")
    for dimer in scan:
        table.add_row(
            dimer.name, f"{dimer.energies[0]:.3g}", *_hole_cells(dimer), *_well_cells(dimer)
        )
    return table


def _hole(distances: Float, energies: Float, bond: float) -> Hole | None:
    """The hole at short distances; ``bond`` is the sum of the covalent radii."""
    inner = energies[: max(2, np.searchsorted(distances, bond, side="right"))]
    lowest_before = np.minimum.accumulate(inner)
    lowest_after = np.minimum.accumulate(inner[::-1])[::-1]
    # How much a point stands out above the lower ground on both of its sides.
    prominence = inner - np.maximum(lowest_before, lowest_after)
    top = int(np.argmax(prominence))
    if prominence[top] > _VISIBLE:
        bottom = int(np.argmin(inner[:top]))
    else:
        bottom = int(np.argmin(inner))
        top = bottom + int(np.argmax(energies[bottom:]))
        too_short = distances[bottom] < _SHORTEST_BOND * bond
        if not (too_short and energies[top] - energies[bottom] > _VISIBLE):
            return None
    depth = float(energies[top] - energies[bottom])
    return Hole(float(distances[bottom]), depth, float(distances[top]))


def _well(distances: Float, energies: Float, start: float) -> Well | None:
    """The lowest energy from ``start`` on, if it is a minimum of bound atoms."""
    outside = np.flatnonzero(distances >= start)
    lowest = int(outside[np.argmin(energies[outside])])
    if lowest == len(energies) - 1 or energies[lowest] > -_VISIBLE:
        return None
    return Well(float(distances[lowest]), float(energies[lowest]))


def _hole_cells(dimer: Dimer) -> list[str]:
    if dimer.hole is None:
        return ["", "none", ""]
    hole = dimer.hole
    return [f"{hole.barrier:.2f}", f"{hole.distance:.2f}", f"{hole.depth:.3g}"]


def _well_cells(dimer: Dimer) -> list[str]:
    if dimer.well is None:
        return ["none", ""]
    return [f"{dimer.well.distance:.2f}", f"{dimer.well.energy:.3g}"]
