"""What memory a fit takes, counted array by array from shapes alone, and what a budget allows.

A sparse fit holds triangles of m^2 numbers (m inducing variables), whatever the number of labels; a
full one half of the covariance of all labels. Beside these stand things that can be done in smaller
pieces (`memory.Room`); a budget decides on their sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelpot._machine import physical_memory, resident_memory
from kernelpot.conventions import LabelSet
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear, n_blocks, widths
from kernelpot.environments import jacobian_bytes
from kernelpot.full_basis import memory_needed
from kernelpot.gp.covariances import BLOCK_ROWS as PRIOR_ROWS
from kernelpot.gp.triangles import PANEL
from kernelpot.gp.whitening import BLOCK_ROWS
from kernelpot.hyperparameters import COARSE, N_FOLDS
from kernelpot.label_rows import count_rows
from kernelpot.memory import Room, in_words
from kernelpot.neighbours import find_pairs
from kernelpot.options import Options
from kernelpot.selection import candidates_of_each, quotas_of

__all__ = [
    "BASE",
    "Process",
    "Shape",
    "budget_of",
    "peak",
    "refusal",
    "room_for",
    "shape_of",
    "stages",
]

BASE = 0.1e9
"""Bytes that compiled code, buffers of BLAS and small arrays take beside what is counted."""
_LARGEST = 4
"""Structures whose pairs are counted."""
_SHARE = 0.9
"""Of the machine's memory, where no budget is given."""


class Process(NamedTuple):
    """One Gaussian process of a sum."""

    widths: tuple[int, ...]  # features, from those computed first to those of the kernel
    atoms_z: tuple[int, ...]  # centres of each species
    environments_b: tuple[int, ...]  # inducing environments of each block of centres
    columns_b: tuple[int, ...]  # inducing variables of each block
    linear: bool

    @property
    def n_features(self) -> int:
        """That the kernel sees."""
        return self.widths[-1]


class Shape(NamedTuple):
    """Numbers that say how large a fit is."""

    processes: tuple[Process, ...]
    n_rows: Mapping[LabelSet, int]
    n_structures: int
    n_largest: int  # atoms of the largest structure
    most_pairs: int  # of a structure, each from both sides
    n_fronts: int  # shifts between sources
    jacobians: float  # bytes of all derivatives: the full basis keeps them
    full: bool
    robust: bool
    grouped: bool  # candidates are chosen group by group

    @property
    def n_columns(self) -> int:
        """Weights: shifts, inducing variables."""
        return self.n_fronts + sum(sum(one.columns_b) for one in self.processes)

    @property
    def n_parts(self) -> int:
        """Parts of the data whose rows are reduced one after the other."""
        return min(N_FOLDS, self.n_structures)


def shape_of(
    structures: Sequence[Structure],
    options: Options,
    bound_g: Sequence[BoundDescriptor],
    *,
    reduced: bool = True,
) -> Shape:
    """How large a fit is.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    options : Options
        Settings.
    bound_g : Sequence[BoundDescriptor]
        The descriptors, as far as they are known.
    reduced : bool
        Whether they stand on their principal axes; of those that will, one feature is counted.

    Returns
    -------
    Shape
        With as many tangents as there may be.
    """
    species = bound_g[0].species
    numbers_n = np.concatenate([s.numbers_n for s in structures])
    atoms_z = [int(np.count_nonzero(numbers_n == z)) for z in species]
    full = options.basis == "full"
    known = reduced or options.feature_tolerance <= 0.0
    processes = []
    for bound, one in zip(bound_g, options.components, strict=True):
        n_b = n_blocks(bound) if getattr(bound, "centre_similarity", None) is None else 1
        linear = is_linear(bound)
        if full:
            environments_z = atoms_z
        elif linear:
            environments_z = [bound.n_features] * len(species)
        else:
            environments_z = quotas_of(one.n_environments, species, atoms_z)
        if n_b == 1:
            environments_z = [bound.n_features if linear else sum(environments_z)]
        each = 2 if full else 1 + min(one.n_tangents, bound.n_features)
        processes.append(
            Process(
                tuple(widths(bound)) if known or linear else (bound.n_features, 1),
                tuple(atoms_z),
                tuple(environments_z),
                tuple(each * n for n in environments_z),
                linear,
            )
        )
    sources = {s.source for s in structures}
    return Shape(
        tuple(processes),
        count_rows(structures),
        len(structures),
        max(s.n_atoms for s in structures),
        _most_pairs(structures, max(bound.cutoff for bound in bound_g)),
        (len(sources) - 1) * len(species),
        jacobian_bytes(structures, bound_g[0]) if full and known else 0.0,
        full,
        options.robust is not None,
        options.balance_groups,
    )


