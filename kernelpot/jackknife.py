"""How much each training structure pulls at the weights, and so how far resampling moves a fit.

With rows A_r of a structure s, residuals e_r = y_r - A_r w of the fit and the noise sigma_r that it
counted with, the score of the structure is

    g_s = sum_r A_r^T e_r / sigma_r^2,

and w moves by S g_s to first order where s counts twice instead of once, S the posterior covariance
of the weights. The sum of (phi S g_s)^2 over structures is the variance of a prediction phi w over
fits to bootstrap samples, without one such fit: the infinitesimal jackknife (Jaeckel, Bell
Laboratories Memorandum MM 72-1215-11 (1972); Efron, J. R. Stat. Soc. B 54, 83 (1992)). It is large
where residuals are, unlike the posterior, which believes that they are everywhere alike and
independent.

A score takes no rows: A_r^T e_r summed over the labels of a structure is the derivative of the
energies' covariances along one direction, in which residuals of forces displace atoms, and those of
stress strain the cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernelpot._machine import side_by_side
from kernelpot.conventions import VOIGT, Float, LabelSet, Progress, System
from kernelpot.data import Structure
from kernelpot.doubts import LabelErrors
from kernelpot.fitted import Fitted
from kernelpot.gp.covariances import add_directional_sums, offsets
from kernelpot.neighbours import within
from kernelpot.options import effective_noise
from kernelpot.rows import Component, centre_blocks
from kernelpot.selection import system_of

__all__ = ["AT_ONCE", "MOST_SCORES", "folded", "scores_of", "structure_score"]

MOST_SCORES = 512
"""Columns that are kept: scores of more structures are added with random signs, which leaves the
expectation of the jackknife as it is, and its relative standard deviation below 7 per cent."""
_CENTRES = 64
"""Centres whose features are there at once."""
_STEP = 3e-4
"""Angstrom, of the central difference of features along the direction: its error is 1e-7 of it.
Two more features instead of a Jacobian: scores take 2 to 4 per cent of the time of a fit, not 7 to
17 (molybdenum, 3BPA; one thread)."""
AT_ONCE = 256
"""Structures whose scores are there side by side, beside those that are kept."""


def structure_score(
    fitted: Fitted, structure: Structure, energy: float, forces_nc: Float, stress_v: Float
) -> Float:
    """Score of one structure.

    Parameters
    ----------
    fitted : Fitted
        A fit in which it was.
    structure : Structure
        With its labels and the weights that they had.
    energy : float
        Prediction less label, on the scale of its own source, of the total energy; NaN without.
    forces_nc : Float
        Of the forces.
    stress_v : Float
        Of the stress.

    Returns
    -------
    Float
        Shape (n_columns,): shifts between sources, then inducing variables.
    """
    factor = effective_noise(fitted.noise, fitted.force_priority)

    def pull(kind: str, error: Float) -> Float:
        """Residuals over squared noise; 0 where there is no label."""
        noise = factor.get(LabelSet(kind, structure.source), np.inf)
        return np.nan_to_num(-error / (noise * getattr(structure, f"sigma_{kind}")) ** 2)

    n_atoms = structure.n_atoms
    weight = float(pull("energy", energy / n_atoms)) / n_atoms
    # A force is minus the derivative by a position.
    shift_nc = -pull("forces", forces_nc)
    strain_v = pull("stress", stress_v) / (structure.volume if structure.periodic else 1.0)
    strain_cd = np.zeros((3, 3))
    for (c, d), value in zip(VOIGT, strain_v, strict=True):
        strain_cd[c, d] += 0.5 * value
        strain_cd[d, c] += 0.5 * value
    counts_k = fitted.shifts.counts(structure.source, structure.numbers_n)
    longest = max((one.descriptor for one in fitted.components), key=lambda bound: bound.cutoff)
    system = system_of(longest, structure)
    parts = [weight * counts_k]
    for component in fitted.components:
        near = System(system.species_n, within(system.pairs, component.descriptor.cutoff)[0])
        moved_pc = shift_nc[near.pairs.j_p] - shift_nc[near.pairs.i_p] + near.pairs.D_pc @ strain_cd
        parts.append(_of_component(component, near, weight, moved_pc))
    return np.concatenate(parts)


def _of_component(component: Component, near: System, weight: float, moved_pc: Float) -> Float:
    bound, zeta, inducing = component
    column_z = offsets([len(group.Z_mq) for group in inducing])
    sums_m = np.zeros(component.n_columns)
    largest = np.abs(moved_pc).max(initial=0.0)
    step = _STEP / largest if largest > 0.0 else 0.0
    more, less = (_moved(near, way * step * moved_pc, bound.cutoff) for way in (1.0, -1.0))
    for z, centres_b in centre_blocks(component, near.species_n, _CENTRES):
        group = inducing[z]
        x_bq, _ = bound.features(near, centres_b)
        slopes_bm = np.zeros((len(x_bq), len(group.Z_mq)))
        if step > 0.0:
            more_bq, less_bq = (bound.features(one, centres_b)[0] for one in (more, less))
            slopes_bm = ((more_bq - less_bq) / (2.0 * step)) @ group.Z_mq.T
        mine_m = sums_m[column_z[z] : column_z[z + 1]]
        products_bm = x_bq @ group.Z_mq.T
        add_directional_sums(products_bm, slopes_bm, weight, group.first_e, zeta, mine_m)
    return sums_m


def _moved(near: System, moved_pc: Float, cutoff: float) -> System:
    """The structure after its pairs' vectors have changed."""
    D_pc = near.pairs.D_pc + moved_pc
    pairs = near.pairs._replace(D_pc=D_pc, r_p=np.linalg.norm(D_pc, axis=1))
    return System(near.species_n, within(pairs, cutoff)[0])


