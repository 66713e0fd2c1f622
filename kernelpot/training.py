"""The fit as a pipeline: baseline, choice of inducing variables, rows into triangles, posterior."""

from __future__ import annotations

import functools
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import (
    LABEL_KINDS,
    Float,
    LabelSet,
    Progress,
)
from kernelpot.data import Structure
from kernelpot.data_checks import DataError, DataWarning, check_energy_scale
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear
from kernelpot.full_basis import fit_full_basis
from kernelpot.gp.covariances import K_mm
from kernelpot.gp.evidence import Gram, gram
from kernelpot.gp.solvers import (
    Posterior,
    RowReducer,
    Triangle,
    Whitening,
    empty_triangle,
    join_triangles,
    posterior,
    whiten_blocks,
)
from kernelpot.hyperparameters import (
    COARSE,
    choose_hyperparameters,
    folds_of,
    leave_out_errors,
)
from kernelpot.options import Options
from kernelpot.reduction import reduce_features
from kernelpot.rows import Component, structure_rows
from kernelpot.selection import choose_inducing, system_of
from kernelpot.targets import to_learn
from kernelpot.terms.composition import CompositionBaseline, fit_composition
from kernelpot.terms.repulsion import CoreRepulsion, fit_repulsion

log = logging.getLogger("kernelpot")

_RANK_TOLERANCE = 1e-10
"""Inducing variables whose variance is, given the others, below this fraction are dependent."""


class Fitted(NamedTuple):
    """Everything that a fit learns."""

    components: tuple[Component, ...]
    baseline: CompositionBaseline
    repulsion: CoreRepulsion | None
    triangles: dict[LabelSet, Triangle]
    noise: dict[LabelSet, float]  # factors on the assumed standard deviations
    force_priority: float
    delta_g: tuple[float, ...]
    weights_m: Float  # mean weights of the inducing variables
    log_evidence: float
    data_fit: float  # the part of it that is not the Occam factor
    leave_out: dict[str, float]  # RMSE on left-out folds, by kind of label; of the last full fit
    posterior: Callable[[], Posterior]  # solved on demand where the fit comes from a file
    seconds: dict[str, float]


class Solved(NamedTuple):
    """A posterior that is there already, behind the call that asks for it."""

    posterior: Posterior

    def __call__(self) -> Posterior:
        """Give it."""
        return self.posterior


