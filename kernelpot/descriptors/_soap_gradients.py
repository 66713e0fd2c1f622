"""Derivatives of SOAP unit vectors, compiled: the adjoint (forces) and the Jacobian (fits).

For a neighbour at D with weighted radial function f_nl and slope f'_nl, both derivatives rest on
``dc_nlm/dD = f_nl dS_lm/dD + f'_nl S_lm D/r``. Neither forms dc/dD: the adjoint contracts over n
and m first, the Jacobian uses that each block of the power spectrum changes by two outer
products per degree l.
"""

from __future__ import annotations

import numpy as np

from kernelpot._jit import njit
from kernelpot._lanes import LANES, at, filled, load, load8, store, width, zero
from kernelpot.descriptors._harmonics import gradients, pulled_back, values
from kernelpot.descriptors._soap_numba import directions, select
from kernelpot.descriptors._spline import radial_and_pull, radial_and_slope

__all__ = ["jacobian", "vjp"]


@njit
def _apply(G, G0, c, c0, dc, dc0, n_pad, count):
    """dc[m, n] += sum_o G[o, n] c[m, o] for count rows m."""
    for n in range(0, n_pad, width(c)):
        for m in range(0, count - 1, 2):
            i = m * n_pad
            v = load(dc, dc0 + i + n)
            w = load(dc, dc0 + i + n_pad + n)
            for o in range(n_pad):
                g = load(G, G0 + o * n_pad + n)
                v = v + at(c, c0 + i + o) * g
                w = w + at(c, c0 + i + n_pad + o) * g
            store(dc, dc0 + i + n, v)
            store(dc, dc0 + i + n_pad + n, w)
        i = (count - 1) * n_pad  # 2 l + 1 is odd
        v = load(dc, dc0 + i + n)
        for o in range(n_pad):
            v = v + at(c, c0 + i + o) * load(G, G0 + o * n_pad + n)
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
def _by_radial(plan, S, dc, V):
    """V[q, l n] = sum_m S[lm, q] dc[lm, n]: what multiplies f_nl of each of eight neighbours."""
    n_pad, row = plan.n_pad, plan.row
    for ell in range(plan.l_max + 1):
        for n in range(0, n_pad, width(dc)):
            v0 = v1 = v2 = v3 = v4 = v5 = v6 = v7 = zero(dc)
            for lm in range(ell * ell, (ell + 1) * (ell + 1)):
                d = load(dc, lm * n_pad + n)
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
def _by_harmonic(plan, f, dc, A):
    """A[lm, q] = sum_n dc[lm, n] f[l n, q]: what multiplies S_lm of each of eight neighbours."""
    n_max, n_pad = plan.n_max, plan.n_pad
    for ell in range(plan.l_max + 1):
        f0 = ell * n_pad * LANES
        first = ell * ell
        for m in range(0, 2 * ell, 2):
            d = (first + m) * n_pad
            a = b = filled(load8(f, f0), 0.0)
            for n in range(n_max):
                v = load8(f, f0 + n * LANES)
                a = a + at(dc, d + n) * v
                b = b + at(dc, d + n_pad + n) * v
            store(A, (first + m) * LANES, a)
            store(A, (first + m + 1) * LANES, b)
        d = (first + 2 * ell) * n_pad
        a = filled(load8(f, f0), 0.0)
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
    h = np.empty(x.shape[0], x.dtype)
    for q in range(x.shape[0]):
        h[q] = (g[q] - along * x[q]) / norm
    for q in range(plan.scale_q.shape[0]):
        h[q] *= plan.scale_q[q]
    dc = np.empty(c.shape[0], c.dtype)
    _power_adjoint(plan, c, h, dc, np.empty(2 * n_pad * n_pad, c.dtype))
    N = np.empty((l_max + 1) * (l_max + 2) // 2 * LANES, c.dtype)
    cs = np.empty(2 * (l_max + 1) * LANES, c.dtype)
    S = np.empty(n_lm * LANES, c.dtype)
    f = np.zeros(LANES * row, c.dtype)
    V = np.empty(LANES * row, c.dtype)
    A = np.empty(n_lm * LANES, c.dtype)
    back = np.empty(4 * LANES, c.dtype)
    xyz = np.empty(3 * LANES, c.dtype)
    chosen = np.empty(n_pairs, np.intp)
    for group in range(plan.channel_g.shape[0]):
        count = select(plan, species_n, j_p, hoods, b, group, chosen)
        channel, table = plan.channel_g[group], plan.table_g[group]
        part = dc[channel * size : (channel + 1) * size]
        for k0 in range(0, count, LANES):
            n_lanes = min(LANES, count - k0)
            directions(D_pc, start, chosen, k0, count, xyz)
            x8, y8, z8 = load8(xyz, 0), load8(xyz, LANES), load8(xyz, 2 * LANES)
            values(harmonics, x8, y8, z8, N, cs, S)
            _by_radial(plan, S, part, V)
            for q in range(n_lanes):
                p = offset + chosen[k0 + q]
                radial = radial_and_pull(
                    plan, table, hoods.r_p[p], hoods.w_p[p], hoods.dw_p[p], V, q * row, f, q
                )
                back[3 * LANES + q] = radial / hoods.r_p[p]
            _by_harmonic(plan, f, part, A)
            pulled_back(harmonics, x8, y8, N, cs, A, back)
            for q in range(n_lanes):
                p = start + chosen[k0 + q]
                for d in range(3):
                    i = d * LANES + q
                    out_pc[p, d] = back[i] + back[3 * LANES + q] * xyz[i]


@njit
def vjp(plan, harmonics, species_n, j_p, D_pc, hoods, c_bi, x_bq, norm_b, g_bq, out_pc):
    """Rows of out_pc: sum_q g_bq dx_bq/dD_pc."""
    for b in range(c_bi.shape[0]):
        _vjp_centre(
            plan,
            harmonics,
            species_n,
            j_p,
            D_pc,
            hoods,
            b,
            c_bi[b],
            x_bq[b],
            norm_b[b],
            g_bq[b],
            out_pc,
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

    A row is written register by register: what runs over is overwritten by the next row or lies in
    the slack at the end of dp.
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
            for o in range(first, n_max, width(f)):
                v = f_n * load(U, right + j + o) + g_n * load(U, right_v + j + o)
                v = v + u_n * load(f, j + o) + v_n * load(g, j + o)
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
    N = np.empty((l_max + 1) * (l_max + 2) // 2 * LANES, c.dtype)
    cs = np.empty(2 * (l_max + 1) * LANES, c.dtype)
    S = np.empty(4 * n_lm * LANES, c.dtype)  # gradient by x, y, z; value
    U = np.zeros(plan.n_channels * 4 * LANES * row + LANES, c.dtype)
    f = np.zeros(row + LANES, c.dtype)
    df, g = f.copy(), f.copy()
    dp = np.zeros(x.shape[0] + LANES, c.dtype)
    xyz = np.empty(3 * LANES, c.dtype)
    chosen = np.empty(n_pairs, np.intp)
    n_blocks = plan.left_k.shape[0]
    for group in range(plan.channel_g.shape[0]):
        count = select(plan, species_n, j_p, hoods, b, group, chosen)
        channel, table = plan.channel_g[group], plan.table_g[group]
        for k0 in range(0, count, LANES):
            directions(D_pc, start, chosen, k0, count, xyz)
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
                radial_and_slope(plan, table, r, hoods.w_p[p], hoods.dw_p[p], f, df, 0)
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
                    for i in range(plan.scale_q.shape[0]):
                        dp[i] *= plan.scale_q[i]
                    _project(x, dp, J_pcq[p, d])


@njit
def jacobian(plan, harmonics, species_n, j_p, D_pc, hoods, c_bi, x_bq, norm_b, J_pcq):
    """dx_bq/dD_pc of the centres' pairs, in the order of ``hoods``."""
    for b in range(c_bi.shape[0]):
        _jacobian_centre(
            plan, harmonics, species_n, j_p, D_pc, hoods, b, c_bi[b], x_bq[b], norm_b[b], J_pcq
        )
