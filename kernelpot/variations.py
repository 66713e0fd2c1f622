"""Settings that race: where the race begins, changes in one respect, and fine steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernelpot.conventions import Float
from kernelpot.data import Structure
from kernelpot.descriptors import ShiftedCosine, Soap, Willatt
from kernelpot.neighbours import find_pairs

__all__ = [
    "COARSER",
    "FINER",
    "Step",
    "apply",
    "first_settings",
    "nearest_distance",
    "steps",
    "suits_full_basis",
    "variations",
]

FINER, _MIDDLE, COARSER = "n_max 10, l_max 8", "n_max 8, l_max 6", "n_max 6, l_max 4"
_RESOLUTIONS = {
    FINER: {"n_max": 10, "l_max": 8},
    _MIDDLE: {"n_max": 8, "l_max": 6},
    COARSER: {"n_max": 6, "l_max": 4},
}
_CONTRACTED = {FINER: 20, _MIDDLE: 16, COARSER: 12}
"""Radial functions of several species together. Left-out errors of 12 to 16 are those of all 24 to
32 (ethanol, 3BPA, NbMoTaW); 10 and 8 cost 6 to 35 per cent of the forces."""
_MOLECULE = 60
"""Atoms of the largest structure for which the full gradient basis is tried."""


def nearest_distance(structures: Sequence[Structure]) -> float:
    """Median distance of an atom to its nearest neighbour.

    Parameters
    ----------
    structures : Sequence[Structure]
        At most a hundred of them are looked at.

    Returns
    -------
    float
        Angstrom; NaN where no atom has a neighbour within 6 angstrom.
    """
    nearest: list[Float] = []
    for s in structures[:: max(1, len(structures) // 100)]:
        pairs = find_pairs(s.positions_nc, s.cell_cc, s.pbc_c, 6.0)
        if len(pairs.r_p):
            least_n = np.full(s.n_atoms, np.inf)
            np.minimum.at(least_n, pairs.i_p, pairs.r_p)
            nearest.append(least_n[np.isfinite(least_n)])
    return float(np.median(np.concatenate(nearest))) if nearest else math.nan


def first_settings(structures: Sequence[Structure]) -> dict[str, Any]:
    """Where the race begins: a descriptor of the length scale of the data.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.

    Returns
    -------
    dict[str, Any]
        Parameters of the model.
    """
    distance = nearest_distance(structures)
    cutoff = 5.0 if not distance > 0 else round(max(5.0, 1.95 * distance), 1)
    basis = "full" if suits_full_basis(structures) else "sparse"
    n_species = len({int(z) for s in structures for z in s.numbers_n})
    # One species costs little, and gains from resolution as the data grow.
    resolution = FINER if n_species == 1 else _MIDDLE
    soap = {"cutoff": cutoff, "sigma": 0.4, **_RESOLUTIONS[resolution]}
    if n_species > 1:
        soap["n_contracted"] = _CONTRACTED[resolution]
    return {"descriptor": Soap(**soap), "basis": basis, "zeta": 4}


def suits_full_basis(structures: Sequence[Structure]) -> bool:
    """Whether these are small molecules, for which all labels can be basis functions.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.

    Returns
    -------
    bool
        No periodic structure, none above some tens of atoms, and at least a few.
    """
    return len(structures) >= 10 and all(
        not s.pbc_c.any() and s.n_atoms <= _MOLECULE for s in structures
    )


def variations(settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Settings that differ in one respect.

    Parameters
    ----------
    settings : Mapping[str, Any]
        Where to start from.

    Returns
    -------
    list[tuple[str, dict[str, Any]]]
        What is changed, in words, and the parameters that are.
    """
    soap = settings["descriptor"]
    several = soap.n_contracted is not None
    resolutions = {
        words: {**size, "n_contracted": _CONTRACTED[words] if several else None}
        for words, size in _RESOLUTIONS.items()
        if size["n_max"] != soap.n_max
    }
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"cutoff {0.8 * soap.cutoff:.1f}", {"cutoff": round(0.8 * soap.cutoff, 1)}),
        (f"cutoff {1.2 * soap.cutoff:.1f}", {"cutoff": round(1.2 * soap.cutoff, 1)}),
        *resolutions.items(),
        ("sigma 0.3", {"sigma": 0.3}),
        ("sigma 0.5", {"sigma": 0.5}),
        ("scaling exponent 4", {"scaling": Willatt(exponent=4.0)}),
        (
            f"scaling radius {0.4 * soap.cutoff:.1f}, exponent 4",
            {"scaling": Willatt(radius=round(0.4 * soap.cutoff, 1), exponent=4.0)},
        ),
        ("no scaling", {"scaling": None}),
        ("cutoff width 2", {"smoothing": ShiftedCosine(width=2.0)}),
        ("zeta 2", {"zeta": 2}),
        ("zeta 6", {"zeta": 6}),
    ]
    if several:
        changes += [
            (f"species alike by {similarity:g}", {"species_mixing": similarity})
            for similarity in (0.5, 0.9)
        ]
    return changes


