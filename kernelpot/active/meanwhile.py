"""Work in a thread, while a block waits for something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

__all__ = ["Meanwhile", "StoppedError"]


class StoppedError(Exception):
    """Raised by work that nobody waits for any more."""


class Meanwhile:
    """Do something beside a ``with`` block; the block ends when both are done.

    Parameters
    ----------
    work : Callable[[Callable[[], None]], None]
        Called in a thread with a function that it calls now and then: that raises `StoppedError`
        once the block has failed. An error of the work is raised at the end of the block.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None]):
        self._work = work
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kernelpot-meanwhile", daemon=True)

    def __enter__(self) -> Meanwhile:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the work; after an error of the block it is asked to stop."""
        try:
            if kind is not None:
                self._stopped.set()
            self._thread.join()
        except BaseException:  # Ctrl-C while it waits
            self._stopped.set()
            raise
        if kind is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work(self._check)
        except BaseException as caught:
            self._error = caught

    def _check(self) -> None:
        if self._stopped.is_set():
            raise StoppedError
