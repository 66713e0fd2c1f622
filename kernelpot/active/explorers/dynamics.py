"""Molecular dynamics at temperature and pressure, with ramps of both."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator as AseCalculator
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import Stationary, ZeroRotation

from kernelpot.active.explorers.protocol import (
    Track,
    Watcher,
    check_at_least,
    check_positive,
    moving_copy,
)
from kernelpot.active.records import Exploration
from kernelpot.calculator import Calculator
from kernelpot.dynamics import BAROSTAT_TIME, THERMOSTAT_TIME, thermalise

__all__ = ["CellRescaling", "Dynamics", "automatic_timestep", "degrees_of_freedom"]

_PROTON_STEP = 0.5
"""Time step for hydrogen, fs: a twentieth of the period of its fastest vibration."""
_LONGEST_STEP = 2.0
"""In fs, however heavy the atoms."""
_PROTON_MASS = 1.008
_LARGEST_STRAIN = 0.3
"""Relative change of the volume in one step that is no step any more."""
_COLD = 1e-3
"""Kinetic temperature (K) below which atoms that come with momenta are taken for at rest."""


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """Canonical dynamics in a fixed cell, or at a pressure; with linear ramps.

    Velocities are rescaled stochastically (Bussi, Donadio and Parrinello, J. Chem. Phys. 126,
    014101, 2007), the volume too where there is a pressure (`CellRescaling`). It goes on with the
    momenta that the start has; without any they are drawn, and the whole neither drifts nor, where
    it is not periodic, turns. The degrees of freedom that this leaves have the temperature.

    Parameters
    ----------
    temperature : float | tuple[float, float]
        In kelvin; two for a ramp from the first to the second.
    pressure : float | tuple[float, float] | None
        In GPa; two for a ramp. None keeps the cell.
    n_steps : int
        How many.
    timestep : float | None
        In fs; None for that of the lightest atoms (`automatic_timestep`).
    thermostat_time : float
        Relaxation time of the thermostat, fs.
    barostat_time : float
        Relaxation time of the volume, fs.
    bulk_modulus : float
        Of the substance, roughly, GPa: ten times as much makes the relaxation of the volume ten
        times as slow, and changes nothing else.
    n_frames : int
        Evenly spaced frames that are kept: between this and twice as many.
    spacing : int
        Steps within which only the most uncertain candidate is kept.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    temperature: float | tuple[float, float] = 300.0
    pressure: float | tuple[float, float] | None = None
    n_steps: int = 1000
    timestep: float | None = None
    thermostat_time: float = THERMOSTAT_TIME
    barostat_time: float = BAROSTAT_TIME
    bulk_modulus: float = 100.0
    n_frames: int = 100
    spacing: int = 10

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        for value in _ends("temperature", self.temperature):
            check_positive("temperature", value, "K")
        if self.pressure is not None:
            for value in _ends("pressure", self.pressure):
                if not np.isfinite(value):
                    raise ValueError(f"pressure must be finite (GPa), but is {value!r}")
        if self.timestep is not None:
            check_positive("timestep", self.timestep, "fs")
        for name in ("thermostat_time", "barostat_time"):
            check_positive(name, getattr(self, name), "fs")
        check_positive("bulk_modulus", self.bulk_modulus, "GPa")
        for name in ("n_steps", "n_frames", "spacing"):
            check_at_least(name, getattr(self, name), 1)

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""
        words = f"{self._kind} {_in_words(self.temperature, 'K')}"
        if self.pressure is not None:
            words += f" and {_in_words(self.pressure, 'GPa')}"
        return words

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Move the atoms from a structure on.

        Parameters
        ----------
        calculator : Calculator
            Of the model.
        start : Atoms
            Where to begin, and with which momenta.
        watch : Watcher
            Called at every step; ends the way where it says stop.
        rng : np.random.Generator
            Gives the momenta and the random numbers of thermostat and barostat.

        Returns
        -------
        Exploration
            ``n_steps`` counts the start. Its last structure has momenta.

        Raises
        ------
        ValueError
            If the start cannot be moved so: its species are unknown, it stands in no cell but has
            a pressure, or has no degree of freedom.
        """
        atoms = moving_copy(start)
        self.check(atoms)
        atoms.calc = self._potential(calculator)
        atoms.get_potential_energy()  # an error of the start is one of whoever gave it
        n_free = degrees_of_freedom(atoms)
        temperature = _ends("temperature", self.temperature)
        if atoms.get_temperature() < _COLD:
            _set_in_motion(atoms, temperature[0], n_free, rng)
        integrator = self._integrator(atoms, temperature[0], n_free, rng)
        track = Track(self.name, watch, n_frames=self.n_frames, spacing=self.spacing)
        track.last = moving_copy(start)
        with track.explosions_caught():
            for step in range(self.n_steps + 1):
                if track.look(atoms).stop or step == self.n_steps:
                    break
                part = step / self.n_steps
                integrator.temp = units.kB * _between(temperature, part)
                integrator.target_kinetic_energy = 0.5 * integrator.temp * n_free
                if isinstance(integrator, CellRescaling):
                    pressure = _between(_ends("pressure", self.pressure), part)
                    integrator.pressure = pressure * units.GPa
                integrator.step()
        time = 1e-3 * max(track.n_steps - 1, 0) * integrator.dt / units.fs
        return track.exploration(f"{self.name}, {time:.3g} ps{self._remark(atoms.calc)}")

    @property
    def _kind(self) -> str:
        return "dynamics"

    def _potential(self, calculator: Calculator) -> AseCalculator:
        """On what the atoms move."""
        return calculator

    def _remark(self, potential: Any) -> str:
        """For the note, after what was done."""
        return ""

    def check(self, start: Atoms) -> None:
        """Refuse what cannot be moved so.

        Parameters
        ----------
        start : Atoms
            Where to begin.

        Raises
        ------
        ValueError
            If it stands in no cell but has a pressure, or has no degree of freedom.
        """
        if self.pressure is not None and not start.pbc.all():
            raise ValueError(
                "dynamics at a pressure needs a cell that is periodic in three directions; pbc is"
                f" {start.pbc.tolist()}. Give pressure=None"
            )
        if self.pressure is not None and start.constraints:
            raise ValueError(
                "dynamics at a pressure cannot hold atoms fixed: remove the constraints, or give"
                " pressure=None"
            )
        if degrees_of_freedom(start) < 1:
            raise ValueError(
                f"nothing can move in {start.get_chemical_formula()} but the whole: dynamics needs"
                " two atoms at least that are not fixed. Give a supercell"
            )

    def _integrator(
        self, atoms: Atoms, temperature: float, n_free: int, rng: np.random.Generator
    ) -> Bussi:
        step = automatic_timestep(atoms) if self.timestep is None else self.timestep
        settings = {
            "temperature_K": temperature,
            "taut": self.thermostat_time * units.fs,
            "rng": rng,
        }
        if self.pressure is None:
            integrator = Bussi(atoms, step * units.fs, **settings)
        else:
            integrator = CellRescaling(
                atoms,
                step * units.fs,
                pressure=_ends("pressure", self.pressure)[0] * units.GPa,
                taup=self.barostat_time * units.fs,
                compressibility=1.0 / (self.bulk_modulus * units.GPa),
                **settings,
            )
        integrator.ndof = n_free
        return integrator


class CellRescaling(Bussi):
    """Velocity Verlet with stochastic rescaling of velocities and, isotropically, of the cell.

    With lambda = sqrt(V), the pressure P0 and the instantaneous one P, kinetic part included,

        d lambda = -beta lambda / (2 tau) (P0 - P - kT / (2 V)) dt + sqrt(kT beta / (2 tau)) dW

    samples the isothermal-isobaric ensemble (Bernetti and Bussi, J. Chem. Phys. 153, 114107, 2020).
    Unlike an extended system it takes a change of temperature and pressure at any step, and does
    not oscillate. The cell changes between the two halves of the velocity's step, so that a step
    costs one evaluation.

    Parameters
    ----------
    atoms : Atoms
        With momenta and a calculator that gives stress.
    timestep : float
        In ASE's units.
    pressure : float
        P0, eV/angstrom^3; may be changed at any step, as ``temp`` and ``target_kinetic_energy``.
    taup : float
        tau, in ASE's units.
    compressibility : float
        beta, angstrom^3/eV.
    **settings : Any
        Of `ase.md.bussi.Bussi`.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        *,
        pressure: float,
        taup: float,
        compressibility: float,
        **settings: Any,
    ):
        super().__init__(atoms, timestep, **settings)
        self.pressure = pressure
        self._rate = compressibility / taup

    def step(self, forces: Any = None) -> None:
        """Move one time step forward.

        Parameters
        ----------
        forces : Any
            Not used: forces are those of the calculator.

        Raises
        ------
        ValueError
            If the volume changes by more than three tenths at once.
        """
        self.scale_velocities()
        atoms = self.atoms
        momenta_nc = atoms.get_momenta() + 0.5 * self.dt * atoms.get_forces(md=True)
        factor = self._scale(momenta_nc)
        momenta_nc = momenta_nc / factor
        atoms.set_cell(factor * atoms.cell.array, scale_atoms=False)
        atoms.set_positions(factor * atoms.positions + self.dt * momenta_nc / self._masses)
        momenta_nc = momenta_nc + 0.5 * self.dt * atoms.get_forces(md=True)
        atoms.set_momenta(momenta_nc)

    def _scale(self, momenta_nc: np.ndarray) -> float:
        """Factor on lengths."""
        volume = self.atoms.get_volume()
        kinetic = float(np.sum(momenta_nc**2 / self._masses))  # twice the energy
        stress_v = self.atoms.get_stress(include_ideal_gas=False)
        pressure = kinetic / (3.0 * volume) - float(stress_v[:3].mean())
        root = math.sqrt(volume)
        drift = -0.5 * root * (self.pressure - pressure - 0.5 * self.temp / volume)
        noise = math.sqrt(0.5 * self.temp * self._rate * self.dt) * self.rng.standard_normal()
        change = (self._rate * drift * self.dt + noise) / root
        if not abs(change) < 0.5 * _LARGEST_STRAIN:
            raise ValueError(
                f"at a pressure of {pressure / units.GPa:.3g} GPa the volume changes by"
                f" {200.0 * change:.3g} % in one step"
            )
        return (1.0 + change) ** (2.0 / 3.0)


