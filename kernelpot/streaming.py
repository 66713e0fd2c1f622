"""Labels that come one after the other: a fit absorbs them, and sees how far they surprise it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from kernelpot.conventions import Float, Progress
from kernelpot.data import Structure
from kernelpot.descriptors.protocol import is_linear
from kernelpot.fitted import (
    Fitted,
    OpenRows,
    Solved,
    Streamed,
    solve_rows,
    whitening_of,
    with_posterior,
)
from kernelpot.gp.lapack import trsm
from kernelpot.gp.nuisance import put_in_front
from kernelpot.gp.solvers import update
from kernelpot.hyperparameters import COARSE, most_probable
from kernelpot.label_rows import LabelRows, add_rows
from kernelpot.options import Options, effective_noise
from kernelpot.prior_variances import prior_variances
from kernelpot.selection import system_of
from kernelpot.sources import SHIFT_PRIOR
from kernelpot.training import known_noise
from kernelpot.training_data import in_order, join_sets

__all__ = ["Surprise", "absorb_labels", "tune"]


class Surprise(NamedTuple):
    """How far the labels of a structure are from what was expected of them."""

    n_rows: int
    chi_squared: float  # (y - mean)^T covariance^-1 (y - mean) of them together


def absorb_labels(
    fitted: Fitted, structures: Sequence[Structure], progress: Progress
) -> tuple[Fitted, list[Surprise]]:
    """Learn labels: the posterior and the statistics absorb their rows, nothing is solved anew.

    Parameters
    ----------
    fitted : Fitted
        A sparse fit; unchanged.
    structures : Sequence[Structure]
        With labels.
    progress : Progress
        Told of the stage "rows".

    Returns
    -------
    tuple[Fitted, list[Surprise]]
        The fit to old and new labels, and of each structure how far its labels are from what the
        fit expected of them before.

    Raises
    ------
    DataError
        If a structure has an energy of a source that the fit does not know.
    """
    started = time.perf_counter()
    fitted.shifts.check(structures)
    judge = _Judge(fitted)
    new = add_rows({}, structures, fitted.known, progress, judge.see)
    triangles = in_order(join_sets(fitted.triangles, new))
    noise = {label: known_noise(label, fitted.noise) for label in triangles}
    effective = effective_noise(noise, fitted.force_priority)
    posterior = update(fitted.posterior(), list(new.values()), [effective[label] for label in new])
    seconds = {**fitted.seconds, "update": time.perf_counter() - started}
    fitted = fitted._replace(
        triangles=triangles, noise=noise, seconds=seconds, open_rows=judge.open_rows
    )
    return with_posterior(fitted, Streamed(posterior)), judge.surprises


class _Judge:
    """Compares the labels of structures with what a fit expects of them."""

    def __init__(self, fitted: Fitted):
        self._fitted = fitted
        self._posterior = fitted.posterior()
        n_front = fitted.shifts.n_columns
        blocks = iter(self._posterior.whitening.blocks[int(n_front > 0) :])
        self._columns_g = [
            [block.columns for block in itertools.islice(blocks, len(component.inducing))]
            for component in fitted.components
        ]
        self.open_rows = dict(fitted.open_rows or {})
        self.surprises: list[Surprise] = []

    def see(self, structure: Structure, found: Sequence[LabelRows]) -> None:
        """Remember how far its labels are from the posterior, and what is open of their rows."""
        if not found:
            self.surprises.append(Surprise(0, 0.0))
            return
        posterior = self._posterior
        prior_g = self._prior_variances(structure, [rows.label.kind for rows in found])
        residual, aside = [], []
        n_raw = posterior.whitening.n_raw
        widened = [np.pad(one.A_rm, ((0, 0), (n_raw - one.A_rm.shape[1], 0))) for one in found]
        whitened_rk = posterior.whitening.whiten(np.concatenate(widened))
        ends = np.cumsum([len(rows.y_r) for rows in found])
        for rows, end in zip(found, ends, strict=True):
            phi_rk = whitened_rk[end - len(rows.y_r) : end]
            squares_rk = phi_rk**2
            open_gr = np.array(
                [
                    prior[rows.label.kind][rows.place_r]
                    - sum(squares_rk[:, columns].sum(axis=1) for columns in mine)
                    for prior, mine in zip(prior_g, self._columns_g, strict=True)
                ]
            )
            open_gr = np.maximum(open_gr, 0.0)
            self._remember(rows, open_gr)
            factor = known_noise(rows.label, self._fitted.noise)
            delta_g = np.array(self._fitted.delta_g)
            aside.append((factor * rows.sigma_r) ** 2 + delta_g**2 @ open_gr)
            residual.append(rows.y_r - phi_rk @ posterior.w_k)
        open_rk = whitened_rk
        trsm(posterior.R_kk, open_rk.T, upper=True)
        C_rr = open_rk @ open_rk.T + np.diag(np.concatenate(aside))
        z_r = scipy.linalg.solve_triangular(
            scipy.linalg.cholesky(C_rr, lower=True), np.concatenate(residual), lower=True
        )
        self.surprises.append(Surprise(len(z_r), float(z_r @ z_r)))

    def _prior_variances(
        self, structure: Structure, kinds: Sequence[str]
    ) -> list[dict[str, Float]]:
        """Of the labels, by component and kind, in units of delta^2."""
        components = self._fitted.components
        longest = max((c.descriptor for c in components), key=lambda bound: bound.cutoff)
        system = system_of(longest, structure)
        found = [prior_variances([c], [1.0], system, kinds) for c in components]
        per = {"energy": structure.n_atoms, "forces": 1.0, "stress": structure.volume}
        return [{kind: of[kind] / per[kind] ** 2 for kind in kinds} for of in found]

    def _remember(self, rows: LabelRows, open_gr: Float) -> None:
        more_g = np.sum(open_gr / rows.sigma_r**2, axis=1)
        n_rows, variance_g = self.open_rows.get(rows.label, OpenRows(0, (0.0,) * len(more_g)))
        total_g = tuple((np.array(variance_g) + more_g).tolist())
        self.open_rows[rows.label] = OpenRows(n_rows + len(rows.y_r), total_g)


def tune(fitted: Fitted, options: Options) -> Fitted:
    """Amplitudes and noise levels of the largest evidence bound; the posterior is solved anew.

    Of rows that came before the fit grew it is taken that they leave nothing open, as they do for
    new inducing variables (`gp.growth`).

    Parameters
    ----------
    fitted : Fitted
        A sparse fit that grew; unchanged.
    options : Options
        Settings: what is given and what is to be found.

    Returns
    -------
    Fitted
        With all that is free found anew, from where it was.
    """
    started = time.perf_counter()
    wide = [SHIFT_PRIOR] if fitted.shifts.n_columns else []
    whole_b = [is_linear(c.descriptor) for c in fitted.components for _ in c.inducing]
    whitening = whitening_of(fitted.components)
    coarse = put_in_front(fitted.shifts.n_columns, whitening.leading(COARSE, whole_b))
    nothing = OpenRows(0, (0.0,) * len(fitted.components))
    open_rows = fitted.open_rows or {}
    open_l = {label: open_rows.get(label, nothing).variance_g for label in fitted.triangles}
    delta_g, noise = most_probable(
        fitted.triangles,
        coarse,
        fitted.components,
        options,
        fitted.delta_g,
        fitted.noise,
        open_l,
        wide,
    )
    effective = effective_noise(noise, fitted.force_priority)
    whitening = put_in_front(fitted.shifts.n_columns, whitening)
    posterior = solve_rows(fitted.triangles, whitening, fitted.components, delta_g, effective)
    seconds = {**fitted.seconds, "hyperparameters": time.perf_counter() - started}
    fitted = fitted._replace(delta_g=delta_g, noise=noise, seconds=seconds)
    return with_posterior(fitted, Solved(posterior))
