"""Where labels and their noise come from: calculators' results, or keys that people name."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.conventions import LABEL_KINDS, Float, voigt_from_tensor
from kernelpot.data_checks import DataError
from kernelpot.data_records import ORIGIN_KEY, LabelKeys, Noise, Structure

__all__ = [
    "LabelReader",
    "Seen",
    "check_keys",
    "check_noise",
    "log_odd_labels",
    "no_labels_message",
    "read_weights",
    "resolve_sigma",
    "seen_in",
]

log = logging.getLogger("kernelpot")


_WEIGHTS = ("config_weight", *(f"config_{kind}_weight" for kind in LABEL_KINDS))
"""Keys of ``atoms.info`` under which weights stand, as in MACE."""


def check_noise(noise: Noise) -> None:
    """Refuse standard deviations that are not finite and above zero."""
    for kind, value in zip(LABEL_KINDS, noise, strict=True):
        by_source = value if isinstance(value, Mapping) else {"": value}
        for source, sigma in by_source.items():
            where = f"noise for {kind}" + (f" of source {source!r}" if source else "")
            _sigma(sigma, where)


def _sigma(value: Any, where: str) -> float:
    try:
        sigma = float(value)
    except (TypeError, ValueError):
        sigma = math.nan
    if not (math.isfinite(sigma) and sigma > 0.0):
        raise DataError(f"The {where} is {value!r}; it must be a finite number above 0.")
    return sigma


def resolve_sigma(
    kind: str, atoms: Atoms, noise: Noise, source: str, name: str, needed: bool
) -> float:
    """Noise of one kind of label; NaN where its source has none and there is no label."""
    own = atoms.info.get(f"sigma_{kind}")
    if own is not None:
        return _sigma(own, f"info['sigma_{kind}'] of {name}")
    value = getattr(noise, kind)
    if not isinstance(value, Mapping):
        return float(value)
    sigma = value.get(source, value.get("default"))
    if sigma is None and needed:
        raise DataError(
            f"{name} has info['source'] = {source!r}, for which the noise of {kind} names no "
            f"value (it has {', '.join(map(repr, value))}). Add this source or a 'default'."
        )
    return math.nan if sigma is None else float(sigma)


def read_weights(atoms: Atoms, name: str) -> tuple[float, ...]:
    """Weights of the energy, forces and stress of one structure; 1 where nothing is said.

    ``info["config_weight"]`` multiplies all three, ``info["config_energy_weight"]``,
    ``info["config_forces_weight"]`` and ``info["config_stress_weight"]`` one each.
    """
    common = _weight(atoms, "config_weight", name)
    return tuple(common * _weight(atoms, f"config_{kind}_weight", name) for kind in LABEL_KINDS)


def _weight(atoms: Atoms, key: str, name: str) -> float:
    value = atoms.info.get(key, 1.0)
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0.0):
        raise DataError(
            f"info[{key!r}] of {name} is {value!r}; it must be a finite number of at least 0 "
            "(0 leaves the labels out, 1 is the weight of structures without the key)."
        )
    return weight


class LabelReader:
    """Labels of one structure, by key or from its calculator."""

    def __init__(self, atoms: Atoms, keys: LabelKeys, name: str, strict: bool):
        self.atoms, self.keys, self.name, self.strict = atoms, keys, name, strict

    def energy(self) -> float:
        """Total energy, eV; NaN if missing."""
        value = self._find(self.keys.energy, "energy", "free_energy")
        if value is None:
            return math.nan
        energy = self._numbers(value, "energy")
        if energy.size != 1:
            raise DataError(
                f"{self.name}: the energy has shape {energy.shape}; it must be one number, the "
                "total energy in eV. Energies per atom cannot be fitted; name another key."
            )
        return float(energy.reshape(()))

    def forces(self) -> Float:
        """Forces, eV/angstrom, (n_atoms, 3); NaN where missing."""
        shape = (len(self.atoms), 3)
        value = self._find(self.keys.forces, "forces")
        if value is None:
            return np.full(shape, np.nan)
        forces_nc = self._numbers(value, "forces")
        if forces_nc.shape != shape:
            raise DataError(
                f"{self.name}: the forces have shape {forces_nc.shape}; they must have one row "
                f"of three per atom, {shape}. Mark missing components with NaN."
            )
        return forces_nc

    def stress(self) -> Float:
        """Stress, eV/angstrom^3, (6,); NaN where missing."""
        what = "stress" if self.keys.virial is None else "virial"
        value = self._find(getattr(self.keys, what), what)
        if value is None:
            return np.full(6, np.nan)
        tensor = self._numbers(value, what)
        if tensor.shape == (9,):
            tensor = tensor.reshape(3, 3)
        if tensor.shape not in ((6,), (3, 3)):
            raise DataError(
                f"{self.name}: the {what} has shape {tensor.shape}; it must be 6 numbers (xx yy "
                "zz yz xz xy), 9 numbers or 3x3."
            )
        stress_v = tensor if tensor.shape == (6,) else voigt_from_tensor(tensor)
        return stress_v if what == "stress" else -stress_v / self.atoms.get_volume()

    def _find(self, key: str | None, *results: str) -> Any:
        """The value under the key, or else the first of the calculator's results."""
        if key is not None:
            return _at_key(self.atoms, key)
        known = _results(self.atoms)
        for result in results:
            if known.get(result) is None:
                continue
            if not _is_stale(self.atoms):
                return known[result]
            if self.strict:
                raise DataError(
                    f"{self.name}: its calculator's {result} belongs to other positions, cell or "
                    "elements (the structure was changed afterwards, or several structures share "
                    "one calculator). Give each structure its own: atoms.calc = "
                    "ase.calculators.singlepoint.SinglePointCalculator(atoms, energy=..., "
                    "forces=...)."
                )
        return None

    def _numbers(self, value: Any, what: str) -> Float:
        try:
            numbers = np.array(value, dtype=np.float64, order="C")
        except (TypeError, ValueError):
            raise DataError(
                f"{self.name}: the {what} is {value!r}, not numbers. Name another key or mend it."
            ) from None
        if np.isinf(numbers).any():
            raise DataError(
                f"{self.name}: the {what} has infinite entries; the calculation failed. Leave the "
                "structure out, or mark missing components with NaN."
            )
        return numbers


