"""A run in the terminal: a panel or lines; and a real run that is watched."""

from __future__ import annotations

import io
import re
import time

import pytest
from ase.calculators.emt import EMT
from rich.console import Console

from kernelpot import KernelPotential, Soap
from kernelpot.active.explorers.static import Rattle
from kernelpot.active.journal import Journal, read_entries
from kernelpot.active.learner import ActiveLearner
from kernelpot.active.page import page_of
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.watching import Watching
from tests.active_journals import (
    COPPER,
    SCRIPT,
    check_page,
    refreshes,
    two_rounds,
)  # fmt: skip

# ------------------------------------------------------------------------------ the terminal


def test_lines_say_what_matters_and_nothing_twice():
    out = io.StringIO()
    watching = Watching("run", Console(file=out, width=80, force_terminal=False))
    for kind, content, _ in two_rounds():
        watching(kind, content)
    watching("exploring", exploring(2, "a"))
    watching("exploring", exploring(2, "a", final="1 of 2", n_steps=900))
    assert out.getvalue().splitlines() == [
        "round 0: 3 structures to label",
        "round 0: a label failed after 1 s: SCF " + SCRIPT,
        "round 0: learned 2 labels (fit: 2 new) in 0.5 s",
        "round 0: 3 of 10 labels, not yet",
        "round 1: dynamics; 5 candidates, threshold 0.2 eV/A, 3 s",
        "round 1: 2 structures to label",
        "round 1: learned 2 labels (update: 2 new) in 0.5 s; error 0.354 eV/A before, expected"
        " 0.255, 90 % inside 90 % intervals",
        "round 1: 5 of 10 labels, enough " + SCRIPT,
        "ended: enough " + SCRIPT,
        "round 2: final run 1 of 2, a, 900 steps",
    ]


def exploring(number, name, final="", n_steps=0, done=0):
    return {"round": number, "explorer": 0, "name": name, "final": final, "n_steps": n_steps,
            "steps_done": lambda: done}  # fmt: skip


def panel(watching, width=100):
    screen = Console(file=io.StringIO(), width=width)
    screen.print(watching._panel())
    return screen.file.getvalue()


def test_panel_shows_what_begins_too():
    watching = Watching("run", Console(file=io.StringIO()))
    for kind, content, _ in two_rounds()[:9]:
        watching(kind, content)
    watching("exploring", exploring(1, SCRIPT))
    assert "round 1: exploring, " + SCRIPT in panel(watching)
    watching("exploring", exploring(1, "a", final="2 of 3"))
    assert "round 1: final run 2 of 3, a" in panel(watching)
    watching("learning", {"round": 1})
    assert "round 1: learning, " in panel(watching)
    watching("learning", {"round": 0})
    assert "learning again what the journal has of round 0" in panel(watching)


