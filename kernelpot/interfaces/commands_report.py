"""What the commands do that look at a fitted model: ``evaluate``, ``dimers``, ``info``.

Heavy modules are imported inside the functions, so that ``kernelpot --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kernelpot.interfaces.console import calibration_table, out, progress_bar, say, say_model
from kernelpot.interfaces.console_cost import say_prediction_cost

if TYPE_CHECKING:
    from ase import Atoms

    from kernelpot.data import LabelKeys
    from kernelpot.potential import KernelPotential
    from kernelpot.report import Comparison

_MOST_FAR = 5
"""Structures beyond a limit that are printed."""

__all__ = ["calibrate", "dimers", "evaluate", "info", "save_parity", "say_errors"]


def evaluate(
    model_file: Path,
    structures: Path,
    *,
    index: str,
    by_group: bool,
    plot: Path | None,
    train: Path | None,
    against: Path | None,
    std: bool,
    csv: Path | None,
    json: Path | None,
    keys: Mapping[str, str | None],
) -> None:
    """Compare a model with labelled structures.

    Parameters
    ----------
    model_file : Path
        Of the model.
    structures : Path
        To compare with.
    index : str
        Which frames of them.
    by_group : bool
        Whether each group of structures gets rows of its own.
    plot : Path | None
        Folder for figures.
    train : Path | None
        Training structures, for a learning curve.
    against : Path | None
        Training structures, for measures of extrapolation.
    std : bool
        Whether standard deviations are judged, too.
    csv : Path | None
        Where the table of errors is written, as CSV.
    json : Path | None
        The same, as JSON.
    keys : Mapping[str, str | None]
        Names of the labels, by parameter of the model; those of the model where all are None.
    """
    from kernelpot import report
    from kernelpot.data import LabelKeys, read_images
    from kernelpot.potential import load

    named = [keys[f"{kind}_key"] for kind in LabelKeys._fields]
    label_keys = LabelKeys(*named) if any(named) else None
    model = load(model_file)
    test = read_images(structures, index)
    compared = report.compare_model(model, test, keys=label_keys)
    rows = report.error_table(compared, by_group=by_group)
    out.print(report.rich_table(rows, f"{model_file.name} on {structures.name}"))
    for path, write in ((csv, report.csv_table), (json, report.json_table)):
        if path is not None:
            path.write_text(write(rows), encoding="utf-8")
            say(f"Wrote {path}.")
    if plot is not None:
        save_parity(compared, plot, f"{model_file.name} on {structures.name}")
    if std and model.fitted_.triangles:  # the full basis has no posterior
        _say_deviations(model, test, label_keys, by_group, plot)
    if against is not None:
        _say_extrapolation(model, read_images(against), test, label_keys)
    if train is not None:
        _learning_curve(model, read_images(train), test, label_keys, plot)


def _say_deviations(
    model: KernelPotential,
    test: list[Atoms],
    keys: LabelKeys | None,
    by_group: bool,
    plot: Path | None,
) -> None:
    """Print how good the standard deviations are, and draw it."""
    from kernelpot.report_uncertainty import (
        error_sigma_figure,
        model_deviations,
        reliability_figure,
        rich_tables,
        uncertainty_table,
    )

    with progress_bar() as progress:
        found = model_deviations(model, test, keys=keys, progress=progress)
    source = model.calibration_.source
    how = "as the fit has them" if source == "none" else f"calibrated by {source} errors"
    rows = uncertainty_table(found, by_group=by_group)
    for table in rich_tables(rows, f"Standard deviations of errors, {how}"):
        out.print(table)
    if source == "none":
        say("kernelpot calibrate learns from errors how wide they have to be.")
    if plot is not None:
        sets = {one.kind: one for one in found}
        for name, draw in (("reliability", reliability_figure), ("errors", error_sigma_figure)):
            path = plot / f"{name}.png"
            draw(sets).savefig(path, dpi=150)
            say(f"Wrote {path}.")


def _say_extrapolation(
    model: KernelPotential, train: list[Atoms], test: list[Atoms], keys: LabelKeys | None
) -> None:
    """Print measures of extrapolation, and which structures are beyond their limits."""
    from kernelpot.report import rich_table
    from kernelpot.report_extrapolation import extrapolation_table

    rows, far = extrapolation_table(model, train, test, keys=keys)
    out.print(rich_table(rows, "Distance from the training structures; ranks: of force errors"))
    say(f"{len(far)} of {len(test)} structures have an atom beyond a limit.")
    for one in far[:_MOST_FAR]:
        say(f"  structure {one.structure}, atom {one.atom}: {one.reason}")


def calibrate(
    model_file: Path,
    structures: Path,
    output: Path,
    *,
    index: str,
    left_out: bool,
    force: bool,
    keys: Mapping[str, str | None],
) -> None:
    """Learn from errors how wide standard deviations are, and save the model with it.

    Parameters
    ----------
    model_file : Path
        Of the model.
    structures : Path
        Labelled ones that it was not fitted to, or was where they are to be left out.
    output : Path
        File of the calibrated model; may be that of the model itself.
    index : str
        Which frames of the structures.
    left_out : bool
        Whether each is predicted by all others that the model was fitted to.
    force : bool
        Whether the output may be there already.
    keys : Mapping[str, str | None]
        Names of the labels, by parameter of the model; those of the model where all are None.

    Raises
    ------
    FileExistsError
        If the output is there, and may not be.
    """
    from kernelpot.data import read_images
    from kernelpot.potential import load

    if output.exists() and output != model_file and not force:
        raise FileExistsError(f"{output} exists: --force overwrites it, or choose another --output")
    model = load(model_file)
    named = {name: key for name, key in keys.items() if key is not None}
    kept, images = model.get_params(deep=False), read_images(structures, index)
    with progress_bar() as progress:
        model.set_params(progress=progress, **named)
        model.calibrate(images, left_out=left_out)
    out.print(calibration_table(model.calibration_))
    _say_nuggets(model, images)
    model.set_params(**kept)
    model.save(output)
    say(f"Saved {output}.")


def _say_nuggets(model: KernelPotential, images: list[Atoms]) -> None:
    """Say what of the errors nearest environments do not have in common."""
    from ase.data import chemical_symbols

    from kernelpot.data import structures_from_atoms
    from kernelpot.uncertainty.misspecification import nuggets_of

    structures = structures_from_atoms(images, *model._labels(), labels="optional")
    for number, one in nuggets_of(model.fitted_, model.predictor_, structures).items():
        if one.count:
            say(
                f"{chemical_symbols[number]}: errors of |F| {1e3 * one.sill:.3g} meV/A; "
                f"{1e3 * one.nugget:.3g} meV/A of them the nearest environments "
                f"({one.distance:.2g} apart) do not share: noise, or what the descriptor misses"
            )


def dimers(model_file: Path, plot: Path | None) -> None:
    """Scan two atoms over their distance.

    Parameters
    ----------
    model_file : Path
        Of the model.
    plot : Path | None
        Folder for a figure.
    """
    from kernelpot.potential import load
    from kernelpot.report_dimers import dimer_scan, dimer_table

    scan = dimer_scan(load(model_file))
    title = f"{model_file.name}, two atoms alone"
    out.print(dimer_table(scan, title))
    holes = [dimer.name for dimer in scan if not dimer.repulsive]
    least = min(scan, key=lambda dimer: dimer.energies[0])
    say(f"Not repulsive at short range: {', '.join(holes)}." if holes else "No holes.")
    say(
        f"Least energy at {least.distances[0]:g} A: {least.energies[0]:.3g} eV ({least.name});"
        " between nuclei it is tens to thousands of eV."
    )
    if plot is not None:
        from kernelpot.report_figures import dimer_figure

        plot.mkdir(parents=True, exist_ok=True)
        dimer_figure(scan, title=title).savefig(plot / "dimers.png", dpi=150)
        say(f"Wrote {plot / 'dimers.png'}.")


def info(model_file: Path) -> None:
    """Say what a model file holds.

    Parameters
    ----------
    model_file : Path
        Of the model.
    """
    from kernelpot.potential import load

    model = load(model_file)
    say(f"{model_file} ({model_file.stat().st_size / 1e6:.1f} MB)")
    say_model(model)
    say("")
    say_prediction_cost(model)


def say_errors(model: KernelPotential, images: list[Atoms], title: str) -> tuple[Comparison, ...]:
    """Print the errors of a model, group by group.

    Parameters
    ----------
    model : KernelPotential
        Fitted.
    images : list[Atoms]
        Labelled structures.
    title : str
        Of the table.

    Returns
    -------
    tuple[Comparison, ...]
        What was compared.
    """
    from kernelpot import report

    compared = report.compare_model(model, images)
    out.print(report.rich_table(report.error_table(compared, by_group=True), title))
    return compared


def save_parity(compared: tuple[Comparison, ...], folder: Path, title: str) -> None:
    """Draw labels against predictions.

    Parameters
    ----------
    compared : tuple[Comparison, ...]
        What is drawn.
    folder : Path
        Where the figure goes; made where it is not there.
    title : str
        Of the figure.
    """
    from kernelpot.report_figures import parity_figure

    folder.mkdir(parents=True, exist_ok=True)
    parity_figure(compared, title=title).savefig(folder / "parity.png", dpi=150)
    say(f"Wrote {folder / 'parity.png'}.")


def _learning_curve(
    model: KernelPotential,
    train: list[Atoms],
    test: list[Atoms],
    keys: LabelKeys | None,
    folder: Path | None,
) -> None:
    from kernelpot import report
    from kernelpot.report_figures import learning_curve_figure

    with progress_bar() as progress:
        curve = report.learning_curve(model, train, test, keys=keys, progress=progress)
    for size, rows in zip(curve.sizes, curve.tables, strict=True):
        errors = ", ".join(f"{row.kind} {row.mae:.3g} {row.unit}" for row in rows)
        say(f"{size:6d} training structures: MAE {errors}")
    if folder is not None:
        learning_curve_figure(curve).savefig(folder / "learning_curve.png", dpi=150)
        say(f"Wrote {folder / 'learning_curve.png'}.")
