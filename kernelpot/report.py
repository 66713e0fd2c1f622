"""Errors of a model on labelled structures: tables, and how they fall with more data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from numpy.typing import ArrayLike

from kernelpot.conventions import LABEL_KINDS, Float, Prediction, as_float
from kernelpot.data import LabelKeys, structures_from_atoms
from kernelpot.report_tables import ErrorRow, csv_table, json_table, markdown_table, rich_table

__all__ = [
    "ALL",
    "FROM_EV_ANGSTROM",
    "UNITS",
    "Comparison",
    "ErrorRow",
    "LearningCurve",
    "compare",
    "compare_model",
    "comparisons",
    "csv_table",
    "error_table",
    "in_units",
    "json_table",
    "learning_curve",
    "markdown_table",
    "nested_subsets",
    "rich_table",
]

ALL = "all"
"""Name of the group that holds every structure."""

UNITS = {"energy": "meV/atom", "forces": "meV/A", "stress": "GPa"}
"""Units of errors, by kind of label."""

FROM_EV_ANGSTROM = {"energy": 1e3, "forces": 1e3, "stress": 1.0 / units.GPa}
"""Factors to these."""


class Comparison(NamedTuple):
    """Reference and predicted numbers of one kind of label, each with its group."""

    kind: str  # energy (per atom), forces (components), stress (components)
    reference: Float  # (n_numbers,), in UNITS[kind]
    predicted: Float  # (n_numbers,), in UNITS[kind]
    group: np.ndarray  # (n_numbers,), str


class LearningCurve(NamedTuple):
    """Test errors of models that were fitted on more and more structures."""

    sizes: tuple[int, ...]
    tables: tuple[tuple[ErrorRow, ...], ...]  # one error table per size


def compare(
    kind: str,
    reference: Sequence[ArrayLike | None],
    predicted: Sequence[ArrayLike],
    n_atoms: Sequence[int],
    groups: Sequence[str] | None = None,
) -> Comparison:
    """Put the numbers of one kind of label side by side, in the units of error tables.

    Parameters
    ----------
    kind : str
        One of energy, forces, stress.
    reference : Sequence[ArrayLike | None]
        One entry per structure: the energy (eV), forces (n_atoms, 3) (eV/A) or stress (6,)
        (eV/A^3); None, or NaN, where a structure has no such label.
    predicted : Sequence[ArrayLike]
        The same of the model.
    n_atoms : Sequence[int]
        Atoms of each structure; energies are divided by it.
    groups : Sequence[str] | None
        The group of each structure; None puts all into one.

    Returns
    -------
    Comparison
        Every number that is known on both sides.

    Raises
    ------
    ValueError
        The kind is unknown, or a structure's numbers differ in shape.
    """
    if kind not in LABEL_KINDS:
        raise ValueError(f"kind {kind!r} is unknown: choose one of {', '.join(LABEL_KINDS)}")
    groups = [ALL] * len(reference) if groups is None else groups
    left, right, group = [np.empty(0)], [np.empty(0)], [np.empty(0, dtype=str)]
    for s, (ours, theirs) in enumerate(zip(predicted, reference, strict=True)):
        if theirs is None:
            continue
        ours, theirs = as_float(ours), as_float(theirs)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"structure {s}: {kind} of shape {theirs.shape} against {ours.shape} predicted"
            )
        scale = FROM_EV_ANGSTROM[kind] / (n_atoms[s] if kind == "energy" else 1)
        known = np.isfinite(ours) & np.isfinite(theirs)
        left.append(scale * theirs[known].ravel())
        right.append(scale * ours[known].ravel())
        group.append(np.full(left[-1].size, str(groups[s])))
    return Comparison(kind, np.concatenate(left), np.concatenate(right), np.concatenate(group))


def comparisons(
    references: Mapping[str, Sequence[ArrayLike | None]],
    prediction: Prediction,
    groups: Sequence[str] | None = None,
) -> tuple[Comparison, ...]:
    """Compare every kind of label that the references have.

    Parameters
    ----------
    references : Mapping[str, Sequence[ArrayLike | None]]
        By kind of label, one entry per structure as in `compare`.
    prediction : Prediction
        Of the same structures.
    groups : Sequence[str] | None
        The group of each structure; None puts all into one.

    Returns
    -------
    tuple[Comparison, ...]
        In the order energy, forces, stress; kinds without a single label are left out.
    """
    n_atoms = [len(forces_nc) for forces_nc in prediction.forces]
    all_kinds = (
        compare(kind, references[kind], getattr(prediction, kind), n_atoms, groups)
        for kind in LABEL_KINDS
        if kind in references
    )
    return tuple(comparison for comparison in all_kinds if comparison.reference.size)


def compare_model(
    model: Any, images: Sequence[Atoms], *, keys: LabelKeys | None = None
) -> tuple[Comparison, ...]:
    """Compare the predictions of a model with the labels of structures.

    Parameters
    ----------
    model : Any
        A fitted `KernelPotential`.
    images : Sequence[Atoms]
        Labelled structures; ``info["group"]`` says to which group one belongs. Energies of other
        sources than the reference are compared less their shifts.
    keys : LabelKeys | None
        Where the labels stand; None for the model's own keys.

    Returns
    -------
    tuple[Comparison, ...]
        In the order energy, forces, stress; kinds without a single label are left out.
    """
    if keys is None:
        keys = LabelKeys(model.energy_key, model.forces_key, model.stress_key, model.virial_key)
    structures = model.fitted_.shifts.to_reference(structures_from_atoms(images, keys))
    references = {
        "energy": [s.energy for s in structures],
        "forces": [s.forces_nc for s in structures],
        "stress": [s.stress_v for s in structures],
    }
    return comparisons(references, model.predict(images), [s.group or ALL for s in structures])


def error_table(compared: Sequence[Comparison], *, by_group: bool = False) -> tuple[ErrorRow, ...]:
    """Mean absolute, root mean square and largest errors.

    Parameters
    ----------
    compared : Sequence[Comparison]
        One per kind of label.
    by_group : bool
        Also a row for every group, after those of all structures.

    Returns
    -------
    tuple[ErrorRow, ...]
        Groups in alphabetical order.
    """
    rows = [_error_row(ALL, c, np.full(c.group.shape, True)) for c in compared]
    if by_group:
        names = sorted({name for c in compared for name in c.group.tolist()} - {ALL})
        pairs = ((name, c, c.group == name) for name in names for c in compared)
        rows += [_error_row(name, c, members) for name, c, members in pairs if members.any()]
    return tuple(rows)


def in_units(kind: str, value: float) -> float:
    """An error in the unit of error tables.

    Parameters
    ----------
    kind : str
        One of energy (per atom), forces, stress.
    value : float
        In eV and angstrom.

    Returns
    -------
    float
        In ``UNITS[kind]``.
    """
    return FROM_EV_ANGSTROM[kind] * value


def nested_subsets(
    species: Sequence[Collection[int]], sizes: Sequence[int], *, seed: int = 0
) -> list[np.ndarray]:
    """Random subsets, each inside the next, all of which have every species.

    Parameters
    ----------
    species : Sequence[Collection[int]]
        Atomic numbers of each structure.
    sizes : Sequence[int]
        Structures in each subset.
    seed : int
        Seed of the random order.

    Returns
    -------
    list[np.ndarray]
        Indices of structures.

    Raises
    ------
    ValueError
        A size is out of range, or too small to hold every species.
    """
    n_structures = len(species)
    order = np.random.default_rng(seed).permutation(n_structures)
    first = _cover(species, order)
    order = np.array([*first, *(s for s in order if s not in set(first))], dtype=np.intp)
    for size in sizes:
        if not len(first) <= size <= n_structures:
            raise ValueError(
                f"a subset of {size} structures: needed are {len(first)} (to hold every species)"
                f" to {n_structures} (all there are)"
            )
    return [order[:size] for size in sizes]


def learning_curve(
    model: Any,
    train: Sequence[Atoms],
    test: Sequence[Atoms],
    *,
    keys: LabelKeys | None = None,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> LearningCurve:
    """Fit the settings of a model on nested subsets of the training structures.

    Parameters
    ----------
    model : Any
        A `KernelPotential`, whose parameters are used; itself it stays as it is.
    train : Sequence[Atoms]
        Labelled structures to fit.
    test : Sequence[Atoms]
        Labelled structures to compare with.
    keys : LabelKeys | None
        Where the labels of the test structures stand; None for the model's own keys.
    sizes : Sequence[int] | None
        Structures in each subset; None for an eighth, a quarter, a half and all.
    seed : int
        Seed of the random order.
    progress : Callable[[str, int, int], None] | None
        Called with "learning curve", the fits done, and all of them.

    Returns
    -------
    LearningCurve
        Sizes and error tables.
    """
    species = [set(atoms.numbers.tolist()) for atoms in train]
    if sizes is None:
        least = len(_cover(species, np.arange(len(train))))
        sizes = sorted({max(2, least, len(train) // part) for part in (8, 4, 2, 1)})
    subsets = nested_subsets(species, sizes, seed=seed)
    tables = []
    for done, subset_s in enumerate(subsets):
        if progress is not None:
            progress("learning curve", done, len(subsets))
        again = type(model)(**{**model.get_params(deep=False), "progress": None})
        again.fit([train[s] for s in subset_s])
        tables.append(error_table(compare_model(again, test, keys=keys)))
    if progress is not None:
        progress("learning curve", len(subsets), len(subsets))
    return LearningCurve(tuple(int(size) for size in sizes), tuple(tables))


def _cover(species: Sequence[Collection[int]], order: Sequence[int]) -> list[int]:
    """The structures, in this order, that bring species not seen before."""
    first, seen = [], set()
    for s in order:
        if not seen.issuperset(species[s]):
            first.append(int(s))
            seen.update(species[s])
    return first


def _error_row(group: str, comparison: Comparison, members: np.ndarray) -> ErrorRow:
    error = (comparison.predicted - comparison.reference)[members]
    return ErrorRow(
        group=group,
        kind=comparison.kind,
        unit=UNITS[comparison.kind],
        mae=float(np.mean(np.abs(error))),
        rmse=float(np.sqrt(np.mean(error**2))),
        max=float(np.max(np.abs(error))),
        count=int(error.size),
    )
