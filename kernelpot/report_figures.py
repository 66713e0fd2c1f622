"""Figures: parity, learning curves, dimers. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kernelpot.report import ALL, UNITS, Comparison, LearningCurve, error_table
from kernelpot.report_dimers import Dimer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "dimer_figure", "learning_curve_figure", "parity_figure"]

# Axes show energies and forces in eV, errors in meV.
_AXES = {
    "energy": ("energy", "eV/atom", 1e-3),
    "forces": ("force component", "eV/A", 1e-3),
    "stress": ("stress component", "GPa", 1.0),
}
_MANY_POINTS = 2000
_MANY_GROUPS = 8
# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#332288",
)  # fmt: skip


def parity_figure(compared: Sequence[Comparison], *, title: str | None = None) -> Figure:
    """Prediction against reference, and the errors beneath: one column per kind of label.

    Few points are coloured by group; many are shown as a density.

    Parameters
    ----------
    compared : Sequence[Comparison]
        One per kind of label, at least one.
    title : str | None
        Of the whole figure.

    Returns
    -------
    Figure
        ``savefig`` writes it.

    Raises
    ------
    ValueError
        There is nothing to compare.
    """
    from matplotlib.figure import Figure

    if not compared:
        raise ValueError("nothing to show: no structure has a label to compare with")
    figure = Figure(figsize=(4.0 * len(compared), 5.4), layout="constrained")
    axes = figure.subplots(2, len(compared), sharex="col", height_ratios=(3, 1.4), squeeze=False)
    for column, comparison in enumerate(compared):
        _parity_panel(axes[0, column], axes[1, column], comparison)
    if title:
        figure.suptitle(title)
    return figure


def learning_curve_figure(curve: LearningCurve) -> Figure:
    """Test errors over the number of training structures, both axes logarithmic.

    Parameters
    ----------
    curve : LearningCurve
        From `learning_curve`.

    Returns
    -------
    Figure
        One panel per kind of label.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

    kinds = [row.kind for row in curve.tables[-1] if row.group == ALL]
    figure = Figure(figsize=(3.8 * len(kinds), 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        rows = [
            next(row for row in table if (row.group, row.kind) == (ALL, kind))
            for table in curve.tables
        ]
        for name, marker, colour in (("mae", "o", COLOURS[0]), ("rmse", "s", COLOURS[1])):
            errors = [getattr(row, name) for row in rows]
            axes.loglog(curve.sizes, errors, marker + "-", color=colour, label=name.upper())
            axes.annotate(
                f"{errors[-1]:.3g}", (curve.sizes[-1], errors[-1]), color=colour,
                textcoords="offset points", xytext=(7, 0), va="center", fontsize=9,
            )  # fmt: skip
        axes.margins(x=0.25)
        axes.set_xticks(curve.sizes, [str(size) for size in curve.sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("training structures")
        axes.set_ylabel(f"{kind} error ({UNITS[kind]})")
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(frameon=False)
    return figure


def dimer_figure(scan: Sequence[Dimer], *, title: str | None = None) -> Figure:
    """Energy of two atoms over their distance: one panel per pair of species.

    The axis of energies is linear around zero and logarithmic from about 1 eV on. Holes are shaded
    from the shortest distance to the top of their barrier, minima have a dot.

    Parameters
    ----------
    scan : Sequence[Dimer]
        From `dimer_scan`, at least one.
    title : str | None
        Of the whole figure.

    Returns
    -------
    Figure
        One panel per dimer.

    Raises
    ------
    ValueError
        There is nothing to show.
    """
    from matplotlib.figure import Figure

    if not scan:
        raise ValueError("nothing to show: the scan has no dimers")
    n_columns = min(4, math.ceil(math.sqrt(len(scan))))
    n_rows = math.ceil(len(scan) / n_columns)
    size = (3.2 * n_columns + 0.6, 2.5 * n_rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, dimer in zip(panels, scan, strict=False):
        _dimer_panel(axes, dimer)
    for axes in panels[len(scan) :]:
        axes.set_visible(False)
    # Shared axes hide the labels of all but the last row, which need not be full.
    for axes in panels[max(0, len(scan) - n_columns) : len(scan)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("distance (A)", fontsize=10)
    figure.supylabel("energy less free atoms (eV)", fontsize=10)
    if title:
        figure.suptitle(title)
    return figure


def _dimer_panel(axes: Any, dimer: Dimer) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_yscale("asinh", linear_width=1.0)
    axes.yaxis.set_major_locator(FixedLocator([-100, -10, -1, 0, 1, 10, 100, 1e3, 1e4, 1e5]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(0.0, color="black", linewidth=0.6, zorder=0)
    axes.plot(dimer.distances, dimer.energies, color=COLOURS[0])
    axes.set_xlim(0.0, dimer.distances[-1])
    axes.grid(True, alpha=0.3)
    note = ""
    if dimer.hole is not None:
        axes.axvspan(dimer.distances[0], dimer.hole.barrier, color=COLOURS[1], alpha=0.25, lw=0)
        note = f"hole {dimer.hole.depth:.3g} eV\ninside {dimer.hole.barrier:.2f} A\n"
    if dimer.well is not None:
        axes.plot(*dimer.well, "o", color=COLOURS[2], markersize=4)
        note += f"minimum {dimer.well.energy:.3g} eV\nat {dimer.well.distance:.2f} A"
    axes.text(0.96, 0.93, dimer.name, transform=axes.transAxes, ha="right", va="top", weight="bold")
    axes.text(0.96, 0.80, note, transform=axes.transAxes, ha="right", va="top", fontsize=8)


def _parity_panel(upper: Any, lower: Any, comparison: Comparison) -> None:
    """One column of the parity figure: values above, errors below."""
    name, axis_unit, scale = _AXES[comparison.kind]
    reference, predicted = scale * comparison.reference, scale * comparison.predicted
    error = comparison.predicted - comparison.reference
    low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    names = sorted(set(comparison.group.tolist()))
    if reference.size > _MANY_POINTS:
        upper.hexbin(
            reference, predicted, gridsize=70, bins="log", mincnt=1, cmap="viridis_r",
            extent=(*limits, *limits), linewidths=0.2,
        )  # fmt: skip
        lower.plot(reference, error, ",", color=COLOURS[0], alpha=0.4, rasterized=True)
    else:
        few_groups = 1 < len(names) <= _MANY_GROUPS
        for colour, group in zip(COLOURS, names if few_groups else [None], strict=False):
            members = comparison.group == group if few_groups else slice(None)
            style = {"color": colour, "markersize": 4, "alpha": 0.6, "markeredgewidth": 0}
            upper.plot(reference[members], predicted[members], "o", label=group, **style)
            lower.plot(reference[members], error[members], "o", **style)
        if few_groups:
            upper.legend(frameon=False, fontsize=7, loc="lower right", handletextpad=0.2)
    upper.axline((low, low), slope=1.0, color="black", linewidth=0.8, zorder=0)
    upper.set(xlim=limits, ylim=limits, ylabel=f"predicted {name} ({axis_unit})")
    row = error_table([comparison])[0]
    upper.text(
        0.04, 0.96, f"MAE {row.mae:.3g} {row.unit}\nRMSE {row.rmse:.3g} {row.unit}\n"
        f"{row.count} numbers", transform=upper.transAxes, va="top", fontsize=9,
    )  # fmt: skip
    lower.axhline(0.0, color="black", linewidth=0.8, zorder=0)
    largest = 1.1 * np.max(np.abs(error)) or 1.0
    lower.set(
        ylim=(-largest, largest), ylabel=f"error ({row.unit})",
        xlabel=f"reference {name} ({axis_unit})",
    )  # fmt: skip
