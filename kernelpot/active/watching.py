"""Watch a run in the terminal: where it stands, what it does now, and what it needs to stop."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kernelpot.active.history import History
from kernelpot.active.journal import Entry, JournalError, read_entries
from kernelpot.active.standing import Standing, Turn, duration, number, percent, standing

__all__ = ["Watching"]

_ROUNDS = 6
"""Last rounds that are shown, where there is room."""
_OTHER_LINES = 20
"""That the panel has beside them."""


class Watching:
    """Shows a run while it goes on; give it to the learner as ``tell``, in a ``with`` statement.

    In a terminal it is a panel that changes in its place; elsewhere a line is printed for what
    matters: explorations, labels that failed, what was learned, why the run ends.

    Parameters
    ----------
    folder : str | PathLike[str]
        Of the run: what its journal has already is counted.
    console : Console | None
        Where to; None for standard output.

    Examples
    --------
    >>> with Watching("runs/ethanol") as watching:  # doctest: +SKIP
    ...     ActiveLearner(..., folder="runs/ethanol", tell=watching).run()
    """

    def __init__(self, folder: str | PathLike[str], console: Console | None = None):
        self._folder = Path(folder)
        self._console = console or Console(highlight=False)
        self._live: Live | None = None
        self._begin(History())

    def _begin(self, history: History) -> None:
        self._history = history
        self._exploring: dict[str, Any] | None = None
        self._standing = standing(history)
        self._doing = self._standing.doing
        self._since = self._started = time.monotonic()
        self._before = self._standing.seconds

    def __enter__(self) -> Watching:
        """Look at what is there, and begin to show."""
        # A journal that is not there yet, or is damaged: the learner says so.
        with contextlib.suppress(JournalError):
            self._begin(History(read_entries(self._folder)))
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._panel,
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()
        elif self._standing.turns:
            last = self._standing
            self._say(
                f"{self._folder.name}: goes on after {len(last.turns)} rounds, {last.n_labels} of"
                f" {last.most_labels} labels"
            )
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._doing = self._standing.doing
            self._live.stop()
            self._live = None

    def __call__(self, kind: str, content: dict[str, Any]) -> None:
        """Take note of what the loop tells.

        Parameters
        ----------
        kind : str
            Of an entry of the journal, or "exploring" or "learning": what begins.
        content : dict[str, Any]
            Of it.
        """
        self._since = time.monotonic()
        self._exploring = content if kind == "exploring" else None
        if kind == "exploring":
            n = len((self._history.settings or {}).get("explorers", ()))
            place = f" ({content['explorer'] + 1} of {n})" if n > 1 else ""
            title = f"final run {content['final']}, " if content["final"] else "exploring, "
            self._doing = f"{title}{content['name']}{place}"
            self._standing = self._standing._replace(ended="")  # it goes on
        elif kind == "learning":
            self._doing = "learning"
            if self._known(content["round"]):
                self._doing += f" again what the journal has of round {content['round']}"
        else:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            self._history.add(Entry(-1, now, kind, content))
            self._standing = standing(self._history)
            self._doing = self._standing.doing
        if self._live is None:
            for line in _lines(kind, content, self._standing):
                self._say(line)

    def _known(self, round_number: int) -> bool:
        rounds = self._history.rounds
        return round_number < len(rounds) and rounds[round_number].learned is not None

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _panel(self) -> Panel:
        """What is on the screen; drawn anew four times a second, for the clock."""
        now, over = self._standing, time.monotonic()
        seconds = self._before + over - self._started
        doing = self._doing
        if not now.ended:
            doing = f"{doing}, {duration(over - self._since)}"
        if self._exploring is not None:
            doing += _progress(self._exploring, over - self._since)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column()
        grid.add_row("now", Text(f"round {max(len(now.turns) - 1, 0)}: {doing}"))
        labels = Table.grid(padding=(0, 2))
        failed = f", {now.n_failed} failed" if now.n_failed else ""
        bar = ProgressBar(total=max(now.most_labels, 1), completed=now.n_labels, width=30)
        labels.add_row(bar, f"{now.n_labels} of {now.most_labels}{failed}")
        grid.add_row("labels", labels)
        for title, text in _errors(now):
            grid.add_row(title, text)
        grid.add_row("time", _time(now, seconds))
        parts: list[Any] = [grid]
        n_rounds = max(1, min(_ROUNDS, self._console.height - _OTHER_LINES))
        if now.turns:
            parts += ["", _rounds(now.turns[-n_rounds:])]
        if now.criteria:
            parts += ["", _criteria(now)]
        if now.ended:
            parts += ["", Text(f"Ended: {now.ended}", style="bold green")]
        return Panel(Group(*parts), title=Text(self._folder.name), title_align="left")


def _progress(exploring: dict[str, Any], seconds: float) -> str:
    """Steps of an exploration, and how long it takes where nothing ends it before."""
    done, planned = exploring["steps_done"](), exploring["n_steps"]
    if not done:
        return ""
    if not planned:
        return f", {done} structures"
    left = max(planned - done, 0) * seconds / done
    return f", {done} of {planned} steps, {duration(left)} left"


def _errors(now: Standing) -> list[tuple[str, str]]:
    return [
        (
            "new labels",
            f"error {number(now.last('error'))} eV/A before learning, expected"
            f" {number(now.last('expected'))}; of the last 40 structures {percent(now.inside)}"
            " inside 90 % intervals",
        ),
        (
            "explorations",
            f"expected error {number(now.last('sigma'))} eV/A, threshold"
            f" {number(now.last('threshold'))}",
        ),
    ]


def _time(now: Standing, seconds: float) -> str:
    other = max(0.0, seconds - now.labelling)
    return f"{duration(seconds)}: labels {duration(now.labelling)}, all else {duration(other)}"


def _rounds(turns: list[Turn]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    heads = ("round", "labels", "new", "threshold", "explored", "expected", "error", "inside",
             "seconds", "learned")  # fmt: skip
    for head in heads[:-1]:
        table.add_column(head, justify="right", style="dim", no_wrap=True)
    # The last column gives way: rich shortens columns that may wrap before others.
    table.add_column(heads[-1], style="dim")
    for one in turns:
        seconds = one.exploring + one.labelling + one.learning + one.other
        cells = (
            str(one.number), str(one.n_known), _new(one), number(one.threshold), number(one.sigma),
            number(one.expected), number(one.error), percent(one.inside), duration(seconds),
        )  # fmt: skip
        learned = Text(one.learned, no_wrap=True, overflow="ellipsis")
        table.add_row(*map(Text, cells), learned)
    return table


def _new(one: Turn) -> str:
    return f"{one.n_good} of {one.n_good + one.n_failed}" if one.n_failed else f"+{one.n_good}"


def _criteria(now: Standing) -> Table:
    table = Table.grid(padding=(0, 2))
    for one in now.criteria:
        mark = Text("met", style="bold green") if one.met else Text("not yet", style="dim")
        table.add_row(mark, Text(one.name, style="bold"), Text(one.text))
    return table


def _lines(kind: str, content: dict[str, Any], now: Standing) -> list[str]:
    """What is printed of an entry where there is no terminal."""
    if kind == "exploring" and content["final"]:
        n_steps = f", {content['n_steps']} steps" if content["n_steps"] else ""
        name = content["name"]
        return [f"round {content['round']}: final run {content['final']}, {name}{n_steps}"]
    if kind == "ended":
        return [f"ended: {content['why']}"]
    if kind not in ("explored", "picked", "label", "learned", "judged"):
        return []
    where = f"round {content['round']}: "
    one = now.turns[content["round"]]
    if kind == "explored":
        return [
            f"{where}{content['note']}; {content['n_candidates']} candidates, threshold"
            f" {number(content['threshold'])} eV/A, {duration(content['seconds'])}"
        ]
    if kind == "picked":
        n = len(content["structures"])
        return [f"{where}{n or 'no'} structure{'' if n == 1 else 's'} to label"]
    if kind == "label":
        if content["structure"] is not None:
            return []
        return [f"{where}a label failed after {duration(content['seconds'])}: {content['reason']}"]
    if kind == "learned":
        if not one.n_good:
            return []
        surprise = ""
        if math.isfinite(one.error):
            surprise = (
                f"; error {number(one.error)} eV/A before, expected {number(one.expected)},"
                f" {percent(one.inside)} inside 90 % intervals"
            )
        return [
            f"{where}learned {one.n_good} label{'' if one.n_good == 1 else 's'} ({one.learned}) in"
            f" {duration(content['seconds'])}{surprise}"
        ]
    return [f"{where}{now.n_labels} of {now.most_labels} labels, {content['why']}"]
