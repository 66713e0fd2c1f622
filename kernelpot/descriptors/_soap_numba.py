"""Density coefficients, power spectrum, its adjoint and its Jacobian, compiled.

Axes of scratch arrays: ``lm`` is l^2 + l + m; ``j`` is l n_pad + n (a row of the radial table);
coefficients are c[channel, lm, n]. A channel is what densities are summed into: one per species,
or one for all (mu2); mu1nu1 has one more, the sum of the others. The power spectrum consists of
blocks, each the product of a left and a right channel.

Centres are independent of one another and each is summed in a fixed order, so the results do
not depend on the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernelpot._jit import njit, njit_parallel, prange
from kernelpot.conventions import Float, Int
from kernelpot.descriptors._harmonics import gradients, pulled_back, values
from kernelpot.descriptors._lanes import LANES, at, fill4, fill8, lane, load4, load8, store

__all__ = ["Neighbourhoods", "Plan", "features", "gather", "jacobian", "vjp"]

_CHUNK = 16  # centres that share one set of scratch arrays


class Plan(NamedTuple):
    """What compiled code knows of a bound descriptor."""

    n_max: int
    n_pad: int
    l_max: int
    table: Float  # flat (n_nodes, 3, row)
    row: int  # (l_max + 1) n_pad
    n_nodes: int
    inverse_step: float
    prefactor_l: Float
    channel_z: Int  # channel that a species is summed into
    n_channels: int  # those, and the one that holds their sum
    has_sum: bool  # mu1nu1: the last channel is the sum of the others
    left_k: Int
    right_k: Int
    first_k: Int  # offsets of the blocks, and their end
    self_zn: Float  # what the central atom adds to c[channel of z, 0, n]


class Neighbourhoods(NamedTuple):
    """Pairs of a block of centres: row ``offset_b[b] + k`` is pair ``start_b[b] + k``."""

    start_b: Int
    offset_b: Int  # (n_centres + 1,)
    r_p: Float
    w_p: Float
    dw_p: Float


@njit
def gather(first_n, r_p, centres_b):
    """Where the pairs of the centres stand, their numbers and distances in a row."""
    n = centres_b.shape[0]
    start_b = np.empty(n, np.intp)
    offset_b = np.zeros(n + 1, np.intp)
    for b in range(n):
        start_b[b] = first_n[centres_b[b]]
        offset_b[b + 1] = offset_b[b] + first_n[centres_b[b] + 1] - start_b[b]
    p_q = np.empty(offset_b[n], np.intp)
    r_q = np.empty(offset_b[n])
    for b in range(n):
        for k in range(offset_b[b + 1] - offset_b[b]):
            p_q[offset_b[b] + k] = start_b[b] + k
            r_q[offset_b[b] + k] = r_p[start_b[b] + k]
    return start_b, offset_b, p_q, r_q


@njit
def _select(plan, species_n, j_p, hoods, b, channel, chosen):
    """Local numbers of the neighbours with a weight that belong to a channel; their count."""
    count = 0
    start = hoods.start_b[b]
    offset = hoods.offset_b[b]
    for k in range(hoods.offset_b[b + 1] - offset):
        if hoods.w_p[offset + k] == 0.0 and hoods.dw_p[offset + k] == 0.0:
            continue
        if plan.channel_z[species_n[j_p[start + k]]] == channel:
            chosen[count] = k
            count += 1
    return count


@njit
def _directions(D_pc, start, chosen, k0, count, xyz):
    """Vectors of up to eight neighbours; idle lanes get a harmless one."""
    for q in range(LANES):
        if k0 + q < count:
            p = start + chosen[k0 + q]
            xyz[q] = D_pc[p, 0]
            xyz[LANES + q] = D_pc[p, 1]
            xyz[2 * LANES + q] = D_pc[p, 2]
        else:
            xyz[q] = 0.0
            xyz[LANES + q] = 0.0
            xyz[2 * LANES + q] = 1.0


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
def _radial(plan, r, w, f, i):
    """Write w f_nl(r) to f[i : i + row]."""
    u = r * plan.inverse_step
    k = min(int(u), plan.n_nodes - 2)
    h = _hermite(u - k)
    h0, h1, h2, h3, h4, h5 = w * h[0], w * h[1], w * h[2], w * h[3], w * h[4], w * h[5]
    T, row = plan.table, plan.row
    for j in range(0, row, 4):
        a = k * 3 * row + j
        v = h0 * load4(T, a) + h1 * load4(T, a + row) + h2 * load4(T, a + 2 * row)
        a += 3 * row
        v = v + h3 * load4(T, a) + h4 * load4(T, a + row) + h5 * load4(T, a + 2 * row)
        store(f, i + j, v)


@njit
def _radial_and_slope(plan, r, w, dw, f, df, i):
    """Write w f_nl and its derivative by r to rows of f and df."""
    u = r * plan.inverse_step
    k = min(int(u), plan.n_nodes - 2)
    h = _hermite(u - k)
    d = _hermite_slope(u - k)
    v = w * plan.inverse_step
    h0, h1, h2, h3, h4, h5 = w * h[0], w * h[1], w * h[2], w * h[3], w * h[4], w * h[5]
    d0, d1, d2 = dw * h[0] + v * d[0], dw * h[1] + v * d[1], dw * h[2] + v * d[2]
    d3, d4, d5 = dw * h[3] + v * d[3], dw * h[4] + v * d[4], dw * h[5] + v * d[5]
    T, row = plan.table, plan.row
    for j in range(0, row, 4):
        a = k * 3 * row + j
        t0, t1, t2 = load4(T, a), load4(T, a + row), load4(T, a + 2 * row)
        a += 3 * row
        t3, t4, t5 = load4(T, a), load4(T, a + row), load4(T, a + 2 * row)
        store(f, i + j, h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3 + h4 * t4 + h5 * t5)
        store(df, i + j, d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3 + d4 * t4 + d5 * t5)


@njit
def _density(plan, S, f, c):
    """Add eight neighbours to the coefficients c[lm, n] of their channel."""
    n_pad, row = plan.n_pad, plan.row
    for ell in range(plan.l_max + 1):
        for n in range(0, n_pad, 4):
            j = ell * n_pad + n
            f0, f1 = load4(f, j), load4(f, j + row)
            f2, f3 = load4(f, j + 2 * row), load4(f, j + 3 * row)
            f4, f5 = load4(f, j + 4 * row), load4(f, j + 5 * row)
            f6, f7 = load4(f, j + 6 * row), load4(f, j + 7 * row)
            for lm in range(ell * ell, (ell + 1) * (ell + 1)):
                i = lm * LANES
                v = load4(c, lm * n_pad + n) + at(S, i) * f0 + at(S, i + 1) * f1
                v = v + at(S, i + 2) * f2 + at(S, i + 3) * f3 + at(S, i + 4) * f4
                v = v + at(S, i + 5) * f5 + at(S, i + 6) * f6 + at(S, i + 7) * f7
                store(c, lm * n_pad + n, v)


@njit
def _tile(c, left, right, stride, count, P, i, width):
    """P[i..i+3, 4 columns] = sum over count rows of c[left + 0..3] c[right + 0..3]."""
    p0 = p1 = p2 = p3 = fill4(0.0)
    for m in range(count):
        a = left + m * stride
        b = load4(c, right + m * stride)
        p0 = p0 + at(c, a) * b
        p1 = p1 + at(c, a + 1) * b
        p2 = p2 + at(c, a + 2) * b
        p3 = p3 + at(c, a + 3) * b
    store(P, i, p0)
    store(P, i + width, p1)
    store(P, i + 2 * width, p2)
    store(P, i + 3 * width, p3)


@njit
def _power(plan, c, p, P):
    """Power spectrum, in dscribe's order, from c[channel, lm, n]."""
    n_max, n_pad = plan.n_max, plan.n_pad
    l_max = plan.l_max
    size = (l_max + 1) * (l_max + 1) * n_pad
    for k in range(plan.left_k.shape[0]):
        left = plan.left_k[k] * size
        right = plan.right_k[k] * size
        square = left != right
        q = plan.first_k[k]
        for ell in range(l_max + 1):
            row = ell * ell * n_pad
            for n in range(0, n_pad, 4):
                for o in range(0 if square else n, n_pad, 4):
                    i = n * n_pad + o
                    _tile(c, left + row + n, right + row + o, n_pad, 2 * ell + 1, P, i, n_pad)
            g = plan.prefactor_l[ell]
            for n in range(n_max):
                first = 0 if square else n
                for o in range(first, n_max):
                    p[q + o - first] = g * at(P, n * n_pad + o)
                q += n_max - first


