"""Labels in doubt: those further from what a model expects than the others of their kind are.

How far is far is measured by what the model expects (noise, and what the data leave open), as far
as the residuals of all structures bear it out, and by the residuals of the same group: a group
that is hard to learn is not doubted as a whole. Both are taken from quantiles, which a few wrong
labels do not move.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Float, Int
from kernelpot.data import Structure
from kernelpot.data_outlines import structure_hash
from kernelpot.data_records import Outline

__all__ = [
    "Doubt",
    "LabelErrors",
    "Residuals",
    "doubted",
    "join_residuals",
    "log_doubts",
    "residuals_of",
    "reweighted",
    "reweighted_outlines",
]

log = logging.getLogger("kernelpot")

_QUANTILE = 0.8
"""Of standardised residuals, by which expectations are scaled: a fifth of them may be wrong."""
_OF_NORMAL = {"energy": 1.2816, "forces": 1.0, "stress": 1.0}
"""What that quantile of |x| is, with x one normal number, or the root mean square of many."""
_MEDIAN_OF_NORMAL = {"energy": 0.6745, "forces": 1.0, "stress": 1.0}
_GROUP = 4
"""Fewest labels of a group with a spread of their own."""
_DEGREES = 4.0
"""Degrees of freedom of the Student distribution that doubted labels are taken from."""


class Doubt(NamedTuple):
    """Labels of one kind of one structure that lie far from what the others say."""

    name: str  # of the structure, with file and frame where it has them
    kind: str
    residual: float  # label less prediction: eV/atom; root mean square: eV/angstrom, eV/angstrom^3
    sigmas: float  # the same in units of what is usual
    weight: float  # with which they count in the fit
    atom: int | None = None  # where the forces on one atom are worse than all together
    key: str = ""  # SHA-256 of the structure and its labels


class LabelErrors(NamedTuple):
    """Prediction less label, and the standard deviation to be expected of it, noise included.

    NaN where there is no label.
    """

    energy: Float  # (n_structures,), eV
    energy_std: Float
    forces: list[Float]  # one (n_atoms, 3) per structure, eV/angstrom
    forces_std: list[Float]
    stress: Float  # (n_structures, 6), eV/angstrom^3
    stress_std: Float


class Residuals(NamedTuple):
    """One number for each structure: how far its labels of a kind are off; NaN without labels."""

    kind: str
    value_s: Float
    expected_s: Float  # its standard deviation
    atom_s: Int  # where a single one is meant, else -1


def residuals_of(structures: Sequence[Structure], errors: LabelErrors) -> list[Residuals]:
    """How far the labels of structures are off: of energies, forces, forces on an atom, stress.

    Parameters
    ----------
    structures : Sequence[Structure]
        With their labels.
    errors : LabelErrors
        Of predictions for them.

    Returns
    -------
    list[Residuals]
        Always of these four, in this order.
    """
    n_atoms_s = np.array([s.n_atoms for s in structures], dtype=float)
    nobody_s = np.full(len(structures), -1, dtype=np.intp)
    value_s, expected_s = -errors.energy / n_atoms_s, errors.energy_std / n_atoms_s
    energies = Residuals("energy", value_s, expected_s, nobody_s)
    whole, worst = np.full((2, len(structures), 2), np.nan)
    atom_s = nobody_s.copy()
    for s, (error_nc, std_nc) in enumerate(zip(errors.forces, errors.forces_std, strict=True)):
        whole[s] = _rms(error_nc.reshape(1, -1), std_nc.reshape(1, -1))[:, 0]
        of_atoms = _rms(error_nc, std_nc)
        atom_s[s] = np.argmax(np.nan_to_num(of_atoms[0] / of_atoms[1], nan=-1.0))
        worst[s] = of_atoms[:, atom_s[s]]
    forces = Residuals("forces", *whole.T, nobody_s), Residuals("forces", *worst.T, atom_s)
    return [
        energies,
        *forces,
        Residuals("stress", *_rms(errors.stress, errors.stress_std), nobody_s),
    ]


def join_residuals(parts: Sequence[Sequence[Residuals]]) -> list[Residuals]:
    """Residuals of several lists of structures, one after the other.

    Parameters
    ----------
    parts : Sequence[Sequence[Residuals]]
        By `residuals_of`.

    Returns
    -------
    list[Residuals]
        Of all structures.
    """
    joined = []
    for column in zip(*parts, strict=True):
        arrays = zip(*(one[1:] for one in column), strict=True)
        joined.append(Residuals(column[0].kind, *map(np.concatenate, arrays)))
    return joined


def doubted(
    structures: Sequence[Outline],
    residuals: Sequence[Residuals],
    threshold: float,
    learned: Collection[str],
    *,
    weigh: bool,
) -> tuple[Doubt, ...]:
    """Labels further off than a threshold, the worst first.

    Parameters
    ----------
    structures : Sequence[Outline]
        What is known of them.
    residuals : Sequence[Residuals]
        How far their labels are from what is predicted.
    threshold : float
        In sigmas.
    learned : Collection[str]
        Kinds of labels whose noise was learned, so that it may be too large; noise that was given
        is no larger than what is expected.
    weigh : bool
        Whether to give weights of the Student distribution; else they are 1.

    Returns
    -------
    tuple[Doubt, ...]
        One entry for each structure and kind of label.
    """
    found = []
    for kind in LABEL_KINDS:
        candidates = [one for one in residuals if one.kind == kind]
        sigmas_cs = np.array([_sigmas(one, structures, kind in learned) for one in candidates])
        worst_s = np.argmax(np.nan_to_num(sigmas_cs), axis=0)
        for s in np.flatnonzero((sigmas_cs > threshold).any(axis=0)):
            one, sigmas = candidates[worst_s[s]], float(sigmas_cs[worst_s[s], s])
            weight = (_DEGREES + 1.0) / (_DEGREES + sigmas**2) if weigh else 1.0
            atom = None if one.atom_s[s] < 0 else int(one.atom_s[s])
            name, key = structures[s].name, structures[s].key
            found.append(Doubt(name, kind, float(one.value_s[s]), sigmas, weight, atom, key))
    return tuple(sorted(found, key=lambda doubt: -doubt.sigmas))


def reweighted(structures: Sequence[Structure], doubts: Iterable[Doubt]) -> list[Structure]:
    """Structures with the weights of doubted labels in their noise.

    Parameters
    ----------
    structures : Sequence[Structure]
        As they were given.
    doubts : Iterable[Doubt]
        Labels of some of them.

    Returns
    -------
    list[Structure]
        In the same order.
    """
    weights: dict[str, dict[str, float]] = {}
    for doubt in doubts:
        weights.setdefault(doubt.key, {})[f"sigma_{doubt.kind}"] = doubt.weight
    if not weights:
        return list(structures)
    result = []
    for structure in structures:
        mine = weights.get(structure_hash(structure), {})
        sigmas = {name: getattr(structure, name) / np.sqrt(w) for name, w in mine.items()}
        result.append(dataclasses.replace(structure, **sigmas))
    return result


def reweighted_outlines(outlines: Sequence[Outline], doubts: Iterable[Doubt]) -> list[Outline]:
    """The same of outlines, which know the noise of energies only.

    Parameters
    ----------
    outlines : Sequence[Outline]
        As they were given.
    doubts : Iterable[Doubt]
        Labels of some of them.

    Returns
    -------
    list[Outline]
        In the same order.
    """
    weights = {doubt.key: doubt.weight for doubt in doubts if doubt.kind == "energy"}
    return [
        one._replace(sigma_energy=one.sigma_energy / np.sqrt(weights[one.key]))
        if one.key in weights
        else one
        for one in outlines
    ]


def log_doubts(doubts: Sequence[Doubt]) -> None:
    """Warn of labels that are doubted and nevertheless count in full.

    Parameters
    ----------
    doubts : Sequence[Doubt]
        The worst first.
    """
    if doubts:
        worst = doubts[0]
        log.warning(
            "%d labels are far from the fit; the worst are the %s of %s, by %.3g sigma. Look at "
            "doubts_, or fit with robust=True, which gives such labels less weight.",
            len(doubts), worst.kind, worst.name, worst.sigmas,
        )  # fmt: skip


def _rms(error_rc: Float, std_rc: Float) -> Float:
    """Root mean squares of what is known of each row, and of what is expected of it: (2, n)."""
    known_rc = np.isfinite(error_rc)
    n_r = known_rc.sum(axis=1)
    both = [np.where(known_rc, values, 0.0) for values in (error_rc, std_rc)]
    mean = [np.sum(values**2, axis=1) / np.maximum(n_r, 1) for values in both]
    return np.where(n_r > 0, np.sqrt(mean), np.nan)


def _sigmas(residuals: Residuals, structures: Sequence[Outline], learned: bool) -> Float:
    """Residuals in units of what is usual for their source and their group; NaN without labels."""
    kind = residuals.kind
    size_s = np.abs(residuals.value_s)
    sigmas_s = np.full(len(structures), np.nan)
    source_s = np.array([structure.source for structure in structures])
    group_s = np.array([structure.group for structure in structures])
    for source in np.unique(source_s):
        mine_s = (source_s == source) & np.isfinite(size_s)
        if not mine_s.any():
            continue
        ratio = size_s[mine_s] / residuals.expected_s[mine_s]
        factor = float(np.quantile(ratio, _QUANTILE)) / _OF_NORMAL[kind]
        if not learned:
            factor = max(factor, 1.0)
        for group in np.unique(group_s[mine_s]):
            members_s = mine_s & (group_s == group)
            spread = 0.0
            if members_s.sum() >= _GROUP:
                spread = float(np.median(size_s[members_s])) / _MEDIAN_OF_NORMAL[kind]
            usual = np.maximum(factor * residuals.expected_s[members_s], max(spread, 1e-12))
            sigmas_s[members_s] = size_s[members_s] / usual
    return sigmas_s
