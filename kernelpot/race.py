"""A race of descriptors on parts of the data.

Every trial fits a small model to a part of the training structures and is judged by its errors on
structures that are left out in turn, and on whole systems where they can be left out (`folds`); the
score is the mean logarithm of the errors. Changes of one setting at a time race first; those that
help are combined and race again on more data. In the time that is left, the winner's numbers are
changed by small steps, on the same data, for as long as that helps. In the full basis the winner
then has to prove itself on as many data as time allows: what is best with few molecules need not be
so with many. No other data are looked at.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelpot.conventions import Progress
from kernelpot.data import Structure
from kernelpot.full_basis import LEAVE_OUT_ROWS
from kernelpot.terms.composition import is_isolated
from kernelpot.variations import COARSER, FINER, apply, first_settings, steps, variations

__all__ = ["Race", "Runner", "Trial", "balanced_order", "climb", "race", "score"]

log = logging.getLogger("kernelpot")

_STEP_GAIN = 0.01
"""Least gain of the score for a small step of one number."""
_FIRST_HEAT = {"full": 700.0, "sparse": 1500.0}
"""Atoms of the structures in the first heat, by basis."""
_SECOND_HEAT = {"full": (1400.0, 2800.0), "sparse": (6000.0, 6000.0)}
"""Least and most in the second."""
_LEAST_GROWTH = 1.3
"""A last heat has at least so many times the structures of the second."""
_LATE_TRIALS = 12
"""How many trials of the second heat and small steps there should be time for."""
_STEPS = 20
"""How many steps are expected, for the display of progress."""
_GAINS = (0.01, 0.03)
"""Least gain of the score in the first and in the second heat: a change that helps little on a part
of the data may not help on all of them (measured on silicon, where 3 per cent were a mistake). In
the last heat, with far more data, the first is enough."""
_ENERGIES = 200
"""Energies from which on their error counts half as much as that of the forces; fewer count in
proportion, because the scatter of some tens hides what a setting does (measured on silicon: 40 per
cent between settings that differ by 5 in the forces)."""


class Trial(NamedTuple):
    """One model of the race."""

    change: str  # in words: what differs from the first
    settings: dict[str, Any]  # parameters of the model, JSON types but for descriptors
    n_structures: int
    n_inducing: int
    errors: dict[str, float]  # RMSE on left-out folds by kind: eV/atom, eV/angstrom, eV/angstrom^3
    unknown: dict[str, float]  # the same where whole systems are left out, if they can be
    score: float  # mean logarithm of these errors
    log_evidence: float
    seconds: float
    us_per_atom: float  # of a prediction, neighbours known
    stages: dict[str, float]  # seconds by stage of the fit
    jacobians: float = 0.0  # bytes of the derivatives that a full basis keeps

    def describe(self) -> dict[str, Any]:
        """JSON-ready entries, for the model file.

        Returns
        -------
        dict[str, Any]
            The fields; descriptors by their settings.
        """
        settings = {name: _described(value) for name, value in self.settings.items()}
        return {**self._asdict(), "settings": settings}


def _described(value: Any) -> Any:
    if isinstance(value, list):
        return [_described(one) for one in value]
    return value.to_settings() if hasattr(value, "to_settings") else value


class Race(NamedTuple):
    """All trials, and the one that won."""

    trials: tuple[Trial, ...]
    winner: Trial
    reason: str


Runner = Callable[[Mapping[str, Any], Sequence[int], int], Trial]
"""Fits settings to the structures of these indices in this heat (0 or 1); the change in words is
filled in by the race."""


def score(errors: Mapping[str, float], unknown: Mapping[str, float], n_structures: int) -> float:
    """Mean logarithm of the errors on structures and on systems left out.

    Where systems are left out it is what the fit itself makes small (`hyperparameters`): the
    energies and the forces of structures, and the forces of systems, weigh alike. The energies of
    systems count where there are no forces: they are off by constants that nothing tells.

    Parameters
    ----------
    errors : Mapping[str, float]
        RMSE by kind of label.
    unknown : Mapping[str, float]
        The same of systems that are left out whole.
    n_structures : int
        How many there were: few energies count less.

    Returns
    -------
    float
        Of energies and forces, or of the stress where it is all there is.
    """
    few = min(1.0, n_structures / _ENERGIES)
    weights = {"energy": few if unknown else 0.5 * few, "forces": 1.0}
    weights = {kind: w for kind, w in weights.items() if kind in errors}
    weights = weights or dict.fromkeys(errors, 1.0)
    terms = [(w, errors[kind]) for kind, w in weights.items()]
    if unknown:
        kind = next(kind for kind in ("forces", "energy", "stress") if kind in unknown)
        terms.append((1.0, unknown[kind]))
    total = sum(w * math.log(max(error, 1e-12)) for w, error in terms)
    return total / max(sum(w for w, _ in terms), 1e-12)


def race(
    structures: Sequence[Structure],
    run: Runner,
    *,
    deadline: float,
    random_state: int | None,
    tell: Progress,
    small_steps: bool = True,
) -> Race:
    """Find settings with small errors on left-out folds.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    run : Runner
        Fits and judges one trial.
    deadline : float
        ``time.perf_counter()`` after which no trial begins.
    random_state : int | None
        Seed of the choice of structures.
    tell : Progress
        Told of the stages "race", "steps" and "last heat".
    small_steps : bool
        Whether the winner's numbers are changed by small steps in the time that is left.

    Returns
    -------
    Race
        All trials and the winner.
    """
    rng = np.random.default_rng(random_state)
    order = balanced_order(structures, rng)
    first = first_settings(structures)
    small = _heat(structures, order, _FIRST_HEAT[first["basis"]])
    todo = [("start", first)]
    todo += [(words, apply(first, change)) for words, change in variations(first)]
    changes = dict(variations(first))
    n_total = len(todo) + 4
    trials: list[Trial] = []
    for k, (words, settings) in enumerate(todo):
        if trials and time.perf_counter() > deadline:
            log.info("the time for the race is over after %d trials", len(trials))
            break
        trials.append(run(settings, small, 0)._replace(change=words))
        tell("race", k + 1, n_total)
    start = trials[0]
    better = sorted(
        (t for t in trials[1:] if t.score < start.score - _GAINS[0]), key=lambda t: t.score
    )
    finalists = _finalists(first, better, changes)
    n_atoms = _second_heat(first["basis"], float(np.median([t.seconds for t in trials])), deadline)
    large = _heat(structures, order, n_atoms)
    final: list[Trial] = []
    for words, settings in finalists:
        if time.perf_counter() > deadline:
            break
        final.append(run(settings, large, 1)._replace(change=words))
        tell("race", min(len(todo) + len(final), n_total), n_total)
    tell("race", n_total, n_total)
    if not final:
        winner = min(trials, key=lambda t: t.score) if better else start
        return Race(tuple(trials), winner, "least error on left-out folds of a part of the data")
    winner = min(final, key=lambda t: t.score)
    if winner.score > final[0].score - _GAINS[1]:
        winner = final[0]
    tried: list[Trial] = []
    now, full = time.perf_counter(), first["basis"] == "full"
    if small_steps:
        winner, tried = climb(winner, run, large, (now + deadline) / 2 if full else deadline, tell)
    last = []
    if full:
        finer = changes.get(FINER, {})  # of one species the first settings are fine already
        last = _last_heat(final[0], winner, finer, run, structures, order, deadline, tell)
    if last:
        final = [*last, *final]
        winner = min(last, key=lambda t: t.score)
        if winner.score > last[0].score - _GAINS[0]:
            winner = last[0]
    if winner is final[0]:
        reason = f"no change lowers the errors by {100.0 * _GAINS[0 if last else 1]:.0f} %"
    else:
        gain = 100.0 * (1.0 - math.exp(winner.score - final[0].score))
        reason = f"{gain:.0f} % less error on left-out folds than the first settings"
    return Race((*trials, *final, *tried), winner, reason)


def _last_heat(
    start: Trial,
    winner: Trial,
    finer: Mapping[str, Any],
    run: Runner,
    structures: Sequence[Structure],
    order: Sequence[int],
    deadline: float,
    tell: Progress,
) -> list[Trial]:
    """The first settings, the winner, and the winner at a finer resolution, with more structures.

    Small exponents of the kernel win with few structures (ethanol, n_max 6, l_max 4: 2 is as good
    as 3 with 157 structures, and has forces worse by 18 per cent with 950); what a fine resolution
    gives is energies further away (3BPA, 80 structures of low energy to fit: those of high energy
    are better by 22 per cent with n_max 10, l_max 8).
    """
    todo = [(start.change, start.settings)]
    if winner is not start:
        todo.append((winner.change, winner.settings))
    if finer and finer["n_max"] != winner.settings["descriptor"].n_max:
        todo.append((f"{winner.change}, {FINER}", apply(winner.settings, finer)))
    if len(todo) == 1:
        return []
    # The last one costs about twice as much.
    each = (deadline - time.perf_counter()) / (len(todo) + 1)
    growth = _growth(each, max(start.seconds, winner.seconds))
    n_labels = np.cumsum([structures[s].n_labels for s in order])
    n_structures = min(
        int(growth * start.n_structures),
        int(np.searchsorted(n_labels, LEAVE_OUT_ROWS, side="right")),
    )
    if n_structures < _LEAST_GROWTH * start.n_structures:
        return []
    tried = []
    for k, (words, settings) in enumerate(todo):
        tried.append(run(settings, order[:n_structures], 1)._replace(change=words))
        tell("last heat", k + 1, len(todo))
    return tried


def climb(
    best: Trial,
    run: Runner,
    indices: Sequence[int],
    deadline: float,
    tell: Progress,
    *,
    heat: int = 1,
    least_gain: float = _STEP_GAIN,
) -> tuple[Trial, list[Trial]]:
    """The best of the settings that small steps lead to, one number after the other.

    Parameters
    ----------
    best : Trial
        Where to start from.
    run : Runner
        Fits and judges one trial.
    indices : Sequence[int]
        Structures that it is given.
    deadline : float
        ``time.perf_counter()`` after which no trial begins.
    tell : Progress
        Told of the stage "steps".
    heat : int
        Of the trials.
    least_gain : float
        Of the score, for a step to be taken.

    Returns
    -------
    tuple[Trial, list[Trial]]
        The best, and all that were tried.
    """
    tried: list[Trial] = []
    start, n_left = best, len(steps(best.settings))
    k = 0
    while n_left and time.perf_counter() < deadline:
        moved = False
        for direction in (0, 1):
            while time.perf_counter() < deadline:
                step = steps(best.settings)[k][direction]
                if step is None:
                    break
                words, change = step
                trial = run(apply(best.settings, change), indices, heat)
                tried.append(trial._replace(change=f"{best.change}, {words}"))
                tell("steps", len(tried), max(len(tried) + 1, _STEPS))
                if trial.score > best.score - least_gain:
                    break
                best, moved = tried[-1], True
            if moved:
                break
        # Numbers depend on each other: the search ends when none of them has moved in turn.
        k = (k + 1) % len(steps(best.settings))
        n_left = len(steps(best.settings)) if moved else n_left - 1
    if tried:
        gain = 100.0 * (1.0 - math.exp(best.score - start.score))
        log.info("%d small steps were tried: %.0f %% less error", len(tried), gain)
        tell("steps", max(len(tried), _STEPS), max(len(tried), _STEPS))
    return best, tried


def _finalists(
    first: dict[str, Any], better: Sequence[Trial], changes: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    """The first settings, the best change, and the changes that helped together."""
    finalists = [("start", first)]
    # What resolution is worth grows with the data; in the full basis it is worth little, and costs
    # time and memory.
    always = COARSER if first["basis"] == "full" else FINER
    if always in changes:
        finalists.append((always, apply(first, changes[always])))
    if not better:
        return finalists
    if better[0].change != always:
        finalists.append((better[0].change, better[0].settings))
    merged: dict[str, Any] = {}
    words = []
    for trial in better:
        change = changes[trial.change]
        if not set(change) & set(merged):  # the best value of each setting
            merged |= change
            words.append(trial.change)
    if len(words) > 1:
        finalists.append((", ".join(words), apply(first, merged)))
    if len(words) > 2:
        two = {**changes[words[0]], **changes[words[1]]}
        finalists.append((", ".join(words[:2]), apply(first, two)))
    return finalists


def balanced_order(structures: Sequence[Structure], rng: np.random.Generator) -> list[int]:
    """Structures such that every beginning of the list has its share of every group.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    rng : np.random.Generator
        Of the order within groups.

    Returns
    -------
    list[int]
        Their indices; isolated atoms first.
    """
    place = np.empty(len(structures))
    groups = np.array([s.group for s in structures])
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Isolated atoms come first: they are part of every fit.
    alone = np.array([is_isolated(s, 6.0) for s in structures])
    return np.lexsort((place, ~alone)).tolist()


def _second_heat(basis: str, seconds: float, deadline: float) -> float:
    """Atoms of the second heat: as many as the time allows, within bounds.

    What is best with few structures need not be so with many (3BPA: a shorter radial scaling is
    better by 3 per cent of the forces with 60 structures, and worse by 13 per cent of the energies
    with 160), so that more of them are worth more than more trials.
    """
    least, most = _SECOND_HEAT[basis]
    growth = _growth((deadline - time.perf_counter()) / _LATE_TRIALS, seconds)
    return float(np.clip(_FIRST_HEAT[basis] * growth, least, most))


def _growth(seconds: float, took: float) -> float:
    """How many times the structures may be fitted in this time, by what a fit took."""
    # The covariance of labels grows with the square of their number, its factorisation faster.
    return float((max(seconds, 0.0) / max(took, 1e-3)) ** 0.4)


def _heat(structures: Sequence[Structure], order: Sequence[int], n_atoms: float) -> list[int]:
    """The first of the structures, with so many atoms and no fewer than 25."""
    sizes = np.cumsum([structures[s].n_atoms for s in order])
    return list(order[: max(int(np.searchsorted(sizes, n_atoms)), min(25, len(order)))])
