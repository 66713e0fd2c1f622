"""Downhill and over the hill: relaxations and the nudged elastic band."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.optimize.optimize import Optimizer

from kernelpot.active.explorers.barriers import Band, band_of
from kernelpot.active.explorers.protocol import (
    Track,
    Watcher,
    check_at_least,
    check_positive,
    moving_copy,
    snapshot,
)
from kernelpot.active.records import Exploration, Verdict
from kernelpot.calculator import Calculator

__all__ = ["NudgedElasticBand", "Relaxation"]

_OPTIMIZERS: dict[str, type[Optimizer]] = {"fire": FIRE, "bfgs": BFGS}
_CLIMB_FROM = 5.0
"""The highest image climbs when forces on the band are below this many times the wanted ones."""


@dataclasses.dataclass(frozen=True)
class Relaxation:
    """To the next minimum of the model's energy.

    Parameters
    ----------
    fmax : float
        Largest force at the end, eV/angstrom.
    n_steps : int
        Most steps.
    cell : bool
        Whether the cell relaxes, too.
    pressure : float
        On the cell, GPa.
    optimizer : str
        "bfgs" or "fire".
    spacing : int
        Steps within which only the most uncertain candidate is kept.
    n_frames : int
        Evenly spaced frames that are kept: between this and twice as many.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    fmax: float = 0.02
    n_steps: int = 300
    cell: bool = False
    pressure: float = 0.0
    optimizer: str = "bfgs"
    spacing: int = 10
    n_frames: int = 20

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        check_positive("fmax", self.fmax, "eV/angstrom")
        for name in ("n_steps", "spacing", "n_frames"):
            check_at_least(name, getattr(self, name), 1)
        if not np.isfinite(self.pressure):
            raise ValueError(f"pressure must be finite (GPa), but is {self.pressure!r}")
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer is bfgs or fire; got {self.optimizer!r}")

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""
        if not self.cell:
            return f"relaxation to {self.fmax:g} eV/A"
        return f"relaxation with cell at {self.pressure:g} GPa to {self.fmax:g} eV/A"

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Relax a structure.

        Parameters
        ----------
        calculator : Calculator
            Of the model.
        start : Atoms
            Where to begin.
        watch : Watcher
            Called at every step; ends the way where it says stop.
        rng : np.random.Generator
            Not used: nothing here is random.

        Returns
        -------
        Exploration
            Its last structure is the relaxed one; not finished where the steps did not suffice.

        Raises
        ------
        ValueError
            If the cell is to relax and is not periodic, or the model does not know a species.
        """
        atoms = moving_copy(start)
        atoms.set_momenta(None)
        self.check(atoms)
        atoms.calc = calculator
        atoms.get_potential_energy()  # an error of the start is one of whoever gave it
        track = Track(self.name, watch, n_frames=self.n_frames, spacing=self.spacing)
        track.last = moving_copy(start)
        with track.explosions_caught():
            _relax(self, atoms, track)
        return track.exploration(self.name)

    def check(self, start: Atoms) -> None:
        """Refuse what cannot be relaxed so.

        Parameters
        ----------
        start : Atoms
            Where to begin.

        Raises
        ------
        ValueError
            If the cell is to relax and is not periodic.
        """
        if self.cell and not start.pbc.all():
            raise ValueError(
                "a cell can relax where it is periodic in three directions; pbc is"
                f" {start.pbc.tolist()}. Give cell=False"
            )


def _relax(settings: Relaxation, atoms: Atoms, track: Track, *, keep: bool = True) -> Verdict:
    """Relax until it is done, or the track ends; the verdict on the last structure."""
    moved = atoms
    if settings.cell:
        moved = FrechetCellFilter(atoms, scalar_pressure=settings.pressure * units.GPa)
    optimizer = _OPTIMIZERS[settings.optimizer](moved, logfile=None)
    with warnings.catch_warnings():
        # scipy's, of the 13th digit of the cell's logarithm
        warnings.filterwarnings("ignore", message="logm result may be inaccurate")
        for converged in optimizer.irun(fmax=settings.fmax, steps=settings.n_steps):
            verdict = track.look(atoms, keep=keep)
            if verdict.stop or converged:
                return verdict
    track.ended = f"forces are above {settings.fmax:g} eV/A yet"
    return verdict


@dataclasses.dataclass(frozen=True)
class NudgedElasticBand:
    """The path of least energy between two minima, and its barrier.

    Both ends are relaxed with the model; images are interpolated by their pair distances (IDPP),
    then relaxed with improved tangents, and at last with the highest one climbing (Henkelman and
    Jonsson, J. Chem. Phys. 113, 9978, 2000; Henkelman, Uberuaga and Jonsson, ibid. 9901). At each
    step all images are shown to the watch. Candidates are the images of which it is unsure at the
    end, the highest first; and where the barrier is less certain than ``tolerance``, those whose
    label would tell most about it (`Band.order`).

    Parameters
    ----------
    final : Atoms
        The other end; the start of the exploration is the first. Atoms in the same order.
    n_images : int
        Between the ends.
    fmax : float
        Largest force on the band at the end, eV/angstrom.
    n_steps : int
        Most steps of the band.
    spring : float
        Constant of the springs, eV/angstrom^2.
    tolerance : float
        Standard deviation of the barrier that is good enough, eV.
    n_wanted : int
        Candidates that are made where it is not.
    relax_ends : bool
        Whether both ends are relaxed first.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    final: Atoms
    n_images: int = 7
    fmax: float = 0.05
    n_steps: int = 300
    spring: float = 0.1
    tolerance: float = 0.02
    n_wanted: int = 2
    relax_ends: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        check_positive("fmax", self.fmax, "eV/angstrom")
        check_positive("spring", self.spring, "eV/angstrom^2")
        check_positive("tolerance", self.tolerance, "eV")
        for name in ("n_images", "n_steps", "n_wanted"):
            check_at_least(name, getattr(self, name), 1)

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""
        return f"elastic band of {self.n_images} images to {self.fmax:g} eV/A"

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Find the path.

        Parameters
        ----------
        calculator : Calculator
            Of the model.
        start : Atoms
            The first end.
        watch : Watcher
            Called at each step with every image, the one of the highest energy first; the band
            ends after a step at which it says stop of one.
        rng : np.random.Generator
            Not used: nothing here is random.

        Returns
        -------
        Exploration
            Its frames are the images of the path, from which `band_of` tells energies and barrier;
            its last structure is the start.

        Raises
        ------
        ValueError
            If the ends have not the same atoms in the same cell, or the model does not know a
            species.
        """
        ends = [moving_copy(start), moving_copy(self.final)]
        self.check(start)
        for atoms in ends:
            atoms.set_momenta(None)
            atoms.set_constraint(start.constraints)
            atoms.calc = copy.copy(calculator)
            atoms.get_potential_energy()  # an error of an end is one of whoever gave it
        track = Track(self.name, watch, spacing=0)  # images of one step do not push each other out
        seen: list[_Seen] = []
        with track.explosions_caught():
            if self.relax_ends:
                self._relax_ends(ends, track, seen)
            if not track.ended:
                self._run(self._interpolated(*ends), track, seen)
        for image in seen:
            if image.verdict.unsure:
                track.keep(image.atoms, image.verdict.reason, image.verdict.score)
        note, images = self.name, [one.atoms for one in sorted(seen, key=lambda one: one.place)]
        if len(images) > len(ends):
            note += self._judged(band_of(calculator, images), track)
        found = track.exploration(note)
        return found._replace(frames=images, last=moving_copy(start))

    def _judged(self, band: Band, track: Track) -> str:
        """What is said of the barrier; where it is not certain, the images that tell most of it."""
        wanted = band.order[: self.n_wanted] if band.barrier_std > self.tolerance else []
        for i in wanted:
            track.keep(band.images[i], "barrier", band.barrier_std / self.tolerance)
        end = " (the highest image is an end)" if band.saddle in (0, len(band.images) - 1) else ""
        return (
            f"{end}, barrier {band.barrier:.4f} +- {band.barrier_std:.4f} eV, back"
            f" {band.reverse:.4f} +- {band.reverse_std:.4f} eV"
        )

    def _relax_ends(self, ends: list[Atoms], track: Track, seen: list[_Seen]) -> None:
        """Relax both; where this comes to an early end, that structure is what has been seen."""
        for place, atoms in enumerate(ends):
            track.restart()
            verdict = _relax(Relaxation(fmax=self.fmax), atoms, track, keep=False)
            if verdict.stop:
                seen[:] = [_Seen(place, verdict, snapshot(atoms))]
                return
            track.ended = ""  # an end that is nearly relaxed will do

    def check(self, start: Atoms) -> None:
        """Refuse a start that is not the first end of this path.

        Parameters
        ----------
        start : Atoms
            Where to begin.

        Raises
        ------
        ValueError
            If the ends have not the same atoms in the same cell.
        """
        first, last = start, self.final
        if not np.array_equal(first.numbers, last.numbers):
            raise ValueError(
                "the ends of a path have the same atoms in the same order; start is"
                f" {first.symbols} and final {last.symbols}"
            )
        if not np.array_equal(first.pbc, last.pbc) or not np.allclose(
            first.cell.array, last.cell.array, atol=1e-8
        ):
            raise ValueError(
                f"the ends of a path have the same cell; start has {first.cell.array.tolist()} and"
                f" final {last.cell.array.tolist()}"
            )

    def _interpolated(self, first: Atoms, last: Atoms) -> list[Atoms]:
        images = [first, *(moving_copy(first) for _ in range(self.n_images)), last]
        # A calculator for each, with one model behind them: results stay for the watch to see.
        for atoms in images[1:-1]:
            atoms.calc = copy.copy(first.calc)
        free = not first.pbc.any() and not first.constraints
        neb = NEB(images, method="improvedtangent", remove_rotation_and_translation=free)
        neb.interpolate(method="idpp", mic=bool(first.pbc.any()), apply_constraint=False)
        return images

    def _run(self, images: list[Atoms], track: Track, seen: list[_Seen]) -> None:
        """Relax the band, then with the highest image climbing; ``seen`` is the last step."""
        neb = NEB(images, k=self.spring, method="improvedtangent")
        left, done = self.n_steps, False
        for fmax, climb in ((_CLIMB_FROM * self.fmax, False), (self.fmax, True)):
            neb.climb = climb
            optimizer = FIRE(neb, logfile=None)
            for converged in optimizer.irun(fmax=fmax, steps=left):
                found = []
                for i in _from_the_top(images):  # all are looked at before the band ends
                    track.restart()
                    found.append(_Seen(i, track.look(images[i], keep=False), snapshot(images[i])))
                seen[:] = found
                stops = [image.verdict.reason for image in seen if image.verdict.stop]
                if stops:
                    track.ended = stops[0] or "the watch"
                    return
                done = converged
            left -= optimizer.nsteps
        if not done:
            track.ended = f"forces on the band are above {self.fmax:g} eV/A yet"


class _Seen(NamedTuple):
    """An image at the last step."""

    place: int  # on the path
    verdict: Verdict
    atoms: Atoms


def _from_the_top(images: Sequence[Atoms]) -> list[int]:
    energies = [atoms.get_potential_energy() for atoms in images]
    return np.argsort(-np.array(energies), kind="stable").tolist()
