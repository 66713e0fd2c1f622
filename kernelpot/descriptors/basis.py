"""The radial basis, tabulated.

The density coefficients are ``c_nlm = sum_j w(r_j) f_nl(r_j) S_lm(D_j)``: S are real solid
harmonics (they carry r^l), w is the weight of `radial`, and f_nl is the same function for every
pair. It is tabulated once with its first two derivatives and read by quintic Hermite
interpolation, which is twice continuously differentiable. The derivative used in forces is the
derivative of the interpolant: forces are the gradient of the energy to rounding, whatever the
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import ive

from kernelpot.conventions import Float, as_float

__all__ = ["RadialTable", "gto_functions", "polynomial_functions", "tabulate"]


class RadialTable(NamedTuple):
    """f_nl on a uniform grid from r = 0: rows of (value, derivative x step, second x step^2)."""

    values: Float  # (n_nodes, 3, (l_max + 1) * n_pad), n last
    step: float  # angstrom


def gto_functions(alpha_ln: Float, beta_lnk: Float, sigma: float, r_p: Float) -> Float:
    """Radial functions of the Gaussian-type-orbital basis, r^l split off, and derivatives.

    The overlap of a Gaussian of width sigma at distance r with ``sum_k beta_lnk r^l
    exp(-alpha_lk r^2)`` is, with ``eta = 1 / (2 sigma^2)``, ``r^l sum_k beta_lnk
    (pi/(alpha+eta))^(3/2) (eta/(alpha+eta))^l exp(-alpha eta/(alpha+eta) r^2)``.

    Source: Himanen et al., Comput. Phys. Commun. 247, 106949 (2020).

    Parameters
    ----------
    alpha_ln : Float
        Exponents, 1/angstrom^2, shape (l_max + 1, n_max).
    beta_lnk : Float
        Orthonormalisation, shape (l_max + 1, n_max, n_max).
    sigma : float
        Width of an atom's Gaussian, angstrom.
    r_p : Float
        Distances, angstrom.

    Returns
    -------
    Float
        Shape (3, n_points, l_max + 1, n_max): value, first and second derivative.
    """
    eta = 0.5 / sigma**2
    l_max = len(alpha_ln) - 1
    s_ln = alpha_ln + eta
    powers_l = np.arange(l_max + 1)[:, None]
    b_lnk = beta_lnk * ((np.pi / s_ln) ** 1.5 * (eta / s_ln) ** powers_l)[:, None, :]
    g_lk = alpha_ln * eta / s_ln
    r_plk = r_p[:, None, None]
    e_plk = np.exp(-g_lk * r_plk**2)
    d1_plk = -2.0 * g_lk * r_plk * e_plk
    d2_plk = (4.0 * (g_lk * r_plk) ** 2 - 2.0 * g_lk) * e_plk
    return np.einsum("lnk,dplk->dpln", b_lnk, np.stack([e_plk, d1_plk, d2_plk]), optimize=True)


def polynomial_functions(
    nodes_x: Float, basis_nx: Float, cutoff: float, sigma: float, l_max: int, r_p: Float
) -> Float:
    """Radial functions of the polynomial basis, r^l split off, and derivatives.

    ``4 pi int_0^cutoff ds s^2 g_n(s) exp(-eta (r^2 + s^2)) i_l(2 eta r s)`` with dscribe's
    100 Gauss-Legendre points; i_l is the modified spherical Bessel function. With
    ``h_l(x) = i_l(x) / x^l`` the derivative is ``h_l' = x h_(l+1)``.

    dscribe finds i_l by upward recursion, which loses digits where its argument is small
    (of the order of 1e-10 of the power spectrum), and drops ``exp(-eta (r + s)^2)`` for
    r + s > 5 angstrom, which shows for sigma above 0.7 angstrom. Here both are exact.

    Parameters
    ----------
    nodes_x : Float
        Integration points in (0, cutoff), angstrom.
    basis_nx : Float
        Basis functions g_n there.
    cutoff : float
        Upper end of the integral, angstrom.
    sigma : float
        Width of an atom's Gaussian, angstrom.
    l_max : int
        Highest degree.
    r_p : Float
        Distances, angstrom.

    Returns
    -------
    Float
        Shape (3, n_points, l_max + 1, n_max): value, first and second derivative.
    """
    eta = 0.5 / sigma**2
    weights_x = 0.5 * cutoff * np.polynomial.legendre.leggauss(len(nodes_x))[1]
    k_x = 2.0 * eta * nodes_x
    x_px = r_p[:, None] * k_x
    gauss_px = np.exp(-eta * (r_p[:, None] - nodes_x) ** 2)
    basis_nx = 4.0 * np.pi * basis_nx * weights_x * nodes_x**2
    # h carries exp(-x); gauss_px holds the exp(+x) that belongs to it. Downward recursion is
    # stable: all terms are positive.
    h = [_bessel_over_power(ell, x_px) * gauss_px for ell in (l_max + 2, l_max + 1)]
    for ell in range(l_max + 1, 0, -1):
        h.append(x_px**2 * h[-2] + (2 * ell + 1) * h[-1])
    h.reverse()
    out = np.empty((3, len(r_p), l_max + 1, len(basis_nx)))
    r_px = r_p[:, None]
    for ell in range(l_max + 1):
        # F(r) = k^l e^(-eta r^2) h_l(k r), so F' = k^l e^.. (k x h_(l+1) - 2 eta r h_l).
        a, b, c = h[ell], k_x**2 * r_px * h[ell + 1], k_x**2 * (h[ell + 1] + x_px**2 * h[ell + 2])
        d = -2.0 * eta * r_px
        parts = (a, b + d * a, c + 2.0 * d * b + (d * d - 2.0 * eta) * a)
        for k, part_px in enumerate(parts):
            out[k, :, ell] = (part_px * k_x**ell) @ basis_nx.T
    return out


def _bessel_over_power(ell: int, x: Float) -> Float:
    """exp(-x) i_l(x) / x^l, by its series where the quotient would lose digits."""
    series = np.zeros_like(x)
    small = np.minimum(x, 2.0)
    term = np.full_like(x, 1.0 / np.prod(np.arange(1.0, 2 * ell + 2, 2)))
    for k in range(1, 20):
        series += term
        term = term * (0.5 * small * small) / (k * (2 * ell + 2 * k + 1))
    series *= np.exp(-small)
    large = np.maximum(x, 2.0)
    quotient = np.sqrt(0.5 * np.pi / large) * ive(ell + 0.5, large) / large**ell
    return np.where(x < 2.0, series, quotient)


def tabulate(
    functions: Callable[[Float], Float], reach: float, n_pad: int, tolerance: float = 4e-12
) -> RadialTable:
    """Tabulate radial functions finely enough for quintic Hermite interpolation.

    Parameters
    ----------
    functions : Callable[[Float], Float]
        Distances (n_points,) in, values and two derivatives of f_nl
        (3, n_points, l_max + 1, n_max) out.
    reach : float
        End of the table, angstrom.
    n_pad : int
        Length to which n is padded with zeros.
    tolerance : float
        Largest error of ``r^l f_nl(r)``, as a part of its largest value at the same l.

    Returns
    -------
    RadialTable
        The table.
    """
    n_nodes, before = 33, np.inf
    while True:
        grid_p = np.linspace(0.0, reach, n_nodes)
        step = grid_p[1]
        nodes = functions(grid_p)  # (3, n_nodes, l_max + 1, n_max)
        ratio = _error_between(functions, grid_p, nodes) / tolerance
        # Many nearly dependent orbitals cancel in f_nl: where rounding is above the tolerance,
        # a finer grid no longer helps.
        if ratio <= 1.0 or ratio > 0.5 * before:
            break
        before = ratio
        # The error falls with the sixth power of the step.
        n_nodes = 1 + math.ceil((n_nodes - 1) * np.clip(1.05 * ratio ** (1 / 6), 1.25, 4.0))
    values = np.zeros((n_nodes, 3, nodes.shape[2], n_pad))
    values[..., : nodes.shape[3]] = nodes.transpose(1, 0, 2, 3)
    values *= step ** np.arange(3)[:, None, None]
    return RadialTable(as_float(values.reshape(n_nodes, 3, -1)), float(step))


def _error_between(functions: Callable[[Float], Float], grid_p: Float, nodes: Float) -> float:
    """Largest interpolation error of r^l f_nl(r), relative to its largest value at the same l."""
    step = grid_p[1]
    r_p = grid_p[:-1] + 0.5 * step
    a, b = nodes[:, :-1], nodes[:, 1:]
    # Quintic Hermite at the middle of an interval, where its error is largest.
    middle = 0.5 * (a[0] + b[0]) + step * (5 / 32) * (a[1] - b[1]) + step**2 / 64 * (a[2] + b[2])
    exact = functions(r_p)[0]
    power = (r_p / grid_p[-1])[:, None, None] ** np.arange(nodes.shape[2])[:, None]
    error_l = np.abs((middle - exact) * power).max(axis=(0, 2))
    return float((error_l / np.abs(exact * power).max(axis=(0, 2))).max())
