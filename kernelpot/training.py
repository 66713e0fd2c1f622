"""The fit as a pipeline: baseline, choice of inducing variables, rows into triangles, posterior."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float, Int, LabelSet, Progress, as_int
from kernelpot.data import Structure
from kernelpot.data_checks import DataError, check_energy_scale
from kernelpot.data_records import Outline
from kernelpot.descriptors.protocol import is_linear
from kernelpot.descriptors.shared import shared_centres
from kernelpot.doubts import Doubt, reweighted_outlines
from kernelpot.fitted import (
    Fitted,
    Solved,
    no_posterior,
    prior_widths,
    solve,
    solve_rows,
    whitening_of,
    with_posterior,
)
from kernelpot.folds import folds_of
from kernelpot.full_basis import fit_full_basis
from kernelpot.gp.nuisance import put_in_front
from kernelpot.hyperparameters import (
    COARSE,
    choose_hyperparameters,
    leave_out_errors,
)
from kernelpot.label_rows import Known, add_rows
from kernelpot.memory import Room
from kernelpot.options import Options, effective_noise
from kernelpot.reduction import contract_density, reduce_features
from kernelpot.rows import Component
from kernelpot.selection import choose_inducing, choose_sample
from kernelpot.sources import SHIFT_PRIOR, SourceShifts, choose_reference, start_shifts
from kernelpot.stress_check import check_stress
from kernelpot.terms.composition import CompositionBaseline, fit_composition, isolated_atoms
from kernelpot.terms.repulsion import CoreRepulsion, closest_distances, repulsion_from
from kernelpot.training_data import Data, grams_of, say_nothing

log = logging.getLogger("kernelpot")


class Plan(NamedTuple):
    """What a fit chooses before it learns from labels; it holds when their weights change."""

    components: tuple[Component, ...]
    repulsion: CoreRepulsion | None
    isolated: frozenset[int]  # structures that are isolated atoms
    reference: str  # source on whose scale energies are
    room: Room  # what may be done in pieces of which size
    seconds: float


def prepare(data: Data, options: Options, progress: Progress | None = None) -> Plan:
    """Choose features, inducing variables and the source of reference.

    Parameters
    ----------
    data : Data
        Checked structures, at least one with labels.
    options : Options
        Settings.
    progress : Progress | None
        Called with a stage's name, what is done and the total.

    Returns
    -------
    Plan
        For `learn`.

    Raises
    ------
    DataError
        If nothing remains to be fitted, or the source of reference is none of the data's.
    """
    tell = progress or say_nothing
    started = time.perf_counter()
    outlines = data.outlines
    reference = choose_reference(outlines, options.reference_source)
    for source in sorted({s.source for s in outlines}):
        check_energy_scale([s for s in outlines if s.source == source])
    species = species_of(outlines)
    cutoff = cutoff_of(options, species)
    isolated = isolated_atoms(outlines, cutoff)
    if len(isolated) == len(outlines):
        raise DataError(
            "only isolated atoms are left to fit: they are the baseline and say nothing of "
            f"bonding. Add structures with neighbours within the cutoff of {cutoff:g} A."
        )
    sample = choose_sample(outlines, isolated, options.selection_sample, options.random_state)
    structures = data.some(sample)
    raw_g = [
        contract_density(structures, one.descriptor.bind(species), options.random_state)
        for one in options.components
    ]
    # Before anything that takes long; how many features will be kept is not known yet.
    options = options._replace(room=data.room(options, raw_g, reduced=False))
    bound_g = [
        shared_centres(
            reduce_features(
                structures, raw, options.feature_tolerance, options.random_state, options.room
            )
        )
        for raw in raw_g
    ]
    options = options._replace(room=data.room(options, bound_g, reduced=True))
    repulsion = None
    if options.core_repulsion:
        numbers = as_int(species)
        closest = data.each("distances", _closest_distances, numbers, cutoff, tell=tell)
        repulsion = repulsion_from(numbers, np.min(closest, axis=0))
    if options.basis == "full":
        # Its inducing variables are the labels themselves.
        components = (Component(bound_g[0], options.components[0].zeta, ()),)
        seconds = time.perf_counter() - started
        return Plan(components, repulsion, isolated, reference, options.room, seconds)
    components = tuple(
        Component(
            bound,
            one.zeta,
            choose_inducing(
                structures,
                {k for k, s in enumerate(sample) if s in isolated},
                bound,
                n_environments=one.n_environments,
                n_tangents=one.n_tangents,
                tangent_threshold=options.tangent_threshold,
                selector=options.selector,
                random_state=options.random_state,
                zeta=one.zeta,
                balance_groups=options.balance_groups,
                room=options.room,
                tell=tell,
            ),
        )
        for bound, one in zip(bound_g, options.components, strict=True)
    )
    n_columns = sum(component.n_columns for component in components)
    n_environments = sum(component.n_environments for component in components)
    log.info("inducing variables: %d, of which %d are environments", n_columns, n_environments)
    seconds = time.perf_counter() - started
    return Plan(components, repulsion, isolated, reference, options.room, seconds)


def species_of(outlines: Sequence[Outline]) -> tuple[int, ...]:
    """Atomic numbers in all structures.

    Parameters
    ----------
    outlines : Sequence[Outline]
        Of the structures.

    Returns
    -------
    tuple[int, ...]
        Ascending.
    """
    distinct = {id(s.numbers_n): s.numbers_n for s in outlines}  # many share one array
    return tuple(sorted({int(z) for numbers_n in distinct.values() for z in numbers_n}))


def cutoff_of(options: Options, species: tuple[int, ...]) -> float:
    """Longest cutoff of the descriptors.

    Parameters
    ----------
    options : Options
        Settings.
    species : tuple[int, ...]
        Atomic numbers.

    Returns
    -------
    float
        angstrom.
    """
    return max(one.descriptor.bind(species).cutoff for one in options.components)


def _closest_distances(
    structures: Sequence[Structure], numbers: Int, cutoff: float, tell: Progress
) -> Float:
    return closest_distances(structures, numbers, cutoff)


def learn(
    plan: Plan,
    data: Data,
    options: Options,
    progress: Progress | None = None,
    doubts: Sequence[Doubt] = (),
) -> Fitted:
    """Learn baseline, hyperparameters and weights from labels.

    Parameters
    ----------
    plan : Plan
        What `prepare` chose for these structures.
    data : Data
        The same.
    options : Options
        Settings.
    progress : Progress | None
        Called with a stage's name, what is done and the total.
    doubts : Sequence[Doubt]
        Labels that count less.

    Returns
    -------
    Fitted
        The fitted state.
    """
    tell = progress or say_nothing
    seconds = {"selection": plan.seconds}
    started = time.perf_counter()
    cutoff = max(component.descriptor.cutoff for component in plan.components)
    outlines = reweighted_outlines(data.outlines, doubts)
    baseline, _ = fit_composition(outlines, cutoff, plan.reference)
    shifts = start_shifts(outlines, baseline, plan.reference)
    if options.basis == "full":
        structures = data.some(range(len(outlines)))
        return _fit_full(structures, plan, baseline, shifts, options, tell)
    known = Known(plan.components, baseline, plan.repulsion, shifts, plan.room)
    whitening = whitening_of(plan.components)
    folds = folds_of(outlines, plan.isolated, options.random_state)
    whole_b = [is_linear(c.descriptor) for c in plan.components for _ in c.inducing]
    coarse = put_in_front(shifts.n_columns, whitening.leading(COARSE, whole_b))
    triangles, grams = data.statistics(folds, known, coarse, doubts, tell)
    seconds["rows"] = time.perf_counter() - started

    started = time.perf_counter()
    tell("hyperparameters", 0, 1)
    wide = [SHIFT_PRIOR] if shifts.n_columns else []
    delta_g, noise = choose_hyperparameters(
        triangles, grams, folds.n_folds_w, coarse, plan.components, options, wide
    )
    effective = effective_noise(noise, options.force_priority)
    leave_out, leave_systems_out = leave_out_errors(
        triangles, grams, folds.n_folds_w, coarse, plan.components, delta_g, effective, wide
    )
    totals = grams[0] if grams else grams_of(triangles, coarse)
    check_stress(triangles, totals, coarse, prior_widths(plan.components, delta_g, wide), effective)
    del grams, totals, coarse
    tell("hyperparameters", 1, 1)
    seconds["hyperparameters"] = time.perf_counter() - started

    started = time.perf_counter()
    tell("posterior", 0, 1)
    whitening = put_in_front(shifts.n_columns, whitening)
    solved = solve_rows(triangles, whitening, plan.components, delta_g, effective)
    tell("posterior", 1, 1)
    seconds["posterior"] = time.perf_counter() - started
    n_raw = whitening.n_raw
    log.info("log evidence %.1f, rank %d of %d", solved.log_evidence, len(solved.w_k), n_raw)
    shift_k, weights_m = np.split(solved.weights(), [shifts.n_columns])
    return Fitted(
        plan.components,
        baseline,
        plan.repulsion,
        shifts.with_learned(shift_k),
        triangles,
        noise,
        options.force_priority,
        delta_g,
        weights_m,
        solved.log_evidence,
        solved.data_fit,
        leave_out,
        leave_systems_out,
        Solved(solved),
        seconds,
    )


def _fit_full(
    structures: Sequence[Structure],
    plan: Plan,
    baseline: CompositionBaseline,
    shifts: SourceShifts,
    options: Options,
    tell: Progress,
) -> Fitted:
    """The fit whose inducing variables are the labels: no statistics of rows remain."""
    if shifts.sources:
        raise DataError(
            "basis='full' learns no shifts between sources, and there are energies of "
            f"{', '.join(map(repr, (shifts.reference, *shifts.sources)))}. Fit with "
            "basis='sparse', or give one source where the zero of energy is the same."
        )
    one = options.components[0]
    bound = plan.components[0].descriptor
    found = fit_full_basis(
        structures, bound, one.zeta, one.delta, options, baseline, plan.repulsion, tell
    )
    return Fitted(
        (Component(bound, one.zeta, found.inducing),),
        baseline,
        plan.repulsion,
        shifts,
        {},
        found.noise,
        options.force_priority,
        (found.delta,),
        found.weights_m,
        found.log_evidence,
        found.data_fit,
        found.leave_out,
        {},
        no_posterior,
        {"selection": plan.seconds, **found.seconds},
    )


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

    Raises
    ------
    DataError
        If a structure has an energy of a source that the fit does not know.
    """
    if not fitted.triangles:
        no_posterior()
    tell = progress or say_nothing
    started = time.perf_counter()
    fitted.shifts.check(structures)
    triangles = add_rows(fitted.triangles, structures, fitted.known, tell)
    noise = {label: known_noise(label, fitted.noise) for label in triangles}
    fitted = fitted._replace(triangles=triangles, noise=noise)
    solved = Solved(solve(fitted._replace(scores_mj=None)))
    seconds = {**fitted.seconds, "update": time.perf_counter() - started}
    return with_posterior(fitted._replace(seconds=seconds), solved)


def known_noise(label: LabelSet, noise: Mapping[LabelSet, float]) -> float:
    """Noise of this set; of a source that the fit did not know, the mean of the others of its kind.

    Parameters
    ----------
    label : LabelSet
        Of some labels.
    noise : Mapping[LabelSet, float]
        Factors on the assumed standard deviations that are known.

    Returns
    -------
    float
        Factor; 1 where nothing of the kind is known.
    """
    if label in noise:
        return noise[label]
    alike = [math.log(factor) for other, factor in noise.items() if other.kind == label.kind]
    return math.exp(sum(alike) / len(alike)) if alike else 1.0
