"""A fitted model as an ASE calculator."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from kernelpot.conventions import LABEL_KINDS, MIN_DISTANCE, OBSERVABLES, voigt_from_tensor
from kernelpot.neighbours import PairList

if TYPE_CHECKING:
    from kernelpot.potential import KernelPotential
    from kernelpot.uncertainty.samples import Sample

__all__ = ["Calculator"]

MIN_RELATIVE_VOLUME = 1e-6
"""Periodic cell vectors whose box fills less than this part of a rectangular one are flat."""


class Calculator(AseCalculator):
    """Energies, forces, stress and their uncertainties of a fitted model, for ASE.

    The calculator holds the model as it is now: after ``partial_fit`` make a new calculator.
    Neighbours are kept from call to call (Verlet list) and found anew when atoms or cell have
    moved enough.

    Parameters
    ----------
    model_or_path : KernelPotential | Sample | str | PathLike[str]
        A fitted model, or the file of one; or a sample of its posterior, ``model.sample(8)[0]``,
        which has no standard deviations.
    skin : float
        Additional radius of the kept neighbours, angstrom: a larger one searches less often
        and walks through more pairs; 0 searches at every call.
    single_precision : bool
        Whether features, their derivatives and products of the kernel are computed in single
        precision: faster, with forces of silicon off by 0.5 meV/angstrom. Standard deviations are
        not concerned.
    novelty : bool
        Whether novelty comes with every call, which takes less than a tenth of its time; else only
        where it is asked for.

    Raises
    ------
    ValueError
        The model is not fitted, the skin is negative, or single precision would change energies of
        atoms by more than 10 meV.

    Notes
    -----
    The posterior standard deviations ``energy_std`` (eV, of the total energy), ``forces_std``,
    ``stress_std`` and ``energies_std`` are computed only when asked for:
    ``atoms.calc.get_property("forces_std", atoms)``. ``energy_error``, ``forces_error`` and
    ``stress_error`` are standard deviations of the errors of labels, as ``model.calibrate`` has
    learned them (of a model that is not calibrated: the posterior and the noise of the fit). Stress
    exists for cells that are periodic
    in three directions; ``stresses`` are each atom's part of it (of the pairs of which it is the
    centre) and add up to it. There is no entropy in the model: ``free_energy`` is the energy.
    ``novelty`` says for each atom what share of the prior variance of its energy the inducing
    environments leave open, from 0 to 1 (`kernelpot.novelty`): it comes with every call.
    """

    name = "kernelpot"
    implemented_properties = (
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "stresses",
        "energy_std",
        "energies_std",
        "forces_std",
        "stress_std",
        "energy_error",
        "forces_error",
        "stress_error",
        "novelty",
    )
    ignored_changes = frozenset({"initial_charges", "initial_magmoms"})

    def __init__(
        self,
        model_or_path: KernelPotential | Sample | str | PathLike[str],
        *,
        skin: float = 0.5,
        single_precision: bool = False,
        novelty: bool = True,
    ):
        super().__init__()
        if not skin >= 0.0:
            raise ValueError(f"skin must be zero or positive (angstrom), not {skin!r}")
        model = model_or_path
        if isinstance(model, (str, PathLike)):
            from kernelpot.potential import load

            model = load(model)
        if not hasattr(model, "predictor_"):
            raise ValueError(
                f"the calculator needs a fitted model or the path of one, not {model!r}:"
                " call fit first, or load(path)"
            )
        self.predictor = model.predictor_
        self._calibration = getattr(model, "calibration_", None)  # a sample has none
        if single_precision:
            self.predictor = self.predictor.in_single_precision()
        self.novelty = bool(novelty) and self.predictor.has_novelty
        self._pair_list = PairList(self.predictor.cutoff, skin=skin)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Compute everything but standard deviations, and of these what is asked for.

        Parameters
        ----------
        atoms : Atoms | None
            The structure; None for the one of the last call.
        properties : Any
            Names of the properties that are asked for.
        system_changes : Any
            What has changed since the last call; if nothing has, the results so far are kept.

        Raises
        ------
        PropertyNotImplementedError
            Stress of a cell that is not periodic in three directions, or novelty of a model whose
            kernels are all linear.
        ValueError
            Positions or cell that are not finite, a flat periodic cell, atoms on top of each
            other, or species that the model has not been trained on.
        """
        results = {} if system_changes else dict(self.results)
        self.results = {}  # an error below leaves nothing stale behind
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        _check_geometry(atoms)
        if {"stress", "stresses", "stress_std", "stress_error"} & set(
            properties
        ) and not atoms.pbc.all():
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic in three directions; pbc is"
                f" {atoms.pbc.tolist()}"
            )
        if "novelty" in properties and not self.predictor.has_novelty:
            raise PropertyNotImplementedError(
                "novelty compares environments with inducing ones, which a linear kernel does not"
                " do: fit with zeta of 2 or more"
            )
        pairs = self._pair_list.update(atoms.positions, atoms.cell.array, atoms.pbc)
        _check_distances(pairs)
        uncertain = {f"{kind}_std" for kind in OBSERVABLES} | {f"{k}_error" for k in LABEL_KINDS}
        if uncertain & set(properties):
            results |= self._uncertainties(atoms, pairs, set(properties))
        if not set(properties) <= uncertain:
            novelty = self.novelty or "novelty" in properties
            results = {**results, **self._evaluate(atoms, pairs, novelty)}
        self.results = results

    def _uncertainties(self, atoms: Atoms, pairs: Any, properties: set[str]) -> dict[str, Any]:
        errors = [kind for kind in LABEL_KINDS if f"{kind}_error" in properties]
        if errors and self._calibration is None:
            raise PropertyNotImplementedError(
                f"{errors[0]}_error is of a fitted model; this calculator has a sample of one"
            )
        kinds = [k for k in OBSERVABLES if k in errors or f"{k}_std" in properties]
        volume = atoms.get_volume() if atoms.pbc.all() else np.nan
        found = self.predictor.variance_terms(
            atoms.numbers, pairs, volume, kinds, jackknife=bool(errors)
        )
        results: dict[str, Any] = {f"{kind}_std": terms.std for kind, terms in found.items()}
        for kind in errors:
            results[f"{kind}_error"] = self._calibration.std(kind, found[kind], atoms.numbers)
        scalars = [name for name in ("energy_std", "energy_error") if name in results]
        return results | {name: float(results[name][0]) for name in scalars}

    def _evaluate(self, atoms: Atoms, pairs: Any, novelty: bool) -> dict[str, Any]:
        evaluation = self.predictor.evaluate(atoms.numbers, pairs, novelty=novelty)
        energy = float(evaluation.energies_n.sum())
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": evaluation.energies_n,
            "forces": evaluation.forces_nc,
        }
        if novelty:
            results["novelty"] = evaluation.novelty_n
        if atoms.pbc.all():
            stresses_nv = voigt_from_tensor(evaluation.strain_ncd) / atoms.get_volume()
            results["stresses"] = stresses_nv
            results["stress"] = stresses_nv.sum(axis=0)
        return results


