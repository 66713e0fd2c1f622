"""How this library compiles, and why: besides `_lanes`, the only import of Numba.

``error_model="numpy"`` lets a division by zero give infinity as in NumPy, so that loops
vectorise. ``fastmath`` is the subset of LLVM flags that allows sums to be reordered and
products to be contracted into fused multiply-adds, which is what vectorised reductions need;
the flags that assume the absence of NaN and infinity (``nnan``, ``ninf``) are left out, because
with them ``np.isnan`` returns False. ``cache=True`` keeps the compiled code beside the module,
or in the user's cache folder where the module's folder is read-only (``NUMBA_CACHE_DIR`` names
another place).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numba
from numba import prange

__all__ = ["njit", "njit_parallel", "one_loop_thread", "prange"]

_FLAGS = {
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}

njit = functools.partial(numba.njit, **_FLAGS)
"""Compile for one thread."""

njit_parallel = functools.partial(numba.njit, parallel=True, **_FLAGS)
"""Compile with ``prange`` loops over threads."""


@contextmanager
def one_loop_thread() -> Iterator[None]:
    """Run the compiled loops that the calling thread starts in one thread.

    Yields
    ------
    None
        Nothing; the number is what it was at the end.
    """
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(before)
