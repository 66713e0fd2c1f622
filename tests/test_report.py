"""Error tables, parity figures and learning curves."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest
from ase import units
from rich.console import Console

from kernelpot.conventions import Prediction
from kernelpot.report import (
    ALL,
    LearningCurve,
    compare,
    comparisons,
    csv_table,
    error_table,
    in_units,
    json_table,
    markdown_table,
    nested_subsets,
    rich_table,
)
from kernelpot.report_figures import learning_curve_figure, parity_figure


def prediction(n_structures: int = 3, n_atoms: int = 4, seed: int = 0) -> Prediction:
    rng = np.random.default_rng(seed)
    return Prediction(
        energy=rng.normal(size=n_structures),
        forces=[rng.normal(size=(n_atoms, 3)) for _ in range(n_structures)],
        stress=rng.normal(size=(n_structures, 6)),
        energies=[np.zeros(n_atoms)] * n_structures,
    )


def references(exact: Prediction, shift: float) -> dict[str, list]:
    return {
        "energy": [e + shift for e in exact.energy],
        "forces": [f - shift for f in exact.forces],
        "stress": [s + shift for s in exact.stress],
    }


def test_errors_have_the_units_that_they_say():
    exact = prediction()
    rows = error_table(comparisons(references(exact, 0.02), exact))
    assert [row.kind for row in rows] == ["energy", "forces", "stress"]
    assert [row.unit for row in rows] == ["meV/atom", "meV/A", "GPa"]
    for row, expected in zip(rows, (20.0 / 4, 20.0, 0.02 / units.GPa), strict=True):
        assert row.mae == pytest.approx(expected)
        assert row.rmse == pytest.approx(expected)
        assert row.max == pytest.approx(expected)
        assert row.group == ALL
    assert [row.count for row in rows] == [3, 36, 18]
    assert in_units("forces", 0.02) == 20.0


def test_errors_are_those_of_a_loop():
    exact = prediction(seed=1)
    other = references(prediction(seed=2), 0.0)
    row = error_table([compare("forces", other["forces"], exact.forces, [4, 4, 4])])[0]
    errors = []
    for ours, theirs in zip(exact.forces, other["forces"], strict=True):
        for n in range(4):
            for c in range(3):
                errors.append(1e3 * abs(ours[n, c] - theirs[n, c]))
    assert row.mae == pytest.approx(sum(errors) / len(errors))
    assert row.rmse == pytest.approx((sum(e * e for e in errors) / len(errors)) ** 0.5)
    assert row.max == pytest.approx(max(errors))


def test_groups():
    exact = prediction()
    labels = references(exact, 0.0)
    labels["energy"][2] += 0.04
    rows = error_table(comparisons(labels, exact, ["b", "a", "b"]), by_group=True)
    assert [row.group for row in rows] == [ALL] * 3 + ["a"] * 3 + ["b"] * 3
    energy = {row.group: row for row in rows if row.kind == "energy"}
    assert (energy["a"].mae, energy["a"].count) == (0.0, 1)
    assert energy["b"].mae == pytest.approx(5.0)
    assert energy[ALL].rmse == pytest.approx(10.0 / 3**0.5)
    assert len(error_table(comparisons(labels, exact, ["b", "a", "b"]))) == 3


def test_what_has_no_label_does_not_count():
    exact = prediction()
    labels = references(exact, 0.02)
    labels["energy"][0] = None
    labels["forces"][1] = np.full((4, 3), np.nan)
    labels["stress"] = [None, np.full(6, np.nan), None]
    rows = error_table(comparisons(labels, exact))
    assert [(row.kind, row.count) for row in rows] == [("energy", 2), ("forces", 24)]
    assert error_table(comparisons({}, exact)) == ()


def test_mistakes_are_named():
    exact = prediction()
    with pytest.raises(ValueError, match="'force' is unknown: choose one of energy, forces"):
        compare("force", exact.forces, exact.forces, [4, 4, 4])
    with pytest.raises(ValueError, match=r"structure 1: forces of shape \(2, 3\)"):
        compare("forces", [None, np.zeros((2, 3)), None], exact.forces, [4, 4, 4])
    with pytest.raises(ValueError, match="nothing to show"):
        parity_figure(())


def test_tables_as_text():
    exact = prediction()
    rows = error_table(comparisons(references(exact, 0.02), exact, ["x", "x", "y"]), by_group=True)
    lines = markdown_table(rows).splitlines()
    assert lines[2] == "| all | energy | 5 | 5 | 5 | meV/atom | 3 |"
    assert len(lines) == 2 + 9
    assert csv_table(rows).splitlines()[0] == "group,kind,unit,mae,rmse,max,count"
    assert csv_table(rows).splitlines()[1].startswith("all,energy,meV/atom,5.0")
    assert json.loads(json_table(rows))[8]["group"] == "y"
    console = Console(width=100, file=io.StringIO())
    console.print(rich_table(rows, "Errors on the test"))
    assert "meV/atom" in console.file.getvalue()


@pytest.mark.parametrize("n_atoms", [4, 400])
@pytest.mark.parametrize("groups", [None, ["bulk", "surface", "bulk"]])
def test_parity_figure(tmp_path, n_atoms, groups):
    exact = prediction(n_atoms=n_atoms)
    other = prediction(n_atoms=n_atoms, seed=5)
    compared = comparisons(references(other, 0.0), exact, groups)
    figure = parity_figure(compared, title="test")
    figure.savefig(tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 10_000
    assert len(figure.axes) == 6
    words = [axes.get_xlabel() for axes in figure.axes] + [
        axes.get_ylabel() for axes in figure.axes
    ]
    for unit in ("eV/atom", "eV/A", "GPa", "meV/atom", "meV/A"):
        assert any(f"({unit})" in text for text in words)
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sum("MAE" in text and "RMSE" in text for text in inside) == 3


def test_parity_figure_of_one_exact_number(tmp_path):
    exact = prediction(n_structures=1)
    parity_figure(comparisons({"energy": exact.energy}, exact)).savefig(tmp_path / "one.png")


def test_nested_subsets_hold_every_species():
    species = [{1, 6}] * 30 + [{8}] + [{1}] * 9
    subsets = nested_subsets(species, [2, 10, 40], seed=3)
    for small, large in pairwise(subsets):
        assert set(small) < set(large)
    for subset in subsets:
        assert set().union(*(species[s] for s in subset)) == {1, 6, 8}
    assert sorted(subsets[-1]) == list(range(40))
    with pytest.raises(ValueError, match=r"needed are 2 \(to hold every species\) to 40"):
        nested_subsets(species, [1])
    with pytest.raises(ValueError, match="subset of 41 structures"):
        nested_subsets(species, [41])


def test_learning_curve_figure(tmp_path):
    exact = prediction()
    tables = [error_table(comparisons(references(exact, d), exact)) for d in (0.04, 0.02, 0.01)]
    figure = learning_curve_figure(LearningCurve((5, 10, 20), tuple(tables)))
    figure.savefig(tmp_path / "curve.png")
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 3
    assert figure.axes[0].get_ylabel() == "energy error (meV/atom)"
