"""Structures and their labels: from files and ASE to the records that the library trusts."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

import ase.io
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
from kernelpot.data_labels import (
    LabelReader,
    check_keys,
    check_noise,
    log_odd_labels,
    no_labels_message,
    read_weights,
    resolve_sigma,
)
from kernelpot.data_records import ORIGIN_KEY, LabelKeys, Noise, Structure

__all__ = [
    "ORIGIN_KEY",
    "DataError",
    "DataWarning",
    "LabelKeys",
    "Noise",
    "Structure",
    "check_energy_scale",
    "data_hash",
    "read_images",
    "split",
    "structures_from_atoms",
]


def read_images(path: str | PathLike[str], index: int | slice | str = ":") -> list[Atoms]:
    """Structures of a file that ASE reads, each remembering where it came from.

    Parameters
    ----------
    path : str | PathLike[str]
        Extended XYZ or anything else that ASE reads, also compressed (.xz, .gz, .bz2). As in
        ASE, "train.xyz@:100" also says which frames.
    index : int | slice | str
        Which frames: ":" all, "::10" every tenth, -1 the last.

    Returns
    -------
    list[Atoms]
        With "train.xyz, frame 12" in ``info[ORIGIN_KEY]``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If the file is empty or ASE cannot read it, or no frame has this index.
    """
    path = Path(fspath(path))
    if not path.exists() and "@" in path.name:
        name, index = path.name.rsplit("@", 1)
        path = path.with_name(name)
    _check_file(path)
    frames = _as_slice(index)
    bounds = [b for b in (frames.start, frames.stop, frames.step) if b is not None]
    from_the_end = any(b < 0 for b in bounds)
    try:
        # Frames counted from the end get their numbers only when all are read.
        wanted = slice(None) if from_the_end else frames
        images = _read_frames(path, wanted)
    except Exception as error:
        # Every reader of ASE fails in its own way, so whatever it raises is reported.
        raise DataError(
            f"ASE could not read {path}: {type(error).__name__}: {error}. Look at the file with "
            "`ase gui`; it may be cut off, or of another format than its name says (extended "
            "XYZ files end in .xyz or .extxyz)."
        ) from error
    numbers = range(len(images)) if from_the_end else range(frames.start or 0, 2**62)
    numbers = numbers[frames] if from_the_end else numbers[:: frames.step or 1]
    images = images[frames] if from_the_end else images
    if not images:
        raise DataError(f"{path} has no frame at index {index!r}; ':' reads all of them.")
    for frame, atoms in zip(numbers, images, strict=False):
        atoms.info[ORIGIN_KEY] = f"{path.name}, frame {frame}"
    return images


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file of structures in it.")
    if not path.exists():
        folder = path.parent
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" Looked in {folder.resolve()}."
        raise FileNotFoundError(f"There is no file {path}.{hint}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; was the calculation or the copy cut off?")
    if path.suffix not in (".xyz", ".extxyz"):
        return
    with open(path, "rb") as file:
        first = file.readline(32).strip()
    # ASE would read on past the end of the file, one empty line per atom.
    if first.isdigit() and int(first) > path.stat().st_size:
        raise DataError(
            f"{path} announces {int(first)} atoms but has only {path.stat().st_size} bytes; it is "
            "cut off or no XYZ file."
        )


def _read_frames(path: Path, wanted: slice) -> list[Atoms]:
    if path.suffix not in (".xz", ".gz", ".bz2"):
        return ase.io.read(str(path), index=wanted, do_not_split_by_at_sign=True)
    # ASE seeks in the file for every frame, and a compressed file unpacks from its start for
    # each: 5000 frames of 10 atoms take minutes. So the whole is unpacked first.
    name = ase.io.formats.filetype(str(path))
    kind = ase.io.formats.get_ioformat(name)
    if not kind.acceptsfd:
        return ase.io.read(str(path), index=wanted, format=name, do_not_split_by_at_sign=True)
    with ase.io.formats.open_with_compression(str(path), "rb" if kind.isbinary else "r") as file:
        content = file.read()
    unpacked = io.BytesIO(content) if kind.isbinary else io.StringIO(content)
    return ase.io.read(unpacked, index=wanted, format=name)


def _as_slice(index: int | slice | str) -> slice:
    if isinstance(index, str):
        with contextlib.suppress(ValueError):
            index = ase.io.formats.string2index(index)
    if isinstance(index, (int, np.integer)):
        return slice(int(index), int(index) + 1 or None)
    if isinstance(index, slice):
        return index
    raise DataError(f"index {index!r} is neither a number nor a slice such as ':' or '::10'.")


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
    if keys.stress is not None and keys.virial is not None:
        raise DataError(
            f"Both a stress key ({keys.stress!r}) and a virial key ({keys.virial!r}) are named, "
            "and they say the same thing: name one of them."
        )
    check_noise(noise)
    if labels == "required":
        check_keys(images, keys)
    structures = [_structure(s, atoms, keys, noise, labels) for s, atoms in enumerate(images)]
    if labels == "required" and not any(s.has_labels for s in structures):
        raise DataError(no_labels_message(images))
    if labels != "ignore":
        log_odd_labels(images, structures, keys)
    return structures


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
    digest = hashlib.sha256()
    for s in structures:
        digest.update(np.array([s.n_atoms, *s.numbers_n, *s.pbc_c], dtype="<i8").tobytes())
        for values in (s.positions_nc, s.cell_cc, [s.energy], s.forces_nc, s.stress_v):
            values = np.asarray(values, dtype="<f8") + 0.0  # no negative zero
            digest.update(np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes())
    return digest.hexdigest()
