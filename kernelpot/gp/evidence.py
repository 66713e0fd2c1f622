"""Hyperparameters from the log evidence."""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar

from kernelpot.gp.solvers import Combined, Posterior, posterior

_DELTA_RANGE = (1e-3, 1e4)
"""Bounds of the prior amplitude (eV): beyond them labels are not in eV."""


def maximise_over_delta(combined: Combined) -> Posterior:
    """Posterior with the prior amplitude that makes the labels most probable.

    The evidence has one maximum over the amplitude in practice; Brent's method finds it to
    a tenth of an order of magnitude, finer than what changes predictions.

    Parameters
    ----------
    combined : Combined
        Statistic of all rows.

    Returns
    -------
    Posterior
        At the best amplitude.
    """
    best: list[Posterior] = []  # one at a time: a factor is as large as the triangle

    def loss(log_delta: float) -> float:
        result = posterior(combined, 10.0**log_delta)
        if not best or result.log_evidence > best[0].log_evidence:
            best[:] = [result]
        return -result.log_evidence

    bounds = tuple(math.log10(delta) for delta in _DELTA_RANGE)
    minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.1})
    return best[0]
