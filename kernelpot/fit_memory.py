"""What memory a fit takes, stage by stage, counted array by array from shapes alone.

A sparse fit holds triangles of m^2 numbers (m inducing variables), whatever the number of labels; a
full one half of the covariance of all labels. Beside these stand things that can be done in smaller
pieces (`memory.Room`); every thread has pieces of its own.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from kernelpot._machine import n_threads
from kernelpot.fit_shape import Shape
from kernelpot.full_basis import memory_needed
from kernelpot.gp.covariances import BLOCK_ROWS as PRIOR_ROWS
from kernelpot.gp.householder import PANEL
from kernelpot.gp.packed import memory_of
from kernelpot.gp.whitening import BLOCK_ROWS
from kernelpot.hyperparameters import COARSE
from kernelpot.jackknife import AT_ONCE, MOST_SCORES
from kernelpot.label_rows import WAITING_ROWS
from kernelpot.memory import Room
from kernelpot.selection import BATCH, candidates_of_each

__all__ = ["peak", "stages"]


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
    n_described = shape.n_largest * min(n_threads(), BATCH, shape.n_structures)
    for one in shape.processes:
        if one.linear:
            continue
        each = candidates_of_each(room, one.n_features, len(one.atoms_z))
        counts = [min(n, each) for n in one.sampled_z]
        largest = max(counts)
        copies = (len(counts) > 1) + 1.0  # of a species; of a group, or without isolated atoms
        numbers = (sum(counts) + copies * largest) * one.n_features
        if selector in ("variance", "joint"):
            numbers += largest * max(one.environments_b)
        elif selector in ("cur", "leverage"):
            numbers += 2.0 * largest * one.n_features + 4.0 * one.n_features**2
        needed = 8.0 * (numbers + n_described * (sum(one.widths) + one.widths[0]))
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
    some = 12.0 * max(blocks, default=0.0) * PRIOR_ROWS * n_threads()
    whitening = 8.0 * (factors + max((m**2 for m in blocks), default=0.0) + some)
    totals = sum(min(n, w) * w for n in n_labels)
    grams = (shape.n_folds + 1.0) * len(n_labels) * k**2
    reducers = part = longer = joined = 0.0
    for n in n_labels:
        mine = math.ceil(n * shape.largest_part)
        reducers += (min(room.n_buffer, mine) + min(mine, w)) * w
        part += min(mine, w) * w
        # Until it is square a trapezoid is copied when it gets longer, and without empty rows.
        longer = max(longer, min(mine, w) * w)
        joined = max(joined, 2.0 * min(n, w) * w if n - mine < w else 0.0)
        # Whitened rows, and those of a block on the way.
        joined = max(joined, min(mine, w) * (k + 1.0) + 2.0 * BLOCK_ROWS * n_threads() * w + k**2)
    # Rows that wait, are on their way or just taken, and those of structures of which labels are
    # missing; of each thread a block.
    n_side, largest = min(n_threads(), shape.n_batch), 3.0 * shape.n_largest
    waiting = min(float(sum(n_labels)), WAITING_ROWS + 2.0 * largest) * w + n_side * largest * w
    block = n_side * _block(shape, room, max(blocks, default=0.0)) / 8.0
    rows = totals + grams + max(reducers + longer + waiting + block, part + joined)
    # Every thread factorises what the other folds leave.
    at_once = 2.0 + 3.0 * min(n_threads(), shape.n_folds)
    search = totals + grams + (at_once if shape.n_folds else 2.0 * len(n_labels) + 5.0) * k**2
    widest = max([w - 1.0, *(min(n, w) for n in n_labels)])
    solving = w**2 + widest * w + PANEL * w + 2.0 * BLOCK_ROWS * n_threads() * w
    one_fit = kept + 8.0 * factors
    scores = 3.0 * w * min(shape.n_structures, MOST_SCORES + AT_ONCE)
    return {
        "whitening": kept + whitening,
        "rows": one_fit + 8.0 * (rows + k**2),
        "hyperparameters": one_fit + 8.0 * (search + k**2),
        "posterior": one_fit + 8.0 * (totals + solving),
        "training errors": one_fit + 8.0 * (totals + w**2 + scores) + 3.0 * _inducing(shape),
    }


def _full_stages(shape: Shape, room: Room) -> dict[str, float]:
    n = float(sum(shape.n_rows.values()))
    some = 8.0 * 12.0 * shape.n_largest * n  # rows of four structures
    return {
        "environments": shape.jacobians + 24.0 * shape.most_pairs * sum(shape.processes[0].widths),
        "covariance": max(
            # Every thread joins those that it has computed, and some wait to be written.
            memory_of(n) + shape.jacobians + (2.0 * n_threads() + 1.0) * some,
            memory_needed(n, shape.jacobians) + 2.0 * some,  # or as much for collapsed weights
        ),
        "training errors": shape.jacobians + 4.0 * _inducing(shape),
    }
