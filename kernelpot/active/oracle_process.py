"""A process of its own for an oracle: kept from label to label, ended when it hangs."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from ase import Atoms

from kernelpot.active import oracle_child
from kernelpot.active.oracle_child import describe, receive, send
from kernelpot.active.oracle_results import bare, failed, label_from
from kernelpot.active.records import Label

__all__ = ["OracleProcess"]

START_LIMIT = 600.0
"""Seconds for what an oracle imports and loads, perhaps from a slow disk, where labels have a time
limit; the limit of a label where that is longer."""
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_OF_MPI = ("PMI_", "PMIX_", "OMPI_COMM_", "OMPI_MCA_orte_", "OMPI_MCA_ess", "MPI_LOCAL", "HYDI_")
"""Variables by which a rank of MPI finds the others. The process is no rank; an oracle that uses
MPI itself, as GPAW, would wait for them."""

_TAIL = 4096
"""Bytes of what it printed in which the last line is looked for."""

_all: weakref.WeakSet[OracleProcess] = weakref.WeakSet()


class OracleProcess:
    """Labels one structure at a time in a child, which is started when it is needed.

    The child ends with this process, however that ends, since it notices that its pipe is closed.

    Parameters
    ----------
    oracle : bytes
        The pickled oracle.
    threads : int
        For its BLAS and OpenMP.

    Attributes
    ----------
    killed : bool
        Whether `kill` was called: it labels nothing more.
    """

    def __init__(self, oracle: bytes, threads: int = 1):
        self._oracle, self._threads = oracle, threads
        self._child: subprocess.Popen[bytes] | None = None
        self._log: FileIO | None = None
        self.killed = False
        _all.add(self)

    def label(self, atoms: Atoms, time_limit: float | None = None) -> Label:
        """Label a structure.

        Parameters
        ----------
        atoms : Atoms
            It is not changed.
        time_limit : float | None
            Seconds after which the child is ended, with all that it has started.

        Returns
        -------
        Label
            Whatever happens.
        """
        try:
            request = pickle.dumps(bare(atoms)), time_limit
            if not self._alive():
                limit = None if time_limit is None else max(time_limit, START_LIMIT)
                kind, found, _ = self._start(limit)
                if kind != "ready":
                    self.end()
                    return failed(f"the oracle could not be made: {found}", 0.0)
            if self.killed:
                return failed("the process of the oracle was ended", 0.0)
            kind, found, seconds = self._answer(request, time_limit)
        except Exception as error:  # no process, no memory, what cannot be pickled
            self.end()
            return failed(describe(error), 0.0)
        except BaseException:
            self.end()
            raise
        return label_from(atoms, found, seconds) if kind == "results" else failed(found, seconds)

    def kill(self) -> None:
        """End the child from another thread; the one that waits for its label goes on."""
        self.killed = True
        child = self._child
        if child is not None:
            _kill(child)

    def end(self) -> None:
        """End the child, at once, and forget it."""
        child, self._child = self._child, None
        if child is not None:
            _kill(child)
            child.wait()
            _close(child.stdin, child.stdout, self._log)

    def forget(self) -> None:
        """Let go of a child that belongs to the process from which this one was forked."""
        child, self._child = self._child, None
        if child is not None:
            # An open copy of its pipe would keep it from noticing that its own parent is gone.
            _close(child.stdin, child.stdout, self._log)
            child.returncode = 0

    def _alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def _start(self, time_limit: float | None) -> tuple[str, Any, float]:
        self.end()
        # By path and with our own search path: what is importable here is importable there.
        code = (
            f"import runpy, sys; sys.path[:] = {sys.path!r}; "
            f"runpy.run_path({str(Path(oracle_child.__file__).resolve())!r}, run_name='__main__')"
        )
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_MPI)}
        environment |= dict.fromkeys(_THREADS, str(self._threads))
        self._log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            bufsize=0,
            start_new_session=True,  # so that what it starts can be ended with it
        )
        return self._answer(self._oracle, time_limit)

    def _answer(self, request: Any, time_limit: float | None) -> tuple[str, Any, float]:
        child = self._child
        self._log.seek(0)  # for the child, too, so that what it prints takes no room
        self._log.truncate()
        start = time.perf_counter()
        with _deadline(child, time_limit) as late:
            try:
                send(child.stdin, request)
                answer = receive(child.stdout)
            except (EOFError, OSError):
                answer = None
        if answer is None:
            limit = f"the time limit of {time_limit:g} s was reached" if late.is_set() else ""
            answer = "failed", limit or self._last_words(), time.perf_counter() - start
            self.end()
        elif late.is_set():  # it answered in the moment in which it was ended
            self.end()
        return answer

    def _last_words(self) -> str:
        """How the child ended, and the last line that it printed."""
        _kill(self._child)
        status = self._child.wait()
        how = f"with status {status}"
        if status < 0:
            how = f"by signal {-status} ({signal.Signals(-status).name})"
        how += "; was memory short?" if status == -9 else ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL))
        lines = self._log.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"the oracle ended its process {how}" + (f"; it said: {last}" if last else "")


def _close(*files: FileIO | None) -> None:
    for file in files:
        with contextlib.suppress(OSError, AttributeError):  # what was not sent before it died
            file.close()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it has started; one that is gone but not waited for keeps its number."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()


def _forget_all() -> None:
    for process in list(_all):
        process.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


@contextlib.contextmanager
def _deadline(child: subprocess.Popen[bytes], seconds: float | None) -> Iterator[threading.Event]:
    """End a child after some time; by a thread, since pipes know no time limit everywhere."""
    late = threading.Event()
    if seconds is None:
        yield late
        return

    def end() -> None:
        late.set()
        _kill(child)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        timer.join()
