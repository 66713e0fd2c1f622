"""Which environments become inducing variables, and with how many tangents."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from kernelpot._machine import side_by_side
from kernelpot.conventions import Float, Int, Progress, System, as_int
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.data_records import Outlined
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear, n_blocks
from kernelpot.gp.greedy import choose_jointly
from kernelpot.gp.inducing import (
    Inducing,
    Selector,
    join,
    merge,
    select,
    select_variance,
    singular_tangents,
    tangents,
)
from kernelpot.memory import Room
from kernelpot.neighbours import find_pairs

__all__ = [
    "BATCH",
    "candidates_of_each",
    "check_species",
    "choose_inducing",
    "choose_sample",
    "quotas_of",
    "system_of",
]

log = logging.getLogger("kernelpot")

_DEFAULT = Room()

BATCH = 32
"""Structures or environments between two words of progress."""

_POOL = 5
"""Environments whose tangents are computed for each that is chosen together with them."""

_SPARE_TANGENTS = 2
"""Tangents from which each of those chosen by conditional variance is chosen."""

_LEADING_TANGENTS = 4
"""Tangents that count in the comparison of environments."""


def system_of(descriptor: BoundDescriptor, structure: Structure) -> System:
    """What the descriptor sees of a structure.

    Parameters
    ----------
    descriptor : BoundDescriptor
        Gives the cutoff and the list of species.
    structure : Structure
        A structure of known species.

    Returns
    -------
    System
        Species indices and neighbour pairs.

    Raises
    ------
    DataError
        If a species is not among the descriptor's.
    """
    check_species(descriptor, structure)
    pairs = find_pairs(
        structure.positions_nc, structure.cell_cc, structure.pbc_c, descriptor.cutoff
    )
    return System(as_int(np.searchsorted(descriptor.species, structure.numbers_n)), pairs)


def check_species(descriptor: BoundDescriptor, structure: Structure) -> None:
    """Refuse a structure with a species that a descriptor does not know.

    Parameters
    ----------
    descriptor : BoundDescriptor
        Gives the list of species.
    structure : Structure
        Any.

    Raises
    ------
    DataError
        If a species is not among the descriptor's.
    """
    unknown = set(structure.numbers_n.tolist()) - set(descriptor.species)
    if unknown:
        raise DataError(
            f"{structure.name} contains the atomic numbers {sorted(unknown)}, which the model does "
            f"not know (it knows {list(descriptor.species)}). Fit anew with all structures."
        )


def choose_sample(
    structures: Sequence[Outlined],
    isolated: Collection[int],
    n_sample: int,
    random_state: int | None,
) -> Int:
    """Structures among which features and inducing variables are chosen.

    Each group gets a share in proportion to the square root of its structures. Isolated atoms,
    and at least one structure of each species, are always among them.

    Parameters
    ----------
    structures : Sequence[Outlined]
        The training structures.
    isolated : Collection[int]
        Indices of isolated atoms.
    n_sample : int
        How many; all where there are no more.
    random_state : int | None
        Seed.

    Returns
    -------
    Int
        Indices, ascending.
    """
    if len(structures) <= n_sample:
        return as_int(np.arange(len(structures)))
    rng = np.random.default_rng(random_state)
    group_s = np.unique([s.group for s in structures], return_inverse=True)[1]
    shares = _shares(n_sample, np.bincount(group_s))
    members = (np.flatnonzero(group_s == g) for g in range(len(shares)))
    chosen = {*isolated}
    for mine, n in zip(members, shares, strict=True):
        chosen.update(rng.choice(mine, n, replace=False).tolist())
    found = {z for s in chosen for z in structures[s].numbers_n.tolist()}
    for s, structure in enumerate(structures):
        if not found.issuperset(structure.numbers_n.tolist()):
            found.update(structure.numbers_n.tolist())
            chosen.add(s)
    return as_int(sorted(chosen))


def choose_inducing(
    structures: Sequence[Structure],
    isolated: set[int],
    bound: BoundDescriptor,
    *,
    n_environments: int | dict[str, int],
    n_tangents: int,
    tangent_threshold: float,
    selector: str | Selector,
    random_state: int | None,
    tell: Progress,
    zeta: int = 4,
    balance_groups: bool = False,
    room: Room = _DEFAULT,
) -> tuple[Inducing, ...]:
    """Environments by the selector, species by species, and their tangents.

    An isolated atom sees itself, so its environment has a local energy, which must be learned to
    be zero: it is always among the chosen. Of a linear descriptor nothing is chosen: its features
    themselves are the inducing variables.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    isolated : set[int]
        Indices of those that are isolated atoms.
    bound : BoundDescriptor
        Gives features and Jacobians.
    n_environments : int | dict[str, int]
        In all, or by chemical symbol.
    n_tangents : int
        At most this many for each environment.
    tangent_threshold : float
        Least singular value, as a fraction of the environment's largest. With the selector "joint"
        also the least conditional standard deviation of a tangent, as a fraction of the largest
        prior one of its environment.
    selector : str | Selector
        Name or function. "joint" chooses environments and tangents together.
    random_state : int | None
        Seed.
    tell : Progress
        Told of the stages "features" and "tangents".
    zeta : int
        Exponent of the kernel, of which "variance" and "joint" make use.
    balance_groups : bool
        Whether each group of structures gets a share of each species' environments, in proportion
        to the square root of its atoms, so that small groups are represented.
    room : Room
        Bounds the features of the candidates.

    Returns
    -------
    tuple[Inducing, ...]
        One record for each of the descriptor's species, or one for all where they share it.

    Raises
    ------
    ValueError
        If ``n_environments`` names other species than the data.
    """
    if is_linear(bound):
        every = Inducing(np.eye(bound.n_features), as_int(np.arange(bound.n_features + 1)))
        return (every,) * n_blocks(bound)
    rng = np.random.default_rng(random_state)
    place_n = np.array([(s, n) for s, st in enumerate(structures) for n in range(st.n_atoms)])
    numbers_n = np.concatenate([s.numbers_n for s in structures])
    candidates_n = _candidates(numbers_n, bound, room, rng)

    x_nq = np.empty((len(candidates_n), bound.n_features))

    def describe(s: int) -> None:
        mine = np.flatnonzero(place_n[candidates_n, 0] == s)
        if len(mine):
            centres_b = as_int(place_n[candidates_n[mine], 1])
            x_nq[mine] = bound.features(system_of(bound, structures[s]), centres_b)[0]

    for first in range(0, len(structures), BATCH):
        batch = range(first, min(first + BATCH, len(structures)))
        side_by_side(describe, batch)
        tell("features", batch.stop, len(structures))

    counts = [int(np.count_nonzero(numbers_n == z)) for z in bound.species]
    quotas = quotas_of(n_environments, bound.species, counts)
    names = [s.group if balance_groups else "" for s in structures]
    group_s = np.unique(names, return_inverse=True)[1]
    if selector == "variance":
        selector = functools.partial(select_variance, zeta=zeta)

    def jacobian(n: int) -> Float:
        s, centre = place_n[candidates_n[n]]
        return bound.jacobian(system_of(bound, structures[s]), as_int([centre]))[1]

    chosen = []
    for z, number in enumerate(bound.species):
        mine = np.flatnonzero(numbers_n[candidates_n] == number)
        structure_n = place_n[candidates_n[mine], 0]
        alone = [n for n, s in enumerate(structure_n) if s in isolated][:1]
        x_mine = _rows_of(x_nq, mine)
        candidates = _Candidates(mine, x_mine, group_s[structure_n], as_int(alone))
        told = functools.partial(_tell_some, tell, sum(quotas[:z]), sum(quotas), quotas[z])
        if selector == "joint" and n_tangents:
            group = _choose_jointly(
                candidates, quotas[z], jacobian, n_tangents, tangent_threshold, zeta, room, rng,
                told,
            )  # fmt: skip
        else:
            picked = _choose(candidates, quotas[z], selector, rng)

            def tangents_of(n: int, mine: Int = mine) -> Float:
                if not n_tangents:
                    return np.zeros((0, bound.n_features))
                return tangents(jacobian(mine[n]), n_tangents, tangent_threshold)

            kept: list[Float] = []
            for first in range(0, len(picked), BATCH):
                kept += side_by_side(tangents_of, picked[first : first + BATCH])
                told(len(kept), len(picked))
            group = join(candidates.x_nq[picked], kept)
        chosen.append(group)
    return tuple(chosen) if n_blocks(bound) == len(chosen) else (merge(chosen),)


class _Candidates(NamedTuple):
    """Candidates of one species."""

    index_n: Int  # among those of all species
    x_nq: Float
    group_n: Int
    alone: Int  # an isolated atom, or none: chosen before all others

    @property
    def rest(self) -> Int:
        """All but the isolated atom."""
        return np.setdiff1d(np.arange(len(self.x_nq)), self.alone)

    def shares(self, total: int) -> Int:
        """How many of the rest to take from each group."""
        n_groups = int(self.group_n.max()) + 1
        return _shares(total, np.bincount(self.group_n[self.rest], minlength=n_groups))


def _choose(
    candidates: _Candidates, quota: int, selector: str | Selector, rng: np.random.Generator
) -> Int:
    """Environments by a selector that knows nothing of tangents, group by group."""
    rest = candidates.rest
    picked = [candidates.alone]
    for g, share in enumerate(candidates.shares(quota - len(candidates.alone))):
        mine = rest[candidates.group_n[rest] == g]
        picked.append(mine[select(_rows_of(candidates.x_nq, mine), int(share), selector, rng)])
    return as_int(np.concatenate(picked))


def _choose_jointly(
    candidates: _Candidates,
    quota: int,
    jacobian: Callable[[int], Float],
    n_tangents: int,
    threshold: float,
    zeta: int,
    room: Room,
    rng: np.random.Generator,
    told: Callable[[int, int], None],
) -> Inducing:
    """Environments with their tangents, among a pool of farthest points."""
    n_spare = _SPARE_TANGENTS * n_tangents
    n_features, n_most = candidates.x_nq.shape[1], quota * (1 + n_tangents)
    bytes_each = 8 * ((1 + n_spare) * n_features + (1 + _LEADING_TANGENTS) * n_most)
    n_pool = max(quota, min(_POOL * quota, int(room.candidates // bytes_each)))
    pool = _choose(candidates, n_pool, "fps", rng)
    weighted: list[Float] = []
    for k, n in enumerate(pool):
        J_pcq = jacobian(candidates.index_n[n])
        singular_t, tau_tq = singular_tangents(J_pcq, n_spare, threshold)
        weighted.append(singular_t[:, None] * tau_tq)
        told(k + 1, len(pool))
    n_alone = len(candidates.alone)
    quota_g = candidates.shares(quota - n_alone)
    quota_g[candidates.group_n[candidates.alone]] += 1
    picked, kept = choose_jointly(
        join(candidates.x_nq[pool], weighted),
        n_tangents=n_tangents,
        n_lead=_LEADING_TANGENTS,
        threshold=threshold,
        zeta=zeta,
        group_e=candidates.group_n[pool],
        quota_g=quota_g,
        n_first=n_alone,
    )
    return join(candidates.x_nq[pool[picked]], kept)


def _tell_some(tell: Progress, before: int, total: int, share: int, done: int, of: int) -> None:
    """Progress of a part (``share`` of ``total``, after ``before``) as that of the whole stage."""
    tell("tangents", before + done * share // of, total)


def candidates_of_each(room: Room, n_features: int, n_species: int) -> int:
    """How many environments of a species there is room for, among which some are chosen.

    Parameters
    ----------
    room : Room
        What their features may take.
    n_features : int
        Of each.
    n_species : int
        That share the room equally.

    Returns
    -------
    int
        At least one.
    """
    return max(1, int(room.candidates // (8 * n_features * n_species)))


def _candidates(
    numbers_n: Int, bound: BoundDescriptor, room: Room, rng: np.random.Generator
) -> Int:
    """Atoms among which environments are chosen: all, or an equal random share per species."""
    share = candidates_of_each(room, bound.n_features, len(bound.species))
    chosen = []
    for number in bound.species:
        mine = np.flatnonzero(numbers_n == number)
        if len(mine) > share:
            log.info("%d of %d atoms of one species are candidates", share, len(mine))
            mine = rng.choice(mine, share, replace=False)
        chosen.append(mine)
    return as_int(np.sort(np.concatenate(chosen)))


def _rows_of(x_nq: Float, index_n: Int) -> Float:
    """Rows of distinct indices; the array itself where these are all in their order."""
    whole = len(index_n) == len(x_nq) and bool(np.all(np.diff(index_n) == 1))
    return x_nq if whole else x_nq[index_n]


def quotas_of(
    n_environments: int | dict[str, int], species: tuple[int, ...], counts: Sequence[int]
) -> list[int]:
    """Environments per species: as named, or in proportion to the square root of its atoms.

    Parameters
    ----------
    n_environments : int | dict[str, int]
        In all, or by chemical symbol.
    species : tuple[int, ...]
        Atomic numbers.
    counts : Sequence[int]
        Atoms of each.

    Returns
    -------
    list[int]
        Of each species, at most as many as it has atoms.

    Raises
    ------
    ValueError
        If ``n_environments`` names other species than the data.
    """
    if isinstance(n_environments, dict):
        names = [chemical_symbols[z] for z in species]
        missing = sorted(set(names) ^ set(n_environments))
        if missing:
            raise ValueError(
                f"n_environments names {sorted(n_environments)}, the data contain {names}; "
                f"every species needs one entry (check {', '.join(missing)})"
            )
        return [min(int(n_environments[a]), c) for a, c in zip(names, counts, strict=True)]
    share = np.sqrt(counts)
    wanted = np.maximum(1, np.round(n_environments * share / share.sum())).astype(int)
    return [min(int(w), c) for w, c in zip(wanted, counts, strict=True)]


def _shares(total: int, counts_g: Int) -> Int:
    """Share out a number in proportion to the square root of counts, none beyond its count.

    Adams' method: one for everybody first, as far as it goes, then the next always to the largest
    sqrt(count) / (number so far). The shares add up to the total, or to all there are.
    """
    share_g = np.zeros(len(counts_g), dtype=np.intp)
    for _ in range(min(total, int(np.sum(counts_g)))):
        claim_g = np.sqrt(counts_g) / np.maximum(share_g, 1e-9)
        claim_g[share_g >= counts_g] = -1.0
        share_g[np.argmax(claim_g)] += 1
    return share_g
