"""The journal: exact, whole up to its last entry whenever it is interrupted, written by one."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

import kernelpot
from kernelpot.active import journal as journal_module
from kernelpot.active.journal import (
    Journal,
    JournalError,
    RunLockedError,
    checksum,
    label_to_json,
    read_entries,
)
from kernelpot.active.records import Label

ROOT = Path(__file__).parent.parent
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def filled(folder, n=5):
    """A journal of some entries, closed."""
    with Journal(folder) as journal:
        for k in range(n):
            journal.append("note", {"k": k, "text": "wörd \n" * k, "x": [0.1 * k, math.inf]})
    return folder / "journal.jsonl"


def contents(folder):
    return [(entry.kind, entry.content) for entry in read_entries(folder)]


def test_entries_come_back_exactly(run):
    numbers = [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.pi, math.inf, 2**70]
    content = {"numbers": numbers, "none": None, "nested": {"a": [True, '\u2028ä\n"\\']}}
    with Journal(run) as journal:
        written = journal.append("settings", content)
        assert len(journal) == 2
        assert written.content == content
        assert math.copysign(1.0, written.content["numbers"][1]) == -1.0
        assert math.isnan(journal.append("score", {"score": math.nan}).content["score"])
        assert next(journal.entries("settings")) == written
    entries = list(read_entries(run))
    assert [entry.number for entry in entries] == [0, 1, 2]
    assert [entry.kind for entry in entries] == ["journal", "settings", "score"]
    assert entries[1] == written
    assert all(entry.time.endswith("+00:00") for entry in entries)


def test_every_line_is_json(run):
    path = filled(run)
    records = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert [record["number"] for record in records] == list(range(6))


def test_a_run_is_taken_up_where_it_ended(run):
    filled(run, 3)
    with Journal(run, create=False) as journal:
        assert len(journal) == 4
        assert journal.torn == ""
        assert journal.append("more", {}).number == 4
    assert [entry.number for entry in read_entries(run)] == [0, 1, 2, 3, 4]


def test_new_and_old_runs_are_told_apart(run):
    with pytest.raises(JournalError, match="There is no run in"):
        Journal(run, create=False)
    assert not run.exists()
    with pytest.raises(JournalError, match="There is no run in"):
        list(read_entries(run))
    Journal(run, create=True).close()
    with pytest.raises(JournalError, match=r"a run of 1 entries already\. Resume it"):
        Journal(run, create=True)
    Journal(run).close()  # was left closed, and unlocked, by the error
    (run.parent / "file").write_text("")
    with pytest.raises(JournalError, match="is a file; a run needs a folder"):
        Journal(run.parent / "file")


def test_what_json_cannot_hold_is_refused(run):
    with Journal(run) as journal:
        for wrong in (np.float32(1.0), np.ones(2), {1, 2}, {1: "a"}, b"bytes"):
            with pytest.raises(JournalError, match="content of the entry 'x'"):
                journal.append("x", {"wrong": wrong})
        # NumPy's float64 is a float of Python, and its text is exact.
        assert journal.append("x", {"right": np.float64(0.1)}).content == {"right": 0.1}
    assert [entry.number for entry in read_entries(run)] == [0, 1]


def test_a_file_cut_anywhere_gives_all_complete_entries(run, tmp_path, caplog):
    path = filled(run, 3)
    whole = path.read_bytes()
    expected = contents(run)
    ends = np.cumsum([len(line) for line in whole.splitlines(keepends=True)])
    for size in [*range(ends[0] + 2), *range(ends[1] - 2, len(whole))]:
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        (tmp_path / "cut").mkdir()
        (tmp_path / "cut" / "journal.jsonl").write_bytes(whole[:size])
        n_complete = int(np.sum(ends <= size))
        before = list(read_entries(tmp_path / "cut"))  # as one who only watches
        assert [(entry.kind, entry.content) for entry in before] == expected[:n_complete]
        caplog.clear()
        with Journal(tmp_path / "cut") as journal:
            assert len(journal) == max(1, n_complete)  # the first entry is written again
            is_torn = size not in (0, *ends)
            assert bool(journal.torn) == is_torn
            assert ("was incomplete" in caplog.text) == is_torn
            added = journal.append("after", {"size": size})
            assert added.number == max(1, n_complete)
        if n_complete:
            assert contents(tmp_path / "cut")[:-1] == expected[:n_complete]
        aside = tmp_path / "cut" / "journal.torn"
        assert aside.exists() == is_torn
        if is_torn:
            start = ends[n_complete - 1] if n_complete else 0
            assert aside.read_bytes().rstrip(b"\n") == whole[start:size].rstrip(b"\n")


def test_every_flipped_bit_is_found(run, tmp_path):
    path = filled(run, 3)
    whole = path.read_bytes()
    expected = contents(run)
    lines = whole.splitlines(keepends=True)
    last = len(whole) - len(lines[-1])
    rng = np.random.default_rng(0)
    (tmp_path / "bad").mkdir()
    bad = tmp_path / "bad" / "journal.jsonl"
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        bad.write_bytes(changed)
        if place < last:
            line = 1 + whole[:place].count(b"\n")
            with pytest.raises(JournalError, match=f"Line {line} of .* is damaged") as error:
                Journal(tmp_path / "bad")
            assert f"head -n {line - 1}" in str(error.value)
            assert bad.read_bytes() == changed, "an error changes nothing"
            continue
        # The last one may be what was being written.
        with Journal(tmp_path / "bad") as journal:
            assert len(journal) == len(lines) - 1
            assert journal.torn
        assert contents(tmp_path / "bad") == expected[:-1]


def test_lines_that_were_moved_or_removed_are_found(run):
    path = filled(run)
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (
        [*lines[:2], *lines[3:]],
        [*lines[:2], lines[3], lines[2], *lines[4:]],
        [*lines[:3], lines[2], *lines[3:]],
        [*lines[:2], b"\n", *lines[2:]],
        [b'{"a":1}\n', *lines],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(JournalError, match="is damaged"):
            Journal(run)
    path.write_bytes(b"".join(lines[:3]))  # what the error says to do
    with Journal(run) as journal:
        assert len(journal) == 3


def test_a_newer_or_foreign_journal_is_refused(run, monkeypatch):
    monkeypatch.setattr(journal_module, "FORMAT_VERSION", 7)
    filled(run)
    monkeypatch.undo()
    with pytest.raises(JournalError, match=r"version 7; .* up to version 1\. Upgrade"):
        Journal(run)


def test_a_full_disk_leaves_the_journal_as_it_was(run, monkeypatch):
    write = os.write

    def full(file, content):
        write(file, bytes(content)[:20])
        raise OSError(28, "No space left on device")

    with Journal(run) as journal:
        journal.append("a", {})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space left"):
                journal.append("b", {})
        assert journal.append("c", {}).number == 2
    assert [entry.kind for entry in read_entries(run)] == ["journal", "a", "c"]


def test_a_link_to_a_file_keeps_both(run, tmp_path):
    with Journal(run) as journal:
        path = journal.write_file("models/first.txt", "wörd")
        assert path.read_text(encoding="utf-8") == "wörd"
        journal.write_file("models/first.txt", b"bytes")
        assert path.read_bytes() == b"bytes"
        assert checksum(path) == (
            "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9"
        )
        assert sorted(p.name for p in path.parent.iterdir()) == ["first.txt"]


# One at a time.

HOLDS = """
import sys
from kernelpot.active.journal import Journal
with Journal(sys.argv[1]) as journal:
    journal.append("theirs", {})
    print("open", flush=True)
    sys.stdin.read()