def fit(
    structures: Sequence[Structure], options: Options, progress: Progress | None = None
) -> Fitted:
    """Fit a sum of sparse Gaussian processes to labelled structures.

    Parameters
    ----------
    structures : Sequence[Structure]
        Checked structures, at least one with labels.
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
    bound_g = [
        reduce_features(
            structures,
            one.descriptor.bind(species),
            options.feature_tolerance,
            options.random_state,
        )
        for one in options.components
    ]
    cutoff = max(bound.cutoff for bound in bound_g)
    baseline, keep = fit_composition(structures, cutoff)
    if len(keep) == 0:
        raise DataError(
            "only isolated atoms are left to fit: they are the baseline and say nothing of "
            f"bonding. Add structures with neighbours within the cutoff of {cutoff:g} A."
        )
    isolated = set(range(len(structures))) - set(keep.tolist())
    repulsion = fit_repulsion(structures, cutoff) if options.core_repulsion else None
    if options.basis == "full":
        return _fit_full(structures, bound_g[0], options, baseline, repulsion, tell)
    components = tuple(
        Component(
            bound,
            one.zeta,
            choose_inducing(
                structures,
                isolated,
                bound,
                n_environments=one.n_environments,
                n_tangents=one.n_tangents,
                tangent_threshold=options.tangent_threshold,
                selector=options.selector,
                random_state=options.random_state,
                tell=tell,
            ),
        )
        for bound, one in zip(bound_g, options.components, strict=True)
    )
    seconds["selection"] = time.perf_counter() - started
    n_columns = sum(component.n_columns for component in components)
    n_environments = sum(component.n_environments for component in components)
    log.info("inducing variables: %d, of which %d are environments", n_columns, n_environments)

    started = time.perf_counter()
    whitening = _whitening(components)
    parts = folds_of(structures, isolated, options)
    triangles: dict[LabelSet, Triangle] = {}
    grams: list[dict[LabelSet, Gram]] = []
    coarse = whitening.leading(
        COARSE, [is_linear(c.descriptor) for c in components for _ in c.inducing]
    )
    n_done = 0
    for part in parts:
        told = functools.partial(_tell_of_part, tell, n_done, len(structures))
        found = _add_rows({}, [structures[s] for s in part], components, baseline, repulsion, told)
        if len(parts) > 1:
            grams.append({label: gram(triangle, coarse) for label, triangle in found.items()})
        for label, triangle in found.items():
            known = triangles.get(label)
            triangles[label] = triangle if known is None else join_triangles(known, triangle)
        n_done += len(part)
    seconds["rows"] = time.perf_counter() - started

    started = time.perf_counter()
    tell("hyperparameters", 0, 1)
    delta_g, noise = choose_hyperparameters(triangles, grams, coarse, components, options)
    effective = _effective_noise(noise, options.force_priority)
    leave_out = leave_out_errors(triangles, grams, coarse, components, delta_g, effective)
    tell("hyperparameters", 1, 1)
    seconds["hyperparameters"] = time.perf_counter() - started

    started = time.perf_counter()
    tell("posterior", 0, 1)
    solved = _solve(triangles, whitening, components, delta_g, effective)
    _check_stress(triangles, whitening, solved)
    tell("posterior", 1, 1)
    seconds["posterior"] = time.perf_counter() - started
    log.info("log evidence %.1f, rank %d of %d", solved.log_evidence, len(solved.w_k), n_columns)
    return Fitted(
        components,
        baseline,
        repulsion,
        triangles,
        noise,
        options.force_priority,
        delta_g,
        solved.weights(),
        solved.log_evidence,
        solved.data_fit,
        leave_out,
        Solved(solved),
        seconds,
    )


def _fit_full(
    structures: Sequence[Structure],
    bound: BoundDescriptor,
    options: Options,
    baseline: CompositionBaseline,
    repulsion: CoreRepulsion | None,
    tell: Progress,
) -> Fitted:
    """The fit whose inducing variables are the labels: no statistics of rows remain."""
    started = time.perf_counter()
    one = options.components[0]
    found = fit_full_basis(
        structures, bound, one.zeta, one.delta, options, baseline, repulsion, tell
    )
    return Fitted(
        (Component(bound, one.zeta, found.inducing),),
        baseline,
        repulsion,
        {},
        found.noise,
        options.force_priority,
        (found.delta,),
        found.weights_m,
        found.log_evidence,
        found.data_fit,
        found.leave_out,
        no_posterior,
        {"full basis": time.perf_counter() - started},
    )


def no_posterior() -> Posterior:
    """Stands where the posterior is in a sparse fit.

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError(
        "a model with basis='full' keeps its weights only, not the covariance of all labels: it "
        "has no standard deviations and learns no new data. Fit with basis='sparse' for these."
    )


def _tell_of_part(tell: Progress, before: int, total: int, stage: str, done: int, _: int) -> None:
    tell(stage, before + done, total)


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
    if not fitted.triangles:
        no_posterior()
    tell = progress or _say_nothing
    started = time.perf_counter()
    triangles = _add_rows(
        fitted.triangles,
        structures,
        fitted.components,
        fitted.baseline,
        fitted.repulsion,
        tell,
    )
    noise = {label: _known_noise(label, fitted.noise) for label in triangles}
    fitted = fitted._replace(triangles=triangles, noise=noise)
    solved = solve(fitted)
    seconds = {**fitted.seconds, "update": time.perf_counter() - started}
    return fitted._replace(
        weights_m=solved.weights(),
        log_evidence=solved.log_evidence,
        data_fit=solved.data_fit,
        posterior=Solved(solved),
        seconds=seconds,
    )


def _known_noise(label: LabelSet, noise: Mapping[LabelSet, float]) -> float:
    """Of this set; of a source that the fit did not know, the mean of the others of its kind."""
    if label in noise:
        return noise[label]
    alike = [math.log(factor) for other, factor in noise.items() if other.kind == label.kind]
    return math.exp(sum(alike) / len(alike)) if alike else 1.0


def solve(fitted: Fitted) -> Posterior:
    """Posterior from the statistics of the training rows.

    Parameters
    ----------
    fitted : Fitted
        Whose components, statistics and hyperparameters are used.

    Returns
    -------
    Posterior
        Mean weights, covariance, log evidence.
    """
    effective = _effective_noise(fitted.noise, fitted.force_priority)
    whitening = _whitening(fitted.components)
    return _solve(fitted.triangles, whitening, fitted.components, fitted.delta_g, effective)


def _solve(
    triangles: Mapping[LabelSet, Triangle],
    whitening: Whitening,
    components: Sequence[Component],
    delta_g: Sequence[float],
    noise: Mapping[LabelSet, float],
) -> Posterior:
    delta_b = np.repeat(delta_g, [len(c.inducing) for c in components])
    return posterior(
        list(triangles.values()), whitening, delta_b, [noise[label] for label in triangles]
    )


