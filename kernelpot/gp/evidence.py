"""Hyperparameters from the log evidence: prior amplitudes and noise levels.

With the whitened features Phi_l of each set of rows l, already divided by an assumed noise, the
labels are y_l ~ N(0, Phi_l D^2 Phi_l^T + a_l^2): D the prior amplitudes delta, one per component
of the model, and a_l the factor by which the noise of set l differs from what was assumed. All that
the evidence needs are the products G_l = Phi_l^T Phi_l, b_l = Phi_l^T y_l and y_l^T y_l.

MacKay, Neural Comput. 4, 415 (1992), whose "number of well-determined parameters" gamma stands in
the gradients: at the maximum a_l^2 = residual_l^2 / (n_l - gamma_l), delta^2 = |w|^2 / gamma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack
from scipy.optimize import minimize

from kernelpot._machine import side_by_side
from kernelpot.conventions import Float, Int, as_float
from kernelpot.gp.lapack import gemm, potrs, symv
from kernelpot.gp.solvers import cholesky, whitened_rows
from kernelpot.gp.triangles import Triangle
from kernelpot.gp.whitening import Whitening

__all__ = [
    "DELTA_RANGE",
    "Gram",
    "Hyperparameters",
    "add_grams",
    "gram",
    "log_evidence",
    "maximise",
    "no_gram",
]

_CHUNK = 192
"""Columns of products that a thread computes at a time."""
DELTA_RANGE = (1e-3, 1e4)
"""Bounds of a prior amplitude (eV): beyond them labels are not in eV."""
_FURTHEST = math.log(4.0)
"""How far a search from a given start goes, in logarithms. The variational bound has a second
maximum, at which all is noise."""


class Gram(NamedTuple):
    """Products of one set of rows in whitened features; rows divided by their assumed noise."""

    G_kk: Float
    b_k: Float
    y_y: float
    n_rows: int
    log_noise: float


class Hyperparameters(NamedTuple):
    """Prior amplitudes of the components, noise factors of the sets of rows, and their evidence."""

    delta_g: Float
    noise_l: Float
    log_evidence: float


def gram(triangle: Triangle, whitening: Whitening) -> Gram:
    """Products of a triangle's rows.

    Parameters
    ----------
    triangle : Triangle
        Of the raw inducing variables.
    whitening : Whitening
        Of their prior covariance.

    Returns
    -------
    Gram
        In whitened features; only the lower triangle of ``G_kk`` is filled.
    """
    rows = whitened_rows(triangle, whitening)
    phi_rk, y_r = rows[:, :-1], rows[:, -1]
    n_k = whitening.n_whitened
    G_kk = np.zeros((n_k, n_k), order="F")

    def fill(first: int) -> None:
        columns = slice(first, min(first + _CHUNK, n_k))
        gemm(
            1.0, phi_rk[:, first:], phi_rk[:, columns], 0.0, G_kk[first:, columns], transposed=True
        )
        G_kk[columns, columns] = np.tril(G_kk[columns, columns])

    if len(rows):
        side_by_side(fill, range(0, n_k, _CHUNK))
    return Gram(G_kk, phi_rk.T @ y_r, float(y_r @ y_r), triangle.n_rows, triangle.log_noise)


def add_grams(one: Gram, other: Gram) -> Gram:
    """Products of two sets of rows together.

    Parameters
    ----------
    one : Gram
        Of some rows.
    other : Gram
        Of other rows, in the same features.

    Returns
    -------
    Gram
        Of all of them.
    """
    return Gram(*(a + b for a, b in zip(one, other, strict=True)))


def no_gram(n_features: int) -> Gram:
    """Products of no rows.

    Parameters
    ----------
    n_features : int
        Whitened features.

    Returns
    -------
    Gram
        Zeros.
    """
    return Gram(np.zeros((n_features, n_features), order="F"), np.zeros(n_features), 0.0, 0, 0.0)


def log_evidence(
    grams: Sequence[Gram], component_k: Int, delta_g: Float, noise_l: Float
) -> tuple[float, Float, Float]:
    """Log evidence (DTC) and its derivatives by log(delta_g) and by log(noise_l).

    Parameters
    ----------
    grams : Sequence[Gram]
        Products of each set of rows.
    component_k : Int
        Component that each whitened feature belongs to.
    delta_g : Float
        Prior amplitudes of the components.
    noise_l : Float
        Noise factors of the sets.

    Returns
    -------
    tuple[float, Float, Float]
        Value, gradient by log(delta_g), gradient by log(noise_l).

    Raises
    ------
    ValueError
        If the matrix of the normal equations is not positive definite: a label is not finite.
    """
    n_k = len(component_k)
    delta_k = delta_g[component_k]
    weight_l = noise_l**-2.0
    A_kk = np.zeros((n_k, n_k), order="F")
    b_k = np.zeros(n_k)
    for weight, one in zip(weight_l, grams, strict=True):
        if one.n_rows:
            A_kk += weight * one.G_kk
            b_k += weight * one.b_k
    np.einsum("kk->k", A_kk)[:] += delta_k**-2.0
    L_kk = cholesky(A_kk)
    log_det = 2.0 * float(np.sum(np.log(np.diag(L_kk)) + np.log(delta_k)))
    w_k = potrs(L_kk, b_k.copy())
    S_kk, _ = lapack.dpotri(L_kk, lower=1, overwrite_c=1)
    S_diagonal = np.diag(S_kk)
    shrunk_k = (w_k**2 + S_diagonal) / delta_k**2
    n_features_g = np.bincount(component_k, minlength=len(delta_g))
    by_delta_g = np.bincount(component_k, shrunk_k, minlength=len(delta_g)) - n_features_g
    value = 0.0
    by_noise_l = np.zeros(len(grams))
    for k, (weight, one) in enumerate(zip(weight_l, grams, strict=True)):
        if not one.n_rows:
            continue
        # S and G are symmetric, their lower triangles are there.
        trace = 2.0 * float(S_kk.ravel("K") @ one.G_kk.ravel("K")) - float(
            S_diagonal @ np.diag(one.G_kk)
        )
        Gw_k = symv(one.G_kk, w_k)
        residual = max(one.y_y - 2.0 * float(one.b_k @ w_k) + float(w_k @ Gw_k), 0.0)
        by_noise_l[k] = weight * (residual + trace) - one.n_rows
        value += weight * residual + 2.0 * one.log_noise - one.n_rows * math.log(weight)
        value += one.n_rows * math.log(2.0 * math.pi)
    value += float(np.sum((w_k / delta_k) ** 2)) + log_det
    return -0.5 * value, by_delta_g, by_noise_l


def maximise(
    grams: Sequence[Gram],
    component_k: Int,
    delta_g: Sequence[float | None],
    noise_l: Sequence[float | None],
    *,
    noise_range: Sequence[tuple[float, float]],
    start: tuple[Sequence[float], Sequence[float]] | None = None,
    open_lg: Float | None = None,
) -> Hyperparameters:
    """Prior amplitudes and noise factors that make the labels most probable.

    Parameters
    ----------
    grams : Sequence[Gram]
        Products of each set of rows.
    component_k : Int
        Component that each whitened feature belongs to.
    delta_g : Sequence[float | None]
        Prior amplitudes; None for those to be found.
    noise_l : Sequence[float | None]
        Noise factors; None for those to be found.
    noise_range : Sequence[tuple[float, float]]
        Bounds of each set's noise factor.
    start : tuple[Sequence[float], Sequence[float]] | None
        Amplitudes and factors from which the search for the free ones begins, and from which none
        moves by more than a factor of four; None for 1, and for no such limit.
    open_lg : Float | None
        What the inducing variables leave open of each set's rows, by component: the sum of the
        prior variances that remain, in units of delta^2 and of the assumed noise. With it the
        variational bound of the exact evidence is made large (Titsias, AISTATS 5, 567 (2009)),
        which does not reward a model for what its inducing variables cannot express.

    Returns
    -------
    Hyperparameters
        All of them, and the evidence.
    """
    delta_free = np.array([delta is None for delta in delta_g], dtype=bool)
    # A set without rows says nothing of its noise.
    noise_free = np.array(
        [a is None and one.n_rows > 0 for a, one in zip(noise_l, grams, strict=True)], dtype=bool
    )
    near_g, near_l = start or ([1.0] * len(delta_g), [1.0] * len(noise_l))
    delta = as_float([b if d is None else d for d, b in zip(delta_g, near_g, strict=True)])
    noise = as_float([b if a is None else a for a, b in zip(noise_l, near_l, strict=True)])
    limits = [DELTA_RANGE] * int(delta_free.sum())
    limits += [limits for limits, free in zip(noise_range, noise_free, strict=True) if free]
    if limits:
        bounds = np.log(limits)
        if start is not None:
            near = np.log(np.concatenate([delta[delta_free], noise[noise_free]]))
            bounds = np.clip(near[:, None] + [-_FURTHEST, _FURTHEST], *bounds.T[:, :, None])
        if open_lg is None:
            open_lg = np.zeros((len(noise), len(delta)))
        delta, noise = _ascend(
            grams, component_k, delta, noise, delta_free, noise_free, bounds.tolist(), open_lg
        )
    value, _, _ = log_evidence(grams, component_k, delta, noise)
    return Hyperparameters(delta, noise, value)


def _ascend(
    grams: Sequence[Gram],
    component_k: Int,
    delta: Float,
    noise: Float,
    delta_free: np.ndarray,
    noise_free: np.ndarray,
    bounds: Sequence[tuple[float, float]],
    open_lg: Float,
) -> tuple[Float, Float]:
    """L-BFGS in the logarithms, scaled by the number of labels: the evidence is a sum over them."""
    n_delta = int(delta_free.sum())
    n_rows = max(1, sum(one.n_rows for one in grams))

    def put(theta: Float) -> tuple[Float, Float]:
        new_delta, new_noise = delta.copy(), noise.copy()
        new_delta[delta_free] = np.exp(theta[:n_delta])
        new_noise[noise_free] = np.exp(theta[n_delta:])
        return new_delta, new_noise

    def loss(theta: Float) -> tuple[float, Float]:
        delta, noise = put(theta)
        value, by_delta, by_noise = log_evidence(grams, component_k, delta, noise)
        relative_lg = open_lg * (delta / noise[:, None]) ** 2
        value -= 0.5 * float(relative_lg.sum())
        by_delta = by_delta - relative_lg.sum(axis=0)
        by_noise = by_noise + relative_lg.sum(axis=1)
        gradient = np.concatenate([by_delta[delta_free], by_noise[noise_free]])
        return -value / n_rows * _SCALE, -gradient / n_rows * _SCALE

    start = np.log(np.concatenate([delta[delta_free], noise[noise_free]]))
    low, high = np.array(bounds).T
    found = minimize(
        loss,
        np.clip(start, low, high),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 60, "ftol": 1e-7, "gtol": 1e-3},
    )
    return put(found.x)


_SCALE = 100.0
"""Brings the gradient of the loss per label to the order of one: a step of a tenth at first."""
