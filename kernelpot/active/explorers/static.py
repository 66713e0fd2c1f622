"""Structures without a way: displaced and strained, random, or given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic
from ase.optimize import FIRE

from kernelpot.active.explorers.protocol import (
    Track,
    Watcher,
    check_at_least,
    check_positive,
    moving_copy,
    snapshot,
)
from kernelpot.active.records import NEW_SPECIES, Exploration
from kernelpot.calculator import Calculator
from kernelpot.conventions import Float

__all__ = ["Pool", "RandomStructures", "Rattle"]

_TRIES = 100
"""Random places that are tried for an atom before atoms may come nearer."""
_NEARER = 0.95
"""Factor on the least distances then."""
_SKEW = 0.2
"""Largest strain that makes a random cell of a cube."""


@dataclasses.dataclass(frozen=True)
class Rattle:
    """Structures with all atoms displaced at random, and cells strained.

    Parameters
    ----------
    displacement : float
        Standard deviation of each component of the displacements, angstrom.
    strain : float
        Largest component of the strain of periodic cells; all six are drawn evenly up to it.
    n : int
        Structures that are made of each given one.
    structures : tuple[Atoms, ...]
        Of what; none for the start of the exploration.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    displacement: float = 0.1
    strain: float = 0.02
    n: int = 20
    structures: tuple[Atoms, ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        for name, unit in (("displacement", "angstrom"), ("strain", "without unit")):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise ValueError(
                    f"{name} must not be negative ({unit}), but is {getattr(self, name)!r}"
                )
        if self.strain > 0.5:
            raise ValueError(
                f"strain is a fraction, 0.02 for two per cent; {self.strain!r} is above 0.5"
            )
        check_at_least("n", self.n, 1)

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""
        return f"rattling by {self.displacement:g} A and {100.0 * self.strain:g} %"

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Make the structures and have each looked at.

        Parameters
        ----------
        calculator : Calculator
            Of the model.
        start : Atoms
            What is displaced where no structures were given.
        watch : Watcher
            Called with each structure; one with which it says stop and of which it is not unsure is
            left out, the others follow.
        rng : np.random.Generator
            Gives displacements and strains.

        Returns
        -------
        Exploration
            Its last structure is the start.
        """
        found = (made for atoms in (self.structures or (start,)) for made in self.make(atoms, rng))
        return _each(self.name, found, calculator, start, watch)

    def make(self, atoms: Atoms, rng: np.random.Generator) -> Iterator[Atoms]:
        """The structures alone.

        Parameters
        ----------
        atoms : Atoms
            What is displaced.
        rng : np.random.Generator
            Gives displacements and strains.

        Yields
        ------
        Atoms
            ``n`` of them, bare.
        """
        for _ in range(self.n):
            yield self._rattled(atoms, rng)

    def _rattled(self, atoms: Atoms, rng: np.random.Generator) -> Atoms:
        made = snapshot(atoms)
        made.set_momenta(None)
        if made.pbc.any():
            strain_cd = rng.uniform(-self.strain, self.strain, (3, 3))
            strain_cd = 0.5 * (strain_cd + strain_cd.T)
            # Directions that are not periodic have no cell to strain.
            strain_cd *= np.outer(made.pbc, made.pbc)
            made.set_cell(made.cell.array @ (np.eye(3) + strain_cd), scale_atoms=True)
        made.positions += rng.normal(0.0, self.displacement, made.positions.shape)
        return made


@dataclasses.dataclass(frozen=True)
class RandomStructures:
    """Atoms at random places, none too near, relaxed a little with the model.

    Parameters
    ----------
    symbols : str | None
        Formula, "Si8"; None for the atoms of the start.
    volume : float | tuple[float, float] | None
        Of an atom, angstrom^3; two for a range from which it is drawn; None for four fifths to six
        fifths of that of the start's cell.
    distance : float
        Least distance of two atoms, in units of the sum of their covalent radii.
    n : int
        Structures that are made.
    n_steps : int
        Steps of the relaxation of each; after each step the watch looks.
    periodic : bool | None
        Whether structures are periodic cells or clusters; None for what the start is.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    symbols: str | None = None
    volume: float | tuple[float, float] | None = None
    distance: float = 0.8
    n: int = 10
    n_steps: int = 20
    periodic: bool | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.volume is not None:
            if np.size(self.volume) > 2:
                raise ValueError(f"volume is one number or a range; got {self.volume!r}")
            for value in np.atleast_1d(self.volume):
                check_positive("volume", float(value), "angstrom^3 per atom")
        check_positive("distance", self.distance, "sums of covalent radii")
        check_at_least("n", self.n, 1)
        check_at_least("n_steps", self.n_steps, 0)
        try:
            Atoms(self.symbols)
        except (ValueError, KeyError):
            raise ValueError(f"symbols is a formula, such as Si8; got {self.symbols!r}") from None

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""
        of = "" if self.symbols is None else f" of {self.symbols}"
        return f"random structures{of} relaxed for {self.n_steps} steps"

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Make the structures, relax them, and have each looked at.

        Parameters
        ----------
        calculator : Calculator
            Of the model.
        start : Atoms
            Gives what the settings leave open.
        watch : Watcher
            Called with each structure and after each step of its relaxation, which ends where it
            says stop; the others follow.
        rng : np.random.Generator
            Gives cells and places.

        Returns
        -------
        Exploration
            Its last structure is the start.

        Raises
        ------
        ValueError
            If no volume is given and the start has no cell.
        """
        ends = self._volumes(start)
        track = Track(self.name, watch, spacing=self.n_steps + 1)
        lost = 0
        for _ in range(self.n):
            track.restart()
            atoms = self._random(start, float(rng.uniform(*ends)), rng)
            if _is_new(atoms, calculator, track):
                continue
            atoms.calc = calculator
            with track.explosions_caught():
                for _ in FIRE(atoms, logfile=None).irun(fmax=0.0, steps=self.n_steps):
                    if track.look(atoms).stop:
                        break
            lost += bool(track.ended)
        return _all_done(track, f"{self.n} {self.name}, {lost} ended early", start)

    def check(self, start: Atoms) -> None:
        """Refuse a start that does not say what the settings leave open.

        Parameters
        ----------
        start : Atoms
            Where to begin.

        Raises
        ------
        ValueError
            If no volume is given and the start has none.
        """
        self._volumes(start)

    def _volumes(self, start: Atoms) -> tuple[float, float]:
        if self.volume is not None:
            given = np.atleast_1d(self.volume)
            return float(given[0]), float(given[-1])
        if not start.pbc.all():
            raise ValueError(
                "random structures need a volume (angstrom^3 per atom) where the start has no cell"
                f" that is periodic in three directions; pbc is {start.pbc.tolist()}"
            )
        volume = start.get_volume() / len(start)
        return 0.8 * volume, 1.2 * volume

    def _random(self, start: Atoms, volume: float, rng: np.random.Generator) -> Atoms:
        numbers_n = start.numbers if self.symbols is None else Atoms(self.symbols).numbers
        periodic = bool(start.pbc.all()) if self.periodic is None else self.periodic
        cell_cc = np.eye(3)
        if periodic:
            cell_cc = cell_cc + rng.uniform(-_SKEW, _SKEW, (3, 3))
        cell_cc *= (volume * len(numbers_n) / abs(np.linalg.det(cell_cc))) ** (1.0 / 3.0)
        positions_nc = _places(numbers_n, cell_cc, periodic, self.distance, rng)
        return Atoms(numbers_n, positions_nc, cell=cell_cc if periodic else None, pbc=periodic)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Given structures, ranked by what the watch thinks of them.

    Parameters
    ----------
    structures : tuple[Atoms, ...]
        To choose from; labels that they carry are not looked at.
    n_most : int
        Most candidates that are made of them, those of the largest scores.
    title : str
        What to call them.

    Raises
    ------
    ValueError
        If there are no structures.
    """

    structures: tuple[Atoms, ...]
    n_most: int = 1000
    title: str = "given structures"

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if not len(self.structures):
            raise ValueError("a pool needs one structure at least")
        check_at_least("n_most", self.n_most, 1)

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""
        return f"{len(self.structures)} {self.title}"

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Have each structure looked at.

        Parameters
        ----------
        calculator : Calculator
            Of the model.
        start : Atoms
            Not used.
        watch : Watcher
            Called with each structure.
        rng : np.random.Generator
            Not used: nothing here is random.

        Returns
        -------
        Exploration
            Candidates are in the order of their scores, the largest first; ``step`` is the place
            among the given ones. Its last structure is the start.
        """
        found = _each(self.name, map(snapshot, self.structures), calculator, start, watch)
        ranked = sorted(found.candidates, key=lambda one: -np.nan_to_num(one.score, nan=np.inf))
        return found._replace(candidates=ranked[: self.n_most])


def _each(
    name: str,
    structures: Iterable[Atoms],
    calculator: Calculator,
    start: Atoms,
    watch: Watcher,
) -> Exploration:
    """Have each of the structures looked at, whatever is thought of those before."""
    track = Track(name, watch)
    total = lost = 0
    why = ""
    for atoms in structures:
        track.restart()
        total += 1
        if _is_new(atoms, calculator, track):
            track.n_steps = total
            continue
        atoms.calc = calculator
        with track.explosions_caught():
            track.look(atoms)
        track.n_steps = total  # those that are no good count, too: places stay those given
        if track.ended:
            lost += 1
            why = why or track.ended
    note = f"{name}, {total} in all"
    if lost:
        note += f", {lost} of them refused, the first: {why}"
    return _all_done(track, note, start)


def _is_new(atoms: Atoms, calculator: Calculator, track: Track) -> bool:
    """Whether a structure has species that the model does not know: then a label has to tell."""
    new = not set(calculator.predictor.species).issuperset(atoms.numbers.tolist())
    if new:
        track.keep(atoms, NEW_SPECIES, np.nan)
    return new


def _all_done(track: Track, note: str, start: Atoms) -> Exploration:
    """All was looked at, whatever became of some; the next begins where this one did."""
    return track.exploration(note, ended="")._replace(last=moving_copy(start))


def _places(
    numbers_n: Sequence[int],
    cell_cc: Float,
    periodic: bool,
    distance: float,
    rng: np.random.Generator,
) -> Float:
    """Random positions one after the other, none nearer to those before than allowed.

    Where there is no room, distances shrink a little.
    """
    radii_n = covalent_radii[np.asarray(numbers_n)]
    placed_nc = np.empty((len(radii_n), 3))
    for n, radius in enumerate(radii_n):
        least_n = distance * (radii_n[:n] + radius)
        good_t = np.zeros(0, dtype=bool)
        while not good_t.any():
            tried_tc = rng.random((_TRIES, 3)) @ cell_cc
            D_tc = (placed_nc[None, :n] - tried_tc[:, None]).reshape(-1, 3)
            r_t = find_mic(D_tc, cell_cc, pbc=True)[1] if periodic else np.linalg.norm(D_tc, axis=1)
            good_t = np.all(r_t.reshape(_TRIES, n) >= least_n, axis=1)
            least_n = _NEARER * least_n
        placed_nc[n] = tried_tc[good_t.argmax()]
    return placed_nc
