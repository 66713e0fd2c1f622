"""What the command line shows: progress, tables, and errors in one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from kernelpot.uncertainty.recalibration import Recalibration

__all__ = [
    "model_facts",
    "one_line_errors",
    "out",
    "progress_bar",
    "say",
    "say_auto",
    "say_model",
    "seconds_done",
]

out = Console(highlight=False)
"""Tables, facts and progress; errors go to standard error."""

_KNOWN_ERRORS = (ValueError, OSError, NotImplementedError, ImportError, MemoryError)
_FAILED = 2
_DOUBTS = 30
"""Rows of the table of labels in doubt."""
_INTERRUPTED = 130


@contextmanager
def one_line_errors(debug: bool, interrupted: str) -> Iterator[None]:
    """Turn the errors that the library explains into a message and an exit code.

    Parameters
    ----------
    debug : bool
        Let them pass, with their traceback.
    interrupted : str
        What to say after Ctrl-C.

    Yields
    ------
    None
        Nothing.

    Raises
    ------
    Exit
        With code 2 after an error and 130 after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning
            yield
    except _KNOWN_ERRORS as error:
        if debug:
            raise
        message = str(error) or type(error).__name__
        _complain(f"kernelpot: {message}")
        raise typer.Exit(_FAILED) from None
    except (KeyboardInterrupt, SystemError) as error:
        from kernelpot._jit import was_interrupted  # it imports Numba

        if debug or (isinstance(error, SystemError) and not was_interrupted(error)):
            raise
        _complain(f"kernelpot: interrupted; {interrupted}")
        raise typer.Exit(_INTERRUPTED) from None


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"kernelpot: warning: {message}")


def _complain(message: str) -> None:
    Console(file=sys.stderr, highlight=False, soft_wrap=True).print(message, markup=False)


_WITHIN = {
    "features": ("selection", 0.0),
    "tangents": ("selection", 0.5),
    "jackknife": ("training errors", 0.5),
}
"""Stages that progress is told of within those whose time is expected, and where they begin."""


def seconds_done(expected: Mapping[str, float], stage: str, done: int, total: int) -> float:
    """How much of the expected time is over.

    Parameters
    ----------
    expected : Mapping[str, float]
        Seconds of each stage, in their order.
    stage : str
        The one that runs, as progress is told of it.
    done : int
        What of it is done.
    total : int
        Of how much.

    Returns
    -------
    float
        Seconds of all stages before, and of the part of this one; 0 for a stage that is not known.
    """
    name, first = _WITHIN.get(stage, (stage, 0.0))
    if name not in expected:
        return 0.0
    before = 0.0
    for other, seconds in expected.items():
        if other == name:
            part = done / max(total, 1)
            part = first + 0.5 * part if stage in _WITHIN else part
            return before + part * seconds
        before += seconds
    return before


@contextmanager
def progress_bar(
    expected: Mapping[str, float] | None = None,
) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar with the time left for each stage; nothing where the output is no terminal.

    Parameters
    ----------
    expected : Mapping[str, float] | None
        Seconds of each stage, where they are known: then there is a bar for all of them, too.

    Yields
    ------
    Callable[[str, int, int], None]
        To be called with the stage, what is done of it, and how much there is to do.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        tasks: dict[str, Any] = {}
        whole = bar.add_task("all, in s", total=round(sum(expected.values()))) if expected else None

        def progress(stage: str, done: int, total: int) -> None:
            if whole is not None:
                over = seconds_done(expected, stage, done, total)
                bar.update(whole, completed=max(bar.tasks[0].completed, round(over)))
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield progress


def say(text: str) -> None:
    """Print a line as it is.

    Parameters
    ----------
    text : str
        Square brackets in it are no markup.
    """
    out.print(text, markup=False, soft_wrap=True)


