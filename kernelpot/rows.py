"""One structure in, its rows of K_rm out: the covariances of its energy, forces and stress with
the inducing variables. Descriptors meet Gaussian processes here and nowhere else."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._jit import njit
from kernelpot._machine import side_by_side
from kernelpot.conventions import Float, Int, System, as_int
from kernelpot.descriptors.protocol import BoundDescriptor, block_of, is_linear, widths
from kernelpot.gp.covariances import K_bm, add_gradient_rows, offsets
from kernelpot.gp.inducing import Inducing
from kernelpot.memory import Room
from kernelpot.neighbours import within

_DEFAULT = Room()
_COLUMNS = 512
"""Inducing variables that a thread treats at once."""
_CENTRES = 8
"""Centres whose derivatives are multiplied with these at once."""


class Component(NamedTuple):
    """One Gaussian process of the sum: what it sees, its kernel, its inducing variables."""

    descriptor: BoundDescriptor
    zeta: int
    inducing: tuple[Inducing, ...]  # one record for each species, or one that all share

    @property
    def n_columns(self) -> int:
        """Number of inducing variables."""
        return sum(len(group.Z_mq) for group in self.inducing)

    @property
    def n_environments(self) -> int:
        """Number of inducing environments; the features of a linear descriptor are none."""
        if is_linear(self.descriptor):
            return 0
        return sum(len(group.first_e) - 1 for group in self.inducing)


class StructureRows(NamedTuple):
    """Covariances with the inducing variables, in units of delta^2; None where not asked for."""

    energy_m: Float  # of the total energy
    energies_nm: Float | None  # of the energies of atoms
    forces_rm: Float | None  # (3 n_atoms, m), of the force components
    strain_vm: Float | None  # (6, m), of dE/dstrain, Voigt


def centre_blocks(component: Component, species_n: Int, block: int) -> list[tuple[int, Int]]:
    """Centres that have the same inducing variables, some at a time.

    Parameters
    ----------
    component : Component
        Says which centres these are: those of one species, or all.
    species_n : Int
        Index of each atom's species.
    block : int
        Largest number of centres at a time.

    Returns
    -------
    list[tuple[int, Int]]
        Place of the record of inducing variables, and centres.
    """
    blocks = []
    block_n = block_of(component.descriptor, species_n)
    for z in range(len(component.inducing)):
        centres_b = np.flatnonzero(block_n == z)
        blocks += [(z, as_int(centres_b[k : k + block])) for k in range(0, len(centres_b), block)]
    return blocks


def block_of_pairs(first_n: Int, centres_b: Int) -> tuple[Int, Int]:
    """Pairs of the given centres, concatenated.

    Parameters
    ----------
    first_n : Int
        Offsets of all centres' pairs.
    centres_b : Int
        Centres.

    Returns
    -------
    tuple[Int, Int]
        Indices of the pairs, and offsets of each centre's pairs among them.
    """
    counts_b = first_n[centres_b + 1] - first_n[centres_b]
    first_b = np.concatenate([[0], np.cumsum(counts_b)]).astype(np.intp)
    index_p = np.arange(first_b[-1]) + np.repeat(first_n[centres_b] - first_b[:-1], counts_b)
    return as_int(index_p), first_b


def structure_rows(
    components: Sequence[Component],
    system: System,
    *,
    gradients: bool,
    local: bool = False,
    room: Room = _DEFAULT,
) -> StructureRows:
    """Rows of K_rm of one structure.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    system : System
        The structure, with pairs within the longest cutoff at least.
    gradients : bool
        Whether forces and strain derivatives are wanted.
    local : bool
        Whether energies of atoms are.
    room : Room
        Bounds the derivatives of a block of centres and their products.

    Returns
    -------
    StructureRows
        Columns are ordered by component, then species, then environment by environment.
    """
    n_columns = sum(component.n_columns for component in components)
    n_atoms = len(system.species_n)
    rows = StructureRows(
        np.zeros(n_columns),
        np.zeros((n_atoms, n_columns)) if local else None,
        np.zeros((3 * n_atoms, n_columns)) if gradients else None,
        np.zeros((6, n_columns)) if gradients else None,
    )
    first = 0
    for component in components:
        near = System(system.species_n, within(system.pairs, component.descriptor.cutoff)[0])
        _add_component(component, near, first, rows, room)
        first += component.n_columns
    return rows


def centres_at_once(room: Room, bound: BoundDescriptor, first_n: Int, n_columns: int = 0) -> int:
    """How many centres' derivatives there is room for.

    Parameters
    ----------
    room : Room
        What they may take, with their products.
    bound : BoundDescriptor
        Whose derivatives are meant.
    first_n : Int
        Offsets of the pairs of all centres.
    n_columns : int
        Vectors with which the derivatives are multiplied.

    Returns
    -------
    int
        At least one.
    """
    numbers = widths(bound)
    # Features and those that they stand on are there at once, and later their products.
    widest = max([numbers[-1] + n_columns, *(a + b for a, b in itertools.pairwise(numbers))])
    n_pairs = int(np.diff(first_n).max(initial=1))
    return int(np.clip(room.block / (24.0 * widest * max(n_pairs, 1)), 1, 4096))


def _add_component(
    component: Component, system: System, first: int, rows: StructureRows, room: Room
) -> None:
    """Add one component's covariances to its columns, which begin at ``first``."""
    descriptor, zeta, inducing = component
    pairs = system.pairs
    gradients = rows.forces_rm is not None
    column_z = first + offsets([len(group.Z_mq) for group in inducing])
    most = max(len(group.Z_mq) for group in inducing)
    if gradients:
        block = centres_at_once(room, descriptor, pairs.first_n, most)
    else:  # some arrays of the covariances of local energies
        widest = sum(widths(descriptor)) + 6 * most
        block = int(np.clip(room.block / (8.0 * widest), 1, 4096))
    for z, centres_b in centre_blocks(component, system.species_n, block):
        group = inducing[z]
        if len(group.Z_mq) == 0:
            continue
        # Derivatives of a few centres at a time: by all threads, and their products, whose memory
        # is used again, stay in the cache.
        size = _CENTRES if gradients else len(centres_b)
        few = [centres_b[first : first + size] for first in range(0, len(centres_b), size)]
        pieces = side_by_side(functools.partial(_describe, descriptor, system, gradients), few)
        add = functools.partial(_add_columns, group, zeta, pieces, rows, int(column_z[z]))
        side_by_side(add, _slices(group))


