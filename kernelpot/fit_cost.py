"""Seconds and memory of a fit before it runs: counts of operations, and speeds of this machine.

What is done with matrices is counted in floating-point operations and divided by the speed of the
routine that does it (`rates`); what is done pair by pair is timed in two of the structures
(`fit_sample`). Memory is counted array by array (`fit_memory`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._machine import n_threads, one_blas_thread, resident_memory
from kernelpot.conventions import Float
from kernelpot.data import Structure
from kernelpot.environments import Chunk, jacobian_bytes
from kernelpot.fit_budget import BASE, budget_of, largest_room, refusal
from kernelpot.fit_memory import stages
from kernelpot.fit_sample import Sample, Timing, bind_roughly, look_at
from kernelpot.fit_shape import Process, Shape, shape_of
from kernelpot.full_basis import LEAVE_OUT_ROWS
from kernelpot.full_noise import EVIDENCE_ROWS, NOISE_ROWS
from kernelpot.hyperparameters import COARSE
from kernelpot.jackknife import MOST_SCORES
from kernelpot.label_covariance import covariance
from kernelpot.memory import Room
from kernelpot.options import Options
from kernelpot.rates import Clock, Rates, best_of, measure_rates
from kernelpot.reduction import SAMPLE
from kernelpot.selection import BATCH, candidates_of_each

__all__ = ["Estimate", "FitCost", "StageCost", "estimate"]

_SEARCH = 12
"""Steps of the search for amplitudes and noise: 5 and 12 for the bundled silicon. How many there
will be depends on the labels; the search takes a small part of large fits."""
_EVIDENCE_STEPS = 110
_NOISE_STEPS = (14, 10)
"""Steps of the searches in the full basis: evidence of few labels, errors left out of few and of
more; likewise."""


class StageCost(NamedTuple):
    """What a stage of a fit takes."""

    name: str
    seconds: float
    flops: float  # of products and factorisations; descriptors are timed, not counted
    memory: float  # most bytes of the process in this stage


class FitCost(NamedTuple):
    """What a fit takes."""

    stages: tuple[StageCost, ...]
    shape: Shape
    room: Room
    budget: float  # bytes
    refused: str  # why it would not begin, and what to lower; empty where it would

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> float:
        """Most bytes of the process."""
        return max(stage.memory for stage in self.stages)


class Estimate(NamedTuple):
    """What was counted and measured: fits of other sizes are estimated without another look."""

    structures: Sequence[Structure]
    options: Options
    bound_g: tuple
    sample: Sample
    rates: Rates
    pair: float  # seconds for the covariance of two structures, in the full basis
    there: float  # bytes of the process, as a fit counts them when it keeps to its budget
    loaded: float  # bytes of the process after the look: compiled code and buffers, no arrays
    checks: float  # seconds for the checks of the structures

    def cost(self, n_environments: int | None = None) -> FitCost:
        """What the fit takes.

        Parameters
        ----------
        n_environments : int | None
            Inducing environments of each process; None for as many as the settings say.

        Returns
        -------
        FitCost
            By stage.
        """
        options = self.options
        if n_environments is not None:
            components = tuple(
                one._replace(n_environments=n_environments) for one in options.components
            )
            options = options._replace(components=components)
        shape = shape_of(self.structures, options, self.bound_g)
        shape = _with_tangents_seen(shape, self.sample.timings)
        budget = budget_of(options)
        room, fits = largest_room(shape, options, self.there)
        refused = "" if fits else refusal(shape, room, options, self.there)
        memory = stages(shape, room, options.selector)
        work = {"checks": (self.checks, 0.0)}
        work |= (_full if shape.full else _sparse)(self, shape, room, options)
        costs = tuple(
            StageCost(name, seconds, flops, self.loaded + memory.get(name, 0.0))
            for name, (seconds, flops) in work.items()
        )
        return FitCost(costs, shape, room, budget, refused)


def estimate(
    structures: Sequence[Structure],
    options: Options,
    clock: Clock = time.perf_counter,
    checks: float = 0.0,
) -> Estimate:
    """Look at some structures and measure this machine; takes a few seconds, and fits nothing.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    options : Options
        Settings.
    clock : Clock
        By which speeds are measured.
    checks : float
        Seconds that it took to check the structures, which a fit does, too.

    Returns
    -------
    Estimate
        Of which `Estimate.cost` says what the fit takes.
    """
    there = resident_memory() + BASE
    bound_g = bind_roughly(structures, options)
    sample = look_at(structures, options, bound_g, clock)
    shape = shape_of(structures, options, bound_g)
    rates = measure_rates(clock, shape.n_columns, max(one.widths[0] for one in shape.processes))
    pair = _time_pair(structures, bound_g[0], options, clock) if shape.full else 0.0
    loaded = resident_memory()
    return Estimate(structures, options, tuple(bound_g), sample, rates, pair, there, loaded, checks)


def _with_tangents_seen(shape: Shape, timings: Sequence[Timing]) -> Shape:
    """Fewer where environments do not have as many as there may be."""
    if shape.full:
        return shape
    processes = []
    for one, timing in zip(shape.processes, timings, strict=True):
        columns = tuple(
            m if one.linear else min(m, round(n * (1.0 + timing.n_tangents)))
            for m, n in zip(one.columns_b, one.environments_b, strict=True)
        )
        processes.append(one._replace(columns_b=columns))
    return shape._replace(processes=tuple(processes))


def _speedup(n_items: float) -> float:
    """By threads that share so many pieces of work of equal length."""
    return max(1.0, n_items / np.ceil(n_items / n_threads()))


Work = dict[str, tuple[float, float]]
"""Seconds and operations by stage."""


def _features(seen: Estimate, shape: Shape, options: Options) -> tuple[float, float]:
    """Principal axes, from derivatives of some environments of each species."""
    seconds = flops = 0.0
    n_atoms = sum(shape.processes[0].atoms_z)
    per_structure = n_atoms / shape.n_structures
    for one, timing in zip(shape.processes, seen.sample.timings, strict=True):
        if one.linear or options.feature_tolerance <= 0.0:
            continue
        n_sample = sum(min(SAMPLE, n) for n in one.sampled_z)
        n_pairs = n_sample * timing.n_pairs / n_atoms
        q = float(one.widths[0])
        n_eigen = len(one.atoms_z) if len(one.columns_b) == len(one.atoms_z) else 1
        products = (3.0 * n_pairs + n_sample) * 2.0 * q**2
        seconds += products / seen.rates.product + 9.0 * n_eigen * q**3 / seen.rates.eigen
        searched = min(n_atoms, n_sample * per_structure)
        seconds += n_pairs * timing.jacobian_raw + seen.sample.search * searched
        flops += products + 9.0 * n_eigen * q**3
    return seconds, flops


def _selection(seen: Estimate, shape: Shape, room: Room, options: Options) -> tuple[float, float]:
    """Features of the candidates, choice, tangents; neighbours for the repulsion of cores."""
    n_atoms = sum(shape.processes[0].atoms_z)
    per_structure = n_atoms / shape.n_structures
    search, at_once = seen.sample.search, _speedup(min(BATCH, shape.n_structures))
    seconds, flops = search * n_atoms, 0.0
    for one, timing in zip(shape.processes, seen.sample.timings, strict=True):
        if one.linear:
            continue
        q, each = one.n_features, candidates_of_each(room, one.n_features, len(one.atoms_z))
        counts = [min(n, each) for n in one.sampled_z]
        share = sum(counts) / n_atoms
        described = search * sum(one.sampled_z) + share * timing.n_pairs * timing.features
        seconds += described / at_once
        chosen = _by_species(one)
        numbers = sum(n * c * q for n, c in zip(chosen, counts, strict=True))
        if options.selector in ("variance", "joint"):
            numbers += sum(0.5 * n**2 * c for n, c in zip(chosen, counts, strict=True))
        seconds += 8.0 * numbers / seen.rates.stream
        flops += 2.0 * numbers
        pool = 5 if options.selector == "joint" else 1
        n_tangents = sum(chosen) * pool if timing.n_tangents else 0
        side_by_side = 1.0 if options.selector == "joint" else _speedup(min(BATCH, n_tangents))
        seconds += n_tangents * (timing.tangents + search * per_structure) / side_by_side
    return seconds, flops


def _by_species(one: Process) -> list[float]:
    """Environments of each species, also where they share a block."""
    if len(one.environments_b) == len(one.atoms_z):
        return list(map(float, one.environments_b))
    share_z = np.sqrt(one.atoms_z)
    return (sum(one.environments_b) * share_z / share_z.sum()).tolist()


def _columns_of_species(one: Process) -> list[float]:
    """Inducing variables that an environment of each species has covariances with."""
    if len(one.columns_b) == len(one.atoms_z):
        return list(map(float, one.columns_b))
    return [float(sum(one.columns_b))] * len(one.atoms_z)


def _sparse(seen: Estimate, shape: Shape, room: Room, options: Options) -> Work:
    """Stages of a fit with inducing variables."""
    rates, timings = seen.rates, seen.sample.timings
    n_atoms = sum(shape.processes[0].atoms_z)
    n_rows, w = list(shape.n_rows.values()), shape.n_columns + 1.0
    blocks = [(float(m), one.n_features) for one in shape.processes for m in one.columns_b]
    k = min(w - 1.0, float(COARSE))

    whitening = sum(2.0 * m**2 * q / rates.product for m, q in blocks)
    whitening += sum(m**2 * rates.covariance + m**3 / 3.0 / rates.pivoted for m, _ in blocks)
    whitening_flops = sum(2.0 * m**2 * q + m**3 / 3.0 for m, q in blocks)

    with_forces = _share_with_derivatives(seen.structures)
    rows, rows_flops = seen.sample.search * n_atoms, 0.0
    for one, timing in zip(shape.processes, timings, strict=True):
        columns = np.dot(_columns_of_species(one), one.atoms_z) / n_atoms
        per_pair = timing.jacobian + timing.column * columns
        rows += timing.n_pairs * (with_forces * per_pair + (1.0 - with_forces) * timing.features)
        # Projections on principal axes are timed with the derivatives.
        projected = sum(a * b for a, b in itertools.pairwise(one.widths) if b < a)
        rows_flops += 6.0 * with_forces * timing.n_pairs * (columns * one.n_features + projected)
    rows /= _speedup(shape.n_batch)
    rows += sum(n_rows) * w * rates.copy
    reduction, joins, grams = _reduction_flops(n_rows, w, k, shape.n_parts, room.n_buffer)
    rows += (reduction + joins) / rates.qr + grams / (0.5 * (rates.product + rates.solve))
    rows_flops += reduction + joins + grams

    n_folds, n_l = shape.n_folds, len(n_rows)
    each = n_folds * k**3 / 3.0
    passes = n_folds * (3.0 * n_l + 4.0) * 8.0 * k**2
    search = (_SEARCH + 1.0) * (each / rates.cholesky + passes / rates.stream)
    search_flops = (_SEARCH + 1.0) * each

    once = sum(min(n, w) * sum(m**2 for m, _ in blocks) for n in n_rows)
    absorbed = sum(2.0 * min(n, w) * w**2 for n in n_rows)
    solving = once / rates.solve + absorbed / rates.qr
    if shape.robust:  # once more, and every structure predicted by all others
        rows, search, solving = 3.0 * rows, 2.0 * search, 2.0 * solving
    return {
        "features": _features(seen, shape, options),
        "selection": _selection(seen, shape, room, options),
        "whitening": (whitening, whitening_flops),
        "rows": (rows, rows_flops),
        "hyperparameters": (search, search_flops),
        "posterior": (solving, once + absorbed),
        "training errors": _errors_and_scores(seen, shape),
    }


def _reduction_flops(
    n_rows: Sequence[int], w: float, k: float, n_parts: int, n_buffer: int
) -> tuple[float, float, float]:
    """Operations of the triangles of all parts, of joining them, and of their products."""
    reduction = joins = grams = 0.0
    for n in n_rows:
        mine = n / n_parts
        for first in np.arange(0.0, mine, n_buffer):
            some = min(mine - first, float(n_buffer))
            reduction += n_parts * absorption_flops(first, some, w)
        kept = min(mine, w)
        for k_part in range(1, n_parts):
            joins += absorption_flops(min(k_part * kept, w), kept, w, triangular=True)
        grams += n_parts * 2.0 * kept * k**2
    return reduction, joins, grams


def absorption_flops(before: float, rows: float, w: float, *, triangular: bool = False) -> float:
    """Operations of the reduction of rows to a trapezoid.

    Parameters
    ----------
    before : float
        Rows of the trapezoid.
    rows : float
        New ones.
    w : float
        Columns.
    triangular : bool
        Whether the new rows are a trapezoid, too.

    Returns
    -------
    float
        Floating-point operations.
    """
    done = min(before + rows, w)  # columns, after which nothing is left of the rows
    if not triangular:
        return 2.0 * rows * (2.0 * done * w - done**2)
    rows = min(rows, done)
    growing = 4.0 * (0.5 * w * rows**2 - rows**3 / 3.0)
    return growing + 4.0 * rows * (w * (done - rows) - 0.5 * (done**2 - rows**2))


def _share_with_derivatives(structures: Sequence[Structure]) -> float:
    """Share of the atoms that belong to structures with forces or stresses."""
    n_atoms = np.array([s.n_atoms for s in structures])
    given = [np.isfinite(s.forces_nc).any() or np.isfinite(s.stress_v).any() for s in structures]
    return float(n_atoms @ np.array(given, dtype=float) / n_atoms.sum())


def _errors(seen: Estimate, shape: Shape) -> tuple[float, float]:
    """The finished model on its training structures."""
    n_atoms = sum(shape.processes[0].atoms_z)
    seconds, flops = seen.sample.search * n_atoms, 0.0
    for one, timing in zip(shape.processes, seen.sample.timings, strict=True):
        environments = [1.0 if one.linear else float(n) for n in one.environments_b]
        if len(environments) == len(one.atoms_z):
            products = 8.0 * np.dot(environments, one.atoms_z) * one.n_features
        else:
            products = 8.0 * sum(environments) * n_atoms * one.n_features
        # Centres of one structure are shared out.
        at_once = _speedup(n_atoms / shape.n_structures)
        seconds += timing.n_pairs * (timing.features + timing.adjoint) / at_once
        seconds += products / seen.rates.product
        flops += products
    return seconds, flops


def _full(seen: Estimate, shape: Shape, room: Room, options: Options) -> Work:
    """Stages of a fit in the full basis."""
    rates, timing = seen.rates, seen.sample.timings[0]
    n_atoms, n = sum(shape.processes[0].atoms_z), float(sum(shape.n_rows.values()))
    environments = seen.sample.search * n_atoms + timing.n_pairs * timing.jacobian
    environments += 3.0 * shape.jacobians / rates.stream
    q = shape.processes[0].n_features
    pairs = 0.5 * shape.n_structures**2
    few, more = min(n, EVIDENCE_ROWS), min(n, NOISE_ROWS)
    evidence = _EVIDENCE_STEPS * few**3 / 3.0
    left_out = _NOISE_STEPS[0] * few**3 + (_NOISE_STEPS[1] * more**3 if n > few else 0.0)
    search = 0.0
    if options.learned or options.components[0].delta is None:
        search = evidence + (left_out if options.learned else 0.0)
    factor = n**3 / 3.0 + (2.0 / 3.0 * n**3 if n <= LEAVE_OUT_ROWS else 0.0)
    return {
        "features": _features(seen, shape, options),
        "environments": (environments, 0.0),
        "covariance": (
            pairs * seen.pair / n_threads(),
            pairs * 2.0 * (n / shape.n_structures) ** 2 * q,
        ),
        "hyperparameters": (search / rates.cholesky, search),
        "posterior": (factor / rates.cholesky + shape.jacobians / rates.stream, factor),
        "training errors": _errors(seen, shape),
    }


def _errors_and_scores(seen: Estimate, shape: Shape) -> tuple[float, float]:
    """The same, and how much each structure pulls at the weights."""
    n_atoms = sum(shape.processes[0].atoms_z)
    seconds, flops = seen.sample.search * n_atoms, 0.0
    for one, timing in zip(shape.processes, seen.sample.timings, strict=True):
        # Features as they are and at either side; their products, and those of differences.
        seconds += 3.0 * timing.n_pairs * timing.features
        flops += 4.0 * np.dot(_columns_of_species(one), one.atoms_z) * one.n_features
    seconds = (seconds + flops / seen.rates.product) / _speedup(shape.n_structures)
    solving = 2.0 * min(shape.n_structures, MOST_SCORES) * float(shape.n_columns) ** 2
    before = _errors(seen, shape)
    seconds += before[0] + solving / seen.rates.solve
    return seconds, before[1] + flops + solving


def _time_pair(
    structures: Sequence[Structure], bound: object, options: Options, clock: Clock
) -> float:
    """Seconds for the covariance of two structures, of arrays of the size of typical ones."""
    sizes = np.array([s.n_atoms for s in structures])
    typical = structures[int(np.argsort(np.abs(sizes - sizes.mean()), kind="stable")[0])]
    n_g = 3 * typical.n_atoms + 6 * bool(np.isfinite(typical.stress_v).any())
    rng = np.random.default_rng(0)
    # The derivatives' own bytes say how many numbers there are for each environment.
    n_q = max(1, round(jacobian_bytes([typical], bound) / 8.0 / n_g / typical.n_atoms))
    n_s = 4
    x: Float = rng.standard_normal((n_s, typical.n_atoms, n_q))
    J: Float = rng.standard_normal((n_s, n_g, typical.n_atoms, n_q))
    blocks: Mapping[int, int] = {
        int(z): int(np.count_nonzero(typical.numbers_n == z)) for z in set(typical.numbers_n)
    }
    ends = np.cumsum(list(blocks.values()))[:-1]
    x_z, J_z = np.split(x, ends, axis=1), np.split(J, ends, axis=2)
    chunk = Chunk(
        [np.ascontiguousarray(a) for a in x_z], [np.ascontiguousarray(a) for a in J_z],
        np.arange(n_s), [], [], [], [], [], [],
    )  # fmt: skip
    zeta = options.components[0].zeta
    with one_blas_thread():
        covariance(chunk, chunk, zeta)
        return best_of(lambda: covariance(chunk, chunk, zeta), clock, 2) / n_s**2
