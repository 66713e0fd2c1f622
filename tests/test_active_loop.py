"""The loop: the same run again, however often it is interrupted, and whatever its oracle does."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

from kernelpot import Calculator, load
from kernelpot.active.explorers.paths import Relaxation
from kernelpot.active.explorers.static import Pool, Rattle
from kernelpot.active.history import History, Round
from kernelpot.active.journal import Journal, JournalError, read_entries
from kernelpot.active.judging import at_its_end, n_longer, prolonged
from kernelpot.active.learner import ActiveLearner, replay
from kernelpot.active.oracle_pool import _busy, _idle
from kernelpot.active.scores import low_energy
from kernelpot.active.structure_json import label_from_json, structure_hash
from kernelpot.data_files import read_images
from tests import active_run
from tests.active_run import (
    copper_gold,
    name_of,
    short_dynamics,
    small_model,
    small_settings,
)
from tests.conftest import label


def learner(folder, oracle=EMT, start=None, explorers=None, model=None, more=None, **settings):
    """A small run; an oracle that is a class is made in its own process."""
    return ActiveLearner(
        model or small_model(),
        oracle,
        copper_gold() if start is None else start,
        explorers or [short_dynamics()],
        folder,
        settings=small_settings(**settings),
        **(more or {}),
    )


_OF_THE_CLOCK = ("seconds", "maintenance", "time", "text")


def timeless(value):
    """Without what differs between two runs that do the same."""
    if isinstance(value, dict):
        if value.get("name") == "time":  # the criterion
            return value["met"]
        return {k: timeless(v) for k, v in value.items() if k not in _OF_THE_CLOCK}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def journal(folder, *kinds):
    """As text, since NaN is not equal to itself."""
    return [
        (one.kind, json.dumps(timeless(one.content)))
        for one in read_entries(folder)
        if not kinds or one.kind in kinds
    ]


def labelled(folder):
    """Names of structures with a label, by round and place."""
    found = {}
    for one in read_entries(folder):
        if one.kind == "label" and one.content["structure"] is not None:
            place = one.content["round"], one.content["place"]
            assert place not in found, "a label was computed twice"
            found[place] = name_of(label_from_json(one.content).atoms)
    return found


def fingerprint(folder):
    return [one.content["fingerprint"] for one in read_entries(folder) if one.kind == "learned"][-1]


def no_processes():
    return not _idle and not _busy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run to its end, its outcome and the kinds of its entries."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outcome = learner(folder).run()
    assert no_processes()
    return SimpleNamespace(
        folder=folder, outcome=outcome, kinds=[one.kind for one in read_entries(folder)]
    )


# ------------------------------------------------------------------------- the same run again


def test_a_run_grows_its_model_and_says_how_it_ended(undisturbed):
    outcome = undisturbed.outcome
    assert (outcome.n_labels, outcome.n_failed) == (9, 0)
    assert "labels" in outcome.why
    assert undisturbed.kinds[-1] == "ended"
    # An update between fits: else the tests below would compare nothing but fits.
    learned = [one.content for one in read_entries(undisturbed.folder) if one.kind == "learned"]
    assert {"fit", "update"} <= {one["how"] for one in learned}
    assert any(one["maintained"].startswith("fit to all") for one in learned)
    saved = load(undisturbed.folder / "model.kpot")
    assert np.array_equal(saved.fitted_.weights_m, outcome.model.fitted_.weights_m)
    images = read_images(undisturbed.folder / "labels.xyz")
    assert [len(one) for one in images] == [4] * 9


def test_the_same_seed_gives_the_same_run(undisturbed, tmp_path):
    learner(tmp_path).run()
    assert journal(tmp_path) == journal(undisturbed.folder)


def test_another_seed_gives_another_run(undisturbed, tmp_path):
    learner(tmp_path, random_state=1, most_labels=3).run()
    names = set(labelled(tmp_path).values()) & set(labelled(undisturbed.folder).values())
    assert names == {name_of(copper_gold())}


def test_replay_gives_the_model_to_the_bit(undisturbed):
    model = replay(undisturbed.folder, small_model())
    mine = undisturbed.outcome.model
    assert np.array_equal(model.fitted_.weights_m, mine.fitted_.weights_m)
    atoms = copper_gold()
    atoms.rattle(0.1, seed=5)
    new, old = (one.predict([atoms], return_interval=0.9) for one in (model, mine))
    assert new.energy == old.energy
    assert np.array_equal(new.forces[0], old.forces[0])
    assert np.array_equal(new.interval.forces[0], old.interval.forces[0])


def test_replay_says_what_is_missing(tmp_path):
    with pytest.raises(JournalError, match="no run"):
        replay(tmp_path, small_model())
    with Journal(tmp_path / "empty"):
        pass
    with pytest.raises(JournalError, match="no run"):
        replay(tmp_path / "empty", small_model())


def interrupted_at(n):
    """Tells of an interruption when the n-th entry is written."""
    count = itertools.count(1)

    def tell(kind, content):
        # What begins is told too, also of rounds that the journal has already.
        if kind not in ("exploring", "learning") and next(count) == n:
            raise KeyboardInterrupt

    return tell


def test_interruptions_between_any_two_entries_change_nothing(undisturbed, tmp_path):
    """Each time after one entry more, so that each boundary is one at which a run is taken up."""
    lives = 0
    while True:
        lives += 1
        try:
            learner(tmp_path, more={"tell": interrupted_at(1 + lives % 3)}).run()
        except KeyboardInterrupt:
            assert no_processes()
            continue
        break
    assert lives > 8
    assert labelled(tmp_path) == labelled(undisturbed.folder)
    assert fingerprint(tmp_path) == fingerprint(undisturbed.folder)
    for kind in ("picked", "learned"):
        assert journal(tmp_path, kind) == journal(undisturbed.folder, kind)


class Killed:
    """Lives of a run in processes of their own, which a server forks that has imported all."""

    def __init__(self, folder):
        self.folder, self.calls = folder, folder.with_suffix(".calls")
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(["tests.active_run"])

    def live(self, seconds):
        """Whether it came to its end before it was killed, and how long it lived."""
        there = (self.folder / "journal.jsonl").exists()
        done = set(labelled(self.folder).values()) if there else set()
        before = len(self.called)
        begun = self._server.Event()
        process = self._server.Process(
            target=active_run.main, args=(self.folder, self.calls, begun), daemon=True
        )
        process.start()
        assert begun.wait(300.0)
        started = time.perf_counter()
        process.join(seconds)
        process.kill()
        process.join()
        lived = time.perf_counter() - started
        assert not done & set(self.called[before:]), "a label of the journal was computed again"
        assert process.exitcode in (0, -9)
        return process.exitcode == 0, lived

    @property
    def called(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path):
    """The kill itself, SIGKILL, at random times from the beginning to the end of a run.

    Compared with a run of a process of the same kind: one that has run hundreds of other tests
    was seen to round otherwise.
    """
    rng = random.Random(0)
    whole = Killed(tmp_path / "whole")
    ended, seconds = whole.live(None)
    assert ended
    assert len(labelled(whole.folder)) == small_settings().most_labels
    assert sorted(whole.called) == sorted(labelled(whole.folder).values())
    kills = 0
    for number in itertools.count():
        run = Killed(tmp_path / f"run{number}")
        # The last life of each run is one that is not killed once there were enough.
        mine = 0
        while not run.live(rng.uniform(0.0, 0.7 * seconds) if kills < 20 else None)[0]:
            kills += 1
            mine += 1
        assert labelled(run.folder) == labelled(whole.folder)
        assert fingerprint(run.folder) == fingerprint(whole.folder)
        assert len(run.called) <= len(labelled(run.folder)) + mine
        if kills >= 20:
            return


# ------------------------------------------------------------------------------- the oracle


def moody(atoms):
    """By the places of the atoms: right, an error, no number, or no answer."""
    mood = int(abs(float(atoms.positions[1, 0])) * 1e6) % 4
    atoms.calc = EMT()
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if mood == 1:
        raise RuntimeError("not converged")
    if mood == 2:
        return found | {"energy": float("nan")}
    if mood == 3:
        time.sleep(60.0)
    return found


def test_labels_that_fail_are_recorded_and_the_run_goes_on(tmp_path):
    outcome = learner(tmp_path, moody, time_limit=2.0, n_initial=8, most_labels=14).run()
    entries = [one.content for one in read_entries(tmp_path) if one.kind == "label"]
    reasons = [one["reason"] for one in entries]
    assert {one["round"] for one in entries} > {0}
    assert outcome.n_failed == sum(map(bool, reasons)) > 2
    assert outcome.n_labels == len(reasons) - outcome.n_failed > 2
    assert any("not converged" in one for one in reasons)
    assert any("not finite" in one for one in reasons)
    assert any("time limit" in one for one in reasons)
    assert np.array_equal(
        replay(tmp_path, small_model()).fitted_.weights_m, outcome.model.fitted_.weights_m
    )


def refuses(atoms):
    raise RuntimeError("no licence")


def absurd(atoms):
    """Now and then converged to nonsense, without an error."""
    atoms.calc = EMT()
    forces = atoms.get_forces()
    if int(abs(float(atoms.positions[1, 0])) * 1e6) % 3 == 0:
        forces = forces + 3000.0 * np.random.default_rng(0).normal(size=forces.shape)
    return {"energy": atoms.get_potential_energy(), "forces": forces}


def test_labels_that_cannot_be_are_not_learned(tmp_path, caplog):
    outcome = learner(tmp_path, absurd, n_initial=8, most_labels=20).run()
    rounds = History(read_entries(tmp_path)).rounds
    doubted = [len(one.learned["doubted"]) for one in rounds]
    assert doubted[0]  # by the others of the first round
    assert sum(doubted[1:])  # by what was expected
    assert (tmp_path / "run.html").read_text().count("not learned: its forces are") == sum(doubted)
    assert "probably converged to something else" in caplog.text
    assert outcome.model.training_summary_["n_structures"] == 20 - sum(doubted)
    errors = [one["error"] for r in rounds[-3:] for one in r.learned["surprises"]]
    assert np.median(errors) < 1.0  # eV/A: the model is that of the sane ones
    assert np.array_equal(
        replay(tmp_path, small_model()).fitted_.weights_m, outcome.model.fitted_.weights_m
    )


def test_an_oracle_that_always_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"none of the 3 labels.*no licence.*another folder"):
        learner(tmp_path, refuses).run()
    assert len(journal(tmp_path, "label")) == 3
    # The labels are not asked for again, and the error is the same.
    with pytest.raises(RuntimeError, match="no licence"):
        learner(tmp_path, EMT).run()


# -------------------------------------------------------------------------- budgets, settings


def test_a_raised_budget_goes_on(tmp_path):
    first = learner(tmp_path, most_labels=3).run()
    assert first.n_labels == 3
    assert "labels" in first.why
    again = learner(tmp_path, most_labels=3).run(resume=True)
    assert again.n_labels == 3
    assert len(journal(tmp_path, "ended")) == 1
    more = learner(tmp_path, most_labels=5).run(resume=True)
    assert more.n_labels == 5
    assert load(tmp_path / "model.kpot").schedule_.n_structures == 5


def test_the_time_of_all_parts_counts(tmp_path):
    outcome = learner(tmp_path, most_labels=50, most_seconds=1e-3).run()
    assert outcome.n_labels == 3  # the first round is over before the time is looked at
    assert "are over" in outcome.why
    assert learner(tmp_path, most_labels=50, most_seconds=1e-3).run().n_labels == 3
    spent = sum(one.content["seconds"] for one in read_entries(tmp_path) if one.kind == "judged")
    resumed = learner(tmp_path, most_labels=50, most_seconds=spent + 1e-3).run()
    assert resumed.n_labels == 3  # the first part has counted: an exploration takes longer
    assert "are over" in resumed.why
    more = learner(tmp_path, most_labels=5, most_seconds=spent + 600.0).run()
    assert more.n_labels == 5


def test_the_journal_has_every_candidate(undisturbed):
    rounds = History(read_entries(undisturbed.folder)).rounds
    n_found = 0
    for one in rounds:
        met = {}
        for explored in one.explored.values():
            candidates = explored["candidates"]
            assert sum(map(len, candidates.values())) == explored["n_candidates"]
            for reason, found in candidates.items():
                met.update({(explored["name"], reason, step): score for step, score in found})
        for kept in one.picked:
            if kept["reason"] not in ("given", "final"):
                assert (kept["origin"], kept["reason"], kept["step"]) in met
                n_found += 1
    assert n_found > 0


def test_another_run_is_not_resumed(undisturbed):
    other = copper_gold()
    other.rattle(0.1)
    for name, run in {
        "tolerance": learner(undisturbed.folder, tolerance=0.03),
        "random_state": learner(undisturbed.folder, random_state=1),
        "explorers": learner(undisturbed.folder, explorers=[Rattle()]),
        "n_tangents": learner(undisturbed.folder, model=small_model().set_params(n_tangents=2)),
        "start": learner(undisturbed.folder, start=other),
        "given": learner(undisturbed.folder, more={"images": [label(copper_gold())]}),
    }.items():
        with pytest.raises(JournalError, match=f"has another {name}.*: .*another folder"):
            run.run()
    moving = copper_gold()
    moving.set_momenta(np.ones((len(moving), 3)))
    with pytest.raises(JournalError, match=r"another start.* with other momenta"):
        learner(undisturbed.folder, start=moving).run()
    with pytest.raises(JournalError, match="has a run"):
        learner(undisturbed.folder).run(resume=False)


def test_a_threshold_that_follows_the_history(tmp_path):
    """What is left after learning is in the journal, and an interruption changes nothing."""

    def run(folder, most_labels=16, **more):
        more = {"threshold": "history", "tolerance": 5e-4} | more
        learner(
            tmp_path / folder, start=bulk("Cu", cubic=True), most_labels=most_labels,
            explorers=[short_dynamics(temperature=900.0, n_steps=60)], **more,
        ).run()  # fmt: skip

    run("whole")
    left, n_followed = [], 0
    for one in History(read_entries(tmp_path / "whole")).rounds:
        last = left[-10:]
        mean = np.mean(last) if last else 0.0
        trend = np.polyfit(np.arange(len(last)), last, 1)[0] if len(last) == 10 else np.inf
        if len(last) == 10 and np.std(last, ddof=1) < 0.4 * mean and abs(trend) < 0.2 * mean:
            found = [explored["threshold"] for explored in one.explored.values()]
            assert found == pytest.approx([mean] * len(found))
            n_followed += 1
        assert len(one.learned["left"]) == len(one.good)
        left += one.learned["left"]
    assert n_followed > 0
    run("parts", 7)
    run("parts")
    assert labelled(tmp_path / "parts") == labelled(tmp_path / "whole")
    with pytest.raises(JournalError, match="another threshold: history, now errors"):
        run("whole", threshold="errors")


def test_stresses_are_learned_where_they_count(tmp_path):
    """Of strained crystals whose atoms hardly move, forces say nothing."""
    strained = [Rattle(displacement=0.001, strain=0.08, n=6)]
    n_labels, errors = [], []
    for stress_tolerance in (None, 0.2):
        folder = tmp_path / str(stress_tolerance)
        outcome = learner(
            folder, start=bulk("Cu", cubic=True), explorers=strained, tolerance=0.05,
            stress_tolerance=stress_tolerance, strain=0.005, multiple=1e-3, most_labels=12,
            plateau_rounds=4,
        ).run()  # fmt: skip
        n_labels.append(outcome.n_labels)
        squares = []
        for scale in (0.94, 0.97, 1.03, 1.06):
            atoms = bulk("Cu", cubic=True)
            atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
            truth = label(atoms.copy()).get_stress()
            atoms.calc = Calculator(outcome.model)
            squares.append(np.mean((atoms.get_stress() - truth) ** 2))
        errors.append(np.sqrt(np.mean(squares)) / units.GPa)
    assert n_labels[0] == 3  # the first ones
    assert n_labels[1] > 5
    assert errors[1] < 0.3 * errors[0]
    rounds = History(read_entries(folder)).rounds
    assert "stress_error" in {pick["reason"] for one in rounds for pick in one.picked}


def first_coordinate(atoms):
    return float(atoms.positions[0, 0])


def test_what_is_relevant_to_the_user(tmp_path):
    """It is part of what the run is about."""
    outcome = learner(tmp_path, more={"relevance": low_energy}, most_labels=6).run()
    assert outcome.n_labels == 6
    assert "low_energy" in History(read_entries(tmp_path)).settings["relevance"]
    with pytest.raises(JournalError, match="has another relevance"):
        learner(tmp_path, more={"relevance": first_coordinate}, most_labels=6).run()
    with pytest.raises(ValueError, match="relevance counts with objective"):
        learner(tmp_path, more={"relevance": low_energy}, objective="mean")
    with pytest.raises(TypeError, match="the relevance must be a function"):
        learner(tmp_path, more={"relevance": 3.0})


def test_what_cannot_begin(tmp_path):
    with pytest.raises(ValueError, match="at least one structure"):
        learner(tmp_path, start=[])
    with pytest.raises(ValueError, match="observable_tolerance"):
        learner(tmp_path, more={"observable": len})
    with pytest.raises(JournalError, match="no run"):
        learner(tmp_path / "nowhere").run(resume=True)
    assert not os.path.exists(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------- the end


def distance(frames):
    return [atoms.get_distance(0, 1, mic=True) for atoms in frames]


def test_an_easy_system_stops_by_itself(tmp_path):
    """It never did: runs of so few frames can tell neither of coverage nor of an observable."""

    def easy():
        return learner(
            tmp_path,
            start=bulk("Cu", cubic=True),
            explorers=[short_dynamics(temperature=100.0, n_steps=450, n_frames=36, timestep=5.0)],
            more={"observable": distance},
            tolerance=0.1, most_labels=50, plateau_rounds=4, plateau=1.0, final_steps=1,
            coverage=0.95, observable_tolerance=0.2,
        ).run()  # fmt: skip

    outcome = easy()
    assert outcome.n_labels < 10
    found = {one.name: one for one in outcome.criteria}
    for name in ("plateau", "coverage", "observable"):
        assert found[name].met, found[name].text
    finals = [one.content for one in read_entries(tmp_path) if one.kind == "final"]
    lengths = [len(one["scores"][0]) for one in finals]
    assert lengths == sorted(lengths)
    # And again nothing happens.
    before = journal(tmp_path)
    assert easy().n_labels == outcome.n_labels
    assert journal(tmp_path) == before


def test_labels_for_the_mean_are_of_typical_structures(tmp_path):
    outcome = learner(tmp_path, objective="mean", most_labels=8).run()
    assert outcome.n_labels == 8
    entries = read_entries(tmp_path)
    picks = [p for one in entries if one.kind == "picked" for p in one.content["structures"]]
    typical = [one for one in picks if one["reason"] == "typical"]
    assert typical  # and found by the explorer that was asked
    assert {one["origin"] for one in typical} == {short_dynamics().name}
    assert np.array_equal(
        replay(tmp_path, small_model()).fitted_.weights_m, outcome.model.fitted_.weights_m
    )


def test_labels_for_the_mean_are_asked_once_and_the_same_after_an_interruption(tmp_path):
    """What is typical comes from earlier rounds, too, which a resumed run does not explore."""
    many = {"objective": "mean", "tolerance": 1e-5, "plateau_rounds": 50}
    learner(tmp_path / "whole", **many, most_labels=20).run()
    learner(tmp_path / "parts", **many, most_labels=11).run()
    assert learner(tmp_path / "parts", **many, most_labels=20).run().n_labels == 20
    whole, parts = (
        [structure_hash(atoms) for one in History(read_entries(folder)).rounds
         for atoms in one.structures]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    )  # fmt: skip
    assert len(set(whole)) == 20
    assert whole == parts


def test_a_round_that_finds_nothing_lowers_the_threshold(tmp_path):
    learner(tmp_path, tolerance=1e-6, multiple=50.0, most_labels=4).run()
    rounds = History(read_entries(tmp_path)).rounds[1:]
    thresholds = [one.explored[0]["threshold"] for one in rounds]
    calm = [one.picked == [] for one in rounds]
    assert calm[0]
    assert calm.count(False)  # in the end it is low enough
    for k, (before, after) in enumerate(itertools.pairwise(thresholds)):
        if all(calm[: k + 1]):  # errors are the same while there are no labels
            assert after == pytest.approx(0.5 * before)


def test_final_runs_grow_where_they_were_too_short_to_tell():
    def final(*scores):
        return Round(final={"scores": [[list(scores)]]})

    settings = small_settings(coverage=0.9)
    assert n_longer([], settings) == 0
    assert n_longer([Round(), final(0.1, 0.2)], settings) == 1
    assert n_longer([final(0.1, 0.2), final(0.1, 1.2), final(0.3, 0.4)], settings) == 2
    longer = prolonged(at_its_end(short_dynamics(pressure=(0, 5))), 6, 3)
    assert (longer.n_steps, longer.n_frames) == (120, 15)
    assert (longer.temperature, longer.pressure) == (2500, 5)
    assert prolonged(Rattle(n=3), 6, 3) == Rattle(n=3)


def test_what_is_outside_in_a_final_run_is_labelled_next(tmp_path):
    """It was forgotten: the loop turned for ever where explorations did not meet it again."""
    learner(
        tmp_path,
        explorers=[short_dynamics(temperature=1500.0, n_steps=15)],
        multiple=0.01, plateau_rounds=4, plateau=1e6, final_steps=8, most_labels=12,
    ).run()  # fmt: skip
    entries = list(read_entries(tmp_path))
    outside = [e.content for e in entries if e.kind == "final" and e.content["outside"]]
    assert outside
    reasons = [s["reason"] for e in entries if e.kind == "picked" for s in e.content["structures"]]
    assert "final" in reasons


# -------------------------------------------------------------------------------- what it is about


def test_given_labels_are_learned_first_and_replayed(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for _ in range(4):
        atoms = copper_gold()
        atoms.positions += rng.normal(0, 0.1, (4, 3))
        images.append(label(atoms))
    outcome = learner(tmp_path, more={"images": images}, most_labels=5).run()
    assert outcome.n_labels == 9
    learned = outcome.model.schedule_.n_structures
    assert learned == 9
    model = replay(tmp_path, small_model())
    assert np.array_equal(model.fitted_.weights_m, outcome.model.fitted_.weights_m)


def cluster(symbols="Cu3Au"):
    return Atoms(symbols, [[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0], [1.3, 0.7, 2.1]])


def only_copper(atoms):
    if 79 in atoms.numbers:
        raise RuntimeError("gold is too dear")
    atoms.calc = EMT()
    return atoms


def test_crystal_and_cluster_together(tmp_path):
    outcome = learner(
        tmp_path,
        start=[bulk("Cu", cubic=True), cluster()],
        explorers=[short_dynamics(), Relaxation(n_steps=10), Rattle(n=3)],
        most_labels=12,
    ).run()
    assert outcome.n_labels == 12
    assert outcome.model.species_ == (29, 79)
    model = replay(tmp_path, small_model())
    assert np.array_equal(model.fitted_.weights_m, outcome.model.fitted_.weights_m)


def test_starts_of_which_no_label_succeeded_are_left_out(tmp_path):
    """Explorers raised an error at the first structure of a species that the model never saw."""
    outcome = learner(
        tmp_path, only_copper, start=[cluster(), bulk("Cu", cubic=True)], most_labels=9
    ).run()
    assert outcome.model.species_ == (29,)
    assert outcome.n_failed == 3
    assert 3 <= outcome.n_labels <= 6  # it may be sure of the crystal before its budget is used up
    rounds = History(read_entries(tmp_path)).rounds
    assert any(one.explored for one in rounds)


def test_explorers_that_have_no_way_to_go(tmp_path):
    """Pools and displacements have no steps; the final run of such explorers was none."""
    rng = np.random.default_rng(1)
    pool = []
    for _ in range(6):
        atoms = copper_gold()
        atoms.positions += rng.normal(0, 0.15, (4, 3))
        pool.append(atoms)
    outcome = learner(
        tmp_path, explorers=[Pool(tuple(pool)), Rattle(n=4)], plateau_rounds=4, plateau=1e6,
        tolerance=0.3, final_steps=1, coverage=0.2, most_labels=40,
    ).run()  # fmt: skip
    assert {one.name: one.met for one in outcome.criteria}["coverage"]
    assert outcome.n_labels < 40
