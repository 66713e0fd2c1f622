"""The weight of a neighbour by its distance: smoothing times scaling, with derivatives.

Evaluated analytically per pair, so that its kinks (where a cosine cutoff begins, say) never meet
the interpolation of the radial basis. Every function of r comes with its derivative, in one
method; ``SMOOTHINGS`` and ``SCALINGS`` list them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import expit

from kernelpot.conventions import Float

__all__ = [
    "SCALINGS",
    "SMOOTHINGS",
    "DscribeExp",
    "DscribePoly",
    "DscribePow",
    "Scaling",
    "ShiftedCosine",
    "SmoothBump",
    "Smoothing",
    "Willatt",
    "from_weighting",
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
        with np.errstate(divide="ignore"):  # m < 1 has no slope at r = 0
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
        Steepness, at least 1.
    """

    radius: float | None = None
    exponent: float = 2.0

    def check(self, cutoff: float) -> None:
        """Raise ValueError unless radius > 0 and exponent >= 1."""
        if not (self.exponent >= 1.0 and math.isfinite(self.exponent)):
            # Below 1 the slope is infinite at the central atom.
            raise ValueError(f"Willatt: exponent must be at least 1, got {self.exponent!r}")
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