def test_panel_shows_how_far_an_exploration_has_come(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watching = Watching("run", Console(file=io.StringIO()))
    for kind, content, _ in two_rounds()[:9]:
        watching(kind, content)
    watching("exploring", exploring(1, "a", n_steps=400, done=0))
    now += 60.0
    assert "left" not in panel(watching)
    watching("exploring", exploring(1, "a", n_steps=400, done=100))
    now += 60.0
    assert "a, 60 s, 100 of 400 steps, 3 min left" in panel(watching)
    watching("exploring", exploring(1, "a", done=7))
    assert ", 7 structures" in panel(watching)
    watching("learning", {"round": 1})
    assert "7 structures" not in panel(watching)


def test_panel_shows_errors_criteria_and_time():
    watching = Watching("run", Console(file=io.StringIO()))
    for kind, content, _ in two_rounds():
        watching(kind, content)
    text = panel(watching, 130)
    assert "error 0.354 eV/A before learning, expected 0.255; of the last 40" in text
    assert "of the last 40 structures 90 % inside 90 % intervals" in text
    assert "expected error 0.2 eV/A, threshold 0.2" in text
    assert "5 of 10, 1 failed" in text
    assert re.search(r"met +plateau +enough", text)
    assert "Ended: enough" in text


@pytest.mark.parametrize("width", [80, 110, 200])
def test_long_words_cost_no_numbers(width):
    # The sentence of why a fit was due took the place of the errors beside it.
    watching = Watching("run", Console(file=io.StringIO()))
    contents = two_rounds()
    contents[11][1]["why"] = "13 structures, 6 at the last fit to all " + "and more " * 20
    for kind, content, _ in contents:
        watching(kind, content)
    rows = [line.strip("│ ").split() for line in panel(watching, width).splitlines()]
    row = next(row for row in rows if row[:2] == ["1", "3"])
    assert row[2:11] == ["+2", "0.2", "0.2", "0.255", "0.354", "90", "%", "10", "s"]


def test_watching_begins_with_what_the_journal_has(tmp_path):
    with Journal(tmp_path / "run", create=True) as journal:
        for kind, content, _ in two_rounds()[:-1]:
            journal.append(kind, content)
    out = io.StringIO()
    with Watching(tmp_path / "run", Console(file=out)) as watching:
        text = panel(watching)
        assert "5 of 10, 1 failed" in text
        # Two rounds of ten seconds each took so long before.
        assert "time          20 s: labels" in text
        watching("ended", {"why": "the user said so"})
    assert (
        out.getvalue() == "run: goes on after 2 rounds, 5 of 10 labels\nended: the user said so\n"
    )


def test_terminal_has_a_panel_and_no_lines(tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=90, height=40, force_terminal=True, color_system=None)
    with Watching(tmp_path / "run", console) as watching:
        for kind, content, _ in two_rounds():
            watching(kind, content)
    text = out.getvalue()
    assert "a label failed" not in text
    last = text[text.rindex("╭") :]
    assert "Ended: enough" in last
    assert re.search(r"round 1: ended", last)
    assert text.endswith("\x1b[?25h")  # the cursor is back


# ------------------------------------------------------------------------------ a run


def learner(folder, tell, most_labels):
    chosen = LearnerSettings(
        tolerance=0.02, batch=2, n_initial=3, displacement=0.03, most_labels=most_labels,
        n_looked=3, final_steps=0,
    )  # fmt: skip
    model = KernelPotential(Soap(cutoff=4.0, n_max=3, l_max=2), n_environments=8, n_tangents=3)
    explorers = [Rattle(displacement=0.3, n=4)]  # far from what the first round has
    return ActiveLearner(model, EMT, COPPER, explorers, folder, settings=chosen, tell=tell)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """Six labels and two rounds of copper, with what was told and printed."""
    folder = tmp_path_factory.mktemp("runs") / "copper"
    told, pages, out = [], [], io.StringIO()
    with Watching(folder, Console(file=out)) as watching:

        def tell(kind, content):
            watching(kind, content)
            told.append(kind)
            pages.append((kind, (folder / "run.html").exists()))

        outcome = learner(folder, tell, 6).run()
    return folder, told, out.getvalue(), outcome


def test_run_tells_what_begins_before_what_is_done(a_run):
    folder, told, _, _ = a_run
    assert [kind for kind in told if not kind.endswith("ing")] == [
        entry.kind for entry in read_entries(folder) if entry.kind != "journal"
    ]
    assert told[told.index("explored") - 1] == "exploring"
    assert all(told[k - 1] == "learning" for k, kind in enumerate(told) if kind == "learned")


def test_run_prints_a_line_for_what_matters(a_run):
    _, _, printed, outcome = a_run
    assert printed.splitlines()[0] == "round 0: 4 structures to label"
    assert printed.splitlines()[-1] == f"ended: {outcome.why}"
    assert re.search(r"^round 1: learned 2 labels \(.*inside 90 % intervals$", printed, re.M)


def test_run_leaves_its_page(a_run):
    folder, _, _, outcome = a_run
    text = (folder / "run.html").read_text("utf-8")
    page = check_page(text)
    assert not refreshes(page)
    assert f"Ended: {outcome.why}" in page.text
    assert "6 of 6" in page.text
    # The journal alone makes the same page.
    assert page_of(folder).read_text("utf-8") == text


def test_run_goes_on_without_its_page_and_is_watched_from_where_it_was(a_run, caplog):
    folder, _, _, _ = a_run
    (folder / "run.html").unlink()
    (folder / "run.html").mkdir()  # where nothing can be written
    out = io.StringIO()
    with Watching(folder, Console(file=out)) as watching:
        outcome = learner(folder, watching, 7).run(resume=True)
    assert outcome.n_labels == 7
    assert "the page of the run could not be written" in caplog.text
    lines = out.getvalue().splitlines()
    assert lines[0] == "copper: goes on after 2 rounds, 6 of 6 labels"
    assert lines[-2].startswith("round 2: 7 of 7 labels, ")
