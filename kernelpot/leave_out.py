"""Errors of a fit on its own training structures, each predicted by all others: without refits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernelpot.conventions import Float, Progress
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.doubts import Doubt, LabelErrors, reweighted
from kernelpot.fitted import Fitted
from kernelpot.gp.leave_out import leave_block_out
from kernelpot.label_rows import LabelRows, label_rows
from kernelpot.options import effective_noise
from kernelpot.prior_variances import prior_variances
from kernelpot.selection import system_of

__all__ = ["leave_one_out"]


def leave_one_out(
    fitted: Fitted,
    structures: Sequence[Structure],
    doubts: Sequence[Doubt] = (),
    progress: Progress | None = None,
    *,
    epistemic: bool = False,
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
    epistemic : bool
        Whether standard deviations are those of the posterior: what the inducing variables cannot
        see, and what the others leave open.

    Returns
    -------
    LabelErrors
        In the order given. Standard deviations that are not epistemic hold what the others leave
        open in the span of the inducing variables, and the noise of labels of weight 1.

    Raises
    ------
    DataError
        If a structure cannot have been in the fit.
    """
    posterior, n_front = fitted.posterior(), fitted.shifts.n_columns
    counted = effective_noise(fitted.noise, fitted.force_priority)
    energy_s, energy_std_s = np.full((2, len(structures)), np.nan)
    stress_sv, stress_std_sv = np.full((2, len(structures), 6), np.nan)
    forces, forces_std = [], []
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
            residual_r, covariance_rr = leave_block_out(phi_rk, y_r / sigma_r, posterior)
        except ValueError as error:
            raise DataError(
                f"{structure.name} is none of the structures that the model was fitted to, or its "
                f"weight was another: {error}."
            ) from error
        # Without its own noise, which is 1 in units of what the label counted with.
        open_r = np.maximum(np.diag(covariance_rr) - 1.0, 0.0) * sigma_r**2
        if epistemic:
            known_r = np.sum((phi_rk * posterior.delta_k)[:, n_front:] ** 2, axis=1) * sigma_r**2
            more_r = np.maximum(_prior(rows, structure, fitted) - known_r, 0.0)
        else:
            more_r = _joined([_own_noise(one, structures[s], fitted) for one in rows]) ** 2
        std_r = np.sqrt(open_r + more_r)
        parts = _by_kind(rows, -residual_r * sigma_r, std_r, structure.n_atoms)
        (energy_s[s], energy_std_s[s]), of_forces, (stress_sv[s], stress_std_sv[s]) = parts
        forces.append(of_forces[0])
        forces_std.append(of_forces[1])
        if progress is not None:
            progress("leave one out", s + 1, len(structures))
    return LabelErrors(energy_s, energy_std_s, forces, forces_std, stress_sv, stress_std_sv)


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


def _by_kind(
    rows: Sequence[LabelRows], error_r: Float, std_r: Float, n_atoms: int
) -> tuple[Float, Float, Float]:
    """Errors and standard deviations of the total energy, the forces and the stress."""
    kinds = {"energy": np.full((2, 1), np.nan), "forces": np.full((2, 3 * n_atoms), np.nan)}
    kinds["stress"] = np.full((2, 6), np.nan)
    first = 0
    for one in rows:
        mine = slice(first, first + len(one.y_r))
        kinds[one.label.kind][:, one.place_r] = error_r[mine], std_r[mine]
        first += len(one.y_r)
    per_structure = kinds["energy"][:, 0] * n_atoms
    return per_structure, kinds["forces"].reshape(2, n_atoms, 3), kinds["stress"]
