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
import os

import numba
from numba import prange

__all__ = ["njit", "njit_parallel", "prange", "share_threads"]

_FLAGS = {
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}

njit = functools.partial(numba.njit, **_FLAGS)
"""Compile for one thread."""

njit_parallel = functools.partial(numba.njit, parallel=True, **_FLAGS)
"""Compile with ``prange`` loops over threads."""


def share_threads(n_processes: int) -> None:
    """Divide the threads of compiled loops among processes of one machine.

    Parameters
    ----------
    n_processes : int
        How many run side by side. Where ``NUMBA_NUM_THREADS`` says how many threads each is to
        have, nothing is changed.
    """
    if "NUMBA_NUM_THREADS" not in os.environ:
        numba.set_num_threads(max(1, numba.config.NUMBA_NUM_THREADS // n_processes))
