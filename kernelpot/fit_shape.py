"""Numbers that say how large a fit is: of labels, inducing variables, features, pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import LabelSet
from kernelpot.data import Structure
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear, n_blocks, widths
from kernelpot.environments import jacobian_bytes
from kernelpot.folds import folds_of
from kernelpot.label_rows import WAITING_ROWS, count_rows
from kernelpot.neighbours import find_pairs
from kernelpot.options import Options
from kernelpot.selection import choose_sample, quotas_of
from kernelpot.terms.composition import isolated_atoms

__all__ = ["Process", "Shape", "shape_of"]

_LARGEST = 4
"""Structures whose pairs are counted."""


class Process(NamedTuple):
    """One Gaussian process of a sum."""

    widths: tuple[int, ...]  # features, from those computed first to those of the kernel
    atoms_z: tuple[int, ...]  # centres of each species
    sampled_z: tuple[int, ...]  # of these, in structures among which environments are chosen
    environments_b: tuple[int, ...]  # inducing environments of each block of centres
    columns_b: tuple[int, ...]  # inducing variables of each block
    linear: bool

    @property
    def n_features(self) -> int:
        """That the kernel sees."""
        return self.widths[-1]


class Shape(NamedTuple):
    """Numbers that say how large a fit is."""

    processes: tuple[Process, ...]
    n_rows: Mapping[LabelSet, int]
    n_structures: int
    n_largest: int  # atoms of the largest structure
    most_pairs: int  # of a structure, each from both sides
    n_fronts: int  # shifts between sources
    jacobians: float  # bytes of all derivatives: the full basis keeps them
    full: bool
    robust: bool
    grouped: bool  # candidates are chosen group by group
    n_parts: int  # whose rows are reduced one after the other
    largest_part: float  # share of the atoms in the largest of them
    n_folds: int  # that are left out in turn

    @property
    def n_columns(self) -> int:
        """Weights: shifts, inducing variables."""
        return self.n_fronts + sum(sum(one.columns_b) for one in self.processes)

    @property
    def n_batch(self) -> int:
        """Structures whose rows are computed side by side, by as many threads at most."""
        rows_each = sum(self.n_rows.values()) / self.n_structures
        return min(self.n_structures, math.ceil(WAITING_ROWS / max(rows_each, 1e-9)))


def shape_of(
    structures: Sequence[Structure],
    options: Options,
    bound_g: Sequence[BoundDescriptor],
    *,
    reduced: bool = True,
) -> Shape:
    """How large a fit is.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    options : Options
        Settings.
    bound_g : Sequence[BoundDescriptor]
        The descriptors, as far as they are known.
    reduced : bool
        Whether they stand on their principal axes; of those that will, one feature is counted.

    Returns
    -------
    Shape
        With as many tangents as there may be.
    """
    species = bound_g[0].species
    cutoff = max(bound.cutoff for bound in bound_g)
    atoms_z = _count(structures, species)
    isolated = isolated_atoms(structures, cutoff)
    sample = choose_sample(structures, isolated, options.selection_sample, options.random_state)
    sampled_z = _count([structures[s] for s in sample], species)
    full = options.basis == "full"
    known = reduced or options.feature_tolerance <= 0.0
    processes = []
    for bound, one in zip(bound_g, options.components, strict=True):
        n_b = n_blocks(bound) if getattr(bound, "centre_similarity", None) is None else 1
        linear = is_linear(bound)
        if full:
            environments_z = atoms_z
        elif linear:
            environments_z = [bound.n_features] * len(species)
        else:
            environments_z = quotas_of(one.n_environments, species, sampled_z)
        if n_b == 1:
            environments_z = [bound.n_features if linear else sum(environments_z)]
        each = 2 if full else 1 + min(one.n_tangents, bound.n_features)
        processes.append(
            Process(
                tuple(widths(bound)) if known or linear else (bound.n_features, 1),
                atoms_z,
                sampled_z,
                tuple(environments_z),
                tuple(each * n for n in environments_z),
                linear,
            )
        )
    sources = {s.source for s in structures}
    folds = folds_of(structures, isolated, options.random_state)
    n_atoms = np.array([s.n_atoms for s in structures])
    return Shape(
        tuple(processes),
        count_rows(structures),
        len(structures),
        max(s.n_atoms for s in structures),
        _most_pairs(structures, cutoff),
        (len(sources) - 1) * len(species),
        jacobian_bytes(structures, bound_g[0]) if full and known else 0.0,
        full,
        options.robust is not None,
        options.balance_groups,
        len(folds.parts),
        max(float(n_atoms[part].sum()) for part in folds.parts) / float(n_atoms.sum()),
        folds.n_folds,
    )


def _count(structures: Sequence[Structure], species: Sequence[int]) -> tuple[int, ...]:
    """Atoms of each species."""
    numbers_n = np.concatenate([s.numbers_n for s in structures])
    return tuple(int(np.count_nonzero(numbers_n == z)) for z in species)


def _most_pairs(structures: Sequence[Structure], cutoff: float) -> int:
    """Pairs of the structure that has most of them, as it seems by the largest ones."""
    largest = sorted(structures, key=lambda s: s.n_atoms)[-_LARGEST:]
    return max(len(find_pairs(s.positions_nc, s.cell_cc, s.pbc_c, cutoff).r_p) for s in largest)
