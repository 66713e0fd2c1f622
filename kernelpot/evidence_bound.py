"""The lower bound of the exact log evidence that a sparse model gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Float, LabelSet
from kernelpot.data import Structure
from kernelpot.environments import chunks_of
from kernelpot.fitted import Fitted, predictive
from kernelpot.label_covariance import covariance
from kernelpot.label_rows import label_rows
from kernelpot.options import effective_noise
from kernelpot.terms.composition import CompositionBaseline

__all__ = ["evidence_bound"]

_SAMPLE = 40
"""Structures from which the part that the inducing variables leave open is found."""


def evidence_bound(
    fitted: Fitted, structures: Sequence[Structure], random_state: int | None = 0
) -> float:
    """Variational lower bound (VFE) of the log evidence of the exact process.

    The log evidence of the sparse model (DTC) less ``tr(Sigma^-1 (K_rr - Q_rr)) / 2``, the variance
    of the labels that the inducing variables do not explain, in units of the noise: Titsias,
    AISTATS 5, 567 (2009), equation 9. Unlike the first term alone it does not reward a model for
    what its inducing variables leave out. The trace is taken over a sample of the structures.

    Parameters
    ----------
    fitted : Fitted
        A sparse fit.
    structures : Sequence[Structure]
        The structures that it was fitted to.
    random_state : int | None
        Seed of the sample.

    Returns
    -------
    float
        At most the log evidence of the same model with every label as an inducing variable, but for
        the error of the sample.
    """
    posterior = predictive(fitted)
    noise = effective_noise(fitted.noise, fitted.force_priority)
    rng = np.random.default_rng(random_state)
    chosen = np.sort(rng.permutation(len(structures))[:_SAMPLE])
    open_l = dict.fromkeys(fitted.triangles, 0.0)
    rows_l = dict.fromkeys(fitted.triangles, 0)
    for s in chosen:
        prior = _prior(fitted, structures[s])
        for rows in label_rows(structures[s], fitted.known):
            K_rm = (
                rows.A_rm[:, fitted.shifts.n_columns :]
                if rows.label.kind == "energy"
                else rows.A_rm
            )
            phi_rk = posterior.whitening.whiten(K_rm) * posterior.delta_k
            open_r = np.maximum(prior[rows.label.kind] - np.sum(phi_rk**2, axis=1), 0.0)
            sigma_r = rows.sigma_r * noise[rows.label]
            open_l[rows.label] += float(np.sum(open_r / sigma_r**2))
            rows_l[rows.label] += len(rows.y_r)
    trace = sum(
        open_l[label] * triangle.n_rows / rows_l[label]
        for label, triangle in fitted.triangles.items()
        if rows_l[label]
    )
    return fitted.log_evidence - 0.5 * trace


def _prior(fitted: Fitted, structure: Structure) -> dict[str, Float]:
    """Prior variances of the labels that there are, in the order of their rows, by kind."""
    labels = [LabelSet(kind, structure.source) for kind in LABEL_KINDS]
    nothing = CompositionBaseline(
        fitted.baseline.numbers, (0.0,) * len(fitted.baseline.numbers), ""
    )
    total: Float | float = 0.0
    for component, delta in zip(fitted.components, fitted.delta_g, strict=True):
        bound = component.descriptor
        (chunk,) = chunks_of([structure], bound, nothing, None, labels, lambda *_: None)
        rows = chunk.rows[0]
        K_rr = covariance(chunk, chunk, component.zeta)[0, rows, 0, rows]
        total = total + delta**2 * chunk.scale[0] ** 2 * K_rr
    kind_r = chunk.label_sets[0]
    return {kind: total[kind_r == k] for k, kind in enumerate(LABEL_KINDS)}
