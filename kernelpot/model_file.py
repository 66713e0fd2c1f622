"""One file for a model: settings and arrays, versioned, checksummed, never pickled.

The file is a zip of stored members, as NumPy's npz: ``header.json`` first, then one ``.npy`` per
array, so that ``np.load(path)`` opens the arrays. The archive's comment, its last bytes, holds
the SHA-256 of all bytes before the hexadecimal digits: any changed byte is found, also in the
zip's own tables. Equal content gives equal files.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kernelpot.conventions import Settings
from kernelpot.whole_files import check_json, replacing

__all__ = ["FORMAT", "FORMAT_VERSION", "ModelFileError", "read", "read_header", "write"]

FORMAT = "kernelpot model"
FORMAT_VERSION = 3

_HEADER = "header.json"
_MARK = b"kernelpot sha256 "
_DIGITS = 64
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip's earliest date: files differ only by content


class ModelFileError(ValueError):
    """A file that is no model, is damaged, or cannot be written as one."""


def write(path: str | PathLike[str], header: Settings, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a model file; an existing one is replaced only by a whole new one.

    Parameters
    ----------
    path : str | PathLike[str]
        Where to.
    header : Settings
        JSON types only; floats survive exactly, tuples become lists.
    arrays : dict[str, NDArray[Any]]
        Any dtype but objects; names of letters, digits and "_ . / -".

    Raises
    ------
    ModelFileError
        If the header or an array cannot be stored.
    FileNotFoundError
        If the folder does not exist.
    """
    text = _encode(header)
    arrays = {name: _storable(name, array) for name, array in arrays.items()}
    target = Path(os.path.realpath(path))  # a link stays a link
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent}; make it to write {path}.")
    if target.is_dir():
        raise ModelFileError(f"{path} is a folder; name a file in it, such as model.kpot.")
    with replacing(target) as file:
        _write_members(file, text, arrays)
        _seal(file)


def read(path: str | PathLike[str]) -> tuple[Settings, dict[str, NDArray[Any]]]:
    """Header and arrays of a model file, once its checksum agrees.

    Parameters
    ----------
    path : str | PathLike[str]
        A file that `write` made.

    Returns
    -------
    tuple[Settings, dict[str, NDArray[Any]]]
        As they were given to `write`; arrays are C-contiguous and writable.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, no model, or of a newer format.
    """
    with _verified(path) as archive:
        header = _decode(archive, path)
        arrays = {}
        for member in archive.infolist():
            if member.filename != _HEADER:
                with archive.open(member) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                arrays[member.filename.removesuffix(".npy")] = array
    return header, arrays


def read_header(path: str | PathLike[str]) -> Settings:
    """Header of a model file, once the checksum of the whole file agrees.

    Parameters
    ----------
    path : str | PathLike[str]
        A file that `write` made.

    Returns
    -------
    Settings
        As it was given to `write`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, no model, or of a newer format.
    """
    with _verified(path) as archive:
        return _decode(archive, path)


def _encode(header: Settings) -> bytes:
    check_json(header, "header", ModelFileError)
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, "header": header}
    return json.dumps(record, indent=1).encode("ascii")


def _storable(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not isinstance(name, str) or not _ARRAY_NAME.fullmatch(name):
        raise ModelFileError(f"The array name {name!r} must be of letters, digits and '_./-'.")
    array = np.asarray(array, order="C")
    if array.dtype.hasobject:
        raise ModelFileError(
            f"Array {name!r} holds Python objects, which only pickle could store; give numbers."
        )
    return array


def _write_members(file: BinaryIO, text: bytes, arrays: dict[str, NDArray[Any]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_HEADER, _EPOCH), text)
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            with archive.open(member, "w", force_zip64=array.nbytes > 2**30) as out:
                np.lib.format.write_array(out, array, allow_pickle=False)
        archive.comment = _MARK + b"0" * _DIGITS


def _seal(file: BinaryIO) -> None:
    digest = _digest(file)
    file.seek(-_DIGITS, os.SEEK_END)
    file.write(digest)


def _digest(file: BinaryIO) -> bytes:
    """Checksum of all bytes but the last, which are the checksum's own place."""
    left = file.seek(0, os.SEEK_END) - _DIGITS
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0:
        chunk = file.read(min(left, 2**20))
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest().encode("ascii")


@contextlib.contextmanager
def _verified(path: str | PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """The archive behind the path, its checksum compared."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no model file {path}.{_hint(path)}")
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder, not a model file.")
    with open(path, "rb") as file:
        _check_bytes(file, path)
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (ModelFileError, MemoryError, OSError):
            raise
        except Exception as error:
            # The checksum agrees, so the file is as it was written, but not by `write`.
            raise ModelFileError(
                f"{path} has a valid checksum but is no model file that this library wrote "
                f"({type(error).__name__}: {error})."
            ) from error


def _hint(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist either."
    near = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    return f" Did you mean {near[0]}?" if near else f" Looked in {folder.resolve()}."


def _check_bytes(file: BinaryIO, path: Path) -> None:
    start = file.read(30 + len(_HEADER))  # a zip's local header, then the member's name
    if not start:
        raise ModelFileError(f"{path} is empty; writing it was interrupted. Save the model again.")
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_MARK) - _DIGITS))
    mark, stored = file.read(len(_MARK)), file.read()
    if mark == _MARK and stored == _digest(file):
        return
    if mark != _MARK and not start.endswith(_HEADER.encode("ascii")):
        kind = "a zip or npz" if start.startswith(b"PK") else "some other file"
        if start.startswith(b"\x80"):
            kind = "probably a pickle, which this library neither writes nor opens"
        raise ModelFileError(
            f"{path} is not a kernelpot model file ({kind}). Models are written by model.save()."
        )
    raise ModelFileError(
        f"{path} is truncated or altered: its content does not agree with its SHA-256. Copy it "
        "again (in binary mode) or save the model again."
    )


def _decode(archive: zipfile.ZipFile, path: str | PathLike[str]) -> Settings:
    record = json.loads(archive.read(_HEADER))
    if record["format"] != FORMAT:
        raise ModelFileError(f"{path} is of format {record['format']!r}, not {FORMAT!r}.")
    version = record["format_version"]
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}; this kernelpot reads up to version "
            f"{FORMAT_VERSION}. Upgrade it: pip install --upgrade kernelpot."
        )
    if version < FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, of a development version before the first "
            "release, which is no longer read. Fit the model again."
        )
    return record["header"]
