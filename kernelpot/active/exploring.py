"""The explorations of a run: those of its rounds, with what to ask of them, and the final ones."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
from ase import Atoms

from kernelpot.active.choice import Wishes, choose
from kernelpot.active.explorers.protocol import Explorer, snapshot
from kernelpot.active.explorers.static import Rattle
from kernelpot.active.history import History
from kernelpot.active.judging import (
    at_its_end,
    final_scores,
    judged_by,
    n_longer,
    n_unsettled,
    prolonged,
    trajectories,
    typical_of,
)
from kernelpot.active.knowledge import Knowledge
from kernelpot.active.plan import Plan
from kernelpot.active.records import Candidate
from kernelpot.active.structure_json import (
    candidate_from_json,
    candidate_to_json,
    structure_hash,
)
from kernelpot.active.task import Task, Tell
from kernelpot.active.triggers import Watch
from kernelpot.calculator import Calculator

__all__ = ["Exploring"]

_DOUBLINGS = 6
"""Times that an exploration which was too short to tell is made twice as long."""
_MEMORY = 8
"""Last rounds whose explorations say what is typical."""
_TRIES = 4
"""Labels with a species that may fail before no other one is asked for."""


class Exploring:
    """What a run does to find what it should ask for, and whether it has asked enough.

    Parameters
    ----------
    task : Task
        What the run is about.
    history : History
        What has happened; it grows.
    knowledge : Knowledge
        What is known; it grows, too.
    write : Tell
        Appends an entry to the journal.
    tell : Tell
        Told of what begins.

    Attributes
    ----------
    observed : dict[int, str]
        Names of the explorers over which the observable is averaged, by their places; none where
        there is no observable.
    """

    def __init__(self, task: Task, history: History, knowledge: Knowledge, write: Tell, tell: Tell):
        self._task, self._settings = task, task.settings
        self._history, self._knowledge = history, knowledge
        self._write, self._tell = write, tell
        self._plan = Plan(task.start, task.explorers, task.settings, history, knowledge)
        self._wishes = Wishes(
            task.laws, task.relevance, task.settings.area, task.settings.tolerance
        )
        places = [] if task.observable is None else trajectories(task.explorers)
        self.observed = {e: task.explorers[e].name for e in places}

    def initial(self) -> list[tuple[Candidate, float]]:
        """The starts, and displaced copies of them.

        Returns
        -------
        list[tuple[Candidate, float]]
            What is to be labelled before there is a model; nobody knows what it tells (NaN).
        """
        rng = np.random.default_rng([self._settings.random_state, 0])
        maker = Rattle(
            displacement=self._settings.displacement,
            strain=self._settings.strain,
            n=self._settings.n_initial,
        )
        found = []
        for atoms in self._task.start:
            found.append(Candidate(snapshot(atoms), "start", 0, "given", np.nan))
            found += [
                Candidate(made, maker.name, 0, "given", np.nan) for made in maker.make(atoms, rng)
            ]
        return [(one, np.nan) for one in found[: self._settings.most_labels]]

    def of_round(self, number: int) -> list[tuple[Candidate, float]]:
        """Explore, and choose.

        Parameters
        ----------
        number : int
            Of the round.

        Returns
        -------
        list[tuple[Candidate, float]]
            What is to be labelled, and what it is expected to tell.

        Raises
        ------
        NothingLearnedError
            If there is nowhere to begin.
        OutOfTimeError
            If the time of the run is over.
        """
        calculator = Calculator(self._knowledge.model)
        threshold = self._plan.threshold(number)
        candidates: list[Candidate] = []
        longer = 2 ** min(n_unsettled(self._history.rounds[:number]), _DOUBLINGS)
        for e, explorer in enumerate(self._task.explorers):
            began = self._plan.begin(number, e)
            if began is None:
                continue
            started = time.perf_counter()
            explorer = prolonged(explorer, longer, longer)
            start, place = began
            watch = self._plan.watch(explorer, start, threshold)
            self._begins(number, e, explorer, watch)
            found = explorer.explore(
                calculator,
                start,
                watch,
                np.random.default_rng([self._settings.random_state, number, e]),
            )
            candidates += found.candidates
            observable = self._task.observable if e in self.observed else None
            judged = judged_by(found, watch.looks, calculator, self._settings, observable)
            if self._settings.objective == "mean":
                typical = typical_of(found, explorer.name)
                judged["typical"] = [candidate_to_json(one, np.nan) for one in typical]
            self._write(
                "explored",
                {"round": number, "explorer": e, "name": explorer.name, "start": place,
                 "threshold": threshold, "seconds": time.perf_counter() - started, **judged},
            )  # fmt: skip
        before = self._history.round(number - 1).final if number else None
        candidates += [candidate_from_json(one) for one in (before or {}).get("outside", ())]
        return choose(
            [one for one in candidates if self._worth_asking(one.atoms)],
            self._knowledge.model,
            min(self._settings.batch, self._settings.most_labels - len(self._history.labels)),
            threshold=threshold,
            n_looked=self._settings.n_candidates,
            wishes=self._wishes,
            typical=[one for one in self._typical(number) if self._worth_asking(one.atoms)],
            n_typical=self._settings.n_typical,
        )

    def final(self, number: int) -> dict[str, Any]:
        """Long explorations that nothing but unphysical states ends.

        Parameters
        ----------
        number : int
            Of the round.

        Returns
        -------
        dict[str, Any]
            What the journal has of them by now.

        Raises
        ------
        OutOfTimeError
            If the time of the run is over.
        """
        calculator = Calculator(self._knowledge.model)
        threshold = self._plan.threshold(number + 1)
        explorers = self._task.explorers
        longer = 2 ** min(n_longer(self._history.rounds[:number], self._settings), _DOUBLINGS)
        moving = [e for e, one in enumerate(explorers) if hasattr(one, "n_steps")]
        scores, outside = [], []
        for e in moving or range(len(explorers)):
            places = self._plan.starts(e)
            if not places:
                continue
            # All starts together as long as asked.
            n_times = longer * -(-self._settings.final_steps // len(places))
            explorer = prolonged(at_its_end(explorers[e]), n_times, longer)
            for s, place in enumerate(places):
                start = copy.deepcopy(self._task.start[place])
                watch = self._plan.final_watch(explorer, start)
                self._begins(number, e, explorer, watch, final=f"{s + 1} of {len(places)}")
                found = explorer.explore(
                    calculator,
                    start,
                    watch,
                    np.random.default_rng([self._settings.random_state, number, e, s, 1]),
                )
                of_run, strange = final_scores(
                    found, calculator, threshold, explorer.name, self._settings.area
                )
                scores.append(of_run)
                outside += strange
        outside.sort(key=lambda one: -one.score)
        kept = [candidate_to_json(one, np.nan) for one in outside[: self._settings.n_candidates]]
        final = {"round": number, "threshold": threshold, "scores": scores, "outside": kept}
        self._write("final", final)
        return final

    def _typical(self, number: int) -> list[Candidate]:
        """What explorations of the last rounds went through: one round sees but a corner of it."""
        rounds = self._history.rounds[max(number + 1 - _MEMORY, 0) : number + 1]
        kept = [found.get("typical", ()) for one in rounds for found in one.explored.values()]
        return [candidate_from_json(one) for mine in kept for one in mine]

    def _worth_asking(self, atoms: Atoms) -> bool:
        """What failed fails again, and what is known tells nothing."""
        if structure_hash(atoms) in self._history.asked:
            return False
        new = set(atoms.numbers.tolist()) - set(self._knowledge.model.species_)
        failed = [one for one in self._history.failed if new & set(one.numbers.tolist())]
        return not new or len(failed) < _TRIES

    def _begins(
        self, number: int, e: int, explorer: Explorer, watch: Watch, *, final: str = ""
    ) -> None:
        """Tell of it, with a way to ask how far it has come."""
        steps = getattr(explorer, "n_steps", 0) if hasattr(explorer, "temperature") else 0
        self._tell(
            "exploring",
            {"round": number, "explorer": e, "name": explorer.name, "final": final,
             "n_steps": steps, "steps_done": lambda: watch.n_steps},
        )  # fmt: skip
