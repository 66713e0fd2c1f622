"""What the journal of a run says: its rounds as far as they have come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ase import Atoms

from kernelpot.active.journal import Entry
from kernelpot.active.records import Label
from kernelpot.active.structure_json import label_from_json, structure_from_json

__all__ = ["History", "Round", "history_of"]


class Round(NamedTuple):
    """One turn of the loop; None for what has not come to pass yet."""

    explored: dict[int, dict[str, Any]]  # by explorer
    picked: list[dict[str, Any]] | None
    labels: dict[int, Label]  # by place among the picked
    learned: dict[str, Any] | None
    final: dict[str, Any] | None  # the long run after it, where there was one
    judged: dict[str, Any] | None

    @property
    def structures(self) -> list[Atoms]:
        """Those that were picked."""
        return [structure_from_json(one["structure"]) for one in self.picked or []]

    @property
    def good(self) -> list[Atoms]:
        """Labels that did not fail, in the order of the picks, whenever they came."""
        labels = [self.labels[place] for place in sorted(self.labels)]
        return [label.atoms for label in labels if label.atoms is not None]


class History(NamedTuple):
    """A run so far."""

    settings: dict[str, Any] | None
    rounds: list[Round]
    ended: str  # why; "" for a run that has not ended

    @property
    def n_labels(self) -> int:
        """Labels asked for and answered, those that failed among them."""
        return sum(len(one.labels) for one in self.rounds)

    @property
    def seconds(self) -> float:
        """That complete rounds took."""
        return sum(one.judged["seconds"] for one in self.rounds if one.judged is not None)


def history_of(entries: Iterable[Entry]) -> History:
    """Read a run.

    Parameters
    ----------
    entries : Iterable[Entry]
        Of its journal.

    Returns
    -------
    History
        Of what was begun twice, after an interruption, the second beginning counts.
    """
    settings: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = []
    ended = ""
    for entry in entries:
        content = entry.content
        if entry.kind == "settings":
            settings = content
        elif entry.kind == "ended":
            ended = content["why"]
        elif "round" in content:
            while len(rounds) <= content["round"]:
                rounds.append(
                    {"explored": {}, "picked": None, "labels": {}, "learned": None, "final": None,
                     "judged": None}
                )  # fmt: skip
            mine = rounds[content["round"]]
            if entry.kind == "explored":
                mine["explored"][content["explorer"]] = content
            elif entry.kind == "picked":
                mine["picked"] = content["structures"]
            elif entry.kind == "label":
                mine["labels"][content["place"]] = label_from_json(content)
            elif entry.kind in ("learned", "final", "judged"):
                mine[entry.kind] = content
                ended = ""
    return History(settings, [Round(**one) for one in rounds], ended)
