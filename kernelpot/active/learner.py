"""The loop: explore, notice, choose, label, learn, know when to stop.

Round after round: explorers move structures with the present model while a watch looks on; what it
is unsure of becomes a candidate; of these a batch is chosen that tells most together; the oracle
labels it; the model learns it; criteria are judged. Round 0 labels the starts and displaced copies
of them.

Every step is in the journal before the next begins, and follows from the seed and the steps before,
so that a run which was killed goes on where it was and comes to the same end; the labels of a
journal alone give its model (`replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms

from kernelpot._jit import was_interrupted
from kernelpot._machine import one_blas_thread
from kernelpot.active.explorers.protocol import Explorer
from kernelpot.active.history import History
from kernelpot.active.journal import Journal, JournalError, read_entries
from kernelpot.active.judging import trajectories
from kernelpot.active.knowledge import Knowledge
from kernelpot.active.loop import Loop
from kernelpot.active.oracle import end_processes
from kernelpot.active.plan import fitting
from kernelpot.active.scores import Law, Relevance
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.stopping import Criterion
from kernelpot.active.task import Observable, Task, Tell
from kernelpot.data import structures_from_atoms
from kernelpot.potential import KernelPotential

__all__ = ["ActiveLearner", "Outcome", "replay"]


class Outcome(NamedTuple):
    """How a run ended."""

    model: KernelPotential
    n_labels: int  # that the model has learned
    n_failed: int
    why: str  # the run ended
    criteria: tuple[Criterion, ...]
    folder: Path


class ActiveLearner:
    """Active learning from a few structures to a potential, unattended.

    Parameters
    ----------
    model : KernelPotential
        Its parameters are used; it is not changed.
    oracle : Any
        Gives labels: an ASE calculator, a function, a `FileOracle` (`label_all`).
    start : Sequence[Atoms]
        Where explorations begin; they need no labels.
    explorers : Sequence[Explorer]
        Each explores once in every round.
    folder : str | PathLike[str]
        Of the run: its journal, ``model.kpot`` and ``labels.xyz``.
    settings : LearnerSettings | None
        How to choose, label and stop; None for the defaults.
    images : Sequence[Atoms]
        Labelled structures to begin with.
    observable : Observable | None
        That is to converge; with ``observable_tolerance`` of the settings.
    laws : Sequence[Law]
        What is known of the true potential: violations add to the scores of candidates.
    relevance : Relevance | None
        What a structure is worth beside what its label tells: `low_energy`, or any function of
        atoms with the model's calculator, larger is better. The nearer uncertainties come to the
        tolerance, the more it counts.
    executor : Executor | None
        Where labels are computed; None for processes of this machine.
    tell : Tell | None
        Told of all that happens.

    Raises
    ------
    TypeError
        If the model, settings, an explorer, a law, the observable or the relevance is something
        else.
    ValueError
        If there is nothing to start from, or no explorer, or one that can begin at no start; if a
        structure cannot be used, or one of the labelled has no labels; if a relevance comes with
        ``objective="mean"``, which says by itself what counts.
    """

    def __init__(
        self,
        model: KernelPotential,
        oracle: Any,
        start: Sequence[Atoms],
        explorers: Sequence[Explorer],
        folder: str | PathLike[str],
        *,
        settings: LearnerSettings | None = None,
        images: Sequence[Atoms] = (),
        observable: Observable | None = None,
        laws: Sequence[Law] = (),
        relevance: Relevance | None = None,
        executor: Executor | None = None,
        tell: Tell | None = None,
    ):
        settings = LearnerSettings() if settings is None else settings
        start = [start] if isinstance(start, Atoms) else list(start)
        explorers = [explorers] if hasattr(explorers, "explore") else list(explorers)
        laws = [laws] if isinstance(laws, Law) else list(laws)
        _check_types(model, settings, explorers, laws)
        _check_functions(observable, relevance)
        if not start or not explorers:
            raise ValueError("active learning needs a start, at least one structure, and explorers")
        if relevance is not None and settings.objective == "mean":
            raise ValueError(
                'relevance counts with objective = "largest" alone: "mean" says by itself which'
                " structures count, those that explorations visit"
            )
        if observable is not None and settings.observable_tolerance is None:
            raise ValueError(
                "an observable needs observable_tolerance in the settings: by how much it may"
                " differ between rounds"
            )
        if observable is not None and not trajectories(explorers):
            raise ValueError(
                "an observable is averaged over what an explorer with steps goes through, such as"
                " Dynamics; there is none"
            )
        # All that can be known before labels are computed for nothing.
        structures_from_atoms(start, labels="ignore")
        fitting(explorers, start)
        for one in structures_from_atoms(images, *model._labels()) if images else ():
            if not one.has_labels:
                raise ValueError(f"{one.name} of the labelled structures has no labels")
        self.folder = Path(folder)
        self._task = Task(
            model, oracle, start, explorers, settings, list(images), observable, laws,
            relevance, executor, tell,
        )  # fmt: skip

    def run(self, resume: bool | None = None) -> Outcome:
        """Run to the end, or go on with what the folder holds.

        Parameters
        ----------
        resume : bool | None
            True: there must be a run in the folder; False: there must be none; None: whichever.

        Returns
        -------
        Outcome
            With the model of all labels.

        Raises
        ------
        JournalError
            If the folder's run is another one, or is not as ``resume`` says.
        """
        create = None if resume is None else not resume
        try:
            # With other numbers of threads BLAS rounds otherwise, and dynamics make much of it: a
            # run that is resumed elsewhere has to go on as it would have.
            with one_blas_thread(), Journal(self.folder, create=create) as journal:
                loop = Loop(self._task, journal)
                decision = loop.run()
        except SystemError as error:
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            raise
        finally:
            end_processes()
        failed = sum(one.atoms is None for one in loop.history.labels)
        n_labels = len(loop.knowledge.images)
        return Outcome(
            loop.knowledge.model, n_labels, failed, decision.why, decision.criteria, self.folder
        )


def _check_types(model: Any, settings: Any, explorers: list[Any], laws: list[Any]) -> None:
    for title, one, kind in (
        ("the model", model, KernelPotential),
        ("settings", settings, LearnerSettings),
        *((f"law {k + 1}", law, Law) for k, law in enumerate(laws)),
    ):
        if not isinstance(one, kind):
            raise TypeError(f"{title} must be a {kind.__name__}, but is {one!r}")
    for explorer in explorers:
        known = callable(getattr(explorer, "explore", None)) and hasattr(explorer, "name")
        if not known or isinstance(explorer, type):
            raise TypeError(
                "an explorer must have a name and a method explore, as Dynamics has, but one is"
                f" {explorer!r}"
            )


def _check_functions(observable: Any, relevance: Any) -> None:
    if relevance is not None and not callable(relevance):
        raise TypeError(
            "the relevance must be a function of atoms, which gives a number, larger for what is"
            f" worth more, but is {relevance!r}"
        )
    if observable is not None and not callable(observable):
        raise TypeError(
            "the observable must be a function of frames, which gives a value for each, but is"
            f" {observable!r}"
        )


def replay(folder: str | PathLike[str], model: KernelPotential) -> KernelPotential:
    """The model that a run has come to, from the labels in its journal alone.

    Parameters
    ----------
    folder : str | PathLike[str]
        Of the run.
    model : KernelPotential
        With the parameters of the run's.

    Returns
    -------
    KernelPotential
        The same to the bit, on the same machine with the same libraries.

    Raises
    ------
    JournalError
        If there is no run, or nothing was learned in it.
    """
    history = History(read_entries(folder))
    if history.settings is None:
        raise JournalError(f"There is no run in {folder} yet.")
    knowledge = Knowledge(model, history.settings["window"])
    with one_blas_thread():
        for number, one in enumerate(history.rounds):
            if one.learned is not None:
                knowledge.learn(history.to_learn(number))
        if history.ended:
            knowledge.maintain()
    if not knowledge.fitted:
        raise JournalError(f"The run in {folder} has learned nothing yet.")
    return knowledge.model
