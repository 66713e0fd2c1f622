"""What is unknown before any data: prior variances of the observables of a structure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from kernelpot._jit import njit
from kernelpot._machine import side_by_side
from kernelpot.conventions import VOIGT, Float, Int, System, as_int
from kernelpot.descriptors.protocol import BoundDescriptor, block_of
from kernelpot.gp.functionals import slope_variances, sum_variance
from kernelpot.memory import Room
from kernelpot.neighbours import within
from kernelpot.rows import Component, block_of_pairs

__all__ = ["prior_variances", "whole_descriptor"]

_ROOM = Room()


def whole_descriptor(bound: BoundDescriptor) -> BoundDescriptor:
    """The descriptor on which the prior stands.

    Parameters
    ----------
    bound : BoundDescriptor
        That of a fit, maybe on its principal axes.

    Returns
    -------
    BoundDescriptor
        Of all features. What an environment has outside of the axes has no covariance with the
        inducing variables, and is unknown.
    """
    whole = getattr(bound, "unprojected", None)
    return bound if whole is None else whole


def prior_variances(
    components: Sequence[Component],
    delta_g: Sequence[float],
    system: System,
    kinds: Collection[str],
) -> dict[str, Float]:
    """Prior variances of the observables of one structure.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    delta_g : Sequence[float]
        Their amplitudes, eV.
    system : System
        The structure.
    kinds : Collection[str]
        Of `OBSERVABLES`; "stress" stands for the derivatives of the energy by strain.

    Returns
    -------
    dict[str, Float]
        By kind: (1,), (n_atoms,), (3 n_atoms,), (6,); eV^2, (eV/angstrom)^2. Energy and strain cost
        the square of the number of atoms.
    """
    n_atoms = len(system.species_n)
    sizes = {"energy": 1, "energies": n_atoms, "forces": 3 * n_atoms, "stress": 6}
    found = {kind: np.zeros(sizes[kind]) for kind in kinds}
    for component, delta in zip(components, delta_g, strict=True):
        near = System(system.species_n, within(system.pairs, component.descriptor.cutoff)[0])
        for kind, of_component in _of_component(component, near, kinds).items():
            found[kind] += delta**2 * of_component
    return found


def _of_component(component: Component, near: System, kinds: Collection[str]) -> dict[str, Float]:
    """In units of delta^2."""
    bound, zeta = whole_descriptor(component.descriptor), component.zeta
    block_n = block_of(bound, near.species_n)
    everyone = as_int(np.arange(len(block_n)))
    found: dict[str, Float] = {}
    if {"energy", "energies", "stress"} & set(kinds):
        x_nq, _ = bound.features(near, everyone)
    if "energies" in kinds:
        found["energies"] = np.sum(x_nq**2, axis=1) ** zeta
    if "energy" in kinds:
        of_blocks = [sum_variance(x_nq[block_n == z], zeta) for z in np.unique(block_n)]
        found["energy"] = np.array([sum(of_blocks)])
    if "stress" in kinds:
        J_vnq = _strain_derivatives(bound, near)
        found["stress"] = slope_variances(x_nq, J_vnq, block_n, zeta)
    if "forces" in kinds:
        found["forces"] = _forces(bound, zeta, near, block_n)
    return found


def _centres_at_once(bound: BoundDescriptor, near: System) -> int:
    """Atoms whose neighbours' derivatives there is room for."""
    per_pair = 24.0 * bound.n_features
    return max(1, int(_ROOM.block / (per_pair * max(1, int(np.diff(near.pairs.first_n).max())))))


