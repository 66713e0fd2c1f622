"""The structures of a fit, wherever they are, and what is done with all of them.

A fit knows the outlines of all structures, looks at some of them closely, and hands out work on
the rest: here to this process, in `distributed` to the workers of a cluster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kernelpot.conventions import LABEL_KINDS, LabelSet, Progress
from kernelpot.data import Structure
from kernelpot.data_outlines import outlines_of
from kernelpot.data_records import Outline
from kernelpot.descriptors.protocol import BoundDescriptor
from kernelpot.doubts import Doubt, reweighted
from kernelpot.fit_budget import room_for
from kernelpot.folds import Folds
from kernelpot.gp.evidence import Gram, add_grams, gram
from kernelpot.gp.triangles import Triangle, join_triangles
from kernelpot.gp.whitening import Whitening
from kernelpot.label_rows import Known, add_rows
from kernelpot.memory import Room
from kernelpot.options import Options

__all__ = [
    "Data",
    "InProcess",
    "Statistics",
    "grams_of",
    "in_order",
    "join_sets",
    "say_nothing",
    "sum_of_grams",
]

Triangles = Mapping[LabelSet, Triangle]


class Statistics(NamedTuple):
    """What the rows of all structures say."""

    triangles: dict[LabelSet, Triangle]
    grams: list[dict[LabelSet, Gram]]  # of all rows, then of each fold; none without folds


class Data(Protocol):
    """Labelled structures, and who works on them."""

    outlines: Sequence[Outline]

    def some(self, indices: Iterable[int]) -> list[Structure]:
        """Bring some structures here.

        Parameters
        ----------
        indices : Iterable[int]
            Of structures, ascending.

        Returns
        -------
        list[Structure]
            In this order.
        """

    def room(self, options: Options, bound_g: Sequence[BoundDescriptor], *, reduced: bool) -> Room:
        """Sizes of the pieces of the fit, for the memory of who works on it.

        Parameters
        ----------
        options : Options
            Settings.
        bound_g : Sequence[BoundDescriptor]
            The descriptors, as far as they are known.
        reduced : bool
            Whether they stand on their principal axes, where they are to.

        Returns
        -------
        Room
            The largest pieces that fit.

        Raises
        ------
        DataError
            If the smallest do not.
        """

    def each(
        self, stage: str, function: Callable[..., Any], *shared: Any, tell: Progress
    ) -> list[Any]:
        """Apply a function to the structures, a block of them at a time.

        Parameters
        ----------
        stage : str
            What the progress is of.
        function : Callable[..., Any]
            Called as ``function(structures, *shared, tell)``.
        *shared : Any
            The same for all.
        tell : Progress
            Told of the stage.

        Returns
        -------
        list[Any]
            The results, block after block, in the order of the structures.
        """

    def statistics(
        self,
        folds: Folds,
        known: Known,
        coarse: Whitening,
        doubts: Sequence[Doubt],
        tell: Progress,
    ) -> Statistics:
        """Reduce the rows of all structures to triangles.

        Parameters
        ----------
        folds : Folds
            Parts of the structures, and the folds that they make.
        known : Known
            What the rows are about, and what is taken off the labels.
        coarse : Whitening
            Of the products.
        doubts : Sequence[Doubt]
            Labels that count less.
        tell : Progress
            Told of the stage "rows".

        Returns
        -------
        Statistics
            Triangles of all rows, and products of all and of each fold.
        """


class InProcess:
    """Structures in the memory of this process, which does the work.

    Parameters
    ----------
    structures : Sequence[Structure]
        Checked.

    Attributes
    ----------
    outlines : Sequence[Outline]
        Of the structures.
    """

    def __init__(self, structures: Sequence[Structure]):
        self._structures = structures
        self.outlines: Sequence[Outline] = outlines_of(structures)

    def some(self, indices: Iterable[int]) -> list[Structure]:
        """As in `Data`."""
        return [self._structures[s] for s in indices]

    def room(self, options: Options, bound_g: Sequence[BoundDescriptor], *, reduced: bool) -> Room:
        """As in `Data`: the process keeps within ``options.memory``."""
        return room_for(self._structures, options, bound_g, reduced=reduced)

    def each(
        self, stage: str, function: Callable[..., Any], *shared: Any, tell: Progress
    ) -> list[Any]:
        """As in `Data`: all are one block."""
        return [function(self._structures, *shared, tell)]

    def statistics(
        self,
        folds: Folds,
        known: Known,
        coarse: Whitening,
        doubts: Sequence[Doubt],
        tell: Progress,
    ) -> Statistics:
        """As in `Data`, part after part."""
        structures = reweighted(self._structures, doubts)
        triangles: dict[LabelSet, Triangle] = {}
        grams: list[dict[LabelSet, Gram]] = [{} for _ in range(folds.n_folds + 1)]
        n_done = 0
        for part, mine in zip(folds.parts, folds.folds_p, strict=True):
            told = functools.partial(_tell_of_part, tell, n_done, len(structures))
            of_part = add_rows({}, [structures[s] for s in part], known, told)
            if folds.n_folds:
                found = grams_of(of_part, coarse)
                for place in (0, *(1 + fold for fold in mine)):
                    grams[place] = sum_of_grams(grams[place], found)
            # One after the other and in place: each takes the square of the number of columns.
            for label in list(of_part):
                triangle = of_part.pop(label)
                if label in triangles:
                    triangle = join_triangles(triangles[label], triangle, overwrite=True)
                triangles[label] = triangle
            n_done += len(part)
        return Statistics(in_order(triangles), grams if folds.n_folds else [])


def _tell_of_part(tell: Progress, before: int, total: int, stage: str, done: int, _: int) -> None:
    tell(stage, before + done, total)


def say_nothing(stage: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def grams_of(triangles: Triangles, coarse: Whitening) -> dict[LabelSet, Gram]:
    """Products of the rows of each set of labels.

    Parameters
    ----------
    triangles : Triangles
        Of the rows.
    coarse : Whitening
        Of the products.

    Returns
    -------
    dict[LabelSet, Gram]
        Of the same sets.
    """
    return {label: gram(triangle, coarse) for label, triangle in triangles.items()}


def sum_of_grams(*several: Mapping[LabelSet, Gram]) -> dict[LabelSet, Gram]:
    """Products of the rows of several lists of structures together.

    Parameters
    ----------
    *several : Mapping[LabelSet, Gram]
        Of each list.

    Returns
    -------
    dict[LabelSet, Gram]
        Of the sets of labels of any.
    """
    total: dict[LabelSet, Gram] = {}
    for one in several:
        for label, found in one.items():
            total[label] = add_grams(total[label], found) if label in total else found
    return total


def in_order(triangles: Triangles) -> dict[LabelSet, Triangle]:
    """The sets of labels by source, and then by kind.

    Parameters
    ----------
    triangles : Triangles
        In any order.

    Returns
    -------
    dict[LabelSet, Triangle]
        The same.
    """
    order = sorted(triangles, key=lambda label: (label.source, LABEL_KINDS.index(label.kind)))
    return {label: triangles[label] for label in order}


def join_sets(one: Triangles, other: Triangles) -> dict[LabelSet, Triangle]:
    """The statistics of two lists of structures together.

    Parameters
    ----------
    one : Triangles
        Of some structures.
    other : Triangles
        Of others.

    Returns
    -------
    dict[LabelSet, Triangle]
        Of the sets of labels of either.
    """
    joined = dict(one)
    for label, triangle in other.items():
        joined[label] = join_triangles(one[label], triangle) if label in one else triangle
    return joined
