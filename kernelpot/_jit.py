"""How this library compiles, and why: besides `_lanes`, the only import of Numba.

``error_model="numpy"`` lets a division by zero give infinity as in NumPy, so that loops
vectorise. ``fastmath`` is the subset of LLVM flags that allows sums to be reordered and
products to be contracted into fused multiply-adds, which is what vectorised reductions need;
the flags that assume the absence of NaN and infinity (``nnan``, ``ninf``) are left out, because
with them ``np.isnan`` returns False. ``cache=True`` keeps the compiled code beside the module,
or in the user's cache folder where the module's folder is read-only (``NUMBA_CACHE_DIR`` names
another place). ``nogil=True`` lets other threads run meanwhile: loops are not divided among threads
here but by `kernelpot._machine.side_by_side`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba

__all__ = ["njit", "was_interrupted"]

_FLAGS = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}


def njit(function: Callable[..., Any] | None = None, **flags: Any) -> Callable[..., Any]:
    """Compile a function when it is first called, or read it from the cache.

    Parameters
    ----------
    function : Callable[..., Any] | None
        Of arrays and numbers; None, to decorate with flags.
    **flags : Any
        Further flags of `numba.njit`.

    Returns
    -------
    Callable[..., Any]
        The same function, or what decorates one.
    """
    if function is None:
        return functools.partial(njit, **flags)
    compiled = functools.partial(numba.njit, **_FLAGS, **flags)
    try:
        return compiled(cache=True)(function)
    except RuntimeError:
        # No folder may be written: not the module's, not the user's, none is named. Then every
        # process compiles for itself, which takes half a minute, and works.
        return compiled()(function)


def was_interrupted(error: SystemError) -> bool:
    """Whether Ctrl-C came while compiled code ran: Numba makes a SystemError of it.

    Parameters
    ----------
    error : SystemError
        As it was caught.

    Returns
    -------
    bool
        False of any other.
    """
    return isinstance(error.__cause__ or error.__context__, KeyboardInterrupt)
