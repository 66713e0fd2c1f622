"""The adjoint of SOAP unit vectors for many outputs at once, compiled: forces of samples.

As `_soap_gradients.vjp`, with the outputs as the innermost index, in single precision: what
depends on the neighbour alone (radial functions, harmonics and their gradients) is computed once
for all. Outputs go in groups of sixteen, two registers: with one, loads would be the limit, and
with more the derivatives of the coefficients would not stay in the first-level cache. Axes:
coefficients are c[channel, lm, n], their derivatives dc[group of outputs, channel, lm, n, s].
"""

from __future__ import annotations

import numpy as np

from kernelpot._jit import njit
from kernelpot._lanes import LANES, at, load, load8, store, zero
from kernelpot.descriptors._harmonics import gradients, values
from kernelpot.descriptors._soap_numba import directions, select
from kernelpot.descriptors._spline import radial_and_slope

__all__ = ["OUTPUTS", "vjp_many"]

OUTPUTS = 2 * LANES
"""Outputs of a group; their number is a multiple of it."""


@njit
def _direction_part(x, norm, scale_q, g, first, n_s, h):
    """h[q, s] = (g[q, s] - x_q sum_q' x_q' g[q', s]) / |p|: what changes the direction of p."""
    n_q = x.shape[0]
    n_scaled = scale_q.shape[0]
    for s in range(0, OUTPUTS, LANES):
        along = zero(h)
        for q in range(n_q):
            along = along + at(x, q) * load(g, q * n_s + first + s)
        for q in range(n_q):
            factor = (scale_q[q] if n_scaled else 1.0) / norm
            v = load(g, q * n_s + first + s) - at(x, q) * along
            store(h, q * OUTPUTS + s, factor * v)


@njit
def _unpack(plan, k, ell, h, G):
    """G[n, o, s]: what the products c_n c_o of a degree of one block are multiplied by."""
    n_max, n_pad = plan.n_max, plan.n_pad
    square = plan.left_k[k] != plan.right_k[k]
    f = plan.prefactor_l[ell]
    per_degree = n_max * n_max if square else n_max * (n_max + 1) // 2
    q = plan.first_k[k] + ell * per_degree
    for n in range(n_max):
        for o in range(0 if square else n, n_max):
            twice = 2.0 * f if o == n and not square else f
            for s in range(0, OUTPUTS, LANES):
                v = twice * load(h, q * OUTPUTS + s)
                store(G, (n * n_pad + o) * OUTPUTS + s, v)
                if not square:
                    store(G, (o * n_pad + n) * OUTPUTS + s, v)
            q += 1


@njit
def _apply(plan, G, by_n, by_o, c, c0, dc, dc0, count):
    """dc[m, o, s] += sum_n G[n, o, s] c[m, n]; ``by_n`` and ``by_o`` are the strides of G."""
    n_max, n_pad = plan.n_max, plan.n_pad
    step = n_pad * OUTPUTS
    for o in range(n_max):
        for m in range(0, count - 1, 2):
            i = dc0 + m * step + o * OUTPUTS
            v, v2 = load(dc, i), load(dc, i + LANES)
            w, w2 = load(dc, i + step), load(dc, i + step + LANES)
            a = c0 + m * n_pad
            j = o * by_o
            for n in range(n_max):
                g, g2 = load(G, j), load(G, j + LANES)
                c_m, c_next = at(c, a + n), at(c, a + n_pad + n)
                v, v2 = v + c_m * g, v2 + c_m * g2
                w, w2 = w + c_next * g, w2 + c_next * g2
                j += by_n
            store(dc, i, v)
            store(dc, i + LANES, v2)
            store(dc, i + step, w)
            store(dc, i + step + LANES, w2)
        i = dc0 + (count - 1) * step + o * OUTPUTS  # 2 l + 1 is odd
        v, v2 = load(dc, i), load(dc, i + LANES)
        for n in range(n_max):
            c_m = at(c, c0 + (count - 1) * n_pad + n)
            v = v + c_m * load(G, n * by_n + o * by_o)
            v2 = v2 + c_m * load(G, n * by_n + o * by_o + LANES)
        store(dc, i, v)
        store(dc, i + LANES, v2)


