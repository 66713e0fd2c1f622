"""Principal axes of features, and of the density that they are made of: fewer numbers that say
the same."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from kernelpot.conventions import Float, Int, as_int
from kernelpot.data import Structure
from kernelpot.descriptors._soap_bound import BoundSoap
from kernelpot.descriptors.projected import ProjectedDescriptor
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear
from kernelpot.descriptors.shared import SharedCentres, shared_centres
from kernelpot.memory import Room
from kernelpot.rows import centres_at_once
from kernelpot.selection import system_of

__all__ = ["SAMPLE", "contract_density", "more_axes", "reduce_features", "samples"]

log = logging.getLogger("kernelpot")

_DEFAULT = Room()
SAMPLE = 400
"""Environments of each species from which the axes are found: their Jacobians give some
thirty thousand vectors."""


def reduce_features(
    structures: Sequence[Structure],
    bound: BoundDescriptor,
    tolerance: float,
    random_state: int | None,
    room: Room = _DEFAULT,
) -> BoundDescriptor:
    """A descriptor on the principal axes of its features and of their derivatives.

    What counts is the second moment of unit vectors and of the rows of their Jacobians, each
    with trace one, for each species of the centre, or for all together where unlike centres know of
    each other. Forces come from the derivatives, so axes along
    which environments differ little but change fast are kept as well.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    bound : BoundDescriptor
        Its features.
    tolerance : float
        Share of the second moment that may be left out; 0 changes nothing.
    random_state : int | None
        Seed of the choice of environments.
    room : Room
        Bounds the derivatives that are computed at once.

    Returns
    -------
    BoundDescriptor
        With fewer features, or the one that was given where few could be left out, or where it is
        linear: its features are its prior.
    """
    if tolerance <= 0.0 or is_linear(bound):
        return bound
    # One after the other: each takes the square of the number of features.
    moments_zqq = (
        _moment(structures, bound, place_n, room)
        for place_n in samples(structures, bound.species, random_state)
    )
    if getattr(bound, "centre_similarity", None) is None:
        axes_z = [_axes(moment_qq, tolerance) for moment_qq in moments_zqq]
    else:  # products of unlike centres need the same axes
        together_qq = functools.reduce(np.add, moments_zqq)
        axes_z = [_axes(together_qq, tolerance)] * len(bound.species)
    kept = max(len(axes_kq) for axes_kq in axes_z)
    log.info("%d of %d features are kept", kept, bound.n_features)
    # A projection that leaves out little costs more than it saves.
    return ProjectedDescriptor(bound, axes_z) if kept < 0.75 * bound.n_features else bound


def more_axes(
    structures: Sequence[Structure],
    bound: BoundDescriptor,
    places_z: Sequence[np.ndarray],
    tolerance: float,
    room: Room = _DEFAULT,
) -> tuple[BoundDescriptor, Int]:
    """A descriptor with further axes, for environments that have parts outside of those it has.

    Products with vectors that have nothing along the new axes stay as they are.

    Parameters
    ----------
    structures : Sequence[Structure]
        New ones.
    bound : BoundDescriptor
        Of `reduce_features` and `shared_centres`.
    places_z : Sequence[np.ndarray]
        Structure and atom of the environments of each species that are to be seen, (number, 2).
    tolerance : float
        Share of the second moment of their features and derivatives that may be left out.
    room : Room
        Bounds the derivatives that are computed at once.

    Returns
    -------
    tuple[BoundDescriptor, Int]
        The one that was given where nothing is missing; and where its features are among those of
        the other.
    """
    every = as_int(np.arange(bound.n_features))
    shared = isinstance(bound, SharedCentres)
    projected = bound.inner if shared else bound
    if tolerance <= 0.0 or not isinstance(projected, ProjectedDescriptor):
        return bound, every
    inner = projected.inner
    moments_z = [
        _moment(structures, inner, place_n, room) if len(place_n) else None for place_n in places_z
    ]
    if shared:  # the axes are the same
        seen = [moment_qq for moment_qq in moments_z if moment_qq is not None]
        moments_z = [functools.reduce(np.add, seen)] * len(moments_z) if seen else moments_z
    axes_z = [
        axes_kq if moment_qq is None else _further(axes_kq, moment_qq, tolerance)
        for axes_kq, moment_qq in zip(projected.axes_z, moments_z, strict=True)
    ]
    if all(new is old for new, old in zip(axes_z, projected.axes_z, strict=True)):
        return bound, every
    wider = ProjectedDescriptor(inner, axes_z)
    log.info("%d instead of %d features are kept", wider.n_features, projected.n_features)
    if not shared:
        return wider, every
    behind = every >= projected.n_features
    return shared_centres(wider), every + behind * (wider.n_features - projected.n_features)


def _further(axes_kq: Float, moment_qq: Float, tolerance: float) -> Float:
    """These axes, and those of what they leave out of a moment; only these if that is little."""
    total = float(np.trace(moment_qq))
    aside_qq = moment_qq - axes_kq.T @ (axes_kq @ moment_qq)
    aside_qq -= (aside_qq @ axes_kq.T) @ axes_kq
    left_out = float(np.trace(aside_qq))
    if left_out <= tolerance * total:
        return axes_kq
    new_kq = _axes(0.5 * (aside_qq + aside_qq.T), tolerance * total / left_out)
    # What they have along those that are there is rounding, of small eigenvalues no small one.
    new_kq -= (new_kq @ axes_kq.T) @ axes_kq
    new_kq = np.linalg.qr(new_kq.T)[0].T
    return np.ascontiguousarray(np.vstack([axes_kq, new_kq]))


def contract_density(
    structures: Sequence[Structure],
    bound: BoundDescriptor,
    random_state: int | None,
    n_sample: int = SAMPLE,
) -> BoundDescriptor:
    """A SOAP whose radial functions are the principal ones of the density in the structures.

    For each degree l the functions of all species and channels are combined to ``n_contracted``
    ones: the principal axes of the second moments of density coefficients and of their derivatives,
    each with trace one, all species of the centre counted alike (Goscinski, Musil, Pozdnyakov,
    Nigam and Ceriotti, J. Chem. Phys. 155, 104106 (2021), there of the coefficients alone).

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    bound : BoundDescriptor
        A SOAP that says to how many functions, or any other descriptor.
    random_state : int | None
        Seed of the choice of environments.
    n_sample : int
        Environments of each species that are looked at.

    Returns
    -------
    BoundDescriptor
        The contracted one, or the one that was given where nothing is asked for, or where there
        are no more functions than asked for.
    """
    if not isinstance(bound, BoundSoap) or bound.n_contracted is None:
        return bound
    moments = []
    for place_n in samples(structures, bound.species, random_state, n_sample):
        for s in np.unique(place_n[:, 0]):
            centres_b = as_int(place_n[place_n[:, 0] == s, 1])
            system = system_of(bound, structures[s])
            moments.append(np.array(bound.density_moments(system, centres_b)) / len(place_n))
    moments_klaa = np.sum(moments, axis=0)
    traces_kl = np.einsum("klaa->kl", moments_klaa)
    moment_laa = (moments_klaa / np.maximum(traces_kl, 1e-300)[:, :, None, None]).sum(axis=0)
    n_kept = min(bound.n_contracted, moment_laa.shape[1])
    log.info("%d of %d radial functions are kept", n_kept, moment_laa.shape[1])
    axes_lka = np.linalg.eigh(moment_laa)[1][:, :, ::-1][:, :, :n_kept].transpose(0, 2, 1)
    return bound.mixed(np.einsum("lka,lazn->lkzn", axes_lka, bound.functions))


def samples(
    structures: Sequence[Structure],
    species: Sequence[int],
    random_state: int | None,
    n_sample: int = SAMPLE,
) -> list[np.ndarray]:
    """Structure and atom of some environments of each species.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    species : Sequence[int]
        Atomic numbers.
    random_state : int | None
        Seed.
    n_sample : int
        Environments of each species at most.

    Returns
    -------
    list[np.ndarray]
        Of each species shape (number, 2), by structure.
    """
    rng = np.random.default_rng(random_state)
    numbers_n = np.concatenate([s.numbers_n for s in structures])
    place_n = np.array([(s, n) for s, st in enumerate(structures) for n in range(st.n_atoms)])
    samples = []
    for number in species:
        mine = np.flatnonzero(numbers_n == number)
        mine = np.sort(rng.choice(mine, min(n_sample, len(mine)), replace=False))
        samples.append(place_n[mine])
    return samples


def _moment(
    structures: Sequence[Structure], bound: BoundDescriptor, place_n: np.ndarray, room: Room
) -> Float:
    """Second moment of the features and derivatives of some environments, trace two."""
    features_qq = np.zeros((bound.n_features, bound.n_features))
    derivatives_qq = np.zeros_like(features_qq)
    for s in np.unique(place_n[:, 0]):
        centres_b = as_int(place_n[place_n[:, 0] == s, 1])
        system = system_of(bound, structures[s])
        block = centres_at_once(room, bound, system.pairs.first_n)
        for first in range(0, len(centres_b), block):
            x_bq, J_pcq = bound.jacobian(system, centres_b[first : first + block])
            J_rq = J_pcq.reshape(-1, bound.n_features)
            features_qq += x_bq.T @ x_bq
            derivatives_qq += J_rq.T @ J_rq
    for moment_qq in (features_qq, derivatives_qq):
        moment_qq /= max(np.trace(moment_qq), 1e-300)
    features_qq += derivatives_qq
    return features_qq


def _axes(moment_qq: Float, tolerance: float) -> Float:
    value_q, axes_qq = scipy.linalg.eigh(moment_qq, overwrite_a=True)
    left_out_q = np.cumsum(np.maximum(value_q, 0.0))
    first = int(np.searchsorted(left_out_q, tolerance * left_out_q[-1]))
    return np.ascontiguousarray(axes_qq[:, first:].T[::-1])
