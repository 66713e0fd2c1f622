"""The loop at work: round after round, each step in the journal before the next begins."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.active.choice import choose
from kernelpot.active.explorers.protocol import Explorer, snapshot
from kernelpot.active.explorers.static import Rattle
from kernelpot.active.history import History
from kernelpot.active.journal import Journal
from kernelpot.active.judging import (
    Observable,
    at_its_end,
    coverage_of,
    criteria_of,
    final_scores,
    judged_by,
    n_calm,
    n_longer,
    n_unsettled,
    prolonged,
    trajectories,
    typical_of,
)
from kernelpot.active.knowledge import Knowledge, Learned
from kernelpot.active.meanwhile import Meanwhile
from kernelpot.active.oracle import label_all
from kernelpot.active.page import write_page
from kernelpot.active.plan import NothingLearnedError, Plan
from kernelpot.active.records import Candidate, Label
from kernelpot.active.same_run import check_same, in_words, model_in_words
from kernelpot.active.scores import Law
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.stopping import (
    Criterion,
    Decision,
    combine,
    label_budget,
    patience,
    time_budget,
)
from kernelpot.active.structure_json import (
    label_to_json,
    structure_from_json,
    structure_hash,
    structure_to_json,
)
from kernelpot.active.triggers import OutOfTimeError
from kernelpot.calculator import Calculator
from kernelpot.potential import KernelPotential

__all__ = ["Loop", "Task", "Tell"]

log = logging.getLogger("kernelpot")

Tell = Callable[[str, dict[str, Any]], None]
"""Called with the kind of each entry of the journal and its content, as it is written.

