"""What people see of a run: the panel or the lines of the terminal, the page of the browser."""

from __future__ import annotations

import datetime
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kernelpot import KernelPotential, Soap
from kernelpot.active.explorers.static import Rattle
from kernelpot.active.history import History
from kernelpot.active.journal import Entry, Journal, JournalError, read_entries
from kernelpot.active.learner import ActiveLearner
from kernelpot.active.page import html_of, page_of
from kernelpot.active.pictures import picture
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.standing import duration, standing
from kernelpot.active.structure_json import structure_to_json
from kernelpot.active.watching import Watching

SCRIPT = "<script>alert('x')</script> & [red]\"quoted\"[/red]"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page, refused where a tag is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def check_page(text):
    """One file that loads nothing and runs nothing."""
    page = Page(text)
    assert "script" not in page.tags
    assert not {"src", "href", "onload"} & {name for name, _ in page.attributes}
    assert "url(" not in text
    assert not re.search(r'(?:cx|cy|r|x|y|width|height|d)="[^"]*(?:nan|inf)', text)
    return page


def refreshes(page):
    return ("http-equiv", "refresh") in page.attributes


def entries_of(contents, start=0.0, step=1.0):
    """Entries as they come from a file; a third number is the time."""
    made = []
    for k, (kind, content, *when) in enumerate(contents):
        seconds = when[0] if when else start + k * step
        stamp = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat()
        made.append(Entry(k, stamp, kind, json.loads(json.dumps(content))))
    return made


ETHANOL, COPPER = molecule("CH3CH2OH"), bulk("Cu", cubic=True)


def pick(atoms=ETHANOL, origin="dynamics at 600 K", reason="novelty", score=1.5, information=2.0):
    return {
        "structure": structure_to_json(atoms), "origin": origin, "step": 12, "reason": reason,
        "score": score, "information": information,
    }  # fmt: skip


def label(round_number, place, seconds=1.0, reason="", atoms=ETHANOL):
    structure = None if reason else structure_to_json(atoms)
    return {
        "round": round_number, "place": place, "structure": structure, "reason": reason,
        "seconds": seconds,
    }  # fmt: skip


def explored(round_number, explorer=0, name="dynamics", **more):
    return {
        "round": round_number, "explorer": explorer, "name": name, "threshold": 0.2,
        "seconds": 3.0, "n_steps": 100, "finished": True, "note": name, "last": None,
        "n_candidates": 5, "sigma": [0.1, 0.3, 0.2], "observable": None,
    } | more  # fmt: skip


def surprise(error, expected, inside):
    return {
        "error": error, "expected": expected, "inside": inside, "energy_error": 0.0,
        "energy_expected": 0.0,
    }  # fmt: skip


def learned(round_number, surprises=(), why="2 new", how="update"):
    return {
        "round": round_number, "how": how, "why": why, "surprises": list(surprises),
        "seconds": 0.5, "fingerprint": "0",
    }  # fmt: skip


def judged(round_number, stop=False, seconds=10.0, text="not yet", value=math.nan):
    one = {"name": "plateau", "met": stop, "value": value, "target": 0.1, "text": text}
    return {
        "round": round_number, "stop": stop, "why": text, "criteria": [one], "seconds": seconds,
    }  # fmt: skip


def run_settings(most_labels=10, explorers=("a",), given=()):
    images = [structure_to_json(atoms) for atoms in given]
    return {"most_labels": most_labels, "explorers": list(explorers), "given": images}


def two_rounds():
    return [
        ("settings", run_settings(given=[ETHANOL]), 0.0),
        ("picked", {"round": 0, "structures": [pick(), pick(), pick()]}, 0.0),
        # At once from 0 to 4 and from 1 to 5, and one from 6 to 7 that fails: six seconds.
        ("label", label(0, 1, 4.0), 4.0),
        ("label", label(0, 0, 4.0), 5.0),
        ("label", label(0, 2, 1.0, reason="SCF " + SCRIPT), 7.0),
        ("learned", learned(0, how="fit"), 8.0),
        ("judged", judged(0), 9.0),
        ("explored", explored(1), 12.0),
        ("picked", {"round": 1, "structures": [pick(), pick(reason=SCRIPT, origin=SCRIPT)]}, 13.0),
        ("label", label(1, 0, 2.0), 15.0),
        ("label", label(1, 1, 2.0), 17.0),
        ("learned", learned(1, [surprise(0.3, 0.2, 0.8), surprise(0.4, 0.3, 1.0)]), 18.0),
        ("judged", judged(1, True, text="enough " + SCRIPT, value=0.01), 19.0),
        ("ended", {"why": "enough " + SCRIPT}, 20.0),
    ]


