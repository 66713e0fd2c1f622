"""The kernel of two unit vectors, k(x, x') = (x . x')^zeta, and its derivatives.

The prior's amplitude delta is not here: it scales the whitened weights (`solvers.Posterior`),
so that one set of covariances serves every amplitude.
"""

from __future__ import annotations

from kernelpot._jit import njit
from kernelpot.conventions import Float


def check_zeta(zeta: object) -> int:
    """Return a valid kernel exponent.

    Parameters
    ----------
    zeta : object
        What the user gave.

    Returns
    -------
    int
        The exponent, at least 1.

    Raises
    ------
    ValueError
        If it is not a whole number of at least 1: other powers are not defined where
        x . x' is negative, which this layout of the power spectrum allows.
    """
    if isinstance(zeta, bool) or zeta != zeta or int(zeta) != zeta or zeta < 1:
        raise ValueError(f"zeta must be a whole number of at least 1; got {zeta!r}. Try 4.")
    return int(zeta)


def power_kernel(X: Float, zeta: int) -> tuple[Float, Float, Float]:
    """Value, first and second derivative of X^zeta with respect to X = x . x'.

    Parameters
    ----------
    X : Float
        Products of unit vectors, any shape.
    zeta : int
        Exponent, at least 1.

    Returns
    -------
    tuple[Float, Float, Float]
        X^zeta, zeta X^(zeta-1), zeta (zeta-1) X^(zeta-2), each of the shape of X.
    """
    # One negative power would turn X = 0 into NaN; its factor zeta - 1 is zero there.
    second = zeta * (zeta - 1) * X ** max(zeta - 2, 0)
    return X**zeta, zeta * X ** (zeta - 1), second


@njit(inline="always")
def power_kernel_scalar(X, zeta):
    """Scalar twin of `power_kernel` for compiled loops."""
    low = 1.0
    for _ in range(zeta - 2):
        low *= X
    first = low * X if zeta > 1 else 1.0
    return first * X, zeta * first, zeta * (zeta - 1) * low


def novelty(products_be: Float) -> Float:
    """How unlike the nearest inducing environment each environment is: ``1 - max_e x_b . x_e``.

    Half of the squared distance of the two unit vectors; also what a feature space of fewer axes
    leaves out of x_b counts as new. It costs nothing beside the products, which the energies
    need.

    Parameters
    ----------
    products_be : Float
        Products of environments with the inducing environments of their species, (b, e).

    Returns
    -------
    Float
        Shape (b,), from 0 (known) to 1 (nothing in common, or no inducing environment).
    """
    return 1.0 - products_be.max(axis=1, initial=0.0)