@njit
def _apply(G, G0, c, c0, dc, dc0, n_pad, count):
    """dc[m, n] += sum_o G[o, n] c[m, o] for count rows m."""
    for n in range(0, n_pad, 4):
        for m in range(0, count - 1, 2):
            i = m * n_pad
            v = load4(dc, dc0 + i + n)
            w = load4(dc, dc0 + i + n_pad + n)
            for o in range(n_pad):
                g = load4(G, G0 + o * n_pad + n)
                v = v + at(c, c0 + i + o) * g
                w = w + at(c, c0 + i + n_pad + o) * g
            store(dc, dc0 + i + n, v)
            store(dc, dc0 + i + n_pad + n, w)
        i = (count - 1) * n_pad  # 2 l + 1 is odd
        v = load4(dc, dc0 + i + n)
        for o in range(n_pad):
            v = v + at(c, c0 + i + o) * load4(G, G0 + o * n_pad + n)
        store(dc, dc0 + i + n, v)


@njit
def _power_adjoint(plan, c, h, dc, G):
    """dc = sum_q h_q dp_q/dc."""
    n_max, n_pad = plan.n_max, plan.n_pad
    l_max = plan.l_max
    size = (l_max + 1) * (l_max + 1) * n_pad
    dc[:] = 0.0
    G[:] = 0.0
    transposed = n_pad * n_pad
    for k in range(plan.left_k.shape[0]):
        left = plan.left_k[k] * size
        right = plan.right_k[k] * size
        square = left != right
        q = plan.first_k[k]
        for ell in range(l_max + 1):
            f = plan.prefactor_l[ell]
            row = ell * ell * n_pad
            if square:
                for n in range(n_max):
                    for o in range(n_max):
                        g = f * h[np.uintp(q + o)]
                        G[np.uintp(n * n_pad + o)] = g
                        G[np.uintp(transposed + o * n_pad + n)] = g
                    q += n_max
                _apply(G, 0, c, left + row, dc, right + row, n_pad, 2 * ell + 1)
                _apply(G, transposed, c, right + row, dc, left + row, n_pad, 2 * ell + 1)
            else:
                for n in range(n_max):
                    for o in range(n, n_max):
                        g = f * h[np.uintp(q + o - n)]
                        G[np.uintp(n * n_pad + o)] = g
                        G[np.uintp(o * n_pad + n)] = g
                    q += n_max - n
                    G[np.uintp(n * n_pad + n)] *= 2.0
                _apply(G, 0, c, left + row, dc, left + row, n_pad, 2 * ell + 1)
    if plan.has_sum:
        last = (plan.n_channels - 1) * size
        for channel in range(plan.n_channels - 1):
            for i in range(size):
                dc[channel * size + i] += dc[last + i]