"""


def hold(folder):
    """Another process that writes the run until it is ended."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True,
    )  # fmt: skip


def append_on_and_on(folder, reports):
    with Journal(folder) as journal:
        while True:
            k = len(journal)
            journal.append("k", {"k": k, "filling": "x" * (37 * k % 3000)})
            reports.send(k)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_that_is_killed_twenty_times_loses_nothing_complete(run):
    rng = np.random.default_rng(1)
    context = multiprocessing.get_context("fork")  # a new interpreter would take seconds
    reported = 0
    for _ in range(20):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=append_on_and_on, args=(run, theirs))
        process.start()
        theirs.close()
        reported = ours.recv()
        time.sleep(float(rng.uniform(0.0, 0.05)))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError, OSError):
            while True:
                reported = ours.recv()
        ours.close()
        # The next one needs no help: not of a lock, not of a last line.
        with Journal(run, create=False) as journal:
            assert reported <= len(journal) - 1 <= reported + 1  # written, and not reported yet
            for number, entry in enumerate(journal.entries()):
                assert entry.number == number
                assert number == 0 or entry.content["k"] == number
    assert reported >= 20


def test_two_processes_do_not_write_the_same_run(run):
    with hold(run) as process:
        process.stdout.readline()
        with pytest.raises(RunLockedError, match=f"another process .process {process.pid} on "):
            Journal(run)
        n_before = sum(1 for _ in read_entries(run))  # watching is free
        assert n_before >= 2
        process.kill()
    with Journal(run) as journal:
        assert len(journal) >= n_before
        with pytest.raises(RunLockedError, match="open in this process already"):
            Journal(run)
        with hold(run) as other:  # after we failed to open it twice it is still locked
            assert "RunLockedError" in other.communicate()[1]
        assert other.returncode == 1
        journal.append("mine", {})


