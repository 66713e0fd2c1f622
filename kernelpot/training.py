"""The fit as a pipeline: baseline, choice of inducing variables, rows into triangles, posterior."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Float, Int, System, as_int
from kernelpot.data import Structure
from kernelpot.data_checks import DataError, DataWarning, check_energy_scale
from kernelpot.descriptors.protocol import BoundDescriptor, Descriptor
from kernelpot.gp import inducing as choice
from kernelpot.gp.covariances import K_mm
from kernelpot.gp.evidence import maximise_over_delta
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.solvers import (
    Posterior,
    RowReducer,
    Triangle,
    Whitening,
    combine,
    empty_triangle,
    posterior,
    whiten_blocks,
)
from kernelpot.neighbours import find_pairs
from kernelpot.rows import structure_rows
from kernelpot.terms.composition import CompositionBaseline, fit_composition

log = logging.getLogger("kernelpot")

Progress = Callable[[str, int, int], None]

_CANDIDATE_BYTES = 2**29
"""Bound on the features of the candidates from which environments are chosen."""

_RANK_TOLERANCE = 1e-10
"""Inducing variables whose variance is, given the others, below this fraction are dependent."""


class Options(NamedTuple):
    """Settings of a fit, as the estimator holds them."""

    zeta: int
    delta: float | None
    n_environments: int | dict[str, int]
    n_tangents: int
    tangent_threshold: float
    selector: str | choice.Selector
    random_state: int | None


class Fitted(NamedTuple):
    """Everything that a fit learns."""

    descriptor: BoundDescriptor
    zeta: int
    baseline: CompositionBaseline
    inducing: tuple[Inducing, ...]
    triangles: dict[str, Triangle]  # one per kind of label
    delta: float
    weights_m: Float  # mean weights of the inducing variables
    log_evidence: float
    posterior: Callable[[], Posterior]  # solved on demand where the fit comes from a file
    seconds: dict[str, float]


class Solved(NamedTuple):
    """A posterior that is there already, behind the call that asks for it."""

    posterior: Posterior

    def __call__(self) -> Posterior:
        """Give it."""
        return self.posterior


def system_of(descriptor: BoundDescriptor, structure: Structure) -> System:
    """What the descriptor sees of a structure.

    Parameters
    ----------
    descriptor : BoundDescriptor
        Gives the cutoff and the list of species.
    structure : Structure
        A structure of known species.

    Returns
    -------
    System
        Species indices and neighbour pairs.

    Raises
    ------
    DataError
        If a species is not among the descriptor's.
    """
    unknown = set(structure.numbers_n.tolist()) - set(descriptor.species)
    if unknown:
        raise DataError(
            f"{structure.name} contains the atomic numbers {sorted(unknown)}, which the model does "
            f"not know (it knows {list(descriptor.species)}). Fit anew with all structures."
        )
    pairs = find_pairs(
        structure.positions_nc, structure.cell_cc, structure.pbc_c, descriptor.cutoff
    )
    return System(as_int(np.searchsorted(descriptor.species, structure.numbers_n)), pairs)


def fit(
    structures: Sequence[Structure],
    descriptor: Descriptor,
    options: Options,
    progress: Progress | None = None,
) -> Fitted:
    """Fit a sparse Gaussian process to labelled structures.

    Parameters
    ----------
    structures : Sequence[Structure]
        Checked structures, at least one with labels.
    descriptor : Descriptor
        Its species are taken from the structures.
    options : Options
        Settings.
    progress : Progress | None
        Called with a stage's name, what is done and the total.

    Returns
    -------
    Fitted
        The fitted state.

    Raises
    ------
    DataError
        If nothing remains to be fitted.
    """
    tell = progress or _say_nothing
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    check_energy_scale(structures)
    species = tuple(sorted({int(z) for s in structures for z in s.numbers_n}))
    bound = descriptor.bind(species)
    baseline, keep = fit_composition(structures, bound.cutoff)
    if len(keep) == 0:
        raise DataError(
            "only isolated atoms are left to fit: they are the baseline and say nothing of "
            f"bonding. Add structures with neighbours within the cutoff of {bound.cutoff:g} A."
        )
    isolated = set(range(len(structures))) - set(keep.tolist())
    inducing = _choose(structures, isolated, bound, options, tell)
    seconds["selection"] = time.perf_counter() - started
    n_columns = sum(len(group.Z_mq) for group in inducing)
    log.info(
        "inducing variables: %d environments and %d tangents",
        sum(len(group.first_e) - 1 for group in inducing),
        n_columns - sum(len(group.first_e) - 1 for group in inducing),
    )

    started = time.perf_counter()
    triangles = {kind: empty_triangle(n_columns) for kind in LABEL_KINDS}
    triangles = _add_rows(triangles, structures, bound, inducing, options.zeta, baseline, tell)
    seconds["rows"] = time.perf_counter() - started

    started = time.perf_counter()
    tell("posterior", 0, 1)
    whitening = _whitening(inducing, options.zeta)
    combined = combine(list(triangles.values()), whitening)
    if options.delta is None:
        solved = maximise_over_delta(combined)
        log.info("delta %.3g eV by the evidence", solved.delta)
    else:
        solved = posterior(combined, options.delta)
    _check_stress(triangles, whitening, solved.delta)
    tell("posterior", 1, 1)
    seconds["posterior"] = time.perf_counter() - started
    log.info("log evidence %.1f, rank %d of %d", solved.log_evidence, len(solved.w_k), n_columns)
    return Fitted(
        bound,
        options.zeta,
        baseline,
        inducing,
        triangles,
        solved.delta,
        solved.weights(),
        solved.log_evidence,
        Solved(solved),
        seconds,
    )


def _say_nothing(stage: str, done: int, total: int) -> None:
    pass


def update(
    fitted: Fitted, structures: Sequence[Structure], progress: Progress | None = None
) -> Fitted:
    """Add labelled structures to a fit, keeping its baseline and its inducing variables.

    Parameters
    ----------
    fitted : Fitted
        An earlier fit; unchanged.
    structures : Sequence[Structure]
        New structures, of species that the fit knows.
    progress : Progress | None
        Called with a stage's name, what is done and the total.

    Returns
    -------
    Fitted
        The fit to old and new data: to rounding, what one fit with the same baseline and inducing
        variables would give.
    """
    tell = progress or _say_nothing
    started = time.perf_counter()
    triangles = _add_rows(
        fitted.triangles,
        structures,
        fitted.descriptor,
        fitted.inducing,
        fitted.zeta,
        fitted.baseline,
        tell,
    )
    solved = solve(fitted.inducing, triangles, fitted.zeta, fitted.delta)
    seconds = {**fitted.seconds, "update": time.perf_counter() - started}
    return fitted._replace(
        triangles=triangles,
        weights_m=solved.weights(),
        log_evidence=solved.log_evidence,
        posterior=Solved(solved),
        seconds=seconds,
    )


def solve(
    inducing: tuple[Inducing, ...], triangles: dict[str, Triangle], zeta: int, delta: float
) -> Posterior:
    """Posterior from the statistics of the training rows.

    Parameters
    ----------
    inducing : tuple[Inducing, ...]
        Inducing variables of each species.
    triangles : dict[str, Triangle]
        Statistics of the rows, by kind of label.
    zeta : int
        Exponent of the kernel.
    delta : float
        Prior amplitude, eV.

    Returns
    -------
    Posterior
        Mean weights, covariance, log evidence.
    """
    return posterior(combine(list(triangles.values()), _whitening(inducing, zeta)), delta)


def _whitening(inducing: tuple[Inducing, ...], zeta: int) -> Whitening:
    return whiten_blocks([K_mm(group, zeta) for group in inducing], _RANK_TOLERANCE)


# --------------------------------------------------------------- choice of inducing variables


def _choose(
    structures: Sequence[Structure],
    isolated: set[int],
    bound: BoundDescriptor,
    options: Options,
    tell: Progress,
) -> tuple[Inducing, ...]:
    """Environments by the selector, species by species, and their tangents.

    An isolated atom sees itself, so its environment has a local energy, which must be learned to
    be zero: it is always among the chosen.
    """
    rng = np.random.default_rng(options.random_state)
    place_n = np.array([(s, n) for s, st in enumerate(structures) for n in range(st.n_atoms)])
    numbers_n = np.concatenate([s.numbers_n for s in structures])
    candidates_n = _candidates(numbers_n, bound, rng)

    x_nq = np.empty((len(candidates_n), bound.n_features))
    for s, structure in enumerate(structures):
        mine = np.flatnonzero(place_n[candidates_n, 0] == s)
        if len(mine):
            centres_b = as_int(place_n[candidates_n[mine], 1])
            x_nq[mine] = bound.features(system_of(bound, structure), centres_b)[0]
        tell("features", s + 1, len(structures))

    counts = [int(np.count_nonzero(numbers_n == z)) for z in bound.species]
    quotas = _quotas(options.n_environments, bound.species, counts)
    groups = []
    for z, number in enumerate(bound.species):
        mine = np.flatnonzero(numbers_n[candidates_n] == number)
        alone = [n for n in mine if place_n[candidates_n[n], 0] in isolated][:1]
        rest = np.setdiff1d(mine, alone)
        picked = np.concatenate(
            [alone, rest[choice.select(x_nq[rest], quotas[z] - len(alone), options.selector, rng)]]
        ).astype(np.intp)
        tangents: list[Float] = []
        for k, n in enumerate(picked):
            s, centre = place_n[candidates_n[n]]
            if options.n_tangents:
                system = system_of(bound, structures[s])
                _, J_pcq = bound.jacobian(system, as_int([centre]))
                tangents.append(
                    choice.tangents(J_pcq, options.n_tangents, options.tangent_threshold)
                )
            else:
                tangents.append(np.zeros((0, bound.n_features)))
            tell("tangents", sum(quotas[:z]) + k + 1, sum(quotas))
        groups.append(choice.join(x_nq[picked], tangents))
    return tuple(groups)


def _candidates(numbers_n: Int, bound: BoundDescriptor, rng: np.random.Generator) -> Int:
    """Atoms among which environments are chosen: all, or an equal random share per species."""
    share = max(1, _CANDIDATE_BYTES // (8 * bound.n_features * len(bound.species)))
    chosen = []
    for number in bound.species:
        mine = np.flatnonzero(numbers_n == number)
        if len(mine) > share:
            log.info("%d of %d atoms of one species are candidates", share, len(mine))
            mine = rng.choice(mine, share, replace=False)
        chosen.append(mine)
    return as_int(np.sort(np.concatenate(chosen)))


def _quotas(
    n_environments: int | dict[str, int], species: tuple[int, ...], counts: Sequence[int]
) -> list[int]:
    """Environments per species: as named, or in proportion to the square root of its atoms."""
    if isinstance(n_environments, dict):
        from ase.data import chemical_symbols

        names = [chemical_symbols[z] for z in species]
        missing = sorted(set(names) ^ set(n_environments))
        if missing:
            raise ValueError(
                f"n_environments names {sorted(n_environments)}, the data contain {names}; "
                f"every species needs one entry (check {', '.join(missing)})"
            )
        return [min(int(n_environments[a]), c) for a, c in zip(names, counts, strict=True)]
    share = np.sqrt(counts)
    wanted = np.maximum(1, np.round(n_environments * share / share.sum())).astype(int)
    return [min(int(w), c) for w, c in zip(wanted, counts, strict=True)]


# ------------------------------------------------------------------------------- label rows


def _add_rows(
    triangles: dict[str, Triangle],
    structures: Sequence[Structure],
    bound: BoundDescriptor,
    inducing: tuple[Inducing, ...],
    zeta: int,
    baseline: CompositionBaseline,
    tell: Progress,
) -> dict[str, Triangle]:
    """Absorb the rows of the structures into the triangle of each kind of label."""
    reducers = {kind: RowReducer(triangle) for kind, triangle in triangles.items()}
    for s, structure in enumerate(structures):
        forces_r = structure.forces_nc.ravel()
        has_forces = np.flatnonzero(np.isfinite(forces_r))
        has_stress = np.flatnonzero(np.isfinite(structure.stress_v))
        has_energy = np.isfinite(structure.energy)
        gradients = len(has_forces) + len(has_stress) > 0
        if gradients or has_energy:
            system = system_of(bound, structure)
            rows = structure_rows(bound, inducing, zeta, system, gradients=gradients)
        if has_energy:
            # sigma_energy is per atom, so the row is the energy per atom.
            residual = structure.energy - baseline.energy_of(structure.numbers_n)
            reducers["energy"].add(
                rows.energy_m[None, :] / structure.n_atoms,
                np.array([residual / structure.n_atoms]),
                np.array([structure.sigma_energy]),
            )
        if len(has_forces):
            reducers["forces"].add(
                rows.forces_rm if len(has_forces) == len(forces_r) else rows.forces_rm[has_forces],
                forces_r[has_forces],
                np.full(len(has_forces), structure.sigma_forces),
            )
        if len(has_stress):
            reducers["stress"].add(
                rows.strain_vm[has_stress] / structure.volume,
                structure.stress_v[has_stress],
                np.full(len(has_stress), structure.sigma_stress),
            )
        tell("rows", s + 1, len(structures))
    return {kind: reducer.finish() for kind, reducer in reducers.items()}


def _check_stress(triangles: dict[str, Triangle], whitening: Whitening, delta: float) -> None:
    """Warn where the stress labels contradict the strain derivative of a fit without them.

    With the weights a of a fit to energies and forces alone, the triangle [R | z] of the stress
    rows holds the correlation of predicted with labelled stress: (R a) . z / (|R a| |z|), and the
    factor between them.
    """
    stress, forces = triangles["stress"], triangles["forces"]
    if stress.n_rows < 6 or forces.n_rows == 0:
        return
    others = [triangles["energy"], forces]
    weights_m = posterior(combine(others, whitening), delta).weights()
    # A fit that does not even explain its own forces has no say about stresses.
    unexplained = np.linalg.norm(forces.R[:, :-1] @ weights_m - forces.R[:, -1])
    if unexplained > 0.5 * np.linalg.norm(forces.R[:, -1]):
        return
    predicted = stress.R[:, :-1] @ weights_m
    label = stress.R[:, -1]
    norms = float(np.linalg.norm(predicted) * np.linalg.norm(label))
    if norms == 0.0:
        return
    correlation = float(predicted @ label) / norms
    factor = float(predicted @ label) / float(predicted @ predicted)
    if correlation < -0.7:
        warnings.warn(
            "the stress labels run against the strain derivative of a fit to energies and forces "
            f"(correlation {correlation:.2f}, factor {factor:.2g}): their sign is probably that of "
            "a virial or a pressure. Stress here is dE/dstrain / volume, tension positive; name a "
            "virial with virial_key, or turn the sign.",
            DataWarning,
            stacklevel=4,
        )
    elif correlation > 0.7 and not 0.2 < factor < 5.0:
        warnings.warn(
            f"the stress labels are {factor:.3g} times the strain derivative of a fit to energies "
            "and forces: they are probably not in eV/A^3 (1 eV/A^3 = 160.22 GPa = 1602.2 kbar), or "
            "they are virials in eV (name them with virial_key).",
            DataWarning,
            stacklevel=4,
        )
