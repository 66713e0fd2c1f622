"""Real solid harmonics and their gradients by recursion, eight neighbours at a time.

``S_lm = N_lm(z, r^2) c_m(x, y)`` and ``S_l-m = N_lm s_m`` with ``c_m + i s_m = (x + i y)^m``,
normalised so that S / r^l are orthonormal on the sphere. N is a polynomial that obeys

    N_lm = rise_lm z N_(l-1)m - fall_lm r^2 N_(l-2)m
    dN_lm/dz = along_lm N_(l-1)m          dN_lm/dx = x across_lm N_(l-1)(m+1)

where r^2 counts as a function of x, y and z.

Source: Bigi, Fraux, Browning and Ceriotti, J. Chem. Phys. 159, 064802 (2023).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kernelpot._jit import njit
from kernelpot._lanes import LANES, at, filled, load8, store
from kernelpot.conventions import Float

__all__ = ["Harmonics", "gradients", "harmonics", "pulled_back", "values"]


class Harmonics(NamedTuple):
    """Coefficients of the recursion; entry ``l (l + 1) / 2 + m`` belongs to l, m."""

    l_max: int
    rise_t: Float
    fall_t: Float
    along_t: Float
    across_t: Float
    start_m: Float  # N_mm


def harmonics(l_max: int, dtype: type[np.floating] = np.float64) -> Harmonics:
    """Recursion coefficients up to degree l_max.

    Parameters
    ----------
    l_max : int
        Highest degree.
    dtype : type[np.floating]
        Precision of the coefficients.

    Returns
    -------
    Harmonics
        What the compiled functions take.
    """

    def norm(ell: int, m: int) -> float:
        ratio = math.factorial(ell - m) / math.factorial(ell + m)
        return math.sqrt((2 * ell + 1) * ratio / ((4 if m == 0 else 2) * math.pi))

    n = (l_max + 1) * (l_max + 2) // 2
    rise, fall, along, across = np.zeros((4, n))
    for ell in range(1, l_max + 1):
        for m in range(ell):
            t = ell * (ell + 1) // 2 + m
            rise[t] = norm(ell, m) / norm(ell - 1, m) * (2 * ell - 1) / (ell - m)
            along[t] = norm(ell, m) / norm(ell - 1, m) * (ell + m)
            if m <= ell - 2:
                fall[t] = norm(ell, m) / norm(ell - 2, m) * (ell + m - 1) / (ell - m)
                across[t] = -norm(ell, m) / norm(ell - 1, m + 1)
    # (2 m - 1)!!
    start = [norm(m, m) * math.prod(range(1, 2 * m, 2)) for m in range(l_max + 1)]
    return Harmonics(
        l_max, *(np.asarray(a).astype(dtype) for a in (rise, fall, along, across, start))
    )


@njit
def values(h, x, y, z, N, cs, S):
    """Fill N (l m triangle), cs (cosines, then sines, by m) and S (l^2 + l + m) for 8 points."""
    l_max = h.l_max
    square = x * x + y * y + z * z
    c, s = filled(x, 1.0), filled(x, 0.0)
    sines = (l_max + 1) * LANES
    for m in range(l_max + 1):
        store(cs, m * LANES, c)
        store(cs, sines + m * LANES, s)
        low, here = filled(x, 0.0), filled(x, h.start_m[m])
        for ell in range(m, l_max + 1):
            t = ell * (ell + 1) // 2 + m
            if ell > m:
                rise, fall = at(h.rise_t, t), at(h.fall_t, t)
                low, here = here, rise * z * here - fall * square * low
            store(N, t * LANES, here)
            lm = (ell * ell + ell) * LANES
            store(S, lm - m * LANES, here * s)
            store(S, lm + m * LANES, here * c)  # after the sine, which for m = 0 is no function
        c, s = x * c - y * s, x * s + y * c


@njit
def gradients(h, x, y, N, cs, dS):
    """Gradients of S from what ``values`` left in N and cs; dS has blocks x, y, z."""
    l_max = h.l_max
    sines = (l_max + 1) * LANES
    block = (l_max + 1) * (l_max + 1) * LANES
    for m in range(l_max + 1):
        c, s = load8(cs, m * LANES), load8(cs, sines + m * LANES)
        before = max(m - 1, 0)  # for m = 0 multiplied by 0
        c1 = float(m) * load8(cs, before * LANES)
        s1 = float(m) * load8(cs, sines + before * LANES)
        for ell in range(m, l_max + 1):
            t = ell * (ell + 1) // 2 + m
            here = load8(N, t * LANES)
            along = across = filled(x, 0.0)
            if ell > m:
                along = at(h.along_t, t) * load8(N, (t - ell) * LANES)
            if ell > m + 1:
                across = at(h.across_t, t) * load8(N, (t - ell + 1) * LANES)
            i = (ell * ell + ell - m) * LANES
            store(dS, i, x * across * s + here * s1)
            store(dS, i + block, y * across * s + here * c1)
            store(dS, i + 2 * block, along * s)
            i = (ell * ell + ell + m) * LANES
            store(dS, i, x * across * c + here * c1)
            store(dS, i + block, y * across * c - here * s1)
            store(dS, i + 2 * block, along * c)


@njit
def pulled_back(h, x, y, N, cs, a, out):
    """Gradient of sum_lm a_lm S_lm: three times eight numbers in ``out``.

    The reverse of ``values``: nothing of the size (l, m, 3) is formed.
    """
    l_max = h.l_max
    sines = (l_max + 1) * LANES
    fx = fy = fz = sideways = filled(x, 0.0)
    for m in range(l_max + 1):
        c, s = load8(cs, m * LANES), load8(cs, sines + m * LANES)
        to_c = to_s = filled(x, 0.0)
        for ell in range(m, l_max + 1):
            t = ell * (ell + 1) // 2 + m
            lm = ell * ell + ell
            # s is zero for m = 0, and to_s is multiplied by m: a is only read twice there.
            a_c, a_s = load8(a, (lm + m) * LANES), load8(a, (lm - m) * LANES)
            here = load8(N, t * LANES)
            to_c = to_c + a_c * here
            to_s = to_s + a_s * here
            u = a_c * c + a_s * s
            if ell > m:
                fz = fz + at(h.along_t, t) * u * load8(N, (t - ell) * LANES)
            if ell > m + 1:
                sideways = sideways + at(h.across_t, t) * u * load8(N, (t - ell + 1) * LANES)
        if m > 0:
            c1 = float(m) * load8(cs, (m - 1) * LANES)
            s1 = float(m) * load8(cs, sines + (m - 1) * LANES)
            fx = fx + to_c * c1 + to_s * s1
            fy = fy + to_s * c1 - to_c * s1
    store(out, 0, fx + x * sideways)
    store(out, LANES, fy + y * sideways)
    store(out, 2 * LANES, fz)
