"""How good the standard deviations of a model are: a table, and figures that show it at a glance.

Matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.conventions import LABEL_KINDS, Float, Progress
from kernelpot.data import LabelKeys, structures_from_atoms
from kernelpot.report import ALL, FROM_EV_ANGSTROM, UNITS
from kernelpot.report_figures import COLOURS
from kernelpot.report_tables import short
from kernelpot.structure_prediction import variances_of
from kernelpot.uncertainty.metrics import (
    COVERAGES,
    calibration,
    empirical_coverage,
    error_bins,
)
from kernelpot.uncertainty.recalibration import is_open, uncalibrated

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = [
    "Deviations",
    "UncertaintyRow",
    "error_sigma_figure",
    "model_deviations",
    "reliability_figure",
    "rich_tables",
    "uncertainty_table",
]


_LABELS = {"energy": "energy", "forces": "forces_nc", "stress": "stress_v"}
"""Where the label of a kind stands in a structure."""


_IN_WORDS = {
    "ECE": "expected calibration error",
    "NLL": "negative log likelihood",
    "sigma": "rms of sigma",
    "rms z": "rms of error / sigma",
    "50 %": "% within 50 % interval",
    "90 %": "% within 90 %",
    "95 %": "% within 95 %",
    "99 %": "% within 99 %",
    "Spearman": "Spearman, |error|, sigma",
    "AUROC": "AUROC, largest tenth",
}


class Deviations(NamedTuple):
    """Errors of one kind of number with their standard deviations, each with its group."""

    kind: str
    unit: str  # of both
    error: Float  # (n_numbers,)
    sigma: Float  # (n_numbers,), positive
    group: np.ndarray  # (n_numbers,), str
    level: Float | None = None  # (n_numbers,), of the smallest interval that holds the error; None
    # for Gaussian intervals


class UncertaintyRow(NamedTuple):
    """How good the standard deviations of one kind of number are in one group of structures."""

    group: str
    kind: str
    unit: str
    ece: float
    nll: float
    sharpness: float
    rmse: float
    rms_z: float
    coverage_50: float
    coverage_90: float
    coverage_95: float
    coverage_99: float
    spearman: float
    auroc: float
    miscalibration: float
    count: int

    @staticmethod
    def columns() -> tuple[tuple[str, str], ...]:
        """Headings of the cells and how these are aligned, as `report_tables` asks for them.

        Returns
        -------
        tuple[tuple[str, str], ...]
            Heading, and "left" or "right".
        """
        numbers = ("ECE", "NLL", "sigma", "rms z", "50 %", "90 %", "95 %", "99 %")
        numbers += ("Spearman", "AUROC")
        texts = (("group", "left"), ("label", "left"))
        right = tuple((name, "right") for name in numbers)
        return (*texts, *right, ("unit", "left"), ("numbers", "right"))

    def cells(self) -> list[str]:
        """What stands in the row: coverages in per cent, "-" for what is not defined.

        Returns
        -------
        list[str]
            One for each of `columns`.
        """
        numbers = (self.nll, self.sharpness, self.rms_z)
        covered = (self.coverage_50, self.coverage_90, self.coverage_95, self.coverage_99)
        ranks = (self.spearman, self.auroc)
        return [
            self.group,
            self.kind,
            f"{self.ece:.3f}",
            *map(short, numbers),
            *(f"{100.0 * share:.1f}" for share in covered),
            *("-" if math.isnan(value) else f"{value:.2f}" for value in ranks),
            self.unit,
            str(self.count),
        ]


def uncertainty_table(
    sets: Sequence[Deviations], *, by_group: bool = False
) -> tuple[UncertaintyRow, ...]:
    """Rows of a table: how good standard deviations are, kind by kind.

    Parameters
    ----------
    sets : Sequence[Deviations]
        One per kind of number.
    by_group : bool
        Also a row for every group, after those of all structures.

    Returns
    -------
    tuple[UncertaintyRow, ...]
        Groups in alphabetical order.
    """
    rows = [_row(ALL, one, np.full(one.error.shape, True)) for one in sets]
    if by_group:
        names = sorted({name for one in sets for name in one.group.tolist()} - {ALL})
        pairs = ((name, one, one.group == name) for name in names for one in sets)
        rows += [_row(name, one, members) for name, one, members in pairs if members.any()]
    return tuple(rows)


def rich_tables(rows: Sequence[UncertaintyRow], title: str) -> list[Table]:
    """The rows as tables for a terminal, one for each group: measures below one another.

    Parameters
    ----------
    rows : Sequence[UncertaintyRow]
        Of `uncertainty_table`.
    title : str
        Of the first table.

    Returns
    -------
    list[Table]
        A column for each kind of label.
    """
    from rich.table import Table

    tables = []
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        table = Table(title=title if group == ALL else group)
        table.add_column("")
        for row in mine:
            table.add_column(f"{row.kind}, {row.unit}", justify="right")
        names = [name for name, _ in UncertaintyRow.columns()]
        cells = [row.cells() for row in mine]
        for k, name in enumerate(names):
            if name not in ("group", "label", "unit"):
                table.add_row(_IN_WORDS.get(name, name), *(one[k] for one in cells))
        tables.append(table)
    return tables


def model_deviations(
    model: Any,
    images: Sequence[Atoms],
    *,
    keys: LabelKeys | None = None,
    calibrated: bool = True,
    progress: Progress | None = None,
) -> tuple[Deviations, ...]:
    """Errors of a model on labelled structures, and the standard deviations that it expects.

    Parameters
    ----------
    model : Any
        A fitted `KernelPotential`, with a posterior.
    images : Sequence[Atoms]
        Labelled structures; ``info["group"]`` says to which group one belongs. Energies of other
        sources than the reference are compared less their shifts.
    keys : LabelKeys | None
        Where the labels stand; None for the model's own keys.
    calibrated : bool
        Whether ``model.calibration_`` says how wide errors are; else the posterior and the noise
        that the fit found.
    progress : Progress | None
        Told of the stage "standard deviations".

    Returns
    -------
    tuple[Deviations, ...]
        In the order energy (per atom), forces, stress, in the units of error tables; kinds without
        a single label are left out, and numbers that symmetry fixes.
    """
    if keys is None:
        keys = LabelKeys(model.energy_key, model.forces_key, model.stress_key, model.virial_key)
    structures = structures_from_atoms(images, keys)
    labelled = model.fitted_.shifts.to_reference(structures)
    scales = model.calibration_ if calibrated else uncalibrated(model.reference_noise_)
    parts: dict[str, list[tuple[Float, Float, Float, Float, np.ndarray]]] = {
        k: [] for k in LABEL_KINDS
    }
    for s, (atoms, one) in enumerate(zip(images, labelled, strict=True)):
        p = model.predict([atoms])
        variances = variances_of(model.predictor_, one, LABEL_KINDS, jackknife=calibrated)
        for kind in LABEL_KINDS:
            label = getattr(one, _LABELS[kind])
            error = np.asarray(getattr(p, kind)[0] - label)
            error = error.reshape(variances[kind].open.shape)
            sigma = variances[kind].std
            known = np.isfinite(error) & np.isfinite(sigma)
            std = scales.std(kind, variances[kind], one.numbers_n)
            level = scales.level(kind, error, variances[kind], one.numbers_n)
            per = one.n_atoms if kind == "energy" else 1
            group = np.full(int(known.sum()), one.group or ALL)
            numbers = (sigma[known] / per, error[known] / per, std[known] / per, level[known])
            parts[kind].append((*numbers, group))
        if progress is not None:
            progress("standard deviations", s + 1, len(images))
    found = []
    for kind, of_kind in parts.items():
        sigma, error, std, level, group = map(np.concatenate, zip(*of_kind, strict=True))
        told = is_open(sigma)
        if told.any():
            factor, unit = FROM_EV_ANGSTROM[kind], UNITS[kind]
            numbers = factor * error[told], factor * std[told], group[told], level[told]
            found.append(Deviations(kind, unit, *numbers))
    return tuple(found)


def reliability_figure(sets: Mapping[str, Deviations], *, title: str | None = None) -> Figure:
    """Coverage of intervals about the predictions against their level: on the diagonal is right.

    Parameters
    ----------
    sets : Mapping[str, Deviations]
        By the name of the curve, at least one.
    title : str | None
        Of the figure.

    Returns
    -------
    Figure
        Below the diagonal the standard deviations are too small, above it too large.

    Raises
    ------
    ValueError
        There is nothing to show.
    """
    from matplotlib.figure import Figure

    _require(sets)
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    levels = np.arange(1, 200) / 200.0
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, zorder=0)
    for k, (name, one) in enumerate(sets.items()):
        found = calibration(one.error, one.sigma, one.level)
        covered = empirical_coverage(one.error, one.sigma, one.level, levels)
        at_95 = found.coverage[COVERAGES.index(0.95)]
        label = f"{name}: ECE {found.ece:.3f}, 95 % covers {100 * at_95:.1f} %"
        axes.plot(100 * levels, 100 * covered, color=_colour(k), label=label)
    axes.text(70, 30, "too sure", ha="center", color="0.45", style="italic")
    axes.text(27, 62, "not sure enough", ha="center", color="0.45", style="italic")
    ticks = [0, 25, 50, 75, 95]
    axes.set_xticks(ticks, [f"{t}" for t in ticks])
    axes.set_yticks(ticks, [f"{t}" for t in ticks])
    axes.set(
        xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="level of the interval (%)",
        ylabel="errors within it (%)",
    )  # fmt: skip
    axes.grid(True, alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    if title:
        axes.set_title(title)
    return figure


def error_sigma_figure(
    sets: Mapping[str, Deviations], *, n_bins: int = 12, title: str | None = None
) -> Figure:
    """Error against standard deviation, both root mean squares of bins: on the diagonal is right.

    Bins hold equal numbers; bars are standard errors. A flat line says nothing of which
    errors are large, a steep one off the diagonal has the order but not the scale.

    Parameters
    ----------
    sets : Mapping[str, Deviations]
        By name, at least one; those of one unit share a panel.
    n_bins : int
        Bins of each set at most.
    title : str | None
        Of the figure.

    Returns
    -------
    Figure
        One panel for each unit, both axes logarithmic.

    Raises
    ------
    ValueError
        There is nothing to show.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    _require(sets)
    units = list(dict.fromkeys(one.unit for one in sets.values()))
    size = (4.3 * len(units) + 0.2, 4.8 + 0.2 * len(sets))
    figure = Figure(figsize=size, layout="constrained")
    for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        values = [np.empty(0)]
        for k, (name, one) in enumerate(sets.items()):
            if one.unit != unit:
                continue
            bins = error_bins(one.error, one.sigma, n_bins)
            found = calibration(one.error, one.sigma)
            label = f"{name}: Spearman {found.spearman:.2f}, AUROC {found.auroc:.2f}"
            shown = bins.error > 0.0  # what is exact has no logarithm
            bars = np.nan_to_num(bins.standard_error[shown])
            lower = np.minimum(bars, 0.9 * bins.error[shown])
            axes.errorbar(
                bins.sigma[shown], bins.error[shown], yerr=(lower, bars), fmt="o-",
                color=_colour(k), markersize=4, linewidth=1.2, elinewidth=1.0, label=label,
            )  # fmt: skip
            values += [bins.sigma[shown], bins.error[shown]]
        axes.set(xscale="log", yscale="log")
        all_values = np.concatenate(values)
        low, high = (all_values.min(), all_values.max()) if all_values.size else (1.0, 1.0)
        limits = (low / 1.3, high * 1.3)
        axes.plot(limits, limits, color="black", linewidth=0.8, zorder=0)
        axes.set(
            xlim=limits, ylim=limits, aspect="equal", xlabel=f"standard deviation ({unit})",
            ylabel=f"root mean square error ({unit})",
        )  # fmt: skip
        few = limits[1] / limits[0] < 100.0
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8
        )  # fmt: skip
    if title:
        figure.suptitle(title)
    return figure


def _require(sets: Mapping[str, Deviations]) -> None:
    if not sets:
        raise ValueError("nothing to show: give at least one set of errors by its name")


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _row(group: str, one: Deviations, members: np.ndarray) -> UncertaintyRow:
    level = None if one.level is None else one.level[members]
    found = calibration(one.error[members], one.sigma[members], level)
    covered = {f"coverage_{100 * p:.0f}": c for p, c in zip(COVERAGES, found.coverage, strict=True)}
    rest = {name: value for name, value in found._asdict().items() if name != "coverage"}
    return UncertaintyRow(group=group, kind=one.kind, unit=one.unit, **covered, **rest)
