"""The oracle's processes that this process has: kept between labels, one for each at a time."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator

from ase import Atoms

from kernelpot.active.oracle_process import OracleProcess
from kernelpot.active.records import Label

__all__ = ["compute_label", "end_processes"]

_Key = tuple[str, int]
_lock = threading.Lock()
_idle: list[tuple[_Key, OracleProcess]] = []
_busy: list[OracleProcess] = []


def compute_label(
    oracle: bytes, threads: int, atoms: Atoms, time_limit: float | None = None
) -> Label:
    """Label a structure by a process of this process: what executors are given.

    Parameters
    ----------
    oracle : bytes
        The pickled oracle.
    threads : int
        Of its process.
    atoms : Atoms
        To be labelled.
    time_limit : float | None
        In seconds.

    Returns
    -------
    Label
        Whatever happens.
    """
    with _process(oracle, threads) as process:
        return process.label(atoms, time_limit)


@contextlib.contextmanager
def _process(oracle: bytes, threads: int) -> Iterator[OracleProcess]:
    """One that nobody else uses, of those that wait or a new one."""
    key = (hashlib.sha256(oracle).hexdigest(), threads)
    with _lock:
        found = next((pair for pair in _idle if pair[0] == key), None)
        if found is not None:
            _idle.remove(found)
            others = []
        else:  # those of other oracles would only take memory
            others = list(_idle)
            _idle.clear()
        process = found[1] if found is not None else OracleProcess(oracle, threads)
        _busy.append(process)
    try:
        for _, other in others:
            other.end()
        yield process
    finally:
        with _lock:
            _busy.remove(process)
            if not process.killed:
                _idle.append((key, process))
        if process.killed:
            process.end()


def end_processes() -> None:
    """End all of the oracle's processes that this process has started.

    Labels that they work on fail. Processes also end by themselves with this one; this frees their
    memory before.
    """
    with _lock:
        waiting = [process for _, process in _idle]
        _idle.clear()
        for process in _busy:
            process.kill()
    for process in waiting:
        process.end()


def _after_fork() -> None:
    """The processes belong to the parent; so may the lock."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()
    _busy.clear()


atexit.register(end_processes)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
