"""Where a run stands, in numbers that people look at; all from its history."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from kernelpot.active.history import History, Round
from kernelpot.active.records import Label
from kernelpot.active.stopping import Criterion

__all__ = ["Acquired", "Standing", "Turn", "duration", "number", "percent", "standing"]


class Acquired(NamedTuple):
    """A structure that was chosen, and what became of it."""

    number: int  # from 1, in the order chosen
    round: int
    pick: dict[str, Any]  # as the journal has it: structure, origin, reason, score, information
    label: Label | None  # None while it is to come
    n_known: int  # labels that the model knew when it was chosen
    error: float  # of its forces before they were learned, eV/angstrom; NaN where nothing was said
    expected: float  # eV/angstrom
    inside: float  # share of its forces within their 90 % intervals
    doubted: str  # why its label was not learned though it did not fail; "" where it was


class Turn(NamedTuple):
    """A round in numbers, NaN for what is not known."""

    number: int
    n_known: int  # labels that the model knew at its beginning
    n_good: int  # new labels
    n_failed: int
    n_steps: int
    n_candidates: int
    threshold: float  # eV/angstrom
    sigma: float  # expected on explorations: median over frames of the largest, eV/angstrom
    error: float  # of the new labels before they were learned, root mean square, eV/angstrom
    expected: float  # of them, eV/angstrom
    inside: float  # mean share within 90 % intervals
    learned: str  # how, and why
    exploring: float  # seconds
    labelling: float  # seconds in which a label at least was computed
    learning: float  # seconds
    other: float  # seconds: choosing, judging, final runs


class Standing(NamedTuple):
    """A run at one moment."""

    doing: str
    turns: list[Turn]
    acquired: list[Acquired]
    n_labels: int  # asked for and answered
    n_failed: int
    most_labels: int
    criteria: list[Criterion]  # as judged last
    ended: str  # why; "" where it has not
    begun: float  # seconds since 1970, or NaN
    latest: float  # time of the last entry

    @property
    def seconds(self) -> float:
        """That the run has worked, as far as is known."""
        return sum(one.exploring + one.labelling + one.learning + one.other for one in self.turns)

    @property
    def labelling(self) -> float:
        """Seconds of these in which labels were computed."""
        return sum(one.labelling for one in self.turns)

    @property
    def inside(self) -> float:
        """Share of forces within 90 % intervals, mean of the last 40 structures with one."""
        known = [one.inside for one in self.acquired if math.isfinite(one.inside)]
        return _mean(known[-40:])

    def last(self, name: str) -> float:
        """The last value of a number of the rounds that is known.

        Parameters
        ----------
        name : str
            Of the field of `Turn`.

        Returns
        -------
        float
            NaN where there is none.
        """
        known = (float(getattr(one, name)) for one in reversed(self.turns))
        return next((value for value in known if math.isfinite(value)), math.nan)


def standing(history: History) -> Standing:
    """Where a run stands.

    Parameters
    ----------
    history : History
        Of the run, as far as it has come.

    Returns
    -------
    Standing
        Of a run without a single entry, too.
    """
    turns: list[Turn] = []
    acquired: list[Acquired] = []
    criteria: list[Criterion] = []
    n_known = 0
    for place, one in enumerate(history.rounds):
        found = _acquired(place, one, len(acquired), n_known, history.doubted(place))
        turns.append(_turn(place, one, found, n_known))
        acquired += found
        n_known += len(history.to_learn(place))
        n_known -= len([] if one.learned is None else one.learned.get("doubted", ()))
        if one.judged is not None:
            criteria = [Criterion(**it) for it in one.judged["criteria"]]
    answered = [one.label for one in acquired if one.label is not None]
    return Standing(
        doing=_doing(history),
        turns=turns,
        acquired=acquired,
        n_labels=len(answered),
        n_failed=sum(one.atoms is None for one in answered),
        most_labels=0 if history.settings is None else int(history.settings["most_labels"]),
        criteria=criteria,
        ended=history.ended,
        begun=history.begun,
        latest=history.latest,
    )


def number(value: float) -> str:
    """A number for people.

    Parameters
    ----------
    value : float
        Any.

    Returns
    -------
    str
        Three digits; a dash for what is not known.
    """
    return f"{value:.3g}" if math.isfinite(value) else "-"


def percent(value: float) -> str:
    """A share for people.

    Parameters
    ----------
    value : float
        Between 0 and 1.

    Returns
    -------
    str
        Per cent; a dash for what is not known.
    """
    return f"{100.0 * value:.0f} %" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """A time for people.

    Parameters
    ----------
    seconds : float
        Any.

    Returns
    -------
    str
        From milliseconds to hours; a dash for what is not known.
    """
    if not math.isfinite(seconds):
        return "-"
    if seconds < 0.1:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 10.0:
        return f"{seconds:.2g} s"
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 6000.0 else f"{seconds / 3600.0:.1f} h"


def _acquired(
    round_number: int, one: Round, n_before: int, n_known: int, doubted: dict[int, str]
) -> list[Acquired]:
    """Surprises are of the labels that did not fail, in the order of the picks."""
    good = [place for place in sorted(one.labels) if one.labels[place].atoms is not None]
    surprises = [] if one.learned is None else one.learned["surprises"]
    of_place = dict(zip(good, surprises, strict=False))
    nothing = {"error": math.nan, "expected": math.nan, "inside": math.nan}
    found = []
    for place, pick in enumerate(one.picked or []):
        surprise = of_place.get(place, nothing)
        error, expected, inside = (float(surprise[name]) for name in nothing)
        label = one.labels.get(place)
        count = n_before + place + 1
        doubt = doubted.get(place, "")
        found.append(
            Acquired(count, round_number, pick, label, n_known, error, expected, inside, doubt)
        )
    return found


def _turn(round_number: int, one: Round, found: list[Acquired], n_known: int) -> Turn:
    explored = list(one.explored.values())
    learned = one.learned or {"how": "", "why": "", "seconds": 0.0}
    exploring = sum(it["seconds"] for it in explored)
    labelling = _covered(
        (one.labelled[place] - label.seconds, one.labelled[place])
        for place, label in one.labels.items()
    )
    # After an interruption a round's seconds are those since it went on.
    whole = 0.0 if one.judged is None else one.judged["seconds"]
    n_good = len(one.good)
    return Turn(
        number=round_number,
        n_known=n_known,
        n_good=n_good,
        n_failed=len(one.labels) - n_good,
        n_steps=sum(it["n_steps"] for it in explored),
        n_candidates=sum(it["n_candidates"] for it in explored),
        threshold=explored[-1]["threshold"] if explored else math.nan,
        sigma=_median([sigma for it in explored for sigma in it["sigma"]]),
        error=_rms([it.error for it in found]),
        expected=_rms([it.expected for it in found]),
        inside=_mean([it.inside for it in found]),
        learned=_how(learned),
        exploring=exploring,
        labelling=labelling,
        learning=learned["seconds"],
        other=max(0.0, whole - exploring - labelling - learned["seconds"]),
    )


def _how(learned: dict[str, Any]) -> str:
    """In words; journals of earlier versions say nothing of what was maintained."""
    parts = [f"{learned['how']}: {learned['why']}"] if learned["how"] else []
    return "; ".join([*parts, *filter(None, [learned.get("maintained")])])


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: labels that are computed at once count once."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _doing(history: History) -> str:
    """What comes after the last entry, in words."""
    if history.settings is None:
        return "not begun"
    if history.ended:
        return "ended"
    n_explorers = len(history.settings["explorers"])
    one = history.rounds[-1] if history.rounds else Round()
    if one.judged is not None:
        if one.judged["stop"]:
            return "ending"
        one = Round(explored={})
    elif len(history.rounds) <= 1 and one.picked is None:
        return "making the first structures"
    if one.picked is None:
        n = len(one.explored)
        return f"exploring, {n + 1} of {n_explorers}" if n < n_explorers else "choosing"
    if len(one.labels) < len(one.picked):
        return f"labelling, {len(one.labels)} of {len(one.picked)} done"
    return "learning" if one.learned is None else "judging"


def _finite(values: list[float]) -> np.ndarray:
    array = np.array(values, dtype=float)
    return array[np.isfinite(array)]


def _mean(values: list[float]) -> float:
    known = _finite(values)
    return float(known.mean()) if known.size else math.nan


def _median(values: list[float]) -> float:
    known = _finite(values)
    return float(np.median(known)) if known.size else math.nan


def _rms(values: list[float]) -> float:
    known = _finite(values)
    largest = float(known.max(initial=0.0))  # errors of an exploded structure must not overflow
    return largest * math.sqrt(_mean([*((known / largest) ** 2)])) if largest else _mean(values)
