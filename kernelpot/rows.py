"""One structure in, its rows of K_rm out: the covariances of its energy, forces and stress with
the inducing variables. Descriptors meet Gaussian processes here and nowhere else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float, Int, System, as_int
from kernelpot.descriptors.protocol import BoundDescriptor
from kernelpot.gp.covariances import K_bm, add_gradient_rows, offsets
from kernelpot.gp.inducing import Inducing

_BLOCK_BYTES = 2**26
"""Bound on the Jacobian of a block of centres and on its products with the inducing variables."""


class StructureRows(NamedTuple):
    """Covariances with the inducing variables, in units of delta^2; None where not asked for."""

    energy_m: Float  # of the total energy
    forces_rm: Float | None  # (3 n_atoms, m), of the force components
    strain_vm: Float | None  # (6, m), of dE/dstrain, Voigt


def species_blocks(species_n: Int, n_species: int, block: int) -> list[tuple[int, Int]]:
    """Centres of one species at a time, in blocks.

    Parameters
    ----------
    species_n : Int
        Index of each atom's species.
    n_species : int
        How many there are.
    block : int
        Largest number of centres in a block.

    Returns
    -------
    list[tuple[int, Int]]
        Species index, and centres of that species.
    """
    blocks = []
    for z in range(n_species):
        centres_b = np.flatnonzero(species_n == z)
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
    descriptor: BoundDescriptor,
    inducing: tuple[Inducing, ...],
    zeta: int,
    system: System,
    *,
    gradients: bool,
) -> StructureRows:
    """Rows of K_rm of one structure.

    Parameters
    ----------
    descriptor : BoundDescriptor
        Gives features and their Jacobian.
    inducing : tuple[Inducing, ...]
        Inducing variables of each of the descriptor's species.
    zeta : int
        Exponent of the kernel.
    system : System
        The structure.
    gradients : bool
        Whether forces and strain derivatives are wanted.

    Returns
    -------
    StructureRows
        Columns are ordered by species, then environment by environment.
    """
    column_z = offsets([len(group.Z_mq) for group in inducing])
    n_columns = int(column_z[-1])
    n_atoms = len(system.species_n)
    pairs = system.pairs
    energy_m = np.zeros(n_columns)
    forces_rm = np.zeros((3 * n_atoms, n_columns)) if gradients else None
    strain_vm = np.zeros((6, n_columns)) if gradients else None
    widest = max([descriptor.n_features, *(len(group.Z_mq) for group in inducing)])
    pairs_per_atom = max(1.0, len(pairs.i_p) / max(n_atoms, 1)) if gradients else 1.0
    block = int(np.clip(_BLOCK_BYTES / (24.0 * widest * pairs_per_atom), 1, 4096))
    for z, centres_b in species_blocks(system.species_n, len(inducing), block):
        group = inducing[z]
        columns = slice(column_z[z], column_z[z + 1])
        if len(group.Z_mq) == 0:
            continue
        if gradients:
            x_bq, J_pcq = descriptor.jacobian(system, centres_b)
        else:
            x_bq, _ = descriptor.features(system, centres_b)
        products_bm = x_bq @ group.Z_mq.T
        energy_m[columns] += K_bm(products_bm, group, zeta).sum(axis=0)
        if gradients:
            index_p, first_b = block_of_pairs(pairs.first_n, centres_b)
            gradients_rm = J_pcq.reshape(-1, descriptor.n_features) @ group.Z_mq.T
            add_gradient_rows(
                products_bm,
                gradients_rm,
                group.first_e,
                zeta,
                first_b,
                pairs.i_p[index_p],
                pairs.j_p[index_p],
                pairs.D_pc[index_p],
                int(column_z[z]),
                forces_rm,
                strain_vm,
            )
    return StructureRows(energy_m, forces_rm, strain_vm)
