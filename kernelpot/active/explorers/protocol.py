"""What all explorers share: how they look at structures, what they keep, how they end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from ase import Atoms

from kernelpot.active.records import Candidate, Exploration, Verdict
from kernelpot.calculator import Calculator
from kernelpot.dynamics import bare_copy

__all__ = [
    "EXPLOSIONS",
    "EvenlySpaced",
    "Explorer",
    "Track",
    "Watcher",
    "check_at_least",
    "check_positive",
    "moving_copy",
    "snapshot",
]

Watcher = Callable[[Atoms], Verdict]
"""Called with every structure, its calculator attached and its results there. A watch that
remembers has a method ``restart`` besides: called before what does not go on from the last one."""

EXPLOSIONS = (ValueError, ArithmeticError, np.linalg.LinAlgError)
"""What calculators and integrators raise of a structure that is none any more."""

_LARGEST_VOLUME = 4.0
"""A cell whose volume has changed by more than this factor is no structure that anybody asked for;
and one that collapses has so many neighbours that it would never end."""


class Explorer(Protocol):
    """Goes where a model may be wrong: settings, frozen, and one method.

    The same model, start and random numbers give the same exploration to the bit. It may have a
    method ``check(start)`` that raises ValueError of what it cannot begin at.
    """

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Explore with a model from a structure on; everything random comes from ``rng``."""


