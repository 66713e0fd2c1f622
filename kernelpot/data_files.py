"""Files of structures: read as a whole, or frame by frame, so that each process reads its own."""

from __future__ import annotations

import contextlib
import difflib
import io
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
from ase import Atoms

from kernelpot.conventions import Int, as_int
from kernelpot.data_checks import DataError
from kernelpot.data_records import ORIGIN_KEY

__all__ = ["FrameIndex", "find_frames", "read_frames", "read_images"]


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
    path, index = _path_and_index(path, index)
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


def _path_and_index(
    path: str | PathLike[str], index: int | slice | str = ":"
) -> tuple[Path, int | slice | str]:
    """Take "train.xyz@:100" apart."""
    path = Path(fspath(path))
    if not path.exists() and "@" in path.name:
        name, index = path.name.rsplit("@", 1)
        path = path.with_name(name)
    return path, index


def _check_file(path: Path) -> None:
    """Refuse a file that cannot hold structures."""
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
    """Frames as a slice."""
    if isinstance(index, str):
        with contextlib.suppress(ValueError):
            index = ase.io.formats.string2index(index)
    if isinstance(index, (int, np.integer)):
        return slice(int(index), int(index) + 1 or None)
    if isinstance(index, slice):
        return index
    raise DataError(f"index {index!r} is neither a number nor a slice such as ':' or '::10'.")


class FrameIndex(NamedTuple):
    """The wanted frames of one file."""

    path: str
    numbers_s: Int  # of the frames in the file
    n_atoms_s: Int
    bytes_sb: Int | None  # first byte, and the one after the last; None: the file is read whole

    def some(self, place_s: Int) -> FrameIndex:
        """Some of them, where the file need not be read whole.

        Parameters
        ----------
        place_s : Int
            Which of the wanted frames.

        Returns
        -------
        FrameIndex
            Of these.
        """
        return FrameIndex(
            self.path, self.numbers_s[place_s], self.n_atoms_s[place_s], self.bytes_sb[place_s]
        )


def find_frames(path: str) -> FrameIndex:
    """Look up where the frames of a file are.

    Of an uncompressed (extended) XYZ file this reads the number of atoms of each frame and counts
    lines. Files of all other kinds have to be read as a whole.

    Parameters
    ----------
    path : str
        As for `read_images`: "train.xyz@:100" says which frames.

    Returns
    -------
    FrameIndex
        In the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If the file is empty or cannot be read, or no frame has this index.
    """
    file, index = _path_and_index(path)
    _check_file(file)
    lines = _xyz_frames(file)
    if lines is None:
        images = read_images(path)
        # "train.xyz, frame 12"
        numbers = [int(atoms.info[ORIGIN_KEY].rsplit(" ", 1)[1]) for atoms in images]
        return FrameIndex(path, as_int(numbers), as_int([len(a) for a in images]), None)
    n_atoms_s, first_s = lines
    wanted = np.arange(len(n_atoms_s))[_as_slice(index)]
    if len(wanted) == 0:
        raise DataError(f"{file} has no frame at index {index!r}; ':' reads all of them.")
    bytes_sb = np.stack([first_s[:-1], first_s[1:]], axis=1)
    return FrameIndex(str(file), as_int(wanted), n_atoms_s[wanted], as_int(bytes_sb[wanted]))


def _xyz_frames(file: Path) -> tuple[Int, Int] | None:
    """Atoms of each frame, and first bytes, with the end of the last; None of other files."""
    if file.suffix not in (".xyz", ".extxyz"):
        return None
    n_atoms, first = [], [0]
    with open(file, "rb") as stream:
        while line := stream.readline():
            if not line.strip():
                break  # ASE takes nothing behind an empty line for a frame
            if not line.strip().isdigit():
                return None
            n_atoms.append(int(line))
            for _ in range(n_atoms[-1] + 1):
                line = stream.readline()
            if not line:
                return None  # cut off: ASE says so
            first.append(stream.tell())
    return as_int(n_atoms), as_int(first)


def read_frames(index: FrameIndex) -> list[Atoms]:
    """Read some frames of an XYZ file, and nothing else of it.

    Parameters
    ----------
    index : FrameIndex
        Where they stand, by `find_frames`.

    Returns
    -------
    list[Atoms]
        As from `read_images`.

    Raises
    ------
    DataError
        If ASE cannot read them.
    """
    path, numbers_s, _, bytes_sb = index
    name = ase.io.formats.filetype(path)
    with open(path, "rb") as stream:
        parts = []
        for first, last in bytes_sb:
            stream.seek(first)
            parts.append(stream.read(last - first))
    text = io.StringIO(b"".join(parts).decode("utf-8"))
    try:
        images = ase.io.read(text, index=":", format=name)
    except Exception as error:
        # Every reader of ASE fails in its own way, so whatever it raises is reported.
        raise DataError(
            f"ASE could not read frames {numbers_s[0]} to {numbers_s[-1]} of {path}: "
            f"{type(error).__name__}: {error}. Was the file changed while it was read?"
        ) from error
    for frame, atoms in zip(numbers_s, images, strict=True):
        atoms.info[ORIGIN_KEY] = f"{Path(path).name}, frame {frame}"
    return images