def automatic_timestep(atoms: Atoms) -> float:
    """Time step for the lightest atoms: 0.5 fs for hydrogen, and as the root of the mass.

    Parameters
    ----------
    atoms : Atoms
        The structure.

    Returns
    -------
    float
        In fs, 2 at most.
    """
    lightest = float(atoms.get_masses().min())
    return min(_PROTON_STEP * math.sqrt(lightest / _PROTON_MASS), _LONGEST_STEP)


def degrees_of_freedom(atoms: Atoms) -> int:
    """Degrees of freedom that a thermostat heats: without the whole's drift and rotation.

    Parameters
    ----------
    atoms : Atoms
        The structure; where atoms are fixed, nothing is taken off for the whole.

    Returns
    -------
    int
        Zero where there are none.
    """
    if atoms.constraints:
        return max(int(atoms.get_number_of_degrees_of_freedom()), 0)
    whole = 3
    if not atoms.pbc.any():
        moments = atoms.get_moments_of_inertia()
        whole += int(np.count_nonzero(moments > 1e-6 * moments.max(initial=0.0)))
    return max(3 * len(atoms) - whole, 0)


def _set_in_motion(atoms: Atoms, temperature: float, n_free: int, rng: np.random.Generator) -> None:
    """Draw momenta, without drift and rotation of the whole."""
    thermalise(atoms, temperature, int(rng.integers(2**63)))
    if not atoms.constraints:
        if not atoms.pbc.any():
            ZeroRotation(atoms, preserve_temperature=False)
        Stationary(atoms, preserve_temperature=False)
    kinetic = atoms.get_kinetic_energy()
    atoms.set_momenta(
        atoms.get_momenta() * math.sqrt(0.5 * n_free * units.kB * temperature / kinetic)
    )


def _ends(name: str, value: Any) -> tuple[float, float]:
    """Start and end of a ramp."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} is one number, or two for a ramp; got {value!r}")
        return float(value[0]), float(value[1])
    return float(value), float(value)


def _between(ends: tuple[float, float], part: float) -> float:
    return ends[0] + part * (ends[1] - ends[0])


def _in_words(value: Any, unit: str) -> str:
    first, last = _ends("", value)
    return f"at {first:g} {unit}" if first == last else f"from {first:g} to {last:g} {unit}"
