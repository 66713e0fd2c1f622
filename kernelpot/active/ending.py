"""Whether a run is at its end: criteria that are met together, or a budget that is used up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kernelpot.active.history import History
from kernelpot.active.judging import coverage_of, criteria_of, n_calm
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.stopping import (
    Criterion,
    Decision,
    combine,
    label_budget,
    patience,
    time_budget,
)

__all__ = ["Ending"]

_PATIENCE = 15
"""Rounds without a label, after as many as make a plateau, in which nothing else has come of them:
explorations, final runs and observables have been given all their doublings by then."""


class Ending:
    """The last word on the rounds of a run.

    Parameters
    ----------
    settings : LearnerSettings
        Of the run.
    history : History
        What has happened; it grows.
    observed : Mapping[int, str]
        Names of the explorers over which an observable is averaged, by their places.
    """

    def __init__(self, settings: LearnerSettings, history: History, observed: Mapping[int, str]):
        self._settings, self._history, self._observed = settings, history, observed

    def judge(
        self, number: int, seconds: float, final_run: Callable[[int], dict[str, Any]]
    ) -> Decision:
        """Of a round whose labels are learned.

        Parameters
        ----------
        number : int
            Of the round.
        seconds : float
            Since it began, where the journal does not have them yet.
        final_run : Callable[[int], dict[str, Any]]
            Called with the number of the round where all other criteria are met, and there was no
            final run yet; returns what the journal has of it.

        Returns
        -------
        Decision
            With all criteria.
        """
        rounds = self._history.rounds[: number + 1]
        criteria = criteria_of(rounds, self._settings, self._observed)
        if self._settings.final_steps:
            final = rounds[number].final
            if final is None and all(one.met for one in criteria):
                final = final_run(number)
            criteria.append(coverage_of(final, self._settings))
        return combine(criteria, self._budgets(number, seconds))

    def spent_before(self, number: int) -> bool:
        """Whether a budget is used up before a round begins: one that was lowered since.

        Parameters
        ----------
        number : int
            Of the round.

        Returns
        -------
        bool
            False where it has begun.
        """
        rounds = self._history.rounds
        begun = number < len(rounds) and rounds[number].picked is not None
        return number > 0 and not begun and any(one.met for one in self._budgets(number - 1, 0.0))

    def out_of_time(self) -> Decision:
        """In the middle of an exploration; what it has met is lost.

        Returns
        -------
        Decision
            With the criteria of the rounds before.
        """
        rounds = [one for one in self._history.rounds if one.learned is not None]
        criteria = criteria_of(rounds, self._settings, self._observed)
        if self._settings.final_steps:
            criteria.append(coverage_of(None, self._settings))
        most = self._settings.most_seconds
        return combine(criteria, [time_budget(most, most)])

    def _budgets(self, number: int, seconds: float) -> list[Criterion]:
        settings = self._settings
        calm = n_calm(self._history.rounds[: number + 1])
        return [
            label_budget(len(self._history.labels), settings.most_labels),
            time_budget(self._history.seconds + seconds, settings.most_seconds),
            patience(calm, settings.plateau_rounds + _PATIENCE),
        ]