def say_auto(model: Any) -> None:
    """Print what an automatic fit tried and why it chose what it did.

    Parameters
    ----------
    model : Any
        From `KernelPotential.auto`.
    """
    from kernelpot.report import UNITS, in_units

    systems = any(trial["unknown"] for trial in model.auto_["trials"])
    left_out = "structures and of systems left out" if systems else "structures left out"
    table = Table(title=f"Tried on parts of the data, errors of {left_out}")
    table.add_column("change")
    columns = [
        "structures",
        "energy",
        "forces",
        *(["systems: forces"] if systems else []),
        "score",
        "log evidence",
        "inducing",
        "s",
        "us/atom",
    ]
    for name in columns:
        kind = name.split()[-1]
        unit = f" {UNITS[kind]}" if kind in UNITS else ""
        table.add_column(name + unit, justify="right")
    for trial in model.auto_["trials"]:
        errors, unknown = (
            {kind: f"{in_units(kind, value):.3g}" for kind, value in trial[of].items()}
            for of in ("errors", "unknown")
        )
        table.add_row(
            trial["change"],
            str(trial["n_structures"]),
            errors.get("energy", ""),
            errors.get("forces", ""),
            *([unknown.get("forces", "")] if systems else []),
            f"{trial['score']:.3f}",
            f"{trial['log_evidence']:.0f}",
            str(trial["n_inducing"]),
            f"{trial['seconds']:.1f}",
            f"{trial['us_per_atom']:.0f}",
        )
    out.print(table)
    for line in model.auto_["why"]:
        say(line)


def say_model(model: Any) -> None:
    """Print what a fitted model is made of, how it fits its training data, and labels in doubt.

    Parameters
    ----------
    model : Any
        A fitted `KernelPotential`.
    """
    facts = model_facts(model)
    width = max(map(len, facts))
    for name, value in facts.items():
        say(f"  {name:<{width}}  {value}")
    _say_doubts(model)


def model_facts(model: Any) -> dict[str, str]:
    """What a fitted model is made of, in words.

    Parameters
    ----------
    model : Any
        A fitted `KernelPotential`.

    Returns
    -------
    dict[str, str]
        By what it is.
    """
    from ase.data import chemical_symbols

    from kernelpot.report import UNITS, in_units

    summary = model.training_summary_
    numbers = summary["n_labels"]
    zeta = [component.zeta for component in model.fitted_.components]
    errors = {
        name: ", ".join(
            f"{kind} {in_units(kind, value):.3g} {UNITS[kind]}" for kind, value in values.items()
        )
        for name, values in {
            "mae": summary["mae"],
            "rmse": summary["rmse"],
            "left out": model.leave_out_errors_,
            "systems left out": model.leave_systems_out_errors_,
        }.items()
    }
    hashes = summary["data_hash"]
    hashes = [hashes] if isinstance(hashes, str) else hashes
    return {
        "species": " ".join(chemical_symbols[z] for z in model.species_),
        "descriptor": repr(model.descriptor),
        "kernel": f"zeta {_each(zeta)}, delta {_each(model.delta_)} eV"
        + (" (found)" if model.delta is None else ""),
        "inducing": _inducing(model),
        "baseline": model.baseline_.describe(),
        "repulsion": "none" if model.repulsion_ is None else model.repulsion_.describe(),
        "noise": _noise(model),
        **_sources(model),
        "trained on": f"{summary['n_structures']} structures, {summary['n_atoms']} atoms; "
        + ", ".join(f"{n} {kind}" for kind, n in numbers.items() if n),
        "training MAE": errors["mae"],
        "training RMSE": errors["rmse"],
        "left-out RMSE": errors["left out"] or "too few structures to leave any out",
        **_of_systems(errors["systems left out"]),
        "log evidence": f"{model.log_evidence_:.1f} (data fit {model.data_fit_:.1f}, Occam factor"
        f" {model.log_evidence_ - model.data_fit_:.1f})",
        "seconds": ", ".join(f"{k} {v:.1f}" for k, v in summary["seconds"].items()),
        "data": "sha256 " + ", ".join(text[:16] for text in hashes),
        "versions": ", ".join(f"{k} {v or 'unknown'}" for k, v in summary["versions"].items()),
    }


def _of_systems(errors: str) -> dict[str, str]:
    return {"of whole systems": errors} if errors else {}


