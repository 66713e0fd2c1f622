"""One process at a time writes a run: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

__all__ = ["RunLock", "RunLockedError"]

_held: set[str] = set()
"""What this process holds itself: the system would give it its own locks again."""
_FAR = 2**30
"""Byte that is locked on Windows, where nobody else can read what is."""


class RunLockedError(RuntimeError):
    """A run that another process writes."""


class RunLock:
    """A file that is locked as long as this process holds it.

    The lock is the system's, not the file's existence: nothing has to be removed after a crash.
    Processes that are forked from this one do not hold it.

    Parameters
    ----------
    path : Path
        Of the lock's file; it stays, with the last holder's name in it.

    Raises
    ------
    RunLockedError
        If another process, or this one, holds it.
    """

    def __init__(self, path: Path):
        self._key = os.path.realpath(path)
        self._owner = os.getpid()
        if self._key in _held:
            raise RunLockedError(f"{path.parent} is open in this process already; close it first.")
        # POSIX ends a process's lock when any descriptor of the file is closed: `_held` above
        # keeps us from opening it twice.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(self._file)
        except OSError as error:
            holder = os.read(self._file, 200).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise RunLockedError(
                f"{path.parent} is being written by another process ({holder or error}). Let it "
                "finish or end it; or give another folder. Where no such process exists, the "
                f"file system knows no locks ({error}): put the run on another one."
            ) from error
        _held.add(self._key)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        os.ftruncate(self._file, 0)
        os.write(
            self._file, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode()
        )

    @property
    def ours(self) -> bool:
        """Whether this process holds it, and has not been forked from the one that does."""
        return self._owner == os.getpid() and self._key in _held

    def release(self) -> None:
        """Let others write."""
        if self.ours:
            _held.discard(self._key)
            os.close(self._file)  # which ends the lock


def _lock(file: int) -> None:
    if fcntl is not None:
        # Not flock: processes forked from this one would hold that on after it was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(file, _FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)


def _forget() -> None:
    """A forked process holds nothing."""
    _held.clear()


with contextlib.suppress(AttributeError):  # Windows
    os.register_at_fork(after_in_child=_forget)
