"""Automatic fits: the winner of a race of descriptors, with as many inducing variables as time,
memory and the cost of a prediction allow."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernelpot._machine import physical_memory
from kernelpot.conventions import Progress
from kernelpot.data import Structure
from kernelpot.fit_cost import Estimate
from kernelpot.folds import systems_of
from kernelpot.full_basis import memory_needed
from kernelpot.full_noise import NOISE_ROWS
from kernelpot.race import Race, Runner, Trial, race
from kernelpot.rates import product_rate
from kernelpot.similarity_search import learn_species
from kernelpot.trials import HEATS, Make, runner
from kernelpot.variations import suits_full_basis

__all__ = ["fit_automatically"]

log = logging.getLogger("kernelpot")

_FEWER_AXES = (1e-5, 1e-4)
"""Tolerances of the features where the full basis is too large otherwise. With 1e-5: errors of 3BPA
as with 1e-6, time and memory a quarter less; ethanol one per cent more error. With 1e-4: errors of
aspirin as with all features (80 and 240 structures, within 1 per cent), memory for derivatives and
time of the covariance halved."""
Predict = Callable[[Mapping[str, Any]], Estimate]
"""What a fit with these parameters takes."""
_TANGENTS = 20
_ENVIRONMENTS = (30, 50, 80, 120, 160, 200, 250, 300, 400, 500, 650, 800, 1000)
"""Numbers of environments among which the budget chooses."""


def fit_automatically(
    make_trial: Make,
    make: Make,
    images: Sequence[Any],
    structures: Sequence[Structure],
    *,
    time_budget: float,
    cost: float | None,
    random_state: int | None,
    tell: Progress,
) -> tuple[Any, Race, tuple[str, ...]]:
    """Choose settings and fit them to all structures.

    Parameters
    ----------
    make_trial : Make
        Makes a model for the race of parameters.
    make : Make
        Makes the model of the final fit.
    images : Sequence[Any]
        The training structures as the model's ``fit`` takes them.
    structures : Sequence[Structure]
        The same, as records.
    time_budget : float
        Seconds for all of it; a third of it at most for the race.
    cost : float | None
        Most that a prediction may cost, microseconds per atom on this machine; None for no limit.
    random_state : int | None
        Seed.
    tell : Progress
        Told of the stages "race", "steps", "last heat" and "species".

    Returns
    -------
    tuple[Any, Race, tuple[str, ...]]
        The fitted model, the race, and why the rest of the settings is what it is.
    """
    started = time.perf_counter()
    run = runner(make_trial, images, structures)
    # Where systems can be left out, the similarity of the species comes before small steps.
    learns_species = not suits_full_basis(structures) and bool(
        systems_of(structures, range(len(structures)))
    )
    found = race(
        structures,
        run,
        deadline=started + time_budget / 3.0,
        random_state=random_state,
        tell=tell,
        small_steps=not learns_species,
    )
    alike: list[str] = []
    if learns_species:
        found, alike = learn_species(
            found,
            run,
            structures,
            deadline=started + time_budget / 2.0,
            random_state=random_state,
            tell=tell,
        )
    left = time_budget - (time.perf_counter() - started)
    settings, why = _final_settings(
        found, run, lambda s: make_trial(s).estimate_fit(images), structures, left, cost
    )
    why = (why[0], *alike, *why[1:])
    for line in why:
        log.info("%s", line)
    return make(settings).fit(images), found, why


def _final_settings(
    found: Race,
    run: Runner,
    predict: Predict,
    structures: Sequence[Structure],
    seconds: float,
    cost: float | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parameters of the fit to all structures, and the reasons in words."""
    settings = {
        name: value for name, value in found.winner.settings.items() if name not in HEATS[0]
    }
    why = [f"descriptor: {found.winner.change} ({found.reason})"]
    if settings["basis"] == "full":
        started = time.perf_counter()
        refused = _no_full_basis(found.winner, structures, seconds, cost)
        if refused is None:
            why.append("full gradient basis: these are small molecules, and it fits the budget")
            return settings, tuple(why)
        trial = _lighter(found, run, structures, seconds, cost)
        if trial is not None:
            why.append(f"{trial.change} instead: the full basis {refused}")
            why.append("full gradient basis: these are small molecules, and so it fits the budget")
            return dict(trial.settings), tuple(why)
        settings["basis"] = "sparse"
        why.append(f"sparse basis: the full one {refused}")
        # The race was in the full basis: what a sparse one costs and takes is not known yet.
        part = range(min(found.winner.n_structures, len(structures)))
        sparse = tuple(run(settings, part, heat)._replace(change="sparse basis") for heat in (0, 1))
        found = Race((*found.trials, *sparse), sparse[1], found.reason)
        seconds -= time.perf_counter() - started
    predicted = predict({**settings, "n_tangents": _TANGENTS})
    n_environments, reason = _affordable(found, predicted, structures, seconds, cost)
    settings |= {"n_environments": n_environments, "n_tangents": _TANGENTS}
    of_each = " for each process" if _n_processes(settings) > 1 else ""
    words = f"{n_environments} environments{of_each} with {_TANGENTS} tangents each"
    why.append(f"{words}: {reason}")
    return settings, tuple(why)