def appends(journal, queue):
    try:
        journal.append("x", {})
    except JournalError as error:
        queue.put(str(error))
    else:
        queue.put("")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_neither_writes_nor_locks_the_run(run):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with Journal(run) as journal:
        process = context.Process(target=appends, args=(journal, queue))
        process.start()
        assert "forked" in queue.get(timeout=60)
        process.join()
        assert len(journal) == 1
        journal.append("mine", {})
        sleeper = context.Process(target=time.sleep, args=(60,))
        sleeper.start()
    try:
        Journal(run).close()
    finally:
        sleeper.kill()
        sleeper.join()


def test_a_closed_journal_writes_nothing(run):
    journal = Journal(run)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.append("x", {})


# Labels for other programs.


def test_labels_are_read_by_everybody(run, caplog):
    caplog.set_level(logging.WARNING)
    cell, molecule = bulk("Cu", cubic=True), Atoms("CO", [[0, 0, 0], [0, 0, 1.2]])
    cell.rattle(0.1, seed=0)
    cell.set_momenta(np.full((4, 3), 0.25))
    cell.info = {"source": "a 'PBE' = \"b\"", "group": "x", "odd": {"a": [1]}, "lines": "a\nb"}
    results = {"energy": -1.0 / 3.0, "forces": np.arange(12).reshape(4, 3) / 7.0}
    cell.calc = SinglePointCalculator(cell, **results, stress=np.arange(6) / 700.0)
    molecule.calc = SinglePointCalculator(molecule, energy=2.5)
    with Journal(run) as journal:
        assert journal.write_labels().read_text() == ""
        for label in (
            Label(cell, "", 1.0), Label(None, "time limit", 60.0), Label(molecule, "", 2.0),
        ):  # fmt: skip
            journal.append("label", label_to_json(label) | {"round": 3})
            journal.append("other", {})
        path = journal.write_labels()
    text = path.read_text()
    with Journal(run) as journal:  # all anew, as after a kill: the same as one after the other
        assert journal.write_labels().read_text() == text
        journal.append("label", label_to_json(Label(molecule, "", 2.0)))
        assert journal.write_labels().read_text().startswith(text)
    first, second, _ = kernelpot.read_images(path)
    assert [first.info["entry"], second.info["entry"]] == [1, 5]
    assert first.info["source"] == cell.info["source"]
    assert first.get_potential_energy() == -1.0 / 3.0
    np.testing.assert_allclose(first.get_forces(), results["forces"], atol=1e-8)
    np.testing.assert_allclose(first.get_stress(), np.arange(6) / 700.0, atol=1e-8)
    np.testing.assert_allclose(first.positions, cell.positions, atol=1e-8)
    np.testing.assert_allclose(first.get_momenta(), cell.get_momenta())
    assert second.get_potential_energy() == 2.5
    assert "forces" not in second.calc.results
    assert not second.pbc.any()