def _whitening(components: Sequence[Component]) -> Whitening:
    blocks = [K_mm(group, one.zeta) for one in components for group in one.inducing]
    return whiten_blocks(blocks, _RANK_TOLERANCE)


def _effective_noise(
    noise: Mapping[LabelSet, float], force_priority: float
) -> dict[LabelSet, float]:
    return {
        label: factor / math.sqrt(force_priority) if label.kind == "forces" else factor
        for label, factor in noise.items()
    }


# ------------------------------------------------------------------------------- label rows


def _add_rows(
    triangles: Mapping[LabelSet, Triangle],
    structures: Sequence[Structure],
    components: Sequence[Component],
    baseline: CompositionBaseline,
    repulsion: CoreRepulsion | None,
    tell: Progress,
) -> dict[LabelSet, Triangle]:
    """Absorb the rows of the structures into the triangle of each set of labels."""
    n_columns = sum(component.n_columns for component in components)
    sources = sorted({structure.source for structure in structures})
    labels = list(triangles)
    labels += [LabelSet(k, source) for source in sources for k in LABEL_KINDS]
    reducers = {
        label: RowReducer(triangles.get(label, empty_triangle(n_columns)))
        for label in dict.fromkeys(labels)
    }
    longest = max((c.descriptor for c in components), key=lambda bound: bound.cutoff)
    for s, structure in enumerate(structures):
        has_forces = np.flatnonzero(np.isfinite(structure.forces_nc.ravel()))
        has_stress = np.flatnonzero(np.isfinite(structure.stress_v))
        has_energy = np.isfinite(structure.energy)
        gradients = len(has_forces) + len(has_stress) > 0
        if gradients or has_energy:
            system = system_of(longest, structure)
            rows = structure_rows(components, system, gradients=gradients)
            energy, forces_r, stress_v = to_learn(structure, system.pairs, baseline, repulsion)
        if has_energy:
            # sigma_energy is per atom, so the row is the energy per atom.
            reducers[LabelSet("energy", structure.source)].add(
                rows.energy_m[None, :] / structure.n_atoms,
                np.array([energy / structure.n_atoms]),
                np.array([structure.sigma_energy]),
            )
        if len(has_forces):
            reducers[LabelSet("forces", structure.source)].add(
                rows.forces_rm if len(has_forces) == len(forces_r) else rows.forces_rm[has_forces],
                forces_r[has_forces],
                np.full(len(has_forces), structure.sigma_forces),
            )
        if len(has_stress):
            reducers[LabelSet("stress", structure.source)].add(
                rows.strain_vm[has_stress] / structure.volume,
                stress_v[has_stress],
                np.full(len(has_stress), structure.sigma_stress),
            )
        tell("rows", s + 1, len(structures))
    finished = {label: reducer.finish() for label, reducer in reducers.items()}
    return {label: triangle for label, triangle in finished.items() if triangle.n_rows}


def _check_stress(
    triangles: Mapping[LabelSet, Triangle], whitening: Whitening, solved: Posterior
) -> None:
    """Warn where the stress labels contradict the strain derivative of a fit without them.

    With the weights a of a fit to energies and forces alone, the triangle [R | z] of the stress
    rows holds the correlation of predicted with labelled stress: (R a) . z / (|R a| |z|), and the
    factor between them.
    """
    stress = [t for label, t in triangles.items() if label.kind == "stress"]
    forces = [t for label, t in triangles.items() if label.kind == "forces"]
    if sum(t.n_rows for t in stress) < 6 or not forces:
        return
    others = [t for label, t in triangles.items() if label.kind != "stress"]
    delta_b = [
        float(solved.delta_k[block.columns][0]) if len(block.pivots_k) else 1.0
        for block in whitening.blocks
    ]
    weights_m = posterior(others, whitening, delta_b).weights()
    # A fit that does not even explain its own forces has no say about stresses.
    predicted, label = _stacked(forces, weights_m)
    if np.linalg.norm(predicted - label) > 0.5 * np.linalg.norm(label):
        return
    predicted, label = _stacked(stress, weights_m)
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


def _stacked(triangles: Sequence[Triangle], weights_m: Float) -> tuple[Float, Float]:
    """What weights predict of the reduced rows, and their labels."""
    predicted = np.concatenate([t.R[:, :-1] @ weights_m for t in triangles])
    return predicted, np.concatenate([t.R[:, -1] for t in triangles])
