"""`KernelPotential`: the estimator that people hold."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from os import PathLike
from typing import Any

from ase import Atoms
from sklearn.base import BaseEstimator

import kernelpot.model_file as model_file
from kernelpot._machine import one_blas_thread
from kernelpot.automatic import fit_automatically
from kernelpot.conventions import Progress
from kernelpot.descriptors.protocol import Descriptor
from kernelpot.distributed import Files, paths_of, read_by_workers, scattered
from kernelpot.fit_cost import Estimate, estimate
from kernelpot.fitted import with_scores
from kernelpot.gp.inducing import Selector
from kernelpot.model_state import unpack
from kernelpot.options import Options, check_options
from kernelpot.rates import Clock
from kernelpot.robust import fit_robustly
from kernelpot.streamed_potential import StreamedPotential
from kernelpot.summary import summarise
from kernelpot.training_data import Data, InProcess, say_nothing

__all__ = ["KernelPotential", "load"]

Sigma = float | dict[str, float]
"""A standard deviation, or one by source."""


class KernelPotential(StreamedPotential, BaseEstimator):
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
        Prior standard deviation of a local energy, eV; None to find it, by errors on structures
        left out, and on systems where there are three species or more (in the full basis by the
        evidence; ``delta_``).
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
        How environments are chosen: "fps", "cur", "leverage", "variance" (greedy, of the prior),
        "joint" (the same, with the tangents), "uniform", "random", or a function.
    selection_sample : int
        Features and inducing variables are chosen among at most so many structures, with a share
        for each group in proportion to the square root of its structures; labels are learned from
        all. Environments come from at most some hundred thousand atoms in any case.
    balance_groups : bool
        Whether each group of structures (``info["group"]``) gets a share of the environments in
        proportion to the square root of its atoms, so that small groups are represented.
    sigma_energy : Sigma | None
        Noise of the energies, eV/atom; a dict gives one per ``info["source"]``. None to find it as
        delta is found, source by source (``noise_``); standard deviations that single structures
        bring along are then relative ones.
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
    reference_source : str | None
        The ``info["source"]`` on whose scale energies are predicted; None for the one with most
        energies. All others get learned shifts (``source_shifts_``).
    robust : bool | float
        Whether labels further than 6 sigma (or this number of sigmas) from what all other
        structures say count less (``doubts_``). Costs one to three more fits.
    memory : float | str | None
        What the process may take during a fit: bytes, or "2GB". Work is done in smaller pieces
        where that helps; a fit that needs more says so before it begins, and what to lower. None:
        nine tenths of the machine's memory.
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
    reference_source_ : str
        The source on whose scale energies are.
    source_shifts_ : dict[str, dict[str, float]]
        Energy per atom of each species, eV, by which the other sources differ from it.
    log_evidence_ : float
        Logarithm of the marginal likelihood of the labels (DTC).
    data_fit_ : float
        The part of it that says how well the labels are explained; the rest is the Occam factor.
    leave_out_errors_ : dict[str, float]
        Root mean square errors on structures that were left out in turn, fold by fold, by kind of
        label: eV/atom, eV/angstrom, eV/angstrom^3. Of the last ``fit``; empty below three
        structures.
    leave_systems_out_errors_ : dict[str, float]
        Likewise where whole systems were left out: sets of species that occur together. Empty
        below three species, or three systems of several; energies may be off by a constant that
        nothing tells.
    delta_ : float | tuple[float, ...]
        Prior amplitude in use, eV; one for each of a list of descriptors.
    noise_ : dict[str, Sigma]
        Standard deviations of energies (eV/atom), forces and stresses in use; by source where
        there are several.
    n_inducing_ : int
        Number of inducing variables: environments, tangents, features of linear descriptors.
    n_environments_ : int
        Number of inducing environments.
    doubts_ : tuple[Doubt, ...]
        Labels far from what the others say, the worst first; they count less in robust fits only.
    calibration_ : Recalibration
        How standard deviations become those of errors; after `calibrate` by errors on structures
        that were left out, else as the fit has it.
    training_summary_ : dict[str, Any]
        Counts, errors on the training data, hash of the data, versions, times.
    schedule_ : Schedule
        How many structures were learned when, and what `partial_fit` did of its own accord.
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
        selection_sample: int = 10_000,
        balance_groups: bool = False,
        sigma_energy: Sigma | None = None,
        sigma_forces: Sigma | None = None,
        sigma_stress: Sigma | None = None,
        force_priority: float = 1.0,
        core_repulsion: bool = True,
        reference_source: str | None = None,
        robust: bool | float = False,
        memory: float | str | None = None,
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
        self.selection_sample = selection_sample
        self.balance_groups = balance_groups
        self.sigma_energy = sigma_energy
        self.sigma_forces = sigma_forces
        self.sigma_stress = sigma_stress
        self.force_priority = force_priority
        self.core_repulsion = core_repulsion
        self.reference_source = reference_source
        self.robust = robust
        self.memory = memory
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

    def fit(
        self, images: Iterable[Atoms] | Files, y: None = None, *, client: Any = None
    ) -> KernelPotential:
        """Fit to labelled structures.

        Parameters
        ----------
        images : Iterable[Atoms] | Files
            Structures with any mix of energies, forces and stresses. With a client also the path
            of a file, or a list of paths, each as `read_images` takes it ("train.xyz@::10"): the
            workers read them, and this process never holds all structures.
        y : None
            Not used; labels travel with the structures.
        client : Any
            A ``distributed.Client``: the workers of its cluster do the work on the structures,
            the results are the same (`docs/distributed.md`).

        Returns
        -------
        KernelPotential
            Itself.

        Raises
        ------
        ValueError
            If a parameter or a structure is not valid; the message names it.
        """
        options = self._options()
        data = self._data(images, options, client)
        # BLAS would round differently on several threads; what divides is divided above it.
        with one_blas_thread() if options.basis == "sparse" else nullcontext():
            fitted, doubts = fit_robustly(data, options, self.progress)
            tell = self.progress or say_nothing
            summary, scores_mj = summarise(data, fitted, options, doubts, tell)
            fitted = with_scores(fitted, scores_mj)
        # Assigned last: an interrupted or failed fit leaves an earlier one as it was.
        descriptors = [one.descriptor for one in options.components]
        several = isinstance(self.descriptor, (list, tuple))
        self._descriptor = descriptors if several else descriptors[0]
        self._adopt(fitted)
        self.training_summary_ = summary
        return self

    def _data(self, images: Iterable[Atoms] | Files, options: Options, client: Any) -> Data:
        """The structures, and who works on them."""
        if client is None:
            return InProcess(self._structures(images, labels="required"))
        if options.basis == "full":
            raise ValueError(
                "basis='full' is fitted in one process: the covariance of all labels is one "
                "matrix, not a sum over structures. Fit without a client, or with basis='sparse'."
            )
        if options.memory is not None:
            raise ValueError(
                f"memory={self.memory!r} is a budget of one process, and with a client there are "
                "several: workers are told how much each may take when they are started "
                "(`dask worker --memory-limit`). Leave memory out, or fit without a client."
            )
        tell = self.progress or say_nothing
        files = paths_of(images)
        if files:
            return read_by_workers(client, files, *self._labels(), options, tell)
        return scattered(client, self._structures(images, labels="required"), options)

    def estimate_fit(
        self, images: Iterable[Atoms], *, clock: Clock = time.perf_counter
    ) -> Estimate:
        """What a fit would take, before it runs: a look at some of the structures, some seconds.

        Parameters
        ----------
        images : Iterable[Atoms]
            Labelled structures.
        clock : Clock
            By which the speed of this machine is measured.

        Returns
        -------
        Estimate
            Of which ``cost()`` gives seconds and memory, stage by stage; of a fit in this process.

        Raises
        ------
        ValueError
            If a parameter or a structure is not valid; the message names it.
        """
        options = self._options()
        started = clock()
        structures = self._structures(images, labels="required")
        return estimate(structures, options, clock, clock() - started)

    def _options(self) -> Options:
        """The parameters, checked."""
        untouched = KernelPotential()
        return check_options(self.get_params(deep=False), untouched.get_params(deep=False))


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
    if state.calibration.kinds:
        model.calibration_ = state.calibration
    if "auto" in state.summary:
        model.auto_ = state.summary["auto"]
    return model
