"""Environments of whole structures: features, and their derivatives by all positions and strain.

Structures of equal composition are kept together, so that the covariances of the full basis are
products of large arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._jit import njit
from kernelpot.conventions import LABEL_KINDS, VOIGT, Float, Int, LabelSet, Progress, System, as_int
from kernelpot.data import Structure
from kernelpot.descriptors.projected import ProjectedDescriptor
from kernelpot.descriptors.protocol import BoundDescriptor, block_of, n_blocks
from kernelpot.rows import block_of_pairs
from kernelpot.selection import system_of
from kernelpot.targets import to_learn
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion

__all__ = ["Chunk", "add_environments", "chunks_of", "jacobian_bytes"]

_CHUNK = 4
"""Structures of equal composition that are treated at once."""


class Chunk(NamedTuple):
    """Environments of structures with the same number of atoms of each species.

    Blocks of centres are the species, or one where the descriptor's centres are shared.
    """

    x_z: list[Float]  # by block of centres: (n_structures, n_z, n_features)
    J_z: list[Float]  # (n_structures, n_coordinates, n_z, n_features), by generalised coordinates
    members: Int  # places of the structures in the list
    rows: list[Int]  # of each structure: its labels among energy, then coordinates
    scale: list[Float]  # of each structure: factor of each of these rows
    y: list[Float]
    sigma: list[Float]
    label_sets: list[Int]
    alone: list[bool]  # whether it is an isolated atom


def jacobian_bytes(structures: Sequence[Structure], bound: BoundDescriptor) -> float:
    """Memory of the derivatives of all features that `chunks_of` keeps.

    Parameters
    ----------
    structures : Sequence[Structure]
        With their labels.
    bound : BoundDescriptor
        Gives features.

    Returns
    -------
    float
        Bytes.
    """
    sizes = np.array(_sizes(bound))
    return 8.0 * sum(
        (3 * s.n_atoms + 6 * bool(_strained(s)))
        * float(sizes[block_of(bound, np.searchsorted(bound.species, s.numbers_n))].sum())
        for s in structures
    )


def _sizes(bound: BoundDescriptor) -> list[int]:
    """Features of each species: axes that a species does not have are left out."""
    if isinstance(bound, ProjectedDescriptor):
        return [len(axes_kq) for axes_kq in bound.axes_z]
    return [bound.n_features] * n_blocks(bound)


def _strained(structure: Structure) -> bool:
    return bool(np.isfinite(structure.stress_v).any())


def chunks_of(
    structures: Sequence[Structure],
    bound: BoundDescriptor,
    baseline: CompositionBaseline,
    repulsion: CoreRepulsion | None,
    labels: list[LabelSet],
    tell: Progress,
) -> list[Chunk]:
    """Features and Jacobians of all environments, structures of equal composition together.

    Parameters
    ----------
    structures : Sequence[Structure]
        With their labels.
    bound : BoundDescriptor
        Gives features and Jacobians.
    baseline : CompositionBaseline
        Energy of each species' free atom.
    repulsion : CoreRepulsion | None
        What keeps cores apart.
    labels : list[LabelSet]
        Every set that a label may belong to; ``label_sets`` index it.
    tell : Progress
        Told of the stage "environments".

    Returns
    -------
    list[Chunk]
        Not in the order of the structures: ``members`` says which is which.
    """
    kinds = {}
    for s, structure in enumerate(structures):
        counts = tuple(int(np.count_nonzero(structure.numbers_n == z)) for z in bound.species)
        kinds.setdefault((counts, _strained(structure)), []).append(s)
    chunks, done = [], 0
    for (counts, strained), members in kinds.items():
        for first in range(0, len(members), _CHUNK):
            part = as_int(members[first : first + _CHUNK])
            chunks.append(
                _chunk(structures, part, counts, strained, bound, baseline, repulsion, labels)
            )
            done += len(part)
            tell("environments", done, len(structures))
    return chunks


def _chunk(
    structures: Sequence[Structure],
    members: Int,
    counts: tuple[int, ...],
    strained: bool,
    bound: BoundDescriptor,
    baseline: CompositionBaseline,
    repulsion: CoreRepulsion | None,
    labels: list[LabelSet],
) -> Chunk:
    n_s = len(members)
    n_g = 3 * sum(counts) + (6 if strained else 0)
    sizes = _sizes(bound)
    counts = counts if len(sizes) == len(counts) else (sum(counts),)
    x_z = [np.empty((n_s, n, n_q)) for n, n_q in zip(counts, sizes, strict=True)]
    J_z = [np.zeros((n_s, n_g, n, n_q)) for n, n_q in zip(counts, sizes, strict=True)]
    chunk = Chunk(x_z, J_z, members, [], [], [], [], [], [])
    for k, s in enumerate(members):
        structure = structures[s]
        system = system_of(bound, structure)
        block_n = block_of(bound, system.species_n)
        for z in range(len(sizes)):
            centres_b = as_int(np.flatnonzero(block_n == z))
            if len(centres_b):
                add_environments(bound, system, centres_b, strained, x_z[z][k], J_z[z][k])
        energy, forces_r, stress_v = to_learn(structure, system.pairs, baseline, repulsion)
        # Generalised derivatives: forces are minus those by positions, stress is that by strain
        # over the volume; energies are learned per atom, as their noise is given.
        scale = np.concatenate(
            [[1.0 / structure.n_atoms], np.full(3 * structure.n_atoms, -1.0)]
            + ([np.full(6, 1.0 / structure.volume)] if strained else [])
        )
        y = np.concatenate(
            [[energy / structure.n_atoms], forces_r] + ([stress_v] if strained else [])
        )
        known = np.flatnonzero(np.isfinite(y))
        kind = np.repeat([0, 1, 2], [1, 3 * structure.n_atoms, len(y) - 1 - 3 * structure.n_atoms])
        sigma = np.array([structure.sigma_energy, structure.sigma_forces, structure.sigma_stress])
        sets = as_int([labels.index(LabelSet(name, structure.source)) for name in LABEL_KINDS])
        chunk.rows.append(known)
        chunk.scale.append(scale[known])
        chunk.y.append(y[known])
        chunk.sigma.append(sigma[kind[known]])
        chunk.label_sets.append(sets[kind[known]])
        chunk.alone.append(structure.n_atoms == 1 and len(system.pairs.r_p) == 0)
    return chunk


def add_environments(
    bound: BoundDescriptor,
    system: System,
    centres_b: Int,
    strained: bool,
    x_bq: Float,
    J_gbq: Float,
) -> None:
    """Features, and derivatives by all positions of the structure and by strain.

    Parameters
    ----------
    bound : BoundDescriptor
        Gives features and Jacobians.
    system : System
        Species and pairs of the structure.
    centres_b : Int
        Atoms to describe.
    strained : bool
        Whether the last six coordinates are strains.
    x_bq : Float
        Receives the features.
    J_gbq : Float
        Receives derivatives by each coordinate; zero before.
    """
    pairs = system.pairs
    n_q = x_bq.shape[1]
    whole_bq, whole_pcq = bound.jacobian(system, centres_b)
    x_bq[:], J_pcq = whole_bq[:, :n_q], whole_pcq[:, :, :n_q]
    index_p, first_b = block_of_pairs(pairs.first_n, centres_b)
    J_pcq = np.ascontiguousarray(J_pcq)
    _scatter(J_pcq, first_b, pairs.j_p[index_p], pairs.D_pc[index_p], centres_b, strained, J_gbq)


@njit
def _scatter(J_pcq, first_b, j_p, D_pc, centres_b, strained, J_gbq):
    """Add derivatives by the pairs' vectors to those by positions, and by strain (Voigt, last)."""
    n_coordinates = J_gbq.shape[0]
    for b in range(centres_b.shape[0]):
        for p in range(first_b[b], first_b[b + 1]):
            for c in range(3):
                row = J_pcq[p, c]
                at_i = J_gbq[3 * centres_b[b] + c, b]
                at_j = J_gbq[3 * j_p[p] + c, b]
                for q in range(row.shape[0]):
                    at_i[q] -= row[q]
                    at_j[q] += row[q]
            if strained:
                for v in range(6):
                    c, d = VOIGT[v]
                    into = J_gbq[n_coordinates - 6 + v, b]
                    x, y = 0.5 * D_pc[p, d], 0.5 * D_pc[p, c]
                    for q in range(into.shape[0]):
                        into[q] += x * J_pcq[p, c, q] + y * J_pcq[p, d, q]
