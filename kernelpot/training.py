"""The fit as a pipeline: baseline, choice of inducing variables, rows into triangles, posterior."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Float, Progress
from kernelpot.data import Structure
from kernelpot.data_checks import DataError, DataWarning, check_energy_scale
from kernelpot.descriptors.protocol import BoundDescriptor, Descriptor
from kernelpot.gp.covariances import K_mm
from kernelpot.gp.evidence import maximise_over_delta
from kernelpot.gp.inducing import Inducing, Selector
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
from kernelpot.rows import structure_rows
from kernelpot.selection import choose_inducing, system_of
from kernelpot.terms.composition import CompositionBaseline, fit_composition

log = logging.getLogger("kernelpot")

_RANK_TOLERANCE = 1e-10
"""Inducing variables whose variance is, given the others, below this fraction are dependent."""


class Options(NamedTuple):
    """Settings of a fit, as the estimator holds them."""

    zeta: int
    delta: float | None
    n_environments: int | dict[str, int]
    n_tangents: int
    tangent_threshold: float
    selector: str | Selector
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
    inducing = choose_inducing(
        structures,
        isolated,
        bound,
        n_environments=options.n_environments,
        n_tangents=options.n_tangents,
        tangent_threshold=options.tangent_threshold,
        selector=options.selector,
        random_state=options.random_state,
        tell=tell,
    )
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
