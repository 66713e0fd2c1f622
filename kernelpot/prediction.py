"""The fused road: environments -> local energies -> adjoint -> forces and strain derivative.

After the fit the tangents of an environment collapse into one vector t_e = sum_r beta_er tau_er:

    eps_i        = sum_e [ alpha_e X^zeta + zeta X^(zeta-1) (x_i . t_e) ],   X = x_i . x_e
    d eps_i/dx_i = sum_e [ (zeta alpha_e X^(zeta-1) + zeta (zeta-1) X^(zeta-2) (x_i . t_e)) x_e
                           + zeta X^(zeta-1) t_e ]

so a prediction costs two products per environment, whatever the number of tangents. With zeta = 1
all of it is one vector.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from kernelpot._jit import njit
from kernelpot._machine import one_blas_thread
from kernelpot.conventions import Float, Int, Pairs, System, as_int, voigt_from_tensor
from kernelpot.data import Structure
from kernelpot.fitted import Fitted, predictive
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.kernels import power_kernel_scalar
from kernelpot.gp.solvers import Posterior
from kernelpot.neighbours import find_pairs, within
from kernelpot.rows import Component, centre_blocks, collect, prior_variance, structure_rows
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion

_BLOCK = 256
"""Centres per pass: large enough for BLAS-3, small enough for the second-level cache."""


class Evaluation(NamedTuple):
    """Energy, forces and strain derivative of one structure."""

    energies_n: Float  # eV, baseline included
    forces_nc: Float  # eV/angstrom
    strain_ncd: Float  # each centre's part of dE/dstrain, eV, symmetric

    @property
    def strain_cd(self) -> Float:
        """dE/dstrain, eV; divided by the volume it is the stress."""
        return self.strain_ncd.sum(axis=0)


class Collapsed(NamedTuple):
    """The weights of one block of centres, its tangents collapsed."""

    V_jq: Float  # environments, then their collapsed tangents: (2 n_environments, n_features)
    alpha_e: Float


def collapse(inducing: Inducing, weights_m: Float, zeta: int) -> Collapsed:
    """Sum the tangents of each environment with their weights; with zeta = 1 everything.

    Parameters
    ----------
    inducing : Inducing
        Inducing variables of one species.
    weights_m : Float
        Their weights.
    zeta : int
        Exponent of the kernel. The linear kernel collapses to a single environment: the local
        energy is one product with the weighted sum of all inducing variables.

    Returns
    -------
    Collapsed
        What the fused road needs.
    """
    if zeta == 1 and len(weights_m):
        sum_q = weights_m @ inducing.Z_mq
        return Collapsed(np.stack([sum_q, np.zeros_like(sum_q)]), np.ones(1))
    first_e = inducing.first_e[:-1]
    alpha_e = weights_m[first_e]
    weighted_mq = np.where(inducing.is_tangent_m, weights_m, 0.0)[:, None] * inducing.Z_mq
    if len(first_e) == 0:
        return Collapsed(np.zeros((0, inducing.Z_mq.shape[1])), alpha_e)
    t_eq = np.add.reduceat(weighted_mq, first_e, axis=0)
    return Collapsed(np.ascontiguousarray(np.vstack([inducing.x_eq, t_eq])), alpha_e)


class Predictor:
    """A fitted potential, as arrays: what the estimator and the calculators call.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    delta_g : Sequence[float]
        Their prior amplitudes, eV.
    weights_m : Float
        Mean weights of all inducing variables: by component, species after species.
    posterior : Callable[[], Posterior]
        Gives the posterior when a standard deviation is first asked for: a model file holds the
        statistics from which it is solved, and plain predictions need not wait for that.
    baseline : CompositionBaseline
        Energy of each species' free atom.
    repulsion : CoreRepulsion | None
        What keeps cores apart, on top of the sum.

    Attributes
    ----------
    cutoff : float
        Radius of the pair list that ``evaluate`` expects, angstrom.
    species : tuple[int, ...]
        Atomic numbers that the model knows.
    """

    def __init__(
        self,
        components: Sequence[Component],
        delta_g: Sequence[float],
        weights_m: Float,
        posterior: Callable[[], Posterior],
        baseline: CompositionBaseline,
        repulsion: CoreRepulsion | None = None,
    ):
        self.cutoff = max(component.descriptor.cutoff for component in components)
        self.species = components[0].descriptor.species
        self._components = tuple(components)
        self._delta_g = tuple(delta_g)
        self._solve = posterior
        self._posterior: Posterior | None = None
        self._baseline = baseline
        self._repulsion = repulsion
        groups = [(group, c.zeta) for c in components for group in c.inducing]
        edges = np.cumsum([len(group.Z_mq) for group, _ in groups])[:-1]
        weights = np.split(weights_m, edges)
        rest = (collapse(g, w, zeta) for (g, zeta), w in zip(groups, weights, strict=True))
        self._collapsed = [list(itertools.islice(rest, len(c.inducing))) for c in components]

    def species_of(self, numbers_n: Int, name: str = "the structure") -> Int:
        """Index of each atom's species.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers.
        name : str
            What to call the structure in an error.

        Returns
        -------
        Int
            Indices into ``species``.

        Raises
        ------
        ValueError
            If the model was not trained with one of them.
        """
        numbers_n = as_int(numbers_n)
        unknown = sorted(set(numbers_n.tolist()) - set(self.species))
        if unknown:
            raise ValueError(
                f"{name} contains {', '.join(chemical_symbols[z] for z in unknown)}, but the model "
                f"was fitted with {', '.join(chemical_symbols[z] for z in self.species)} only. "
                "Fit again with structures that contain the missing species."
            )
        return as_int(np.searchsorted(self.species, numbers_n))

    def evaluate(self, numbers_n: Int, pairs: Pairs, name: str = "the structure") -> Evaluation:
        """Energy, forces and strain derivative.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers.
        pairs : Pairs
            Neighbours within ``cutoff``.
        name : str
            What to call the structure in an error.

        Returns
        -------
        Evaluation
            Of the posterior mean, with the baseline.

        Raises
        ------
        ValueError
            If a species is not known.
        """
        species_n = self.species_of(numbers_n, name)
        energies_n = self._baseline.energies_of(numbers_n)
        gradient_pc = np.zeros((len(pairs.i_p), 3))
        if self._repulsion is not None:
            contribution = self._repulsion.evaluate(numbers_n, pairs)
            energies_n += contribution.energies_n
            gradient_pc += contribution.gradient_pc
        with one_blas_thread():
            for component, collapsed in zip(self._components, self._collapsed, strict=True):
                near, index_p = within(pairs, component.descriptor.cutoff)
                near_pc = _add_component(component, collapsed, System(species_n, near), energies_n)
                if index_p is None:
                    gradient_pc += near_pc
                else:
                    gradient_pc[index_p] += near_pc
        forces_nc, strain_ncd = collect(
            gradient_pc, pairs.i_p, pairs.j_p, pairs.D_pc, len(numbers_n)
        )
        return Evaluation(energies_n, forces_nc, strain_ncd)

    def energy_std(self, numbers_n: Int, pairs: Pairs, name: str = "the structure") -> float:
        """Posterior standard deviation of the total energy (epistemic: without label noise).

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers.
        pairs : Pairs
            Neighbours within ``cutoff``.
        name : str
            What to call the structure in an error.

        Returns
        -------
        float
            eV.

        Raises
        ------
        ValueError
            If a species is not known.
        """
        system = System(self.species_of(numbers_n, name), pairs)
        rows = structure_rows(self._components, system, gradients=False)
        prior = prior_variance(self._components, self._delta_g, system)
        if self._posterior is None:
            self._posterior = self._solve()
        variance = self._posterior.variance(np.array([prior]), rows.energy_m[None, :])
        return float(np.sqrt(variance[0]))


def predictor_of(fitted: Fitted) -> Predictor:
    """The potential that a fit gives.

    Parameters
    ----------
    fitted : Fitted
        A fit.

    Returns
    -------
    Predictor
        Its posterior is solved on demand.
    """
    return Predictor(
        fitted.components,
        fitted.delta_g,
        fitted.weights_m,
        functools.partial(predictive, fitted),
        fitted.baseline,
        fitted.repulsion,
    )


def evaluate_structure(
    predictor: Predictor, structure: Structure
) -> tuple[float, Float, Float, Float]:
    """Energy, forces, stress and local energies of a structure.

    Parameters
    ----------
    predictor : Predictor
        A fitted potential.
    structure : Structure
        Of species that it knows.

    Returns
    -------
    tuple[float, Float, Float, Float]
        eV; (n_atoms, 3), eV/angstrom; (6,), eV/angstrom^3, NaN without a volume; (n_atoms,), eV.
    """
    found = predictor.evaluate(structure.numbers_n, _pairs(predictor, structure), structure.name)
    stress_v = np.full(6, np.nan)
    if structure.periodic:
        stress_v = voigt_from_tensor(found.strain_cd) / structure.volume
    return float(found.energies_n.sum()), found.forces_nc, stress_v, found.energies_n


def energy_std_of(predictor: Predictor, structure: Structure) -> float:
    """Posterior standard deviation of the total energy of a structure.

    Parameters
    ----------
    predictor : Predictor
        A fitted potential.
    structure : Structure
        Of species that it knows.

    Returns
    -------
    float
        eV.
    """
    pairs = _pairs(predictor, structure)
    return predictor.energy_std(structure.numbers_n, pairs, structure.name)


def _pairs(predictor: Predictor, structure: Structure) -> Pairs:
    return find_pairs(structure.positions_nc, structure.cell_cc, structure.pbc_c, predictor.cutoff)


def time_predictions(predictor: Predictor, timed: Sequence[tuple[Int, Pairs]]) -> float:
    """What energy, forces and strain derivative cost.

    Parameters
    ----------
    predictor : Predictor
        The potential.
    timed : Sequence[tuple[Int, Pairs]]
        Atomic numbers and neighbours of structures.

    Returns
    -------
    float
        Microseconds per atom, the best of three times.
    """
    best = math.inf
    for _ in range(3):
        started = time.perf_counter()
        for numbers_n, pairs in timed:
            predictor.evaluate(numbers_n, pairs)
        best = min(best, time.perf_counter() - started)
    return 1e6 * best / sum(len(numbers_n) for numbers_n, _ in timed)


def _add_component(
    component: Component, collapsed: Sequence[Collapsed], system: System, energies_n: Float
) -> Float:
    """Add one component's local energies; its dE/dD of the pairs."""
    descriptor = component.descriptor
    gradient_pc = np.zeros((len(system.pairs.i_p), 3))
    for z, centres_b in centre_blocks(component, system.species_n, _BLOCK):
        V_jq, alpha_e = collapsed[z]
        if len(alpha_e) == 0:
            continue
        x_bq, state = descriptor.features(system, centres_b)
        products_bj = x_bq @ V_jq.T  # (b, 2 e)
        energies_n[centres_b] += _local_energies(products_bj, alpha_e, component.zeta)
        descriptor.vjp(system, centres_b, state, products_bj @ V_jq, gradient_pc)
    return gradient_pc


@njit
def _local_energies(products_bj, alpha_e, zeta):
    """Local energies; ``products_bj`` becomes d eps_b / d products, ready for the adjoint."""
    n_block = products_bj.shape[0]
    n_e = alpha_e.shape[0]
    energies_b = np.empty(n_block)
    for b in range(n_block):
        total = 0.0
        for e in range(n_e):
            along = products_bj[b, n_e + e]
            value, first, second = power_kernel_scalar(products_bj[b, e], zeta)
            total += alpha_e[e] * value + first * along
            products_bj[b, e] = alpha_e[e] * first + second * along
            products_bj[b, n_e + e] = first
        energies_b[b] = total
    return energies_b
