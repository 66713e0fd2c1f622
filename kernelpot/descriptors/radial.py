"""Functions of the distance: the weight of a neighbour, and the radial basis.

The density coefficients are ``c_nlm = sum_j w(r_j) f_nl(r_j) S_lm(D_j)`` with real solid
harmonics S (they carry r^l) and

- a weight ``w = smoothing x scaling``, evaluated analytically per pair, so that its kinks
  (where a cosine cutoff begins, say) never meet an interpolation;
- a radial function f_nl, the same for every pair, tabulated once with its first two
  derivatives. The table is read by quintic Hermite interpolation, which is twice
  continuously differentiable, and the derivative used in forces is the derivative of the
  interpolant: forces are the gradient of the energy to rounding, whatever the step.

Every function of r comes with its derivative, in one method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import expit, ive

from kernelpot.conventions import Float, as_float

__all__ = [
    "SCALINGS",
    "SMOOTHINGS",
    "DscribeExp",
    "DscribePoly",
    "DscribePow",
    "RadialTable",
    "Scaling",
    "ShiftedCosine",
    "SmoothBump",
    "Smoothing",
    "Willatt",
    "from_weighting",
    "gto_functions",
    "polynomial_functions",
    "tabulate",
    "weight_and_derivative",
]


class Scaling(Protocol):
    """A weight of neighbours by distance that need not vanish at the cutoff."""

    def value_and_derivative(self, r_p: Float, cutoff: float) -> tuple[Float, Float]:
        """Weights at the given distances (angstrom) and their derivatives (1/angstrom)."""

    def check(self, cutoff: float) -> None:
        """Raise ValueError where the parameters make no sense at this cutoff."""


class Smoothing(Scaling, Protocol):
    """A weight that ends the neighbourhood."""

    def reach(self, cutoff: float, padded: float) -> float:
        """Distance (angstrom) beyond which the weight is zero.

        ``padded`` is where dscribe stops to count neighbours: the cutoff and the radius at
        which the Gaussian of an atom has decayed to 1e-3.
        """


def _check_width(name: str, width: float, cutoff: float) -> None:
    if not 0.0 < width <= cutoff:
        raise ValueError(
            f"{name}: width must be above 0 and at most the cutoff ({cutoff:g} A), "
            f"got {width!r}; 1.0 is a good start"
        )


def _check_positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not (value > 0.0 and math.isfinite(value)):
            raise ValueError(f"{name}: {key} must be a positive number, got {value!r}")


def _check_not_negative(name: str, **values: float) -> None:
    for key, value in values.items():
        if not (value >= 0.0 and math.isfinite(value)):
            raise ValueError(f"{name}: {key} must not be negative, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ShiftedCosine:
    """Cosine switch over the last stretch before the cutoff; 1 inside of it.

    ``w(r) = (1 + cos(pi (r - rc + width) / width)) / 2`` for ``rc - width < r < rc``.

    Parameters
    ----------
    width : float
        Length of the switch, angstrom; at most the cutoff.
    """

    width: float = 1.0

    def check(self, cutoff: float) -> None:
        """Raise ValueError unless ``0 < width <= cutoff``."""
        _check_width("ShiftedCosine", self.width, cutoff)

    def reach(self, cutoff: float, padded: float) -> float:
        """Zero from the cutoff on."""
        return cutoff

    def value_and_derivative(self, r_p: Float, cutoff: float) -> tuple[Float, Float]:
        """Weights at the given distances (angstrom) and their derivatives (1/angstrom)."""
        k = math.pi / self.width
        x_p = k * np.clip(r_p - (cutoff - self.width), 0.0, self.width)
        return 0.5 * (1.0 + np.cos(x_p)), -0.5 * k * np.sin(x_p)


@dataclass(frozen=True, kw_only=True)
class SmoothBump:
    """Switch with continuous derivatives of every order.

    ``w(r) = 1 / (1 + exp(1/(1 - t) - 1/t))`` with ``t = (r - rc + width) / width`` between 0
    and 1: the quotient s(1-t) / (s(1-t) + s(t)) of s(t) = exp(-1/t).

    Parameters
    ----------
    width : float
        Length of the switch, angstrom; at most the cutoff.
    """

    width: float = 1.5

    def check(self, cutoff: float) -> None:
        """Raise ValueError unless ``0 < width <= cutoff``."""
        _check_width("SmoothBump", self.width, cutoff)

    def reach(self, cutoff: float, padded: float) -> float:
        """Zero from the cutoff on."""
        return cutoff

    def value_and_derivative(self, r_p: Float, cutoff: float) -> tuple[Float, Float]:
        """Weights at the given distances (angstrom) and their derivatives (1/angstrom)."""
        t_p = (r_p - (cutoff - self.width)) / self.width
        # 1/t at 1e-3 is 1000: the switch is flat to the last bit long before the clip.
        t_p = np.clip(t_p, 1e-3, 1.0 - 1e-3)
        u_p, v_p = 1.0 / t_p, 1.0 / (1.0 - t_p)
        w_p = expit(u_p - v_p)
        return w_p, -w_p * expit(v_p - u_p) * (u_p * u_p + v_p * v_p) / self.width


@dataclass(frozen=True, kw_only=True)
class DscribePoly:
    """dscribe's ``poly`` weighting: ``c (1 + 2 (r/r0)^3 - 3 (r/r0)^2)^m`` up to r0.

    Parameters
    ----------
    c : float
        Height, at least 0.
    m : float
        Power, at least 0.
    r0 : float
        Radius from which on the weight is zero, angstrom.
    """

    c: float
    m: float
    r0: float

    def check(self, cutoff: float) -> None:
        """Raise ValueError unless c, m >= 0 and r0 > 0."""
        _check_not_negative("weighting poly", c=self.c, m=self.m)
        _check_positive("weighting poly", r0=self.r0)

    def reach(self, cutoff: float, padded: float) -> float:
        """Zero from r0 on, and where dscribe stops to count."""
        return min(self.r0, padded)

    def value_and_derivative(self, r_p: Float, cutoff: float) -> tuple[Float, Float]:
        """Weights at the given distances (angstrom) and their derivatives (1/angstrom)."""
        x_p = np.minimum(r_p / self.r0, 1.0)
        inside_p = x_p < 1.0
        base_p = np.where(inside_p, (1.0 - x_p) ** 2 * (1.0 + 2.0 * x_p), 1.0)
        w_p = self.c * base_p**self.m
        dw_p = w_p * (self.m / base_p) * 6.0 * x_p * (x_p - 1.0) / self.r0
        return np.where(inside_p, w_p, 0.0), np.where(inside_p, dw_p, 0.0)


@dataclass(frozen=True, kw_only=True)
class DscribePow:
    """dscribe's ``pow`` weighting: ``c / (d + (r/r0)^m)``.

    Parameters
    ----------
    c : float
        Numerator, at least 0.
    d : float
        Offset, above 0 (the weight of the central atom is c/d).
    m : float
        Power, at least 0.
    r0 : float
        Length, angstrom.
    """

    c: float
    d: float
    m: float
    r0: float

    def check(self, cutoff: float) -> None:
        """Raise ValueError unless c, m >= 0 and d, r0 > 0."""
        _check_not_negative("weighting pow", c=self.c, m=self.m)
        _check_positive("weighting pow", d=self.d, r0=self.r0)

    def reach(self, cutoff: float, padded: float) -> float:
        """Ends with a step where dscribe stops to count."""
        return padded

    def value_and_derivative(self, r_p: Float, cutoff: float) -> tuple[Float, Float]:
        """Weights at the given distances (angstrom) and their derivatives (1/angstrom)."""
        x_p = r_p / self.r0
        w_p = self.c / (self.d + x_p**self.m)
        if self.m == 0.0 or self.c == 0.0:
            return w_p, np.zeros_like(w_p)
        return w_p, -w_p * w_p / self.c * self.m * x_p ** (self.m - 1.0) / self.r0


@dataclass(frozen=True, kw_only=True)
class DscribeExp:
    """dscribe's ``exp`` weighting: ``c / (d + exp(-r/r0))``.

    Parameters
    ----------
    c : float
        Numerator, at least 0.
    d : float
        Offset, at least 0.
    r0 : float
        Length, angstrom.
    """

    c: float
    d: float
    r0: float

    def check(self, cutoff: float) -> None:
        """Raise ValueError unless c, d >= 0 and r0 > 0."""
        _check_not_negative("weighting exp", c=self.c, d=self.d)
        _check_positive("weighting exp", r0=self.r0)

    def reach(self, cutoff: float, padded: float) -> float:
        """Ends with a step where dscribe stops to count."""
        return padded

    def value_and_derivative(self, r_p: Float, cutoff: float) -> tuple[Float, Float]:
        """Weights at the given distances (angstrom) and their derivatives (1/angstrom)."""
        e_p = np.exp(-r_p / self.r0)
        w_p = self.c / (self.d + e_p)
        return w_p, w_p * e_p / ((self.d + e_p) * self.r0)


@dataclass(frozen=True, kw_only=True)
class Willatt:
    """Radial scaling that gives far neighbours less weight: ``1 / (1 + (r/radius)^exponent)``.

    Source: Willatt, Musil and Ceriotti, Phys. Chem. Chem. Phys. 20, 29661 (2018), with their
    c = 1.

    Parameters
    ----------
    radius : float | None
        Distance of weight one half, angstrom; half the cutoff where None.
    exponent : float
        Steepness, above 0.
    """

    radius: float | None = None
    exponent: float = 2.0

    def check(self, cutoff: float) -> None:
        """Raise ValueError unless radius and exponent are positive."""
        _check_positive("Willatt", exponent=self.exponent)
        if self.radius is not None:
            _check_positive("Willatt", radius=self.radius)

    def value_and_derivative(self, r_p: Float, cutoff: float) -> tuple[Float, Float]:
        """Weights at the given distances (angstrom) and their derivatives (1/angstrom)."""
        radius = 0.5 * cutoff if self.radius is None else self.radius
        x_p = r_p / radius
        # numpy's power is 5 times slower for a float that happens to be whole than for an int.
        m = int(self.exponent) if float(self.exponent).is_integer() else self.exponent
        power_p = x_p ** (m - 1)
        w_p = 1.0 / (1.0 + power_p * x_p)
        return w_p, -(self.exponent / radius) * power_p * w_p * w_p


SMOOTHINGS: dict[str, type] = {
    cls.__name__: cls for cls in (ShiftedCosine, SmoothBump, DscribePoly, DscribePow, DscribeExp)
}
"""Every smoothing, by name: settings are read, and tests walk, from here."""

SCALINGS: dict[str, type] = {cls.__name__: cls for cls in (Willatt,)}
"""Every scaling, by name."""

_WEIGHTINGS = {
    "poly": (DscribePoly, ("c", "m", "r0")),
    "pow": (DscribePow, ("c", "d", "m", "r0")),
    "exp": (DscribeExp, ("c", "d", "r0")),
}


def from_weighting(weighting: dict[str, Any]) -> tuple[Smoothing | None, float | None]:
    """Read dscribe's ``weighting`` dictionary.

    Parameters
    ----------
    weighting : dict[str, Any]
        Keys ``function`` (poly, pow or exp), its parameters ``c d m r0``, and ``w0``.
        ``threshold`` is accepted and not used: dscribe infers a cutoff from it only where
        none is given.

    Returns
    -------
    tuple[Smoothing | None, float | None]
        The weight (None: a step where dscribe stops to count) and the weight of the central
        atom (None: the weight at r = 0).

    Raises
    ------
    ValueError
        If a key is unknown or missing.
    """
    function = weighting.get("function")
    known = {"function", "w0", "threshold"}
    if function is None:
        names = ()
        cls = None
    elif function in _WEIGHTINGS:
        cls, names = _WEIGHTINGS[function]
    else:
        raise ValueError(
            f"weighting: function must be one of {', '.join(_WEIGHTINGS)}, got {function!r}"
        )
    unknown = sorted(set(weighting) - known - set(names))
    missing = sorted(set(names) - set(weighting))
    if unknown or missing:
        raise ValueError(
            f"weighting: function {function!r} takes {', '.join((*names, 'w0')) or 'w0'}; "
            f"unknown {unknown}, missing {missing}"
        )
    w0 = weighting.get("w0")
    if w0 is not None:
        _check_not_negative("weighting", w0=w0)
    smoothing = None if cls is None else cls(**{k: float(weighting[k]) for k in names})
    return smoothing, None if w0 is None else float(w0)


def weight_and_derivative(
    smoothing: Smoothing | None, scaling: Scaling | None, r_p: Float, cutoff: float, reach: float
) -> tuple[Float, Float]:
    """Weight of neighbours at given distances, and its derivative.

    Parameters
    ----------
    smoothing : Smoothing | None
        What ends the neighbourhood; None is a step at ``reach``.
    scaling : Scaling | None
        Multiplies the smoothing; None is 1.
    r_p : Float
        Distances, angstrom.
    cutoff : float
        Cutoff of the descriptor, angstrom.
    reach : float
        Distance from which on the weight is zero, angstrom.

    Returns
    -------
    tuple[Float, Float]
        Weights, and derivatives in 1/angstrom.
    """
    if smoothing is None:
        w_p, dw_p = np.ones_like(r_p), np.zeros_like(r_p)
    else:
        w_p, dw_p = smoothing.value_and_derivative(r_p, cutoff)
    if scaling is not None:
        s_p, ds_p = scaling.value_and_derivative(r_p, cutoff)
        w_p, dw_p = w_p * s_p, w_p * ds_p + dw_p * s_p
    beyond_p = r_p >= reach
    if beyond_p.any():
        w_p[beyond_p] = 0.0
        dw_p[beyond_p] = 0.0
    return w_p, dw_p


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
    # Everything below carries exp(-x); gauss_px holds the exp(+x) that belongs to it.
    h = [_bessel_over_power(ell, x_px) * gauss_px for ell in range(l_max + 3)]
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


def tabulate(functions: Any, reach: float, n_pad: int, tolerance: float = 4e-12) -> RadialTable:
    """Tabulate radial functions finely enough for quintic Hermite interpolation.

    Parameters
    ----------
    functions : Any
        Callable; distances (n_points,) in, values and two derivatives of f_nl
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
        n_nodes = 1 + math.ceil((n_nodes - 1) * np.clip(1.05 * ratio ** (1 / 6), 1.25, 2.0))
    values = np.zeros((n_nodes, 3, nodes.shape[2], n_pad))
    values[..., : nodes.shape[3]] = nodes.transpose(1, 0, 2, 3)
    values *= step ** np.arange(3)[:, None, None]
    return RadialTable(as_float(values.reshape(n_nodes, 3, -1)), float(step))


def _error_between(functions: Any, grid_p: Float, nodes: Float) -> float:
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
