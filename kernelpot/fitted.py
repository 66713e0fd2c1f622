"""What a fit learned, and the posterior of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from kernelpot.conventions import Float, LabelSet
from kernelpot.gp.covariances import K_mm
from kernelpot.gp.nuisance import put_in_front, without_front
from kernelpot.gp.solvers import Posterior, posterior
from kernelpot.gp.triangles import Triangle
from kernelpot.gp.whitening import Whitening, whiten_blocks
from kernelpot.label_rows import Known
from kernelpot.options import effective_noise
from kernelpot.rows import Component
from kernelpot.sources import SHIFT_PRIOR, SourceShifts
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion

__all__ = [
    "RANK_TOLERANCE",
    "Fitted",
    "OpenRows",
    "Solved",
    "Streamed",
    "no_posterior",
    "predictive",
    "prior_widths",
    "solve",
    "solve_rows",
    "whitening_of",
    "with_posterior",
    "with_scores",
]

RANK_TOLERANCE = 1e-10
"""Inducing variables whose variance is, given the others, below this fraction are dependent."""


class OpenRows(NamedTuple):
    """What the inducing variables leave open of some rows."""

    n_rows: int
    variance_g: tuple[float, ...]  # sums by component, in units of delta^2 and the assumed noise


class Fitted(NamedTuple):
    """Everything that a fit learns."""

    components: tuple[Component, ...]
    baseline: CompositionBaseline
    repulsion: CoreRepulsion | None
    shifts: SourceShifts  # between sources of labels
    triangles: dict[LabelSet, Triangle]
    noise: dict[LabelSet, float]  # factors on the assumed standard deviations
    force_priority: float
    delta_g: tuple[float, ...]
    weights_m: Float  # mean weights of the inducing variables
    log_evidence: float
    data_fit: float  # the part of it that is not the Occam factor
    leave_out: dict[str, float]  # RMSE on left-out folds, by kind of label; of the last full fit
    leave_systems_out: dict[str, float]  # the same where whole systems are left out
    posterior: Callable[[], Posterior]  # solved on demand where the fit comes from a file; of
    # the shifts, and then of the inducing variables
    seconds: dict[str, float]
    scores_mj: Float | None = None  # of structures, for the jackknife; see `jackknife`
    open_rows: dict[LabelSet, OpenRows] | None = None  # of labels that were streamed

    @property
    def known(self) -> Known:
        """What was known before the weights."""
        return Known(self.components, self.baseline, self.repulsion, self.shifts)


class Solved(NamedTuple):
    """A posterior that is there already, behind the call that asks for it."""

    posterior: Posterior

    def __call__(self) -> Posterior:
        """Give it."""
        return self.posterior


class Streamed(NamedTuple):
    """A posterior that was carried from labels to labels: a model file keeps it.

    `solve` gives the same to rounding, and to what the order of elimination changes.
    """

    posterior: Posterior

    def __call__(self) -> Posterior:
        """Give it."""
        return self.posterior


def no_posterior() -> NoReturn:
    """Stands where the posterior is in a sparse fit.

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError(
        "a model with basis='full' keeps its weights only, not the covariance of all labels: it "
        "has no standard deviations and learns no new data. Fit with basis='sparse' for these."
    )


def solve(fitted: Fitted) -> Posterior:
    """Posterior from the statistics of the training rows.

    Parameters
    ----------
    fitted : Fitted
        Whose components, statistics and hyperparameters are used.

    Returns
    -------
    Posterior
        Mean weights, covariance, log evidence; of the shifts between sources, and then of the
        inducing variables.
    """
    effective = effective_noise(fitted.noise, fitted.force_priority)
    whitening = put_in_front(fitted.shifts.n_columns, whitening_of(fitted.components))
    solved = solve_rows(fitted.triangles, whitening, fitted.components, fitted.delta_g, effective)
    return solved if fitted.scores_mj is None else solved.with_scores(fitted.scores_mj)


def with_scores(fitted: Fitted, scores_mj: Float | None) -> Fitted:
    """The fit, knowing how much each structure pulls at its weights.

    Parameters
    ----------
    fitted : Fitted
        A fit.
    scores_mj : Float | None
        Of `jackknife.scores_of`; None for a fit that has no posterior.

    Returns
    -------
    Fitted
        Whose posterior has a jackknife.
    """
    if scores_mj is None:
        return fitted
    kind = type(fitted.posterior) if isinstance(fitted.posterior, Streamed) else Solved
    solved = fitted.posterior().with_scores(scores_mj)
    return fitted._replace(scores_mj=scores_mj, posterior=kind(solved))


def with_posterior(fitted: Fitted, posterior: Solved | Streamed) -> Fitted:
    """The fit with a posterior of its weights.

    Parameters
    ----------
    fitted : Fitted
        With the statistics and hyperparameters of the posterior.
    posterior : Solved | Streamed
        Of the shifts, and then of the inducing variables.

    Returns
    -------
    Fitted
        With its weights and its evidence.
    """
    solved = posterior()
    shift_k, weights_m = np.split(solved.weights(), [fitted.shifts.n_columns])
    return fitted._replace(
        shifts=fitted.shifts.with_learned(shift_k),
        weights_m=weights_m,
        log_evidence=solved.log_evidence,
        data_fit=solved.data_fit,
        posterior=posterior,
    )


def predictive(fitted: Fitted) -> Posterior:
    """Posterior of the inducing variables alone, which is all that predictions need.

    Parameters
    ----------
    fitted : Fitted
        Whose posterior is meant.

    Returns
    -------
    Posterior
        Without the shifts between sources.
    """
    return without_front(fitted.posterior(), fitted.shifts.n_columns)


def solve_rows(
    triangles: Mapping[LabelSet, Triangle],
    whitening: Whitening,
    components: Sequence[Component],
    delta_g: Sequence[float],
    noise: Mapping[LabelSet, float],
) -> Posterior:
    """Posterior from statistics of rows and hyperparameters.

    Parameters
    ----------
    triangles : Mapping[LabelSet, Triangle]
        Statistics of the rows of each set of labels.
    whitening : Whitening
        Of the shifts between sources, where there are any, and of the inducing variables.
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    delta_g : Sequence[float]
        Amplitude of each, eV.
    noise : Mapping[LabelSet, float]
        Factors by which rows are divided.

    Returns
    -------
    Posterior
        Of the shifts, and then of the inducing variables.
    """
    n_blocks = sum(len(one.inducing) for one in components)
    wide = [SHIFT_PRIOR] if len(whitening.blocks) > n_blocks else []
    delta_b = prior_widths(components, delta_g, wide)
    return posterior(
        list(triangles.values()), whitening, delta_b, [noise[label] for label in triangles]
    )


def prior_widths(
    components: Sequence[Component], delta_g: Sequence[float], wide: Sequence[float]
) -> list[float]:
    """Prior standard deviation of the whitened weights of each block of inducing variables.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    delta_g : Sequence[float]
        Amplitude of each, eV.
    wide : Sequence[float]
        Those of blocks in front of theirs.

    Returns
    -------
    list[float]
        By block.
    """
    return [*wide, *np.repeat(delta_g, [len(one.inducing) for one in components]).tolist()]


def whitening_of(components: Sequence[Component]) -> Whitening:
    """Whitening of the inducing variables of all components.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.

    Returns
    -------
    Whitening
        One block for each component and species.
    """
    blocks = (K_mm(group, one.zeta) for one in components for group in one.inducing)
    return whiten_blocks(blocks, RANK_TOLERANCE, overwrite=True)
