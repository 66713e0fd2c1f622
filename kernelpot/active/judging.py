"""What explorations say of when to stop: numbers that the journal keeps, and criteria on them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.active.blocking import block_average
from kernelpot.active.choice import evenly, expected_error
from kernelpot.active.explorers.protocol import Explorer
from kernelpot.active.history import Round
from kernelpot.active.records import Candidate, Exploration
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.stopping import Criterion, coverage, observable_converged, plateau
from kernelpot.active.structure_json import structure_to_json
from kernelpot.active.task import Observable
from kernelpot.calculator import Calculator

__all__ = [
    "at_its_end",
    "coverage_of",
    "criteria_of",
    "final_scores",
    "judged_by",
    "n_calm",
    "n_longer",
    "n_unsettled",
    "prolonged",
    "trajectories",
    "typical_of",
]

_TYPICAL = 16
"""Frames of an exploration that the journal keeps of what is typical."""
_OUTSIDE = 1e3
"""Score of what is not known to be anywhere: JSON of other programs has no infinity."""


class _Mean(NamedTuple):
    """An observable of one round, as the journal has it."""

    mean: Any
    standard_error: Any
    settled: bool


def judged_by(
    found: Exploration,
    looks: Sequence[float],
    calculator: Calculator,
    settings: LearnerSettings,
    observable: Observable | None,
) -> dict[str, Any]:
    """The numbers by which an exploration is judged, without its frames.

    Parameters
    ----------
    found : Exploration
        What was met.
    looks : Sequence[float]
        Expected errors that were computed on the way (`Watch.looks`).
    calculator : Calculator
        Of the model that explored.
    settings : LearnerSettings
        Of the run: ``n_looked`` expected errors are kept, of these looks, evenly spaced, or where
        there are fewer, of frames.
    observable : Observable | None
        That is to converge.

    Returns
    -------
    dict[str, Any]
        JSON-ready.
    """
    frames, n_looked = found.frames, settings.n_looked
    if len(looks) >= n_looked:
        sigma = [looks[k] for k in evenly(len(looks), n_looked)]
    else:
        some = [frames[k] for k in evenly(len(frames), n_looked)]
        errors = [expected_error(calculator, atoms, settings.area) for atoms in some]
        sigma = [float(one.max()) for one in errors if one is not None]
    series = None if observable is None else _observed(observable, _sane(found), calculator)
    return {
        "n_steps": found.n_steps,
        "finished": found.finished,
        "note": found.note,
        "last": None if found.last is None else structure_to_json(found.last),
        "n_candidates": len(found.candidates),
        "candidates": _in_brief(found.candidates),
        "sigma": sigma,
        "observable": series,
    }


def _in_brief(candidates: Sequence[Candidate]) -> dict[str, list[tuple[int, float | None]]]:
    """Every candidate by its reason: step and score. Structures are kept of those labelled."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for one in candidates:
        score = float(f"{one.score:.4g}") if np.isfinite(one.score) else None
        found.setdefault(one.reason, []).append((one.step, score))
    return found


def _observed(
    observable: Observable, frames: Sequence[Atoms], calculator: Calculator
) -> dict[str, Any] | None:
    """Mean and error of an observable over the frames of an exploration."""
    if len(frames) < 2:
        return None
    moved = [atoms.copy() for atoms in frames]
    for atoms in moved:
        atoms.calc = copy.copy(calculator)
    try:
        series = np.asarray(observable(moved), dtype=np.float64)
        if series.shape[:1] != (len(frames),):
            raise ValueError(
                f"it has to give one number or array for each of the {len(frames)} frames; got"
                f" shape {series.shape}"
            )
        mean = block_average(series, warn=False)
    except Exception as error:  # the user's function may raise anything
        raise ValueError(
            f"the observable failed ({type(error).__name__}: {error}); mend it, and go on with the"
            " run"
        ) from error
    return {
        "mean": np.asarray(mean.mean).tolist(),
        "standard_error": np.asarray(mean.standard_error).tolist(),
        "settled": bool(np.all(mean.settled)),
    }


