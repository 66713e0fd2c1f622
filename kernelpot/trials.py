"""Trials of automatic fits: small models of a part of the structures, and their errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kernelpot.data import Structure
from kernelpot.environments import jacobian_bytes
from kernelpot.neighbours import find_pairs
from kernelpot.race import Runner, Trial, score
from kernelpot.structure_prediction import time_predictions

__all__ = ["HEATS", "Make", "runner"]

log = logging.getLogger("kernelpot")

Make = Callable[[Mapping[str, Any]], Any]
"""Makes an unfitted model (`KernelPotential`) of parameters."""

HEATS = ({"n_environments": 40, "n_tangents": 10}, {"n_environments": 100, "n_tangents": 16})
"""Inducing variables of the sparse models that race, of each process of a sum."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence: what a trial finds odd, the final fit will say."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def runner(make: Make, images: Sequence[Any], structures: Sequence[Structure]) -> Runner:
    """What the race calls.

    Parameters
    ----------
    make : Make
        Makes a model of parameters.
    images : Sequence[Any]
        The training structures as the model's ``fit`` takes them.
    structures : Sequence[Structure]
        The same, as records.

    Returns
    -------
    Runner
        Fits settings to some of the structures.
    """

    def run(settings: Mapping[str, Any], indices: Sequence[int], heat: int) -> Trial:
        sizes = HEATS[heat] if settings["basis"] == "sparse" else {}
        part = [structures[s] for s in indices]
        started = time.perf_counter()
        with _quiet():
            model = make({**settings, **sizes}).fit([images[s] for s in indices])
        seconds = time.perf_counter() - started
        errors, unknown = model.leave_out_errors_, model.leave_systems_out_errors_
        trial = Trial(
            "",
            {**settings, **sizes},
            len(indices),
            model.n_inducing_,
            errors,
            unknown,
            score(errors, unknown, len(indices)),
            model.log_evidence_,
            seconds,
            _cost(model, part),
            dict(model.fitted_.seconds),
            jacobian_bytes(part, model.fitted_.components[0].descriptor),
        )
        log.info("%s", {k: v for k, v in trial._asdict().items() if k != "settings"})
        return trial

    return run


def _cost(model: Any, structures: Sequence[Structure]) -> float:
    """Microseconds per atom of a prediction, neighbours known; of the largest structures."""
    timed, n_atoms = [], 0
    for s in sorted(structures, key=lambda s: s.n_atoms, reverse=True):
        cutoff = model.predictor_.cutoff
        timed.append((s.numbers_n, find_pairs(s.positions_nc, s.cell_cc, s.pbc_c, cutoff)))
        n_atoms += s.n_atoms
        if n_atoms >= 1000:
            break
    return time_predictions(model.predictor_, timed)
