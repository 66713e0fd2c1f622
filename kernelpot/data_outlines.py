"""Outlines: what a fit must know of all structures at once, and the hash of what is fitted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from kernelpot.conventions import Int
from kernelpot.data_records import Outline, Structure

__all__ = ["data_hash", "joined_hash", "outlines_of", "structure_hash"]


def data_hash(structures: Sequence[Structure]) -> str:
    """SHA-256 of what is fitted: elements, positions, cells and labels, in this order.

    Parameters
    ----------
    structures : Sequence[Structure]
        Names, groups, sources and noise do not count.

    Returns
    -------
    str
        64 hexadecimal digits, the same on every platform.
    """
    return joined_hash(structure_hash(s) for s in structures)


def structure_hash(structure: Structure) -> str:
    """SHA-256 of one structure: elements, positions, cell and labels.

    Parameters
    ----------
    structure : Structure
        Name, group, source and noise do not count.

    Returns
    -------
    str
        64 hexadecimal digits, the same on every platform.
    """
    s, digest = structure, hashlib.sha256()
    digest.update(np.array([s.n_atoms, *s.numbers_n, *s.pbc_c], dtype="<i8").tobytes())
    for values in (s.positions_nc, s.cell_cc, [s.energy], s.forces_nc, s.stress_v):
        values = np.asarray(values, dtype="<f8") + 0.0  # no negative zero
        digest.update(np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes())
    return digest.hexdigest()


def joined_hash(hashes: Iterable[str]) -> str:
    """SHA-256 of structures in their order, from those of each: no process needs to see all.

    Parameters
    ----------
    hashes : Iterable[str]
        By `structure_hash`.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for one in hashes:
        digest.update(bytes.fromhex(one))
    return digest.hexdigest()


def outlines_of(structures: Iterable[Structure]) -> list[Outline]:
    """What a fit must know of all structures at once.

    Parameters
    ----------
    structures : Iterable[Structure]
        With their labels.

    Returns
    -------
    list[Outline]
        In the same order; those of the same elements share one array.
    """
    shared: dict[bytes, Int] = {}
    outlines = []
    for s in structures:
        numbers_n = shared.setdefault(s.numbers_n.tobytes(), s.numbers_n)
        geometry = (s.positions_nc, s.cell_cc, s.pbc_c) if s.n_atoms == 1 else (None, None, None)
        outlines.append(
            Outline(
                numbers_n, *geometry, s.energy, s.sigma_energy, s.group, s.source, s.name,
                structure_hash(s),
            )
        )  # fmt: skip
    return outlines
