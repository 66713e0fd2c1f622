"""Dynamics that climbs the model's uncertainty: hyperactive learning.

C. van der Oord, M. Sachs, D. P. Kovacs, C. Ortner and G. Csanyi, npj Comput. Mater. 9, 168 (2023):
atoms move on E - tau sigma, with an uncertainty sigma of the total energy and a biasing strength
tau that keeps the mean biasing force at a given share of the mean force.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes

from kernelpot.active.explorers.dynamics import Dynamics
from kernelpot.active.explorers.protocol import check_positive
from kernelpot.active.explorers.spreads import SPREADS
from kernelpot.calculator import Calculator
from kernelpot.conventions import Float, voigt_from_tensor
from kernelpot.neighbours import PairList

__all__ = ["BiasedCalculator", "BiasedDynamics"]

_MEMORY = 100
"""Calls over which mean forces are taken."""
_BURN_IN = 20
"""Calls before the bias begins: in a perfect crystal both forces are rounding, and so is their
ratio."""
_LEAST_FORCE = 1e-8
"""Mean derivative of the uncertainty (eV/angstrom) below which there is nothing to climb."""


@dataclasses.dataclass(frozen=True)
class BiasedDynamics(Dynamics):
    """Dynamics on the energy less a multiple of its uncertainty.

    What is climbed matters less than how far. Ethanol, a model of 10 frames, 5 runs of 400 steps at
    300 K each, true errors of forces (root mean square, GFN2-xTB) in eV/angstrom and mean energies
    over the minimum in eV of the frames met: without bias 0.098 and 0.14; "novelty" at a strength
    of 0.25 0.150 and 0.27; "posterior" at 0.1 0.147 and 0.30, at 0.05 0.118 and 0.20; the part of
    it that infinitely many samples of a committee would know, at 0.1 0.143 and 0.26. About twice
    that strength is too much for each: at 0.5 ("novelty") and 0.25 ("posterior") two runs of five
    end with atoms nearer than 0.6 angstrom or hotter than 5000 K, and two thirds of the frames are
    more than 3 eV up. So "novelty", which costs least, is the default; "posterior" knows of labels
    and noise, drives volumes harder, and wants less than half of the strength.

    Parameters
    ----------
    strength : float
        Mean biasing force over the mean force.
    sigma : str
        What is climbed: "novelty", the square root of the summed novelty, which knows nothing of
        tangents and labels, or "posterior", the exact standard deviation of the energy.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    strength: float = 0.25
    sigma: str = "novelty"

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        super().__post_init__()
        check_positive("strength", self.strength, "mean biasing force over mean force")
        _check_sigma(self.sigma)

    @property
    def _kind(self) -> str:
        return f"dynamics biased by {self.strength:g} towards {self.sigma}"

    def _potential(self, calculator: Calculator) -> AseCalculator:
        return BiasedCalculator(calculator, strength=self.strength, sigma=self.sigma)

    def _remark(self, potential: Any) -> str:
        return f", tau {potential.tau:.3g} at the end"


class BiasedCalculator(AseCalculator):
    """Energy, forces and stress of E - tau sigma; everything else of the model, as it is.

    Parameters
    ----------
    calculator : Calculator
        Of the model.
    strength : float | None
        Mean biasing force over the mean force, both means over the last 100 calls or so, from the
        21st call on; None for a constant tau.
    tau : float | None
        The constant, without unit.
    sigma : str
        "posterior" or "novelty".

    Attributes
    ----------
    tau : float
        In use.

    Raises
    ------
    ValueError
        If not exactly one of strength and tau is given, or sigma is unknown.

    Notes
    -----
    ``results`` have ``unbiased_energy`` and ``sigma`` besides. A constant tau conserves the biased
    energy; with a strength, tau changes a little at each call.
    """

    name = "biased kernelpot"
    implemented_properties = Calculator.implemented_properties
    ignored_changes = Calculator.ignored_changes

    def __init__(
        self,
        calculator: Calculator,
        *,
        strength: float | None = None,
        tau: float | None = None,
        sigma: str = "novelty",
    ):
        super().__init__()
        if (strength is None) == (tau is None):
            raise ValueError(
                "a bias has either a strength relative to the mean force or a constant tau; got"
                f" strength={strength!r} and tau={tau!r}"
            )
        _check_sigma(sigma)
        self.calculator = calculator
        self.predictor = calculator.predictor
        self.tau = 0.0 if tau is None else float(tau)
        self._strength = strength
        self._spread = SPREADS[sigma]
        self._pair_list = PairList(self.predictor.cutoff, skin=0.5)
        self._n_calls = 0
        self._force = self._climb = 0.0  # running means

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Compute what the model's calculator does, and bias it.

        Parameters
        ----------
        atoms : Atoms | None
            The structure; None for the one of the last call.
        properties : Any
            Names of the properties that are asked for.
        system_changes : Any
            What has changed since the last call; tau does only where something has.
        """
        if not system_changes and self.results:
            extra = {name: self.calculator.get_property(name, self.atoms) for name in properties}
            self.results = {**extra, **self.results}
            return
        self.results = {}
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        for name in ("energy", *properties):
            self.calculator.get_property(name, atoms)
        found = dict(self.calculator.results)
        pairs = self._pair_list.update(atoms.positions, atoms.cell.array, atoms.pbc)
        spread = self._spread(self.predictor, atoms.numbers, pairs)
        if self._strength is not None:
            self._adapt(found["forces"], spread.gradient_nc)
        found["unbiased_energy"], found["sigma"] = found["energy"], spread.value
        found["energy"] = found["free_energy"] = found["energy"] - self.tau * spread.value
        found["forces"] = found["forces"] + self.tau * spread.gradient_nc
        if "stress" in found:
            bias_v = self.tau * voigt_from_tensor(spread.strain_cd) / atoms.get_volume()
            found["stress"] = found["stress"] - bias_v
        self.results = found

    def _adapt(self, forces_nc: Float, gradient_nc: Float) -> None:
        self._n_calls += 1
        part = 1.0 / min(self._n_calls, _MEMORY)
        self._force += part * (_mean_length(forces_nc) - self._force)
        self._climb += part * (_mean_length(gradient_nc) - self._climb)
        if self._n_calls > _BURN_IN and self._climb > _LEAST_FORCE:
            self.tau = self._strength * self._force / self._climb


def _mean_length(vectors_nc: Float) -> float:
    return float(np.linalg.norm(vectors_nc, axis=1).mean())


def _check_sigma(sigma: str) -> None:
    if sigma not in SPREADS:
        raise ValueError(f"sigma is one of {', '.join(SPREADS)}; got {sigma!r}")