# ------------------------------------------------------------------------------ numbers


def test_standing_counts_what_was_done():
    now = standing(History(entries_of(two_rounds())))
    assert (now.n_labels, now.n_failed, now.most_labels) == (5, 1, 10)
    first, second = now.turns
    # The first model has two labels and one structure that was given.
    assert (first.n_known, second.n_known) == (0, 3)
    assert (first.n_good, first.n_failed, second.n_good) == (2, 1, 2)
    assert math.isnan(first.error)
    assert math.isnan(first.sigma)
    assert second.error == pytest.approx(math.sqrt((0.09 + 0.16) / 2), rel=1e-12)
    assert second.expected == pytest.approx(math.sqrt((0.04 + 0.09) / 2), rel=1e-12)
    assert second.inside == now.inside == pytest.approx(0.9)
    assert second.sigma == 0.2
    assert now.last("threshold") == 0.2
    assert [one.number for one in now.acquired] == [1, 2, 3, 4, 5]
    assert [one.n_known for one in now.acquired] == [0, 0, 0, 3, 3]
    assert [one.error for one in now.acquired[3:]] == [0.3, 0.4]
    assert (now.begun, now.latest) == (0.0, 20.0)
    assert now.ended.startswith("enough")


def test_labels_computed_at_once_count_once():
    first, second = standing(History(entries_of(two_rounds()))).turns
    assert first.labelling == pytest.approx(6.0)
    assert second.labelling == pytest.approx(4.0)
    assert first.other == pytest.approx(10.0 - 6.0 - 0.5)
    assert second.other == pytest.approx(10.0 - 3.0 - 4.0 - 0.5)


def test_surprises_are_of_the_labels_that_did_not_fail():
    contents = [
        ("settings", run_settings()),
        ("picked", {"round": 0, "structures": [pick(), pick(), pick()]}),
        ("label", label(0, 0)),
        ("label", label(0, 1, reason="no")),
        ("label", label(0, 2)),
        ("learned", learned(0, [surprise(0.1, 0.1, 0.9), surprise(0.2, 0.1, 0.9)])),
    ]
    errors = [one.error for one in standing(History(entries_of(contents))).acquired]
    assert errors[0] == 0.1
    assert math.isnan(errors[1])
    assert errors[2] == 0.2


def test_what_is_done_now_follows_from_the_journal():
    doing = []
    contents = two_rounds()
    for k in range(len(contents) + 1):
        doing.append(standing(History(entries_of(contents[:k]))).doing)
    assert doing == [
        "not begun", "making the first structures", "labelling, 0 of 3 done",
        "labelling, 1 of 3 done", "labelling, 2 of 3 done", "learning", "judging",
        "exploring, 1 of 1", "choosing", "labelling, 0 of 2 done", "labelling, 1 of 2 done",
        "learning", "judging", "ending", "ended",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.0123, "12 ms"), (1.234, "1.2 s"), (64.2, "64 s"), (600.0, "10 min"),
     (7200.0, "2.0 h"), (math.inf, "-"), (math.nan, "-")],
)  # fmt: skip
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


# ------------------------------------------------------------------------------ the page


def test_page_says_where_the_run_is_and_escapes_what_it_is_given():
    contents = two_rounds()
    page = check_page(html_of("run " + SCRIPT, History(entries_of(contents))))
    assert not refreshes(page)
    for text in ("run " + SCRIPT, "Ended: enough " + SCRIPT, "failed: SCF " + SCRIPT, "5 of 10"):
        assert text in page.text, text
    assert "in 2 rounds, 1 failed" in page.text
    assert page.text.count("✓") == 1
    assert page.tags.count("svg") == 4 + 5
    # Two structures were predicted, and have a dot with their numbers.
    assert "label 4: expected 0.2, true 0.3 eV/A" in page.text
    assert "label 5: expected 0.3, true 0.4 eV/A" in page.text