@njit
def _densities(plan, harmonics, species_n, j_p, D_pc, centre, hoods, b, c):
    """All coefficients of one centre."""
    l_max = plan.l_max
    n_lm = (l_max + 1) * (l_max + 1)
    size = n_lm * plan.n_pad
    N = np.empty((l_max + 1) * (l_max + 2) // 2 * LANES)
    cs = np.empty(2 * (l_max + 1) * LANES)
    S = np.empty(n_lm * LANES)
    f = np.zeros(LANES * plan.row)
    xyz = np.empty(3 * LANES)
    start, offset = hoods.start_b[b], hoods.offset_b[b]
    chosen = np.empty(hoods.offset_b[b + 1] - offset, np.intp)
    c[:] = 0.0
    z = species_n[centre]
    own = plan.channel_z[z] * size
    for n in range(plan.n_pad):
        c[own + n] = plan.self_zn[z, n]
    n_own = plan.n_channels - 1 if plan.has_sum else plan.n_channels
    for channel in range(n_own):
        count = _select(plan, species_n, j_p, hoods, b, channel, chosen)
        part = c[channel * size : (channel + 1) * size]
        for k0 in range(0, count, LANES):
            n_lanes = min(LANES, count - k0)
            _directions(D_pc, start, chosen, k0, count, xyz)
            values(harmonics, load8(xyz, 0), load8(xyz, LANES), load8(xyz, 2 * LANES), N, cs, S)
            for q in range(n_lanes):
                p = offset + chosen[k0 + q]
                _radial(plan, hoods.r_p[p], hoods.w_p[p], f, q * plan.row)
            f[n_lanes * plan.row :] = 0.0
            _density(plan, S, f, part)
    if plan.has_sum:
        last = n_own * size
        for channel in range(n_own):
            for i in range(size):
                c[last + i] += c[channel * size + i]


@njit_parallel
def features(plan, harmonics, species_n, j_p, D_pc, centres_b, hoods, c_bi, x_bq, norm_b):
    """Coefficients, unit vectors and norms of the power spectra of a block of centres."""
    for b in prange(centres_b.shape[0]):
        _densities(plan, harmonics, species_n, j_p, D_pc, centres_b[b], hoods, b, c_bi[b])
        x = x_bq[b]
        _power(plan, c_bi[b], x, np.empty(plan.n_pad * plan.n_pad))
        square = 0.0
        for q in range(x.shape[0]):
            square += x[q] * x[q]
        norm_b[b] = np.sqrt(square)
        # A centre that sees nothing, not even itself, has x = 0.
        inverse = 1.0 / norm_b[b] if square > 0.0 else 0.0
        for q in range(x.shape[0]):
            x[q] *= inverse


@njit
def _by_radial(plan, S, dc, V):
    """V[q, l n] = sum_m S[lm, q] dc[lm, n]: what multiplies f_nl of each of eight neighbours."""
    n_pad, row = plan.n_pad, plan.row
    for ell in range(plan.l_max + 1):
        for n in range(0, n_pad, 4):
            v0 = v1 = v2 = v3 = v4 = v5 = v6 = v7 = fill4(0.0)
            for lm in range(ell * ell, (ell + 1) * (ell + 1)):
                d = load4(dc, lm * n_pad + n)
                i = lm * LANES
                v0 = v0 + at(S, i) * d
                v1 = v1 + at(S, i + 1) * d
                v2 = v2 + at(S, i + 2) * d
                v3 = v3 + at(S, i + 3) * d
                v4 = v4 + at(S, i + 4) * d
                v5 = v5 + at(S, i + 5) * d
                v6 = v6 + at(S, i + 6) * d
                v7 = v7 + at(S, i + 7) * d
            j = ell * n_pad + n
            store(V, j, v0)
            store(V, j + row, v1)
            store(V, j + 2 * row, v2)
            store(V, j + 3 * row, v3)
            store(V, j + 4 * row, v4)
            store(V, j + 5 * row, v5)
            store(V, j + 6 * row, v6)
            store(V, j + 7 * row, v7)


@njit
def _radial_and_pull(plan, r, w, dw, V, i, f, q):
    """Write w f_nl(r) to f[l n, q]; return sum_ln V[l n] d(w f_nl)/dr."""
    u = r * plan.inverse_step
    k = min(int(u), plan.n_nodes - 2)
    h = _hermite(u - k)
    d = _hermite_slope(u - k)
    v = w * plan.inverse_step
    h0, h1, h2, h3, h4, h5 = w * h[0], w * h[1], w * h[2], w * h[3], w * h[4], w * h[5]
    d0, d1, d2 = dw * h[0] + v * d[0], dw * h[1] + v * d[1], dw * h[2] + v * d[2]
    d3, d4, d5 = dw * h[3] + v * d[3], dw * h[4] + v * d[4], dw * h[5] + v * d[5]
    T, row = plan.table, plan.row
    total = fill4(0.0)
    for j in range(0, row, 4):
        a = k * 3 * row + j
        t0, t1, t2 = load4(T, a), load4(T, a + row), load4(T, a + 2 * row)
        a += 3 * row
        t3, t4, t5 = load4(T, a), load4(T, a + row), load4(T, a + 2 * row)
        here = h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3 + h4 * t4 + h5 * t5
        slope = d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3 + d4 * t4 + d5 * t5
        total = total + slope * load4(V, i + j)
        s = j * LANES + q
        f[s] = lane(here, 0)
        f[s + LANES] = lane(here, 1)
        f[s + 2 * LANES] = lane(here, 2)
        f[s + 3 * LANES] = lane(here, 3)
    return (lane(total, 0) + lane(total, 1)) + (lane(total, 2) + lane(total, 3))


@njit
def _by_harmonic(plan, f, dc, A):
    """A[lm, q] = sum_n dc[lm, n] f[l n, q]: what multiplies S_lm of each of eight neighbours."""
    n_max, n_pad = plan.n_max, plan.n_pad
    for ell in range(plan.l_max + 1):
        f0 = ell * n_pad * LANES
        first = ell * ell
        for m in range(0, 2 * ell, 2):
            d = (first + m) * n_pad
            a, b = fill8(0.0), fill8(0.0)
            for n in range(n_max):
                v = load8(f, f0 + n * LANES)
                a = a + at(dc, d + n) * v
                b = b + at(dc, d + n_pad + n) * v
            store(A, (first + m) * LANES, a)
            store(A, (first + m + 1) * LANES, b)
        d = (first + 2 * ell) * n_pad
        a = fill8(0.0)
        for n in range(n_max):
            a = a + at(dc, d + n) * load8(f, f0 + n * LANES)
        store(A, (first + 2 * ell) * LANES, a)


@njit
def _vjp_centre(plan, harmonics, species_n, j_p, D_pc, hoods, b, c, x, norm, g, out_pc):
    l_max = plan.l_max
    n_lm = (l_max + 1) * (l_max + 1)
    n_pad, row = plan.n_pad, plan.row
    size = n_lm * n_pad
    start, offset = hoods.start_b[b], hoods.offset_b[b]
    n_pairs = hoods.offset_b[b + 1] - offset
    for p in range(start, start + n_pairs):
        for k in range(3):
            out_pc[p, k] = 0.0
    if norm == 0.0:
        return
    along = 0.0
    for q in range(x.shape[0]):
        along += x[q] * g[q]
    h = np.empty(x.shape[0])
    for q in range(x.shape[0]):
        h[q] = (g[q] - along * x[q]) / norm
    dc = np.empty(c.shape[0])
    _power_adjoint(plan, c, h, dc, np.empty(2 * n_pad * n_pad))
    N = np.empty((l_max + 1) * (l_max + 2) // 2 * LANES)
    cs = np.empty(2 * (l_max + 1) * LANES)
    S = np.empty(n_lm * LANES)
    f = np.zeros(LANES * row)
    V = np.empty(LANES * row)
    A = np.empty(n_lm * LANES)
    back = np.empty(4 * LANES)
    xyz = np.empty(3 * LANES)
    chosen = np.empty(n_pairs, np.intp)
    n_own = plan.n_channels - 1 if plan.has_sum else plan.n_channels
    for channel in range(n_own):
        count = _select(plan, species_n, j_p, hoods, b, channel, chosen)
        part = dc[channel * size : (channel + 1) * size]
        for k0 in range(0, count, LANES):
            n_lanes = min(LANES, count - k0)
            _directions(D_pc, start, chosen, k0, count, xyz)
            x8, y8, z8 = load8(xyz, 0), load8(xyz, LANES), load8(xyz, 2 * LANES)
            values(harmonics, x8, y8, z8, N, cs, S)
            _by_radial(plan, S, part, V)
            for q in range(n_lanes):
                p = offset + chosen[k0 + q]
                radial = _radial_and_pull(
                    plan, hoods.r_p[p], hoods.w_p[p], hoods.dw_p[p], V, q * row, f, q
                )
                back[3 * LANES + q] = radial / hoods.r_p[p]
            _by_harmonic(plan, f, part, A)
            pulled_back(harmonics, x8, y8, N, cs, A, back)
            for q in range(n_lanes):
                p = start + chosen[k0 + q]
                for d in range(3):
                    i = d * LANES + q
                    out_pc[p, d] = back[i] + back[3 * LANES + q] * xyz[i]


@njit_parallel
def vjp(plan, harmonics, species_n, j_p, D_pc, hoods, c_bi, x_bq, norm_b, g_bq, out_pc):
    """Rows of out_pc: sum_q g_bq dx_bq/dD_pc."""
    for b in prange(c_bi.shape[0]):
        _vjp_centre(
            plan, harmonics, species_n, j_p, D_pc, hoods, b, c_bi[b], x_bq[b], norm_b[b], g_bq[b], out_pc
        )


@njit
def _meets(plan, block, channel):
    """Whether a neighbour in this channel moves the left and the right side of a block."""
    right = plan.right_k[block]
    of_sum = plan.has_sum and right == plan.n_channels - 1
    return plan.left_k[block] == channel, of_sum or right == channel


@njit
def _product_rule(plan, block, in_left, in_right, f, g, U, left, left_v, right, right_v, dp):
    """Write one block of dp = f_n U_o + g_n V_o + U_n f_o + g_o V_n, row after row.

    Rows are written in fours: what runs over is overwritten by the next row or lies in the slack
    at the end of dp.
    """
    n_max, n_pad = plan.n_max, plan.n_pad
    square = plan.left_k[block] != plan.right_k[block]
    i = plan.first_k[block]
    by_left, by_right = 1.0 if in_left else 0.0, 1.0 if in_right else 0.0
    for ell in range(plan.l_max + 1):
        j = ell * n_pad
        for n in range(n_max):
            f_n, g_n = by_left * at(f, j + n), by_left * at(g, j + n)
            u_n = by_right * at(U, left + j + n)
            v_n = by_right * at(U, left_v + j + n)
            first = 0 if square else n
            for o in range(first, n_max, 4):
                v = f_n * load4(U, right + j + o) + g_n * load4(U, right_v + j + o)
                v = v + u_n * load4(f, j + o) + v_n * load4(g, j + o)
                store(dp, i + o - first, v)
            i += n_max - first


@njit
def _project(x, dp, out):
    """out = dp - x (x . dp): the part that changes the direction of p."""
    n_q = x.shape[0]
    along = 0.0
    for q in range(n_q):
        along += x[q] * dp[q]
    for q in range(n_q):
        out[q] = dp[q] - along * x[q]


@njit
def _jacobian_centre(plan, harmonics, species_n, j_p, D_pc, hoods, b, c, x, norm, J_pcq):
    l_max = plan.l_max
    n_lm = (l_max + 1) * (l_max + 1)
    n_pad, row = plan.n_pad, plan.row
    size = n_lm * n_pad
    start, offset = hoods.start_b[b], hoods.offset_b[b]
    n_pairs = hoods.offset_b[b + 1] - offset
    for p in range(offset, offset + n_pairs):
        if norm == 0.0 or (hoods.w_p[p] == 0.0 and hoods.dw_p[p] == 0.0):
            J_pcq[p] = 0.0
    if norm == 0.0:
        return
    N = np.empty((l_max + 1) * (l_max + 2) // 2 * LANES)
    cs = np.empty(2 * (l_max + 1) * LANES)
    S = np.empty(4 * n_lm * LANES)  # gradient by x, y, z; value
    U = np.zeros(plan.n_channels * 4 * LANES * row + LANES)
    f, df, g = np.zeros(row + LANES), np.zeros(row + LANES), np.zeros(row + LANES)
    dp = np.zeros(x.shape[0] + LANES)
    xyz = np.empty(3 * LANES)
    chosen = np.empty(n_pairs, np.intp)
    n_blocks = plan.left_k.shape[0]
    for channel in range(plan.n_channels - 1 if plan.has_sum else plan.n_channels):
        count = _select(plan, species_n, j_p, hoods, b, channel, chosen)
        for k0 in range(0, count, LANES):
            _directions(D_pc, start, chosen, k0, count, xyz)
            x8, y8, z8 = load8(xyz, 0), load8(xyz, LANES), load8(xyz, 2 * LANES)
            values(harmonics, x8, y8, z8, N, cs, S[3 * n_lm * LANES :])
            gradients(harmonics, x8, y8, N, cs, S)
            for other in range(plan.n_channels):
                wanted = False
                for k in range(n_blocks):
                    in_left, in_right = _meets(plan, k, channel)
                    wanted |= in_left and plan.right_k[k] == other
                    wanted |= in_right and plan.left_k[k] == other
                if wanted:
                    part = c[other * size : (other + 1) * size]
                    for d in range(4):
                        i = (other * 4 + d) * LANES * row
                        _by_radial(plan, S[d * n_lm * LANES :], part, U[i:])
            for q in range(min(LANES, count - k0)):
                p = offset + chosen[k0 + q]
                r = hoods.r_p[p]
                _radial_and_slope(plan, r, hoods.w_p[p], hoods.dw_p[p], f, df, 0)
                for ell in range(l_max + 1):
                    for j in range(ell * n_pad, (ell + 1) * n_pad):
                        f[j] *= plan.prefactor_l[ell] / norm
                        df[j] *= plan.prefactor_l[ell] / norm
                for d in range(3):
                    e = xyz[d * LANES + q] / r
                    for j in range(row):
                        g[j] = e * df[j]
                    for k in range(n_blocks):
                        in_left, in_right = _meets(plan, k, channel)
                        if in_left or in_right:
                            left = (plan.left_k[k] * 4 * LANES + q) * row
                            right = (plan.right_k[k] * 4 * LANES + q) * row
                            s = d * LANES * row
                            v = 3 * LANES * row
                            _product_rule(
                                plan, k, in_left, in_right, f, g, U,
                                left + s, left + v, right + s, right + v, dp,
                            )  # fmt: skip
                        else:
                            dp[plan.first_k[k] : plan.first_k[k + 1]] = 0.0
                    _project(x, dp, J_pcq[p, d])


@njit_parallel
def jacobian(plan, harmonics, species_n, j_p, D_pc, hoods, c_bi, x_bq, norm_b, J_pcq):
    """dx_bq/dD_pc of the centres' pairs, in the order of ``hoods``."""
    for b in prange(c_bi.shape[0]):
        _jacobian_centre(
            plan, harmonics, species_n, j_p, D_pc, hoods, b, c_bi[b], x_bq[b], norm_b[b], J_pcq
        )
