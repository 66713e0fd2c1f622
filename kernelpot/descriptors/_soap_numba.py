"""Density coefficients and power spectrum, compiled.

Axes of scratch arrays: ``lm`` is l^2 + l + m; ``j`` is l n_pad + n (a row of the radial table);
coefficients are c[channel, lm, n]. A channel is what densities are summed into: one per species,
or one for all (mu2, mixed species); mu1nu1 has one more, the sum of the others. Species of one
group share channel and radial table: mixed species each have a table of their own, whose functions
are the weighted ones of all mixtures. The power spectrum consists of blocks, each the product of a
left and a right channel.

Centres are independent of one another and each is summed in a fixed order, so the results do
not depend on how they are divided into blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernelpot._jit import njit
from kernelpot._lanes import LANES, at, load, load8, store, width, zero
from kernelpot.conventions import Float, Int
from kernelpot.descriptors._harmonics import values
from kernelpot.descriptors._spline import radial

__all__ = ["Neighbourhoods", "Plan", "directions", "features", "gather", "select"]


class Plan(NamedTuple):
    """What compiled code knows of a bound descriptor."""

    n_max: int
    n_pad: int
    l_max: int
    table: Float  # flat (n_tables, n_nodes, 3, row)
    row: int  # (l_max + 1) n_pad
    n_nodes: int
    inverse_step: float
    prefactor_l: Float
    scale_q: Float  # further factors of the features; empty for none
    group_z: Int  # group of each species
    channel_g: Int  # channel that a group is summed into
    table_g: Int  # where the radial table of a group begins
    n_channels: int  # those, and the one that holds their sum
    has_sum: bool  # mu1nu1: the last channel is the sum of the others
    left_k: Int
    right_k: Int
    first_k: Int  # offsets of the blocks, and their end
    self_zn: Float  # what the central atom adds to c[channel of its group, 0, n]


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
def select(plan, species_n, j_p, hoods, b, group, chosen):
    """Local numbers of the neighbours with a weight that belong to a group; their count."""
    count = 0
    start = hoods.start_b[b]
    offset = hoods.offset_b[b]
    for k in range(hoods.offset_b[b + 1] - offset):
        if hoods.w_p[offset + k] == 0.0 and hoods.dw_p[offset + k] == 0.0:
            continue
        if plan.group_z[species_n[j_p[start + k]]] == group:
            chosen[count] = k
            count += 1
    return count


@njit
def directions(D_pc, start, chosen, k0, count, xyz):
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
def _density(plan, S, f, c):
    """Add eight neighbours to the coefficients c[lm, n] of their channel."""
    n_pad, row = plan.n_pad, plan.row
    for ell in range(plan.l_max + 1):
        for n in range(0, n_pad, width(c)):
            j = ell * n_pad + n
            f0, f1 = load(f, j), load(f, j + row)
            f2, f3 = load(f, j + 2 * row), load(f, j + 3 * row)
            f4, f5 = load(f, j + 4 * row), load(f, j + 5 * row)
            f6, f7 = load(f, j + 6 * row), load(f, j + 7 * row)
            for lm in range(ell * ell, (ell + 1) * (ell + 1)):
                i = lm * LANES
                v = load(c, lm * n_pad + n) + at(S, i) * f0 + at(S, i + 1) * f1
                v = v + at(S, i + 2) * f2 + at(S, i + 3) * f3 + at(S, i + 4) * f4
                v = v + at(S, i + 5) * f5 + at(S, i + 6) * f6 + at(S, i + 7) * f7
                store(c, lm * n_pad + n, v)


@njit
def _densities(plan, harmonics, species_n, j_p, D_pc, centre, hoods, b, c):
    """All coefficients of one centre."""
    l_max = plan.l_max
    n_lm = (l_max + 1) * (l_max + 1)
    size = n_lm * plan.n_pad
    N = np.empty((l_max + 1) * (l_max + 2) // 2 * LANES, c.dtype)
    cs = np.empty(2 * (l_max + 1) * LANES, c.dtype)
    S = np.empty(n_lm * LANES, c.dtype)
    f = np.zeros(LANES * plan.row, c.dtype)
    xyz = np.empty(3 * LANES, c.dtype)
    start, offset = hoods.start_b[b], hoods.offset_b[b]
    chosen = np.empty(hoods.offset_b[b + 1] - offset, np.intp)
    c[:] = 0.0
    z = species_n[centre]
    own = plan.channel_g[plan.group_z[z]] * size
    for n in range(plan.n_pad):
        c[own + n] = plan.self_zn[z, n]
    for group in range(plan.channel_g.shape[0]):
        count = select(plan, species_n, j_p, hoods, b, group, chosen)
        channel = plan.channel_g[group]
        part = c[channel * size : (channel + 1) * size]
        for k0 in range(0, count, LANES):
            n_lanes = min(LANES, count - k0)
            directions(D_pc, start, chosen, k0, count, xyz)
            values(harmonics, load8(xyz, 0), load8(xyz, LANES), load8(xyz, 2 * LANES), N, cs, S)
            for q in range(n_lanes):
                p = offset + chosen[k0 + q]
                radial(plan, plan.table_g[group], hoods.r_p[p], hoods.w_p[p], f, q * plan.row)
            f[n_lanes * plan.row :] = 0.0
            _density(plan, S, f, part)
    if plan.has_sum:
        last = (plan.n_channels - 1) * size
        for channel in range(plan.n_channels - 1):
            for i in range(size):
                c[last + i] += c[channel * size + i]


@njit
def _tile(c, left, right, stride, count, P, i):
    """P[i.., 4 rows, a register of columns] = sum over count rows of c[left..] c[right..]."""
    p0 = p1 = p2 = p3 = zero(c)
    for m in range(count):
        a = left + m * stride
        b = load(c, right + m * stride)
        p0 = p0 + at(c, a) * b
        p1 = p1 + at(c, a + 1) * b
        p2 = p2 + at(c, a + 2) * b
        p3 = p3 + at(c, a + 3) * b
    store(P, i, p0)
    store(P, i + stride, p1)
    store(P, i + 2 * stride, p2)
    store(P, i + 3 * stride, p3)


@njit
def _power(plan, c, p, q, P):
    """Power spectrum, in dscribe's order, from c[channel, lm, n], to p[q...].

    A row is written register by register: what runs over is overwritten by the next row.
    """
    n_max, n_pad = plan.n_max, plan.n_pad
    l_max = plan.l_max
    size = (l_max + 1) * (l_max + 1) * n_pad
    for k in range(plan.left_k.shape[0]):
        left = plan.left_k[k] * size
        right = plan.right_k[k] * size
        square = left != right
        for ell in range(l_max + 1):
            row = ell * ell * n_pad
            for n in range(0, n_pad, 4):
                first = 0 if square else n - n % width(c)
                for o in range(first, n_pad, width(c)):
                    i = n * n_pad + o
                    _tile(c, left + row + n, right + row + o, n_pad, 2 * ell + 1, P, i)
            g = plan.prefactor_l[ell]
            for n in range(n_max):
                first = 0 if square else n
                for o in range(first, n_max, width(P)):
                    store(p, q + o - first, g * load(P, n * n_pad + o))
                q += n_max - first


@njit
def features(plan, harmonics, species_n, j_p, D_pc, centres_b, hoods, c_bi, x, norm_b):
    """Coefficients, unit vectors and norms of the power spectra of a block of centres.

    The vectors stand in ``x`` one after the other, and at its end there is room for LANES more.
    """
    P = np.empty(plan.n_pad * plan.n_pad + LANES, x.dtype)
    n_features = plan.first_k[plan.left_k.shape[0]]
    for b in range(centres_b.shape[0]):
        _densities(plan, harmonics, species_n, j_p, D_pc, centres_b[b], hoods, b, c_bi[b])
        _power(plan, c_bi[b], x, b * n_features, P)
        x_q = x[b * n_features : (b + 1) * n_features]
        for q in range(plan.scale_q.shape[0]):
            x_q[q] *= plan.scale_q[q]
        square = 0.0
        for q in range(n_features):
            square += x_q[q] * x_q[q]
        norm_b[b] = np.sqrt(square)
        # A centre that sees nothing, not even itself, has x = 0.
        inverse = 1.0 / norm_b[b] if square > 0.0 else 0.0
        for q in range(n_features):
            x_q[q] *= inverse
