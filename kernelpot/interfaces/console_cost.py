"""What the command line shows of costs: of a fit before it runs, and of predictions."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from kernelpot.interfaces.console import out, say

__all__ = ["say_fit_cost", "say_prediction_cost"]

_DENSITY = 0.05
"""Atoms per cubic angstrom where a model says nothing of its neighbours: that of solid silicon."""


def say_fit_cost(cost: Any) -> None:
    """Print what a fit would take, stage by stage.

    Parameters
    ----------
    cost : Any
        A `kernelpot.fit_cost.FitCost`.
    """
    from kernelpot.memory import in_words

    shape = cost.shape
    table = Table(title="What the fit would take (nothing was fitted)")
    table.add_column("stage")
    for name in ("time", "GFLOP", "memory"):
        table.add_column(name, justify="right")
    for stage in cost.stages:
        flops = f"{stage.flops / 1e9:.0f}" if stage.flops else ""
        table.add_row(stage.name, _duration(stage.seconds), flops, in_words(stage.memory))
    table.add_section()
    flops = sum(stage.flops for stage in cost.stages) / 1e9
    table.add_row("all", _duration(cost.seconds), f"{flops:.0f}", in_words(cost.memory))
    out.print(table)
    labels = ", ".join(
        f"{n} {label.kind}{f' ({label.source})' if label.source else ''}"
        for label, n in shape.n_rows.items()
    )
    n_atoms = sum(shape.processes[0].atoms_z)
    features = " / ".join(str(one.n_features) for one in shape.processes)
    say(f"{shape.n_structures} structures, {n_atoms} atoms; {labels}.")
    say(f"About {shape.n_columns} inducing variables of {features} features.")
    if cost.refused:
        say(f"It would not begin: {cost.refused}")
    else:
        say(f"It keeps within the budget of {in_words(cost.budget)}.")


def _duration(seconds: float) -> str:
    if seconds < 60.0:
        return f"{seconds:.1f} s"
    if seconds < 5400.0:
        return f"{seconds / 60.0:.1f} min"
    return f"{seconds / 3600.0:.1f} h"


def say_prediction_cost(model: Any) -> None:
    """Print what a prediction costs, beside a Lennard-Jones field and density functional theory.

    Parameters
    ----------
    model : Any
        A fitted `KernelPotential`.
    """
    from kernelpot import prediction_cost as costs
    from kernelpot.rates import product_rate

    components = model.fitted_.components
    summary = model.training_summary_
    found = summary.get("neighbours")
    where = "as in the training data"
    if found is None:
        where = f"of {_DENSITY:g} atoms per A^3, since the file does not say"
        found = [costs.neighbours_of_density(c.descriptor.cutoff, _DENSITY) for c in components]
    cost = costs.prediction_cost(components, found)
    rate = product_rate()
    table = Table(title="Energy, forces and stress, per atom")
    table.add_column("")
    for name in ("kflop", "kB", "least us/atom", "expected us/atom"):
        table.add_column(name, justify="right")

    def row(name: str, flops: float, n_bytes: float | None, expected: str = "") -> None:
        kilobytes = "" if n_bytes is None else f"{n_bytes / 1e3:.3g}"
        table.add_row(name, f"{flops / 1e3:.4g}", kilobytes, f"{1e6 * flops / rate:.3g}", expected)

    row("this model", cost.total, cost.n_bytes, f"{cost.expected(rate):.3g}")
    for stage, flops in cost.flops.items():
        row(f"  {stage}", flops, None)
    # Vector, length, indices and force of half of the pairs.
    n_bytes = 8.0 * 4.5 * cost.n_neighbours
    row("Lennard-Jones", costs.lennard_jones_flops(cost.n_neighbours), n_bytes)
    numbers = model.species_
    electrons = sum(map(costs.valence_electrons, numbers)) / len(numbers)
    volume = summary.get("volume") or 1.0 / _DENSITY
    for n_atoms in costs.DFT_ATOMS:
        flops = costs.dft_step_flops(n_atoms, electrons, volume) / n_atoms
        row(f"DFT, {n_atoms} atoms", flops, None)
    out.print(table)
    cutoff = max(component.descriptor.cutoff for component in components)
    say(
        f"{cost.n_neighbours:.3g} neighbours within {cutoff:g} A ({where}); {rate / 1e9:.3g}"
        " GFLOP/s in a product of matrices, by which operations are divided for the least time."
        " Expected: with the shares of that speed that benchmarks/speed.py found."
    )
    say(
        f"Lennard-Jones: {costs.LENNARD_JONES_FLOPS:g} operations for a pair, the same neighbours."
        f" DFT: the cubic part of plane waves to 400 eV, {electrons:.3g} valence electrons and"
        f" {volume:.3g} A^3 for an atom, one k-point, 15 iterations (Rev. Mod. Phys. 64, 1045"
        " (1992)); everything else comes on top."
    )
