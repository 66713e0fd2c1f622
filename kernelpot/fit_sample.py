"""A look at some of the structures before a fit: neighbours, features that matter, and the time of
what is done pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from kernelpot._machine import one_blas_thread
from kernelpot.conventions import Float, Int, System, as_int
from kernelpot.data import Structure
from kernelpot.descriptors.projected import ProjectedDescriptor
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear
from kernelpot.descriptors.shared import shared_centres
from kernelpot.gp.inducing import Inducing, select_fps, tangents
from kernelpot.neighbours import within
from kernelpot.options import Options
from kernelpot.rates import Clock, best_of
from kernelpot.reduction import SAMPLE, contract_density, samples
from kernelpot.rows import Component, structure_rows
from kernelpot.selection import system_of

__all__ = ["Sample", "Timing", "bind_roughly", "look_at"]

_STRUCTURES = 40
"""Structures whose neighbours are counted."""
_AXES_OF = 32
"""Environments of each species from which the number of principal axes is estimated."""
_AXES_FLOPS = 4e10
"""Operations that this may take; of long power spectra fewer environments are looked at."""
_CONTRACTED = 30
"""Environments of each species from which radial functions are contracted."""
_TANGENTS = 12
"""Environments whose tangents are counted."""
_OF_EACH = 8
"""Atoms of a structure among which these are found."""
_WORK = 2e6
"""Pairs times columns of the rows that are timed."""


class Timing(NamedTuple):
    """Seconds of what a process does pair by pair, and how many pairs there are."""

    n_pairs: float  # of all structures, each from both sides
    features: float  # of a pair
    jacobian: float  # of a pair
    jacobian_raw: float  # of a pair, before the projection on principal axes
    adjoint: float  # of a pair
    column: float  # of a pair and an inducing variable: products and their sums
    tangents: float  # of an environment
    n_tangents: float  # that an environment has


class Sample(NamedTuple):
    """What was seen."""

    timings: tuple[Timing, ...]  # of each process
    search: float  # seconds for the neighbours of an atom


def bind_roughly(structures: Sequence[Structure], options: Options) -> list[BoundDescriptor]:
    """Descriptors as the fit will have them, but for the directions of their principal axes.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    options : Options
        Settings.

    Returns
    -------
    list[BoundDescriptor]
        As many features as there are likely to be, by some hundred derivatives.
    """
    species = tuple(sorted({int(z) for s in structures for z in s.numbers_n}))
    found = []
    for one in options.components:
        raw = contract_density(
            structures, one.descriptor.bind(species), options.random_state, _CONTRACTED
        )
        if options.feature_tolerance > 0.0 and not is_linear(raw):
            kept_z = _kept(structures, raw, options)
            if max(kept_z) < 0.75 * raw.n_features:
                rng = np.random.default_rng(0)
                axes_z = [rng.standard_normal((n, raw.n_features)) for n in kept_z]
                raw = ProjectedDescriptor(raw, [a / np.linalg.norm(a) for a in axes_z])
        found.append(shared_centres(raw))
    return found


def _kept(structures: Sequence[Structure], bound: BoundDescriptor, options: Options) -> list[int]:
    """Principal axes of each species, from few environments; more of them would show more."""
    most = _most_rows(bound.n_features, _AXES_FLOPS / len(bound.species))
    of_all = getattr(bound, "centre_similarity", None) is not None
    parts: list[tuple[Float, Float]] = []
    counts: list[int] = []
    for place_n in samples(structures, bound.species, options.random_state):
        x, J, n_rows = [], [], 0
        for s, n in np.random.default_rng(0).permutation(place_n)[:_AXES_OF]:
            x_bq, J_pcq = bound.jacobian(system_of(bound, structures[s]), as_int([n]))
            x.append(x_bq)
            J.append(J_pcq.reshape(-1, bound.n_features))
            n_rows += len(J[-1])
            if n_rows >= most:
                break
        parts.append((np.concatenate(x), np.concatenate(J)))
        counts.append(len(place_n))
    if of_all:
        parts = [tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))]  # type: ignore[list-item]
        counts = [sum(counts)]
    kept = [_extrapolated(*part, n, options) for part, n in zip(parts, counts, strict=True)]
    return kept * len(bound.species) if of_all else kept


def _most_rows(n_features: int, flops: float) -> int:
    """Rows whose products and their eigenvalues take so many operations."""
    rows = 2 ** np.arange(5, 16)
    short = np.minimum(rows, n_features)
    return int(rows[np.sum(2.0 * rows * n_features * short + 10.0 * short**3 < flops) - 1])


def _extrapolated(x_bq: Float, J_rq: Float, n_sample: int, options: Options) -> int:
    """From half of the environments and all of them to as many as the fit looks at.

    Twice as many show about half as many new axes as the doubling before: the bundled silicon and
    ethanol, Si and NbMoTaW, from 16 environments on.
    """
    few, all_of_them = (
        _n_axes(x_bq[: max(1, len(x_bq) // part)], J_rq[: max(1, len(J_rq) // part)], options)
        for part in (2, 1)
    )
    doublings = max(0.0, math.log2(min(n_sample, SAMPLE) / len(x_bq)))
    expected = all_of_them + (all_of_them - few) * (1.0 - 0.5**doublings)
    return int(min(x_bq.shape[1], max(expected, 1)))


def _n_axes(x_bq: Float, J_rq: Float, options: Options) -> int:
    both = np.concatenate([a / max(np.linalg.norm(a), 1e-150) for a in (x_bq, J_rq)])
    gram = both @ both.T if len(both) < both.shape[1] else both.T @ both
    value_q = np.maximum(scipy.linalg.eigvalsh(gram), 0.0)
    left_out = int(np.searchsorted(np.cumsum(value_q), options.feature_tolerance * value_q.sum()))
    return len(value_q) - left_out


def look_at(
    structures: Sequence[Structure],
    options: Options,
    bound_g: Sequence[BoundDescriptor],
    clock: Clock,
) -> Sample:
    """Count neighbours in some structures, and time in two of them what a fit does with each pair.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    options : Options
        Settings.
    bound_g : Sequence[BoundDescriptor]
        From `bind_roughly`.
    clock : Clock
        By which it is timed.

    Returns
    -------
    Sample
        Counts of all structures, by what was seen of some; seconds.
    """
    longest = max(bound_g, key=lambda bound: bound.cutoff)
    order = np.argsort([s.n_atoms for s in structures], kind="stable")
    places = np.linspace(0, len(order) - 1, min(_STRUCTURES, len(order))).round().astype(int)
    some = [structures[order[k]] for k in np.unique(places)]
    system_of(longest, some[0])  # compiled, or loaded, before the clock runs
    started = clock()
    systems = [system_of(longest, s) for s in some]
    n_atoms = sum(s.n_atoms for s in some)
    search = (clock() - started) / n_atoms
    total = sum(s.n_atoms for s in structures)
    # Those of about average size are the typical ones.
    typical = np.argsort([abs(s.n_atoms - total / len(structures)) for s in some], kind="stable")
    timed = [systems[k] for k in typical if len(systems[k].pairs.r_p)][:2]
    timings = []
    for bound, one in zip(bound_g, options.components, strict=True):
        n_pairs = sum(np.count_nonzero(s.pairs.r_p < bound.cutoff) for s in systems)
        with one_blas_thread():  # as every thread of a fit has it
            timing = _time(bound, one.zeta, one.n_tangents, options, timed, systems, clock)
        timings.append(timing._replace(n_pairs=total * n_pairs / n_atoms))
    return Sample(tuple(timings), search)


def _time(
    bound: BoundDescriptor,
    zeta: int,
    n_tangents: int,
    options: Options,
    systems: Sequence[System],
    everywhere: Sequence[System],
    clock: Clock,
) -> Timing:
    near = [System(s.species_n, within(s.pairs, bound.cutoff)[0]) for s in systems]
    n_pairs = max(1, sum(len(s.pairs.r_p) for s in near))
    columns = int(np.clip(_WORK / n_pairs, 32, 768))
    each = min(n_tangents, bound.n_features) + 1
    Z_mq = np.random.default_rng(0).standard_normal(
        (max(1, columns // each) * each, bound.n_features)
    )
    group = Inducing(Z_mq / np.linalg.norm(Z_mq), as_int(np.arange(0, len(Z_mq) + 1, each)))
    n_b = 1 if getattr(bound, "shared", False) else len(bound.species)
    component = Component(bound, zeta, (group,) * n_b)
    raw = _raw(bound)

    def jacobians(one: BoundDescriptor) -> None:
        for system, part in _parts(near):
            one.jacobian(system, part)

    def features() -> None:
        for system, part in _parts(near):
            bound.features(system, part)

    def adjoints() -> None:
        for system, part in _parts(near):
            x_bq, state = bound.features(system, part)
            bound.vjp(system, part, state, x_bq, np.empty((len(system.pairs.r_p), 3)))

    def rows() -> None:
        for system in near:
            structure_rows((component,), system, gradients=True)

    times = {}
    for name, call in {
        "features": features,
        "jacobian": lambda: jacobians(bound),
        "jacobian_raw": lambda: jacobians(raw),
        "adjoint": adjoints,
        "rows": rows,
    }.items():
        call()  # compiled, or loaded, before the clock runs
        times[name] = best_of(call, clock, 2) / n_pairs
    few = _unlike(raw, everywhere) if each > 1 else []

    def chosen(one: BoundDescriptor) -> list[int]:
        threshold = options.tangent_threshold
        return [len(tangents(one.jacobian(s, n)[1], each - 1, threshold)) for s, n in few]

    return Timing(
        n_pairs,
        times["features"],
        times["jacobian"],
        times["jacobian_raw"],
        max(times["adjoint"] - times["features"], 1e-12),
        max(times["rows"] - times["jacobian"], 1e-12) / len(Z_mq),
        best_of(lambda: chosen(bound), clock, 2) / max(1, len(few)),
        float(np.mean(chosen(raw))) if few else 0.0,
    )


def _unlike(bound: BoundDescriptor, systems: Sequence[System]) -> list[tuple[System, Int]]:
    """Environments far from one another, as those are that a fit chooses."""
    rng = np.random.default_rng(0)
    places, features = [], []
    for system in systems:
        near = System(system.species_n, within(system.pairs, bound.cutoff)[0])
        n_atoms = len(near.species_n)
        centres_b = as_int(np.sort(rng.permutation(n_atoms)[:_OF_EACH]))
        features.append(bound.features(near, centres_b)[0])
        places += [(near, as_int([n])) for n in centres_b]
    x_nq = np.concatenate(features)
    return [places[n] for n in select_fps(x_nq, min(_TANGENTS, len(x_nq)), rng)]


def _parts(systems: Sequence[System]) -> list[tuple[System, np.ndarray]]:
    """Some centres at a time, as many as fits take."""
    return [
        (system, as_int(np.arange(k, min(k + 32, len(system.species_n)))))
        for system in systems
        for k in range(0, len(system.species_n), 32)
    ]


def _raw(bound: BoundDescriptor) -> BoundDescriptor:
    inner = getattr(bound, "inner", None)
    return bound if inner is None else _raw(inner)
