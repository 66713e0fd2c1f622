"""The weights of a fit as predictions use them: the tangents of an environment are one vector.

With t_e = sum_r beta_er tau_er,

    eps_i        = sum_e [ alpha_e X^zeta + zeta X^(zeta-1) (x_i . t_e) ],   X = x_i . x_e
    d eps_i/dx_i = sum_e [ (zeta alpha_e X^(zeta-1) + zeta (zeta-1) X^(zeta-2) (x_i . t_e)) x_e
                           + zeta X^(zeta-1) t_e ]

so a prediction costs two products per environment, whatever the number of tangents. With zeta = 1
all of it is one vector.

The two matrix products may be computed in single precision, twice as fast. Weights of a fit are
large and cancel, which costs digits: energies of silicon would be off by 26 meV. So what is
multiplied is what vectors differ by from their mean, and the rest is added in double precision,
which leaves 1.6 meV and 0.5 meV/angstrom.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from kernelpot._jit import njit
from kernelpot.conventions import Float
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.kernels import power_kernel_scalar

__all__ = ["Collapsed", "Local", "collapse", "single"]


class Local(NamedTuple):
    """What weights say of some environments."""

    energies_b: Float  # eV
    g_bq: Float  # their derivatives by the features
    values_be: Float | None  # kernel with each inducing environment, where it was asked for


class Collapsed(NamedTuple):
    """The weights of one block of centres, its tangents collapsed."""

    V_jq: np.ndarray  # environments less the mean, then collapsed tangents: (2 n_e, n_features)
    offset_j: Float  # products of the mean with environments and tangents
    mean_q: Float | None  # None for none: double precision
    alpha_e: Float

    def energies(self, x_bq: Float, zeta: int, *, values: bool = False) -> Local:
        """Local energies, and their derivatives by the features.

        Parameters
        ----------
        x_bq : Float
            Features of some centres.
        zeta : int
            Exponent of the kernel.
        values : bool
            Whether the kernel's values are wanted, too.

        Returns
        -------
        Local
            Of each of the centres.
        """
        if self.mean_q is None:
            shift_b = np.zeros(len(x_bq))
            products_bj = x_bq @ self.V_jq.T
        else:
            d_bq = x_bq - self.mean_q
            shift_b = d_bq @ self.mean_q
            products_bj = d_bq.astype(np.float32) @ self.V_jq.T
        values_be = np.empty((len(x_bq), len(self.alpha_e) if values else 0))
        energies_b, sum_b = _local_energies(
            products_bj, self.offset_j, shift_b, self.alpha_e, zeta, values_be
        )
        g_bq = products_bj @ self.V_jq
        if self.mean_q is not None:
            g_bq = g_bq + np.outer(sum_b, self.mean_q)
        return Local(energies_b, g_bq, values_be if values else None)


def collapse(inducing: Inducing, weights_m: Float, zeta: int) -> Collapsed:
    """Sum the tangents of each environment with their weights; with zeta = 1 everything.

    Parameters
    ----------
    inducing : Inducing
        Inducing variables of one species.
    weights_m : Float
        Their weights.
    zeta : int
        Exponent of the kernel. The linear kernel collapses to a single environment: the local
        energy is one product with the weighted sum of all inducing variables.

    Returns
    -------
    Collapsed
        In double precision.
    """
    if zeta == 1 and len(weights_m):
        sum_q = weights_m @ inducing.Z_mq
        return Collapsed(np.stack([sum_q, np.zeros_like(sum_q)]), np.zeros(2), None, np.ones(1))
    first_e = inducing.first_e[:-1]
    alpha_e = weights_m[first_e]
    weighted_mq = np.where(inducing.is_tangent_m, weights_m, 0.0)[:, None] * inducing.Z_mq
    if len(first_e) == 0:
        return Collapsed(np.zeros((0, inducing.Z_mq.shape[1])), np.zeros(0), None, alpha_e)
    t_eq = np.add.reduceat(weighted_mq, first_e, axis=0)
    V_jq = np.ascontiguousarray(np.vstack([inducing.x_eq, t_eq]))
    return Collapsed(V_jq, np.zeros(len(V_jq)), None, alpha_e)


def single(collapsed: Collapsed, zeta: int) -> tuple[Collapsed, float]:
    """The same weights with matrix products in single precision.

    Parameters
    ----------
    collapsed : Collapsed
        In double precision.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    tuple[Collapsed, float]
        And the root mean square of what this changes in the energies of the inducing environments,
        eV.
    """
    n_e = len(collapsed.alpha_e)
    if zeta == 1 or n_e == 0:  # one vector costs nothing
        return collapsed, 0.0
    x_eq = collapsed.V_jq[:n_e]
    mean_q = x_eq.mean(axis=0)
    V_jq = np.vstack([x_eq - mean_q, collapsed.V_jq[n_e:]]).astype(np.float32)
    found = Collapsed(V_jq, collapsed.V_jq @ mean_q, mean_q, collapsed.alpha_e)
    change_e = found.energies(x_eq, zeta).energies_b - collapsed.energies(x_eq, zeta).energies_b
    return found, math.sqrt(np.mean(change_e**2))


@njit
def _local_energies(products_bj, offset_j, shift_b, alpha_e, zeta, values_be):
    """Local energies, and sums over environments of their derivatives by X.

    X is ``products_bj[b, e] + offset_j[e] + shift_b[b]``; ``products_bj`` becomes the derivatives
    by the products, ``values_be`` the kernel unless it has no columns.
    """
    n_block = products_bj.shape[0]
    n_e = alpha_e.shape[0]
    wanted = values_be.shape[1] > 0
    energies_b, sum_b = np.empty(n_block), np.empty(n_block)
    for b in range(n_block):
        total = by_X = 0.0
        for e in range(n_e):
            X = products_bj[b, e] + (offset_j[e] + shift_b[b])
            along = products_bj[b, n_e + e] + offset_j[n_e + e]
            value, first, second = power_kernel_scalar(X, zeta)
            total += alpha_e[e] * value + first * along
            slope = alpha_e[e] * first + second * along
            by_X += slope
            if wanted:
                values_be[b, e] = value
            products_bj[b, e] = slope
            products_bj[b, n_e + e] = first
        energies_b[b], sum_b[b] = total, by_X
    return energies_b, sum_b