class _Piece(NamedTuple):
    """Some centres, and where the derivatives of their features go."""

    centres_b: Int
    x_bq: Float
    J_rq: Float | None  # None where derivatives are not wanted
    first_b: Int
    i_p: Int
    j_p: Int
    D_pc: Float


def _describe(
    descriptor: BoundDescriptor, system: System, gradients: bool, centres_b: Int
) -> _Piece:
    J_rq = None
    if gradients:
        x_bq, J_pcq = descriptor.jacobian(system, centres_b)
        J_rq = J_pcq.reshape(-1, descriptor.n_features)
    else:
        x_bq, _ = descriptor.features(system, centres_b)
    pairs = system.pairs
    index_p, first_b = block_of_pairs(pairs.first_n, centres_b)
    ends = pairs.i_p[index_p], pairs.j_p[index_p], pairs.D_pc[index_p]
    return _Piece(centres_b, x_bq, J_rq, first_b, *ends)


def _add_columns(
    group: Inducing,
    zeta: int,
    pieces: Sequence[_Piece],
    rows: StructureRows,
    column: int,
    environments: slice,
) -> None:
    """Add covariances with some of the environments of a group whose first column is given."""
    first_e = group.first_e[environments.start : environments.stop + 1]
    part = Inducing(group.Z_mq[first_e[0] : first_e[-1]], first_e - first_e[0])
    columns = slice(column + int(first_e[0]), column + int(first_e[-1]))
    most = max(0 if piece.J_rq is None else len(piece.J_rq) for piece in pieces)
    buffer = np.empty((most, len(part.Z_mq)))
    for piece in pieces:
        products_bm = piece.x_bq @ part.Z_mq.T
        energies_bm = K_bm(products_bm, part, zeta)
        rows.energy_m[columns] += energies_bm.sum(axis=0)
        if rows.energies_nm is not None:
            rows.energies_nm[piece.centres_b, columns] = energies_bm
        if piece.J_rq is not None:
            gradients_rm = np.matmul(piece.J_rq, part.Z_mq.T, out=buffer[: len(piece.J_rq)])
            add_gradient_rows(
                products_bm, gradients_rm, part.first_e, zeta, piece.first_b, piece.i_p, piece.j_p,
                piece.D_pc, columns.start, rows.forces_rm, rows.strain_vm,
            )  # fmt: skip


def _slices(group: Inducing) -> list[slice]:
    """Environments of about five hundred columns each, whatever the number of threads."""
    wanted = np.arange(0, len(group.Z_mq), _COLUMNS)
    edges = np.unique(np.append(np.searchsorted(group.first_e, wanted), len(group.first_e) - 1))
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


@njit
def collect(gradient_pc, i_p, j_p, D_pc, n_atoms, n_centres):
    """Forces, and strain derivative by centre, from dE/dD of the pairs, in a fixed order."""
    forces_nc = np.zeros((n_atoms, 3))
    strain_ncd = np.zeros((n_centres, 3, 3))
    for p in range(i_p.shape[0]):
        i, j = i_p[p], j_p[p]
        for c in range(3):
            forces_nc[i, c] += gradient_pc[p, c]
            forces_nc[j, c] -= gradient_pc[p, c]
            for d in range(3):
                share = 0.5 * (gradient_pc[p, c] * D_pc[p, d] + gradient_pc[p, d] * D_pc[p, c])
                strain_ncd[i, c, d] += share
    return forces_nc, strain_ncd
