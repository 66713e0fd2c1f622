"""Errors of a fit on its own training structures, each predicted by all others: without refits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float, Progress, VarianceTerms
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.doubts import Doubt, LabelErrors, reweighted
from kernelpot.fitted import Fitted
from kernelpot.gp.leave_out import LeftOutBlock, leave_block_out
from kernelpot.gp.solvers import Posterior
from kernelpot.label_rows import LabelRows, label_rows
from kernelpot.options import effective_noise
from kernelpot.prior_variances import prior_variances
from kernelpot.selection import system_of

__all__ = ["leave_one_out", "left_out_terms"]


class _LeftOut(NamedTuple):
    """A structure by the fit to all others: its rows, errors, and what the others leave open."""

    rows: list[LabelRows]
    sigma_r: Float  # noise that the labels counted with
    error_r: Float  # prediction less label
    open_r: Float  # variance
    phi_rk: Float  # whitened rows, divided by their noise
    block: LeftOutBlock  # in units of the noise


def _each_left_out(
    fitted: Fitted,
    structures: Sequence[Structure],
    doubts: Sequence[Doubt],
    progress: Progress | None,
) -> Iterator[_LeftOut]:
    posterior = fitted.posterior()
    counted = effective_noise(fitted.noise, fitted.force_priority)
    for s, structure in enumerate(reweighted(structures, doubts)):
        rows = label_rows(structure, fitted.known)
        unknown = [one.label for one in rows if one.label not in counted]
        if unknown:
            raise DataError(
                f"{structure.name} has {unknown[0].kind} of the source {unknown[0].source!r}, "
                "which the model has not seen: give structures that it was fitted to."
            )
        sigma_r = _joined([one.sigma_r * counted[one.label] for one in rows])
        K_rm = np.zeros((len(sigma_r), fitted.known.n_columns))
        first = 0
        for one in rows:
            K_rm[first : first + len(one.y_r), K_rm.shape[1] - one.A_rm.shape[1] :] = one.A_rm
            first += len(one.y_r)
        phi_rk = posterior.whitening.whiten(K_rm) / sigma_r[:, None]
        y_r = _joined([one.y_r for one in rows])
        try:
            block = leave_block_out(phi_rk, y_r / sigma_r, posterior)
        except ValueError as error:
            raise DataError(
                f"{structure.name} is none of the structures that the model was fitted to, or its "
                f"weight was another: {error}."
            ) from error
        # Without its own noise, which is 1 in units of what the label counted with.
        open_r = np.maximum(np.diag(block.covariance_rr) - 1.0, 0.0) * sigma_r**2
        yield _LeftOut(rows, sigma_r, -block.residual_r * sigma_r, open_r, phi_rk, block)
        if progress is not None:
            progress("leave one out", s + 1, len(structures))


def leave_one_out(
    fitted: Fitted,
    structures: Sequence[Structure],
    doubts: Sequence[Doubt] = (),
    progress: Progress | None = None,
) -> LabelErrors:
    """Errors on each structure of the fit to all others.

    What is left out are all labels of the structure together. Baseline, inducing variables and
    hyperparameters stay those of the fit to all. Costs about as much as the rows of the fit.

    Parameters
    ----------
    fitted : Fitted
        A fit.
    structures : Sequence[Structure]
        Structures that it has seen.
    doubts : Sequence[Doubt]
        Labels that counted less in it.
    progress : Progress | None
        Called with the stage "leave one out", what is done and the total.

    Returns
    -------
    LabelErrors
        In the order given. Standard deviations hold what the others leave open in the span of the
        inducing variables, and the noise of labels of weight 1.

    Raises
    ------
    DataError
        If a structure cannot have been in the fit.
    """
    energy_s, energy_std_s = np.full((2, len(structures)), np.nan)
    stress_sv, stress_std_sv = np.full((2, len(structures), 6), np.nan)
    forces, forces_std = [], []
    everything = zip(structures, _each_left_out(fitted, structures, doubts, progress), strict=True)
    for s, (structure, one) in enumerate(everything):
        noise_r = _joined([_own_noise(of_kind, structure, fitted) for of_kind in one.rows])
        std_r = np.sqrt(one.open_r + noise_r**2)
        found = _by_kind(one.rows, np.stack([one.error_r, std_r]), structure.n_atoms)
        energy_s[s], energy_std_s[s] = found["energy"][:, 0] * structure.n_atoms
        stress_sv[s], stress_std_sv[s] = found["stress"]
        forces.append(found["forces"][0])
        forces_std.append(found["forces"][1])
    return LabelErrors(energy_s, energy_std_s, forces, forces_std, stress_sv, stress_std_sv)


def left_out_terms(
    fitted: Fitted,
    structures: Sequence[Structure],
    doubts: Sequence[Doubt] = (),
    progress: Progress | None = None,
) -> list[dict[str, tuple[Float, VarianceTerms]]]:
    """Errors as of `leave_one_out`, and what would have made them uncertain without the structure.

    Parameters
    ----------
    fitted : Fitted
        A fit.
    structures : Sequence[Structure]
        Structures that it has seen.
    doubts : Sequence[Doubt]
        Labels that counted less in it.
    progress : Progress | None
        Called with the stage "leave one out", what is done and the total.

    Returns
    -------
    list[dict[str, tuple[Float, VarianceTerms]]]
        For each structure and kind of label, prediction less label and the terms: (1,), of the
        total energy, (n_atoms, 3), (6,). NaN where there is no label.

    Raises
    ------
    DataError
        If a structure cannot have been in the fit.
    """
    posterior, n_front = fitted.posterior(), fitted.shifts.n_columns
    result = []
    everything = zip(structures, _each_left_out(fitted, structures, doubts, progress), strict=True)
    for structure, one in everything:
        known_r = np.sum((one.phi_rk * posterior.delta_k)[:, n_front:] ** 2, axis=1)
        known_r *= one.sigma_r**2
        novelty_r = np.maximum(_prior(one.rows, structure, fitted) - known_r, 0.0)
        jackknife_r = _left_out_jackknife(one, posterior) * one.sigma_r**2
        values = np.stack([one.error_r, novelty_r, one.open_r, jackknife_r])
        of_kind = {}
        for kind, (error, *terms) in _by_kind(one.rows, values, structure.n_atoms).items():
            per = structure.n_atoms if kind == "energy" else 1
            of_kind[kind] = per * error, VarianceTerms(*terms).scaled(per)
        result.append(of_kind)
    return result


def _left_out_jackknife(one: _LeftOut, posterior: Posterior) -> Float:
    """In units of the noise.

    Without the structure the covariance of the weights is S' with Phi S' = (I - H)^-1 Phi S, and
    its own score does not count. (That the scores of others change a little is of second order.)
    """
    if posterior.scores_kj is None:
        return np.zeros(len(one.sigma_r))
    open_rk = one.block.open_rk
    moved_rj = one.block.covariance_rr @ (open_rk @ posterior.scores_kj)
    # (I - H)^-1 H e of its residuals e in the fit to all, which are I - H times those left out.
    own_r = open_rk @ (open_rk.T @ one.block.residual_r)
    return np.maximum(np.sum(moved_rj**2, axis=1) - own_r**2, 0.0)


def _joined(parts: Sequence[Float]) -> Float:
    return np.concatenate([np.zeros(0), *parts])


def _prior(rows: Sequence[LabelRows], structure: Structure, fitted: Fitted) -> Float:
    """Prior variances of the labels; energies per atom."""
    longest = max((one.descriptor for one in fitted.components), key=lambda bound: bound.cutoff)
    kinds = [one.label.kind for one in rows]
    system = system_of(longest, structure)
    found = prior_variances(fitted.components, fitted.delta_g, system, kinds)
    volume = structure.volume if structure.periodic else np.nan
    per = {"energy": structure.n_atoms, "forces": 1.0, "stress": volume}
    return _joined(
        [found[k][one.place_r] / per[k] ** 2 for k, one in zip(kinds, rows, strict=True)]
    )


def _own_noise(rows: LabelRows, structure: Structure, fitted: Fitted) -> Float:
    """Standard deviations of labels that are not in doubt."""
    sigma = getattr(structure, f"sigma_{rows.label.kind}")
    return np.full(len(rows.y_r), fitted.noise[rows.label] * sigma)


def _by_kind(rows: Sequence[LabelRows], values_xr: Float, n_atoms: int) -> dict[str, Float]:
    """Values of each label in the shapes of predictions, the first axis kept; NaN without label."""
    sizes = {"energy": 1, "forces": 3 * n_atoms, "stress": 6}
    kinds = {kind: np.full((len(values_xr), size), np.nan) for kind, size in sizes.items()}
    first = 0
    for one in rows:
        mine = slice(first, first + len(one.y_r))
        kinds[one.label.kind][:, one.place_r] = values_xr[:, mine]
        first += len(one.y_r)
    return kinds | {"forces": kinds["forces"].reshape(len(values_xr), n_atoms, 3)}
