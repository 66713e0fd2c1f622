"""What the terms of the variance count, by errors on structures that were left out.

See `recalibration` for what is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from ase.data import chemical_symbols

from kernelpot.conventions import LABEL_KINDS, Float, Int, VarianceTerms
from kernelpot.data import Structure
from kernelpot.uncertainty.recalibration import (
    ALL,
    KindScale,
    Recalibration,
    is_open,
    terms_of,
    uncalibrated,
)

__all__ = ["Errors", "errors_by_kind", "recalibrate"]

_LEAST_NUMBERS = 300
_LEAST_STRUCTURES = 5
"""A species with fewer force components, or in fewer structures, shares the scale of all."""
_LEAST_ERRORS = 8
"""Errors of a kind of label below which nothing is fitted."""
_PRIOR_WIDTH = 2.0
"""Of the logarithms of scales and floor, about 1 and the noise of the fit: it decides only where
errors say nothing."""
_MOST_SCORES = 20_000


class Errors(NamedTuple):
    """Errors of one kind of label on structures that the model was not fitted to."""

    error_r: Float  # prediction less label; energies per atom
    variance_tr: Float  # by term, in the units of their squares
    symbol_r: np.ndarray  # chemical symbol of the atom; "" for energies and stresses
    structure_r: Int


def recalibrate(
    errors: Mapping[str, Errors], noise: Mapping[str, float], source: str
) -> Recalibration:
    """Scales, floors and scores by errors.

    Parameters
    ----------
    errors : Mapping[str, Errors]
        By kind of label.
    noise : Mapping[str, float]
        That the fit found, by kind of label.
    source : str
        Where the errors come from.

    Returns
    -------
    Recalibration
        Kinds with fewer than eight errors stay as the fit has them.
    """
    kinds = dict(uncalibrated(noise).kinds)
    for kind, of_kind in errors.items():
        if len(of_kind.error_r) < _LEAST_ERRORS:
            continue
        kinds[kind] = {ALL: _scale(of_kind, noise[kind])}
        symbols = sorted(set(of_kind.symbol_r.tolist()) - {ALL})
        for symbol in symbols if len(symbols) > 1 else []:
            mine = of_kind.symbol_r == symbol
            part = Errors(*(values[..., mine] for values in of_kind))
            if mine.sum() >= _LEAST_NUMBERS and _n_structures(part) >= _LEAST_STRUCTURES:
                kinds[kind][symbol] = _scale(part, noise[kind])
    return Recalibration(source, kinds)


def _n_structures(errors: Errors) -> int:
    return len(np.unique(errors.structure_r))


def _scale(errors: Errors, noise: float) -> KindScale:
    told_r = is_open(np.sqrt(errors.variance_tr[:2].sum(axis=0)))
    error_r, variance_tr = errors.error_r[told_r], errors.variance_tr[:, told_r]
    if not len(error_r):
        return uncalibrated(dict.fromkeys(LABEL_KINDS, noise)).scale_of("energy")
    scale_t, floor = _most_likely(error_r, variance_tr, noise)
    one = KindScale(tuple(scale_t.tolist()), floor, np.zeros(0), _n_structures(errors))
    scores_r = np.abs(error_r) / one.std(variance_tr)
    if len(scores_r) > _MOST_SCORES:
        scores_r = np.random.default_rng(0).choice(scores_r, _MOST_SCORES, replace=False)
    return one._replace(scores_r=np.sort(scores_r))


def _most_likely(error_r: Float, variance_tr: Float, noise: float) -> tuple[Float, float]:
    """Scales and floor of normal errors; a term that is nowhere has the scale 0."""
    # In units of the errors, so that the search knows steps of any unit.
    unit = math.sqrt(float(np.mean(error_r**2))) or noise
    square_r = (error_r / unit) ** 2
    there_t = variance_tr.any(axis=1)
    columns_kr = np.vstack([variance_tr[there_t] / unit**2, np.ones(len(error_r))])
    centre_k = np.zeros(len(columns_kr))
    centre_k[-1] = math.log(noise / unit)

    def loss(log_k: Float) -> tuple[float, Float]:
        a_k = np.exp(2.0 * log_k)
        total_r = a_k @ columns_kr
        slope_r = 1.0 / total_r - square_r / total_r**2
        off_k = (log_k - centre_k) / _PRIOR_WIDTH
        value = 0.5 * float(np.sum(np.log(total_r) + square_r / total_r)) + 0.5 * float(
            off_k @ off_k
        )
        return value, a_k * (columns_kr @ slope_r) + off_k / _PRIOR_WIDTH

    bounds = [(math.log(1e-3), math.log(1e3))] * (len(centre_k) - 1)
    # Errors may be nothing beside the noise: a perfect crystal has no forces.
    bounds.append((centre_k[-1] - math.log(1e4), max(math.log(1e2), centre_k[-1])))
    small = centre_k - 3.0
    starts = [centre_k, np.append(np.full(len(small) - 1, math.log(3.0)), small[-1]), small]
    starts = [np.clip(start, *np.transpose(bounds)) for start in starts]
    found: list[Any] = [
        scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
        for start in starts
    ]
    best_k = np.exp(min(found, key=lambda one: one.fun).x)
    scale_t = np.zeros(len(variance_tr))
    scale_t[there_t] = best_k[:-1]
    return scale_t, float(unit * best_k[-1])


def errors_by_kind(
    structures: Sequence[Structure],
    found: Sequence[Mapping[str, tuple[Float, VarianceTerms]]],
) -> dict[str, Errors]:
    """Errors of single numbers, of those that have labels.

    Parameters
    ----------
    structures : Sequence[Structure]
        With their labels.
    found : Sequence[Mapping[str, tuple[Float, VarianceTerms]]]
        Of each by kind of label: prediction less label, and what makes the prediction uncertain.

    Returns
    -------
    dict[str, Errors]
        By kind of label.
    """
    parts: dict[str, list[Errors]] = {}
    for s, (structure, of_kind) in enumerate(zip(structures, found, strict=True)):
        symbol_n = np.array(chemical_symbols)[structure.numbers_n]
        for kind, (error, variances) in of_kind.items():
            per = structure.n_atoms if kind == "energy" else 1
            error_r = error.ravel() / per
            variance_tr = terms_of(variances.scaled(1.0 / per)).reshape(-1, len(error_r))
            symbol_r = np.repeat(symbol_n, 3) if kind == "forces" else np.full(len(error_r), ALL)
            finite_r = np.isfinite(error_r) & np.isfinite(variance_tr).all(axis=0)
            columns = (error_r, variance_tr, symbol_r, np.full(len(error_r), s))
            part = Errors(*(values[..., finite_r] for values in columns))
            parts.setdefault(kind, []).append(part)
    return {
        kind: Errors(*(np.concatenate(values, axis=-1) for values in zip(*mine, strict=True)))
        for kind, mine in parts.items()
    }
