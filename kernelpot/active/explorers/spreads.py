"""What biased dynamics climbs: uncertainties of the total energy with their exact derivatives.

The posterior variance of the energy of a structure is

    sigma^2 = sum_ij k(x_i, x_j) + k_m^T (C - K_mm^-1) k_m

with the covariances k_m of the energy with the inducing variables and the posterior covariance C of
their weights. Its derivative by the features of environment i is

    2 sum_j dk(x_i, x_j)/dx_i + 2 sum_m v_m dk_m/dx_i,        v = (C - K_mm^-1) k_m

and the second term is twice that of a potential of the weights v: one adjoint more than the forces
take. A committee of infinitely many samples would have the standard deviation of C alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from kernelpot.conventions import Float, Int, Pairs, System, as_int
from kernelpot.descriptors.protocol import block_of
from kernelpot.gp.kernels import power_kernel
from kernelpot.local_energies import add_component, blocks_of
from kernelpot.neighbours import within
from kernelpot.prediction import Predictor
from kernelpot.prior_variances import whole_descriptor
from kernelpot.rows import collect, structure_rows
from kernelpot.variances import Process

__all__ = ["SPREADS", "Spread", "novelty_spread", "posterior_spread"]

_FLOOR = 1e-4
"""Smallest standard deviation, eV: a square root has no derivative at zero."""


class Spread(NamedTuple):
    """An uncertainty of the total energy, and how it changes."""

    value: float  # eV
    gradient_nc: Float  # by positions, eV/angstrom
    strain_cd: Float  # by strain, eV, symmetric


def posterior_spread(predictor: Predictor, numbers_n: Int, pairs: Pairs) -> Spread:
    """Posterior standard deviation of the energy.

    Parameters
    ----------
    predictor : Predictor
        Of a model that keeps its posterior.
    numbers_n : Int
        Atomic numbers.
    pairs : Pairs
        Neighbours within its cutoff.

    Returns
    -------
    Spread
        With derivatives.
    """
    process = predictor.process
    posterior = process.posterior
    system = System(predictor.species_of(numbers_n), pairs)
    prior, gradient_pc = _prior_variance(process, system)
    k_m = structure_rows(process.components, system, gradients=False).energy_m
    known_k = posterior.whitening.whiten(k_m[None])[0]
    open_k = _solve(posterior.R_kk, known_k, trans="T")
    novelty = max(prior - float(np.sum((posterior.delta_k * known_k) ** 2)), 0.0)
    variance = novelty + float(open_k @ open_k)
    v_m = posterior.whitening.raw_weights(
        _solve(posterior.R_kk, open_k, trans="N") - posterior.delta_k**2 * known_k
    )
    gradient_pc += 2.0 * _weighted_gradient(process, v_m, system)
    return _root(variance, gradient_pc, system)


def novelty_spread(predictor: Predictor, numbers_n: Int, pairs: Pairs) -> Spread:
    """Square root of the summed novelty of all atoms, times the prior amplitude.

    What the energies of the environments would have as standard deviation were they independent
    and known at the inducing environments only.

    Parameters
    ----------
    predictor : Predictor
        Of a model with kernels that are not all linear.
    numbers_n : Int
        Atomic numbers.
    pairs : Pairs
        Neighbours within its cutoff.

    Returns
    -------
    Spread
        With derivatives.
    """
    process = predictor.process
    of_components = zip(process.components, process.delta_g, strict=True)
    amplitude_2 = sum(delta**2 for one, delta in of_components if one.zeta > 1)
    found = predictor.novelty(numbers_n, pairs)
    value = float(np.sqrt(amplitude_2 * found.novelty_n.sum() + _FLOOR**2))
    factor = 0.5 * amplitude_2 / value
    return Spread(value, factor * found.gradient_nc, factor * found.strain_cd)


SPREADS: dict[str, Callable[[Predictor, Int, Pairs], Spread]] = {
    "posterior": posterior_spread,
    "novelty": novelty_spread,
}
"""By the name that a bias has for them."""


def _prior_variance(process: Process, system: System) -> tuple[float, Float]:
    """Of the total energy, and its derivatives by the vectors of the pairs."""
    total, gradient_pc = 0.0, np.zeros((len(system.pairs.i_p), 3))
    for component, delta in zip(process.components, process.delta_g, strict=True):
        bound = whole_descriptor(component.descriptor)
        near, index_p = within(system.pairs, bound.cutoff)
        seen, near_pc = System(system.species_n, near), np.zeros((len(near.i_p), 3))
        block_n = block_of(bound, system.species_n)
        for z in np.unique(block_n):
            centres_b = as_int(np.flatnonzero(block_n == z))
            x_bq, state = bound.features(seen, centres_b)
            value_bb, first_bb, _ = power_kernel(x_bq @ x_bq.T, component.zeta)
            total += delta**2 * float(value_bb.sum())
            bound.vjp(seen, centres_b, state, 2.0 * delta**2 * (first_bb @ x_bq), near_pc)
        gradient_pc[slice(None) if index_p is None else index_p] += near_pc
    return total, gradient_pc


def _weighted_gradient(process: Process, weights_m: Float, system: System) -> Float:
    """Of the energy that these weights give, by the vectors of the pairs."""
    pairs = system.pairs
    gradient_pc = np.zeros((len(pairs.i_p), 3))
    of_components = zip(process.components, blocks_of(process.components, weights_m), strict=True)
    for component, blocks in of_components:
        near, index_p = within(pairs, component.descriptor.cutoff)
        energies_n, unused_n = np.zeros((2, pairs.n_centres))
        seen = System(system.species_n, near)
        near_pc = add_component(component, blocks, None, seen, energies_n, unused_n, None)
        gradient_pc[slice(None) if index_p is None else index_p] += near_pc
    return gradient_pc


def _root(variance: float, gradient_pc: Float, system: System) -> Spread:
    """Standard deviation from a variance and its derivatives by the vectors of the pairs."""
    pairs = system.pairs
    forces_nc, strain_ncd = collect(
        gradient_pc, pairs.i_p, pairs.j_p, pairs.D_pc, len(system.species_n), pairs.n_centres
    )
    value = float(np.sqrt(variance + _FLOOR**2))
    return Spread(value, -0.5 / value * forces_nc, 0.5 / value * strain_ncd.sum(axis=0))


def _solve(R_kk: Float, b_k: Float, trans: str) -> Float:
    return scipy.linalg.solve_triangular(R_kk, b_k, trans=trans, check_finite=False)