def _strain_derivatives(bound: BoundDescriptor, near: System) -> Float:
    """Of all features, shape (6, n_atoms, n_features)."""
    pairs = near.pairs
    J_vnq = np.zeros((6, pairs.n_centres, bound.n_features))
    step = _centres_at_once(bound, near)

    def fill(first: int) -> None:
        centres_b = as_int(np.arange(first, min(first + step, pairs.n_centres)))
        _, J_pcq = bound.jacobian(near, centres_b)
        index_p, first_b = block_of_pairs(pairs.first_n, centres_b)
        _add_strain(J_pcq, first_b, pairs.D_pc[index_p], J_vnq[:, centres_b[0] :])

    side_by_side(fill, range(0, pairs.n_centres, step))
    return J_vnq


@njit
def _add_strain(J_pcq, first_b, D_pc, J_vbq):
    """Derivatives by strain (Voigt) from those by the pairs' vectors."""
    for b in range(first_b.shape[0] - 1):
        for p in range(first_b[b], first_b[b + 1]):
            for v in range(6):
                c, d = VOIGT[v]
                x, y = 0.5 * D_pc[p, d], 0.5 * D_pc[p, c]
                for q in range(J_pcq.shape[2]):
                    J_vbq[v, b, q] += x * J_pcq[p, c, q] + y * J_pcq[p, d, q]


def _forces(bound: BoundDescriptor, zeta: int, near: System, block_n: Int) -> Float:
    """Of the force components, atom by atom: an atom moves itself and its neighbours."""
    pairs = near.pairs
    variances_nc = np.empty((pairs.n_centres, 3))
    # Pairs that end at an atom, centre by centre.
    into_p = as_int(np.argsort(pairs.j_p, kind="stable"))
    first_into = np.searchsorted(pairs.j_p[into_p], np.arange(pairs.n_centres + 1))
    step = max(1, _centres_at_once(bound, near) // 4)

    def some(first: int) -> None:
        atoms = np.arange(first, min(first + step, pairs.n_centres))
        into = into_p[first_into[atoms[0]] : first_into[atoms[-1] + 1]]
        centres_b = as_int(np.union1d(atoms, pairs.i_p[into]))
        x_bq, J_pcq = bound.jacobian(near, centres_b)
        _, first_b = block_of_pairs(pairs.first_n, centres_b)
        place_n = np.full(pairs.n_centres, -1)
        place_n[centres_b] = np.arange(len(centres_b))
        for n in atoms:
            mine = into_p[first_into[n] : first_into[n + 1]]
            centre_p = pairs.i_p[mine]
            # Pairs of one centre follow one another.
            new_p = np.diff(centre_p, prepend=-1) != 0
            others = centre_p[new_p]
            row_p = first_b[place_n[centre_p]] + mine - pairs.first_n[centre_p]
            own = first_b[place_n[n] : place_n[n] + 2]
            J_cbq = np.zeros((3, len(others) + 1, bound.n_features))
            _add_derivatives(J_pcq, as_int(row_p), as_int(np.cumsum(new_p) - 1), own, J_cbq)
            near_b = np.append(others, n)
            # An atom that is a neighbour of its own image stands there twice, which is right: both
            # of its rows are derivatives of the same environment.
            variances_nc[n] = slope_variances(x_bq[place_n[near_b]], J_cbq, block_n[near_b], zeta)

    side_by_side(some, range(0, pairs.n_centres, step))
    return variances_nc.ravel()


@njit
def _add_derivatives(J_pcq, row_p, place_p, own, J_cbq):
    """Derivatives of the environments around an atom by its position; its own are the last.

    Pairs ``row_p`` end at the atom and begin at the centres ``place_p``; those from ``own[0]`` to
    ``own[1]`` begin at it.
    """
    last = J_cbq.shape[1] - 1
    for k in range(row_p.shape[0]):
        for c in range(3):
            from_q, to_q = J_pcq[row_p[k], c], J_cbq[c, place_p[k]]
            for q in range(to_q.shape[0]):
                to_q[q] += from_q[q]
    for p in range(own[0], own[1]):
        for c in range(3):
            from_q, to_q = J_pcq[p, c], J_cbq[c, last]
            for q in range(to_q.shape[0]):
                to_q[q] -= from_q[q]