Kinds that end in -ing are of what begins, and are not in the journal: "exploring" (round, explorer,
name, final) and "learning" (round), also of rounds that the journal has.
"""

_SHOW_EVERY = 30.0
"""Seconds after which an entry has the page written anew before its round ends: slow labels."""
_DOUBLINGS = 6
"""Times that an exploration which was too short to tell is made twice as long."""
_PATIENCE = 15
"""Rounds without a label, after as many as make a plateau, in which nothing else has come of them:
explorations, final runs and observables have been given all their doublings by then."""
_TRIES = 4
"""Labels with a species that may fail before no other one is asked for."""
_MAY_CHANGE = frozenset(
    {"most_labels", "most_seconds", "n_parallel", "threads", "time_limit", "plateau_rounds",
     "plateau", "coverage", "final_steps", "observable_tolerance"}
)  # fmt: skip
"""Settings with which a run may be resumed though they are others: when it ends, and how fast."""


class Task(NamedTuple):
    """What a run is about."""

    model: KernelPotential
    oracle: Any
    start: list[Atoms]
    explorers: list[Explorer]
    settings: LearnerSettings
    images: list[Atoms]
    observable: Observable | None
    laws: Sequence[Law]
    executor: Executor | None
    tell: Tell | None


class Loop:
    """A run, from the beginning or from where its journal ends.

    Parameters
    ----------
    task : Task
        What it is about.
    journal : Journal
        Open.

    Attributes
    ----------
    history : History
        What has happened.
    knowledge : Knowledge
        What is known.

    Raises
    ------
    JournalError
        If the journal is of a run with other settings.
    """

    def __init__(self, task: Task, journal: Journal):
        self._task, self._journal, self._settings = task, journal, task.settings
        self._shown = -np.inf  # when the page was written
        self.history = History(journal.entries())
        self.knowledge = Knowledge(task.model, task.settings.window)
        self._plan = Plan(task.start, task.explorers, task.settings, self.history, self.knowledge)
        self._saved = ""  # fingerprint of the model that is in the folder
        self._check_settings()

    def run(self) -> Decision:
        """Turn until criteria are met or a budget is used up.

        Returns
        -------
        Decision
            Why it has ended.
        """
        number = 0
        try:
            while not (decision := self._round(number)).stop:
                number += 1
        except OutOfTimeError:
            decision = self._out_of_time()
        self._maintain()
        self._write_labels()
        if not self.history.ended:
            self._write("ended", {"why": decision.why})
        self._show()
        return decision

    # ------------------------------------------------------------------------------ a round

    def _round(self, number: int) -> Decision:
        """What is in the journal already is not done again."""
        if self._spent_before(number):
            return self._judge(number - 1, 0.0)
        started = time.perf_counter()
        is_last = number >= len(self.history.rounds) - 1
        mine = self.history.round(number)
        if mine.picked is None:
            picked = self._explore(number) if self.knowledge.fitted else self._initial()
            self._write(
                "picked", {"round": number, "structures": [_pick_json(*one) for one in picked]}
            )
        self._label(number)
        self._tell("learning", {"round": number})
        learned = self.knowledge.learn(self.history.to_learn(number))
        if not self.knowledge.fitted:
            raise NothingLearnedError(
                f"none of the {len(mine.labels)} labels of the first round succeeded, so that there"
                f" is nothing to learn; the first one failed with: {mine.labels[0].reason}. Mend"
                " the oracle, and begin in another folder"
            )
        fingerprint = self.knowledge.fingerprint()
        if mine.learned is None:
            self._write("learned", {"round": number, **_learned_json(learned, fingerprint)})
            self._write_labels()
            if not self._saved:  # the first of this process: there is one from now on
                self._save()
        elif mine.learned["fingerprint"] != fingerprint:
            log.warning(
                "the labels of round %d give another model than when they were learned: libraries"
                " or the machine have changed. The run goes on with the new one",
                number,
            )
        if mine.judged is not None and not (is_last and mine.judged["stop"]):
            return Decision(False, "", tuple(Criterion(**one) for one in mine.judged["criteria"]))
        # The last word of a run that has ended is spoken anew: its budgets may have been raised.
        seconds = 0.0 if mine.judged is not None else time.perf_counter() - started
        decision = self._judge(number, seconds)
        if mine.judged is None:
            seconds = time.perf_counter() - started
            criteria = [one._asdict() for one in decision.criteria]
            self._write(
                "judged",
                {"round": number, "stop": decision.stop, "why": decision.why,
                 "criteria": criteria, "seconds": seconds},
            )  # fmt: skip
        return decision

    def _out_of_time(self) -> Decision:
        """In the middle of an exploration; what it has met is lost."""
        rounds = [one for one in self.history.rounds if one.learned is not None]
        criteria = criteria_of(rounds, self._settings, self._observed)
        if self._settings.final_steps:
            criteria.append(coverage_of(None, self._settings))
        most = self._settings.most_seconds
        return combine(criteria, [time_budget(most, most)])

    def _spent_before(self, number: int) -> bool:
        """Whether a budget is used up before a round begins: one that was lowered since."""
        rounds = self.history.rounds
        begun = number < len(rounds) and rounds[number].picked is not None
        return number > 0 and not begun and any(one.met for one in self._budgets(number - 1, 0.0))

    def _initial(self) -> list[tuple[Candidate, float]]:
        """The starts, and displaced copies of them."""
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

    def _explore(self, number: int) -> list[tuple[Candidate, float]]:
        calculator = Calculator(self.knowledge.model)
        threshold = self._plan.threshold(number)
        candidates: list[Candidate] = []
        typical: list[Candidate] = []
        longer = 2 ** min(n_unsettled(self.history.rounds[:number]), _DOUBLINGS)
        for e, explorer in enumerate(self._task.explorers):
            began = self._plan.begin(number, e)
            if began is None:
                continue
            started = time.perf_counter()
            explorer = prolonged(explorer, longer, longer)
            self._tell_exploring(number, e, final=False)
            start, place = began
            watch = self._plan.watch(explorer, start, threshold)
            found = explorer.explore(
                calculator,
                start,
                watch,
                np.random.default_rng([self._settings.random_state, number, e]),
            )
            candidates += found.candidates
            if self._settings.objective == "mean":
                typical += typical_of(found, explorer.name)
            observable = self._task.observable if e in self._observed else None
            judged = judged_by(found, watch.looks, calculator, self._settings.n_looked, observable)
            self._write(
                "explored",
                {"round": number, "explorer": e, "name": explorer.name, "start": place,
                 "threshold": threshold, "seconds": time.perf_counter() - started, **judged},
            )  # fmt: skip
        before = self.history.round(number - 1).final if number else None
        candidates += [_candidate_of(one) for one in (before or {}).get("outside", ())]
        return choose(
            [one for one in candidates if self._worth_asking(one.atoms)],
            self.knowledge.model,
            min(self._settings.batch, self._settings.most_labels - len(self.history.labels)),
            threshold=threshold,
            n_looked=self._settings.n_candidates,
            laws=self._task.laws,
            typical=typical,
        )

    def _worth_asking(self, atoms: Atoms) -> bool:
        """What failed fails again, and what is known tells nothing."""
        if structure_hash(atoms) in self.history.asked:
            return False
        new = set(atoms.numbers.tolist()) - set(self.knowledge.model.species_)
        failed = [one for one in self.history.failed if new & set(one.numbers.tolist())]
        return not new or len(failed) < _TRIES

    @property
    def _observed(self) -> dict[int, str]:
        """Explorers over which the observable is averaged, where there is one."""
        if self._task.observable is None:
            return {}
        explorers = self._task.explorers
        return {e: explorers[e].name for e in trajectories(explorers)}

    # --------------------------------------------------------------------------- labels

    def _label(self, number: int) -> None:
        """Label what has no label yet; each is in the journal as soon as it is there.

        Meanwhile the model that explored is maintained: it has done its part, and oracles take
        longer.
        """
        mine = self.history.round(number)
        structures = mine.structures
        missing = [k for k in range(len(structures)) if k not in mine.labels]

        def record(place: int, label: Label) -> None:
            where = {"round": number, "place": missing[place]}
            self._write("label", {**where, **label_to_json(label)})

        if structures and not missing:  # a run that is resumed: as it was then
            self.knowledge.maintain()  # the folder has a later model
        elif missing:
            with Meanwhile(self._maintain):
                label_all(
                    self._task.oracle,
                    [structures[k] for k in missing],
                    executor=self._task.executor,
                    n_parallel=self._settings.n_parallel,
                    time_limit=self._settings.time_limit,
                    threads=self._settings.threads,
                    tell=record,
                )

    # --------------------------------------------------------------------------- the end

    def _judge(self, number: int, seconds: float) -> Decision:
        settings, rounds = self._settings, self.history.rounds[: number + 1]
        criteria = criteria_of(rounds, settings, self._observed)
        if settings.final_steps:
            final = rounds[number].final
            if final is None and all(one.met for one in criteria):
                final = self._final_run(number)
            criteria.append(coverage_of(final, settings))
        return combine(criteria, self._budgets(number, seconds))

    def _budgets(self, number: int, seconds: float) -> list[Criterion]:
        settings = self._settings
        return [
            label_budget(len(self.history.labels), settings.most_labels),
            time_budget(self.history.seconds + seconds, settings.most_seconds),
            patience(
                n_calm(self.history.rounds[: number + 1]), settings.plateau_rounds + _PATIENCE
            ),
        ]

    def _final_run(self, number: int) -> dict[str, Any]:
        """Long explorations that nothing but unphysical states ends."""
        calculator = Calculator(self.knowledge.model)
        threshold = self._plan.threshold(number + 1)
        explorers = self._task.explorers
        longer = 2 ** min(n_longer(self.history.rounds[:number], self._settings), _DOUBLINGS)
        moving = [e for e, one in enumerate(explorers) if hasattr(one, "n_steps")]
        scores, outside = [], []
        for e in moving or range(len(explorers)):
            places = self._plan.starts(e)
            if not places:
                continue
            # All starts together as long as asked.
            n_times = longer * -(-self._settings.final_steps // len(places))
            explorer = prolonged(at_its_end(explorers[e]), n_times, longer)
            self._tell_exploring(number, e, final=True)
            for s, place in enumerate(places):
                start = copy.deepcopy(self._task.start[place])
                found = explorer.explore(
                    calculator,
                    start,
                    self._plan.final_watch(explorer, start),
                    np.random.default_rng([self._settings.random_state, number, e, s, 1]),
                )
                of_run, strange = final_scores(found, calculator, threshold, explorer.name)
                scores.append(of_run)
                outside += strange
        outside.sort(key=lambda one: -one.score)
        kept = [_pick_json(one, np.nan) for one in outside[: self._settings.n_candidates]]
        final = {"round": number, "threshold": threshold, "scores": scores, "outside": kept}
        self._write("final", final)
        return final

    # --------------------------------------------------------------------------- the journal

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        """Append an entry, and take note of it."""
        self.history.add(self._journal.append(kind, content))
        self._tell(kind, content)
        if kind == "judged" or time.monotonic() - self._shown > _SHOW_EVERY:
            self._show()

    def _write_labels(self) -> None:
        """For people and other programs: without those that the model does not believe."""
        doubted = {
            one.entries[place]
            for number, one in enumerate(self.history.rounds)
            for place in self.history.doubted(number)
        }
        self._journal.write_labels(without=doubted)

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        if self._task.tell is not None:
            self._task.tell(kind, content)

    def _tell_exploring(self, number: int, e: int, *, final: bool) -> None:
        name = self._task.explorers[e].name
        self._tell("exploring", {"round": number, "explorer": e, "name": name, "final": final})

    def _show(self) -> None:
        """The page of the run; days of labels do not end with a disk that is full of pictures."""
        try:
            write_page(self._journal.folder, self.history)
        except OSError as error:
            log.warning("the page of the run could not be written: %s", error)
        self._shown = time.monotonic()

    def _check_settings(self) -> None:
        """The settings of a run hold to its end, but for those that end it."""
        task = self._task
        mine = {
            **dataclasses.asdict(self._settings),
            "explorers": [in_words(one) for one in task.explorers],
            "model": model_in_words(task.model),
            "laws": [law._replace(violation=None)._asdict() for law in task.laws],
            "observable": None if task.observable is None else in_words(task.observable),
            "start": [structure_to_json(atoms) for atoms in task.start],
            "given": [structure_to_json(atoms) for atoms in task.images],
        }
        if self.history.settings is None:
            self._write("settings", mine)
        else:
            check_same(self._journal.folder, self.history.settings, mine, _MAY_CHANGE)
            if any(value != self.history.settings.get(name) for name, value in mine.items()):
                self._write("settings", mine)  # a budget that was raised, and when

    def _maintain(self, check: Callable[[], None] = lambda: None) -> None:
        """Look at earlier labels again where that is due, and write the model, for people."""
        self.knowledge.maintain(check)
        self._save()

    def _save(self) -> None:
        fingerprint = self.knowledge.fingerprint() if self.knowledge.fitted else ""
        if fingerprint != self._saved:
            self.knowledge.model.save(self._journal.folder / "model.kpot")
            self._saved = fingerprint


def _pick_json(candidate: Candidate, told: float) -> dict[str, Any]:
    kept = {**candidate._asdict(), "information": told}
    return {"structure": structure_to_json(kept.pop("atoms")), **kept}


def _candidate_of(kept: dict[str, Any]) -> Candidate:
    fields = {name: kept[name] for name in Candidate._fields if name != "atoms"}
    return Candidate(structure_from_json(kept["structure"]), **fields)


def _learned_json(learned: Learned, fingerprint: str) -> dict[str, Any]:
    surprises = [one._asdict() for one in learned.surprises]
    return {**learned._asdict(), "surprises": surprises, "fingerprint": fingerprint}