def _results(atoms: Atoms) -> dict[str, Any]:
    """What the calculator already knows; nothing is computed."""
    return getattr(atoms.calc, "results", None) or {}


def _is_stale(atoms: Atoms) -> bool:
    if getattr(atoms.calc, "atoms", None) is None or not hasattr(atoms.calc, "check_state"):
        return False
    return bool(atoms.calc.check_state(atoms))


def _at_key(atoms: Atoms, key: str) -> Any:
    if key in atoms.info:
        return atoms.info[key]
    if key in atoms.arrays:
        return atoms.arrays[key]
    return None if _is_stale(atoms) else _results(atoms).get(key)


class Seen(NamedTuple):
    """What some structures have in info and arrays, for errors that speak of all of them."""

    names: frozenset[str]
    found: frozenset[str]  # those of the named keys that are there
    weightless: bool  # whether labels are left out by a weight of 0

    def __or__(self, other: Seen) -> Seen:
        """In these structures and others together."""
        return Seen(*(mine | its for mine, its in zip(self, other, strict=True)))


def seen_in(images: Sequence[Atoms], keys: LabelKeys) -> Seen:
    """What structures have in info and arrays, and which of the named keys are among it."""
    names = {key for atoms in images for key in (*atoms.info, *atoms.arrays)}
    names -= {"numbers", "positions", ORIGIN_KEY}
    named = {key for key in keys if key is not None}
    found = {key for key in named if any(_at_key(atoms, key) is not None for atoms in images)}
    weightless = any(_is_weightless(atoms) for atoms in images)
    return Seen(frozenset(map(str, names)), frozenset(found), weightless)


def _is_weightless(atoms: Atoms) -> bool:
    try:
        return max(read_weights(atoms, "")) == 0.0
    except DataError:
        return False  # the record of the structure says so, by name


def check_keys(seen: Seen, keys: LabelKeys) -> None:
    """Refuse a named key that no structure has."""
    for kind, key in keys._asdict().items():
        if key is None or key in seen.found:
            continue
        names = sorted(seen.names)
        lower = {name.lower(): name for name in names}
        near = difflib.get_close_matches(str(key).lower(), lower, n=1, cutoff=0.3)
        hint = f" The nearest name is {lower[near[0]]!r}." if near else ""
        raise DataError(
            f"No structure has the {kind} key {key!r} in its info or arrays; they have: "
            f"{', '.join(names) or 'none'}.{hint}"
        )


def no_labels_message(seen: Seen) -> str:
    """What to say, and which keys to suggest, where no structure has labels."""
    words = ("energy", "force", "stress", "virial")
    names = sorted(seen.names)
    similar = [
        key for key in names if any(word in key.lower() for word in words) and key not in _WEIGHTS
    ]
    if seen.weightless:
        return (
            "No structure has labels to fit: those of some are left out by weights of 0 in "
            "info['config_weight'], and the others have none. Give weights above 0."
        )
    message = "No structure has an energy, forces or a stress in its calculator's results. "
    if not similar:
        return message + (
            f"Nothing in info or arrays looks like one either ({', '.join(names) or 'empty'}). "
            "Read them with read_images from a file that has labels."
        )
    parts = []
    for word, kind in zip(words, LabelKeys._fields, strict=True):
        parts += [f"{kind}={key!r}" for key in similar if word in key.lower()][:1]
    return message + (
        f"These keys of info and arrays look like labels: {', '.join(similar)}. Name them, as in "
        f"LabelKeys({', '.join(parts)})."
    )


def log_odd_labels(
    images: Sequence[Atoms], structures: Sequence[Structure], keys: LabelKeys
) -> None:
    """Say once what was left out or chosen without being asked."""
    key = keys.stress or keys.virial
    dropped = [
        s.name
        for atoms, s in zip(images, structures, strict=True)
        if not s.periodic
        and (_at_key(atoms, key) if key else _results(atoms).get("stress")) is not None
    ]
    if dropped:
        log.warning(
            "The stress of %d structures is left out, because they are not periodic in all "
            "three directions; the first is %s.", len(dropped), dropped[0],
        )  # fmt: skip
    if keys.energy is not None:
        return
    for atoms, s in zip(images, structures, strict=True):
        free = _results(atoms).get("free_energy")
        if free is not None and abs(free - s.energy) > 1e-3 * s.n_atoms:
            log.info(
                "Energies are the calculator's 'energy'; 'free_energy' differs from it by %.3g "
                "eV in %s. Forces are the derivative of the latter: LabelKeys(energy="
                "'free_energy') fits it.", free - s.energy, s.name,
            )  # fmt: skip
            return
