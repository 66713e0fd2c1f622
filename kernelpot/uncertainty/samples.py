"""Samples of the posterior: whole potentials, each as likely as the data leave it.

Weights of the whitened features are drawn from their posterior, N(w, R^-1 R^-T), and each draw is a
potential of its own: w + R^-1 xi with standard normal xi, taken back to the inducing variables. So
a committee comes without another fit. Samples differ by what the inducing variables can express:
the variance of a prediction over samples is phi R^-1 R^-T phi^T, the last term of the posterior
variance. What no inducing variable knows of an environment, k** - k*_m K_mm^-1 k_m*, is in no
sample; far from the data the standard deviations of `KernelPotential.predict` are larger.
"""

from __future__ import annotations

import functools
import numbers
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, overload

import numpy as np
import scipy.linalg
from ase import Atoms

from kernelpot._machine import side_by_side
from kernelpot.conventions import (
    Float,
    Int,
    Pairs,
    SamplePrediction,
    System,
    voigt_from_tensor,
)
from kernelpot.data import Structure, structures_from_atoms
from kernelpot.descriptors.protocol import vjp_many
from kernelpot.fitted import Fitted, predictive
from kernelpot.neighbours import find_pairs
from kernelpot.prediction import Predictor
from kernelpot.rows import structure_rows
from kernelpot.uncertainty.deviations import Deviations, collect_many, deviations

__all__ = ["Committee", "Sample", "draw"]


class Sample:
    """One potential of a committee: what ``Calculator`` takes in the place of a model.

    Parameters
    ----------
    predictor : Predictor
        The potential.

    Attributes
    ----------
    predictor_ : Predictor
        As given: arrays in, energies and forces out, in double precision.
    """

    def __init__(self, predictor: Predictor):
        self.predictor_ = predictor