def test_page_of_a_run_that_goes_on_loads_itself_again():
    contents = two_rounds()[:-1]
    assert refreshes(check_page(html_of("a", History(entries_of(contents)))))


def test_page_of_nothing_waits():
    page = check_page(html_of("a", History()))
    assert refreshes(page)
    assert "not begun" in page.text


def test_newest_structures_come_first():
    text = html_of("a", History(entries_of(two_rounds())))
    assert re.findall(r"<p><b>(\d)</b>", text) == ["5", "4", "3", "2", "1"]
    assert re.findall(r"<tr><td>(\d)</td>", text) == ["5", "4", "3", "2", "1", "1", "0"]


def test_thousands_of_labels_make_no_huge_page():
    contents = [("settings", run_settings(most_labels=4000))]
    bare = pick()
    for k in range(500):
        contents += [
            ("explored", explored(k)),
            ("picked", {"round": k, "structures": [bare] * 6}),
            *(("label", label(k, place)) for place in range(6)),
            ("learned", learned(k, [surprise(0.1 + 0.01 * k, 0.2, 0.9)] * 6)),
            ("judged", judged(k)),
        ]
    text = html_of("a", History(entries_of(contents)))
    page = check_page(text)
    assert len(text) < 500_000
    assert page.tags.count("svg") == 4 + 48
    # Structures, rounds, their two heads and the criterion.
    assert page.tags.count("tr") == 200 + 200 + 2 + 1
    # Every structure has its place in the figures: of the first ones, too.
    assert text.count("h0") >= 3 * 3000 - 200 - 200


def test_page_is_made_while_another_writes(tmp_path):
    with Journal(tmp_path / SCRIPT.replace("/", ""), create=True) as journal:
        for kind, content, _ in two_rounds()[:4]:
            journal.append(kind, content)
            path = page_of(journal.folder)
            check_page(path.read_text("utf-8"))
        with open(journal.folder / "journal.jsonl", "ab") as file:
            file.write(b'{"number":5,"time":"2026')  # an entry that is being written
        page = check_page(page_of(journal.folder).read_text("utf-8"))
        assert path == journal.folder / "run.html"
        assert "labelling, 2 of 3 done" in page.text
        assert sorted(one.name for one in journal.folder.iterdir()) == [
            "journal.jsonl", "journal.lock", "run.html",
        ]  # fmt: skip


def test_page_needs_a_run(tmp_path):
    with pytest.raises(JournalError, match="There is no run"):
        page_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ pictures


def test_picture_has_a_circle_for_each_atom_within_its_frame():
    for atoms in (ETHANOL, COPPER, COPPER * 3, molecule("H2O"), molecule("H")):
        text = picture(atoms)
        circles = re.findall(r'cx="([-.\d]+)" cy="([-.\d]+)" r="([-.\d]+)"', text)
        assert len(circles) == len(atoms)
        for circle in circles:
            x, y, r = map(float, circle)
            assert r > 0.0
            assert r - 0.2 <= x <= 120.2 - r
            assert r - 0.2 <= y <= 120.2 - r


def test_picture_of_many_atoms_shows_those_in_front():
    text = picture(COPPER * 8)
    assert 100 <= text.count("<circle") < 200


def test_picture_does_not_depend_on_how_a_molecule_lies():
    turned = ETHANOL.copy()
    turned.rotate(40.0, (1, 2, 3))
    turned.translate([5.0, -3.0, 1.0])
    places = [
        sorted(map(float, re.findall(r'cx="([-.\d]+)"', picture(one)))) for one in (ETHANOL, turned)
    ]
    np.testing.assert_allclose(*places, atol=0.2)


def test_picture_of_atoms_that_are_nowhere_is_empty():
    atoms = ETHANOL.copy()
    atoms.positions[2, 0] = np.nan
    assert "circle" not in picture(atoms)
    assert "circle" not in picture(atoms[:0])


# ------------------------------------------------------------------------------ any journal

