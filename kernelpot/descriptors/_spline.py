"""Reading the radial table: quintic Hermite interpolation of one row for one neighbour.

Each reading is one pass over six consecutive rows of the table (value, slope and curvature at
both ends of the interval), with the weight of the neighbour folded into six numbers.
"""

from __future__ import annotations

import numpy as np

from kernelpot._jit import njit
from kernelpot._lanes import LANES, load, spread, store, total, width, zero

__all__ = ["radial", "radial_and_pull", "radial_and_slope", "rows_and_slopes"]


@njit
def _hermite(t):
    """Quintic Hermite basis at t in [0, 1]: for value, slope, curvature at 0 and at 1."""
    t2 = t * t
    t3 = t2 * t
    return (
        1.0 + t3 * (-10.0 + t * (15.0 - 6.0 * t)),
        t + t3 * (-6.0 + t * (8.0 - 3.0 * t)),
        0.5 * t2 + t3 * (-1.5 + t * (1.5 - 0.5 * t)),
        t3 * (10.0 + t * (-15.0 + 6.0 * t)),
        t3 * (-4.0 + t * (7.0 - 3.0 * t)),
        t3 * (0.5 + t * (-1.0 + 0.5 * t)),
    )


@njit
def _hermite_slope(t):
    """Derivatives of ``_hermite``."""
    t2 = t * t
    return (
        t2 * (-30.0 + t * (60.0 - 30.0 * t)),
        1.0 + t2 * (-18.0 + t * (32.0 - 15.0 * t)),
        t + t2 * (-4.5 + t * (6.0 - 2.5 * t)),
        t2 * (30.0 + t * (-60.0 + 30.0 * t)),
        t2 * (-12.0 + t * (28.0 - 15.0 * t)),
        t2 * (1.5 + t * (-4.0 + 2.5 * t)),
    )


@njit
def _weighted(plan, r, w, dw):
    """Interval of r, and what multiplies its six rows in w f and in d(w f)/dr."""
    u = r * plan.inverse_step
    k = min(int(u), plan.n_nodes - 2)
    h = _hermite(u - k)
    d = _hermite_slope(u - k)
    v = w * plan.inverse_step
    values = w * h[0], w * h[1], w * h[2], w * h[3], w * h[4], w * h[5]
    slopes = (
        dw * h[0] + v * d[0],
        dw * h[1] + v * d[1],
        dw * h[2] + v * d[2],
        dw * h[3] + v * d[3],
        dw * h[4] + v * d[4],
        dw * h[5] + v * d[5],
    )
    return k, values, slopes


@njit
def radial(plan, first, r, w, f, i):
    """Write w f_nl(r) of the table that begins at ``first`` to f[i : i + row]."""
    u = r * plan.inverse_step
    k = min(int(u), plan.n_nodes - 2)
    h = _hermite(u - k)
    h0, h1, h2, h3, h4, h5 = w * h[0], w * h[1], w * h[2], w * h[3], w * h[4], w * h[5]
    T, row = plan.table, plan.row
    for j in range(0, row, width(T)):
        a = first + k * 3 * row + j
        v = h0 * load(T, a) + h1 * load(T, a + row) + h2 * load(T, a + 2 * row)
        a += 3 * row
        v = v + h3 * load(T, a) + h4 * load(T, a + row) + h5 * load(T, a + 2 * row)
        store(f, i + j, v)


@njit
def radial_and_slope(plan, first, r, w, dw, f, df, i):
    """Write w f_nl and its derivative by r to rows of f and df."""
    k, h, d = _weighted(plan, r, w, dw)
    h0, h1, h2, h3, h4, h5 = h
    d0, d1, d2, d3, d4, d5 = d
    T, row = plan.table, plan.row
    for j in range(0, row, width(T)):
        a = first + k * 3 * row + j
        t0, t1, t2 = load(T, a), load(T, a + row), load(T, a + 2 * row)
        a += 3 * row
        t3, t4, t5 = load(T, a), load(T, a + row), load(T, a + 2 * row)
        store(f, i + j, h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3 + h4 * t4 + h5 * t5)
        store(df, i + j, d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3 + d4 * t4 + d5 * t5)


@njit
def rows_and_slopes(plan, first_p, r_p, w_p, dw_p):
    """``radial_and_slope`` of many neighbours, each of the table that begins at ``first_p``."""
    f_pj, df_pj = np.empty((len(r_p), plan.row)), np.empty((len(r_p), plan.row))
    for p in range(len(r_p)):
        radial_and_slope(plan, first_p[p], r_p[p], w_p[p], dw_p[p], f_pj[p], df_pj[p], 0)
    return f_pj, df_pj


@njit
def radial_and_pull(plan, first, r, w, dw, V, i, f, q):
    """Write w f_nl(r) to f[l n, q]; return sum_ln V[l n] d(w f_nl)/dr."""
    k, h, d = _weighted(plan, r, w, dw)
    h0, h1, h2, h3, h4, h5 = h
    d0, d1, d2, d3, d4, d5 = d
    T, row = plan.table, plan.row
    pull = zero(T)
    for j in range(0, row, width(T)):
        a = first + k * 3 * row + j
        t0, t1, t2 = load(T, a), load(T, a + row), load(T, a + 2 * row)
        a += 3 * row
        t3, t4, t5 = load(T, a), load(T, a + row), load(T, a + 2 * row)
        here = h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3 + h4 * t4 + h5 * t5
        slope = d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3 + d4 * t4 + d5 * t5
        pull = pull + slope * load(V, i + j)
        spread(f, j * LANES + q, LANES, here)
    return total(pull)
