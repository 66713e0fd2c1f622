"""Two small labelled sets that travel with the package: silicon (PBE) and ethanol (GFN2-xTB).

How they were made: ``make_silicon.py`` and ``make_ethanol.py`` beside this file, and
``docs/datasets.md``.
"""

from __future__ import annotations

import lzma
from importlib.resources import files
from io import StringIO
from typing import TYPE_CHECKING, Literal

from ase.io import read

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["load_ethanol", "load_silicon"]

_STRIDE = 5  # every fifth frame is for testing


def _load(name: str, split: str | None) -> list[Atoms]:
    if split not in (None, "train", "test"):
        raise ValueError(f"split must be None, 'train' or 'test', got {split!r}")
    packed = files(__name__).joinpath(name).read_bytes()
    images = read(StringIO(lzma.decompress(packed).decode()), ":", format="extxyz")
    if split is None:
        return images
    counts: dict[str, int] = {}
    chosen = []
    for atoms in images:
        group = atoms.info["group"]
        counts[group] = counts.get(group, 0) + 1
        # Counted within its group: each kind of cell is in both parts. A group of fewer than five
        # frames, the isolated atom, is never tested on: a baseline needs it in training.
        if (counts[group] % _STRIDE == 0) == (split == "test"):
            chosen.append(atoms)
    return chosen


def load_silicon(split: Literal["train", "test"] | None = None) -> list[Atoms]:
    """Load silicon cells of 1 to 16 atoms with PBE energies, forces and stresses.

    Parameters
    ----------
    split : Literal["train", "test"] | None
        ``"test"`` for every fifth frame of each group, ``"train"`` for the others, None for all.
        The isolated atom is always in training.

    Returns
    -------
    list[Atoms]
        New objects at each call, in file order. Each has a calculator with ``energy`` (eV, the
        free energy of the smeared electrons), ``forces`` (eV/A) and ``stress`` (eV/A^3, ASE's sign
        and Voigt order), and the kind of cell in ``info["group"]``.

    Raises
    ------
    ValueError
        If `split` is none of the values named.
    """
    return _load("silicon_pbe.xyz.xz", split)


def load_ethanol(split: Literal["train", "test"] | None = None) -> list[Atoms]:
    """Load 500 frames of ethanol at 500 K with GFN2-xTB energies and forces.

    Parameters
    ----------
    split : Literal["train", "test"] | None
        ``"test"`` for every fifth frame of each run, ``"train"`` for the others, None for all.

    Returns
    -------
    list[Atoms]
        New objects at each call, in file order, not periodic. Each has a calculator with
        ``energy`` (eV) and ``forces`` (eV/A), and in ``info["group"]`` the conformer that its run
        started from, ``"trans"`` or ``"gauche"``.

    Raises
    ------
    ValueError
        If `split` is none of the values named.
    """
    return _load("ethanol_gfn2.xyz.xz", split)
