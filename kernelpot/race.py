"""A race of descriptors on parts of the data.

Every trial fits a small model to a part of the training structures and is judged by its errors on
structures that are left out in turn; the score is the mean logarithm of the errors of energies and
forces. Changes of one setting at a time race first; those that help are combined and race again on
more data. No other data are looked at.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelpot.conventions import Float, Progress
from kernelpot.data import Structure
from kernelpot.descriptors import ShiftedCosine, Soap, Willatt
from kernelpot.neighbours import find_pairs
from kernelpot.terms.composition import is_isolated

__all__ = ["Race", "Runner", "Trial", "balanced_order", "nearest_distance", "race", "score"]

log = logging.getLogger("kernelpot")

_GAINS = (0.01, 0.03)
"""Least gain of the score in the first and in the second heat: a change that helps little on a part
of the data may not help on all of them (measured on silicon, where 3 per cent were a mistake)."""
_FINER, _MIDDLE, _COARSER = "n_max 10, l_max 8", "n_max 8, l_max 6", "n_max 6, l_max 4"
_RESOLUTIONS = {
    _FINER: {"n_max": 10, "l_max": 8},
    _MIDDLE: {"n_max": 8, "l_max": 6},
    _COARSER: {"n_max": 6, "l_max": 4},
}
_CONTRACTED = {_FINER: 20, _MIDDLE: 16, _COARSER: 12}
"""Radial functions of several species together. Left-out errors of 12 to 16 are those of all 24 to
32 (ethanol, 3BPA, NbMoTaW); 10 and 8 cost 6 to 35 per cent of the forces."""
_ENERGIES = 200
"""Energies from which on their error counts half as much as that of the forces; fewer count in
proportion, because the scatter of some tens hides what a setting does (measured on silicon: 40 per
cent between settings that differ by 5 in the forces)."""
_MOLECULE = 60
"""Atoms of the largest structure for which the full gradient basis is tried."""


class Trial(NamedTuple):
    """One model of the race."""

    change: str  # in words: what differs from the first
    settings: dict[str, Any]  # parameters of the model, JSON types but for the descriptor
    n_structures: int
    n_inducing: int
    errors: dict[str, float]  # RMSE on left-out folds by kind: eV/atom, eV/angstrom, eV/angstrom^3
    score: float  # mean logarithm of the errors of energies and forces
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
            The fields; the descriptor by its settings.
        """
        settings = {
            name: value.to_settings() if hasattr(value, "to_settings") else value
            for name, value in self.settings.items()
        }
        return {**self._asdict(), "settings": settings}


class Race(NamedTuple):
    """All trials, and the one that won."""

    trials: tuple[Trial, ...]
    winner: Trial
    reason: str


Runner = Callable[[Mapping[str, Any], Sequence[int], int], Trial]
"""Fits settings to the structures of these indices in this heat (0 or 1); the change in words is
filled in by the race."""


