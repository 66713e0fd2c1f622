"""Posterior variances and covariances of energies, forces and stresses (DTC).

For any linear functional of the process, applied to k on both sides,

    var = k** - k*_m K_mm^-1 k_m* + phi R^-1 R^-T phi^T

with the functional's prior variance first (`prior_variances`), and its row of whitened covariances
phi as in the fit (`rows`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._machine import one_blas_thread
from kernelpot.conventions import (
    OBSERVABLES,
    Covariance,
    Float,
    Int,
    System,
    VarianceTerms,
    as_int,
)
from kernelpot.descriptors.protocol import block_of
from kernelpot.environments import add_environments
from kernelpot.gp.functionals import Environments, joint_covariance
from kernelpot.gp.solvers import Posterior
from kernelpot.neighbours import within
from kernelpot.prior_variances import prior_variances, whole_descriptor
from kernelpot.rows import Component, structure_rows

__all__ = ["Process", "check_kinds", "covariance", "open_factors", "variance_terms"]


class Process(NamedTuple):
    """A fitted sum of Gaussian processes."""

    components: tuple[Component, ...]
    delta_g: tuple[float, ...]  # prior amplitudes, eV
    posterior: Posterior


def check_kinds(given: bool | str | Collection[str], name: str) -> tuple[str, ...]:
    """Kinds of predicted numbers that are asked for.

    Parameters
    ----------
    given : bool | str | Collection[str]
        Whether all, or which.
    name : str
        Of the parameter.

    Returns
    -------
    tuple[str, ...]
        Empty where nothing is asked for.

    Raises
    ------
    ValueError
        If a kind is unknown.
    """
    if isinstance(given, (bool, np.bool_)):
        return OBSERVABLES if given else ()
    kinds = (given,) if isinstance(given, str) else tuple(given)
    unknown = [kind for kind in kinds if kind not in OBSERVABLES]
    if unknown:
        raise ValueError(
            f"{name} does not know {unknown[0]!r}: give True for all, or some of "
            f"{', '.join(OBSERVABLES)}"
        )
    return tuple(dict.fromkeys(kinds))


def variance_terms(
    process: Process,
    system: System,
    volume: float,
    kinds: Collection[str],
    *,
    jackknife: bool = False,
) -> dict[str, VarianceTerms]:
    """What makes the observables of one structure uncertain.

    Parameters
    ----------
    process : Process
        A fit.
    system : System
        Species and pairs of the structure.
    volume : float
        Of its cell, angstrom^3; NaN where it is not periodic in three directions.
    kinds : Collection[str]
        Of `OBSERVABLES`.
    jackknife : bool
        Whether their jackknife is wanted.

    Returns
    -------
    dict[str, VarianceTerms]
        By kind, in the shapes of `Prediction`: (1,), (n_atoms,), (n_atoms, 3), (6,).
    """
    kinds = [kind for kind in OBSERVABLES if kind in kinds]
    if not kinds:
        return {}
    # From the first to the last: threads of BLAS that have just worked keep their core for a while.
    with one_blas_thread():
        prior = prior_variances(process.components, process.delta_g, system, kinds)
        prior_r = np.concatenate([prior[kind] for kind in kinds])
        K_rm = _rows(process.components, system, kinds)
        terms = process.posterior.variance_terms(prior_r, K_rm, jackknife=jackknife)
    ends = np.cumsum([len(prior[kind]) for kind in kinds])[:-1]
    parts = zip(*(np.split(term_r, ends) for term_r in terms), strict=True)
    found = {kind: VarianceTerms(*of_kind) for kind, of_kind in zip(kinds, parts, strict=True)}
    if "forces" in found:
        found["forces"] = VarianceTerms(*(term_r.reshape(-1, 3) for term_r in found["forces"]))
    if "stress" in found:
        found["stress"] = found["stress"].scaled(1.0 / volume)
    return found


def open_factors(process: Process, system: System, kinds: Collection[str]) -> Float:
    """Rows whose products are what the data leave open of covariances, in the inducing span.

    Parameters
    ----------
    process : Process
        A fit.
    system : System
        Species and pairs of a structure.
    kinds : Collection[str]
        Of `OBSERVABLES`; "stress" stands for the derivatives of the energy by strain.

    Returns
    -------
    Float
        Shape (n_numbers, n_whitened), kind after kind: of several structures together they give
        joint covariances without the square of their numbers.
    """
    kinds = [kind for kind in OBSERVABLES if kind in kinds]
    return process.posterior.parts(_rows(process.components, system, kinds))[1]


def _rows(components: Sequence[Component], system: System, kinds: Sequence[str]) -> Float:
    """Covariances with the inducing variables, one kind after the other; strain for stress."""
    rows = structure_rows(
        components,
        system,
        gradients="forces" in kinds or "stress" in kinds,
        local="energies" in kinds,
    )
    by_kind = {
        "energy": rows.energy_m[None, :],
        "forces": rows.forces_rm,
        "stress": rows.strain_vm,
        "energies": rows.energies_nm,
    }
    parts = [by_kind[kind] for kind in kinds]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
    gradients = "forces" in kinds or "stress" in kinds
    first_s = np.concatenate([[0], np.cumsum([len(one.kind_r) for one in maps])])
    prior_rr = np.zeros((first_s[-1], first_s[-1]))
    for component, delta in zip(process.components, process.delta_g, strict=True):
        described = [_environments(component, system, gradients) for system in systems]
        for s, one in enumerate(described):
            for t, other in enumerate(described[: s + 1]):
                part = maps[s].apply(maps[t].apply(_between(one, other, component.zeta).T).T)
                mine, theirs = slice(*first_s[s : s + 2]), slice(*first_s[t : t + 2])
                prior_rr[mine, theirs] += delta**2 * part
                if s != t:
                    prior_rr[theirs, mine] += delta**2 * part.T
    K_rm = np.concatenate(
        [
            of_structure.apply(_rows(process.components, system, list(of_structure.raw)))
            for of_structure, system in zip(maps, systems, strict=True)
        ]
    )
    return Covariance(
        process.posterior.covariance(prior_rr, K_rm),
        np.concatenate([one.kind_r for one in maps]),
        as_int(np.repeat(np.arange(len(maps)), [len(one.kind_r) for one in maps])),
        as_int(np.concatenate([one.place_r for one in maps])),
    )


class _Map:
    """From energies of atoms, forces and strain derivatives of a structure to its observables."""

    def __init__(self, system: System, volume: float, kinds: Sequence[str]):
        self.n_atoms = n = len(system.species_n)
        self.volume = volume
        self.kinds = [kind for kind in kinds if kind != "stress" or np.isfinite(volume)]
        gradients = "forces" in kinds or "stress" in kinds
        self.raw = ("energies", "forces", "stress") if gradients else ("energies",)
        sizes = {"energy": 1, "energies": n, "forces": 3 * n, "stress": 6}
        counts = [sizes[kind] for kind in self.kinds]
        self.kind_r = np.repeat(np.array(self.kinds, dtype=str), counts)
        self.place_r = np.concatenate([np.zeros(0, int), *(np.arange(k) for k in counts)])

    def apply(self, raw_rx: Float) -> Float:
        """Of the rows."""
        n = self.n_atoms
        by_kind = {
            "energy": raw_rx[:n].sum(axis=0, keepdims=True),
            "energies": raw_rx[:n],
            "forces": raw_rx[n : 4 * n],
            "stress": raw_rx[4 * n :] / self.volume,
        }
        return np.concatenate([raw_rx[:0], *(by_kind[kind] for kind in self.kinds)])


class _Described(NamedTuple):
    """A structure as a component sees it."""

    blocks: dict[int, tuple[Int, Environments]]  # centres that know of each other
    n_atoms: int
    n_raw: int  # energies of atoms, and coordinates


def _environments(component: Component, system: System, gradients: bool) -> _Described:
    bound = whole_descriptor(component.descriptor)
    near = System(system.species_n, within(system.pairs, bound.cutoff)[0])
    n_atoms = len(near.species_n)
    n_coordinates = 3 * n_atoms + 6 if gradients else 0
    block_n = block_of(bound, near.species_n)
    blocks = {}
    for z in np.unique(block_n).tolist():
        centres_b = as_int(np.flatnonzero(block_n == z))
        x_bq = np.empty((len(centres_b), bound.n_features))
        J_gbq = np.zeros((n_coordinates, len(centres_b), bound.n_features))
        if gradients:
            add_environments(bound, near, centres_b, True, x_bq, J_gbq)
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
