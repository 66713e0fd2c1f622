"""Which environments become inducing variables, and with how many tangents."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, Int, Progress, System, as_int
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear
from kernelpot.gp.inducing import Inducing, Selector, join, select, tangents
from kernelpot.neighbours import find_pairs

__all__ = ["choose_inducing", "system_of"]

log = logging.getLogger("kernelpot")

_CANDIDATE_BYTES = 2**29
"""Bound on the features of the candidates from which environments are chosen."""


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
    unknown = set(structure.numbers_n.tolist()) - set(descriptor.species)
    if unknown:
        raise DataError(
            f"{structure.name} contains the atomic numbers {sorted(unknown)}, which the model does "
            f"not know (it knows {list(descriptor.species)}). Fit anew with all structures."
        )
    pairs = find_pairs(
        structure.positions_nc, structure.cell_cc, structure.pbc_c, descriptor.cutoff
    )
    return System(as_int(np.searchsorted(descriptor.species, structure.numbers_n)), pairs)


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
        Least singular value, as a fraction of the environment's largest.
    selector : str | Selector
        Name or function.
    random_state : int | None
        Seed.
    tell : Progress
        Told of the stages "features" and "tangents".

    Returns
    -------
    tuple[Inducing, ...]
        One record for each of the descriptor's species.

    Raises
    ------
    ValueError
        If ``n_environments`` names other species than the data.
    """
    if is_linear(bound):
        every = Inducing(np.eye(bound.n_features), as_int(np.arange(bound.n_features + 1)))
        return (every,) * len(bound.species)
    rng = np.random.default_rng(random_state)
    place_n = np.array([(s, n) for s, st in enumerate(structures) for n in range(st.n_atoms)])
    numbers_n = np.concatenate([s.numbers_n for s in structures])
    candidates_n = _candidates(numbers_n, bound, rng)

    x_nq = np.empty((len(candidates_n), bound.n_features))
    for s, structure in enumerate(structures):
        mine = np.flatnonzero(place_n[candidates_n, 0] == s)
        if len(mine):
            centres_b = as_int(place_n[candidates_n[mine], 1])
            x_nq[mine] = bound.features(system_of(bound, structure), centres_b)[0]
        tell("features", s + 1, len(structures))

    counts = [int(np.count_nonzero(numbers_n == z)) for z in bound.species]
    quotas = _quotas(n_environments, bound.species, counts)
    groups = []
    for z, number in enumerate(bound.species):
        mine = np.flatnonzero(numbers_n[candidates_n] == number)
        alone = [n for n in mine if place_n[candidates_n[n], 0] in isolated][:1]
        rest = np.setdiff1d(mine, alone)
        picked = np.concatenate(
            [alone, rest[select(x_nq[rest], quotas[z] - len(alone), selector, rng)]]
        ).astype(np.intp)
        kept: list[Float] = []
        for k, n in enumerate(picked):
            s, centre = place_n[candidates_n[n]]
            if n_tangents:
                system = system_of(bound, structures[s])
                _, J_pcq = bound.jacobian(system, as_int([centre]))
                kept.append(tangents(J_pcq, n_tangents, tangent_threshold))
            else:
                kept.append(np.zeros((0, bound.n_features)))
            tell("tangents", sum(quotas[:z]) + k + 1, sum(quotas))
        groups.append(join(x_nq[picked], kept))
    return tuple(groups)


def _candidates(numbers_n: Int, bound: BoundDescriptor, rng: np.random.Generator) -> Int:
    """Atoms among which environments are chosen: all, or an equal random share per species."""
    share = max(1, _CANDIDATE_BYTES // (8 * bound.n_features * len(bound.species)))
    chosen = []
    for number in bound.species:
        mine = np.flatnonzero(numbers_n == number)
        if len(mine) > share:
            log.info("%d of %d atoms of one species are candidates", share, len(mine))
            mine = rng.choice(mine, share, replace=False)
        chosen.append(mine)
    return as_int(np.sort(np.concatenate(chosen)))


def _quotas(
    n_environments: int | dict[str, int], species: tuple[int, ...], counts: Sequence[int]
) -> list[int]:
    """Environments per species: as named, or in proportion to the square root of its atoms."""
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
