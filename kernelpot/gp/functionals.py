"""Prior covariances of what is linear in the process: values and derivatives at environments.

For environments i and j with unit vectors x and derivatives J = dx/dR by coordinates R, with
X = x_i . x_j and k = X^zeta,

    cov(f_i, f_j)             = k(X)
    cov(f_i, df_j/dR')        = k'(X) x_i . J_j
    cov(df_i/dR, df_j/dR')    = k'(X) J_i . J_j + k''(X) (J_i . x_j) (x_i . J_j)

All in units of delta^2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float, Int
from kernelpot.gp.kernels import power_kernel

__all__ = ["Environments", "joint_covariance", "slope_variances", "sum_variance"]

_ROWS = 1024
"""Environments whose covariances with all are computed at once."""


class Environments(NamedTuple):
    """Environments that know of each other, and how coordinates move them."""

    x_iq: Float
    J_giq: Float  # derivatives by each coordinate, (n_coordinates, n_environments, n_features)


def joint_covariance(one: Environments, other: Environments, zeta: int) -> Float:
    """Of the values at environments, and of the derivatives of their sum by coordinates.

    Parameters
    ----------
    one : Environments
        Of the rows.
    other : Environments
        Of the columns.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Values first, then derivatives: shape (n_environments + n_coordinates of the one, of the
        other).
    """
    n_i, n_j, n_q = len(one.x_iq), *other.x_iq.shape
    value_ij, first_ij, second_ij = power_kernel(one.x_iq @ other.x_iq.T, zeta)
    P_gij = one.J_giq @ other.x_iq.T
    Q_hji = other.J_giq @ one.x_iq.T
    out = np.empty((n_i + len(one.J_giq), n_j + len(other.J_giq)))
    out[:n_i, :n_j] = value_ij
    out[n_i:, :n_j] = np.einsum("ij,gij->gj", first_ij, P_gij)
    out[:n_i, n_j:] = np.einsum("ij,hji->ih", first_ij, Q_hji)
    W_hiq = first_ij @ other.J_giq
    out[n_i:, n_j:] = one.J_giq.reshape(-1, n_i * n_q) @ W_hiq.reshape(-1, n_i * n_q).T
    right_hij = Q_hji.transpose(0, 2, 1).reshape(-1, n_i * n_j)
    out[n_i:, n_j:] += (P_gij * second_ij).reshape(-1, n_i * n_j) @ right_hij.T
    return out


def sum_variance(x_iq: Float, zeta: int) -> float:
    """Variance of the sum of the values at environments.

    Parameters
    ----------
    x_iq : Float
        Their unit vectors.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    float
        Costs the square of their number.
    """
    return float(
        sum(
            np.sum((x_iq[first : first + _ROWS] @ x_iq.T) ** zeta)
            for first in range(0, len(x_iq), _ROWS)
        )
    )


def slope_variances(x_iq: Float, J_giq: Float, blocks_i: Int, zeta: int) -> Float:
    """Variances of derivatives of the sum of the values at environments.

    Parameters
    ----------
    x_iq : Float
        Their unit vectors.
    J_giq : Float
        Derivatives of these by some coordinates.
    blocks_i : Int
        Only environments of the same number know of each other.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Of each coordinate.
    """
    X_ij = x_iq @ x_iq.T
    _, first_ij, second_ij = power_kernel(X_ij, zeta)
    apart_ij = blocks_i[:, None] != blocks_i
    first_ij[apart_ij] = second_ij[apart_ij] = 0.0
    G_gij = J_giq @ J_giq.transpose(0, 2, 1)
    P_gij = J_giq @ x_iq.T
    return np.einsum("ij,gij->g", first_ij, G_gij) + np.einsum(
        "ij,gij,gji->g", second_ij, P_gij, P_gij
    )
