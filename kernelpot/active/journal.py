"""The folder of a run: a journal that is only appended to, and files that are replaced whole.

Each line of ``journal.jsonl`` is JSON, ends with a checksum of itself and of the one before, and is
on the disk before `Journal.append` returns. So a process that is killed loses at most the entry
that it was writing, and no line can be changed, lost or put elsewhere without being noticed.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import logging
import os
from collections.abc import Collection, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import ase.io

from kernelpot.active.run_lock import RunLock, RunLockedError
from kernelpot.active.structure_json import (
    label_from_json,
    label_to_json,
    structure_from_json,
    structure_to_json,
)
from kernelpot.whole_files import check_json, replacing, sync_folder

__all__ = [
    "FORMAT_VERSION",
    "Entry",
    "Journal",
    "JournalError",
    "RunLockedError",
    "checksum",
    "label_from_json",
    "label_to_json",
    "read_entries",
    "structure_from_json",
    "structure_to_json",
]

log = logging.getLogger("kernelpot")

FORMAT_VERSION = 1

_NAME = "journal.jsonl"
_TORN = "journal.torn"
_LABELS = "labels.xyz"
_CHAIN = b',"chain":"'
_DIGITS = 16
_LINE_END = b'"}\n'


class JournalError(ValueError):
    """A journal that is damaged, missing, of another version, or cannot be written."""


class Entry(NamedTuple):
    """What happened once."""

    number: int  # from 0, without holes
    time: str  # ISO 8601, UTC
    kind: str  # "journal" is the first; "label" as from `label_to_json`
    content: dict[str, Any]


class Journal:
    """A run's folder, open for writing by this process alone; use it in a ``with`` statement.

    Parameters
    ----------
    folder : str | PathLike[str]
        Of the run.
    create : bool | None
        True: a new run, False: one that is there; None: whichever it is.

    Attributes
    ----------
    folder : Path
        Of the run.
    torn : str
        What was cut off when it was opened, in a sentence; empty where it was sound.

    Raises
    ------
    JournalError
        If there is a run and there should be none, or the other way round; or it is damaged.
    RunLockedError
        If another process writes it.
    """

    def __init__(self, folder: str | PathLike[str], *, create: bool | None = None):
        self.folder = Path(folder)
        self.torn = ""
        self._frames: dict[int, str] | None = None  # of labels.xyz; None until it is written
        self._labels: list[Entry] = []  # that came since it was written
        path = self.folder / _NAME
        if create is False and not path.exists():
            raise JournalError(f"There is no run in {self.folder}: it has no {_NAME}.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise JournalError(f"{self.folder} is a file; a run needs a folder.") from None
        self._lock = RunLock(self.folder / "journal.lock")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            try:
                sync_folder(self.folder)
                self._take_up(path)
                if create and self._n_entries > 0:
                    raise JournalError(
                        f"{self.folder} has a run of {self._n_entries} entries already. Resume "
                        "it, or give another folder."
                    )
                if self._n_entries == 0:
                    self.append("journal", {"format_version": FORMAT_VERSION})
            except BaseException:
                os.close(self._file)
                raise
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of entries."""
        return self._n_entries

    def close(self) -> None:
        """Let others write."""
        if self._lock.ours:
            os.close(self._file)
            self._lock.release()

    def append(self, kind: str, content: dict[str, Any]) -> Entry:
        """Write an entry; it is on the disk when this returns.

        Parameters
        ----------
        kind : str
            What it is: "settings", "candidate", "decision", "label", "model".
        content : dict[str, Any]
            JSON types; floats survive exactly, also NaN and infinity; tuples become lists.

        Returns
        -------
        Entry
            As it was written.

        Raises
        ------
        JournalError
            If JSON cannot hold the content, or the journal is closed.
        OSError
            If the disk is full; then the entry is not there and the journal is as before.
        """
        if not self._lock.ours:
            raise JournalError(
                f"The journal of {self.folder} is closed, or this process was forked from the one "
                "that writes it; entries are appended by the process that opened it."
            )
        check_json(content, f"content of the entry {kind!r}", JournalError)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        record = {"number": self._n_entries, "time": now, "kind": kind, "content": content}
        body = json.dumps(record, separators=(",", ":")).encode("ascii")[:-1]
        chain = _chain(self._last_chain, body)
        line = body + _CHAIN + chain + _LINE_END
        try:
            _write_at(self._file, self._size, line)
        except BaseException:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        self._n_entries += 1
        self._last_chain = chain
        entry = _entry(json.loads(body + b"}"))
        if kind == "label" and self._frames is not None:
            self._labels.append(entry)
        return entry

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """Read entries in their order, from the file.

        Parameters
        ----------
        kind : str | None
            Only those of this kind.

        Yields
        ------
        Entry
            One after another.
        """
        for entry in read_entries(self.folder):
            if kind is None or entry.kind == kind:
                yield entry

    def write_file(self, name: str, content: bytes | str) -> Path:
        """Write another file of the run, whole or not at all.

        Parameters
        ----------
        name : str
            Of the file, in the folder.
        content : bytes | str
            Text as UTF-8.

        Returns
        -------
        Path
            Where it is.
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    def write_labels(self, without: Collection[int] = ()) -> Path:
        """Write all labels anew to ``labels.xyz``, for people and other programs.

        Parameters
        ----------
        without : Collection[int]
            Numbers of entries that are left out: labels that nobody should learn.

        Returns
        -------
        Path
            Extended XYZ, as `kernelpot.read_images` reads; ``info["entry"]`` is the number of the
            journal's entry. Numbers have eight decimals: the exact ones are in the journal.
        """
        if self._frames is None:
            self._frames, self._labels = {}, list(self.entries("label"))
        for entry in self._labels:  # once for each, however often all are written
            self._frames[entry.number] = _frame(entry)
        self._labels = []
        kept = (frame for number, frame in self._frames.items() if number not in without)
        return self.write_file(_LABELS, "".join(kept))

    def _take_up(self, path: Path) -> None:
        """Go on after the last sound entry; what is torn is put aside."""
        self._n_entries, self._size, self._last_chain = 0, 0, b""
        torn = b""
        for entry, line in _lines(path):
            if entry is None:
                torn = line
                continue
            self._n_entries += 1
            self._size += len(line)
            self._last_chain = _chain_of(line)
        if not torn:
            return
        with open(self.folder / _TORN, "ab") as aside:
            aside.write(torn.rstrip(b"\n") + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)
        self.torn = (
            f"The last entry of {path} was incomplete ({len(torn)} bytes, now in {_TORN}): the run "
            f"was interrupted while it was written. It goes on after entry {self._n_entries - 1}."
        )
        log.warning(self.torn)


def read_entries(folder: str | PathLike[str]) -> Iterator[Entry]:
    """Read a run's journal, also while another process writes it.

    Parameters
    ----------
    folder : str | PathLike[str]
        Of the run.

    Yields
    ------
    Entry
        Complete ones, in their order; checksums are compared.

    Raises
    ------
    JournalError
        If there is none, or it is damaged before its last line.
    """
    path = Path(folder) / _NAME
    if not path.exists():
        raise JournalError(f"There is no run in {folder}: it has no {_NAME}.")
    for entry, _ in _lines(path):
        if entry is not None:
            yield entry


def checksum(path: str | PathLike[str]) -> str:
    """SHA-256 of a file, by which the journal knows a model again.

    Parameters
    ----------
    path : str | PathLike[str]
        Of the file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _lines(path: Path) -> Iterator[tuple[Entry | None, bytes]]:
    """Entries with their lines; None with the last one where that is torn."""
    chain = b""
    with open(path, "rb") as file:
        line, number = file.readline(), 0
        while line:
            following = file.readline()
            trouble, entry = _parse(line, number, chain)
            if trouble and (following or line.count(_CHAIN) > 1):
                raise JournalError(_damage(path, number, trouble))
            if number == 0 and entry is not None:
                _check_first(path, entry)
            yield entry, line
            chain = _chain_of(line)
            line, number = following, number + 1


