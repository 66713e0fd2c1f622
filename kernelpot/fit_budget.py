"""A budget of memory: pieces of a fit that keep within it, or what to lower where none do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kernelpot._machine import physical_memory, resident_memory
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.descriptors.protocol import BoundDescriptor
from kernelpot.fit_memory import peak, stages
from kernelpot.fit_shape import Process, Shape, shape_of
from kernelpot.memory import Room, in_words
from kernelpot.options import Options

__all__ = ["BASE", "budget_of", "largest_room", "refusal", "room_for"]

BASE = 0.1e9
"""Bytes that compiled code, buffers of BLAS and small arrays take beside what is counted."""
_SHARE = 0.9
"""Of the machine's memory, where no budget is given."""


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
    shape = shape_of(structures, options, bound_g, reduced=reduced)
    there = resident_memory() + BASE
    room, fits = largest_room(shape, options, there)
    if not fits:
        raise DataError(refusal(shape, room, options, there))
    return room


def largest_room(shape: Shape, options: Options, there: float) -> tuple[Room, bool]:
    """The largest pieces with which a fit keeps within its budget.

    Parameters
    ----------
    shape : Shape
        Of the fit.
    options : Options
        Settings.
    there : float
        Bytes that the process has before.

    Returns
    -------
    tuple[Room, bool]
        The pieces, and whether the fit keeps within the budget with them.
    """
    left = budget_of(options) - there
    room = Room()
    while peak(shape, room, options.selector) > left:
        smaller = room.smaller()
        if smaller is None:
            return room, False
        room = smaller
    return room, True


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