words = st.one_of(st.just(SCRIPT), st.text(max_size=12))
numbers = st.one_of(st.floats(), st.floats(1e-4, 10.0), st.just(math.nan), st.just(0.0))
errors = st.one_of(st.floats(0.0), st.floats(1e-4, 10.0), st.just(math.nan))
shares = st.one_of(st.floats(0.0, 1.0), st.just(math.nan))
times = st.floats(0.0, 1e6)
structures = st.sampled_from([ETHANOL, COPPER, molecule("H")])


@st.composite
def journals(draw):
    """The entries of a run that was looked at, or killed, at any of them."""
    n_explorers = draw(st.integers(1, 2))
    contents = [("settings", run_settings(draw(st.integers(1, 9)), ["a"] * n_explorers))]
    for k in range(draw(st.integers(0, 4))):
        for e in range(n_explorers if k else 0):
            contents.append(("explored", explored(
                k, e, draw(words), threshold=draw(numbers), seconds=draw(times),
                sigma=draw(st.lists(numbers, max_size=3)),
            )))  # fmt: skip
        picks = [
            pick(draw(structures), draw(words), draw(words), draw(numbers), draw(numbers))
            for _ in range(draw(st.integers(0, 3)))
        ]
        contents.append(("picked", {"round": k, "structures": picks}))
        reasons = [draw(st.one_of(st.just(""), words)) for _ in picks]
        for place in draw(st.permutations(range(len(picks)))):
            contents.append(("label", label(k, place, draw(times), reasons[place])))
        n_good = reasons.count("") if k else 0
        surprises = [
            surprise(draw(errors), draw(errors), draw(shares)) for _ in range(n_good)
        ]  # fmt: skip
        contents.append(("learned", learned(k, surprises, draw(words))))
        contents.append(
            ("judged", judged(k, draw(st.booleans()), draw(times), draw(words), draw(numbers)))
        )
    if len(contents) > 1 and draw(st.booleans()):
        contents.append(("ended", {"why": draw(words)}))
    return contents[: draw(st.integers(0, len(contents)))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(journals(), words)
def test_every_journal_has_a_page_and_a_panel(contents, name):
    history = History(entries_of(contents))
    check_page(html_of(name, history))
    out = io.StringIO()
    watching = Watching("no folder", Console(file=out, width=100))
    for kind, content in contents:
        watching(kind, content)
    screen = Console(file=io.StringIO(), width=100)
    screen.print(watching._panel())
    n_labels = standing(history).n_labels
    if history.settings is not None:
        assert f"{n_labels} of {history.settings['most_labels']}" in screen.file.getvalue()


# ------------------------------------------------------------------------------ the terminal


def test_lines_say_what_matters_and_nothing_twice():
    out = io.StringIO()
    watching = Watching("run", Console(file=out, width=80, force_terminal=False))
    for kind, content, _ in two_rounds():
        watching(kind, content)
    watching("exploring", {"round": 2, "explorer": 0, "name": "a", "final": False})
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
    ]


def panel(watching, width=100):
    screen = Console(file=io.StringIO(), width=width)
    screen.print(watching._panel())
    return screen.file.getvalue()


def test_panel_shows_what_begins_too():
    watching = Watching("run", Console(file=io.StringIO()))
    for kind, content, _ in two_rounds()[:9]:
        watching(kind, content)
    watching("exploring", {"round": 1, "explorer": 0, "name": SCRIPT, "final": False})
    assert "round 1: exploring, " + SCRIPT in panel(watching)
    watching("exploring", {"round": 1, "explorer": 0, "name": "a", "final": True})
    assert "round 1: final run, a" in panel(watching)
    watching("learning", {"round": 1})
    assert "round 1: learning, " in panel(watching)
    watching("learning", {"round": 0})
    assert "learning again what the journal has of round 0" in panel(watching)


def test_panel_shows_errors_criteria_and_time():
    watching = Watching("run", Console(file=io.StringIO()))
    for kind, content, _ in two_rounds():
        watching(kind, content)
    text = panel(watching)
    assert "error 0.354 eV/A before learning, expected 0.255; 90 % inside 90 % intervals" in text
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
