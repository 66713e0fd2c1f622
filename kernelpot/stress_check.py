"""Do the stress labels fit the strain derivative that energies and forces imply?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from kernelpot.conventions import Float, LabelSet
from kernelpot.data_checks import DataWarning
from kernelpot.gp.evidence import Gram
from kernelpot.gp.lapack import potrs
from kernelpot.gp.solvers import cholesky
from kernelpot.gp.triangles import Triangle
from kernelpot.gp.whitening import Whitening

__all__ = ["check_stress"]


def check_stress(
    triangles: Mapping[LabelSet, Triangle],
    totals: Mapping[LabelSet, Gram],
    whitening: Whitening,
    delta_b: Sequence[float],
    noise: Mapping[LabelSet, float],
) -> None:
    """Warn where the stress labels contradict the strain derivative of a fit without them.

    With the weights a of a fit to energies and forces alone, the triangle [R | z] of the stress
    rows holds the correlation of predicted with labelled stress: (R a) . z / (|R a| |z|), and the
    factor between them. The fit is to the inducing variables with which hyperparameters are sought.

    Parameters
    ----------
    triangles : Mapping[LabelSet, Triangle]
        Statistics of all rows of each set of labels.
    totals : Mapping[LabelSet, Gram]
        Their products.
    whitening : Whitening
        Of the variables that the products speak of.
    delta_b : Sequence[float]
        Prior standard deviation of the whitened weights of each of its blocks.
    noise : Mapping[LabelSet, float]
        Factors on the assumed standard deviations.
    """
    stress = [t for label, t in triangles.items() if label.kind == "stress"]
    forces = [t for label, t in triangles.items() if label.kind == "forces"]
    if sum(t.n_rows for t in stress) < 6 or not forces:
        return
    others = {label: one for label, one in totals.items() if label.kind != "stress"}
    A_kk = sum(one.G_kk / noise[label] ** 2 for label, one in others.items())
    b_k = sum(one.b_k / noise[label] ** 2 for label, one in others.items())
    np.einsum("kk->k", A_kk)[:] += whitening.spread(delta_b) ** -2.0
    factor_kk = cholesky(A_kk)
    w_k = potrs(factor_kk, b_k)
    weights_m = whitening.raw_weights(w_k)
    # A fit that does not even explain its own forces has no say about stresses.
    predicted, label = _stacked(forces, weights_m)
    if np.linalg.norm(predicted - label) > 0.5 * np.linalg.norm(label):
        return
    predicted, label = _stacked(stress, weights_m)
    # Nor has one that does not know them: where all cells are alike, energies and forces say next
    # to nothing of what another volume would do, and the prior alone is what it predicts.
    phi_rk = whitening.whiten(np.concatenate([t.R[:, :-1] for t in stress]))
    variance = float(np.vdot(phi_rk, potrs(factor_kk, phi_rk.copy().T).T))
    if variance > 0.25 * float(min(predicted @ predicted, label @ label)):
        return
    norms = float(np.linalg.norm(predicted) * np.linalg.norm(label))
    if norms == 0.0:
        return
    correlation = float(predicted @ label) / norms
    factor = float(predicted @ label) / float(predicted @ predicted)
    if correlation < -0.7:
        warnings.warn(
            "the stress labels run against the strain derivative of a fit to energies and forces "
            f"(correlation {correlation:.2f}, factor {factor:.2g}): their sign is probably that of "
            "a virial or a pressure. Stress here is dE/dstrain / volume, tension positive; name a "
            "virial with virial_key, or turn the sign.",
            DataWarning,
            stacklevel=5,
        )
    elif correlation > 0.7 and not 0.2 < factor < 5.0:
        warnings.warn(
            f"the stress labels are {factor:.3g} times the strain derivative of a fit to energies "
            "and forces: they are probably not in eV/A^3 (1 eV/A^3 = 160.22 GPa = 1602.2 kbar), or "
            "they are virials in eV (name them with virial_key).",
            DataWarning,
            stacklevel=5,
        )


def _stacked(triangles: Sequence[Triangle], weights_m: Float) -> tuple[Float, Float]:
    """What weights predict of the reduced rows, and their labels."""
    predicted = np.concatenate([t.R[:, :-1] @ weights_m for t in triangles])
    return predicted, np.concatenate([t.R[:, -1] for t in triangles])
