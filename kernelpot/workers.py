"""Work on structures that lie on the workers of a Dask cluster: rows to triangles, joined pairwise.

Blocks, and the tree in which their triangles are joined, depend on the data and the size of the
model alone, so that the result does not depend on the workers. Every task is a pure function of a
few blocks and of what the client has scattered; what a lost worker held is computed again, from the
files where the structures come from files.

Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34, A206 (2012).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kernelpot._machine import one_thread
from kernelpot.conventions import Int, LabelSet, Progress, as_int
from kernelpot.data import Structure
from kernelpot.data_records import Outline
from kernelpot.descriptors.protocol import BoundDescriptor
from kernelpot.doubts import Doubt, reweighted
from kernelpot.folds import Folds
from kernelpot.gp.whitening import Whitening
from kernelpot.label_rows import Known, add_rows
from kernelpot.memory import Room
from kernelpot.options import Options
from kernelpot.training_data import (
    Statistics,
    grams_of,
    in_order,
    join_sets,
    say_nothing,
    sum_of_grams,
)

__all__ = ["LEAST_SHARES", "ROWS_PER_COLUMN", "Workers", "alone", "shares"]

ROWS_PER_COLUMN = 2
"""Rows of a part that are reduced at a time, for each column of a triangle. To reduce them takes
4 n^3 operations for n columns, to join the triangle with another 2/3 n^3; and a triangle that is
joined has come from another worker as often as not, which structures do at next to no cost."""
LEAST_SHARES = 16
"""So many of the work where there are few rows, so that some workers have something to do."""
_ATTEMPTS = 5
"""How often what existed on a lost worker alone is sent again."""
_GONE = ("cancelled", "lost")

Result = TypeVar("Result")


class Workers:
    """Structures on the workers of a cluster, which do the work: a `Data`.

    Parameters
    ----------
    client : Any
        A ``distributed.Client``.
    make : Callable[[Sequence[int]], list[Any]]
        Gives futures of the blocks of these numbers.
    sizes : Sequence[int]
        Structures of each block.
    outlines : list[Outline]
        Of all structures.

    Attributes
    ----------
    outlines : list[Outline]
        Of all structures.
    """

    def __init__(
        self,
        client: Any,
        make: Callable[[Sequence[int]], list[Any]],
        sizes: Sequence[int],
        outlines: list[Outline],
    ):
        self.outlines = outlines
        self._client = client
        self._make = make
        self._sizes = as_int(sizes)
        self._first_b = np.concatenate([[0], np.cumsum(sizes)])
        self._blocks = make(range(len(sizes)))
        self._run = uuid.uuid4().hex
        self._n_calls = 0

    def some(self, indices: Iterable[int]) -> list[Structure]:
        """As in `Data`; not by way of the scheduler."""
        places = self._places(as_int(list(indices)))

        def pick() -> list[Structure]:
            futures = [
                self._submit(_pick, self._blocks[b], mine, key=("some", b))
                for b, mine in places.items()
            ]
            picked = self._client.gather(futures, direct=True)
            return [structure for part in picked for structure in part]

        return self._surely(pick)

    def room(self, options: Options, bound_g: Sequence[BoundDescriptor], *, reduced: bool) -> Room:
        """As in `Data`: workers have limits of their own, so that nothing is counted here."""
        return Room()

    def each(
        self,
        stage: str,
        function: Callable[..., Any],
        *shared: Any,
        tell: Progress,
    ) -> list[Any]:
        """As in `Data`: a task for each block."""
        found: dict[int, Any] = {}

        def work() -> list[Any]:
            given = self._share(shared)
            waiting = {}
            for b in set(range(len(self._sizes))) - set(found):
                future = self._submit(_on_block, function, self._blocks[b], given, key=(stage, b))
                waiting[future.key] = b, future
            for future in _as_completed([future for _, future in waiting.values()]):
                b, _ = waiting.pop(future.key)
                found[b] = self._client.gather(future, direct=True)
                tell(stage, int(self._sizes[list(found)].sum()), int(self._sizes.sum()))
            return [found[b] for b in range(len(self._sizes))]

        return self._surely(work)

    def statistics(
        self,
        folds: Folds,
        known: Known,
        coarse: Whitening,
        doubts: Sequence[Doubt],
        tell: Progress,
    ) -> Statistics:
        """As in `Data`: triangles of some structures of a part each, joined pairwise as a tree."""
        rows_s = np.array([3 * one.n_atoms + 7 for one in self.outlines])
        largest = min(ROWS_PER_COLUMN * known.n_columns, rows_s.sum() / LEAST_SHARES)
        parts = [[part[mine] for mine in shares(rows_s[part], largest)] for part in folds.parts]
        roots: dict[int, Any] = {}

        def work() -> Statistics:
            given = self._share((known, doubts, coarse))
            leaves: list[Any] = []
            sizes: dict[Any, int] = {}
            for f, part in enumerate(parts):
                if f not in roots or roots[f].status != "finished":
                    found = [
                        self._submit(
                            _rows_of, *self._held(mine), given, key=("rows", f, int(mine[0]))
                        )
                        for mine in part
                    ]
                    roots[f] = self._tree(found, ("join", f))
                    sizes |= {leaf.key: len(mine) for leaf, mine in zip(found, part, strict=True)}
                    leaves += found
            # Held futures keep what they are of in the memory of the workers.
            found = []
            grams = self._grams(folds, roots, given)
            total = self._tree([roots[f] for f in sorted(roots)], ("join", "all"))
            n_all = len(self.outlines)
            n_done = n_all - sum(sizes.values())
            waiting = _as_completed(leaves)
            leaves = []
            for future in waiting:
                if future.status != "finished":
                    future.result()  # raises
                n_done += sizes[future.key]
                tell("rows", n_done, n_all)
            triangles, of_folds = self._client.gather([total, grams], direct=True)
            return Statistics(in_order(triangles.found), [one.found for one in of_folds])

        return self._surely(work)

    # ------------------------------------------------------------------------------ tasks

    def _submit(
        self, function: Callable[..., Any], *given: Any, key: tuple[Any, ...], priority: int = 0
    ) -> Any:
        name, *rest = key
        key = (f"{name.replace(' ', '-')}-{self._run}", self._n_calls, *rest)
        return self._client.submit(alone, function, *given, key=key, priority=priority)

    def _share(self, shared: tuple[Any, ...]) -> Any:
        """Send to the workers what all tasks need."""
        return self._client.scatter([shared], direct=True, hash=False, broadcast=True)[0]

    def _held(self, indices: Int) -> tuple[list[Any], list[Int]]:
        """Blocks that hold the structures, and their places within each."""
        places = self._places(indices)
        return [self._blocks[b] for b in places], list(places.values())

    def _grams(self, folds: Folds, roots: Mapping[int, Any], given: Any) -> list[Any]:
        """Futures of the products of all rows and of each fold, from the triangles of the parts."""
        if not folds.n_folds:
            return []
        of_parts = {f: self._submit(_grams_of, roots[f], given, key=("grams", f)) for f in roots}
        members = [list(of_parts.values())]
        for fold in range(folds.n_folds):
            members.append([one for f, one in of_parts.items() if fold in folds.folds_p[f]])
        return [self._submit(_sum_of, *m, key=("products", k)) for k, m in enumerate(members)]

    def _tree(self, futures: Sequence[Any], key: tuple[Any, ...]) -> Any:
        """Join triangles pairwise, neighbours first: the order is that of the blocks."""
        level = 0
        while len(futures) > 1:
            level += 1
            # Joins come first, so that the triangles of few blocks are there at a time.
            futures = [
                self._submit(_join, *pair, key=(*key, level, k), priority=level)
                if len(pair) == 2
                else pair[0]
                for k, pair in enumerate(futures[k : k + 2] for k in range(0, len(futures), 2))
            ]
        return futures[0]

    def _places(self, indices: Int) -> dict[int, Int]:
        """Of structures within their blocks, block by block."""
        block_s = np.searchsorted(self._first_b, indices, side="right") - 1
        return {
            int(b): as_int(indices[block_s == b] - self._first_b[b]) for b in np.unique(block_s)
        }

    def _surely(self, work: Callable[[], Result]) -> Result:
        """Do it again where data were lost that existed on a lost worker alone."""
        self._n_calls += 1
        for _ in range(_ATTEMPTS):
            try:
                return work()
            except CancelledError as error:
                reason = error
                lost = [b for b, one in enumerate(self._blocks) if one.status in _GONE]
                for b, future in zip(lost, self._make(lost) if lost else [], strict=True):
                    self._blocks[b] = future
                self._n_calls += 1
        raise RuntimeError(
            f"workers were lost {_ATTEMPTS} times in the same stage, with the data sent to them. "
            "Look at their logs; too little memory is the usual reason: a worker needs room for "
            "some ten triangles of (inducing variables)^2 numbers."
        ) from reason


def _as_completed(futures: Sequence[Any]) -> Iterable[Any]:
    from distributed import as_completed

    return as_completed(futures)


def shares(rows_s: Int, largest: float) -> list[Int]:
    """Share structures out, in their order, to runs of about equal numbers of rows.

    Parameters
    ----------
    rows_s : Int
        Of each structure.
    largest : float
        Rows of a run, about.

    Returns
    -------
    list[Int]
        Places of the structures of each run.
    """
    run_s = ((np.cumsum(rows_s) - 0.5 * rows_s) / max(1.0, largest)).astype(np.intp)
    return np.split(np.arange(len(rows_s)), np.flatnonzero(np.diff(run_s)) + 1)


def alone(function: Callable[..., Result], *given: Any) -> Result:
    """Call a function in one thread: a task of a worker takes no more.

    Parameters
    ----------
    function : Callable[..., Result]
        The task.
    *given : Any
        Its arguments.

    Returns
    -------
    Result
        What it returns.
    """
    with one_thread():
        return function(*given)


def _on_block(
    function: Callable[..., Result], block: Sequence[Structure], shared: tuple[Any, ...]
) -> Result:
    return function(block, *shared, say_nothing)


def _pick(block: Sequence[Structure], place_s: Int) -> list[Structure]:
    return [block[s] for s in place_s]


class _ByLabel(NamedTuple):
    """Of each set of labels; a bare dict would travel with its keys as plain tuples."""

    found: dict[LabelSet, Any]


def _rows_of(
    blocks: Sequence[Sequence[Structure]],
    places: Sequence[Int],
    shared: tuple[Known, Sequence[Doubt], Whitening],
) -> _ByLabel:
    known, doubts, _ = shared
    structures = [s for of in zip(blocks, places, strict=True) for s in _pick(*of)]
    return _ByLabel(add_rows({}, reweighted(structures, doubts), known, say_nothing))


def _join(one: _ByLabel, other: _ByLabel) -> _ByLabel:
    return _ByLabel(join_sets(one.found, other.found))


def _sum_of(*several: _ByLabel) -> _ByLabel:
    return _ByLabel(sum_of_grams(*(one.found for one in several)))


def _grams_of(triangles: _ByLabel, shared: tuple[Known, Sequence[Doubt], Whitening]) -> _ByLabel:
    return _ByLabel(grams_of(triangles.found, shared[2]))
