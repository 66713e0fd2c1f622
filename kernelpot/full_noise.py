"""Noise and amplitude of the full basis.

The amplitude is that of the largest evidence of some labels. The noise is that of the least errors
on structures left out among them, and among four times as many. What all labels need is
extrapolated from the two: where the noise stands for what the kernel does not know it falls with
the number of labels (3BPA, forces, ratio to the amplitude: 0.009 with 60 structures, 0.004 with
200; three times as much costs a tenth of the energies). The evidence of few labels finds it at
random there, between nothing and three times as much.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from kernelpot._machine import one_blas_thread
from kernelpot.conventions import Float, Int, LabelSet, Progress, as_int
from kernelpot.gp.exact_noise import Labels, extrapolate, left_out_noise, maximise_noise
from kernelpot.gp.packed import Packed
from kernelpot.hyperparameters import IMPORTANCE
from kernelpot.options import NOISE_RANGE, Options

__all__ = ["EVIDENCE_ROWS", "NOISE_ROWS", "choose_noise"]

log = logging.getLogger("kernelpot")

EVIDENCE_ROWS = 1500
"""Labels with which the amplitude is found: some hundred Cholesky factors of 30 ms."""
NOISE_ROWS = 6000
"""Labels with which the noise is found at most."""
_SEARCHES = ((EVIDENCE_ROWS, 4.0, 2), (NOISE_ROWS, 2.0, 1))
"""Numbers of labels with which the noise is found, the factor by which it is changed, and after how
many steps without less error a direction is given up. With the larger number a step is a factor and
an inverse of 3 s."""
_FEW_STRUCTURES = 5
"""Below this number of structures errors on those left out say nothing of the noise."""
_FEW_LABELS = 200
"""Labels of a set below which its noise stays that of the evidence, and its errors count less: 73
energies of 3BPA asked for a noise of 3 meV/atom that 160 of them are better without."""
_LEAST_FORCES = 3e-5
"""Least noise of forces (eV/angstrom): exact labels leave the covariance singular to rounding."""


def choose_noise(
    K: Packed,
    together: Labels,
    delta: float | None,
    labels: list[LabelSet],
    options: Options,
    tell: Progress,
) -> tuple[float, Float]:
    """Amplitude and noise factors: those given, and those that the data choose.

    Parameters
    ----------
    K : Packed
        Covariance of all labels in units of delta^2; stays as it is.
    together : Labels
        All labels, structure by structure.
    delta : float | None
        Prior amplitude, eV; None for that of the largest evidence of some labels.
    labels : list[LabelSet]
        Every set of labels.
    options : Options
        Which noise is to be found.
    tell : Progress
        Told of the stage "hyperparameters".

    Returns
    -------
    tuple[float, Float]
        delta, and a factor on the assumed noise for each set.
    """
    order = np.random.default_rng(options.random_state).permutation(len(together.counts))
    few_r, few = _some(together, order, EVIDENCE_ROWS)
    learned_l = [label.kind in options.learned for label in labels]
    present_l = np.bincount(few.set_r, minlength=len(labels)) > 0
    given_l = [None if a and b else 1.0 for a, b in zip(learned_l, present_l, strict=True)]
    n_stages = 1 + len(_SEARCHES)
    tell("hyperparameters", 0, n_stages)
    if delta is not None and None not in given_l:
        tell("hyperparameters", n_stages, n_stages)
        return delta, np.ones(len(labels))
    least_l = [
        _least(label.kind) / getattr(options.noise, label.kind) if factor is None else 1.0
        for label, factor in zip(labels, given_l, strict=True)
    ]
    with one_blas_thread():  # many factorisations of 30 ms
        K_few = K.part(few_r)
        delta, noise_l = maximise_noise(
            K_few.lower(), few.y_r, few.set_r, few.sigma_r,
            delta=delta, noise_l=given_l, least_l=least_l,
        )  # fmt: skip
    free_l = np.array([factor is None for factor in given_l])
    if not free_l.any() or len(few.counts) < _FEW_STRUCTURES:
        tell("hyperparameters", n_stages, n_stages)
        return delta, noise_l
    sizes, found = [], [noise_l]
    for n_rows, step, patience in _SEARCHES:
        tell("hyperparameters", len(found), n_stages)
        rows_r, some = _some(together, order, n_rows)
        enough_l = np.bincount(some.set_r, minlength=len(labels)) >= _FEW_LABELS
        found.append(
            left_out_noise(
                K.part(rows_r), some, delta=delta, noise_l=found[-1], free_l=free_l & enough_l,
                least_l=least_l, importance_l=_importance(some, labels), step=step,
                patience=patience,
            )
        )  # fmt: skip
        sizes.append(len(rows_r))
        log.info("noise by %d labels, as factors on what was assumed: %s", sizes[-1], found[-1])
        if len(rows_r) == K.n:
            break
    tell("hyperparameters", n_stages, n_stages)
    if sizes[-1] == K.n:
        return delta, found[-1]
    return delta, extrapolate(sizes[0], found[1], sizes[1], found[2], K.n, least_l)


def _importance(some: Labels, labels: Sequence[LabelSet]) -> list[float]:
    """Few labels count less."""
    n_l = np.bincount(some.set_r, minlength=len(labels))
    return [
        IMPORTANCE[label.kind] * min(1.0, n / _FEW_LABELS)
        for label, n in zip(labels, n_l, strict=True)
    ]


def _some(together: Labels, order: Int, n_rows: int) -> tuple[Int, Labels]:
    """Whole structures of no more labels than asked for, but at least one; their rows."""
    counts = np.asarray(together.counts)
    n_chosen = max(1, int(np.searchsorted(np.cumsum(counts[order]), n_rows, side="right")))
    chosen = np.sort(order[:n_chosen])
    ends = np.cumsum(counts)
    rows_r = np.concatenate([np.arange(ends[s] - counts[s], ends[s]) for s in chosen])
    arrays = (values[rows_r] for values in together[:4])
    return as_int(rows_r), Labels(*arrays, counts[chosen].tolist())


def _least(kind: str) -> float:
    return _LEAST_FORCES if kind == "forces" else NOISE_RANGE[kind][0]
