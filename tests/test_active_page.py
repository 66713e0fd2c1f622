"""Where a run stands, and its page for the browser: of known journals, and of any."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
from ase.build import molecule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kernelpot.active.history import History
from kernelpot.active.journal import Journal, JournalError
from kernelpot.active.page import html_of, page_of
from kernelpot.active.pictures import picture
from kernelpot.active.standing import duration, standing
from kernelpot.active.watching import Watching
from tests.active_journals import (
    COPPER,
    ETHANOL,
    SCRIPT,
    check_page,
    entries_of,
    explored,
    judged,
    label,
    learned,
    pick,
    refreshes,
    run_settings,
    surprise,
    two_rounds,
)  # fmt: skip

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


def test_labels_that_were_not_believed_say_why():
    first = learned(0)
    first["doubted"] = [(0, "given is absurd"), (2, "<far> too large")]
    second = learned(1, [surprise(900.0, 0.1, 0.0), surprise(0.1, 0.1, 0.9)])
    second["doubted"] = [(0, "larger still")]
    contents = [
        ("settings", run_settings(given=[ETHANOL])),
        ("picked", {"round": 0, "structures": [pick(), pick(), pick()]}),
        ("label", label(0, 0)),
        ("label", label(0, 1, reason="no")),
        ("label", label(0, 2)),
        ("learned", first),  # the one that was given, the first and the third
        ("explored", explored(1)),
        ("picked", {"round": 1, "structures": [pick(), pick()]}),
        ("label", label(1, 0)),
        ("label", label(1, 1)),
        ("learned", second),
    ]
    history = History(entries_of(contents))
    acquired = standing(history).acquired
    assert [one.doubted for one in acquired] == ["", "", "<far> too large", "larger still", ""]
    # Of the four of the first round one had failed, and two are absurd.
    assert [one.n_known for one in acquired] == [0, 0, 0, 1, 1]
    page = html_of("copper", history)
    assert "not learned: &lt;far&gt; too large" in page
    assert "not learned: larger still" in page
    assert page.count("not believed") == 2


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
