"""Rows of the design matrix: what a structure's labels say of the weights, and its noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._machine import ahead
from kernelpot.conventions import (
    LABEL_KINDS,
    Float,
    Int,
    LabelSet,
    Progress,
    as_int,
)
from kernelpot.data import Structure
from kernelpot.gp.triangles import RowReducer, Triangle, empty_triangle
from kernelpot.memory import Room
from kernelpot.rows import Component, structure_rows
from kernelpot.selection import system_of
from kernelpot.sources import SourceShifts
from kernelpot.targets import to_learn
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion

__all__ = ["WAITING_ROWS", "Known", "LabelRows", "add_rows", "count_rows", "label_rows"]

WAITING_ROWS = 1024
"""Rows of structures that are computed ahead of their reduction, by other threads."""


class Known(NamedTuple):
    """What a fit knows before it learns weights."""

    components: tuple[Component, ...]
    baseline: CompositionBaseline
    repulsion: CoreRepulsion | None
    shifts: SourceShifts
    room: Room = Room()

    @property
    def n_columns(self) -> int:
        """Weights to be learned: shifts between sources, then inducing variables."""
        return self.shifts.n_columns + sum(c.n_columns for c in self.components)


class LabelRows(NamedTuple):
    """Rows of one kind of label of one structure."""

    label: LabelSet
    A_rm: Float  # columns that are missing on the left are zero
    y_r: Float  # label less what is known beforehand
    sigma_r: Float
    place_r: Int  # which of the structure's numbers of this kind, in C order


def label_rows(structure: Structure, known: Known) -> list[LabelRows]:
    """Rows of all labels of a structure, kind by kind.

    Parameters
    ----------
    structure : Structure
        With labels.
    known : Known
        What the rows are about, and what is taken off the labels.

    Returns
    -------
    list[LabelRows]
        Energies per atom, force components, stress components; none where there is no label.
    """
    has_forces = np.flatnonzero(np.isfinite(structure.forces_nc.ravel()))
    has_stress = np.flatnonzero(np.isfinite(structure.stress_v))
    has_energy = np.isfinite(structure.energy)
    gradients = len(has_forces) + len(has_stress) > 0
    found: list[LabelRows] = []
    if not (gradients or has_energy):
        return found
    longest = max((c.descriptor for c in known.components), key=lambda bound: bound.cutoff)
    system = system_of(longest, structure)
    rows = structure_rows(known.components, system, gradients=gradients, room=known.room)
    energy, forces_r, stress_v = to_learn(structure, system.pairs, known.baseline, known.repulsion)
    energy -= known.shifts.start_of(structure.source, structure.numbers_n)

    def add(kind: str, A_rm: Float, y_r: Float, sigma: float, place_r: Int) -> None:
        label = LabelSet(kind, structure.source)
        found.append(LabelRows(label, A_rm, y_r, np.full(len(y_r), sigma), as_int(place_r)))

    if has_energy:
        # sigma_energy is per atom, so the row is the energy per atom.
        counts_k = known.shifts.counts(structure.source, structure.numbers_n)
        row_m = np.concatenate([counts_k, rows.energy_m]) / structure.n_atoms
        per_atom = np.array([energy / structure.n_atoms])
        add("energy", row_m[None, :], per_atom, structure.sigma_energy, as_int([0]))
    if len(has_forces):
        all_there = len(has_forces) == len(forces_r)
        A_rm = rows.forces_rm if all_there else rows.forces_rm[has_forces]
        add("forces", A_rm, forces_r[has_forces], structure.sigma_forces, has_forces)
    if len(has_stress):
        A_rm = rows.strain_vm[has_stress] / structure.volume
        add("stress", A_rm, stress_v[has_stress], structure.sigma_stress, has_stress)
    return found


def count_rows(structures: Sequence[Structure]) -> dict[LabelSet, int]:
    """How many labels of each set there are.

    Parameters
    ----------
    structures : Sequence[Structure]
        With their labels.

    Returns
    -------
    dict[LabelSet, int]
        By source, and then by kind; without those that are not there.
    """
    sources = sorted({structure.source for structure in structures})
    found = {LabelSet(kind, source): 0 for source in sources for kind in LABEL_KINDS}
    for s in structures:
        for kind, values in zip(LABEL_KINDS, (s.energy, s.forces_nc, s.stress_v), strict=True):
            found[LabelSet(kind, s.source)] += int(np.count_nonzero(np.isfinite(values)))
    return {label: n for label, n in found.items() if n}


def add_rows(
    triangles: Mapping[LabelSet, Triangle],
    structures: Sequence[Structure],
    known: Known,
    tell: Progress,
    see: Callable[[Structure, list[LabelRows]], None] | None = None,
) -> dict[LabelSet, Triangle]:
    """Absorb the rows of the structures into the triangle of each set of labels.

    Parameters
    ----------
    triangles : Mapping[LabelSet, Triangle]
        Statistics of rows that are absorbed already.
    structures : Sequence[Structure]
        New ones.
    known : Known
        What the rows are about, and what is taken off the labels.
    tell : Progress
        Told of the stage "rows".
    see : Callable[[Structure, list[LabelRows]], None] | None
        Called with each structure and its rows.

    Returns
    -------
    dict[LabelSet, Triangle]
        Statistics of all rows, of the sets that have any.
    """
    n_rows = count_rows(structures)
    reducers = {
        label: RowReducer(
            triangles.get(label, empty_triangle(known.n_columns)),
            max(1, min(known.room.n_buffer, n_rows.get(label, 0))),
        )
        for label in dict.fromkeys([*triangles, *n_rows])
    }
    compute = functools.partial(label_rows, known=known)
    sizes = [structure.n_labels for structure in structures]
    for done, found in enumerate(ahead(compute, structures, sizes, WAITING_ROWS)):
        for label, A_rm, y_r, sigma_r, _ in found:
            reducers[label].add(A_rm, y_r, sigma_r)
        if see is not None:
            see(structures[done], found)
        tell("rows", done + 1, len(structures))
    finished = {label: reducer.finish() for label, reducer in reducers.items()}
    return {label: triangle for label, triangle in finished.items() if triangle.n_rows}
