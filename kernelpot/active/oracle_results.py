"""From what an oracle returned to a label, or to the reason why it is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from kernelpot.active.records import Label
from kernelpot.conventions import Float, voigt_from_tensor

__all__ = ["bare", "failed", "label_from"]

_FARTHEST = 1e-3
"""Atoms of an output that are farther from their place, in angstrom, are of another structure:
files round to 1e-8, and a relaxation moves by more."""


def bare(atoms: Atoms) -> Atoms:
    """Copy without calculator and constraints.

    Parameters
    ----------
    atoms : Atoms
        Any structure.

    Returns
    -------
    Atoms
        To be labelled.
    """
    found = atoms.copy()
    found.set_constraint()
    return found


def failed(reason: str, seconds: float) -> Label:
    """A label that is none.

    Parameters
    ----------
    reason : str
        Why.
    seconds : float
        That it took.

    Returns
    -------
    Label
        With the reason in a line.
    """
    return Label(None, " ".join(reason.split()) or "no reason is known", seconds)


def label_from(atoms: Atoms, results: Mapping[str, Any], seconds: float) -> Label:
    """Check results, and attach them to a copy of the structure.

    Parameters
    ----------
    atoms : Atoms
        What was to be labelled.
    results : Mapping[str, Any]
        As from `oracle_child.results_of`.
    seconds : float
        That it took.

    Returns
    -------
    Label
        Without a structure where the results are not finite, not complete, of wrong shapes, or of
        another structure.
    """
    atoms = bare(atoms)
    try:
        _check_same(atoms, results)
        checked = _checked(results, len(atoms), bool(atoms.pbc.all()))
    except (ValueError, TypeError) as error:
        return failed(str(error), seconds)
    atoms.calc = SinglePointCalculator(atoms, **checked)
    return Label(atoms, "", seconds)


def _checked(results: Mapping[str, Any], n_atoms: int, periodic: bool) -> dict[str, Any]:
    if results.get("energy") is None:
        raise ValueError(f"the oracle gave no energy (it gave {', '.join(results) or 'nothing'})")
    checked: dict[str, Any] = {}
    for name in ("energy", "free_energy"):
        if results.get(name) is not None:
            checked[name] = float(_finite(name, results[name], (1, ())).reshape(()))
    if results.get("forces") is not None:
        checked["forces"] = _finite("forces", results["forces"], ((n_atoms, 3),))
    if periodic and results.get("stress") is not None:
        stress = _finite("stress", results["stress"], (6, (3, 3), 9))
        if stress.size == 9:
            stress = voigt_from_tensor(stress.reshape(3, 3))
        checked["stress"] = stress
    return checked


def _finite(name: str, values: Any, shapes: tuple[int | tuple[int, ...], ...]) -> Float:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"the {name} of the oracle are no numbers") from None
    wanted = [shape if isinstance(shape, tuple) else (shape,) for shape in shapes]
    if array.shape not in wanted:
        raise ValueError(
            f"the {name} of the oracle have shape {array.shape}, not "
            f"{' or '.join(map(str, wanted))}"
        )
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        where = f" of atom {wrong[0, 0]}" if name == "forces" else ""
        raise ValueError(f"{name}{where} is not finite: {array[tuple(wrong[0])]}")
    return array


def _check_same(atoms: Atoms, results: Mapping[str, Any]) -> None:
    """Refuse results of other atoms, or of the same at other places."""
    if "numbers" not in results:
        return
    if not np.array_equal(results["numbers"], atoms.numbers):
        raise ValueError(
            "the oracle's output is of other atoms, or of the same in another order: labels must "
            "be in the order of the structure that was given"
        )
    if atoms.pbc.all() and np.abs(results["cell"] - atoms.cell[:]).max() > _FARTHEST:
        raise ValueError("the oracle's output has another cell; was it relaxed?")
    moved_nc = np.asarray(results["positions"]) - atoms.positions
    moved_nc = moved_nc - moved_nc[:1]  # some codes put molecules in the middle of a box
    cell_cc = atoms.cell.complete()[:]
    images_nc = np.round(moved_nc @ np.linalg.inv(cell_cc)) * atoms.pbc
    distance_n = np.linalg.norm(moved_nc - images_nc @ cell_cc, axis=1)
    if distance_n.max(initial=0.0) > _FARTHEST:
        farthest = int(np.argmax(distance_n))
        raise ValueError(
            f"the oracle's output is of another structure: atom {farthest} is "
            f"{distance_n[farthest]:.3g} angstrom from its place; was it relaxed?"
        )
