"""Which of several models do the data prefer? By evidence, by left-out errors, and at what cost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.conventions import LABEL_KINDS
from kernelpot.neighbours import find_pairs
from kernelpot.potential import KernelPotential
from kernelpot.report import UNITS, in_units
from kernelpot.structure_prediction import time_predictions

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ModelRow", "comparison_table", "fit_and_compare", "prediction_cost", "verdict"]

_TIMED_ATOMS = 1000


class ModelRow(NamedTuple):
    """What one model makes of the data."""

    name: str
    log_evidence: float
    data_fit: float  # part of the log evidence: how well the labels are explained
    occam: float  # the rest of it: the price of all else that the prior allows
    bound: float  # of the exact log evidence (VFE)
    behind: float  # log evidence less that of the best, at most 0
    leave_out: dict[str, float]  # RMSE by kind of label: eV/atom, eV/angstrom, eV/angstrom^3
    n_inducing: int
    cost: float  # of energy and forces, microseconds per atom
    fit_seconds: float


def fit_and_compare(
    models: Mapping[str, KernelPotential], images: Sequence[Atoms]
) -> tuple[ModelRow, ...]:
    """Fit models to the same structures, and say what their posteriors say.

    The evidence is the probability of the labels, so it compares models of the same labels alone,
    at the noise levels and amplitudes that each of them found.

    Parameters
    ----------
    models : Mapping[str, KernelPotential]
        By the name that they shall have; fitted in place.
    images : Sequence[Atoms]
        Labelled structures.

    Returns
    -------
    tuple[ModelRow, ...]
        In the order of the models.

    Raises
    ------
    ValueError
        If there is no model, or the models do not find the same labels in the structures.
    """
    if not models:
        raise ValueError("there is nothing to compare: give models by name")
    rows: list[ModelRow] = []
    labels: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        started = time.perf_counter()
        model.fit(images)
        seconds = time.perf_counter() - started
        labels[name] = model.training_summary_["n_labels"]
        _refuse_other_labels(labels)
        rows.append(
            ModelRow(
                name,
                model.log_evidence_,
                model.data_fit_,
                model.log_evidence_ - model.data_fit_,
                # With every label as an inducing variable nothing is left open.
                model.log_evidence_ if model.basis == "full" else model.evidence_bound(images),
                0.0,
                model.leave_out_errors_,
                model.n_inducing_,
                prediction_cost(model, images),
                seconds,
            )
        )
    best = max(row.log_evidence for row in rows)
    return tuple(row._replace(behind=row.log_evidence - best) for row in rows)


def _refuse_other_labels(labels: dict[str, dict[str, int]]) -> None:
    first, name = next(iter(labels)), next(reversed(labels))
    expected, found = labels[first], labels[name]
    if found == expected:
        return
    words = [", ".join(f"{n} {kind}" for kind, n in counts.items()) for counts in (expected, found)]
    raise ValueError(
        f"the evidence compares models of the same labels, but {first} is fitted to {words[0]}, "
        f"and {name} to {words[1]}: give all of them the same keys of labels"
    )


def prediction_cost(model: KernelPotential, images: Sequence[Atoms]) -> float:
    """Cost of energy, forces and stress, neighbours known.

    Parameters
    ----------
    model : KernelPotential
        Fitted.
    images : Sequence[Atoms]
        Structures; the largest ones, of a thousand atoms together, are timed.

    Returns
    -------
    float
        Microseconds per atom, as `time_predictions` measures.
    """
    predictor = model.predictor_
    timed, n_atoms = [], 0
    for atoms in sorted(images, key=len, reverse=True):
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, predictor.cutoff)
        timed.append((atoms.numbers, pairs))
        n_atoms += len(atoms)
        if n_atoms >= _TIMED_ATOMS:
            break
    return time_predictions(predictor, timed)


def verdict(rows: Sequence[ModelRow]) -> str:
    """What the evidence prefers, by how much, and whether left-out errors say the same.

    Parameters
    ----------
    rows : Sequence[ModelRow]
        From `fit_and_compare`.

    Returns
    -------
    str
        A few sentences.
    """
    best, *others = sorted(rows, key=lambda row: -row.behind)
    if not others:
        return f"There is but one model, {best.name}."
    second = others[0]
    words = (
        f"The evidence prefers {best.name} to {second.name} by a factor of "
        f"{_factor(best.log_evidence - second.log_evidence)}."
    )
    least = {
        kind: min(rows, key=lambda row: row.leave_out[kind])
        for kind in LABEL_KINDS
        if all(kind in row.leave_out for row in rows)
    }
    if not least:
        return f"{words} The structures are too few to leave any out."
    agreeing = [kind for kind, row in least.items() if row is best]
    if len(agreeing) == len(least):
        return f"{words} Left-out errors agree: those of {_listed(agreeing)} are least with it."
    found = [
        f"{kind} with {row.name} ({_error(kind, row)}"
        + (")" if row is best else f"; {best.name} {_error(kind, best)})")
        for kind, row in least.items()
    ]
    agree = "agree in part" if agreeing else "do not agree"
    return f"{words} Left-out errors {agree}: least are those of {_listed(found)}."


def _factor(log_ratio: float) -> str:
    if log_ratio < math.log(1e4):
        return f"{math.exp(log_ratio):.3g}"
    return f"10^{log_ratio / math.log(10.0):.0f}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _error(kind: str, row: ModelRow) -> str:
    return f"{in_units(kind, row.leave_out[kind]):.3g} {UNITS[kind]}"


def comparison_table(rows: Sequence[ModelRow], title: str) -> Table:
    """The models as a table for the terminal, a column for each.

    Parameters
    ----------
    rows : Sequence[ModelRow]
        From `fit_and_compare`.
    title : str
        Stands above the table.

    Returns
    -------
    Table
        For rich's console.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(row.name, justify="right")
    lines = {
        "log evidence": [f"{row.log_evidence:.1f}" for row in rows],
        "  data fit": [f"{row.data_fit:.1f}" for row in rows],
        "  Occam factor": [f"{row.occam:.1f}" for row in rows],
        "  lower bound (VFE)": [f"{row.bound:.1f}" for row in rows],
        "  behind the best": [f"{row.behind:.1f}" for row in rows],
    }
    for kind in LABEL_KINDS:
        if any(kind in row.leave_out for row in rows):
            lines[f"left-out RMSE, {kind}, {UNITS[kind]}"] = [
                f"{in_units(kind, row.leave_out.get(kind, np.nan)):.3g}" for row in rows
            ]
    lines |= {
        "inducing variables": [str(row.n_inducing) for row in rows],
        "prediction, us/atom": [f"{row.cost:.3g}" for row in rows],
        "fit, s": [f"{row.fit_seconds:.1f}" for row in rows],
    }
    for name, values in lines.items():
        table.add_row(name, *values)
    return table