def nearest_distance(structures: Sequence[Structure]) -> float:
    """Median distance of an atom to its nearest neighbour.

    Parameters
    ----------
    structures : Sequence[Structure]
        At most a hundred of them are looked at.

    Returns
    -------
    float
        Angstrom; NaN where no atom has a neighbour within 6 angstrom.
    """
    nearest: list[Float] = []
    for s in structures[:: max(1, len(structures) // 100)]:
        pairs = find_pairs(s.positions_nc, s.cell_cc, s.pbc_c, 6.0)
        if len(pairs.r_p):
            least_n = np.full(s.n_atoms, np.inf)
            np.minimum.at(least_n, pairs.i_p, pairs.r_p)
            nearest.append(least_n[np.isfinite(least_n)])
    return float(np.median(np.concatenate(nearest))) if nearest else math.nan


def first_settings(structures: Sequence[Structure]) -> dict[str, Any]:
    """Where the race begins: a descriptor of the length scale of the data.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.

    Returns
    -------
    dict[str, Any]
        Parameters of the model.
    """
    distance = nearest_distance(structures)
    cutoff = 5.0 if not distance > 0 else round(max(5.0, 1.95 * distance), 1)
    basis = "full" if suits_full_basis(structures) else "sparse"
    n_species = len({int(z) for s in structures for z in s.numbers_n})
    # One species costs little, and gains from resolution as the data grow.
    resolution = _FINER if n_species == 1 else _MIDDLE
    soap = {"cutoff": cutoff, "sigma": 0.4, **_RESOLUTIONS[resolution]}
    if n_species > 1:
        soap["n_contracted"] = _CONTRACTED[resolution]
    return {"descriptor": Soap(**soap), "basis": basis, "zeta": 4}


def suits_full_basis(structures: Sequence[Structure]) -> bool:
    """Whether these are small molecules, for which all labels can be basis functions.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.

    Returns
    -------
    bool
        No periodic structure, none above some tens of atoms, and at least a few.
    """
    return len(structures) >= 10 and all(
        not s.pbc_c.any() and s.n_atoms <= _MOLECULE for s in structures
    )


def variations(settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Settings that differ in one respect.

    Parameters
    ----------
    settings : Mapping[str, Any]
        Where to start from.

    Returns
    -------
    list[tuple[str, dict[str, Any]]]
        What is changed, in words, and the parameters that are.
    """
    soap = settings["descriptor"]
    several = soap.n_contracted is not None
    resolutions = {
        words: {**size, "n_contracted": _CONTRACTED[words] if several else None}
        for words, size in _RESOLUTIONS.items()
        if size["n_max"] != soap.n_max
    }
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"cutoff {0.8 * soap.cutoff:.1f}", {"cutoff": round(0.8 * soap.cutoff, 1)}),
        (f"cutoff {1.2 * soap.cutoff:.1f}", {"cutoff": round(1.2 * soap.cutoff, 1)}),
        *resolutions.items(),
        ("sigma 0.3", {"sigma": 0.3}),
        ("sigma 0.5", {"sigma": 0.5}),
        ("scaling exponent 4", {"scaling": Willatt(exponent=4.0)}),
        (
            f"scaling radius {0.4 * soap.cutoff:.1f}, exponent 4",
            {"scaling": Willatt(radius=round(0.4 * soap.cutoff, 1), exponent=4.0)},
        ),
        ("no scaling", {"scaling": None}),
        ("cutoff width 2", {"smoothing": ShiftedCosine(width=2.0)}),
        ("zeta 2", {"zeta": 2}),
        ("zeta 6", {"zeta": 6}),
    ]
    if several:
        changes += [
            (f"species alike by {similarity:g}", {"species_mixing": similarity})
            for similarity in (0.5, 0.9)
        ]
    return changes


def apply(settings: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a change of the descriptor or of the model.

    Parameters
    ----------
    settings : Mapping[str, Any]
        To start from.
    change : Mapping[str, Any]
        Parameters of the descriptor, or "zeta".

    Returns
    -------
    dict[str, Any]
        New settings.
    """
    new = dict(settings)
    own = {name: value for name, value in change.items() if name in new and name != "descriptor"}
    rest = {name: value for name, value in change.items() if name not in own}
    new |= own
    if rest:
        parameters = {**settings["descriptor"].get_params(deep=False), **rest}
        new["descriptor"] = Soap(**parameters)
    return new


def score(errors: Mapping[str, float], n_structures: int) -> float:
    """Mean logarithm of the errors on structures left out.

    Parameters
    ----------
    errors : Mapping[str, float]
        RMSE by kind of label.
    n_structures : int
        How many there were: few energies count less.

    Returns
    -------
    float
        Of energies and forces, or of the stress where it is all there is.
    """
    weights = {"energy": 0.5 * min(1.0, n_structures / _ENERGIES), "forces": 1.0}
    weights = {kind: w for kind, w in weights.items() if kind in errors}
    weights = weights or dict.fromkeys(errors, 1.0)
    total = sum(w * math.log(max(errors[kind], 1e-12)) for kind, w in weights.items())
    return total / max(sum(weights.values()), 1e-12)


def race(
    structures: Sequence[Structure],
    run: Runner,
    *,
    deadline: float,
    random_state: int | None,
    tell: Progress,
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
        Told of the stage "race".

    Returns
    -------
    Race
        All trials and the winner.
    """
    rng = np.random.default_rng(random_state)
    order = balanced_order(structures, rng)
    first = first_settings(structures)
    small, large = _heats(structures, order, first["basis"])
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
        reason = f"no change lowers the errors by {100.0 * _GAINS[1]:.0f} %"
    else:
        gain = 100.0 * (1.0 - math.exp(winner.score - final[0].score))
        reason = f"{gain:.0f} % less error on left-out folds than the first settings"
    return Race((*trials, *final), winner, reason)


def _finalists(
    first: dict[str, Any], better: Sequence[Trial], changes: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    """The first settings, the best change, and the changes that helped together."""
    finalists = [("start", first)]
    # What resolution is worth grows with the data; in the full basis it is worth little, and costs
    # time and memory.
    always = _COARSER if first["basis"] == "full" else _FINER
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


def _heats(
    structures: Sequence[Structure], order: Sequence[int], basis: str
) -> tuple[list[int], list[int]]:
    """Indices for the first and for the second heat, by the number of atoms."""
    sizes = np.cumsum([structures[s].n_atoms for s in order])
    limits = (700, 1400) if basis == "full" else (1500, 6000)
    first, second = (int(np.searchsorted(sizes, limit)) for limit in limits)
    least = min(25, len(order))
    return list(order[: max(first, least)]), list(order[: max(second, least)])
