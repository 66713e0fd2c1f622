"""Molecular dynamics with a conserved quantity to judge it by: NVE, NVT and NPT."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.io import write
from ase.md.bussi import Bussi
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import Stationary, force_temperature
from ase.md.verlet import VelocityVerlet
from numpy.typing import ArrayLike

from kernelpot.conventions import as_float
from kernelpot.data import read_images

__all__ = [
    "ENSEMBLES",
    "HEADING",
    "Drift",
    "Sample",
    "bare_copy",
    "energy_drift",
    "line",
    "parse_supercell",
    "resume_from",
    "run",
    "thermalise",
]

ENSEMBLES = ("nve", "nvt", "npt")
THERMOSTAT_TIME = 100.0
"""Relaxation time of the thermostats, fs."""
BAROSTAT_TIME = 1000.0
"""Relaxation time of the barostat, fs."""
STEP_KEY = "kernelpot_step"
"""Key of ``atoms.info`` under which a frame of a trajectory has its step."""
HEADING = f"{'step':>8} {'time fs':>10} {'T K':>8} {'E_pot eV/atom':>14} {'drift meV/atom':>15}"
"""Heading over the lines of `line`."""


class Sample(NamedTuple):
    """One moment of a trajectory."""

    step: int
    time: float  # fs
    temperature: float  # K
    potential: float  # eV
    conserved: float  # eV: total energy, less what thermostat and barostat have put in
    volume: float  # angstrom^3, NaN without a cell


class Drift(NamedTuple):
    """How well a conserved quantity is conserved."""

    change: float  # of the fitted line from start to end, meV/atom
    slope: float  # of the fitted line, meV/atom/ps
    fluctuation: float  # root mean square about the fitted line, meV/atom


def bare_copy(atoms: Atoms) -> Atoms:
    """A structure without the labels, momenta and calculator that came with it.

    Parameters
    ----------
    atoms : Atoms
        The structure as it was read.

    Returns
    -------
    Atoms
        Species, masses, positions, cell, periodicity and constraints.
    """
    return Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        masses=atoms.get_masses(),
        cell=atoms.cell,
        pbc=atoms.pbc,
        constraint=atoms.constraints,
    )


def parse_supercell(text: str) -> tuple[int, int, int]:
    """Repetitions along the three cell vectors.

    Parameters
    ----------
    text : str
        Such as "2x2x2", or "2" for the same.

    Returns
    -------
    tuple[int, int, int]
        Whole numbers from 1.

    Raises
    ------
    ValueError
        If the text is neither.
    """
    parts = text.lower().replace("*", "x").split("x")
    parts = parts * 3 if len(parts) == 1 else parts
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"supercell {text!r} is not three whole numbers from 1, such as 2x2x2")
    return int(parts[0]), int(parts[1]), int(parts[2])


def resume_from(path: str | PathLike[str]) -> tuple[Atoms, int]:
    """The last frame of a trajectory that `run` wrote.

    Parameters
    ----------
    path : str | PathLike[str]
        Extended XYZ.

    Returns
    -------
    tuple[Atoms, int]
        Structure with momenta, and the step at which it was.

    Raises
    ------
    ValueError
        If the frame has no momenta or no step.
    """
    last = read_images(path, -1)[0]
    if STEP_KEY not in last.info or not last.has("momenta"):
        raise ValueError(f"{path} was not written by `kernelpot md`: its last frame has no step")
    atoms = bare_copy(last)
    atoms.set_momenta(last.get_momenta())
    return atoms, int(last.info[STEP_KEY])


def line(sample: Sample, first: Sample, n_atoms: int) -> str:
    """A sample as a line of a table.

    Parameters
    ----------
    sample : Sample
        To show.
    first : Sample
        The start of the run, from which drift is counted.
    n_atoms : int
        Energies are shown per atom.

    Returns
    -------
    str
        To stand below `HEADING`.
    """
    drift = 1e3 * (sample.conserved - first.conserved) / n_atoms
    return (
        f"{sample.step:8d} {sample.time:10.1f} {sample.temperature:8.1f}"
        f" {sample.potential / n_atoms:14.5f} {drift:15.4f}"
    )


def thermalise(atoms: Atoms, temperature: float, seed: int) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution, without drift of the whole.

    The temperature is met exactly. A crystal at rest gives half of it to its potential energy.

    Parameters
    ----------
    atoms : Atoms
        Gets the momenta.
    temperature : float
        In kelvin.
    seed : int
        Seed of the random numbers.

    Raises
    ------
    ValueError
        If the temperature is negative.
    """
    if not temperature >= 0.0:
        raise ValueError(f"temperature must not be negative (K), but is {temperature!r}")
    rng = np.random.default_rng(seed)
    width_n = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(width_n[:, None] * rng.standard_normal((len(atoms), 3)))
    if len(atoms) > 1 and not atoms.constraints:
        Stationary(atoms)
    force_temperature(atoms, temperature)


