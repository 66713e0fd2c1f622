"""The fused road: environments -> local energies -> adjoint -> forces and strain derivative."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from kernelpot.collapsed import single
from kernelpot.conventions import Float, Int, Pairs, System, VarianceTerms, as_int
from kernelpot.descriptors.protocol import BoundDescriptor
from kernelpot.descriptors.protocol import single as single_descriptor
from kernelpot.fitted import Fitted, predictive
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.solvers import Posterior
from kernelpot.local_energies import Beside, Block, LocalEnergies, add_component, blocks_of
from kernelpot.neighbours import within
from kernelpot.novelty import (
    KnownEnvironments,
    Novelty,
    known_environments,
    novelty_with_slopes,
)
from kernelpot.rows import Component, collect
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion
from kernelpot.variances import Process, variance_terms


class Evaluation(NamedTuple):
    """Energy, forces and strain derivative of one structure."""

    energies_n: Float  # of each centre, eV, baseline included
    forces_nc: Float  # on all atoms, eV/angstrom
    strain_ncd: Float  # each centre's part of dE/dstrain, eV, symmetric
    novelty_n: Float  # of each centre, 0 to 1: see `novelty`; NaN where there is none, or unasked

    @property
    def strain_cd(self) -> Float:
        """dE/dstrain, eV; divided by the volume it is the stress."""
        return self.strain_ncd.sum(axis=0)


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
    has_novelty : bool
        Whether environments are compared with inducing ones at all: not by a linear kernel.
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
        self.has_novelty = any(component.zeta > 1 for component in components)
        self._components = tuple(components)
        self._delta_g = tuple(delta_g)
        self._solve = posterior
        self._process: Process | None = None
        self._baseline = baseline
        self._repulsion = repulsion
        self._blocks = blocks_of(components, weights_m)

    def in_single_precision(self, max_error: float = 0.01) -> Predictor:
        """The same potential with features, adjoints and matrix products in single precision.

        Parameters
        ----------
        max_error : float
            Root mean square change of the energies of the inducing environments that is allowed,
            eV.

        Returns
        -------
        Predictor
            Another predictor.

        Raises
        ------
        ValueError
            If energies change by more.
        """
        other = copy.copy(self)
        other._blocks = []
        descriptors: dict[int, BoundDescriptor] = {}  # one for all blocks
        for component, blocks in zip(self._components, self._blocks, strict=True):
            found = [single(one.collapsed, component.zeta) for one in blocks]
            error = max(error for _, error in found)
            if not error <= max_error:
                raise ValueError(
                    f"in single precision energies of atoms would change by {1e3 * error:.2g} meV,"
                    f" and {1e3 * max_error:.2g} meV are allowed: the weights of this model are"
                    " large and cancel. Use double precision, or fit with fewer environments"
                )
            for one in blocks:
                if id(one.descriptor) not in descriptors:
                    descriptors[id(one.descriptor)] = single_descriptor(one.descriptor)
            other._blocks.append(
                [
                    Block(descriptors[id(one.descriptor)], collapsed)
                    for one, (collapsed, _) in zip(blocks, found, strict=True)
                ]
            )
        return other

    def with_weights(self, weights_m: Float, posterior: Callable[[], Posterior]) -> Predictor:
        """The potential of other weights.

        Parameters
        ----------
        weights_m : Float
            Weights of all inducing variables.
        posterior : Callable[[], Posterior]
            Gives their posterior, or says that they have none.

        Returns
        -------
        Predictor
            With the same inducing variables, baseline and repulsion.
        """
        return Predictor(
            self._components, self._delta_g, weights_m, posterior, self._baseline, self._repulsion
        )

    def descriptor(self, g: int, z: int) -> BoundDescriptor:
        """What computes the features of centres.

        Parameters
        ----------
        g : int
            Place of the component.
        z : int
            Place of their block of inducing variables.

        Returns
        -------
        BoundDescriptor
            On principal axes where these make predictions cheaper.
        """
        return self._blocks[g][z].descriptor

    def compared(self, g: int) -> list[Inducing]:
        """Inducing variables of a component with the features that predictions compute.

        Parameters
        ----------
        g : int
            Place of the component.

        Returns
        -------
        list[Inducing]
            Block by block, on principal axes where these make predictions cheaper.
        """
        component = self._components[g]
        return [
            one
            if block.descriptor is component.descriptor
            else one._replace(Z_mq=component.descriptor.lift(one.Z_mq, z))
            for z, (one, block) in enumerate(zip(component.inducing, self._blocks[g], strict=True))
        ]

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

    def evaluate(
        self,
        numbers_n: Int,
        pairs: Pairs,
        name: str = "the structure",
        beside: Beside | None = None,
        *,
        novelty: bool = False,
    ) -> Evaluation:
        """Energy, forces and strain derivative.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers, the centres first.
        pairs : Pairs
            Neighbours of the centres within ``cutoff``.
        name : str
            What to call the structure in an error.
        beside : Beside | None
            Called with the features of each block of centres.
        novelty : bool
            Whether novelty is wanted, too.

        Returns
        -------
        Evaluation
            Of the posterior mean, with the baseline. Atoms that are no centres have no energy; the
            force on them is what the energies of the centres exert.

        Raises
        ------
        ValueError
            If a species is not known.
        """
        found = self.local_energies(numbers_n, pairs, name, beside, novelty=novelty)
        forces_nc, strain_ncd = collect(
            found.gradient_pc, pairs.i_p, pairs.j_p, pairs.D_pc, len(numbers_n), pairs.n_centres
        )
        return Evaluation(found.energies_n, forces_nc, strain_ncd, found.novelty_n)

    def local_energies(
        self,
        numbers_n: Int,
        pairs: Pairs,
        name: str = "the structure",
        beside: Beside | None = None,
        *,
        novelty: bool = False,
    ) -> LocalEnergies:
        """Energies of the centres, and their derivatives by the vectors to neighbours.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers, the centres first.
        pairs : Pairs
            Neighbours of the centres within ``cutoff``.
        name : str
            What to call the structure in an error.
        beside : Beside | None
            Called with the features of each block of centres.
        novelty : bool
            Whether novelty is wanted, too.

        Returns
        -------
        LocalEnergies
            Of the posterior mean, with the baseline.

        Raises
        ------
        ValueError
            If a species is not known.
        """
        species_n = self.species_of(numbers_n, name)
        energies_n = self._baseline.energies_of(numbers_n[: pairs.n_centres])
        novelty = novelty and self.has_novelty
        novelty_n = np.full(pairs.n_centres, 0.0 if novelty else np.nan)
        known = self._known if novelty else [None] * len(self._components)
        gradient_pc = np.zeros((len(pairs.i_p), 3))
        if self._repulsion is not None:
            contribution = self._repulsion.evaluate(numbers_n, pairs)
            energies_n += contribution.energies_n
            gradient_pc += contribution.gradient_pc
        all_of = zip(self._components, self._blocks, known, strict=True)
        for g, (component, blocks, known_z) in enumerate(all_of):
            near, index_p = within(pairs, component.descriptor.cutoff)
            near_pc = add_component(
                component,
                blocks,
                known_z,
                System(species_n, near),
                energies_n,
                novelty_n,
                None if beside is None else functools.partial(beside, g),
            )
            if index_p is None:
                gradient_pc += near_pc
            else:
                gradient_pc[index_p] += near_pc
        return LocalEnergies(energies_n, gradient_pc, novelty_n)

    @functools.cached_property
    def _known(self) -> list[list[KnownEnvironments] | None]:
        return known_environments(self._components, self._delta_g)

    def novelty(
        self,
        numbers_n: Int,
        pairs: Pairs,
        weights_n: Float | None = None,
        name: str = "the structure",
    ) -> Novelty:
        """Novelty of each atom, and the derivatives of its weighted sum.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers, the centres first.
        pairs : Pairs
            Neighbours of the centres within ``cutoff``.
        weights_n : Float | None
            Factor of each centre's novelty in the sum; None for 1.
        name : str
            What to call the structure in an error.

        Returns
        -------
        Novelty
            As of `evaluate`, with derivatives by positions and strain.

        Raises
        ------
        ValueError
            If a species is not known, or all kernels are linear.
        """
        if not self.has_novelty:
            raise ValueError(
                "novelty compares environments with inducing ones, which a linear kernel does not "
                "do: fit with zeta of 2 or more"
            )
        system = System(self.species_of(numbers_n, name), pairs)
        weights_n = np.ones(pairs.n_centres) if weights_n is None else weights_n
        return novelty_with_slopes(self._components, self._known, system, weights_n)

    @property
    def process(self) -> Process:
        """The Gaussian processes and their posterior, which is solved when it is first needed."""
        if self._process is None:
            self._process = Process(self._components, self._delta_g, self._solve())
        return self._process

    def variance_terms(
        self,
        numbers_n: Int,
        pairs: Pairs,
        volume: float,
        kinds: Collection[str],
        name: str = "the structure",
        *,
        jackknife: bool = False,
    ) -> dict[str, VarianceTerms]:
        """What makes predictions uncertain (epistemic: without the noise of labels).

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers.
        pairs : Pairs
            Neighbours within ``cutoff``.
        volume : float
            Of the cell, angstrom^3; NaN where it is not periodic in three directions.
        kinds : Collection[str]
            Of "energy", "forces", "stress" and "energies".
        name : str
            What to call the structure in an error.
        jackknife : bool
            Whether their jackknife is wanted.

        Returns
        -------
        dict[str, VarianceTerms]
            By kind, of numbers in eV and angstrom: (1,), (n_atoms, 3), (6,), (n_atoms,).

        Raises
        ------
        ValueError
            If a species is not known.
        """
        system = System(self.species_of(numbers_n, name), pairs)
        return variance_terms(self.process, system, volume, kinds, jackknife=jackknife)


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
