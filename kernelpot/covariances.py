"""Posterior covariances of energies, forces and stresses of several structures, any two of them.

The same sum of terms as in `variances`, of every two numbers; prior covariances are those of
`gp.functionals`, pair of structures by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._machine import one_blas_thread, side_by_side
from kernelpot.conventions import Covariance, Float, Int, System, as_int
from kernelpot.descriptors.protocol import block_of
from kernelpot.environments import add_environments
from kernelpot.gp.functionals import Environments, joint_covariance
from kernelpot.neighbours import within
from kernelpot.prior_variances import whole_descriptor
from kernelpot.rows import Component
from kernelpot.variances import Process, inducing_rows

__all__ = ["covariance"]


def covariance(
    process: Process,
    systems: Sequence[System],
    volumes: Sequence[float],
    kinds: Sequence[str],
) -> Covariance:
    """Posterior covariances of the observables of several structures, any two of them.

    Parameters
    ----------
    process : Process
        A fit.
    systems : Sequence[System]
        Species and pairs of each structure.
    volumes : Sequence[float]
        Of their cells, angstrom^3; NaN where they are not periodic in three directions.
    kinds : Sequence[str]
        Of `OBSERVABLES`.

    Returns
    -------
    Covariance
        Time and memory grow with the squares of the numbers of atoms; derivatives of all features
        by all coordinates are held at once.
    """
    maps = [_Map(system, volume, kinds) for system, volume in zip(systems, volumes, strict=True)]
    first_s = np.concatenate([[0], np.cumsum([len(one.kind_r) for one in maps])])
    prior_rr = np.zeros((first_s[-1], first_s[-1]))
    with one_blas_thread():
        for component, delta in zip(process.components, process.delta_g, strict=True):
            _add_prior(prior_rr, maps, first_s, component, delta, systems)

        def rows(s: int) -> Float:
            return maps[s].scaled(inducing_rows(process.components, systems[s], maps[s].kinds))

        K_rm = np.concatenate(side_by_side(rows, range(len(maps))))
        matrix_rr, terms = process.posterior.covariance(prior_rr, K_rm)
    return Covariance(
        matrix_rr,
        np.concatenate([one.kind_r for one in maps]),
        as_int(np.repeat(np.arange(len(maps)), [len(one.kind_r) for one in maps])),
        as_int(np.concatenate([one.place_r for one in maps])),
        terms,
    )


def _add_prior(
    prior_rr: Float,
    maps: Sequence[_Map],
    first_s: Int,
    component: Component,
    delta: float,
    systems: Sequence[System],
) -> None:
    """Prior covariances of one component: every two structures, by all threads."""

    def describe(s: int) -> _Described:
        return _environments(component, systems[s], maps[s].gradients, maps[s].strained)

    described = side_by_side(describe, range(len(systems)))

    def add(s: int) -> None:
        mine = slice(*first_s[s : s + 2])
        for t in range(s + 1):
            raw = _between(described[s], described[t], component.zeta)
            part = delta**2 * maps[s].apply(maps[t].apply(raw.T).T)
            theirs = slice(*first_s[t : t + 2])
            prior_rr[mine, theirs] += part
            if s != t:
                prior_rr[theirs, mine] += part.T

    side_by_side(add, range(len(systems) - 1, -1, -1))  # the longest first


class _Map:
    """From energies of atoms, forces and strain derivatives of a structure to its observables."""

    def __init__(self, system: System, volume: float, kinds: Sequence[str]):
        self.n_atoms = n = len(system.species_n)
        self.volume = volume
        self.kinds = [kind for kind in kinds if kind != "stress" or np.isfinite(volume)]
        self.strained = "stress" in self.kinds
        self.gradients = self.strained or "forces" in self.kinds
        sizes = {"energy": 1, "energies": n, "forces": 3 * n, "stress": 6}
        counts = [sizes[kind] for kind in self.kinds]
        self.kind_r = np.repeat(np.array(self.kinds, dtype=str), counts)
        self.place_r = np.concatenate([np.zeros(0, int), *(np.arange(k) for k in counts)])

    def apply(self, raw_rx: Float) -> Float:
        """Of the rows: energies of atoms, then what there is of forces and strain derivatives."""
        n = self.n_atoms
        by_kind = {
            "energy": raw_rx[:n].sum(axis=0, keepdims=True),
            "energies": raw_rx[:n],
            "forces": raw_rx[n : 4 * n],
            "stress": raw_rx[4 * n :] / self.volume,
        }
        return np.concatenate([raw_rx[:0], *(by_kind[kind] for kind in self.kinds)])

    def scaled(self, K_rm: Float) -> Float:
        """Rows of the observables, of those with strain derivatives for stresses."""
        K_rm[self.kind_r == "stress"] /= self.volume
        return K_rm


class _Described(NamedTuple):
    """A structure as a component sees it."""

    blocks: dict[int, tuple[Int, Environments]]  # centres that know of each other
    n_atoms: int
    n_raw: int  # energies of atoms, and coordinates


def _environments(
    component: Component, system: System, gradients: bool, strained: bool
) -> _Described:
    bound = whole_descriptor(component.descriptor)
    near = System(system.species_n, within(system.pairs, bound.cutoff)[0])
    n_atoms = len(near.species_n)
    n_coordinates = 3 * n_atoms * gradients + 6 * strained
    block_n = block_of(bound, near.species_n)
    blocks = {}
    for z in np.unique(block_n).tolist():
        centres_b = as_int(np.flatnonzero(block_n == z))
        x_bq = np.empty((len(centres_b), bound.n_features))
        J_gbq = np.zeros((n_coordinates, len(centres_b), bound.n_features))
        if gradients:
            add_environments(bound, near, centres_b, strained, x_bq, J_gbq)
            J_gbq[: 3 * n_atoms] *= -1.0  # forces
        else:
            x_bq[:], _ = bound.features(near, centres_b)
        blocks[z] = centres_b, Environments(x_bq, J_gbq)
    return _Described(blocks, n_atoms, n_atoms + n_coordinates)


def _between(one: _Described, other: _Described, zeta: int) -> Float:
    """Prior covariances of energies of atoms, forces and strain derivatives."""
    out = np.zeros((one.n_raw, other.n_raw))
    for z in one.blocks.keys() & other.blocks.keys():
        (centres_i, mine), (centres_j, theirs) = one.blocks[z], other.blocks[z]
        rows = np.concatenate([centres_i, np.arange(one.n_atoms, one.n_raw)])
        columns = np.concatenate([centres_j, np.arange(other.n_atoms, other.n_raw)])
        out[np.ix_(rows, columns)] += joint_covariance(mine, theirs, zeta)
    return out
