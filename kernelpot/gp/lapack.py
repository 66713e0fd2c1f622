"""BLAS and LAPACK that let other threads run: SciPy's own wrappers keep the interpreter's lock.

The routines are those of SciPy's library, which it offers to compiled code under
``scipy.linalg.cython_blas`` and ``cython_lapack``. ctypes calls them by address, and gives the lock
away meanwhile. Matrices are in Fortran order, or parts of such matrices; nothing is copied, and
shapes are trusted.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from kernelpot.conventions import Float

__all__ = ["gemm", "potrf", "potrs", "symv", "tpqrt", "trsm"]

_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.restype, _address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _routine(module: Any, name: str) -> Any:
    """A routine, all of whose arguments are addresses."""
    capsule = module.__pyx_capi__[name]
    signature = _name(capsule)
    n_arguments = signature.count(b",") + 1
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)
    return kind(_address(capsule, signature))


_dgemm, _dsymv, _dtrmm, _dtrsm = (
    _routine(cython_blas, name) for name in ("dgemm", "dsymv", "dtrmm", "dtrsm")
)
_dpotrf, _dpotrs, _dtpqrt = (
    _routine(cython_lapack, name) for name in ("dpotrf", "dpotrs", "dtpqrt")
)


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _double(value: float) -> Any:
    return ctypes.byref(ctypes.c_double(value))


def _char(value: bytes) -> Any:
    return ctypes.byref(ctypes.c_char(value))


def _at(array: Float) -> int:
    return array.ctypes.data


def _leading(matrix: Float) -> Any:
    """Distance of columns; that of a single one is anything."""
    return _int(max(matrix.strides[1] // matrix.itemsize, matrix.shape[0], 1))


def gemm(alpha: float, a: Float, b: Float, beta: float, c: Float, *, transposed: bool) -> None:
    """c = alpha a b + beta c, or with the transpose of a.

    Parameters
    ----------
    alpha : float
        Factor.
    a : Float
        Matrix.
    b : Float
        Matrix.
    beta : float
        Factor.
    c : Float
        Overwritten.
    transposed : bool
        Whether a is to be transposed.
    """
    letter, inner = (b"T", a.shape[0]) if transposed else (b"N", a.shape[1])
    _dgemm(
        _char(letter), _char(b"N"), _int(c.shape[0]), _int(c.shape[1]), _int(inner),
        _double(alpha), _at(a), _leading(a), _at(b), _leading(b),
        _double(beta), _at(c), _leading(c),
    )  # fmt: skip


def symv(a: Float, x: Float) -> Float:
    """Product of a symmetric matrix with a vector.

    Parameters
    ----------
    a : Float
        Its lower triangle counts.
    x : Float
        Contiguous.

    Returns
    -------
    Float
        The product.
    """
    y = np.zeros(len(x))
    n, one, step = _int(len(x)), _double(1.0), _int(1)
    _dsymv(_char(b"L"), n, one, _at(a), _leading(a), _at(x), step, _double(0.0), _at(y), step)
    return y


def potrf(a: Float) -> int:
    """Lower Cholesky factor, in place; what stands above the diagonal stays.

    Parameters
    ----------
    a : Float
        Symmetric; its lower triangle counts.

    Returns
    -------
    int
        Zero, or the order of the first leading part that is not positive definite.
    """
    info = ctypes.c_int(0)
    _dpotrf(_char(b"L"), _int(len(a)), _at(a), _leading(a), ctypes.byref(info))
    return info.value


def potrs(factor: Float, b: Float) -> Float:
    """Solve with the lower Cholesky factor of a matrix, in place.

    Parameters
    ----------
    factor : Float
        From `potrf`.
    b : Float
        Right-hand sides, columns in Fortran order, or a contiguous one; overwritten.

    Returns
    -------
    Float
        The solutions, in the same place.
    """
    info, columns = ctypes.c_int(0), b if b.ndim == 2 else b[:, None]
    _dpotrs(
        _char(b"L"), _int(len(factor)), _int(columns.shape[1]), _at(factor), _leading(factor),
        _at(columns), _leading(columns), ctypes.byref(info),
    )  # fmt: skip
    return b


def tpqrt(n_trapezoid: int, n_block: int, R: Float, rows: Float) -> Float:
    """QR factorisation of an upper triangle on rows, in place.

    Parameters
    ----------
    n_trapezoid : int
        The last so many of the rows are an upper trapezoid.
    n_block : int
        Columns of a block reflector, no more than there are columns.
    R : Float
        Upper triangle, square; becomes that of the factorisation.
    rows : Float
        As wide; become the reflectors, below a unit matrix.

    Returns
    -------
    Float
        Triangular factors of the block reflectors, side by side, shape (n_block, n_columns): entry
        (k % n_block, k) is the scalar factor of reflector k.
    """
    n_rows, n_columns = rows.shape
    factors = np.zeros((n_block, n_columns), order="F")
    work = np.empty(n_block * n_columns)
    info = ctypes.c_int(0)
    _dtpqrt(
        _int(n_rows), _int(n_columns), _int(n_trapezoid), _int(n_block), _at(R), _leading(R),
        _at(rows), _leading(rows), _at(factors), _leading(factors), _at(work), ctypes.byref(info),
    )  # fmt: skip
    return factors


def trmm(lower: Float, b: Float, *, transposed: bool = False) -> None:
    """Product of a lower triangle, or of its transpose, with a matrix, in place.

    Parameters
    ----------
    lower : Float
        Fortran order; what stands above its diagonal does not count.
    b : Float
        Columns in Fortran order; overwritten.
    transposed : bool
        Whether its transpose is meant.
    """
    _dtrmm(
        _char(b"L"), _char(b"L"), _char(b"T" if transposed else b"N"), _char(b"N"),
        _int(b.shape[0]), _int(b.shape[1]), _double(1.0), _at(lower), _leading(lower),
        _at(b), _leading(b),
    )  # fmt: skip


def trsm(triangle: Float, b: Float, *, upper: bool = False) -> None:
    """Solve with a lower triangle, or with the transpose of an upper one, in place.

    Parameters
    ----------
    triangle : Float
        Fortran order; the other half does not count.
    b : Float
        Right-hand sides, columns in Fortran order; overwritten.
    upper : bool
        Whether it is an upper triangle.
    """
    half, transposed = (b"U", b"T") if upper else (b"L", b"N")
    _dtrsm(
        _char(b"L"), _char(half), _char(transposed), _char(b"N"), _int(b.shape[0]),
        _int(b.shape[1]), _double(1.0), _at(triangle), _leading(triangle), _at(b), _leading(b),
    )  # fmt: skip
