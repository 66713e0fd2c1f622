"""`KernelPotential`: the estimator that people hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
from ase import Atoms
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

import kernelpot.model_file as model_file
import kernelpot.training as training
from kernelpot.automatic import fit_automatically
from kernelpot.conventions import (
    LABEL_KINDS,
    Float,
    LabelSet,
    Pairs,
    Prediction,
    Progress,
    voigt_from_tensor,
)
from kernelpot.data import LabelKeys, Noise, Structure, structures_from_atoms
from kernelpot.descriptors import DESCRIPTORS
from kernelpot.descriptors.protocol import Descriptor
from kernelpot.gp.inducing import Selector
from kernelpot.model_state import State, pack, unpack
from kernelpot.neighbours import find_pairs
from kernelpot.options import check_options
from kernelpot.prediction import Predictor
from kernelpot.summary import summarise
from kernelpot.training import Fitted

__all__ = ["KernelPotential", "load"]

Sigma = float | dict[str, float]
"""A standard deviation, or one by source."""


class KernelPotential(BaseEstimator):
    """Interatomic potential by sparse Gaussian process regression on SOAP power spectra.

    Energies, forces and stresses are linear functionals of one Gaussian process over atomic
    environments, whose inducing variables are environments and tangents (`docs/theory.md`).

    Parameters
    ----------
    descriptor : Descriptor | list[Descriptor] | None
        For instance ``Soap(cutoff=6.0)``; None for ``Soap()``. A list makes the model a sum of
        Gaussian processes, one for each descriptor; zeta, delta, n_environments and n_tangents
        may then be lists too. A linear descriptor (`PairSplines`) has zeta 1 and neither
        environments nor tangents: single values speak of the others, entries of a list must agree.
    basis : str
        "sparse": environments and tangents, as many as n_environments and n_tangents say. "full":
        every label is a basis function, the exact Gaussian process: the most accurate for small
        molecules, with up to some ten thousand labels (memory is four bytes times the square of
        their number); n_environments and n_tangents do not count, and there are neither standard
        deviations nor ``partial_fit``.
    zeta : int | list[int]
        Exponent of the kernel. With 1 (and ``n_tangents=0``) the model is linear in the features:
        for a `Soap`, three-body terms over the length of the power spectrum.
    delta : float | list[float | None] | None
        Prior standard deviation of a local energy, eV; None for the value that maximises the
        evidence (``delta_``).
    n_environments : int | dict[str, int] | list[int | dict[str, int]]
        Inducing environments: in all (shared out in proportion to the square root of each
        species' number of atoms), or by chemical symbol. Together with the descriptor this
        sets the cost of a prediction.
    n_tangents : int | list[int]
        At most this many tangents for each environment. They raise the accuracy and the cost of
        the fit, not that of a prediction.
    feature_tolerance : float
        Share of the second moment of features and derivatives that may be left out by keeping
        their principal axes only: fewer numbers, faster fits and predictions. 0 keeps all.
    tangent_threshold : float
        Tangents whose singular value is below this fraction of the environment's largest are left
        out, so that symmetric environments get fewer.
    selector : str | Selector
        How environments are chosen: "fps", "cur", "leverage", "uniform", "random", or a function.
    sigma_energy : Sigma | None
        Noise of the energies, eV/atom; a dict gives one per ``info["source"]``. None for the
        value that maximises the evidence, source by source (``noise_``); standard deviations
        that single structures bring along are then relative ones.
    sigma_forces : Sigma | None
        Noise of the force components, eV/angstrom; likewise.
    sigma_stress : Sigma | None
        Noise of the stress components, eV/angstrom^3; likewise.
    force_priority : float
        At least 1; multiplies the weight of the forces (1 / sigma_forces^2) on top of what the
        noise levels give, for dynamics whose forces matter more than energies.
    core_repulsion : bool
        Whether atoms nearer than any in the data repel as bare cores do (Ziegler, Biersack,
        Littmark); it is zero on the data themselves.
    energy_key : str | None
        Name of the energies in ``atoms.info``; None for the results of ``atoms.calc``.
    forces_key : str | None
        Name of the forces in ``atoms.arrays``; None for the results of ``atoms.calc``.
    stress_key : str | None
        Name of the stress in ``atoms.info``; None for the results of ``atoms.calc``.
    virial_key : str | None
        Name of the virial (eV, minus the volume times the stress) in ``atoms.info``.
    random_state : int | None
        Seed of everything random in the fit.
    progress : Progress | None
        Called as ``progress(stage, done, total)`` during a fit.

    Attributes
    ----------
    species_ : tuple[int, ...]
        Atomic numbers that the model knows, ascending.
    baseline_ : CompositionBaseline
        Energy of the free atom of each species, or the least-squares stand-in.
    repulsion_ : CoreRepulsion | None
        What keeps cores apart, with its radii.
    log_evidence_ : float
        Logarithm of the marginal likelihood of the labels (DTC).
    data_fit_ : float
        The part of it that says how well the labels are explained; the rest is the Occam factor.
    leave_out_errors_ : dict[str, float]
        Root mean square errors on structures that were left out in turn, fold by fold, by kind of
        label: eV/atom, eV/angstrom, eV/angstrom^3. Of the last ``fit``; empty below three
        structures.
    delta_ : float | tuple[float, ...]
        Prior amplitude in use, eV; one for each of a list of descriptors.
    noise_ : dict[str, Sigma]
        Standard deviations of energies (eV/atom), forces and stresses in use; by source where
        there are several.
    n_inducing_ : int
        Number of inducing variables: environments, tangents, features of linear descriptors.
    n_environments_ : int
        Number of inducing environments.
    training_summary_ : dict[str, Any]
        Counts, errors on the training data, hash of the data, versions, times.
    auto_ : dict[str, Any]
        After `auto`: the trials of the race, and why the settings are what they are.
    predictor_ : Predictor
        The potential as arrays, which calculators call.

    Examples
    --------
    >>> from kernelpot import KernelPotential, Soap, datasets
    >>> model = KernelPotential(Soap(cutoff=4.5, n_max=6, l_max=4), n_environments=20)
    >>> model.fit(datasets.load_silicon("train"))              # doctest: +SKIP
    >>> model.predict(datasets.load_silicon("test")).energy    # doctest: +SKIP
    """

    def __init__(
        self,
        descriptor: Descriptor | list[Descriptor] | None = None,
        *,
        basis: str = "sparse",
        zeta: int | list[int] = 4,
        delta: float | list[float | None] | None = None,
        n_environments: int | dict[str, int] | list[int | dict[str, int]] = 300,
        n_tangents: int | list[int] = 16,
        feature_tolerance: float = 1e-6,
        tangent_threshold: float = 1e-3,
        selector: str | Selector = "fps",
        sigma_energy: Sigma | None = None,
        sigma_forces: Sigma | None = None,
        sigma_stress: Sigma | None = None,
        force_priority: float = 1.0,
        core_repulsion: bool = True,
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
        virial_key: str | None = None,
        random_state: int | None = 0,
        progress: Progress | None = None,
    ):
        self.descriptor = descriptor
        self.basis = basis
        self.zeta = zeta
        self.delta = delta
        self.n_environments = n_environments
        self.n_tangents = n_tangents
        self.feature_tolerance = feature_tolerance
        self.tangent_threshold = tangent_threshold
        self.selector = selector
        self.sigma_energy = sigma_energy
        self.sigma_forces = sigma_forces
        self.sigma_stress = sigma_stress
        self.force_priority = force_priority
        self.core_repulsion = core_repulsion
        self.energy_key = energy_key
        self.forces_key = forces_key
        self.stress_key = stress_key
        self.virial_key = virial_key
        self.random_state = random_state
        self.progress = progress

    @classmethod
    def auto(
        cls,
        images: Iterable[Atoms],
        *,
        time_budget: float = 1800.0,
        cost: float | None = None,
        **parameters: Any,
    ) -> KernelPotential:
        """Choose all settings by the data, and fit.

        Descriptors race on parts of the structures, judged by their errors on structures left out
        in turn; noise levels and amplitudes are found as in every fit. ``auto_`` says what was
        tried and why the settings are what they are.

        Parameters
        ----------
        images : Iterable[Atoms]
            Labelled structures; no other data are looked at.
        time_budget : float
            Seconds for all of it.
        cost : float | None
            Most that a prediction may cost, microseconds per atom on this machine.
        **parameters : Any
            Of the model, where they are not to be chosen: keys of labels, ``force_priority``,
            ``random_state``, ``progress`` and the like.

        Returns
        -------
        KernelPotential
            Fitted, with the settings as its parameters.

        Raises
        ------
        ValueError
            If a budget is not positive, or a parameter or a structure is not valid.
        """
        for name, value in (("time_budget", time_budget), ("cost", cost)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value!r}")
        images = list(images)
        progress = parameters.get("progress")
        model, race, why = fit_automatically(
            # The progress of the trials is that of the race.
            lambda settings: cls(**{**parameters, "progress": None, **settings}),
            lambda settings: cls(**{**parameters, **settings}),
            images,
            cls(**parameters)._structures(images, labels="required"),
            time_budget=time_budget,
            cost=cost,
            random_state=parameters.get("random_state", 0),
            tell=progress or (lambda stage, done, total: None),
        )
        model.auto_ = {"why": list(why), "trials": [trial.describe() for trial in race.trials]}
        model.training_summary_["auto"] = model.auto_
        return model

    # ------------------------------------------------------------------------------ fit

    def fit(self, images: Iterable[Atoms], y: None = None) -> KernelPotential:
        """Fit to labelled structures.

        Parameters
        ----------
        images : Iterable[Atoms]
            Structures with any mix of energies, forces and stresses.
        y : None
            Not used; labels travel with the structures.

        Returns
        -------
        KernelPotential
            Itself.

        Raises
        ------
        ValueError
            If a parameter or a structure is not valid; the message names it.
        """
        options = check_options(self.get_params(deep=False))
        structures = self._structures(images, labels="required")
        fitted = training.fit(structures, options, self.progress)
        # Assigned last: an interrupted or failed fit leaves an earlier one as it was.
        descriptors = [one.descriptor for one in options.components]
        several = isinstance(self.descriptor, (list, tuple))
        self._descriptor = descriptors if several else descriptors[0]
        self._adopt(fitted)
        self.training_summary_ = self._summary(structures)
        return self

    def partial_fit(self, images: Iterable[Atoms], y: None = None) -> KernelPotential:
        """Add labelled structures, keeping baseline and inducing variables: no refit.

        Parameters
        ----------
        images : Iterable[Atoms]
            New structures, of species that the model knows.
        y : None
            Not used.

        Returns
        -------
        KernelPotential
            Itself; fitted anew where it was not fitted before.

        Raises
        ------
        ValueError
            If a structure is not valid; the model then stays as it was.
        """
        if not hasattr(self, "fitted_"):
            return self.fit(images)
        structures = self._structures(images, labels="required")
        fitted = training.update(self.fitted_, structures, self.progress)
        earlier = self.training_summary_
        self._adopt(fitted)
        summary = self._summary(structures)
        summary["n_structures"] += earlier["n_structures"]
        summary["n_labels"] = {
            kind: n + earlier["n_labels"][kind] for kind, n in summary["n_labels"].items()
        }
        summary["data_hash"] = [*np.atleast_1d(earlier["data_hash"]).tolist(), summary["data_hash"]]
        self.training_summary_ = summary
        return self

    def _structures(self, images: Iterable[Atoms], labels: str) -> list[Structure]:
        keys = LabelKeys(self.energy_key, self.forces_key, self.stress_key, self.virial_key)
        given = {kind: getattr(self, f"sigma_{kind}") for kind in LABEL_KINDS}
        noise = Noise()._replace(**{k: sigma for k, sigma in given.items() if sigma is not None})
        return structures_from_atoms(images, keys, noise, labels=labels)

    def _adopt(self, fitted: Fitted) -> None:
        self.fitted_ = fitted
        self.species_ = fitted.components[0].descriptor.species
        self.baseline_ = fitted.baseline
        self.repulsion_ = fitted.repulsion
        self.log_evidence_ = fitted.log_evidence
        self.data_fit_ = fitted.data_fit
        self.leave_out_errors_ = dict(fitted.leave_out)
        several = isinstance(self._descriptor, list)
        self.delta_ = fitted.delta_g if several else fitted.delta_g[0]
        self.n_inducing_ = sum(component.n_columns for component in fitted.components)
        self.n_environments_ = sum(component.n_environments for component in fitted.components)
        self.noise_ = {kind: self._noise_of(kind, fitted.noise) for kind in LABEL_KINDS}
        self.predictor_ = Predictor(
            fitted.components,
            fitted.delta_g,
            fitted.weights_m,
            fitted.posterior,
            fitted.baseline,
            fitted.repulsion,
        )

    def _noise_of(self, kind: str, factors: Mapping[LabelSet, float]) -> Sigma:
        """Standard deviation in use; by source where there are several."""
        given = getattr(self, f"sigma_{kind}")
        assumed = getattr(Noise(), kind) if given is None else given
        if isinstance(assumed, Mapping):
            return dict(assumed)
        found = {label.source: a * assumed for label, a in factors.items() if label.kind == kind}
        return next(iter(found.values()), assumed) if len(found) < 2 else found

    def _summary(self, structures: list[Structure]) -> dict[str, Any]:
        return summarise(structures, self._evaluate, self.fitted_.seconds)

    # -------------------------------------------------------------------------- predict

    def _pairs(self, structure: Structure) -> Pairs:
        return find_pairs(
            structure.positions_nc, structure.cell_cc, structure.pbc_c, self.predictor_.cutoff
        )

    def _evaluate(self, structure: Structure) -> tuple[float, Float, Float, Float]:
        pairs = self._pairs(structure)
        found = self.predictor_.evaluate(structure.numbers_n, pairs, structure.name)
        stress_v = np.full(6, np.nan)
        if structure.periodic:
            stress_v = voigt_from_tensor(found.strain_cd) / structure.volume
        return float(found.energies_n.sum()), found.forces_nc, stress_v, found.energies_n

    def predict(self, images: Iterable[Atoms], return_std: bool = False) -> Prediction:
        """Energies, forces and stresses of structures; labels they carry are not looked at.

        Parameters
        ----------
        images : Iterable[Atoms]
            Structures of species that the model knows.
        return_std : bool
            Whether the posterior standard deviation of the energies is wanted.

        Returns
        -------
        Prediction
            ``energy`` (n,), ``forces`` list of (n_atoms, 3), ``stress`` (n, 6), ``energies`` list
            of (n_atoms,), ``energy_std`` (n,) or None.

        Raises
        ------
        ValueError
            If a structure is not valid or has an unknown species; the message names it.
        """
        check_is_fitted(self, "fitted_")
        structures = self._structures(images, labels="ignore")
        results = [self._evaluate(structure) for structure in structures]
        std_s = None
        if return_std:
            std_s = np.array([self._energy_std(structure) for structure in structures])
        return Prediction(
            energy=np.array([r[0] for r in results]),
            forces=[r[1] for r in results],
            stress=np.array([r[2] for r in results]),
            energies=[r[3] for r in results],
            energy_std=std_s,
        )

    def _energy_std(self, structure: Structure) -> float:
        pairs = self._pairs(structure)
        return self.predictor_.energy_std(structure.numbers_n, pairs, structure.name)

    def score(self, images: Iterable[Atoms], y: None = None) -> float:
        """Coefficient of determination R^2 of the force components, or of the energies per atom
        where there are no forces.

        Parameters
        ----------
        images : Iterable[Atoms]
            Labelled structures.
        y : None
            Not used.

        Returns
        -------
        float
            1 is perfect, 0 as good as the mean label.
        """
        check_is_fitted(self, "fitted_")
        structures = self._structures(images, labels="required")
        results = [self._evaluate(structure) for structure in structures]
        label = np.concatenate([s.forces_nc.ravel() for s in structures])
        guess = np.concatenate([r[1].ravel() for r in results])
        if not np.any(np.isfinite(label)):
            label = np.array([s.energy / s.n_atoms for s in structures])
            guess = np.array([r[0] / s.n_atoms for r, s in zip(results, structures, strict=True)])
        known = np.isfinite(label)
        spread = np.sum((label[known] - label[known].mean()) ** 2)
        residual = np.sum((label[known] - guess[known]) ** 2)
        if spread == 0.0:
            return 1.0 if residual == 0.0 else 0.0
        return float(1.0 - residual / spread)

    # ------------------------------------------------------------------------ model file

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model to one file, with what ``partial_fit`` needs later.

        Parameters
        ----------
        path : str | PathLike[str]
            The file; replaced whole or not at all.

        Raises
        ------
        ValueError
            If a descriptor is not of this library: a file holds settings, not code.
        """
        check_is_fitted(self, "fitted_")
        several = self._descriptor if isinstance(self._descriptor, list) else [self._descriptor]
        if not all(type(one) in DESCRIPTORS.values() for one in several):
            raise ValueError(
                f"a model file holds {' and '.join(DESCRIPTORS)} descriptors; this model has "
                f"{self._descriptor!r}. Keep the data and the script, or use pickle where code and "
                "versions stay the same."
            )
        parameters = self.get_params(deep=False)
        del parameters["descriptor"], parameters["progress"]
        if not isinstance(self.selector, str):
            # A file without code keeps the name; the choice itself is in the inducing variables.
            parameters["selector"] = getattr(self.selector, "__name__", repr(self.selector))
        state = State(parameters, self._descriptor, self.fitted_, self.training_summary_)
        model_file.write(path, *pack(state))


def load(path: str | PathLike[str]) -> KernelPotential:
    """Read a model that ``KernelPotential.save`` wrote; it predicts bit-identically.

    Parameters
    ----------
    path : str | PathLike[str]
        The file.

    Returns
    -------
    KernelPotential
        Fitted, and ready for ``partial_fit``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is truncated, altered, of another program, or of a newer format.
    """
    header, arrays = model_file.read(path)
    try:
        state = unpack(header, arrays)
        model = KernelPotential(state.descriptor, **state.parameters)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise model_file.ModelFileError(
            f"{path} is a whole file of a known format version, but its content does not make a "
            f"model ({type(error).__name__}: {error}). It was probably written by other code."
        ) from error
    model._descriptor = state.descriptor
    model._adopt(state.fitted)
    model.training_summary_ = state.summary
    if "auto" in state.summary:
        model.auto_ = state.summary["auto"]
    return model