def _check_geometry(atoms: Atoms) -> None:
    """Refuse what has no neighbours in the mathematical sense, and say which atom it is."""
    bad_n = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if bad_n.size:
        n = bad_n[0]
        raise ValueError(
            f"positions of {bad_n.size} of {len(atoms)} atoms are not finite, the first of atom"
            f" {n} ({atoms.symbols[n]}): {atoms.positions[n].tolist()}. In a simulation this"
            " means that it has exploded: try a shorter time step or a nearer start"
        )
    periodic_cc = atoms.cell.array[atoms.pbc]
    lengths = np.linalg.norm(periodic_cc, axis=1)
    if not np.isfinite(lengths).all():
        raise ValueError(f"the cell is not finite: {atoms.cell.array.tolist()}")
    squared = np.linalg.det(periodic_cc @ periodic_cc.T) if len(periodic_cc) else 1.0
    if np.sqrt(max(squared, 0.0)) <= MIN_RELATIVE_VOLUME * np.prod(lengths):
        raise ValueError(
            f"the periodic cell vectors span no volume: cell {atoms.cell.array.tolist()}, pbc"
            f" {atoms.pbc.tolist()}; set atoms.cell, or atoms.pbc = False for a molecule"
        )


def _check_distances(pairs: Any) -> None:
    if pairs.r_p.size and pairs.r_p.min() < MIN_DISTANCE:
        p = int(pairs.r_p.argmin())
        raise ValueError(
            f"atoms {pairs.i_p[p]} and {pairs.j_p[p]} are {pairs.r_p[p]:.3g} A apart (less than"
            f" {MIN_DISTANCE} A): one of them stands there twice, or the simulation has exploded"
        )
