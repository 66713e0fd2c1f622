"""An ASE calculator that learns while a script runs, and asks the oracle only when it is unsure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, all_changes
from ase.calculators.calculator import Calculator as AseCalculator

from kernelpot._machine import one_blas_thread
from kernelpot.active.history import History
from kernelpot.active.journal import Entry, Journal
from kernelpot.active.knowledge import Knowledge
from kernelpot.active.oracle import label_all
from kernelpot.active.records import Label
from kernelpot.active.same_run import check_same, model_in_words
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.structure_json import label_to_json, structure_to_json
from kernelpot.active.thresholds import force_tolerance, from_history, hold
from kernelpot.active.unphysical import Limits, Sanity
from kernelpot.calculator import Calculator
from kernelpot.conventions import Float
from kernelpot.potential import KernelPotential

__all__ = ["OnTheFlyCalculator"]

_NEAR = 0.5
"""Part of the threshold of novelty up to which no error is expected, before one was looked at."""
_SAFETY = 0.7
"""Part of the novelty at which the error would reach the tolerance, by the square-root law."""
_FEW = 10
"""Structures from which on errors say more of how wide deviations are than the posterior does."""
_FARTHEST = 4.0
"""But no more than so many times the novelty that was looked at."""


class OnTheFlyCalculator(AseCalculator):
    """Energies, forces and stress of a model that asks its oracle when it is unsure, for ASE.

    It drops into any script: dynamics, relaxations, elastic bands. Where the expected error of a
    force is above the tolerance, or atoms are far nearer to each other than in any label, the
    structure is labelled, learned at once, and what the oracle says is the result of that step
    (``results["labelled"]`` is True then). Until there is a model, every structure is labelled.

    Parameters
    ----------
    model : KernelPotential
        Its parameters are used; it is not changed. A fitted one needs the `images` of its fit.
    oracle : Any
        Gives labels: an ASE calculator, a function, a `FileOracle` (`label_all`).
    folder : str | PathLike[str] | None
        Where its journal is kept: it goes on with what is there. None to keep none.
    tolerance : float
        Expected error of a force, root mean square of a component, above which the oracle is
        asked, eV/angstrom. It is sqrt(2) times what no label takes away where that is more.
    stress_tolerance : float | None
        The same of a stress, GPa, for cells that change; None where forces alone count.
    threshold : str
        "tolerance" for that alone; "history" for the mean of the errors that are still expected of
        the last ten structures right after they were learned where that is more, as in VASP.
    n_first : int
        Labels before the first fit, where no `images` are given.
    images : Sequence[Atoms]
        Labelled structures to begin with.
    error_every : int
        Calls from one look at the expected error to the next, where novelty asks for none: a look
        costs as much as tens of calls.
    time_limit : float | None
        Seconds for one label, after which it has failed.
    threads : int
        For BLAS and OpenMP of each label.
    window : int
        Structures whose errors, from before they were learned, say how wide intervals are.

    Attributes
    ----------
    n_calls : int
        Structures that were computed, by model or oracle.
    n_labels : int
        Labels that succeeded, those of the folder among them.
    n_failed : int
        Labels that failed.

    Raises
    ------
    ValueError
        If a setting is out of range, or a fitted model comes without images.
    JournalError
        If the folder's run has another model or began with other images.

    Notes
    -----
    Energies jump where the model learns, by what it has learned, and where a step of the oracle
    follows one of the model, by the model's error. Constant-energy dynamics shows it: the jumps
    are of the size of the errors of the energy, and cease with the labels. What must be smooth, as
    a line search, does best with a second run on the model that the first one has left.

    A label that fails is told of by a warning, the model's answer is the result, and the oracle
    is not asked for the next `error_every` calls; where the model knows nothing it is an error.

    One calculator may serve many structures in turn, all images of an elastic band for instance
    (``NEB(images, allow_shared_calculator=True)``).
    """

    name = "kernelpot on the fly"
    implemented_properties = (
        "energy",
        "free_energy",
        "forces",
        "stress",
        "novelty",
        "forces_error",
    )

    def __init__(
        self,
        model: KernelPotential,
        oracle: Any,
        *,
        folder: str | PathLike[str] | None = None,
        tolerance: float = 0.1,
        stress_tolerance: float | None = None,
        threshold: str = "tolerance",
        n_first: int = 4,
        images: Sequence[Atoms] = (),
        error_every: int = 20,
        time_limit: float | None = None,
        threads: int = 1,
        window: int = 40,
    ):
        super().__init__()
        force_tolerance(tolerance)  # says so where it is none
        for title, value, least in (
            ("n_first", n_first, 1), ("error_every", error_every, 1), ("window", window, 4),
        ):  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{title} must be a whole number of at least {least}, but is {value!r}"
                )
        if threshold not in ("tolerance", "history"):
            raise ValueError(f'threshold must be "tolerance" or "history", but is {threshold!r}')
        images = [images] if isinstance(images, Atoms) else list(images)
        if hasattr(model, "fitted_") and not images:
            raise ValueError(
                "a fitted model does not keep the structures of its fit, and could not learn the"
                " next ones together with them: give these, images=..., or a model that is not"
                " fitted"
            )
        self.tolerance = tolerance
        # Angstrom^2, on which errors of stresses count as those of forces, as in a run.
        self._area = LearnerSettings(tolerance=tolerance, stress_tolerance=stress_tolerance).area
        self.n_calls = 0
        self._oracle = oracle
        self._n_first, self._error_every = n_first, error_every
        self._time_limit, self._threads = time_limit, threads
        self._knowledge = Knowledge(model, window)
        self._calculator: Calculator | None = None
        self._threshold: float | None = None
        self._by_history, self._left = threshold == "history", list[float]()
        self._since, self._quiet, self._safe = 0, 0, 0.0
        self._sanity, self._too_close = Sanity(Limits()), False
        self._journal = None if folder is None else Journal(folder)
        try:
            self._history = History(self._journal.entries() if self._journal else ())
            self._begin(images, window)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OnTheFlyCalculator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def model(self) -> KernelPotential:
        """The model as it is now; not fitted before the first labels are learned."""
        return self._knowledge.model

    @property
    def images(self) -> list[Atoms]:
        """All labels that it has learned."""
        return list(self._knowledge.images)

    @property
    def n_labels(self) -> int:
        """Labels that succeeded, those of the folder among them."""
        return sum(one.atoms is not None for one in self._history.labels)

    @property
    def n_failed(self) -> int:
        """Labels that failed."""
        return sum(one.atoms is None for one in self._history.labels)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model as it is now to a file.

        Parameters
        ----------
        path : str | PathLike[str]
            The file; replaced whole or not at all.
        """
        self.model.save(path)

    def close(self) -> None:
        """Let other processes go on in the folder, which gets ``model.kpot`` and ``labels.xyz``.

        The journal is complete at any time; a process that ends without this loses nothing.
        """
        journal, self._journal = self._journal, None
        if journal is None:
            return
        try:
            if self._knowledge.fitted:
                self.model.save(journal.folder / "model.kpot")
                journal.write_labels(without=self._history.doubted_entries)
        finally:
            journal.close()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Compute all properties but forces_error, which is computed where it is asked for.

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
        CalculationFailed
            If a label fails, and there is no model or it does not know a species.
        ValueError
            Positions or cell that are not finite, a flat periodic cell, or atoms on top of each
            other.
        """
        results = {} if system_changes else dict(self.results)
        self.results = {}  # an error below leaves nothing stale behind
        super().calculate(atoms, properties, system_changes)
        if not results:
            self.n_calls += 1
            with one_blas_thread():
                results = self._compute(self.atoms)
        if "forces_error" in properties and self._calculator is not None:
            error_nc = self._calculator.get_property("forces_error", self.atoms.copy())
            results["forces_error"] = error_nc
        self.results = results

    def _compute(self, atoms: Atoms) -> dict[str, Any]:
        model = None
        if self._knowledge.fitted and set(self.model.species_).issuperset(atoms.numbers.tolist()):
            model = self._by_model(atoms)
            if not self._is_unsure(atoms, model):
                return {**model, "labelled": False}
        (label,) = label_all(
            self._oracle, [atoms], time_limit=self._time_limit, threads=self._threads
        )
        number = self._open_round()
        place = len(self._history.round(number).labels)
        self._write("label", {"round": number, "place": place, **label_to_json(label)})
        if label.atoms is None:
            return self._without(label, model)
        if self._knowledge.fitted or len(self._history.round(number).good) >= self._n_first:
            self._learn(number)
        found = self._by_model(atoms) if self._knowledge.fitted else {}
        return {**found, **_results_of(label), "labelled": True}

    def _by_model(self, atoms: Atoms) -> dict[str, Any]:
        atoms = atoms.copy()
        atoms.calc = self._calculator
        atoms.get_potential_energy()
        self._too_close = self._sanity.look(atoms) is not None
        names = ("energy", "free_energy", "forces", "stress", "novelty")
        return {name: self._calculator.results[name] for name in names
                if name in self._calculator.results}  # fmt: skip

    def _without(self, label: Label, model: dict[str, Any] | None) -> dict[str, Any]:
        """What is said where a label has failed."""
        if model is None:
            raise CalculationFailed(
                f"the oracle failed where the model knows nothing yet: {label.reason}"
            )
        warnings.warn(
            f"a label failed, and the model answers, unsure as it is: {label.reason}. The oracle"
            f" is not asked for the next {self._error_every} calls",
            RuntimeWarning,
            stacklevel=2,
        )
        self._quiet = self._error_every
        return {**model, "labelled": False}

    # ------------------------------------------------------------------------------ doubt

    def _is_unsure(self, atoms: Atoms, found: dict[str, Any]) -> bool:
        """Whether the expected error is above the tolerance, where there is reason to look at it.

        Novelty is a reason once it has grown so far that the error, which grows with its square
        root, may have come near the tolerance since it was looked at.
        """
        if self._quiet > 0:
            self._quiet -= 1
            return False
        if self._too_close:
            return True
        self._since += 1
        novelty = float(np.max(found.get("novelty", np.inf), initial=0.0))
        if novelty <= self._safe and self._since < self._error_every:
            return False
        self._since = 0
        error = self._error(atoms.copy())
        part = error / self._threshold
        if part <= 1.0:
            farther = min(_SAFETY / max(part, 1e-3) ** 2, _FARTHEST)
            self._safe = novelty * farther if np.isfinite(novelty) else 0.0
        return part > 1.0

    def _error(self, atoms: Atoms) -> float:
        """Largest expected error of a force, and of the stress where it counts; eV/angstrom."""
        # Errors on a few structures that are much alike are far smaller than the posterior says,
        # and tell nothing of other structures.
        trust = _FEW / (_FEW + self._knowledge.n_errors)

        def expected(kind: str) -> Float:
            error = self._calculator.get_property(f"{kind}_error", atoms)
            return np.maximum(error, trust * self._calculator.results[f"{kind}_std"])

        found = float(np.sqrt(np.mean(expected("forces") ** 2, axis=1).max(initial=0.0)))
        if self._area > 0.0 and atoms.pbc.all():
            found = max(found, self._area * float(np.sqrt(np.mean(expected("stress") ** 2))))
        return found

    def _set_thresholds(self) -> None:
        """After learning: the error that counts, and the novelty up to which none is looked at."""
        proposed = force_tolerance(self.tolerance, floor=self._knowledge.least_error)
        if self._by_history:
            proposed = max(proposed, from_history(self._threshold or proposed, self._left))
        self._threshold = hold(self._threshold, proposed)
        self._sanity = Sanity(Limits(closest=self._knowledge.closest, volume=np.inf))
        self._safe = 0.0
        if self.model.predictor_.has_novelty:
            known = self._knowledge.novelty_map
            if known.n_pairs:
                self._safe = _NEAR * known.threshold(self._threshold, np.inf)

    # ------------------------------------------------------------------------------ learning

    def _begin(self, images: list[Atoms], window: int) -> None:
        """From the journal, or from the images."""
        mine = {
            "window": window,
            "n_first": self._n_first,
            "model": model_in_words(self.model),
            "given": [structure_to_json(atoms) for atoms in images],
        }
        if self._history.settings is None:
            self._write("settings", mine)
        else:
            check_same(self._journal.folder, self._history.settings, mine)
        for number in range(len(self._history.rounds)):
            self._take_up(number)
        if images and not self._knowledge.fitted:
            self._learn(0)

    def _take_up(self, number: int) -> None:
        """Learn again what was learned; and what was not, since the process had ended before."""
        mine = self._history.round(number)
        enough = 1 if number else self._n_first
        if mine.learned is not None or len(mine.good) >= enough:
            self._learn(number)

    def _open_round(self) -> int:
        """Of labels that are learned together: the first ones, and then one by one."""
        rounds = self._history.rounds
        number = len(rounds) - 1
        return max(number + (number >= 0 and rounds[number].learned is not None), 0)

    def _learn(self, number: int) -> None:
        with one_blas_thread():  # as in a learner's run
            new = self._history.to_learn(number)
            learned = self._knowledge.learn(new)
            if self._by_history:
                self._left += self._knowledge.errors_left(len(new) - len(learned.doubted))
        self._calculator = Calculator(self.model)
        self._set_thresholds()
        if self._history.round(number).learned is None:
            surprises = [one._asdict() for one in learned.surprises]
            fingerprint = self._knowledge.fingerprint()
            content = {**learned._asdict(), "surprises": surprises, "fingerprint": fingerprint}
            self._write("learned", {"round": number, **content})

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        if self._journal is not None:
            entry = self._journal.append(kind, content)
        else:
            entry = Entry(0, "", kind, content)
        self._history.add(entry)


def _results_of(label: Label) -> dict[str, Any]:
    """What the oracle says; its energy is its free energy where it gives none."""
    results = dict(label.atoms.calc.results)
    return {**results, "free_energy": results.get("free_energy", results["energy"])}
