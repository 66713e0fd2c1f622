"""What is left out to find noise levels and amplitudes: structures, and systems.

A system is a set of species that occur together. On systems that are known, almost any amplitude of
a process that tells species apart predicts well, and with ever more of their structures the noise
that suits them gets ever smaller; what is unknown is then predicted by nothing (NbMoTaW, quaternary
cells: 400 structures of unary and binary crystals 119 meV/angstrom, all 5282 180). So where systems
can be left out whole, errors on them count as much as those on structures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Int, as_int
from kernelpot.data_records import Outlined

__all__ = ["N_FOLDS", "Folds", "by_system", "folds_of", "systems_of"]

N_FOLDS = 5
"""Parts of the data that are left out in turn, at most."""
_LEAST_STRUCTURES = 6
"""A system of fewer structures is not left out."""
_LEAST_MIXED = 3
"""Systems of more than one species that there must be."""


class Folds(NamedTuple):
    """The structures in parts, of which folds are made."""

    parts: tuple[Int, ...]
    """Indices of structures, each in one part; one part is all where nothing is left out."""
    folds_p: tuple[tuple[int, ...], ...]
    """The folds that hold a part, one of each way of leaving out at most."""
    n_folds_w: tuple[int, ...]
    """Folds of each way: of structures, and then of systems; their numbers are consecutive."""

    @property
    def n_folds(self) -> int:
        """Of all ways."""
        return sum(self.n_folds_w)

    def members(self, fold: int) -> Int:
        """Structures of a fold.

        Parameters
        ----------
        fold : int
            Its number.

        Returns
        -------
        Int
            Indices, ascending.
        """
        mine = [part for part, folds in zip(self.parts, self.folds_p, strict=True) if fold in folds]
        return as_int(np.sort(np.concatenate(mine)))


def folds_of(
    structures: Sequence[Outlined], isolated: Iterable[int], random_state: int | None
) -> Folds:
    """Folds of structures, group by group, and of systems.

    Parameters
    ----------
    structures : Sequence[Outlined]
        The training structures.
    isolated : Iterable[int]
        Indices of isolated atoms: nothing else says what they do, so they stay in every fit.
    random_state : int | None
        Seed.

    Returns
    -------
    Folds
        One part and no folds where the structures are too few.
    """
    never = sorted(isolated)
    rest = np.array(sorted(set(range(len(structures))) - set(never)), dtype=np.intp)
    n_folds = min(N_FOLDS, len(rest))
    if n_folds < 3:
        return Folds((as_int(np.arange(len(structures))),), ((),), ())
    rng = np.random.default_rng(random_state)
    shuffled = rng.permutation(rest)
    groups = np.array([f"{structures[s].group}\n{structures[s].source}" for s in shuffled])
    # Dealt out one after the other, so that each fold has its share of every group and source.
    order = shuffled[np.argsort(groups, kind="stable")]
    fold_of: dict[int, tuple[int, ...]] = dict.fromkeys(never, ())
    fold_of |= {int(s): (k % n_folds,) for k, s in enumerate(order)}
    systems = _folds_of_systems(structures, rest, rng)
    for k, members in enumerate(systems):
        for s in members:
            fold_of[s] = (*fold_of[s], n_folds + k)
    parts: dict[tuple[int, ...], list[int]] = {}
    for s in sorted(fold_of):
        parts.setdefault(fold_of[s], []).append(s)
    ordered = sorted(parts)
    ways = (n_folds, len(systems)) if systems else (n_folds,)
    return Folds(tuple(as_int(parts[key]) for key in ordered), tuple(ordered), ways)


def _folds_of_systems(
    structures: Sequence[Outlined], rest: Int, rng: np.random.Generator
) -> list[list[int]]:
    """Structures of some systems each, whose species occur in others, too."""
    systems = systems_of(structures, rest)
    left_out = [systems[k] for k in rng.permutation(len(systems))]
    n_folds = min(N_FOLDS, len(left_out))
    folds = []
    for k in range(n_folds):
        chosen = {s for members in left_out[k::n_folds] for s in members}
        known = {z for s in rest if s not in chosen for z in _species(structures[s])}
        kept = [s for s in sorted(chosen) if known.issuperset(_species(structures[s]))]
        if kept:
            folds.append(kept)
    return folds


def systems_of(structures: Sequence[Outlined], chosen: Sequence[int] | Int) -> list[list[int]]:
    """Systems that can be left out.

    Parameters
    ----------
    structures : Sequence[Outlined]
        The training structures.
    chosen : Sequence[int] | Int
        Those that count.

    Returns
    -------
    list[list[int]]
        Structures of each of the systems that are not too small; none where there are fewer than
        three species, or than three such systems of several.
    """
    systems = by_system(structures, chosen)
    large = {k: members for k, members in systems.items() if len(members) >= _LEAST_STRUCTURES}
    n_mixed = sum(len(system) > 1 for system in large)
    if len({z for system in systems for z in system}) < 3 or n_mixed < _LEAST_MIXED:
        return []
    return list(large.values())


def by_system(
    structures: Sequence[Outlined], chosen: Sequence[int] | Int
) -> dict[tuple[int, ...], list[int]]:
    """Structures of each system.

    Parameters
    ----------
    structures : Sequence[Outlined]
        The training structures.
    chosen : Sequence[int] | Int
        Those that count.

    Returns
    -------
    dict[tuple[int, ...], list[int]]
        Their indices, by atomic numbers.
    """
    systems: dict[tuple[int, ...], list[int]] = {}
    for s in chosen:
        systems.setdefault(_species(structures[s]), []).append(int(s))
    return systems


def _species(structure: Outlined) -> tuple[int, ...]:
    return tuple(np.unique(structure.numbers_n).tolist())
