"""Covariances of whole structures: of their energies and of all their derivatives.

With generalised coordinates R (positions, and strain where there are stresses), the covariance of
two structures is a sum over their environments i and j that know of each other, X = x_i . x_j:

    k(E, E')         = sum_ij X^zeta
    k(E, dE'/dR')    = sum_ij zeta X^(zeta-1) x_i . dx_j/dR'
    k(dE/dR, dE'/dR') = sum_ij [ zeta X^(zeta-1) dx_i/dR . dx_j/dR'
                                + zeta (zeta-1) X^(zeta-2) (dx_i/dR . x_j) (dx_j/dR' . x_i) ]

The first term of the last line is a sum over j first, W_i = sum_j zeta X^(zeta-1) dx_j/dR', and one
matrix product then: n_z times fewer operations than pair by pair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from kernelpot._machine import n_threads, one_blas_thread
from kernelpot.conventions import Float, Progress
from kernelpot.environments import Chunk
from kernelpot.gp.kernels import power_kernel
from kernelpot.gp.packed import Packed

__all__ = ["covariance", "fill", "label_rows"]


def covariance(one: Chunk, other: Chunk, zeta: int) -> Float:
    """Of energies and derivatives of the structures of two chunks.

    Parameters
    ----------
    one : Chunk
        Of the same species as the other.
    other : Chunk
        The other.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Shape (n_structures, 1 + n_coordinates) of the one, then of the other, in units of delta^2.
    """
    n_t, n_a = one.J_z[0].shape[:2]
    n_s, n_b = other.J_z[0].shape[:2]
    out = np.zeros((n_t, 1 + n_a, n_s, 1 + n_b))
    for x_tiq, J_tgiq, y_sjq, J_shjq in zip(one.x_z, one.J_z, other.x_z, other.J_z, strict=True):
        n_i, n_j, n_q = x_tiq.shape[1], *y_sjq.shape[1:]
        if n_i == 0 or n_j == 0:
            continue
        # All structures of both chunks at once: derivatives are long, and read but once.
        x_rq, y_rq = x_tiq.reshape(-1, n_q), y_sjq.reshape(-1, n_q)
        X_tisj = (x_rq @ y_rq.T).reshape(n_t, n_i, n_s, n_j)
        P_tgisj = (J_tgiq.reshape(-1, n_q) @ y_rq.T).reshape(n_t, n_a, n_i, n_s, n_j)
        Q_shjti = (J_shjq.reshape(-1, n_q) @ x_rq.T).reshape(n_s, n_b, n_j, n_t, n_i)
        for t in range(n_t):
            value_isj, first_isj, second_isj = power_kernel(X_tisj[t], zeta)
            P_gisj, Q_shji = P_tgisj[t], Q_shjti[:, :, :, t]
            first_sij = np.ascontiguousarray(first_isj.transpose(1, 0, 2))
            out[t, 0, :, 0] += value_isj.sum(axis=(0, 2))
            out[t, 1:, :, 0] += np.einsum("isj,gisj->gs", first_isj, P_gisj)
            out[t, 0, :, 1:] += np.einsum("sij,shji->sh", first_sij, Q_shji)
            W_shiq = first_sij[:, None] @ J_shjq
            first = W_shiq.reshape(n_s * n_b, -1) @ J_tgiq[t].reshape(n_a, -1).T
            out[t, 1:, :, 1:] += first.reshape(n_s, n_b, n_a).transpose(2, 0, 1)
            P_gisj *= second_isj
            left_sgr = P_gisj.transpose(2, 0, 1, 3).reshape(n_s, n_a, n_i * n_j)
            right_srh = Q_shji.transpose(0, 3, 2, 1).reshape(n_s, n_i * n_j, n_b)
            out[t, 1:, :, 1:] += (left_sgr @ right_srh).transpose(1, 0, 2)
    return out


def label_rows(one: Chunk, others: Sequence[Chunk], zeta: int) -> Float:
    """Covariances of a chunk's labels with those of chunks.

    Parameters
    ----------
    one : Chunk
        Of structures whose labels are the rows.
    others : Sequence[Chunk]
        Of those whose labels are the columns.
    zeta : int
        Exponent of the kernel.

    Returns
    -------
    Float
        Shape (n_labels of the one, n_labels of the others), in units of delta^2.
    """
    parts = []
    for other in others:
        K_tgsh = covariance(one, other, zeta)
        rows = [
            K_gsh[rows] * scale[:, None, None]
            for K_gsh, rows, scale in zip(K_tgsh, one.rows, one.scale, strict=True)
        ]
        K_rsh = np.concatenate(rows)
        parts += [
            K_rsh[:, s, columns] * scale
            for s, (columns, scale) in enumerate(zip(other.rows, other.scale, strict=True))
        ]
    return np.concatenate(parts, axis=1)


def fill(K: Packed, chunks: Sequence[Chunk], zeta: int, tell: Progress) -> None:
    """All covariances of labels, chunk by chunk, one thread for each of them.

    Parameters
    ----------
    K : Packed
        Receives them.
    chunks : Sequence[Chunk]
        All structures.
    zeta : int
        Exponent of the kernel.
    tell : Progress
        Told of the stage "covariance".
    """
    n_structures = sum(len(chunk.members) for chunk in chunks)
    total = n_structures * (n_structures + 1) // 2
    first = done = 0
    size = n_threads()
    with one_blas_thread(), ThreadPoolExecutor(size) as pool:
        # Few at a time: results that wait are as long as the matrix.
        jobs: deque[Future[Float]] = deque()
        for c, chunk in enumerate(chunks):
            for ahead in range(c + len(jobs), min(c + size + 1, len(chunks))):
                jobs.append(pool.submit(label_rows, chunks[ahead], chunks[: ahead + 1], zeta))
            rows = jobs.popleft().result()
            K.set_rows(first, rows)
            first += len(rows)
            done += len(chunk.members)
            # The work grows with the square of the number of structures.
            tell("covariance", min(done * (done + 1) // 2, total), total)
