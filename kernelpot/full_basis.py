"""The full gradient basis: every label of the training set is its own inducing variable.

With all forces as basis functions nothing is left out between the data and the model: the limit of
ever more environments and tangents, and for small molecules far more accurate (sGDML: Chmiela et
al., Nat. Commun. 9, 3887 (2018); FCHL19: Christensen et al., J. Chem. Phys. 152, 044107 (2020)).

Once solved, the weights of all labels collapse into one vector for each training environment,
t_i = sum_r alpha_r dx_i/dR_r, as tangents do.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._machine import one_blas_thread
from kernelpot.conventions import LABEL_KINDS, Float, LabelSet, Progress, as_int
from kernelpot.data import Structure
from kernelpot.descriptors.protocol import BoundDescriptor
from kernelpot.environments import Chunk, chunks_of
from kernelpot.full_noise import EVIDENCE_ROWS, NOISE_ROWS, choose_noise
from kernelpot.gp.exact import leave_out, solve
from kernelpot.gp.exact_noise import Labels
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.packed import Packed, memory_of
from kernelpot.label_covariance import fill
from kernelpot.options import Options, effective_noise
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion

__all__ = ["LEAVE_OUT_ROWS", "FullFit", "fit_full_basis", "memory_needed"]

log = logging.getLogger("kernelpot")

LEAVE_OUT_ROWS = 16000
"""Labels up to which leave-one-out errors are computed: the inverse costs two factorisations, and
twice the memory of the covariance."""

_STAGES = ("environments", "covariance", "hyperparameters", "posterior")


class FullFit(NamedTuple):
    """What a fit in the full basis learns."""

    inducing: tuple[Inducing, ...]  # environments, each with one tangent: its collapsed weights
    weights_m: Float
    delta: float
    noise: dict[LabelSet, float]
    log_evidence: float
    data_fit: float
    leave_out: dict[str, float]  # RMSE of each structure's labels predicted from all others
    seconds: dict[str, float]  # of the stages


def fit_full_basis(
    structures: Sequence[Structure],
    bound: BoundDescriptor,
    zeta: int,
    delta: float | None,
    options: Options,
    baseline: CompositionBaseline,
    repulsion: CoreRepulsion | None,
    tell: Progress,
) -> FullFit:
    """Exact Gaussian process on all labels.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    bound : BoundDescriptor
        Gives features and Jacobians.
    zeta : int
        Exponent of the kernel.
    delta : float | None
        Prior amplitude, eV; None for that of the largest evidence.
    options : Options
        Which noise is to be found, and by how much forces are to be preferred.
    baseline : CompositionBaseline
        Energy of each species' free atom.
    repulsion : CoreRepulsion | None
        What keeps cores apart.
    tell : Progress
        Told of the stages "environments", "covariance", "hyperparameters" and "posterior".

    Returns
    -------
    FullFit
        Collapsed weights, amplitude, noise.
    """
    free_delta = delta is None
    clock = [time.perf_counter()]
    sources = sorted({s.source for s in structures})
    labels = [LabelSet(kind, source) for source in sources for kind in LABEL_KINDS]
    with one_blas_thread():  # many small products
        chunks = chunks_of(structures, bound, baseline, repulsion, labels, tell)
    clock.append(time.perf_counter())
    together = _labels_of(chunks)
    # In units of delta^2.
    K = Packed(len(together.y_r))
    fill(K, chunks, zeta, tell)
    clock.append(time.perf_counter())
    delta, noise_l = choose_noise(K, together, delta, labels, options, tell)
    effective = effective_noise(dict(zip(labels, noise_l, strict=True)), options.force_priority)
    effective_l = np.array([effective[label] for label in labels])
    clock.append(time.perf_counter())
    y_r, sigma_r = together.y_r, together.sigma_r * effective_l[together.set_r]
    tell("posterior", 0, 1)
    solution = solve(K, y_r / delta, sigma_r / delta, functools.partial(tell, "posterior"))
    log_evidence = solution.log_evidence - len(y_r) * np.log(delta)
    data_fit = solution.data_fit
    present = {k for s in structures for k in _kinds_of(s)}
    if free_delta and present <= options.learned and options.force_priority == 1.0:
        # The common factor of amplitude and noise, which predictions do not depend on, is that of
        # the largest evidence.
        factor = float(np.sqrt(-2.0 * data_fit / len(y_r)))
        log_evidence += -0.5 * len(y_r) - data_fit - len(y_r) * np.log(factor)
        data_fit = -0.5 * len(y_r)
    else:
        factor = 1.0
    left_out = {}
    if len(y_r) <= LEAVE_OUT_ROWS:
        errors_r = delta * leave_out(K, solution.alpha_r, together.counts)
        left_out = _rmse(errors_r, [labels[k].kind for k in together.set_r], together.judged_r)
    inducing, weights_m = _collapse(chunks, solution.alpha_r * delta, bound.n_features)
    clock.append(time.perf_counter())
    delta, noise_l = delta * factor, noise_l * factor
    used = {k for chunk in chunks for kinds in chunk.label_sets for k in np.unique(kinds)}
    noise = {labels[k]: float(noise_l[k]) for k in sorted(used)}
    log.info(
        "full basis: %d labels; delta %.3g eV; noise, as factors on what was assumed: %s",
        len(y_r), delta, ", ".join(f"{label.kind} {a:.3g}" for label, a in noise.items()),
    )  # fmt: skip
    return FullFit(
        inducing,
        weights_m,
        delta,
        noise,
        float(log_evidence),
        float(data_fit),
        left_out,
        dict(zip(_STAGES, np.diff(clock).tolist(), strict=True)),
    )


def _labels_of(chunks: Sequence[Chunk]) -> Labels:
    """All labels, in the order of the covariance; isolated atoms, which nothing else can predict,
    are not judged."""
    structures = [
        (y, sigma, sets, np.full(len(y), 0.0 if alone else 1.0))
        for chunk in chunks
        for y, sigma, sets, alone in zip(
            chunk.y, chunk.sigma, chunk.label_sets, chunk.alone, strict=True
        )
    ]
    y_r, sigma_r, set_r, judged_r = (np.concatenate(p) for p in zip(*structures, strict=True))
    return Labels(y_r, sigma_r, set_r, judged_r, [len(y) for y, *_ in structures])


def _rmse(errors_r: Float, kind_r: list[str], judged_r: Float) -> dict[str, float]:
    """Of each kind of label."""
    kind_r = np.where(judged_r > 0.0, np.array(kind_r), "")
    return {
        kind: float(np.sqrt(np.mean(errors_r[kind_r == kind] ** 2)))
        for kind in LABEL_KINDS
        if np.any(kind_r == kind)
    }


def _kinds_of(structure: Structure) -> set[str]:
    values = (structure.energy, structure.forces_nc, structure.stress_v)
    return {
        kind for kind, value in zip(LABEL_KINDS, values, strict=True) if np.isfinite(value).any()
    }


def memory_needed(n_labels: float, jacobians: float) -> float:
    """Memory that a fit takes.

    Parameters
    ----------
    n_labels : float
        Number of labels.
    jacobians : float
        Bytes of the derivatives of all features (`jacobian_bytes`).

    Returns
    -------
    float
        Bytes.
    """
    few, more = min(n_labels, EVIDENCE_ROWS), min(n_labels, NOISE_ROWS)
    after = (
        # Amplitude by the evidence: the dense matrix of few labels, and with noise.
        memory_of(few) + 16.0 * few**2,
        # Noise by errors left out: a part of the matrix, its factor, and the inverse.
        2.0 * memory_of(more) + 8.0 * more**2,
        8.0 * n_labels**2 if n_labels <= LEAVE_OUT_ROWS else 0.0,
    )
    return memory_of(n_labels) + jacobians + max(after)


def _collapse(
    chunks: Sequence[Chunk], alpha_r: Float, n_features: int
) -> tuple[tuple[Inducing, ...], Float]:
    """One environment and one tangent for each training environment, and their weights."""
    n_z = len(chunks[0].x_z)
    Z_z: list[list[Float]] = [[] for _ in range(n_z)]
    weights_z: list[list[float]] = [[] for _ in range(n_z)]
    first = 0
    for chunk in chunks:
        for k, (rows, scale) in enumerate(zip(chunk.rows, chunk.scale, strict=True)):
            weights = np.zeros(1 + chunk.J_z[0].shape[1])
            weights[rows] = alpha_r[first : first + len(rows)] * scale
            first += len(rows)
            for z in range(n_z):
                x_iq = chunk.x_z[z][k]
                t_iq = np.einsum("g,giq->iq", weights[1:], chunk.J_z[z][k])
                for x_q, t_q in zip(x_iq, t_iq, strict=True):
                    Z_z[z] += [x_q, t_q]
                    weights_z[z] += [weights[0], 1.0]
    inducing = []
    for Z in Z_z:
        Z_mq = np.zeros((len(Z), n_features))
        Z_mq[:, : len(Z[0])] = Z
        inducing.append(Inducing(Z_mq, as_int(np.arange(0, len(Z) + 1, 2))))
    return tuple(inducing), np.concatenate([np.array(w) for w in weights_z])