def _say_doubts(model: Any) -> None:
    """A table of the labels far from what the others say, if there are any."""
    from kernelpot.report import UNITS, in_units

    if not model.doubts_:
        if model.robust:
            say("\nNo label is in doubt.")
        return
    title = "Labels in doubt" + ("" if model.robust else " (--robust gives them less weight)")
    table = Table(title=title, title_justify="left")
    for name in ("structure", "label"):
        table.add_column(name)
    for name in ("off by", "sigma", "weight"):
        table.add_column(name, justify="right")
    for doubt in model.doubts_[:_DOUBTS]:
        kind = doubt.kind if doubt.atom is None else f"{doubt.kind} on atom {doubt.atom}"
        residual = f"{in_units(doubt.kind, doubt.residual):.4g} {UNITS[doubt.kind]}"
        table.add_row(doubt.name, kind, residual, f"{doubt.sigmas:.3g}", f"{doubt.weight:.2g}")
    say("")
    out.print(table)
    if len(model.doubts_) > _DOUBTS:
        say(f"... and {len(model.doubts_) - _DOUBTS} more: doubts_ in Python has all.")


def _inducing(model: Any) -> str:
    """Environments and tangents, features of linear descriptors, as far as there are any."""
    parts = []
    if model.n_environments_:
        chosen = sum(c.n_columns for c in model.fitted_.components if c.n_environments)
        selector = getattr(model.selector, "__name__", str(model.selector))
        parts = [f"{model.n_environments_} environments ({selector})"]
        parts += [f"{chosen - model.n_environments_} tangents"]
    features = sum(c.n_columns for c in model.fitted_.components if not c.n_environments)
    return ", ".join(parts + ([f"{features} features of linear descriptors"] if features else []))


def _sources(model: Any) -> dict[str, str]:
    """Shifts of other sources, where there are any."""
    if not model.source_shifts_:
        return {}
    shifts = [
        f"{source!r} " + ", ".join(f"{symbol} {shift:+.4g}" for symbol, shift in by_symbol.items())
        for source, by_symbol in model.source_shifts_.items()
    ]
    return {"sources": f"reference {model.reference_source_!r}; shifts of {'; '.join(shifts)} eV"}


def _each(values: Any) -> str:
    """One value, or those of several descriptors."""
    values = values if isinstance(values, (list, tuple)) else [values]
    return " / ".join(f"{value:.3g}" for value in values)


def _noise(model: Any) -> str:
    """Standard deviations in use, and which of them the evidence found."""
    parts = []
    units = ("eV/atom", "eV/A", "eV/A^3")
    for (kind, sigma), unit in zip(model.noise_.items(), units, strict=True):
        by_source = sigma if isinstance(sigma, Mapping) else {"": sigma}
        values = " / ".join(
            f"{value:.3g}{f' ({source})' if source else ''}" for source, value in by_source.items()
        )
        learned = (
            getattr(model, f"sigma_{kind}") is None and model.training_summary_["n_labels"][kind]
        )
        parts.append(f"{kind} {values} {unit}{' (found)' if learned else ''}")
    return ", ".join(parts)


def calibration_table(calibration: Recalibration) -> Table:
    """What was learned of the width of errors, kind by kind.

    Parameters
    ----------
    calibration : Recalibration
        Of a model.

    Returns
    -------
    Table
        Scales of what makes predictions uncertain, floor beneath, factors of two intervals.
    """
    from kernelpot.report import UNITS, in_units
    from kernelpot.uncertainty.recalibration import TERMS

    table = Table(title=f"Standard deviations by {calibration.source} errors")
    table.add_column("label")
    for name in (*TERMS, "floor", "50 %", "95 %", "errors", "structures"):
        table.add_column(name, justify="right")
    for kind, mine in calibration.kinds.items():
        for symbol, one in mine.items():
            table.add_row(
                f"{kind} {symbol}".strip(),
                *(f"{scale:.2f}" for scale in one.scale_t),
                f"{in_units(kind, one.floor):.3g} {UNITS[kind]}",
                f"{one.factor(0.5):.2f}",
                f"{one.factor(0.95):.2f}",
                str(len(one.scores_r)),
                str(one.n_structures),
            )
    return table