def _sane(found: Exploration) -> list[Atoms]:
    """Frames without the last one where an unphysical state or uncertainty has ended the way."""
    return found.frames if found.finished else found.frames[:-1]


def trajectories(explorers: Sequence[Explorer]) -> list[int]:
    """Explorers whose frames have averages: dynamics, or else what has steps.

    Parameters
    ----------
    explorers : Sequence[Explorer]
        Of a run.

    Returns
    -------
    list[int]
        Their places.
    """
    for name in ("temperature", "n_steps"):
        found = [e for e, one in enumerate(explorers) if hasattr(one, name)]
        if found:
            return found
    return []


def typical_of(found: Exploration, origin: str) -> list[Candidate]:
    """Some frames of an exploration, as what the model is for.

    Parameters
    ----------
    found : Exploration
        What was met.
    origin : str
        Of the candidates.

    Returns
    -------
    list[Candidate]
        Evenly spaced, without the last one where an unphysical state or uncertainty has ended it.
    """
    frames = _sane(found)
    return [
        Candidate(frames[k], origin, k, "typical", np.nan) for k in evenly(len(frames), _TYPICAL)
    ]


def criteria_of(
    rounds: Sequence[Round], settings: LearnerSettings, observed: Mapping[int, str]
) -> list[Criterion]:
    """Whether uncertainty and observables have ceased to change.

    Parameters
    ----------
    rounds : Sequence[Round]
        So far.
    settings : LearnerSettings
        Of the run.
    observed : Mapping[int, str]
        Names of the explorers over which an observable is averaged, by their places.

    Returns
    -------
    list[Criterion]
        The plateau of uncertainty first.
    """
    explored = [one.explored for one in rounds if one.explored]
    sigma = [[s for found in one.values() for s in found["sigma"]] for one in explored]
    sigma = [one for one in sigma if one]
    found = [plateau(sigma, rounds=settings.plateau_rounds, tolerance=settings.plateau)]
    last = [one.picked for one in rounds if one.explored][-settings.plateau_rounds :]
    if len(last) == settings.plateau_rounds and not any(last):
        # What is below the threshold may go up and down.
        text = f"nothing was unsure in the last {len(last)} rounds"
        found = [found[0]._replace(met=True, text=text)]
    for e, name in observed.items():
        means: dict[int, list[_Mean]] = {}  # by the start: averages over unlike systems differ
        for one in explored:
            if e in one and one[e]["observable"] is not None:
                means.setdefault(one[e].get("start", 0), []).append(_Mean(**one[e]["observable"]))
        for start, estimates in sorted(means.items()) or [(0, [])]:
            title = ["observable"]
            title += [name] * (len(observed) > 1) + [f"start {start + 1}"] * (len(means) > 1)
            tolerance = settings.observable_tolerance
            found.append(observable_converged(estimates, tolerance, name=", ".join(title)))
    return found


def n_calm(rounds: Sequence[Round]) -> int:
    """How many of the last rounds asked for no label.

    Parameters
    ----------
    rounds : Sequence[Round]
        So far.

    Returns
    -------
    int
        Since the last that did.
    """
    calm = itertools.takewhile(lambda one: one.picked == [], reversed(rounds))
    return sum(1 for _ in calm)


def n_longer(rounds: Sequence[Round], settings: LearnerSettings) -> int:
    """How many final runs were too short to tell: each makes the next twice as long.

    Parameters
    ----------
    rounds : Sequence[Round]
        Before the one that asks.
    settings : LearnerSettings
        Of the run.

    Returns
    -------
    int
        Those whose environments were inside to the share that is wanted, but too few to be sure.
    """
    finals = [one.final for one in rounds if one.final is not None]
    inside = [
        np.mean([score <= 1.0 for run in one["scores"] for score in np.ravel(run)])
        for one in finals
        if any(map(len, one["scores"]))
    ]
    return sum(bool(share >= settings.coverage) for share in inside)