@njit
def _power_adjoint(plan, c, h, dc, first, G):
    """dc = sum_q h_q dp_q/dc for a group of outputs, whose part of dc begins at ``first``."""
    n_pad = plan.n_pad
    size = (plan.l_max + 1) * (plan.l_max + 1) * n_pad
    dc[first : first + plan.n_channels * size * OUTPUTS] = 0.0
    by_n, by_o = n_pad * OUTPUTS, OUTPUTS
    for k in range(plan.left_k.shape[0]):
        left, right = plan.left_k[k] * size, plan.right_k[k] * size
        for ell in range(plan.l_max + 1):
            row, count = ell * ell * n_pad, 2 * ell + 1
            _unpack(plan, k, ell, h, G)
            here, there = left + row, right + row
            _apply(plan, G, by_n, by_o, c, here, dc, first + there * OUTPUTS, count)
            if left != right:
                _apply(plan, G, by_o, by_n, c, there, dc, first + here * OUTPUTS, count)
    if plan.has_sum:
        last = first + (plan.n_channels - 1) * size * OUTPUTS
        for channel in range(plan.n_channels - 1):
            here = first + channel * size * OUTPUTS
            for i in range(0, size * OUTPUTS, LANES):
                store(dc, here + i, load(dc, here + i) + load(dc, last + i))


@njit
def _pull(plan, ell, f, df, S, dS, q, dc, dc0, sums):
    """Add degree l to x, y, z and along D of neighbours q and q + 1: 4 times sixteen sums each.

    With A = sum_n f_nl dc_nlm and B = sum_n f'_nl dc_nlm: sum_m A dS_lm/dD, and sum_m B S_lm. Two
    neighbours, because with one the sums would wait for one another.
    """
    n_max, row, step = plan.n_max, plan.row, plan.n_pad * OUTPUTS
    block = (plan.l_max + 1) * (plan.l_max + 1) * LANES
    j = q * row + ell * plan.n_pad
    d = dc0 + ell * ell * step
    t = ell * ell * LANES + q
    for _ in range(2 * ell + 1):
        a, a2, b, b2 = zero(dc), zero(dc), zero(dc), zero(dc)
        e, e2, g, g2 = zero(dc), zero(dc), zero(dc), zero(dc)
        for n in range(n_max):
            v, w = load(dc, d + n * OUTPUTS), load(dc, d + n * OUTPUTS + LANES)
            here, slope = at(f, j + n), at(df, j + n)
            a, a2 = a + here * v, a2 + here * w
            b, b2 = b + slope * v, b2 + slope * w
            here, slope = at(f, j + row + n), at(df, j + row + n)
            e, e2 = e + here * v, e2 + here * w
            g, g2 = g + slope * v, g2 + slope * w
        i = q * 4 * OUTPUTS
        for c in range(3):
            s = at(dS, c * block + t)
            store(sums, i, load(sums, i) + s * a)
            store(sums, i + LANES, load(sums, i + LANES) + s * a2)
            i += OUTPUTS
        s = at(S, t)
        store(sums, i, load(sums, i) + s * b)
        store(sums, i + LANES, load(sums, i + LANES) + s * b2)
        i += OUTPUTS
        for c in range(3):
            s = at(dS, c * block + t + 1)
            store(sums, i, load(sums, i) + s * e)
            store(sums, i + LANES, load(sums, i + LANES) + s * e2)
            i += OUTPUTS
        s = at(S, t + 1)
        store(sums, i, load(sums, i) + s * g)
        store(sums, i + LANES, load(sums, i + LANES) + s * g2)
        d += step
        t += LANES