def _no_full_basis(
    trial: Trial, structures: Sequence[Structure], seconds: float, cost: float | None
) -> str | None:
    """Why the full basis is not for these data; None where it is."""
    n_labels = sum(s.n_labels for s in structures)
    growth = len(structures) / trial.n_structures
    us_per_atom = trial.us_per_atom * growth
    stages = trial.stages
    # The noise is found with a part of the labels.
    searched = min(n_labels, NOISE_ROWS) / min(n_labels / growth, NOISE_ROWS)
    needed = (
        stages["selection"]
        + stages["hyperparameters"] * max(searched, 1.0) ** 3
        + stages["environments"] * growth
        + stages["covariance"] * growth**2
        + n_labels**3 / 3.0 / product_rate()
    )
    memory = memory_needed(n_labels, trial.jacobians * growth)
    if cost is not None and us_per_atom > cost:
        return f"would cost {us_per_atom:.0f} us/atom at prediction, more than {cost:g}"
    if needed > seconds:
        return f"would take {needed:.0f} s, and {seconds:.0f} s are left"
    if memory > 0.85 * physical_memory():
        return f"needs {memory / 1e9:.1f} GB for {n_labels} labels and their covariance"
    return None


def _lighter(
    found: Race,
    run: Runner,
    structures: Sequence[Structure],
    seconds: float,
    cost: float | None,
) -> Trial | None:
    """The winner on fewer axes, or the best other trial of most data, that fits the budget."""
    winner = found.winner
    part = range(min(winner.n_structures, len(structures)))
    fewer = (
        run({**winner.settings, "feature_tolerance": tolerance}, part, 1)._replace(
            change=f"{winner.change}, feature_tolerance {tolerance:g}"
        )
        for tolerance in _FEWER_AXES
    )
    others = sorted(found.trials, key=lambda t: (-t.n_structures, t.score))
    for trial in itertools.chain(fewer, others):
        if _no_full_basis(trial, structures, seconds, cost) is None:
            return trial
    return None


_CAREFUL = 0.8
"""Share of the time that is given to a fit: predictions are right to within a quarter."""


def _affordable(
    found: Race,
    predicted: Estimate,
    structures: Sequence[Structure],
    seconds: float,
    cost: float | None,
) -> tuple[int, str]:
    """Most environments, of each process, within time, memory, cost of a prediction and labels."""
    sparse = [t for t in found.trials if t.settings["basis"] == "sparse"]
    n_atoms = sum(s.n_atoms for s in structures)
    n_labels = sum(s.n_labels for s in structures)
    per_environment = _TANGENTS * _n_processes(found.winner.settings)
    limits = {
        "as many as the number of atoms suggests": n_atoms // 4,
        "as many as the number of labels suggests": n_labels // (2 * per_environment),
    }
    costs = {m: predicted.cost(m) for m in _ENVIRONMENTS}
    for words, good in (
        ("as many as fit into the memory", lambda one: not one.refused),
        ("as many as the time allows", lambda one: one.seconds < _CAREFUL * seconds),
    ):
        limits[words] = max((m for m, one in costs.items() if good(one)), default=_ENVIRONMENTS[0])
    if cost is not None:
        limits[f"as many as {cost:g} us/atom allow"] = _by_cost(sparse, cost)
    reason = min(limits, key=limits.__getitem__)
    within = [m for m in _ENVIRONMENTS if m <= limits[reason]]
    return max(within, default=max(1, limits[reason])), reason


def _n_processes(settings: Mapping[str, Any]) -> int:
    descriptor = settings["descriptor"]
    return len(descriptor) if isinstance(descriptor, list) else 1


def _by_cost(trials: Sequence[Trial], cost: float) -> int:
    """Environments for a cost, from the straight line through two heats."""
    points = {t.settings["n_environments"]: t.us_per_atom for t in trials}
    sizes = sorted(points)
    if len(sizes) < 2:
        return max(1, int(sizes[0] * cost / points[sizes[0]]))
    slope = (points[sizes[-1]] - points[sizes[0]]) / (sizes[-1] - sizes[0])
    if slope <= 0:
        return _ENVIRONMENTS[-1]
    return max(1, int(sizes[0] + (cost - points[sizes[0]]) / slope))
