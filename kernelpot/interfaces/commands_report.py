"""What the commands do that look at a fitted model: ``evaluate``, ``dimers``, ``info``.

Heavy modules are imported inside the functions, so that ``kernelpot --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kernelpot.interfaces.console import out, progress_bar, say, say_model
from kernelpot.interfaces.console_cost import say_prediction_cost

if TYPE_CHECKING:
    from ase import Atoms

    from kernelpot.data import LabelKeys
    from kernelpot.potential import KernelPotential
    from kernelpot.report import Comparison

__all__ = ["dimers", "evaluate", "info", "save_parity", "say_errors"]


def evaluate(
    model_file: Path,
    structures: Path,
    *,
    index: str,
    by_group: bool,
    plot: Path | None,
    train: Path | None,
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
    if train is not None:
        _learning_curve(model, read_images(train), test, label_keys, plot)


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