def folded(parts: Sequence[Float]) -> Float:
    """Scores of several lists of structures together, in no more than `MOST_SCORES` columns.

    Parameters
    ----------
    parts : Sequence[Float]
        Of the same rows, each (n_columns, any number).

    Returns
    -------
    Float
        As they are where there are few enough, else added with random signs.
    """
    scores_mj = np.concatenate(parts, axis=1)
    n = scores_mj.shape[1]
    if n <= MOST_SCORES:
        return scores_mj
    # The same for the same number: a fit is to be repeatable.
    signed_mj = scores_mj * np.random.default_rng(n).choice([-1.0, 1.0], n)
    folded_mj = signed_mj[:, :MOST_SCORES].copy()
    for first in range(MOST_SCORES, n, MOST_SCORES):
        more_mj = signed_mj[:, first : first + MOST_SCORES]
        folded_mj[:, : more_mj.shape[1]] += more_mj
    return folded_mj


def scores_of(
    fitted: Fitted, structures: Sequence[Structure], errors: LabelErrors, tell: Progress
) -> Float:
    """Scores of all structures.

    Parameters
    ----------
    fitted : Fitted
        A fit in which they were.
    structures : Sequence[Structure]
        With their labels and the weights that they had.
    errors : LabelErrors
        Of these by the fit: prediction less label, on the scale of each one's own source.
    tell : Progress
        Told of the stage "jackknife".

    Returns
    -------
    Float
        Shape (n_columns, at most `MOST_SCORES`).
    """
    n_columns = fitted.known.n_columns
    found_mj = np.zeros((n_columns, 0))
    everything = list(zip(structures, errors.energy, errors.forces, errors.stress, strict=True))
    for first in range(0, len(structures), AT_ONCE):
        some = everything[first : first + AT_ONCE]
        scores_jm = side_by_side(lambda one: structure_score(fitted, *one), some)
        found_mj = folded([found_mj, np.array(scores_jm).T])
        tell("jackknife", first + len(some), len(structures))
    return found_mj
