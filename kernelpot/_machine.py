"""What the machine offers: how BLAS and compiled loops share its cores, and its memory."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController

__all__ = ["one_blas_thread", "physical_memory", "resident_memory"]


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


def resident_memory() -> float:
    """Memory that this process has now.

    Returns
    -------
    float
        Bytes; where the system does not say, the most it has had, or else 0.3 GB: what Python
        takes with the libraries of this one.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.3e9
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