def n_unsettled(rounds: Sequence[Round]) -> int:
    """How many explorations were too short for the observable, when there was nothing else to do.

    Parameters
    ----------
    rounds : Sequence[Round]
        Before the one that asks.

    Returns
    -------
    int
        Rounds with a plateau, no new labels, and an observable that is not settled.
    """
    return sum(
        not one.picked
        and one.judged is not None
        and any(of["name"] == "plateau" and of["met"] for of in one.judged["criteria"])
        and any(
            of["observable"] and not of["observable"]["settled"] for of in one.explored.values()
        )
        for one in rounds
    )


def prolonged(explorer: Explorer, n_times: int, n_more_frames: int) -> Explorer:
    """A longer exploration, where it has steps.

    Parameters
    ----------
    explorer : Explorer
        A dataclass of settings.
    n_times : int
        By which its steps are multiplied.
    n_more_frames : int
        By which the frames that it keeps are.

    Returns
    -------
    Explorer
        The same one where it has no steps.
    """
    fields = _fields(explorer)
    changes: dict[str, Any] = {
        name: factor * fields[name]
        for name, factor in (("n_steps", n_times), ("n_frames", n_more_frames))
        if name in fields
    }
    return dataclasses.replace(explorer, **changes) if changes else explorer


def at_its_end(explorer: Explorer) -> Explorer:
    """An exploration without ramps, at their hottest and at their last pressure.

    A ramp is never in equilibrium, so that its frames would say nothing of how many there are.

    Parameters
    ----------
    explorer : Explorer
        A dataclass of settings.

    Returns
    -------
    Explorer
        The same one where it has no ramps.
    """
    fields = _fields(explorer)
    changes: dict[str, Any] = {
        name: end(fields[name])
        for name, end in (("temperature", max), ("pressure", lambda ramp: ramp[-1]))
        if isinstance(fields.get(name), (tuple, list))
    }
    return dataclasses.replace(explorer, **changes) if changes else explorer


def _fields(explorer: Any) -> dict[str, Any]:
    """Settings that can be others; an explorer of the user's need not be a dataclass."""
    if not dataclasses.is_dataclass(explorer):
        return {}
    return {one.name: getattr(explorer, one.name) for one in dataclasses.fields(explorer)}


def final_scores(
    found: Exploration, calculator: Calculator, threshold: float, origin: str, area: float = 0.0
) -> tuple[list[list[float]], list[Candidate]]:
    """Expected errors of a final run over the threshold, frame by frame and atom by atom.

    Parameters
    ----------
    found : Exploration
        A run that nothing but unphysical states could end.
    calculator : Calculator
        Of the model.
    threshold : float
        eV/angstrom.
    origin : str
        Of the candidates.
    area : float
        Of stresses, as of `expected_error`.

    Returns
    -------
    tuple[list[list[float]], list[Candidate]]
        With a last frame that is outside where the run came to an early end; and the frames with
        an atom that is outside.
    """
    scores, outside = [], []
    for k, atoms in enumerate(found.frames):
        error_n = expected_error(calculator, atoms, area)
        score_n = np.full(len(atoms), _OUTSIDE) if error_n is None else error_n / threshold
        scores.append(np.minimum(score_n, _OUTSIDE).tolist())
        if error_n is not None and score_n.max() > 1.0:
            outside.append(Candidate(atoms, origin, k, "final", float(score_n.max())))
    if not found.finished and found.frames:
        scores.append([_OUTSIDE] * len(found.frames[0]))
    return scores, outside


def coverage_of(final: dict[str, Any] | None, settings: LearnerSettings) -> Criterion:
    """Whether the environments of a final run are inside what the model is sure of.

    Parameters
    ----------
    final : dict[str, Any] | None
        As the journal has it; None where there was none yet.
    settings : LearnerSettings
        Of the run.

    Returns
    -------
    Criterion
        Not met without a final run.
    """
    # An explorer may have found nothing to show.
    scores = [] if final is None else [np.array(one) for one in final["scores"] if one]
    return coverage(scores, share=settings.coverage)