def run(
    atoms: Atoms,
    ensemble: str,
    *,
    temperature: float,
    timestep: float,
    steps: int,
    pressure: float = 0.0,
    log_interval: int = 10,
    seed: int = 0,
    on_sample: Callable[[Sample, Sample], None] | None = None,
    trajectory: str | PathLike[str] | None = None,
    first_step: int = 0,
) -> list[Sample]:
    """Move the atoms, and sample the run.

    NVE is velocity Verlet, NVT stochastic velocity rescaling (Bussi, Donadio and Parrinello,
    J. Chem. Phys. 126, 014101, 2007), NPT the isotropic equations of Martyna, Tobias and Klein
    (J. Chem. Phys. 101, 4177, 1994).

    Parameters
    ----------
    atoms : Atoms
        With momenta and a calculator; moved in place.
    ensemble : str
        One of nve, nvt, npt.
    temperature : float
        Of the thermostat, kelvin; not used by nve.
    timestep : float
        In fs.
    steps : int
        How many.
    pressure : float
        Of the barostat, GPa; only used by npt.
    log_interval : int
        Steps from sample to sample; the start is a sample too.
    seed : int
        Seed of the thermostat's random numbers.
    on_sample : Callable[[Sample, Sample], None] | None
        Called with each sample as it is taken, and with the first.
    trajectory : str | PathLike[str] | None
        Extended XYZ file to which each sample's structure is appended.
    first_step : int
        Number of the start; above 0 the start itself is not written again.

    Returns
    -------
    list[Sample]
        The samples.

    Raises
    ------
    ValueError
        An unknown ensemble, a number out of range, or npt without a 3D periodic cell.
    """
    _check(atoms, ensemble, timestep, steps, log_interval)
    integrator, conserved = _integrator(atoms, ensemble, temperature, timestep, pressure, seed)
    samples: list[Sample] = []

    def take_sample() -> None:
        step = first_step + integrator.nsteps
        samples.append(
            Sample(
                step=step,
                time=step * timestep,
                temperature=float(atoms.get_temperature()),
                potential=float(atoms.get_potential_energy()),
                conserved=float(conserved()),
                volume=float(atoms.get_volume()) if atoms.cell.rank == 3 else float("nan"),
            )
        )
        if on_sample is not None:
            on_sample(samples[-1], samples[0])
        if trajectory is not None and (step > first_step or first_step == 0):
            atoms.info = {STEP_KEY: step, "time_fs": step * timestep}
            write(trajectory, atoms, format="extxyz", append=True)

    integrator.attach(take_sample, interval=log_interval)
    integrator.run(steps)
    return samples


def energy_drift(time: ArrayLike, conserved: ArrayLike, n_atoms: int) -> Drift:
    """Drift and fluctuation of a conserved quantity.

    Parameters
    ----------
    time : ArrayLike
        Shape (n_samples,), fs.
    conserved : ArrayLike
        Shape (n_samples,), eV.
    n_atoms : int
        The energies are divided by it.

    Returns
    -------
    Drift
        Of the least-squares line; NaN for fewer than three samples.
    """
    time, per_atom = as_float(time), 1e3 * as_float(conserved) / n_atoms
    if time.size < 3:
        return Drift(float("nan"), float("nan"), float("nan"))
    centred = time - time.mean()
    slope = float(centred @ per_atom / (centred @ centred))
    residual = per_atom - per_atom.mean() - slope * centred
    return Drift(
        change=slope * float(time[-1] - time[0]),
        slope=1e3 * slope,
        fluctuation=float(np.sqrt(np.mean(residual**2))),
    )


def _check(atoms: Atoms, ensemble: str, timestep: float, steps: int, log_interval: int) -> None:
    if ensemble not in ENSEMBLES:
        raise ValueError(f"ensemble {ensemble!r} is unknown: choose {', '.join(ENSEMBLES)}")
    if not timestep > 0.0:
        raise ValueError(f"timestep must be positive (fs), not {timestep!r}")
    if steps < 1 or log_interval < 1:
        raise ValueError(
            f"steps and log_interval must be at least 1, not {steps!r} and {log_interval!r}"
        )
    if ensemble == "npt" and not atoms.pbc.all():
        raise ValueError(
            f"npt needs a cell that is periodic in three directions; pbc is {atoms.pbc.tolist()}."
            " Choose nvt or nve"
        )
    if ensemble == "npt" and atoms.constraints:
        raise ValueError("npt cannot hold atoms fixed: remove the constraints, or choose nvt")


def _integrator(
    atoms: Atoms, ensemble: str, temperature: float, timestep: float, pressure: float, seed: int
) -> tuple[MolecularDynamics, Callable[[], float]]:
    """The integrator, and what it conserves (eV)."""
    dt = timestep * units.fs
    if ensemble == "nve":
        return VelocityVerlet(atoms, dt), atoms.get_total_energy
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive (K), not {temperature!r}")
    if ensemble == "nvt":
        nvt = Bussi(
            atoms,
            dt,
            temperature_K=temperature,
            taut=THERMOSTAT_TIME * units.fs,
            rng=np.random.default_rng(seed),
        )
        return nvt, lambda: atoms.get_total_energy() - nvt.transferred_energy
    npt = IsotropicMTKNPT(
        atoms,
        dt,
        temperature_K=temperature,
        pressure_au=pressure * units.GPa,
        tdamp=THERMOSTAT_TIME * units.fs,
        pdamp=BAROSTAT_TIME * units.fs,
    )
    return npt, npt.get_conserved_energy
