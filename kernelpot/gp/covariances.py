"""Covariances between inducing variables, and between environments and inducing variables.

All in units of delta^2. With X = x . x_s, the formulas of section 3 of the theory page:

    k(i, s)         = X^zeta
    k(i, (s,r))     = zeta X^(zeta-1) (x_i . tau_sr)
    k((s,r), (t,q)) = zeta X_st^(zeta-1) (tau_sr . tau_tq)
                      + zeta (zeta-1) X_st^(zeta-2) (tau_sr . x_t) (tau_tq . x_s)
"""

from __future__ import annotations

import numpy as np

from kernelpot._jit import njit
from kernelpot._machine import side_by_side
from kernelpot.conventions import Float, Int
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.kernels import power_kernel, power_kernel_scalar


def K_ab(first: Inducing, second: Inducing, zeta: int) -> Float:
    """Prior covariance of two sets of inducing variables of one species.

    Linear in the tangents, which need not be unit vectors.

    Parameters
    ----------
    first : Inducing
        Environments and tangents.
    second : Inducing
        Others.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Shape (n_inducing of the first, n_inducing of the second).
    """
    K = np.empty((len(first.Z_mq), len(second.Z_mq)))
    # Some environments at a time: what is computed on the way takes ten times the space of K.
    n_e = len(first.first_e) - 1
    step = max(1, BLOCK_ROWS * n_e // max(1, len(K)))

    def fill(e: int) -> None:
        rows = slice(first.first_e[e], first.first_e[min(e + step, n_e)])
        part = Inducing(first.Z_mq[rows], first.first_e[e : e + step + 1] - rows.start)
        K[rows] = _K_some(part, second, zeta)

    side_by_side(fill, range(0, n_e, step))
    return K


BLOCK_ROWS = 128
"""Rows of a prior covariance that a thread computes at once."""


def _K_some(first: Inducing, second: Inducing, zeta: int) -> Float:
    """`K_ab` of a few environments."""
    G_ab = first.Z_mq @ second.Z_mq.T  # (a, b) products of all vectors
    # Rows of the environments that own each variable.
    own_a = first.first_e[:-1][first.owner_m]
    own_b = second.first_e[:-1][second.owner_m]
    value, slope, curvature = power_kernel(
        G_ab[np.ix_(first.first_e[:-1], second.first_e[:-1])], zeta
    )
    pair = np.ix_(first.owner_m, second.owner_m)
    toward_ab, from_ab = G_ab[own_a], G_ab[:, own_b]  # (a, b) x_own(a) . z_b and z_a . x_own(b)
    tangent_b = second.is_tangent_m[None, :]
    K = np.where(tangent_b, slope[pair] * toward_ab, value[pair])
    # Rows of tangents: against environments, then against tangents.
    tangent_rows = np.where(
        tangent_b,
        slope[pair] * G_ab + curvature[pair] * from_ab * toward_ab,
        slope[pair] * from_ab,
    )
    return np.where(first.is_tangent_m[:, None], tangent_rows, K)


def K_mm(inducing: Inducing, zeta: int) -> Float:
    """Prior covariance of the inducing variables of one species.

    Parameters
    ----------
    inducing : Inducing
        Environments and tangents.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Shape (n_inducing, n_inducing), symmetric.
    """
    K = K_ab(inducing, inducing, zeta)
    for first in range(0, len(K), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        mean = 0.5 * (K[rows, first:] + K[first:, rows].T)
        K[rows, first:], K[first:, rows] = mean, mean.T
    return K


def K_bm(products_bm: Float, inducing: Inducing, zeta: int) -> Float:
    """Covariance of local energies with the inducing variables.

    Parameters
    ----------
    products_bm : Float
        x_b . z_m for a block of environments, shape (n_block, n_inducing).
    inducing : Inducing
        Environments and tangents of the block's species.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Shape (n_block, n_inducing).
    """
    value_be, first_be, _ = power_kernel(products_bm[:, inducing.first_e[:-1]], zeta)
    owner_m = inducing.owner_m
    return np.where(inducing.is_tangent_m, first_be[:, owner_m] * products_bm, value_be[:, owner_m])


def K_bb(x_aq: Float, x_bq: Float, zeta: int) -> Float:
    """Prior covariance of local energies of one species with one another.

    Parameters
    ----------
    x_aq : Float
        Unit vectors of one block, shape (n_first, n_features).
    x_bq : Float
        Unit vectors of another, shape (n_second, n_features).
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Shape (n_first, n_second).
    """
    return power_kernel(x_aq @ x_bq.T, zeta)[0]


@njit
def add_gradient_rows(
    products_bm, gradients_rm, first_e, zeta, first_b, i_p, j_p, D_pc, column, forces_rm, strain_vm
):
    """Add the covariances of forces and strain derivatives with the inducing variables.

    For a block of centres b with pairs ``first_b[b]:first_b[b + 1]`` (numbered within the block),
    ``gradients_rm[3 p + c]`` holds J_pcq . z_m. With dk(b, m)/dD_pc from the chain rule,
    ``forces_rm[3 n + c, column + m]`` receives minus the derivative by the position of atom n, and
    ``strain_vm[v, column + m]`` the derivative by the strain component v (Voigt).
    """
    n_columns = gradients_rm.shape[1]
    n_block = first_b.shape[0] - 1
    n_e = first_e.shape[0] - 1
    owner_m = np.empty(n_columns, np.intp)
    for e in range(n_e):
        owner_m[first_e[e] : first_e[e + 1]] = first_e[e]
    # Strips of 512 columns: long enough for vector loops, short enough that a strip of the rows of
    # all atoms stays in the second-level cache.
    n_strips = (n_columns + 511) // 512
    for strip in range(n_strips):
        lo = strip * 512
        width = min(512, n_columns - lo)
        owner = owner_m[lo : lo + width]
        # dk/dD = toward_m (J . z_m) + aside_m (J . x_owner)
        toward, aside = np.empty(width), np.empty(width)
        grad = np.empty((3, width))
        strain = np.zeros((6, width))
        for b in range(n_block):
            for k in range(width):
                m = lo + k
                own = owner[k]
                _, first, second = power_kernel_scalar(products_bm[b, own], zeta)
                toward[k] = first
                aside[k] = 0.0 if own == m else second * products_bm[b, m]
            for p in range(first_b[b], first_b[b + 1]):
                for c in range(3):
                    row = gradients_rm[3 * p + c]
                    at_i = forces_rm[3 * i_p[p] + c]
                    at_j = forces_rm[3 * j_p[p] + c]
                    for k in range(width):
                        g = toward[k] * row[lo + k] + aside[k] * row[owner[k]]
                        grad[c, k] = g
                        at_i[column + lo + k] += g
                        at_j[column + lo + k] -= g
                x, y, z = D_pc[p, 0], D_pc[p, 1], D_pc[p, 2]
                for k in range(width):
                    gx, gy, gz = grad[0, k], grad[1, k], grad[2, k]
                    strain[0, k] += x * gx
                    strain[1, k] += y * gy
                    strain[2, k] += z * gz
                    strain[3, k] += 0.5 * (z * gy + y * gz)
                    strain[4, k] += 0.5 * (z * gx + x * gz)
                    strain[5, k] += 0.5 * (y * gx + x * gy)
        for v in range(6):
            for k in range(width):
                strain_vm[v, column + lo + k] += strain[v, k]


@njit
def add_directional_sums(products_bm, slopes_bm, weight, first_e, zeta, sums_m):
    """Add the covariances of a sum of energies, and of their derivatives along a direction.

    For environments b that are moved by t_b, ``sums_m[m]`` receives the sum over b of
    weight k(b, m) + t_b . dk(b, m)/dx_b; ``products_bm`` is x_b . z_m, ``slopes_bm`` t_b . z_m.
    """
    for b in range(products_bm.shape[0]):
        for e in range(first_e.shape[0] - 1):
            own = first_e[e]
            value, first, second = power_kernel_scalar(products_bm[b, own], zeta)
            aside = second * slopes_bm[b, own] + weight * first
            sums_m[own] += weight * value + first * slopes_bm[b, own]
            for m in range(own + 1, first_e[e + 1]):
                sums_m[m] += first * slopes_bm[b, m] + aside * products_bm[b, m]


def offsets(counts: list[int]) -> Int:
    """Columns at which the blocks of species begin in K_rm.

    Parameters
    ----------
    counts : list[int]
        Number of inducing variables of each species.

    Returns
    -------
    Int
        Shape (n_species + 1,).
    """
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
