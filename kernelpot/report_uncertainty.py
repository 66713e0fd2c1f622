"""How good the standard deviations of a model are: a table, and figures that show it at a glance.

Matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kernelpot.conventions import LABEL_KINDS, Float, Prediction
from kernelpot.report import ALL, UNITS, compare
from kernelpot.report_figures import COLOURS
from kernelpot.report_tables import short
from kernelpot.uncertainty.metrics import (
    COVERAGES,
    calibration,
    empirical_coverage,
    error_bins,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Deviations",
    "UncertaintyRow",
    "deviations",
    "error_sigma_figure",
    "reliability_figure",
    "uncertainty_table",
]


class Deviations(NamedTuple):
    """Errors of one kind of number with their standard deviations, each with its group."""

    kind: str
    unit: str  # of both
    error: Float  # (n_numbers,)
    sigma: Float  # (n_numbers,), positive
    group: np.ndarray  # (n_numbers,), str


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


def deviations(
    references: Mapping[str, Sequence[ArrayLike | None]],
    prediction: Prediction,
    groups: Sequence[str] | None = None,
    *,
    noise: Mapping[str, float] | None = None,
) -> tuple[Deviations, ...]:
    """Errors of a prediction and their standard deviations, in the units of error tables.

    Parameters
    ----------
    references : Mapping[str, Sequence[ArrayLike | None]]
        By kind of label, one entry per structure as in `report.compare`.
    prediction : Prediction
        Of the same structures, with the standard deviations of the kinds that are wanted.
    groups : Sequence[str] | None
        The group of each structure; None puts all into one.
    noise : Mapping[str, float] | None
        Standard deviation of the labels by kind, eV/atom, eV/angstrom, eV/angstrom^3, which is
        added in quadrature: an error is that of the model and that of the label.

    Returns
    -------
    tuple[Deviations, ...]
        In the order energy, forces, stress; kinds without a single label, or without standard
        deviations, are left out.
    """
    n_atoms = [len(forces_nc) for forces_nc in prediction.forces]
    found = []
    for kind in LABEL_KINDS:
        std = getattr(prediction, f"{kind}_std")
        if std is None or kind not in references:
            continue
        given = [
            None if values is None else np.where(np.isfinite(std[s]), values, np.nan)
            for s, values in enumerate(references[kind])
        ]
        compared = compare(kind, given, getattr(prediction, kind), n_atoms, groups)
        sigma_r = compare(kind, given, std, n_atoms, groups).predicted
        if noise is not None and kind in noise:
            # An energy's noise is one per atom already.
            ones = [np.full(np.shape(values), noise[kind]) for values in getattr(prediction, kind)]
            per_atom = [n if kind == "energy" else 1 for n in n_atoms]
            scaled = [one * n for one, n in zip(ones, per_atom, strict=True)]
            sigma_r = np.hypot(sigma_r, compare(kind, given, scaled, n_atoms, groups).predicted)
        if sigma_r.size:
            error_r = compared.predicted - compared.reference
            found.append(Deviations(kind, UNITS[kind], error_r, sigma_r, compared.group))
    return tuple(found)


def reliability_figure(sets: Mapping[str, Deviations], *, title: str | None = None) -> Figure:
    """Coverage of central Gaussian intervals against their level: on the diagonal is right.

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
        found = calibration(one.error, one.sigma)
        covered = empirical_coverage(one.error, one.sigma, levels)
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
    found = calibration(one.error[members], one.sigma[members])
    covered = {f"coverage_{100 * p:.0f}": c for p, c in zip(COVERAGES, found.coverage, strict=True)}
    rest = {name: value for name, value in found._asdict().items() if name != "coverage"}
    return UncertaintyRow(group=group, kind=one.kind, unit=one.unit, **covered, **rest)
