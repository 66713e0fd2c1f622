"""Structures and their labels: from ASE to the records that the library trusts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from typing import Literal

import numpy as np
from ase import Atoms

from kernelpot.conventions import LABEL_KINDS, Int, as_float, as_int
from kernelpot.data_checks import (
    DataError,
    DataWarning,
    check_energy_scale,
    check_geometry,
    check_numbers,
)
from kernelpot.data_files import read_images
from kernelpot.data_labels import (
    LabelReader,
    Seen,
    check_keys,
    check_noise,
    log_odd_labels,
    no_labels_message,
    read_weights,
    resolve_sigma,
    seen_in,
)
from kernelpot.data_outlines import data_hash
from kernelpot.data_records import ORIGIN_KEY, LabelKeys, Noise, Structure

__all__ = [
    "ORIGIN_KEY",
    "DataError",
    "DataWarning",
    "LabelKeys",
    "Noise",
    "Structure",
    "block_of_structures",
    "check_energy_scale",
    "data_hash",
    "read_images",
    "require_labels",
    "split",
    "structures_from_atoms",
]


_NO_KEYS = LabelKeys()
_DEFAULT_NOISE = Noise()


def structures_from_atoms(
    images: Iterable[Atoms],
    keys: LabelKeys = _NO_KEYS,
    noise: Noise = _DEFAULT_NOISE,
    *,
    labels: Literal["required", "optional", "ignore"] = "required",
) -> list[Structure]:
    """Checked records of structures and their labels.

    ``atoms.info`` may bring weights along, of at least 0 and 1 where they are missing:
    ``config_weight`` multiplies the weight 1/sigma^2 of all labels of the structure,
    ``config_energy_weight``, ``config_forces_weight`` and ``config_stress_weight`` that of one
    kind. With a weight of 2 a structure counts as if it stood there twice; a weight of 0 leaves
    the labels out, as if they were missing.

    Parameters
    ----------
    images : Iterable[Atoms]
        Structures; their labels come from their calculators' results or from ``keys``.
    keys : LabelKeys
        Where labels stand that are no calculator results.
    noise : Noise
        Standard deviations of the labels.
    labels : Literal["required", "optional", "ignore"]
        "required": an error if no structure has any, or a named key is nowhere; "optional":
        whatever is there; "ignore": they are not looked at.

    Returns
    -------
    list[Structure]
        In the order given.

    Raises
    ------
    TypeError
        If ``images`` is not an iterable of Atoms.
    DataError
        If a structure or a label cannot be used; the message names it and says what to try.
    """
    if labels not in ("required", "optional", "ignore"):
        raise ValueError(f"labels={labels!r}: choose 'required', 'optional' or 'ignore'.")
    images = _as_images(images)
    _check_noise_and_keys(keys, noise)
    if labels == "required":
        seen = seen_in(images, keys)
        check_keys(seen, keys)
    structures = [_structure(s, atoms, keys, noise, labels) for s, atoms in enumerate(images)]
    if labels == "required":
        require_labels(seen, keys, any(s.has_labels for s in structures))
    if labels != "ignore":
        log_odd_labels(images, structures, keys)
    return structures


def block_of_structures(
    images: Sequence[Atoms], keys: LabelKeys, noise: Noise
) -> tuple[list[Structure], Seen]:
    """Checked records of some of the structures of a fit, wherever the others are.

    Parameters
    ----------
    images : Sequence[Atoms]
        Some structures; of these alone none needs to have labels.
    keys : LabelKeys
        Where labels stand that are no calculator results.
    noise : Noise
        Standard deviations of the labels.

    Returns
    -------
    tuple[list[Structure], Seen]
        Records, and what `require_labels` must know of them.

    Raises
    ------
    DataError
        If a structure or a label cannot be used.
    """
    images = _as_images(images)
    _check_noise_and_keys(keys, noise)
    structures = [_structure(s, atoms, keys, noise, "required") for s, atoms in enumerate(images)]
    log_odd_labels(images, structures, keys)
    return structures, seen_in(images, keys)


def require_labels(seen: Seen, keys: LabelKeys, any_labels: bool) -> None:
    """Refuse data without labels, or without one of the keys that are named.

    Parameters
    ----------
    seen : Seen
        In all structures.
    keys : LabelKeys
        Where labels stand that are no calculator results.
    any_labels : bool
        Whether any structure has one.

    Raises
    ------
    DataError
        With the keys that look like labels.
    """
    check_keys(seen, keys)
    if not any_labels:
        raise DataError(no_labels_message(seen))


def _check_noise_and_keys(keys: LabelKeys, noise: Noise) -> None:
    if keys.stress is not None and keys.virial is not None:
        raise DataError(
            f"Both a stress key ({keys.stress!r}) and a virial key ({keys.virial!r}) are named, "
            "and they say the same thing: name one of them."
        )
    check_noise(noise)


def _as_images(images: Iterable[Atoms]) -> list[Atoms]:
    if isinstance(images, Atoms):
        raise TypeError("A list of Atoms is needed, not a single one: write [atoms].")
    if isinstance(images, (str, PathLike)):
        raise TypeError(
            f"A list of Atoms is needed, not a path: write read_images({fspath(images)!r})."
        )
    try:
        images = list(images)
    except TypeError:
        raise TypeError(f"A list of ase.Atoms is needed, not {type(images).__name__}.") from None
    for s, atoms in enumerate(images):
        if not isinstance(atoms, Atoms):
            raise TypeError(f"Entry {s} is {type(atoms).__name__}, not ase.Atoms.")
    if not images:
        raise DataError("The list of structures is empty; at least one is needed.")
    return images


def _structure(s: int, atoms: Atoms, keys: LabelKeys, noise: Noise, labels: str) -> Structure:
    name = str(atoms.info.get(ORIGIN_KEY) or f"structure {s}")
    numbers_n = as_int(atoms.numbers).copy()
    check_numbers(numbers_n, name)
    name = f"{name} ({atoms.get_chemical_formula()})"
    positions_nc = as_float(atoms.positions).copy()
    cell_cc = as_float(atoms.cell.array).copy()
    pbc_c = np.array(atoms.pbc, dtype=bool)
    check_geometry(positions_nc, cell_cc, pbc_c, name)

    values = [math.nan, np.full((len(atoms), 3), np.nan), np.full(6, np.nan)]
    sigmas = [math.nan] * len(LABEL_KINDS)
    source = _text(atoms, "source")
    if labels != "ignore":
        found = LabelReader(atoms, keys, name, strict=labels == "required")
        weights = read_weights(atoms, name)
        for k, read in enumerate((found.energy, found.forces, found.stress)):
            if weights[k] == 0.0:
                continue  # not even read: it may be broken
            if k < 2 or pbc_c.all():
                values[k] = read()
            needed = bool(np.isfinite(values[k]).any())
            sigma = resolve_sigma(LABEL_KINDS[k], atoms, noise, source, name, needed=needed)
            sigmas[k] = sigma / math.sqrt(weights[k])
    return Structure(
        numbers_n, positions_nc, cell_cc, pbc_c, *values, *sigmas,
        group=_text(atoms, "group"), source=source, name=name,
    )  # fmt: skip


def _text(atoms: Atoms, key: str) -> str:
    value = atoms.info.get(key)
    return "" if value is None else str(value)


def split(
    structures: Sequence[Structure | Atoms],
    test_fraction: float,
    random_state: int | np.random.Generator | None = None,
    by_group: bool = True,
) -> tuple[Int, Int]:
    """Random training and test structures.

    Parameters
    ----------
    structures : Sequence[Structure | Atoms]
        What to split.
    test_fraction : float
        Share of test structures, between 0 and 1.
    random_state : int | np.random.Generator | None
        Seed.
    by_group : bool
        Take this share of every group (``info["group"]``), as nearly as whole numbers allow.

    Returns
    -------
    tuple[Int, Int]
        Indices of the training and of the test structures, ascending.

    Raises
    ------
    DataError
        If either part would be empty.
    """
    n_structures = len(structures)
    n_test = round(test_fraction * n_structures) if 0.0 < test_fraction < 1.0 else 0
    if not 0 < n_test < n_structures:
        raise DataError(
            f"test_fraction={test_fraction!r} of {n_structures} structures leaves a part empty; "
            "it must lie between 0 and 1 with at least one structure on either side."
        )
    rng = np.random.default_rng(random_state)
    names = np.array([_text(s, "group") if isinstance(s, Atoms) else s.group for s in structures])
    groups = np.unique(names, return_inverse=True)[1] if by_group else np.zeros(n_structures, int)
    # Whole numbers by the largest remainders: within one structure of each group's share.
    sizes_g = np.bincount(groups)
    share_g = n_test * sizes_g / n_structures
    n_g = np.floor(share_g).astype(int)
    shuffled = [rng.permutation(np.flatnonzero(groups == g)) for g in range(len(sizes_g))]
    order = np.lexsort((rng.random(len(sizes_g)), -(share_g - n_g).round(9)))
    n_g[order[: n_test - n_g.sum()]] += 1
    test = np.concatenate([members[:n] for members, n in zip(shuffled, n_g, strict=True)])
    train = np.setdiff1d(np.arange(n_structures), test)
    return train.astype(np.intp), np.sort(test).astype(np.intp)