def apply(settings: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a change of the descriptor, of all of them in a sum, or of the model.

    Parameters
    ----------
    settings : Mapping[str, Any]
        To start from.
    change : Mapping[str, Any]
        Parameters of the descriptor, or "zeta".

    Returns
    -------
    dict[str, Any]
        New settings.
    """
    new = dict(settings)
    own = {name: value for name, value in change.items() if name in new and name != "descriptor"}
    rest = {name: value for name, value in change.items() if name not in own}
    new |= own
    if rest:
        changed = [Soap(**{**soap.get_params(deep=False), **rest}) for soap in _soaps(settings)]
        new["descriptor"] = changed if isinstance(settings["descriptor"], list) else changed[0]
    return new


def _soaps(settings: Mapping[str, Any]) -> list[Soap]:
    descriptor = settings["descriptor"]
    return descriptor if isinstance(descriptor, list) else [descriptor]


Step = tuple[str, dict[str, Any]]
"""What is changed, in words, and the parameters that are."""


def steps(settings: Mapping[str, Any]) -> list[tuple[Step | None, Step | None]]:
    """Small changes of numbers, for a search around settings that are good already.

    Parameters
    ----------
    settings : Mapping[str, Any]
        Where to start from; the descriptors of a sum have these numbers in common.

    Returns
    -------
    list[tuple[Step | None, Step | None]]
        For every number a step up and a step down; None where there is no room. The order is that
        of the numbers, and the same for all settings of the same parts.
    """
    soap, zeta = _soaps(settings)[-1], settings["zeta"]

    def sigma(value: float) -> Step:
        return f"sigma {value:.3g}", {"sigma": round(value, 4)}

    def cutoff(value: float) -> Step | None:
        # Within less, many radial functions are too nearly dependent to be orthonormalised.
        return (f"cutoff {value:.3g}", {"cutoff": round(value, 3)}) if value >= 2.5 else None

    def exponent(value: int) -> Step | None:
        return (f"zeta {value}", {"zeta": value}) if value >= 2 else None

    found: list[tuple[Step | None, Step | None]] = [
        (sigma(1.15 * soap.sigma), sigma(soap.sigma / 1.15)),
        (exponent(zeta + 1), exponent(zeta - 1)),
        (cutoff(1.08 * soap.cutoff), cutoff(soap.cutoff / 1.08)),
    ]
    if isinstance(soap.scaling, Willatt):
        r0 = 0.5 * soap.cutoff if soap.scaling.radius is None else soap.scaling.radius
        power = soap.scaling.exponent

        def scaling(radius: float, power: float) -> Step:
            words = f"scaling radius {radius:.3g}, exponent {power:g}"
            return words, {"scaling": Willatt(radius=round(radius, 3), exponent=power)}

        found += [
            (scaling(1.2 * r0, power), scaling(r0 / 1.2, power)),
            (scaling(r0, power + 1.0), scaling(r0, power - 1.0)),
        ]
    if isinstance(soap.smoothing, ShiftedCosine):

        def width(value: float) -> Step:
            return f"cutoff width {value:.3g}", {"smoothing": ShiftedCosine(width=round(value, 3))}

        found.append((width(1.4 * soap.smoothing.width), width(soap.smoothing.width / 1.4)))
    return [(_possible(settings, up), _possible(settings, down)) for up, down in found]


def _possible(settings: Mapping[str, Any], step: Step | None) -> Step | None:
    """The step where it leads to settings that are valid."""
    if step is None:
        return None
    try:
        for soap in _soaps(apply(settings, step[1])):
            soap.validate()
    except ValueError:
        return None
    return step