@njit
def vjp_many(plan, harmonics, species_n, j_p, D_pc, hoods, c_bi, x_bq, norm_b, g_bi, out):
    """out[p, c, s] = sum_q g_bqs dx_bq/dD_pc of the pairs p of the block, as ``hoods`` has them.

    ``g_bi`` holds a centre's g[q, s] in a row, ``out`` is flat; the number of outputs is a multiple
    of OUTPUTS.
    """
    l_max, row = plan.l_max, plan.row
    n_q = x_bq.shape[1]
    n_s = g_bi.shape[1] // n_q
    n_lm = (l_max + 1) * (l_max + 1)
    size = n_lm * plan.n_pad
    whole = plan.n_channels * size
    h = np.empty(n_q * OUTPUTS, c_bi.dtype)
    dc = np.empty(whole * n_s, c_bi.dtype)
    G = np.empty(plan.n_pad * plan.n_pad * OUTPUTS, c_bi.dtype)
    N = np.empty((l_max + 1) * (l_max + 2) // 2 * LANES, c_bi.dtype)
    cs = np.empty(2 * (l_max + 1) * LANES, c_bi.dtype)
    S = np.empty(n_lm * LANES, c_bi.dtype)
    dS = np.empty(3 * n_lm * LANES, c_bi.dtype)
    # An odd number of neighbours has one beside it whose sums nobody reads.
    f, df = np.zeros(LANES * row, c_bi.dtype), np.zeros(LANES * row, c_bi.dtype)
    sums = np.empty(LANES * 4 * OUTPUTS, c_bi.dtype)
    xyz = np.empty(3 * LANES, c_bi.dtype)
    for b in range(c_bi.shape[0]):
        start, offset = hoods.start_b[b], hoods.offset_b[b]
        n_pairs = hoods.offset_b[b + 1] - offset
        out[offset * 3 * n_s : (offset + n_pairs) * 3 * n_s] = 0.0
        if norm_b[b] == 0.0:
            continue
        for first in range(0, n_s, OUTPUTS):
            _direction_part(x_bq[b], norm_b[b], plan.scale_q, g_bi[b], first, n_s, h)
            _power_adjoint(plan, c_bi[b], h, dc, first * whole, G)
        chosen = np.empty(n_pairs, np.intp)
        for group in range(plan.channel_g.shape[0]):
            count = select(plan, species_n, j_p, hoods, b, group, chosen)
            table = plan.table_g[group]
            for k0 in range(0, count, LANES):
                directions(D_pc, start, chosen, k0, count, xyz)
                x8, y8, z8 = load8(xyz, 0), load8(xyz, LANES), load8(xyz, 2 * LANES)
                values(harmonics, x8, y8, z8, N, cs, S)
                gradients(harmonics, x8, y8, N, cs, dS)
                n_lanes = min(LANES, count - k0)
                for q in range(n_lanes):
                    p = offset + chosen[k0 + q]
                    r, w, dw = hoods.r_p[p], hoods.w_p[p], hoods.dw_p[p]
                    radial_and_slope(plan, table, r, w, dw, f, df, q * row)
                for first in range(0, n_s, OUTPUTS):
                    dc0 = first * whole + plan.channel_g[group] * size * OUTPUTS
                    sums[:] = 0.0
                    for ell in range(l_max + 1):
                        for q in range(0, n_lanes, 2):
                            _pull(plan, ell, f, df, S, dS, q, dc, dc0, sums)
                    for q in range(n_lanes):
                        p = offset + chosen[k0 + q]
                        for d in range(3):
                            e = xyz[d * LANES + q] / hoods.r_p[p]
                            i = (p * 3 + d) * n_s + first
                            j = q * 4 * OUTPUTS
                            for s in range(0, OUTPUTS, LANES):
                                v = load(sums, j + d * OUTPUTS + s)
                                v = v + e * load(sums, j + 3 * OUTPUTS + s)
                                store(out, i + s, v)
