"""Files that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["check_json", "replacing", "sync_folder"]


@contextlib.contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file beside its place, and put it there when it is complete and on the disk.

    Parameters
    ----------
    path : str | PathLike[str]
        Where it shall be; a link stays a link. The folder must exist.

    Yields
    ------
    BinaryIO
        To be written and read. After an error what was there before is there still.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where the system lets folders be synced.

    Parameters
    ----------
    folder : Path
        Where files were made, renamed or removed.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_json(value: Any, where: str, error: type[Exception]) -> None:
    """Refuse what JSON would change or cannot hold.

    Parameters
    ----------
    value : Any
        To be written; tuples become lists.
    where : str
        What it is, for the message.
    error : type[Exception]
        To be raised if it holds anything but JSON's types.
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise error(f"{where} has the key {key!r}; keys must be strings.")
            check_json(entry, f"{where}[{key!r}]", error)
    elif isinstance(value, (list, tuple)):
        for i, entry in enumerate(value):
            check_json(entry, f"{where}[{i}]", error)
    elif not (value is None or isinstance(value, (str, bool, int, float))):
        raise error(
            f"{where} is {type(value).__name__}; use JSON types (float(x), int(x), x.tolist())."
        )
