"""A fit on a Dask cluster: how structures come to the workers.

Blocks of structures depend on the data and the size of the model alone, not on the workers.
Structures in files are read where they are needed, each block its own frames; what is in the
memory of this process alone is sent to the workers directly, once.
"""

from __future__ import annotations

import functools
import operator
import uuid
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.conventions import Int, Progress, as_int
from kernelpot.data import Structure, block_of_structures, require_labels
from kernelpot.data_files import FrameIndex, find_frames, read_frames, read_images
from kernelpot.data_labels import Seen
from kernelpot.data_outlines import outlines_of
from kernelpot.data_records import LabelKeys, Noise, Outline
from kernelpot.options import Options
from kernelpot.workers import LEAST_SHARES, Workers, alone, shares

__all__ = ["Files", "blocks_of", "connect", "paths_of", "read_by_workers", "scattered"]

Files = str | PathLike[str] | Sequence[str | PathLike[str]]
"""Paths of files of structures, each with frames where not all are meant: "train.xyz@::10"."""

_ROWS_PER_COLUMN = 10
"""Rows of a block for each column of a triangle: as many as are reduced at a time in each of five
parts."""
_READ_AGAIN = 2
"""How often a file that could not be read is tried again: file systems of clusters have moods."""


def connect(address: str) -> Any:
    """Connect with the scheduler of a cluster.

    Parameters
    ----------
    address : str
        As in "tcp://10.0.0.1:8786".

    Returns
    -------
    Any
        A ``distributed.Client``.

    Raises
    ------
    ImportError
        If Dask is not installed.
    OSError
        If there is no scheduler.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            "fits on a Dask cluster need the library distributed, here and on the workers: "
            "pip install 'kernelpot[dask]'"
        ) from error
    try:
        return Client(address)
    except OSError as error:
        raise OSError(
            f"no Dask scheduler answers at {address}: start one with `dask scheduler`, which "
            f"prints its address, and workers with `dask worker ADDRESS --nthreads 1` ({error})"
        ) from error


def paths_of(images: Iterable[Atoms] | Files) -> list[str]:
    """Absolute paths, where files are given in the place of structures.

    Parameters
    ----------
    images : Iterable[Atoms] | Files
        What a fit is given.

    Returns
    -------
    list[str]
        Empty where these are structures.
    """
    if isinstance(images, (str, PathLike)):
        images = [images]
    if not isinstance(images, (list, tuple)):
        return []
    if not all(isinstance(one, (str, PathLike)) for one in images):
        return []
    # Workers may run in another folder.
    return [str(Path(fspath(one)).absolute()) for one in images]


def blocks_of(n_atoms_s: Int, options: Options) -> list[Int]:
    """Share out structures to blocks of about equal numbers of rows.

    Parameters
    ----------
    n_atoms_s : Int
        Atoms of each structure.
    options : Options
        Settings, which say how many inducing variables there will be at most.

    Returns
    -------
    list[Int]
        Places of the structures of each block; independent of the number of workers.
    """
    n_columns = 0
    for one in options.components:
        given = one.n_environments
        n_columns += (sum(given.values()) if isinstance(given, dict) else given) * (
            1 + one.n_tangents
        )
    rows_s = 3 * np.asarray(n_atoms_s) + 7
    return shares(rows_s, min(_ROWS_PER_COLUMN * n_columns, rows_s.sum() / LEAST_SHARES))


def scattered(client: Any, structures: Sequence[Structure], options: Options) -> Workers:
    """Structures of this process, sent to the workers in blocks.

    Parameters
    ----------
    client : Any
        A ``distributed.Client``.
    structures : Sequence[Structure]
        Checked.
    options : Options
        Settings.

    Returns
    -------
    Workers
        What is lost with a worker is sent again.
    """
    places = blocks_of(as_int([s.n_atoms for s in structures]), options)
    blocks = [[structures[s] for s in mine] for mine in places]

    def send(wanted: Sequence[int]) -> list[Any]:
        return client.scatter([blocks[b] for b in wanted], direct=True, hash=False)

    return Workers(client, send, [len(mine) for mine in places], outlines_of(structures))


def read_by_workers(
    client: Any,
    paths: Sequence[str],
    keys: LabelKeys,
    noise: Noise,
    options: Options,
    tell: Progress,
) -> Workers:
    """Structures that the workers read from files; only outlines come here.

    Parameters
    ----------
    client : Any
        A ``distributed.Client``.
    paths : Sequence[str]
        As every worker sees them.
    keys : LabelKeys
        Where labels stand that are no calculator results.
    noise : Noise
        Standard deviations of the labels.
    options : Options
        Settings.
    tell : Progress
        Told of the stage "reading".

    Returns
    -------
    Workers
        What a lost worker had read is read again.

    Raises
    ------
    DataError
        If a structure or a label cannot be used, or there are no labels.
    """
    run = uuid.uuid4().hex

    def submit(name: str, k: int, function: Any, *given: Any) -> Any:
        key = (f"{name}-{run}", k)
        return client.submit(alone, function, *given, key=key, retries=_READ_AGAIN)

    indexed = client.gather([submit("index", f, find_frames, p) for f, p in enumerate(paths)])
    # Files that are no plain XYZ files are read as a whole by one worker, which gives to others.
    whole = {
        f: submit("whole", f, read_images, one.path)
        for f, one in enumerate(indexed)
        if one.bytes_sb is None
    }
    file_s = np.repeat(np.arange(len(indexed)), [len(one.n_atoms_s) for one in indexed])
    place_s = np.concatenate([np.arange(len(one.n_atoms_s)) for one in indexed])
    places = blocks_of(np.concatenate([one.n_atoms_s for one in indexed]), options)
    both = []
    for b, mine in enumerate(places):
        parts = [
            (whole[f], place_b) if f in whole else (indexed[f].some(place_b), None)
            for f in np.unique(file_s[mine])
            for place_b in [place_s[mine][file_s[mine] == f]]
        ]
        both.append(submit("read", b, _read_block, keys, noise, parts))
    blocks = [submit("block", b, operator.itemgetter(0), one) for b, one in enumerate(both)]
    seen = [submit("seen", b, operator.itemgetter(1), one) for b, one in enumerate(both)]
    del both, whole

    sizes = [len(mine) for mine in places]
    workers = Workers(client, lambda wanted: [blocks[b] for b in wanted], sizes, [])
    found = workers.each("reading", _outline_block, tell=tell)
    require_labels(
        functools.reduce(operator.or_, client.gather(seen)),
        keys,
        any(block.any_labels for block in found),
    )
    shared: dict[bytes, Int] = {}
    workers.outlines = [
        one._replace(numbers_n=shared.setdefault(one.numbers_n.tobytes(), one.numbers_n))
        for block in found
        for one in block.outlines
    ]
    return workers


def _read_block(
    keys: LabelKeys, noise: Noise, parts: Sequence[tuple[list[Atoms] | FrameIndex, Int | None]]
) -> tuple[list[Structure], Seen]:
    images: list[Atoms] = []
    for source, place_s in parts:
        images += read_frames(source) if place_s is None else [source[s] for s in place_s]
    return block_of_structures(images, keys, noise)


class _Outlines(NamedTuple):
    outlines: list[Outline]
    any_labels: bool


def _outline_block(structures: Sequence[Structure], tell: Progress) -> _Outlines:
    return _Outlines(outlines_of(structures), any(s.has_labels for s in structures))
