"""Errors on left-out folds, in closed form from the products of each fold's rows.

A fold's rows enter the normal equations additively, so leaving a fold out is a subtraction: with
G = sum_f G_f, the weights without fold f solve (sum_l (G_l - G_lf) / a_l^2 + D^-2) w = b - b_f, and
the squared error on the fold is y_f^T y_f - 2 b_f^T w + w^T G_f w. No row is looked at again.

Why not the evidence alone: it takes what a sparse model cannot represent for independent noise of
the labels. Tens of thousands of force components then outvote some hundred energies, whose noise
"is" ten meV per atom (measured on silicon: energy error 9.6 meV/atom by the evidence, 2.2 by
this). Errors on left-out folds say what is wanted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from kernelpot._machine import side_by_side
from kernelpot.conventions import Float, Int, as_float
from kernelpot.gp.evidence import Gram, Hyperparameters, log_evidence
from kernelpot.gp.lapack import potrs, symv
from kernelpot.gp.solvers import cholesky

__all__ = ["FoldErrors", "fold_errors", "minimise"]


class FoldErrors(NamedTuple):
    """Mean squared error of each set of rows on left-out folds, and its derivatives."""

    mse_l: Float  # in units of the assumed noise
    by_delta_lg: Float  # d mse_l / d log(delta_g)
    by_noise_ll: Float  # d mse_l / d log(noise_l')


def fold_errors(
    totals: Sequence[Gram],
    folds: Sequence[Sequence[Gram]],
    component_k: Int,
    delta_g: Float,
    noise_l: Float,
) -> FoldErrors:
    """Errors on each fold by the weights that all others give.

    Parameters
    ----------
    totals : Sequence[Gram]
        Products of all rows of each set.
    folds : Sequence[Sequence[Gram]]
        Products of the rows of each fold, one for each set of rows.
    component_k : Int
        Component that each whitened feature belongs to.
    delta_g : Float
        Prior amplitudes of the components.
    noise_l : Float
        Noise factors of the sets of rows.

    Returns
    -------
    FoldErrors
        Of all folds together.
    """
    n_l, n_g, n_k = len(noise_l), len(delta_g), len(component_k)
    delta_k = delta_g[component_k]
    weight_l = noise_l**-2.0
    total_kk = np.zeros((n_k, n_k), order="F")
    for weight, one in zip(weight_l, totals, strict=True):
        total_kk += weight * one.G_kk
    np.einsum("kk->k", total_kk)[:] += delta_k**-2.0
    given = _Given(totals, total_kk, delta_k, weight_l, np.arange(n_g)[:, None] == component_k)
    sse_l, rows_l = np.zeros(n_l), np.zeros(n_l)
    by_delta_lg, by_noise_ll = np.zeros((n_l, n_g)), np.zeros((n_l, n_l))
    for fold, (sse, change_ls) in zip(
        folds, side_by_side(functools.partial(_left_out, given), folds), strict=True
    ):
        rows_l += [one.n_rows for one in fold]
        sse_l += sse
        by_noise_ll += change_ls[:, :n_l]
        by_delta_lg += change_ls[:, n_l:]
    rows_l = np.maximum(rows_l, 1.0)
    return FoldErrors(sse_l / rows_l, by_delta_lg / rows_l[:, None], by_noise_ll / rows_l[:, None])


class _Given(NamedTuple):
    """What all folds have in common."""

    totals: Sequence[Gram]
    total_kk: Float  # sum_l G_l / a_l^2 + D^-2
    delta_k: Float
    weight_l: Float  # a_l^-2
    of_component_gk: np.ndarray  # whether a feature is of a component


def _left_out(given: _Given, fold: Sequence[Gram]) -> tuple[Float, Float]:
    """Squared errors on a fold by set of rows, and their derivatives by noise and amplitudes."""
    totals, total_kk, delta_k, weight_l, of_component_gk = given
    A_kk = total_kk.copy(order="F")
    for weight, one in zip(weight_l, fold, strict=True):
        if one.n_rows:
            A_kk -= weight * one.G_kk
    rest_lk = np.array([all_.b_k - one.b_k for all_, one in zip(totals, fold, strict=True)])
    L_kk = cholesky(A_kk)
    w_k = potrs(L_kk, weight_l @ rest_lk)
    # dw = A^-1 (db - dA w): for log(a_l) it is -2 a_l^-2 A^-1 (b_l - G_l w), of the other folds'
    # rows; for log(delta_g) it is 2 A^-1 (w / delta^2).
    Gw_lk = np.array([_times(one, w_k) for one in fold])
    all_lk = np.array([_times(one, w_k) for one in totals])
    by_noise_lk = -2.0 * weight_l[:, None] * (rest_lk - all_lk + Gw_lk)
    by_delta_gk = 2.0 * of_component_gk * (w_k / delta_k**2)
    dw_ks = potrs(L_kk, np.asfortranarray(np.vstack([by_noise_lk, by_delta_gk]).T))
    sse_l, change_ls = np.zeros(len(fold)), np.zeros((len(fold), dw_ks.shape[1]))
    for k, one in enumerate(fold):
        if one.n_rows:
            square = one.y_y - 2.0 * float(one.b_k @ w_k) + float(w_k @ Gw_lk[k])
            sse_l[k] = max(square, 0.0)
            change_ls[k] = 2.0 * (Gw_lk[k] - one.b_k) @ dw_ks
    return sse_l, change_ls


def _times(one: Gram, w_k: Float) -> Float:
    return symv(one.G_kk, w_k) if one.n_rows else np.zeros(len(w_k))


_PREFERENCE = 1e-3
"""What a factor e away from the assumed noise or from 1 eV costs, so that flat directions stay
where they are: a factor of ten is worth a quarter of a per cent of error."""


def minimise(
    totals: Sequence[Gram],
    ways: Sequence[Sequence[Sequence[Gram]]],
    component_k: Int,
    delta_g: Sequence[float | None],
    noise_l: Sequence[float | None],
    *,
    importance_wl: Sequence[Sequence[float]],
    delta_range: tuple[float, float],
    noise_range: Sequence[tuple[float, float]],
    n_wide: int = 0,
) -> Hyperparameters:
    """Prior amplitudes and noise factors with the least errors on left-out folds.

    What is made small is the mean over the ways of leaving out of sum_l importance_wl log(mse_l): a
    per cent of one error is worth a per cent of another, whatever their units and numbers.
    Predictions depend on ratios of amplitudes and noise only; where all are free their common
    factor is that of the largest evidence, which is known in closed form.

    Parameters
    ----------
    totals : Sequence[Gram]
        Products of all rows of each set; rows that are in no fold are never left out.
    ways : Sequence[Sequence[Sequence[Gram]]]
        Ways of leaving out, of each its folds; products of the rows of each fold, one for each set
        of rows.
    component_k : Int
        Component that each whitened feature belongs to.
    delta_g : Sequence[float | None]
        Prior amplitudes; None for those to be found.
    noise_l : Sequence[float | None]
        Noise factors; None for those to be found.
    importance_wl : Sequence[Sequence[float]]
        Weight of each set's error, by way of leaving out.
    delta_range : tuple[float, float]
        Bounds of the amplitudes.
    noise_range : Sequence[tuple[float, float]]
        Bounds of each set's noise factor.
    n_wide : int
        Of the first components the amplitudes are fixed, and so wide that the common factor of
        all others does not notice them.

    Returns
    -------
    Hyperparameters
        All of them, and the evidence of all folds together.
    """
    delta_free = np.array([delta is None for delta in delta_g], dtype=bool)
    # A set without rows in any fold says nothing of its noise.
    rows_wl = np.array([np.sum([[one.n_rows for one in f] for f in way], 0) for way in ways])
    rows_l = rows_wl.sum(axis=0)
    noise_free = np.array([a is None and n > 0 for a, n in zip(noise_l, rows_l, strict=True)])
    delta = as_float([1.0 if d is None else d for d in delta_g])
    noise = as_float([1.0 if a is None else a for a in noise_l])
    n_delta = int(delta_free.sum())
    weight_wl = np.where(rows_wl > 0, as_float(importance_wl), 0.0) / len(ways)

    def put(theta: Float) -> tuple[Float, Float]:
        new_delta, new_noise = delta.copy(), noise.copy()
        new_delta[delta_free] = np.exp(theta[:n_delta])
        new_noise[noise_free] = np.exp(theta[n_delta:])
        return new_delta, new_noise

    def loss(theta: Float) -> tuple[float, Float]:
        value, gradient = _PREFERENCE * float(theta @ theta), 2.0 * _PREFERENCE * theta
        hyperparameters = put(theta)
        for folds, weight_l in zip(ways, weight_wl, strict=True):
            found = fold_errors(totals, folds, component_k, *hyperparameters)
            mse_l = np.maximum(found.mse_l, 1e-12)  # labels that are all zero
            share_l = weight_l / mse_l
            value += float(weight_l @ np.log(mse_l))
            gradient[:n_delta] += (share_l @ found.by_delta_lg)[delta_free]
            gradient[n_delta:] += (share_l @ found.by_noise_ll)[noise_free]
        return value, gradient

    all_free = bool(delta_free[n_wide:].all() and noise_free.all())
    bounds = [delta_range] * n_delta
    bounds += [limits for limits, free in zip(noise_range, noise_free, strict=True) if free]
    if bounds:
        low, high = np.log(np.array(bounds)).T
        start = np.clip(np.zeros(len(bounds)), low, high)
        result = minimize(
            loss,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=np.column_stack([low, high]),
            options={"maxiter": 40, "ftol": 1e-5, "gtol": 1e-3},
        )
        delta, noise = put(result.x)
    if all_free:
        # log evidence of (s delta, s noise): -(quadratic / s^2 + n log s^2 + ...) / 2
        quadratic = _quadratic(totals, component_k, delta, noise)
        scale = float(np.sqrt(quadratic / max(1, sum(one.n_rows for one in totals))))
        delta[n_wide:] *= scale
        noise = noise * scale
    value, _, _ = log_evidence(totals, component_k, delta, noise)
    return Hyperparameters(delta, noise, value)


def _quadratic(grams: Sequence[Gram], component_k: Int, delta: Float, noise: Float) -> float:
    """y^T (Phi D^2 Phi^T + noise^2)^-1 y."""
    delta_k = delta[component_k]
    A_kk = sum(one.G_kk / a**2 for one, a in zip(grams, noise, strict=True))
    b_k = sum(one.b_k / a**2 for one, a in zip(grams, noise, strict=True))
    np.einsum("kk->k", A_kk)[:] += delta_k**-2.0
    w_k = potrs(cholesky(np.asfortranarray(A_kk)), b_k.copy())
    return float(sum(one.y_y / a**2 for one, a in zip(grams, noise, strict=True)) - b_k @ w_k)