def _most_pairs(structures: Sequence[Structure], cutoff: float) -> int:
    """Pairs of the structure that has most of them, as it seems by the largest ones."""
    largest = sorted(structures, key=lambda s: s.n_atoms)[-_LARGEST:]
    return max(len(find_pairs(s.positions_nc, s.cell_cc, s.pbc_c, cutoff).r_p) for s in largest)


def stages(shape: Shape, room: Room, selector: Any = "fps") -> dict[str, float]:
    """Most bytes of arrays in each stage of a fit, with what earlier stages leave.

    Parameters
    ----------
    shape : Shape
        Of the fit.
    room : Room
        Sizes of its pieces.
    selector : Any
        Of the environments.

    Returns
    -------
    dict[str, float]
        By stage.
    """
    found = {"features": _axes(shape, room)}
    if shape.full:
        return found | _full_stages(shape, room)
    found["selection"] = _selection(shape, room, selector)
    return found | _sparse_stages(shape, room)


def peak(shape: Shape, room: Room, selector: Any = "fps") -> float:
    """Most bytes of arrays that a fit takes.

    Parameters
    ----------
    shape : Shape
        Of the fit.
    room : Room
        Sizes of its pieces.
    selector : Any
        Of the environments.

    Returns
    -------
    float
        Bytes, without what the process has before.
    """
    return max(stages(shape, room, selector).values())


def _axes(shape: Shape, room: Room) -> float:
    """Second moments of the features and their eigenvectors; derivatives of some centres."""
    moments = max(8.0 * 4.0 * one.widths[0] ** 2 for one in shape.processes)
    axes = sum(one.widths[0] * one.n_features * len(one.atoms_z) for one in shape.processes)
    return _block(shape, room, 0) + moments + 8.0 * axes


def _block(shape: Shape, room: Room, n_columns: float) -> float:
    """Derivatives of some centres of one structure, and their products with so many vectors."""
    widest = max(
        max([one.n_features + n_columns, *(a + b for a, b in itertools.pairwise(one.widths))])
        for one in shape.processes
    )
    return min(room.block, 24.0 * shape.most_pairs * widest)


def _inducing(shape: Shape) -> float:
    return 8.0 * sum(sum(one.columns_b) * one.n_features for one in shape.processes)


def _selection(shape: Shape, room: Room, selector: Any) -> float:
    """Candidates, those of one species, and what selectors make of them."""
    most = 0.0
    for one in shape.processes:
        if one.linear:
            continue
        each = candidates_of_each(room, one.n_features, len(one.atoms_z))
        counts = [min(n, each) for n in one.atoms_z]
        largest = max(counts)
        copies = (len(counts) > 1) + 1.0  # of a species; of a group, or without isolated atoms
        numbers = (sum(counts) + copies * largest) * one.n_features
        if selector in ("variance", "joint"):
            numbers += largest * max(one.environments_b)
        elif selector in ("cur", "leverage"):
            numbers += 2.0 * largest * one.n_features + 4.0 * one.n_features**2
        needed = 8.0 * (numbers + shape.n_largest * (sum(one.widths) + one.widths[0]))
        if selector == "joint":
            needed += 2.0 * room.candidates + 8.0 * 2.0 * max(one.columns_b) ** 2
        most = max(most, needed)
    return most + 2.0 * _inducing(shape)


