"""What the plugin calls: models opened by path, and their energies and forces on plain arrays.

Functions of C in the eyes of the plugin: they return a status, never raise, and leave the words of
an error in a buffer of the caller. One call costs 0.1 ms beside the work itself.
"""

from __future__ import annotations

import ctypes
import itertools
import os

import numpy as np
from ase.data import atomic_numbers

from kernelpot.conventions import MIN_DISTANCE, Pairs, as_int
from kernelpot.potential import load
from kernelpot.prediction import Predictor

__all__ = ["CALLBACKS"]

_MESSAGE = 4096  # KERNELPOT_MESSAGE of the plugin
_FAILED = -1

_opened: dict[int, Predictor] = {}
_handles = itertools.count()


class _Memory:
    """Memory of the caller in the eyes of NumPy; ten times cheaper than by way of ctypes' types."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str):
        self.__array_interface__ = {
            "data": (address, False), "shape": shape, "typestr": typestr, "version": 3,
        }  # fmt: skip


def _floats(address: int | None, *shape: int) -> np.ndarray:
    return np.asarray(_Memory(address, shape, "<f8")) if address else np.zeros(shape)


def _ints(address: int | None, n: int) -> np.ndarray:
    return np.asarray(_Memory(address, (n,), "<i8")) if address else np.zeros(n, np.intp)


def _explain(address: int, error: BaseException) -> int:
    """Write the words of an error into the caller's buffer."""
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    words = (text or type(error).__name__).encode("utf-8")[: _MESSAGE - 1]
    ctypes.memmove(address, words + b"\0", len(words) + 1)
    return _FAILED


def _open(path, n_elements, elements, numbers, cutoff, least, has_novelty, message):
    try:
        symbols = [elements[k].decode() for k in range(n_elements)]
        unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
        if unknown:
            raise ValueError(
                f"pair_coeff names {', '.join(unknown)}, which is no chemical symbol (or NULL)"
            )
        predictor = load(os.fsdecode(path)).predictor_
        z_e = as_int([atomic_numbers[symbol] for symbol in symbols])
        predictor.species_of(z_e, "pair_coeff")
        _ints(numbers, n_elements)[:] = z_e
        cutoff[0], least[0] = predictor.cutoff, MIN_DISTANCE
        has_novelty[0] = predictor.has_novelty
        handle = next(_handles)
        _opened[handle] = predictor
    except BaseException as error:
        return _explain(message, error)
    return handle


def _evaluate(
    handle, n_atoms, n_centres, n_pairs, numbers, i_p, j_p, D_pc, r_p, first_n,
    energies, forces, strain, novelty, message,
):  # fmt: skip
    try:
        pairs = Pairs(
            _ints(i_p, n_pairs), _ints(j_p, n_pairs), _floats(D_pc, n_pairs, 3),
            _floats(r_p, n_pairs), _ints(first_n, n_centres + 1),
        )  # fmt: skip
        wanted = bool(novelty)  # a null pointer where nobody reads it
        found = _opened[handle].evaluate(_ints(numbers, n_atoms), pairs, novelty=wanted)
        if not np.isfinite(found.energies_n).all():
            raise ValueError(
                "an energy is not finite: the simulation has exploded; try a shorter time step or "
                "a nearer start"
            )
        _floats(energies, n_centres)[:] = found.energies_n
        _floats(forces, n_atoms, 3)[:] = found.forces_nc
        _floats(strain, n_centres, 3, 3)[:] = found.strain_ncd
        if wanted:
            _floats(novelty, n_centres)[:] = found.novelty_n
    except BaseException as error:
        return _explain(message, error)
    return 0


def _close(handle):
    _opened.pop(handle, None)


_address, _count, _status = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int

CALLBACKS = (
    ctypes.CFUNCTYPE(
        _status, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p), _address,
        ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double),
        ctypes.POINTER(ctypes.c_int), _address,
    )(_open),
    ctypes.CFUNCTYPE(_status, ctypes.c_int, *3 * (_count,), *11 * (_address,))(_evaluate),
    ctypes.CFUNCTYPE(None, ctypes.c_int)(_close),
)  # fmt: skip
"""What ``kernelpot_connect`` of the plugin takes; they live as long as the process."""
