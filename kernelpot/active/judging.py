"""What explorations say of when to stop: numbers that the journal keeps, and criteria on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.active.blocking import block_average
from kernelpot.active.choice import expected_error
from kernelpot.active.history import Round
from kernelpot.active.records import Exploration
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.stopping import Criterion, coverage, observable_converged, plateau
from kernelpot.active.structure_json import structure_to_json
from kernelpot.calculator import Calculator

__all__ = ["Observable", "coverage_of", "criteria_of", "final_scores", "judged_by"]

Observable = Callable[[list[Atoms]], Any]
"""Of the frames of an exploration: a series, one value or array for each frame."""

_OUTSIDE = 1e3
"""Score of what is not known to be anywhere: JSON of other programs has no infinity."""


class _Mean(NamedTuple):
    """An observable of one round, as the journal has it."""

    mean: Any
    standard_error: Any
    settled: bool


def judged_by(
    found: Exploration, calculator: Calculator, n_looked: int, observable: Observable | None
) -> dict[str, Any]:
    """The numbers by which an exploration is judged, without its frames.

    Parameters
    ----------
    found : Exploration
        What was met.
    calculator : Calculator
        Of the model that explored.
    n_looked : int
        Frames whose uncertainty is computed.
    observable : Observable | None
        That is to converge.

    Returns
    -------
    dict[str, Any]
        JSON-ready.
    """
    frames = found.frames
    places = np.unique(np.linspace(0, len(frames) - 1, min(n_looked, len(frames))).astype(int))
    errors = [expected_error(calculator, frames[k]) for k in places] if frames else []
    series = None
    if observable is not None and len(frames) > 1:
        mean = block_average(observable(frames), warn=False)
        series = {
            "mean": np.asarray(mean.mean).tolist(),
            "standard_error": np.asarray(mean.standard_error).tolist(),
            "settled": bool(np.all(mean.settled)),
        }
    return {
        "n_steps": found.n_steps,
        "finished": found.finished,
        "note": found.note,
        "last": None if found.last is None else structure_to_json(found.last),
        "n_candidates": len(found.candidates),
        "sigma": [float(one.max()) for one in errors if one is not None],
        "observable": series,
    }


def criteria_of(
    rounds: Sequence[Round], settings: LearnerSettings, names: Sequence[str], observed: bool
) -> list[Criterion]:
    """Whether uncertainty and observables have ceased to change.

    Parameters
    ----------
    rounds : Sequence[Round]
        So far.
    settings : LearnerSettings
        Of the run.
    names : Sequence[str]
        Of the explorers.
    observed : bool
        Whether there is an observable.

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
    if not observed:
        return found
    for e, name in enumerate(names):
        means = [one[e]["observable"] for one in explored if e in one]
        estimates = [_Mean(**one) for one in means if one is not None]
        if estimates:
            title = f"observable, {name}" if len(names) > 1 else "observable"
            tolerance = settings.observable_tolerance
            found.append(observable_converged(estimates, tolerance, name=title))
    return found


def final_scores(found: Exploration, calculator: Calculator, threshold: float) -> list[list[float]]:
    """Expected errors of a final run over the threshold, frame by frame and atom by atom.

    Parameters
    ----------
    found : Exploration
        A run that nothing but unphysical states could end.
    calculator : Calculator
        Of the model.
    threshold : float
        eV/angstrom.

    Returns
    -------
    list[list[float]]
        With a last frame that is outside where the run came to an early end.
    """
    scores = []
    for atoms in found.frames:
        error_n = expected_error(calculator, atoms)
        score_n = np.full(len(atoms), _OUTSIDE) if error_n is None else error_n / threshold
        scores.append(np.minimum(score_n, _OUTSIDE).tolist())
    if not found.finished and found.frames:
        scores.append([_OUTSIDE] * len(found.frames[0]))
    return scores


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
    scores = [] if final is None else [np.array(one) for one in final["scores"]]
    return coverage(scores, share=settings.coverage)