def _parse(line: bytes, number: int, chain: bytes) -> tuple[str, Entry | None]:
    body, _, end = line.rpartition(_CHAIN)
    if not line.endswith(_LINE_END) or len(end) != _DIGITS + len(_LINE_END):
        return "it is not complete", None
    if end[:_DIGITS] != _chain(chain, body):
        return "its checksum does not agree with it and the lines before", None
    entry = _entry(json.loads(body + b"}"))
    if entry.number != number:
        return f"it has the number {entry.number}", None
    return "", entry


def _entry(record: dict[str, Any]) -> Entry:
    return Entry(record["number"], record["time"], record["kind"], record["content"])


def _chain(previous: bytes, body: bytes) -> bytes:
    return hashlib.sha256(previous + body).hexdigest()[:_DIGITS].encode("ascii")


def _chain_of(line: bytes) -> bytes:
    return line[-len(_LINE_END) - _DIGITS : -len(_LINE_END)]


def _damage(path: Path, number: int, trouble: str) -> str:
    return (
        f"Line {number + 1} of {path} is damaged: {trouble}. It is not the last one, so this was "
        "no interruption: the file was edited, or copied wrongly, or the disk is failing. Put a "
        f"sound copy in its place. Or keep what is sound, with `head -n {number} {_NAME}`: the run "
        "goes on from there, and labels that came later are computed again."
    )


def _check_first(path: Path, entry: Entry) -> None:
    version = entry.content.get("format_version")
    if entry.kind != "journal" or not isinstance(version, int):
        raise JournalError(f"{path} is no journal of this library: it begins with {entry.kind!r}.")
    if version > FORMAT_VERSION:
        raise JournalError(
            f"{path} has format version {version}; this kernelpot reads up to version "
            f"{FORMAT_VERSION}. Upgrade it: pip install --upgrade kernelpot."
        )


def _write_at(file: int, place: int, content: bytes) -> None:
    os.lseek(file, place, os.SEEK_SET)
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]
    os.fsync(file)


def _frame(entry: Entry) -> str:
    """A label as extended XYZ; nothing of one that failed."""
    atoms = label_from_json(entry.content).atoms
    if atoms is None:
        return ""
    atoms.info = {k: v for k, v in atoms.info.items() if _plain(v)}
    atoms.info["entry"] = entry.number
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return text.getvalue()


def _plain(value: Any) -> bool:
    """Whether extended XYZ keeps it as it is."""
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.isprintable())
