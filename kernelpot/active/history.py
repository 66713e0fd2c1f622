"""What the journal of a run says: its rounds as far as they have come."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterable
from typing import Any

from ase import Atoms

from kernelpot.active.journal import Entry
from kernelpot.active.records import Label
from kernelpot.active.structure_json import (
    label_from_json,
    structure_from_json,
    structure_hash,
)

__all__ = ["History", "Round"]


@dataclasses.dataclass
class Round:
    """One turn of the loop; None for what has not come to pass yet."""

    explored: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)  # by explorer
    picked: list[dict[str, Any]] | None = None
    labels: dict[int, Label] = dataclasses.field(default_factory=dict)  # by place among the picked
    labelled: dict[int, float] = dataclasses.field(default_factory=dict)  # when, as `latest`
    entries: dict[int, int] = dataclasses.field(default_factory=dict)  # of labels in the journal
    learned: dict[str, Any] | None = None
    final: dict[str, Any] | None = None  # the long run after it, where there was one
    judged: dict[str, Any] | None = None

    @property
    def structures(self) -> list[Atoms]:
        """Those that were picked."""
        return [structure_from_json(one["structure"]) for one in self.picked or []]

    @property
    def good(self) -> list[Atoms]:
        """Labels that did not fail, in the order of the picks, whenever they came."""
        labels = [self.labels[place] for place in sorted(self.labels)]
        return [label.atoms for label in labels if label.atoms is not None]


class History:
    """A run so far.

    Parameters
    ----------
    entries : Iterable[Entry]
        Of its journal.

    Attributes
    ----------
    settings : dict[str, Any] | None
        Of the run; None before its first entry.
    given : list[Atoms]
        Labelled structures that it began with.
    rounds : list[Round]
        Of what was begun twice, after an interruption, the second beginning counts.
    asked : set[str]
        Hashes of the structures that have been labelled, whatever came of it.
    failed : list[Atoms]
        Those whose labels failed.
    ended : str
        Why; "" for a run that has not ended.
    begun : float
        Time of the first entry, seconds since 1970; NaN without any.
    latest : float
        Time of the last one.
    """

    def __init__(self, entries: Iterable[Entry] = ()):
        self.settings: dict[str, Any] | None = None
        self.given: list[Atoms] = []
        self.rounds: list[Round] = []
        self.asked: set[str] = set()
        self.failed: list[Atoms] = []
        self.ended = ""
        self.begun = self.latest = math.nan
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Take the next entry into account.

        Parameters
        ----------
        entry : Entry
            Of the journal; kinds that are not of the loop are passed over.
        """
        kind, content = entry.kind, entry.content
        if entry.time:  # what is in no journal has none
            self.latest = datetime.datetime.fromisoformat(entry.time).timestamp()
            if math.isnan(self.begun):
                self.begun = self.latest
        if kind == "settings":
            self.settings = content
            self.given = [structure_from_json(one) for one in content["given"]]
            self.asked.update(map(structure_hash, self.given))
        elif kind == "ended":
            self.ended = content["why"]
        elif "round" in content:
            self.ended = ""
            mine = self.round(content["round"])
            if kind == "explored":
                mine.explored[content["explorer"]] = content
            elif kind == "picked":
                mine.picked = content["structures"]
            elif kind == "label":
                mine.labels[content["place"]] = label_from_json(content)
                mine.labelled[content["place"]] = self.latest
                mine.entries[content["place"]] = entry.number
                self._asked_for(mine, content)
            elif kind in ("learned", "final", "judged"):
                setattr(mine, kind, content)

    def _asked_for(self, mine: Round, content: dict[str, Any]) -> None:
        """Remember it; on the fly nothing is picked, and nothing offered again."""
        if mine.picked is None:
            return
        atoms = structure_from_json(mine.picked[content["place"]]["structure"])
        self.asked.add(structure_hash(atoms))
        if content["structure"] is None:
            self.failed.append(atoms)

    def round(self, number: int) -> Round:
        """A round, which begins where it is not there yet.

        Parameters
        ----------
        number : int
            From 0.

        Returns
        -------
        Round
            As far as it has come.
        """
        while len(self.rounds) <= number:
            self.rounds.append(Round())
        return self.rounds[number]

    def to_learn(self, number: int) -> list[Atoms]:
        """Labels that a round has brought.

        Parameters
        ----------
        number : int
            Of the round.

        Returns
        -------
        list[Atoms]
            Those that did not fail; in the first round also those that the run began with.
        """
        mine = self.round(number).good
        return mine if number else [*self.given, *mine]

    def doubted(self, number: int) -> dict[int, str]:
        """Labels of a round that did not fail and were not learned.

        Parameters
        ----------
        number : int
            Of the round.

        Returns
        -------
        dict[int, str]
            Why, by place among the picked.
        """
        mine = self.round(number)
        good = [place for place in sorted(mine.labels) if mine.labels[place].atoms is not None]
        n_given = len(self.to_learn(number)) - len(good)
        doubted = [] if mine.learned is None else mine.learned.get("doubted", ())
        return {good[k - n_given]: why for k, why in doubted if k >= n_given}

    @property
    def doubted_entries(self) -> set[int]:
        """Numbers of the journal's entries of labels that did not fail and were not learned."""
        return {
            one.entries[place]
            for number, one in enumerate(self.rounds)
            for place in self.doubted(number)
        }

    @property
    def labels(self) -> list[Label]:
        """All that were asked for and answered, those that failed among them."""
        return [one.labels[k] for one in self.rounds for k in sorted(one.labels)]

    @property
    def seconds(self) -> float:
        """That complete rounds took."""
        return sum(one.judged["seconds"] for one in self.rounds if one.judged is not None)