def _sparse_stages(shape: Shape, room: Room) -> dict[str, float]:
    """Triangles and factors; w columns and the label make a row."""
    w, n_labels = shape.n_columns + 1.0, shape.n_rows.values()
    blocks = [float(m) for one in shape.processes for m in one.columns_b]
    factors = sum(m**2 for m in blocks)
    k = min(w - 1.0, COARSE)
    kept = _inducing(shape)
    if shape.robust:  # the fit before stays until the next is done
        kept += 8.0 * (2.0 * factors + w**2 + sum(min(n, w) * w for n in n_labels))
    some = 12.0 * max(blocks, default=0.0) * PRIOR_ROWS
    whitening = 8.0 * (factors + max((m**2 for m in blocks), default=0.0) + some)
    totals = sum(min(n, w) * w for n in n_labels)
    grams = (shape.n_parts + 1.0) * len(n_labels) * k**2
    reducers = part = joined = 0.0
    for n in n_labels:
        mine = math.ceil(n / shape.n_parts)
        buffered = min(room.n_buffer, mine)
        large = mine > buffered or mine >= w
        # A flush of a buffer that is not full copies it.
        reducers += 2.0 * buffered * w + (w**2 if large else 0.0)
        part += min(mine, w) * w
        joined = max(joined, w**2 + 2.0 * min(n, w) * w if n < 2.0 * w else 0.0)
        # Whitened rows, and those of a block on the way.
        joined = max(joined, min(mine, w) * (k + 1.0) + BLOCK_ROWS * 2.0 * w + k**2)
    structure = 3.0 * shape.n_largest * w * 2.0
    block = _block(shape, room, max(blocks, default=0.0)) / 8.0
    rows = totals + grams + max(reducers + structure + block, part + joined)
    search = totals + grams + (2.0 * len(n_labels) + 5.0) * k**2
    widest = max([w - 1.0, *(min(n, w) for n in n_labels)])
    solving = w**2 + widest * w + PANEL * w + 2.0 * BLOCK_ROWS * w
    if any(label.kind == "stress" for label in shape.n_rows):
        solving += w**2  # another posterior without the stresses, beside the first
    one_fit = kept + 8.0 * factors
    return {
        "whitening": kept + whitening,
        "rows": one_fit + 8.0 * (rows + k**2),
        "hyperparameters": one_fit + 8.0 * (search + k**2),
        "posterior": one_fit + 8.0 * (totals + solving),
        "training errors": one_fit + 8.0 * (totals + w**2) + 3.0 * _inducing(shape),
    }


def _full_stages(shape: Shape, room: Room) -> dict[str, float]:
    n = float(sum(shape.n_rows.values()))
    # Rows of a few structures on the way into the matrix, and collapsed weights at the end.
    return {
        "environments": shape.jacobians + 24.0 * shape.most_pairs * sum(shape.processes[0].widths),
        "covariance": memory_needed(n, shape.jacobians) + 16.0 * 12.0 * shape.n_largest * n,
        "training errors": shape.jacobians + 4.0 * _inducing(shape),
    }


def budget_of(options: Options) -> float:
    """Bytes that the process may have.

    Parameters
    ----------
    options : Options
        Settings.

    Returns
    -------
    float
        What is given, or nine tenths of the machine's memory.
    """
    return _SHARE * physical_memory() if options.memory is None else options.memory


def room_for(
    structures: Sequence[Structure],
    options: Options,
    bound_g: Sequence[BoundDescriptor],
    *,
    reduced: bool = True,
) -> Room:
    """Sizes of the pieces of a fit, such that it keeps within the budget.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    options : Options
        Settings.
    bound_g : Sequence[BoundDescriptor]
        The descriptors, as far as they are known.
    reduced : bool
        Whether they stand on their principal axes, where they are to; before that, only what does
        not depend on these is counted.

    Returns
    -------
    Room
        The largest pieces that fit.

    Raises
    ------
    DataError
        If the smallest do not; it says how much is needed, and what to lower.
    """
    shape, budget = shape_of(structures, options, bound_g, reduced=reduced), budget_of(options)
    there = resident_memory() + BASE
    room: Room | None = Room()
    least = Room()
    while room is not None:
        if there + peak(shape, room, options.selector) <= budget:
            return room
        least, room = room, room.smaller()
    raise DataError(refusal(shape, least, options, there))


def refusal(shape: Shape, room: Room, options: Options, there: float) -> str:
    """Why a fit is over its budget, and what to lower.

    Parameters
    ----------
    shape : Shape
        Of the fit.
    room : Room
        The smallest pieces.
    options : Options
        Settings.
    there : float
        Bytes that the process has before.

    Returns
    -------
    str
        A sentence for an error, with numbers that would do.
    """
    budget = budget_of(options)
    needed = stages(shape, room, options.selector)
    stage = max(needed, key=needed.__getitem__)
    return (
        f"this fit needs {in_words(there + needed[stage])} of memory, and "
        + (
            f"there are {in_words(budget)} (nine tenths of this machine's)"
            if options.memory is None
            else f"the budget is {in_words(budget)} (memory)"
        )
        + f". Of it {in_words(there)} are there before it begins, the rest is for the stage "
        f"{stage!r}. {_advice(shape, room, budget - there, options.selector)}"
    )