class Committee(Sequence[Sample]):
    """Samples of the posterior; ``model.sample`` draws one.

    ``committee[k]`` is a potential for ``Calculator``, a slice is a smaller committee, and
    ``predict`` evaluates all of them at once.

    Parameters
    ----------
    predictor : Predictor
        The potential of the mean weights.
    fitted : Fitted
        What it learned.
    drawn_um : Float
        Deviations from the mean weights, shape (n_drawn, n_inducing).
    factor_u : Float | None
        Of each sample, by what its deviation is multiplied: 1, or -1 for the other one of a pair.
        None is 1.
    place_u : Int | None
        Of each sample, which of the deviations is its own; None for each its own.

    Attributes
    ----------
    mean : Sample
        The potential of the mean weights, from which the samples deviate.
    """

    def __init__(
        self,
        predictor: Predictor,
        fitted: Fitted,
        drawn_um: Float,
        factor_u: Float | None = None,
        place_u: Int | None = None,
    ):
        self.mean = Sample(predictor.with_weights(fitted.weights_m, _of_one_sample))
        self._predictor = predictor
        self._fitted = fitted
        self._drawn_um = drawn_um
        self._factor_u = np.ones(len(drawn_um)) if factor_u is None else factor_u
        self._place_u = np.arange(len(drawn_um)) if place_u is None else place_u

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._place_u)

    @overload
    def __getitem__(self, k: int) -> Sample: ...

    @overload
    def __getitem__(self, k: slice) -> Committee: ...

    def __getitem__(self, k: int | slice) -> Sample | Committee:
        """A sample by its number, or some of them as a committee."""
        if isinstance(k, slice):
            place_u, factor_u = self._place_u[k], self._factor_u[k]
            kept, place_u = np.unique(place_u, return_inverse=True)
            drawn_um = self._drawn_um[kept]
            return Committee(self._predictor, self._fitted, drawn_um, factor_u, place_u)
        weights_m = self._fitted.weights_m + self._factor_u[k] * self._drawn_um[self._place_u[k]]
        return Sample(self._predictor.with_weights(weights_m, _of_one_sample))

    def predict(self, images: Iterable[Atoms]) -> SamplePrediction:
        """Energies, forces and stresses of structures by all samples at once.

        What samples share is computed once: neighbours, features, their products with the inducing
        variables. Deviations from the mean are computed in single precision where they are
        derivatives: forces differ from those of ``committee[k]`` by 1e-4 of what samples differ by
        from the mean, by up to 2 % where the model is most certain (stress of perfect crystals).
        Energies do not.

        Parameters
        ----------
        images : Iterable[Atoms]
            Structures of species that the model knows; labels they carry are not looked at.

        Returns
        -------
        SamplePrediction
            ``energy`` (n_samples, n), ``forces`` list of (n_samples, n_atoms, 3), ``stress``
            (n_samples, n, 6), ``energies`` list of (n_samples, n_atoms).

        Raises
        ------
        ValueError
            If a structure is not valid or has an unknown species; the message names it.
        """
        structures = structures_from_atoms(images, labels="ignore")
        found = [self._of_structure(structure) for structure in structures]
        n = len(self)
        return SamplePrediction(
            energy=np.array([energies_sn.sum(axis=1) for energies_sn, _, _ in found]).T.reshape(
                n, len(found)
            ),
            forces=[forces_snc for _, forces_snc, _ in found],
            stress=np.array([stress_sv for _, _, stress_sv in found])
            .reshape(len(found), n, 6)
            .swapaxes(0, 1),
            energies=[energies_sn for energies_sn, _, _ in found],
        )

    def energy_deviations(self, images: Iterable[Atoms]) -> Float:
        """Energies of structures by all samples, less that of the mean potential.

        Parameters
        ----------
        images : Iterable[Atoms]
            Structures of species that the model knows.

        Returns
        -------
        Float
            Shape (n_samples, n_structures), eV.
        """
        structures = structures_from_atoms(images, labels="ignore")
        found_um = []
        for structure in structures:
            species_n = self._predictor.species_of(structure.numbers_n, structure.name)
            system = System(species_n, _pairs(structure, self._predictor.cutoff))
            rows = structure_rows(self._fitted.components, system, gradients=False)
            found_um.append(self._drawn_um @ rows.energy_m)
        return self._factor_u[:, None] * np.array(found_um).T[self._place_u]

    def _of_structure(self, structure: Structure) -> tuple[Float, Float, Float]:
        pairs = _pairs(structure, self._predictor.cutoff)
        energies_sn, forces_snc, strain_scd = self.evaluate(
            structure.numbers_n, pairs, structure.name
        )
        stress_sv = np.full((len(self), 6), np.nan)
        if structure.periodic:
            stress_sv = voigt_from_tensor(strain_scd) / structure.volume
        return energies_sn, forces_snc, stress_sv

    def evaluate(
        self, numbers_n: Int, pairs: Pairs, name: str = "the structure"
    ) -> tuple[Float, Float, Float]:
        """Energies, forces and strain derivatives of one structure by all samples.

        Parameters
        ----------
        numbers_n : Int
            Atomic numbers, the centres first.
        pairs : Pairs
            Neighbours of the centres within the model's cutoff.
        name : str
            What to call the structure in an error.

        Returns
        -------
        tuple[Float, Float, Float]
            Of the centres (n_samples, n_centres), eV; (n_samples, n_atoms, 3), eV/angstrom;
            (n_samples, 3, 3), eV.

        Raises
        ------
        ValueError
            If a species is not known.
        """
        n_columns = -(-len(self._drawn_um) // 16) * 16
        energies_ns = np.zeros((pairs.n_centres, n_columns))
        forces_ncs = np.zeros((len(numbers_n), 3, n_columns))
        strain_cds = np.zeros((3, 3, n_columns))
        # Forces of centres overlap. Blocks come in the order of threads, which changes rounding in
        # double precision.
        alone = threading.Lock()

        def add(g: int, z: int, system: System, centres_b: Int, x_bq: Float, state: Any) -> None:
            block = self._deviations[g][z]
            descriptor = self._predictor.descriptor(g, z)
            energies_bs, g_bqs = block.local(x_bq)
            energies_ns[centres_b] += energies_bs
            gradient_pcs = vjp_many(descriptor, system, centres_b, state, g_bqs)
            first_n, j_p, D_pc = system.pairs.first_n, system.pairs.j_p, system.pairs.D_pc
            with alone:
                collect_many(gradient_pcs, first_n, centres_b, j_p, D_pc, forces_ncs, strain_cds)

        mean = self._predictor.evaluate(numbers_n, pairs, name, add)
        strain_cds = 0.5 * (strain_cds + strain_cds.swapaxes(0, 1))
        return (
            self._spread(mean.energies_n, energies_ns),
            self._spread(mean.forces_nc, forces_ncs),
            self._spread(mean.strain_cd, strain_cds),
        )

    def _spread(self, mean_x: Float, drawn_xu: Float) -> Float:
        """Mean and deviations to samples, which are the first index."""
        deviations_sx = np.moveaxis(drawn_xu, -1, 0)[self._place_u]
        factor_s = self._factor_u.reshape(-1, *(1,) * mean_x.ndim)
        deviations_sx *= factor_s
        deviations_sx += mean_x
        return deviations_sx

    @functools.cached_property
    def _deviations(self) -> list[list[Deviations | None]]:
        """By component and block of inducing variables."""
        found, first = [], 0
        for g, component in enumerate(self._fitted.components):
            blocks = []
            for inducing in self._predictor.compared(g):
                columns = slice(first, first + len(inducing.Z_mq))
                first = columns.stop
                blocks.append(deviations(inducing, self._drawn_um[:, columns], component.zeta))
            found.append(blocks)
        return found


def draw(
    predictor: Predictor,
    fitted: Fitted,
    n: int,
    random_state: int | np.random.Generator | None,
    antithetic: bool = False,
) -> Committee:
    """Draw samples of the posterior.

    Parameters
    ----------
    predictor : Predictor
        The potential of the mean weights.
    fitted : Fitted
        What it learned.
    n : int
        How many.
    random_state : int | np.random.Generator | None
        For repeatable samples: the first ones do not depend on how many are drawn.
    antithetic : bool
        Whether samples come in pairs that deviate from the mean by the opposite.

    Returns
    -------
    Committee
        Of n samples.

    Raises
    ------
    ValueError
        If n is not a whole number of at least 1, or the fit has no posterior.
    """
    whole = isinstance(n, numbers.Integral) and not isinstance(n, bool)
    if not whole or n < 1:
        raise ValueError(f"the number of samples must be a whole number of at least 1; got {n!r}")
    posterior = predictive(fitted)  # says so where there is none
    n_drawn = -(-int(n) // 2) if antithetic else int(n)
    xi_uk = np.random.default_rng(random_state).standard_normal((n_drawn, len(posterior.w_k)))
    drawn_ku = scipy.linalg.solve_triangular(posterior.R_kk, xi_uk.T, check_finite=False)
    drawn_um = np.array(side_by_side(posterior.whitening.raw_weights, list(drawn_ku.T)))
    if not antithetic:
        return Committee(predictor, fitted, drawn_um)
    factor_u = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    return Committee(predictor, fitted, drawn_um, factor_u, np.arange(n) // 2)


def _pairs(structure: Structure, cutoff: float) -> Pairs:
    return find_pairs(structure.positions_nc, structure.cell_cc, structure.pbc_c, cutoff)


def _of_one_sample() -> NoReturn:
    raise ValueError(
        "a sample is one potential and has no standard deviations: ask the model that it was drawn"
        " from, or take the standard deviation over the committee's samples"
    )
