"""QR factorisation of a triangle on new rows, panel by panel, by all threads.

LAPACK's tpqrt does the same by one thread: whatever BLAS does with its threads, panels wait for
nothing. Here the columns to the right of a panel are reflected in chunks, side by side, while the
next panel is factorised already (look-ahead: Buttari, Langou, Kurzak and Dongarra, Parallel Comput.
35, 38 (2009)). The chunks do not depend on the number of threads, so neither do the results.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from kernelpot._machine import beside, one_blas_thread, side_by_side
from kernelpot.conventions import Float
from kernelpot.gp.lapack import gemm, tpqrt

__all__ = ["PANEL", "absorb"]

PANEL = 96
"""Columns of a panel: narrower ones are memory-bound."""
_INNER = 16
"""Columns of a block reflector within a panel, which are factorised one by one."""
_CHUNK = 192
"""Columns that are reflected at a time."""


_ROUNDING = (1e-12, 1e-14)
"""What is left of new rows counts as nothing below these fractions of the largest entry of its
column, or of all: columns that are zero by symmetry hold rounding and nothing else."""


class _Reflectors(NamedTuple):
    """I - [I; V] T [I; V]^T, which turn the rows of a panel to zero."""

    V_rk: Float
    T_kk: Float
    pivots: slice  # rows of R that take up what the others lose
    columns: slice
    n_taken: int  # how many of the pivots were empty; rounding may fill some


def absorb(R: Float, rows: Float, *, triangular: bool = False) -> Float:
    """Upper trapezoid of the QR factorisation of [R; rows].

    The zeros of R are left alone: 2 b n^2 flops for b rows of n columns, whatever has been absorbed
    before, and less while R has fewer rows than columns.

    Parameters
    ----------
    R : Float
        Upper trapezoid, no more rows than columns, Fortran order; overwritten where it is square.
    rows : Float
        New rows, Fortran order; overwritten.
    triangular : bool
        Whether the rows are an upper trapezoid, whose zeros need no work.

    Returns
    -------
    Float
        The new trapezoid: of as many rows as there were in both, or as there are columns if these
        are fewer, or some of them zero. Some of its rows may be empty.

    Raises
    ------
    ValueError
        If a number is none.
    """
    n_before, n_columns = R.shape
    if len(rows) == 0:
        return R
    R = _longer(R, len(rows))
    n_left = len(rows)
    with one_blas_thread():
        panel = _factorise(R, rows, 0, 0, n_before, triangular)
        while panel.columns.stop < n_columns:
            first, n_left = panel.columns.stop, n_left - panel.n_taken
            reflect = functools.partial(_reflect, panel, R, rows)
            if n_left > 0 and panel.pivots.stop < len(R):
                following = slice(first, min(first + PANEL, n_columns))
                wait = beside(reflect, _chunks(following.stop, n_columns))
                try:
                    reflect(following)
                    panel = _factorise(R, rows, panel.pivots.stop, first, n_before, triangular)
                finally:
                    wait()
                continue
            # Either nothing is left but rounding, and labels that columns do not explain which
            # depend on each other by all but rounding; or columns of zeros took the places.
            side_by_side(reflect, _chunks(first, n_columns))
            left_k = _more_than_rounding(rows[:, first:], R[:, first:])
            if not left_k.any():
                break
            first += int(left_k.argmax())
            pivot = _move_up(R)
            R = _longer(R, min(PANEL, n_columns - first) - (len(R) - pivot))
            panel = _factorise(R, rows, pivot, first, n_before, triangular)
    if not np.isfinite(R.sum()):
        raise ValueError("rows that are to be reduced are not finite: is a label or a row NaN?")
    return R


def _more_than_rounding(rows: Float, R: Float) -> np.ndarray:
    """Columns in which rows are something beside those that are there."""
    of_column, of_all = _ROUNDING
    size_k = np.abs(R).max(axis=0)
    size_k = np.maximum(of_column * size_k, of_all * size_k.max())
    return ~(np.abs(rows).max(axis=0) <= size_k)  # NaN is something


def _move_up(R: Float) -> int:
    """Move empty rows to the end; how many are not."""
    full_r = np.diagonal(R) != 0.0
    for r in np.flatnonzero(~full_r):
        full_r[r] = R[r].any()
    n_full = int(full_r.sum())
    if n_full < len(R):
        R[:n_full] = R[full_r]
        R[n_full:] = 0.0
    return n_full


def _longer(R: Float, n_rows: int) -> Float:
    """With so many empty rows below, or as many as make it square; itself where it is."""
    n_longer = min(len(R) + n_rows, R.shape[1])
    if n_longer <= len(R):
        return R
    longer = np.zeros((n_longer, R.shape[1]), order="F")
    longer[: len(R)] = R
    return longer


def _chunks(first: int, n_columns: int) -> list[slice]:
    """Columns that are reflected at a time."""
    return [slice(k, min(k + _CHUNK, n_columns)) for k in range(first, n_columns, _CHUNK)]


def _factorise(
    R: Float, rows: Float, pivot: int, first: int, n_before: int, triangular: bool
) -> _Reflectors:
    """Reflectors that turn the rows of a panel to zero; its triangle is written to R."""
    width = min(PANEL, len(R) - pivot, R.shape[1] - first)
    pivots, columns = slice(pivot, pivot + width), slice(first, first + width)
    n_rows = min(len(rows), columns.stop) if triangular else len(rows)
    V_rk = rows[:n_rows, columns]
    inner = min(_INNER, width)
    factors = tpqrt(max(n_rows - first, 0) if triangular else 0, inner, R[pivots, columns], V_rk)
    # T^-1 is the upper triangle of V^T V, with the inverse scalar factors on its diagonal (Puglisi,
    # SIAM J. Sci. Stat. Comput. 13, 723 (1992)). A column of zeros has a factor of zero.
    scalar_k = factors[np.arange(width) % inner, np.arange(width)]
    none_k = scalar_k == 0.0
    inverse_kk = np.zeros((width, width), order="F")
    gemm(1.0, V_rk, V_rk, 0.0, inverse_kk, transposed=True)
    np.fill_diagonal(inverse_kk, 1.0 / np.where(none_k, 1.0, scalar_k))
    T_kk = np.triu(lapack.dtrtri(inverse_kk)[0])
    T_kk[none_k, none_k] = 0.0
    n_taken = int(np.sum(~none_k[max(n_before - pivot, 0) :]))
    return _Reflectors(V_rk, np.asfortranarray(T_kk), pivots, columns, n_taken)


def _reflect(panel: _Reflectors, R: Float, rows: Float, columns: slice) -> None:
    """Apply the reflectors of a panel to columns on its right."""
    V_rk, T_kk, pivots, *_ = panel
    below, above = rows[: len(V_rk), columns], R[pivots, columns]
    if above.shape[1] == 0 or not T_kk.any():
        return
    product = np.array(above, order="F")
    gemm(1.0, V_rk, below, 1.0, product, transposed=True)
    change = np.empty_like(product)
    gemm(1.0, T_kk, product, 0.0, change, transposed=True)
    above -= change
    gemm(-1.0, V_rk, change, 1.0, below, transposed=False)