def _advice(shape: Shape, room: Room, left: float, selector: Any) -> str:
    """What to lower, with numbers that would do."""
    words = []
    for change, describe in _FULL if shape.full else _SPARSE:
        # The largest part of the setting that fits, by halving the interval.
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = 0.5 * (low + high)
            if peak(change(shape, middle), room, selector) <= left:
                low = middle
            else:
                high = middle
        if low > 0.0 and peak(change(shape, low), room, selector) <= left:
            words.append(describe(shape, low))
    if words:
        return "What would fit: " + "; or ".join(words) + "."
    return "No single setting brings it down to that: raise the budget, or lower several."


def _with_environments(shape: Shape, part: float) -> Shape:
    processes = []
    for one in shape.processes:
        n_b = [n if one.linear else int(n * part) for n in one.environments_b]
        each = [m // max(1, n) for m, n in zip(one.columns_b, one.environments_b, strict=True)]
        columns = tuple(n * m for n, m in zip(n_b, each, strict=True))
        processes.append(one._replace(environments_b=tuple(n_b), columns_b=columns))
    return shape._replace(processes=tuple(processes))


def _with_tangents(shape: Shape, part: float) -> Shape:
    processes = []
    for one in shape.processes:
        columns = tuple(
            m if one.linear else n + int((m // max(1, n) - 1) * part) * n
            for m, n in zip(one.columns_b, one.environments_b, strict=True)
        )
        processes.append(one._replace(columns_b=columns))
    return shape._replace(processes=tuple(processes))


def _with_features(shape: Shape, part: float) -> Shape:
    processes = tuple(
        one if one.linear else one._replace(widths=tuple(max(1, int(q * part)) for q in one.widths))
        for one in shape.processes
    )
    return shape._replace(processes=processes, jacobians=shape.jacobians * part)


def _with_structures(shape: Shape, part: float) -> Shape:
    n_rows = {label: int(n * part) for label, n in shape.n_rows.items()}
    return shape._replace(n_rows=n_rows, jacobians=shape.jacobians * part)


def _say_environments(shape: Shape, part: float) -> str:
    counts = [sum(one.environments_b) for one in shape.processes if not one.linear]
    fewer = [sum(one.environments_b) for one in _with_environments(shape, part).processes]
    fewer = [n for n, one in zip(fewer, shape.processes, strict=True) if not one.linear]
    return f"n_environments {_each(fewer)} (of {_each(counts)})"


def _say_tangents(shape: Shape, part: float) -> str:
    def tangents(one: Process) -> int:
        return max(
            m // max(1, n) - 1 for m, n in zip(one.columns_b, one.environments_b, strict=True)
        )

    before = [tangents(one) for one in shape.processes if not one.linear]
    after = [tangents(one) for one in _with_tangents(shape, part).processes if not one.linear]
    return f"n_tangents {_each(after)} (of {_each(before)})"


def _say_features(shape: Shape, part: float) -> str:
    counts = [one.widths[0] for one in shape.processes if not one.linear]
    fewer = [int(n * part) for n in counts]
    return (
        f"{_each(fewer)} features (of {_each(counts)}), by a smaller n_max or l_max, or a larger "
        "feature_tolerance"
    )


def _say_structures(shape: Shape, part: float) -> str:
    n = sum(shape.n_rows.values())
    return f"{int(n * part)} labels (of {n}), or basis='sparse'"


def _each(counts: Sequence[int]) -> str:
    return " / ".join(map(str, counts))


_Change = tuple[Callable[[Shape, float], Shape], Callable[[Shape, float], str]]
_SPARSE: tuple[_Change, ...] = (
    (_with_environments, _say_environments),
    (_with_tangents, _say_tangents),
    (_with_features, _say_features),
)
_FULL: tuple[_Change, ...] = (
    (_with_structures, _say_structures),
    (_with_features, _say_features),
)
