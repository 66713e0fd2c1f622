"""The loop at work: round after round, each step in the journal before the next begins."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from kernelpot.active.ending import Ending
from kernelpot.active.exploring import Exploring
from kernelpot.active.history import History
from kernelpot.active.journal import Journal
from kernelpot.active.knowledge import Knowledge, Learned
from kernelpot.active.meanwhile import Meanwhile
from kernelpot.active.oracle import label_all
from kernelpot.active.page import write_page
from kernelpot.active.plan import NothingLearnedError
from kernelpot.active.records import Label
from kernelpot.active.same_run import check_same, in_words, model_in_words
from kernelpot.active.stopping import Criterion, Decision
from kernelpot.active.structure_json import (
    candidate_to_json,
    label_to_json,
    structure_to_json,
)
from kernelpot.active.task import Task
from kernelpot.active.triggers import OutOfTimeError

__all__ = ["Loop"]

log = logging.getLogger("kernelpot")

_SHOW_EVERY = 30.0
"""Seconds after which an entry has the page written anew before its round ends: slow labels."""
_MAY_CHANGE = frozenset(
    {"most_labels", "most_seconds", "n_parallel", "threads", "time_limit", "plateau_rounds",
     "plateau", "coverage", "final_steps", "observable_tolerance"}
)  # fmt: skip
"""Settings with which a run may be resumed though they are others: when it ends, and how fast."""


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
        self._exploring = Exploring(task, self.history, self.knowledge, self._write, self._tell)
        self._ending = Ending(task.settings, self.history, self._exploring.observed)
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
            decision = self._ending.out_of_time()
        self._maintain()
        self._write_labels()
        if not self.history.ended:
            self._write("ended", {"why": decision.why})
        self._show()
        return decision

    # ------------------------------------------------------------------------------ a round

    def _round(self, number: int) -> Decision:
        """What is in the journal already is not done again."""
        if self._ending.spent_before(number):
            return self._ending.judge(number - 1, 0.0, self._exploring.final)
        started = time.perf_counter()
        is_last = number >= len(self.history.rounds) - 1
        mine = self.history.round(number)
        if mine.picked is None:
            explore = self._exploring
            picked = explore.of_round(number) if self.knowledge.fitted else explore.initial()
            structures = [candidate_to_json(*one) for one in picked]
            self._write("picked", {"round": number, "structures": structures})
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
            content = _learned_json(learned, fingerprint)
            if self._settings.threshold == "history":
                n_new = len(self.history.to_learn(number)) - len(learned.doubted)
                content["left"] = self.knowledge.errors_left(n_new)
            self._write("learned", {"round": number, **content})
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
        decision = self._ending.judge(number, seconds, self._exploring.final)
        if mine.judged is None:
            seconds = time.perf_counter() - started
            criteria = [one._asdict() for one in decision.criteria]
            self._write(
                "judged",
                {"round": number, "stop": decision.stop, "why": decision.why,
                 "criteria": criteria, "seconds": seconds},
            )  # fmt: skip
        return decision

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

    # --------------------------------------------------------------------------- the journal

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        """Append an entry, and take note of it."""
        self.history.add(self._journal.append(kind, content))
        self._tell(kind, content)
        if kind == "judged" or time.monotonic() - self._shown > _SHOW_EVERY:
            self._show()

    def _write_labels(self) -> None:
        """For people and other programs: without those that the model does not believe."""
        self._journal.write_labels(without=self.history.doubted_entries)

    def _tell(self, kind: str, content: dict[str, Any]) -> None:
        if self._task.tell is not None:
            self._task.tell(kind, content)

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
            "relevance": None if task.relevance is None else in_words(task.relevance),
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


def _learned_json(learned: Learned, fingerprint: str) -> dict[str, Any]:
    surprises = [one._asdict() for one in learned.surprises]
    return {**learned._asdict(), "surprises": surprises, "fingerprint": fingerprint}
