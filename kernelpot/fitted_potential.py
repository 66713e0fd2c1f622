"""What a fitted potential can do: predict, judge itself, be saved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from ase import Atoms
from sklearn.utils.validation import check_is_fitted

import kernelpot.model_file as model_file
from kernelpot._machine import side_by_side
from kernelpot.conventions import LABEL_KINDS, Float, Interval, Prediction, VarianceTerms
from kernelpot.data import LabelKeys, Noise, Structure, structures_from_atoms
from kernelpot.descriptors import DESCRIPTORS
from kernelpot.descriptors.protocol import Descriptor
from kernelpot.doubts import Doubt, LabelErrors
from kernelpot.evidence_bound import evidence_bound
from kernelpot.fitted import Fitted
from kernelpot.leave_out import leave_one_out, left_out_terms
from kernelpot.model_state import State, pack
from kernelpot.prediction import Predictor, predictor_of
from kernelpot.structure_prediction import covariance_of, evaluate_structure, variances_of
from kernelpot.summary import noise_in_use, r_squared
from kernelpot.training_data import say_nothing
from kernelpot.uncertainty.calibration_fit import errors_by_kind, recalibrate
from kernelpot.uncertainty.recalibration import uncalibrated
from kernelpot.uncertainty.samples import Committee, draw
from kernelpot.variances import check_kinds

__all__ = ["FittedPotential"]

_TOLD = 8
"""Structures after which progress is told."""


class FittedPotential:
    """Base class of `KernelPotential`, which has the parameters and fits.

    A fit ends with `_adopt`, which sets what everything here stands on.
    """

    fitted_: Fitted
    predictor_: Predictor
    training_summary_: dict[str, Any]
    _descriptor: Descriptor | list[Descriptor]  # that was fitted; the parameter may be None

    @property
    def doubts_(self) -> tuple[Doubt, ...]:
        """Labels far from what the others say, the worst first, with their weights in the fit."""
        return tuple(Doubt(**doubt) for doubt in self.training_summary_.get("doubts", ()))

    @property
    def reference_noise_(self) -> dict[str, float]:
        """Noise of each kind of label of the reference source: eV/atom, eV/angstrom, eV/angstrom^3.

        Where this source has no such labels, that of another.
        """
        return {
            kind: noise.get(self.reference_source_, next(iter(noise.values())))
            if isinstance(noise, dict)
            else noise
            for kind, noise in self.noise_.items()
        }

    def predict(
        self,
        images: Iterable[Atoms],
        return_std: bool | str | Collection[str] = False,
        return_cov: bool | str | Collection[str] = False,
        return_interval: float | None = None,
    ) -> Prediction:
        """Energies, forces and stresses of structures; labels they carry are not looked at.

        Parameters
        ----------
        images : Iterable[Atoms]
            Structures of species that the model knows.
        return_std : bool | str | Collection[str]
            Whether posterior standard deviations are wanted; or of which of "energy", "forces",
            "stress" and "energies" (those of atoms).
        return_cov : bool | str | Collection[str]
            Likewise for posterior covariances of any two numbers of all structures: of energies
            for a difference of energies, say, whose variance is not the sum of theirs. Takes the
            square of the memory that the predicted numbers do, and derivatives of all features.
        return_interval : float | None
            Share of labels that intervals about the predictions are to hold, 0.95 say. What they
            are made of is in `calibration_`: calibrate the model first.

        Returns
        -------
        Prediction
            ``energy`` (n,), ``forces`` list of (n_atoms, 3), ``stress`` (n, 6), ``energies`` list
            of (n_atoms,); ``energy_std``, ``forces_std``, ``stress_std`` and ``energies_std`` of
            the same shapes, or None; ``cov`` and ``interval``, or None.

        Raises
        ------
        ValueError
            If a structure is not valid or has an unknown species; the message names it.
        """
        check_is_fitted(self, "fitted_")
        kinds, joint = check_kinds(return_std, "return_std"), check_kinds(return_cov, "return_cov")
        if return_interval is not None:
            if not 0.0 < return_interval < 1.0:
                raise ValueError(
                    f"return_interval must be between 0 and 1; got {return_interval!r} (0.95 is 95 "
                    "per cent)"
                )
            kinds = tuple(dict.fromkeys([*kinds, *LABEL_KINDS]))
        structures = self._structures(images, labels="ignore")
        results = side_by_side(self._evaluate, structures)
        jackknife = return_interval is not None
        variances_s = self._variances(structures, kinds, jackknife=jackknife)
        std: dict[str, Any] = {
            f"{kind}_std": [of[kind].std for of in variances_s] for kind in kinds
        }
        if "energy" in kinds:
            std["energy_std"] = np.array(std["energy_std"]).reshape(-1)
        if "stress" in kinds:
            std["stress_std"] = np.array(std["stress_std"]).reshape(-1, 6)
        return Prediction(
            energy=np.array([r[0] for r in results]),
            forces=[r[1] for r in results],
            stress=np.array([r[2] for r in results]),
            energies=[r[3] for r in results],
            cov=covariance_of(self.predictor_, structures, joint) if joint else None,
            interval=self._interval(structures, variances_s, return_interval),
            **std,
        )

    def _interval(
        self,
        structures: list[Structure],
        variances_s: list[dict[str, VarianceTerms]],
        level: float | None,
    ) -> Interval | None:
        if level is None:
            return None

        def of(kind: str) -> list[Float]:
            return [
                self.calibration_.half_width(kind, variances[kind], one.numbers_n, level)
                for one, variances in zip(structures, variances_s, strict=True)
            ]

        energy_s, stress_sv = np.concatenate(of("energy")), np.array(of("stress"))
        return Interval(level, energy_s, of("forces"), stress_sv)

    def calibrate(self, images: Iterable[Atoms], *, left_out: bool = False) -> FittedPotential:
        """Learn from errors how wide standard deviations and intervals have to be.

        Parameters
        ----------
        images : Iterable[Atoms]
            Labelled structures that the model was not fitted to, like those it will be used for;
            a few tens. Energies of other sources than the reference count less their shifts.
        left_out : bool
            Whether these are structures that it was fitted to, all or some: then each is predicted
            by all others (`leave_one_out`), and nothing need be held out.

        Returns
        -------
        FittedPotential
            Itself; ``calibration_`` is what was learned. It is forgotten by the next fit.

        Raises
        ------
        ValueError
            If a structure is not valid, cannot have been in the fit where it should, or the model
            has no posterior (``basis="full"``).
        """
        check_is_fitted(self, "fitted_")
        structures = self._structures(images, labels="required")
        if left_out:
            found = left_out_terms(self.fitted_, structures, self.doubts_, self.progress)
        else:
            found = self.errors_with_terms(structures)
        source = "leave-one-out" if left_out else "held-out"
        errors = errors_by_kind(structures, found)
        self.calibration_ = recalibrate(errors, self.reference_noise_, source)
        return self

    def sample(
        self,
        n: int,
        random_state: int | np.random.Generator | None = None,
        antithetic: bool = False,
    ) -> Committee:
        """Whole potentials, drawn from the posterior: a committee without another fit.

        Parameters
        ----------
        n : int
            How many.
        random_state : int | np.random.Generator | None
            For repeatable samples: the first ones do not depend on how many are drawn.
        antithetic : bool
            Whether samples come in pairs that deviate from the mean by the opposite. Their mean is
            then that of the model, and they cost little more than half; but only every other one
            is a draw of its own, so that a standard deviation over them is no more certain than
            one over half of them.

        Returns
        -------
        Committee
            ``Calculator(committee[k])`` computes what a calculator of the model does, and
            ``committee.predict(images)`` all of them at once. Samples hold what the inducing
            variables can express: far from the data they agree more than they should, and
            ``predict(images, return_std=True)`` knows of it.

        Raises
        ------
        ValueError
            If n is not a whole number of at least 1, or the model keeps no posterior
            (``basis="full"``).
        """
        check_is_fitted(self, "fitted_")
        return draw(self.predictor_, self.fitted_, n, random_state, antithetic)

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
        structures = self.fitted_.shifts.to_reference(structures)
        return r_squared(structures, side_by_side(self._evaluate, structures))

    def evidence_bound(self, images: Iterable[Atoms]) -> float:
        """Lower bound (VFE) of the log evidence of the exact process.

        Parameters
        ----------
        images : Iterable[Atoms]
            The structures that the model was fitted to.

        Returns
        -------
        float
            `log_evidence_` less half of the variance of the labels, in units of their noise, that
            the inducing variables leave open; the latter from at most 40 of the structures.
        """
        check_is_fitted(self, "fitted_")
        self.fitted_.posterior()  # says so where there is none
        return evidence_bound(self.fitted_, self._structures(images, labels="required"))

    def leave_one_out(self, images: Iterable[Atoms]) -> LabelErrors:
        """Errors on training structures, each predicted by all others; nothing is fitted again.

        All labels of a structure are left out together. The noise levels, the inducing variables
        and the baseline stay those of the fit to all.

        Parameters
        ----------
        images : Iterable[Atoms]
            Structures that the model was fitted to, all or some; for others the result means
            nothing.

        Returns
        -------
        LabelErrors
            Prediction less label of energy, forces and stress, and its standard deviation.

        Raises
        ------
        ValueError
            If a structure is not valid, or cannot have been in the fit; or if the model grew, whose
            statistics interpolate what earlier structures say of new inducing variables.
        """
        check_is_fitted(self, "fitted_")
        if self.fitted_.open_rows is not None:
            raise ValueError(
                "the model grew by partial_fit(grow=...): what earlier structures say of its new "
                "inducing variables is interpolated, so that none of them can be left out. Take "
                "errors on structures before they are learned, or fit to all structures anew."
            )
        structures = self._structures(images, labels="required")
        return leave_one_out(self.fitted_, structures, self.doubts_, self.progress)

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
        state = State(
            parameters, self._descriptor, self.fitted_, self.training_summary_, self.calibration_
        )
        model_file.write(path, *pack(state))

    # ---------------------------------------------------------------------- for other rooms

    def errors_with_terms(
        self, structures: Sequence[Structure]
    ) -> list[dict[str, tuple[Float, VarianceTerms]]]:
        """Errors on structures that the model was not fitted to, and what makes them likely.

        Parameters
        ----------
        structures : Sequence[Structure]
            With labels.

        Returns
        -------
        list[dict[str, tuple[Float, VarianceTerms]]]
            Of each by kind of label: prediction less label, and the terms: (1,), of the total
            energy, (n_atoms, 3), (6,). Errors are NaN where there is no label.
        """
        self.fitted_.posterior()  # says so where there is none
        labelled = self.fitted_.shifts.to_reference(structures)
        results = side_by_side(self._evaluate, structures)
        tell = self.progress or say_nothing
        found = []
        for first in range(0, len(labelled), _TOLD):
            part = slice(first, first + _TOLD)
            variances_s = self._variances(labelled[part], LABEL_KINDS, jackknife=True)
            for one, (energy, forces_nc, stress_v, _), terms in zip(
                labelled[part], results[part], variances_s, strict=True
            ):
                errors = {
                    "energy": np.array([energy - one.energy]),
                    "forces": forces_nc - one.forces_nc,
                    "stress": stress_v - one.stress_v,
                }
                found.append({kind: (errors[kind], terms[kind]) for kind in LABEL_KINDS})
            tell("calibration", len(found), len(structures))
        return found

    # ---------------------------------------------------------------------- for the estimator

    def _structures(self, images: Iterable[Atoms], labels: str) -> list[Structure]:
        return structures_from_atoms(images, *self._labels(), labels=labels)

    def _labels(self) -> tuple[LabelKeys, Noise]:
        keys = LabelKeys(self.energy_key, self.forces_key, self.stress_key, self.virial_key)
        given = {kind: getattr(self, f"sigma_{kind}") for kind in LABEL_KINDS}
        noise = Noise()._replace(**{k: sigma for k, sigma in given.items() if sigma is not None})
        return keys, noise

    def _adopt(self, fitted: Fitted) -> None:
        self.fitted_ = fitted
        self.species_ = fitted.components[0].descriptor.species
        self.baseline_ = fitted.baseline
        self.repulsion_ = fitted.repulsion
        self.reference_source_ = fitted.shifts.reference
        self.source_shifts_ = fitted.shifts.by_symbol()
        self.log_evidence_ = fitted.log_evidence
        self.data_fit_ = fitted.data_fit
        self.leave_out_errors_ = dict(fitted.leave_out)
        self.leave_systems_out_errors_ = dict(fitted.leave_systems_out)
        several = isinstance(self._descriptor, list)
        self.delta_ = fitted.delta_g if several else fitted.delta_g[0]
        self.n_inducing_ = sum(component.n_columns for component in fitted.components)
        self.n_environments_ = sum(component.n_environments for component in fitted.components)
        self.noise_ = {
            kind: noise_in_use(kind, getattr(self, f"sigma_{kind}"), fitted.noise)
            for kind in LABEL_KINDS
        }
        self.predictor_ = predictor_of(fitted)
        self.calibration_ = uncalibrated(self.reference_noise_)

    def _variances(
        self, structures: Sequence[Structure], kinds: Collection[str], *, jackknife: bool
    ) -> list[dict[str, VarianceTerms]]:
        """Of each structure; empty where no kinds are asked for."""
        if not kinds:
            return [{} for _ in structures]
        return side_by_side(
            lambda one: variances_of(self.predictor_, one, kinds, jackknife=jackknife), structures
        )

    def _evaluate(self, structure: Structure) -> tuple[float, Float, Float, Float]:
        return evaluate_structure(self.predictor_, structure)
