"""What the machine offers: how BLAS and compiled loops share its cores, and its memory."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from threadpoolctl import ThreadpoolController

from kernelpot._jit import one_loop_thread

__all__ = ["one_blas_thread", "one_thread", "physical_memory"]


@functools.cache
def _controller() -> ThreadpoolController:
    # Looking the libraries up takes milliseconds; setting their threads, 20 us.
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager:
    """Keep BLAS to one thread where short products alternate with compiled parallel loops.

    After a product the threads of OpenBLAS wait by spinning, on the cores that the loops need:
    silicon of 512 atoms on two cores took 16 ms with two threads of each, 12 ms with one thread of
    BLAS and two of the loops, 15 ms with one of each.

    Returns
    -------
    AbstractContextManager
        Restores the number of threads at its end.
    """
    return _controller().limit(limits=1, user_api="blas")


class _Crowd:
    """Threads of this process that want one thread of BLAS each, whose number holds for all."""

    lock = threading.Lock()
    size = 0
    limit: AbstractContextManager | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep BLAS and compiled loops to the calling thread, also where several threads ask for that.

    Yields
    ------
    None
        Nothing; when the last one leaves, the numbers of threads are what they were.
    """
    with _Crowd.lock:
        _Crowd.size += 1
        if _Crowd.size == 1:
            _Crowd.limit = one_blas_thread()
    try:
        with one_loop_thread():
            yield
    finally:
        with _Crowd.lock:
            _Crowd.size -= 1
            if _Crowd.size == 0:
                _Crowd.limit.restore_original_limits()


def physical_memory() -> float:
    """Memory of this machine.

    Returns
    -------
    float
        Bytes; 16 GB where the system does not say.
    """
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 16e9
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
