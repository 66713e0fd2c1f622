"""A fit that grows: new structures bring inducing variables of their own, and no old one is needed.

The statistics of old rows get columns for the new variables by interpolation, the posterior gets
their prior (`gp.growth`): some operations for each new variable and each two weights, however many
labels there are. `streaming` lets both learn new labels.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float, Int, Progress, System, as_int
from kernelpot.data import Structure
from kernelpot.descriptors.protocol import block_of, is_linear
from kernelpot.fitted import (
    RANK_TOLERANCE,
    Fitted,
    Streamed,
    prior_widths,
    with_posterior,
)
from kernelpot.gp.covariances import K_ab, K_mm
from kernelpot.gp.growth import (
    Added,
    Candidates,
    extend,
    extend_posterior,
    extend_rows,
    extend_triangle,
)
from kernelpot.gp.inducing import VARIANCE_FLOOR, Inducing, merge, singular_tangents
from kernelpot.gp.whitening import WhiteningBlock
from kernelpot.options import ComponentOptions, Options
from kernelpot.reduction import SAMPLE, more_axes
from kernelpot.rows import Component
from kernelpot.schedule import Schedule
from kernelpot.selection import check_species, system_of
from kernelpot.sources import SHIFT_PRIOR
from kernelpot.streaming import absorb_labels, tune
from kernelpot.terms.repulsion import CoreRepulsion, closest_distances, repulsion_from

__all__ = ["MOST", "NOVEL", "grow", "learn_more"]

log = logging.getLogger("kernelpot")

NOVEL = 1e-4
"""Open part of the prior variance of a local energy above which an environment is new."""

MOST = 4
"""Environments that a new structure may add where nothing else is said."""

_SPARE_TANGENTS = 2
"""Tangents from which each of those that are added is chosen."""


class _Choice(NamedTuple):
    """Environments of one block of centres, of which some may become inducing ones."""

    component: Component
    options: ComponentOptions
    systems: Sequence[System]  # of the structures
    place_n: Int  # structure and atom, (number, 2)
    candidates: Candidates
    share: float  # of the component in the prior variance of a local energy

    @property
    def open_n(self) -> Float:
        """Share of that variance which another inducing variable would tell."""
        return self.share * self.candidates.variance_n


def grow(
    fitted: Fitted,
    structures: Sequence[Structure],
    options: Options,
    n_environments: int,
    threshold: float = NOVEL,
) -> Fitted:
    """Add inducing variables that new structures need, and learn nothing of their labels yet.

    Environments are taken one by one, each that of the largest variance given all inducing
    variables that are there, its own tangents among them. Where they have parts outside of the
    descriptor's principal axes, it gets further axes. Atoms that come nearer than any before take
    that range from the core repulsion.

    Parameters
    ----------
    fitted : Fitted
        A sparse fit; unchanged.
    structures : Sequence[Structure]
        New ones, of species that it knows.
    options : Options
        Settings: number and threshold of tangents, what the axes may leave out.
    n_environments : int
        At most this many, of all components and species together.
    threshold : float
        Open part of the prior variance of a local energy below which an environment is known.

    Returns
    -------
    Fitted
        The same weights, and others for the new variables, of which the data say nothing so far.

    Raises
    ------
    ValueError
        If it keeps no posterior.
    """
    posterior = fitted.posterior()
    fitted = fitted._replace(repulsion=_withdrawn(fitted, structures))
    n_front = fitted.shifts.n_columns
    blocks = iter(posterior.whitening.blocks[int(n_front > 0) :])
    total = sum(d**2 for d, c in zip(fitted.delta_g, fitted.components, strict=True) if _grows(c))
    components, choices = [], []
    first = n_front
    for component, delta, one in zip(
        fitted.components, fitted.delta_g, options.components, strict=True
    ):
        mine = list(itertools.islice(blocks, len(component.inducing)))
        of_blocks: list[_Choice] = []
        if _grows(component):
            share = delta**2 / total
            component, of_blocks = _candidates(
                component, one, mine, first, share, structures, options, threshold
            )
        components.append(component)
        choices.append(of_blocks)
        first += component.n_columns
    every = [choice for of_blocks in choices for choice in of_blocks]
    _take(every, options, n_environments, threshold)

    added_b = [Added(np.zeros((n_front, 0)), np.zeros((0, 0)))] * int(n_front > 0)
    for g, (component, of_blocks) in enumerate(zip(components, choices, strict=True)):
        groups = []
        for z, there in enumerate(component.inducing):
            nothing = Inducing(there.Z_mq[:0], as_int([0]))
            new = of_blocks[z].candidates.taken if of_blocks else nothing
            groups.append(merge([there, new]))
            added_b.append(Added(K_ab(there, new, component.zeta), K_mm(new, component.zeta)))
        components[g] = component._replace(inducing=tuple(groups))
    if not any(len(added.K_nn) for added in added_b):
        return fitted
    extension = extend(posterior.whitening, added_b, RANK_TOLERANCE)
    wide = [SHIFT_PRIOR] if n_front else []
    delta_b = prior_widths(components, fitted.delta_g, wide)
    grown = fitted._replace(
        components=tuple(components),
        triangles={
            label: extend_triangle(triangle, extension)
            for label, triangle in fitted.triangles.items()
        },
        scores_mj=None
        if fitted.scores_mj is None
        else np.ascontiguousarray(extend_rows(fitted.scores_mj.T, extension).T),
    )
    log.info("%d inducing variables more", sum(len(added.K_nn) for added in added_b))
    return with_posterior(grown, Streamed(extend_posterior(posterior, extension, delta_b)))


def _grows(component: Component) -> bool:
    """Whether it compares environments with inducing ones."""
    return not is_linear(component.descriptor)


def _withdrawn(fitted: Fitted, structures: Sequence[Structure]) -> CoreRepulsion | None:
    """The core repulsion, zero on new structures too; on old ones it is so with smaller radii."""
    old = fitted.repulsion
    if old is None:
        return None
    numbers = as_int(fitted.components[0].descriptor.species)
    cutoff = max(component.descriptor.cutoff for component in fitted.components)
    new = repulsion_from(numbers, closest_distances(structures, numbers, cutoff))
    if all(a <= b for a, b in zip(old.outer, new.outer, strict=True)):
        return old
    inner, outer = (
        tuple(map(min, getattr(old, name), getattr(new, name))) for name in ("inner", "outer")
    )
    return CoreRepulsion(old.pairs, inner, outer)


def _candidates(
    component: Component,
    options_of: ComponentOptions,
    blocks: Sequence[WhiteningBlock],
    first: int,
    share: float,
    structures: Sequence[Structure],
    options: Options,
    threshold: float,
) -> tuple[Component, list[_Choice]]:
    """New environments of one component, which gets the axes that they need."""
    place_n = np.array([(s, n) for s, one in enumerate(structures) for n in range(one.n_atoms)])
    systems = [system_of(component.descriptor, one) for one in structures]
    species_n = np.concatenate([system.species_n for system in systems])

    def compared(places: Sequence[Int]) -> list[_Choice]:
        choices, column = [], first
        for z, (group, block) in enumerate(zip(component.inducing, blocks, strict=True)):
            x_nq = _features(component, systems, places[z])
            candidates = Candidates(group, block, column, x_nq, component.zeta)
            choices.append(_Choice(component, options_of, systems, places[z], candidates, share))
            column += len(group.Z_mq)
        return choices

    block_n = block_of(component.descriptor, species_n)
    choices = compared([place_n[block_n == z] for z in range(len(blocks))])
    new = [
        one.place_n[one.open_n + share * one.candidates.missing_n > threshold] for one in choices
    ]
    if not any(map(len, new)):
        return component, []
    every = np.concatenate(new)
    z_n = np.array([systems[s].species_n[n] for s, n in every])
    bound, kept_q = more_axes(
        structures,
        component.descriptor,
        [every[z_n == z][:SAMPLE] for z in range(len(component.descriptor.species))],
        options.feature_tolerance,
        options.room,
    )
    if bound is not component.descriptor:
        groups = []
        for group in component.inducing:
            Z_mq = np.zeros((len(group.Z_mq), bound.n_features))
            Z_mq[:, kept_q] = group.Z_mq
            groups.append(group._replace(Z_mq=Z_mq))
        component = component._replace(descriptor=bound, inducing=tuple(groups))
    return component, compared(new)


def _features(component: Component, systems: Sequence[System], place_n: Int) -> Float:
    """Feature vectors of some environments, ordered by structure."""
    bound = component.descriptor
    x_nq = np.empty((len(place_n), bound.n_features))
    for s in np.unique(place_n[:, 0]):
        mine = place_n[:, 0] == s
        x_nq[mine] = bound.features(systems[s], as_int(place_n[mine, 1]))[0]
    return x_nq


def _take(
    choices: Sequence[_Choice], options: Options, n_environments: int, threshold: float
) -> None:
    """Take environments with their tangents, the most open one first."""
    threshold = max(threshold, VARIANCE_FLOOR)
    for _ in range(n_environments):
        best = max(choices, key=lambda one: one.open_n.max(initial=0.0), default=None)
        if best is None or best.open_n.max(initial=0.0) <= threshold:
            return
        n = int(np.argmax(best.open_n))
        s, centre = best.place_n[n]
        bound, n_tangents = best.component.descriptor, best.options.n_tangents
        J_pcq = bound.jacobian(best.systems[s], as_int([centre]))[1]
        singular_t, tau_tq = singular_tangents(
            J_pcq, _SPARE_TANGENTS * n_tangents, options.tangent_threshold
        )
        tangents_tq = singular_t[:, None] * tau_tq
        best.candidates.take(n, tangents_tq, n_tangents, options.tangent_threshold)


def learn_more(
    fitted: Fitted,
    structures: Sequence[Structure],
    options: Options,
    schedule: Schedule,
    n_environments: int,
    progress: Progress,
    *,
    tuning: bool = True,
) -> tuple[Fitted, Schedule]:
    """Grow, learn the labels, and find hyperparameters anew where that is due.

    Parameters
    ----------
    fitted : Fitted
        A sparse fit; unchanged.
    structures : Sequence[Structure]
        New ones with labels, of species that it knows.
    options : Options
        Settings.
    schedule : Schedule
        Of the structures before.
    n_environments : int
        New inducing environments at most.
    progress : Progress
        Told of the stage "rows".
    tuning : bool
        Whether hyperparameters are found where that is due.

    Returns
    -------
    tuple[Fitted, Schedule]
        The fit to all labels, and what happened when.

    Raises
    ------
    DataError
        If a structure has a species or an energy of a source that the fit does not know.
    """
    for structure in structures:
        check_species(fitted.components[0].descriptor, structure)
    fitted.shifts.check(structures)
    grown = grow(fitted, structures, options, n_environments)
    learned, surprises = absorb_labels(grown, structures, progress)
    schedule = schedule.after(surprises)
    why = schedule.advice.tune
    if not why or not tuning:
        return learned, schedule
    log.info("hyperparameters are found anew: %s", why)
    return tune(learned, options), schedule.tuned(why)
