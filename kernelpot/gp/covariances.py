"""Covariances between inducing variables, and between environments and inducing variables.

All in units of delta^2. With X = x . x_s, the formulas of section 3 of the theory page:

    k(i, s)         = X^zeta
    k(i, (s,r))     = zeta X^(zeta-1) (x_i . tau_sr)
    k((s,r), (t,q)) = zeta X_st^(zeta-1) (tau_sr . tau_tq)
                      + zeta (zeta-1) X_st^(zeta-2) (tau_sr . x_t) (tau_tq . x_s)
"""

from __future__ import annotations

import numpy as np

from kernelpot._jit import njit_parallel, prange
from kernelpot.conventions import Float, Int
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.kernels import power_kernel, power_kernel_scalar


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
    G_mm = inducing.Z_mq @ inducing.Z_mq.T  # (m, m) products of all vectors
    is_tangent_m = inducing.is_tangent_m
    owner_m = inducing.owner_m
    first_m = inducing.first_e[:-1][owner_m]  # row of the environment that owns each variable
    X_ee = G_mm[np.ix_(inducing.first_e[:-1], inducing.first_e[:-1])]
    value_ee, first_ee, second_ee = power_kernel(X_ee, zeta)
    xz_mm = G_mm[first_m]  # (m, m) x_owner(row) . z_column
    pair = np.ix_(owner_m, owner_m)
    K = np.where(is_tangent_m[None, :], first_ee[pair] * xz_mm, value_ee[pair])
    # Rows of tangents: against environments, then against tangents.
    tangent_rows = np.where(
        is_tangent_m[None, :],
        first_ee[pair] * G_mm + second_ee[pair] * xz_mm.T * xz_mm,
        first_ee[pair] * xz_mm.T,
    )
    K = np.where(is_tangent_m[:, None], tangent_rows, K)
    return 0.5 * (K + K.T)


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


def K_bb(x_bq: Float, zeta: int) -> Float:
    """Prior covariance of local energies of one species among themselves.

    Parameters
    ----------
    x_bq : Float
        Unit vectors, shape (n_block, n_features).
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Shape (n_block, n_block).
    """
    return power_kernel(x_bq @ x_bq.T, zeta)[0]


@njit_parallel
def add_gradient_rows(
    products_bm, gradients_rm, first_e, zeta, first_b, i_p, j_p, D_pc, column, forces_rm, strain_vm
):
    """Add the covariances of forces and strain derivatives with the inducing variables.

    For a block of centres b with pairs ``first_b[b]:first_b[b + 1]`` (numbered within the block),
    ``gradients_rm[3 p + c]`` holds J_pcq . z_m. With dk(b, m)/dD_pc from the chain rule,
    ``forces_rm[3 n + c, column + m]`` receives minus the derivative by the position of atom n, and
    ``strain_vm[v, column + m]`` the derivative by the strain component v (Voigt). Threads own
    columns, so the result does not depend on their number.
    """
    n_environments = first_e.shape[0] - 1
    n_block = first_b.shape[0] - 1
    for e in prange(n_environments):
        lo = first_e[e]
        n_own = first_e[e + 1] - lo
        row = np.empty(n_own)
        for b in range(n_block):
            _, first, second = power_kernel_scalar(products_bm[b, lo], zeta)
            for p in range(first_b[b], first_b[b + 1]):
                for c in range(3):
                    toward = gradients_rm[3 * p + c, lo]
                    row[0] = first * toward
                    for k in range(1, n_own):
                        row[k] = (
                            first * gradients_rm[3 * p + c, lo + k]
                            + second * toward * products_bm[b, lo + k]
                        )
                    i = 3 * i_p[p] + c
                    j = 3 * j_p[p] + c
                    for k in range(n_own):
                        forces_rm[i, column + lo + k] += row[k]
                        forces_rm[j, column + lo + k] -= row[k]
                    # Voigt rows that the product (c, d) enters: the mean of (c, d) and (d, c).
                    for d in range(3):
                        v = c if c == d else 6 - c - d
                        share = D_pc[p, d] if c == d else 0.5 * D_pc[p, d]
                        for k in range(n_own):
                            strain_vm[v, column + lo + k] += share * row[k]


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