class EvenlySpaced:
    """Keeps evenly spaced ones of a sequence whose length is not known before.

    The first of every ``stride`` is kept; when twice as many as wanted have gathered, every other
    one is dropped and the stride is doubled.

    Parameters
    ----------
    n : int
        How many are wanted: from n to 2 n are kept, where there are as many.
    """

    def __init__(self, n: int):
        self._most = 2 * n
        self._stride = 1
        self._seen = 0
        self._kept: list[Atoms] = []

    def add(self, make: Callable[[], Atoms]) -> None:
        """Take the next of the sequence.

        Parameters
        ----------
        make : Callable[[], Atoms]
            Gives it, where it is to be kept.
        """
        if self._seen % self._stride == 0:
            if len(self._kept) == self._most:
                self._kept = self._kept[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self._kept.append(make())
        self._seen += 1

    @property
    def kept(self) -> list[Atoms]:
        """Those that are kept so far."""
        return list(self._kept)


class Track:
    """The way of one explorer: every structure is shown to the watch, and few are kept.

    Candidates that follow one another closely are near-duplicates: of those within ``spacing``
    steps of the first the one of the largest score is kept.

    Parameters
    ----------
    origin : str
        Of the candidates: the explorer's name.
    watch : Watcher
        Says what is thought of each structure.
    n_frames : int
        About how many evenly spaced frames are kept: between this and twice as many.
    spacing : int
        Steps from candidate to candidate.

    Attributes
    ----------
    n_steps : int
        Structures looked at.
    last : Atoms | None
        The last one with which nothing was wrong, with its momenta and constraints; what it is set
        to where there was none.
    ended : str
        Why the way came to its end before its planned one; empty where it did not.
    """

    def __init__(self, origin: str, watch: Watcher, *, n_frames: int = 100, spacing: int = 1):
        self.n_steps = 0
        self.last: Atoms | None = None
        self.ended = ""
        self._origin = origin
        self._watch = watch
        self._spacing = spacing
        self._frames = EvenlySpaced(n_frames)
        self._candidates: list[Candidate] = []
        self._opened: int | None = None  # step of the first of the candidates of one stretch
        self._volume: float | None = None  # of an atom, at the start
        self.restart()

    def look(self, atoms: Atoms, *, keep: bool = True) -> Verdict:
        """Have the next structure judged, and keep of it what is worth keeping.

        Parameters
        ----------
        atoms : Atoms
            With its calculator.
        keep : bool
            Whether it becomes a candidate where the watch is unsure of it.

        Returns
        -------
        Verdict
            Of the watch; ``ended`` is set where it says stop.

        Raises
        ------
        ValueError
            What the calculator says of atoms that are no structure, and where the cell has grown
            or shrunk out of measure.
        RuntimeError
            If the watch fails with a structure of which the calculator knows the energy.
        """
        self._check_volume(atoms)
        atoms.get_potential_energy()  # fresh; nothing is computed where it is already
        try:
            verdict = self._watch(atoms)
        except EXPLOSIONS as error:
            # The structure is sane: to call this an explosion would hide it round after round.
            raise RuntimeError(f"the watch failed: {error}") from error
        if verdict.unsure and keep:
            self.keep(atoms, verdict.reason, verdict.score)
        self._frames.add(lambda: snapshot(atoms))
        self.n_steps += 1
        if verdict.stop:
            self.ended = verdict.reason or "the watch"
        else:
            self.last = moving_copy(atoms)
        return verdict

    def keep(self, atoms: Atoms, reason: str, score: float) -> None:
        """Make a structure a candidate.

        Parameters
        ----------
        atoms : Atoms
            The structure.
        reason : str
            Why.
        score : float
            Its uncertainty over the threshold.
        """
        candidate = Candidate(snapshot(atoms), self._origin, self.n_steps, reason, score)
        if self._opened is None or self.n_steps - self._opened >= self._spacing:
            self._opened = self.n_steps
            self._candidates.append(candidate)
        elif not score <= self._candidates[-1].score:
            self._candidates[-1] = candidate

    def restart(self) -> None:
        """Begin another way: its candidates and its cell have nothing to do with those before."""
        self._opened = self._volume = None
        self.ended = ""
        forget = getattr(self._watch, "restart", None)
        if forget is not None:
            forget()

    @contextlib.contextmanager
    def explosions_caught(self) -> Iterator[None]:
        """Let an exploded simulation end the way, and raise nothing.

        Yields
        ------
        None
            Nothing: ``ended`` says afterwards what happened.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            try:
                yield
            except EXPLOSIONS as error:
                lines = str(error).splitlines() or [type(error).__name__]
                self.ended = f"exploded: {lines[0]}"

    def exploration(self, note: str, *, ended: str | None = None) -> Exploration:
        """What was met.

        Parameters
        ----------
        note : str
            What was done, in a line.
        ended : str | None
            Why it came to an early end, empty where it did not; None for what the last way says.

        Returns
        -------
        Exploration
            Of all that was looked at.
        """
        ended = self.ended if ended is None else ended
        note = f"{note}; ended after {self.n_steps} steps: {ended}" if ended else note
        return Exploration(
            self._candidates, self._frames.kept, self.n_steps, not ended, self.last, note
        )

    def _check_volume(self, atoms: Atoms) -> None:
        if not atoms.pbc.all():
            return
        volume = atoms.get_volume() / len(atoms)
        if self._volume is None:
            self._volume = volume
        if not 1.0 / _LARGEST_VOLUME < volume / self._volume < _LARGEST_VOLUME:
            raise ValueError(
                f"the cell has {volume / self._volume:.3g} times the volume that it had at the"
                " start: it collapses or evaporates"
            )


def snapshot(atoms: Atoms) -> Atoms:
    """A structure as it may be labelled: without calculator, labels and constraints.

    A constraint would make a label's force on a fixed atom zero.

    Parameters
    ----------
    atoms : Atoms
        The structure.

    Returns
    -------
    Atoms
        Species, masses, positions, cell, periodicity; momenta, initial charges and magnetic moments
        where there are any.
    """
    bare = moving_copy(atoms)
    bare.set_constraint()
    return bare


def moving_copy(atoms: Atoms) -> Atoms:
    """A structure as a simulation may go on from it: `snapshot` with its constraints.

    Parameters
    ----------
    atoms : Atoms
        The structure.

    Returns
    -------
    Atoms
        Without calculator and labels.
    """
    bare = bare_copy(atoms)
    for name in ("momenta", "initial_charges", "initial_magmoms"):
        if atoms.has(name):
            bare.set_array(name, atoms.get_array(name))
    return bare


def check_positive(name: str, value: float, unit: str) -> None:
    """Refuse a setting that has to be above zero and is not.

    Parameters
    ----------
    name : str
        Of the setting.
    value : float
        As given.
    unit : str
        Of the setting.

    Raises
    ------
    ValueError
        If it is not a finite number above zero.
    """
    if not (np.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} must be above zero and finite ({unit}), but is {value!r}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a count that is too small or not whole.

    Parameters
    ----------
    name : str
        Of the setting.
    value : int
        As given.
    least : int
        Smallest that makes sense.

    Raises
    ------
    ValueError
        If it is smaller or no whole number.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")
