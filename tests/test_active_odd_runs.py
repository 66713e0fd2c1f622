"""Runs that are not as they are in books: odd starts, pools, explorers, observables and resumes."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from kernelpot import load
from kernelpot.active.explorers.dynamics import Dynamics
from kernelpot.active.explorers.paths import NudgedElasticBand, Relaxation
from kernelpot.active.explorers.static import Pool, RandomStructures, Rattle
from kernelpot.active.history import History
from kernelpot.active.journal import JournalError, read_entries
from kernelpot.active.knowledge import Knowledge
from kernelpot.active.learner import ActiveLearner
from kernelpot.active.plan import fitting
from kernelpot.active.records import Exploration
from kernelpot.active.same_run import check_same, in_words
from kernelpot.active.scores import Law
from kernelpot.data_files import read_images
from tests.active_run import copper_gold, short_dynamics, small_model, small_settings
from tests.conftest import label


def run_of(folder, oracle=EMT, start=None, explorers=None, more=None, **settings):
    return ActiveLearner(
        small_model(),
        oracle,
        copper_gold() if start is None else start,
        explorers or [short_dynamics()],
        folder,
        settings=small_settings(**settings),
        **(more or {}),
    )


def rounds_of(folder):
    return History(read_entries(folder)).rounds


def displaced(n, seed=0, amplitude=0.15):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = copper_gold()
        atoms.positions += rng.normal(0, amplitude, (4, 3))
        found.append(atoms)
    return tuple(found)


# ------------------------------------------------------------------------- what is asked for


def test_no_structure_is_asked_for_twice(tmp_path):
    """A pool is offered in every round; what fails was asked for until the budget was used up."""
    pool = displaced(6)
    bad = pool[2].positions.tobytes()

    def oracle(atoms):
        if atoms.positions.tobytes() == bad:
            raise RuntimeError("not this one")
        atoms.calc = EMT()
        return atoms

    outcome = run_of(
        tmp_path, oracle, explorers=[Pool(pool)], tolerance=1e-6, most_labels=40, plateau=1e6
    ).run()
    assert outcome.n_labels + outcome.n_failed == 3 + 6
    assert outcome.n_failed == 1
    assert "no label was wanted" in outcome.why or "every criterion" in outcome.why
    positions = [atoms.positions.tobytes() for r in rounds_of(tmp_path) for atoms in r.structures]
    assert len(set(positions)) == len(positions)


def test_labels_that_are_not_believed_are_in_no_file_for_others(tmp_path):
    def oracle(atoms):
        atoms.calc = EMT()
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.positions[0, 0] > 0.3:
            found["forces"] = found["forces"] + 3e3 * np.eye(4, 3)
        return found

    pool = displaced(4)
    for atoms in pool:
        atoms.positions += 0.05 - atoms.positions[0]
    pool[1].positions += 0.4
    outcome = run_of(tmp_path, oracle, explorers=[Pool(pool)], tolerance=1e-6).run()
    doubted = [one for one in rounds_of(tmp_path) if one.learned["doubted"]]
    assert len(doubted) == 1
    images = read_images(tmp_path / "labels.xyz")
    assert len(images) == outcome.n_labels == 3 + 3
    assert max(np.abs(atoms.get_forces()).max() for atoms in images) < 1e3


def test_a_sound_label_is_learned_however_wrong_the_model_was():
    """Core repulsion is huge just inside the shortest distance that the labels have."""

    def monoxide(distance):
        return label(Atoms("CO", [[0, 0, 0], [distance, 0, 0]]))

    knowledge = Knowledge(small_model())
    knowledge.learn([monoxide(d) for d in (1.05, 1.1, 1.15, 1.2, 1.25)])
    learned = knowledge.learn([monoxide(0.85)])
    assert learned.surprises[0].error > 50.0
    assert learned.doubted == []
    absurd = monoxide(0.9)
    absurd.calc.results["forces"] = 1e5 * np.array([[1.0, 0, 0], [-1, 0, 0]])
    assert len(knowledge.learn([absurd]).doubted) == 1


def test_structures_of_new_species_are_labelled_first(tmp_path):
    silver = tuple(Atoms("Cu3Ag", a.positions, cell=a.cell, pbc=True) for a in displaced(5))
    outcome = run_of(
        tmp_path, start=bulk("Cu", a=3.75, cubic=True), explorers=[Pool(silver), Rattle(n=3)],
        most_labels=9,
    ).run()  # fmt: skip
    assert outcome.model.species_ == (29, 47)
    first = rounds_of(tmp_path)[1].picked
    assert [one["reason"] for one in first] == ["new species"] * 2
    learned = [one.learned["why"] for one in rounds_of(tmp_path)]
    assert learned[1] == "new species"


def test_random_structures_may_have_new_species(tmp_path):
    outcome = run_of(
        tmp_path, start=bulk("Cu", a=3.75, cubic=True),
        explorers=[RandomStructures("Cu2Ag2", n=2, n_steps=2)], most_labels=7,
    ).run()  # fmt: skip
    assert outcome.model.species_ == (29, 47)


def test_a_species_of_which_nothing_succeeds_is_given_up(tmp_path):
    def only_copper(atoms):
        if 47 in atoms.numbers:
            raise RuntimeError("silver is too dear")
        atoms.calc = EMT()
        return atoms

    silver = tuple(Atoms("Cu3Ag", a.positions, cell=a.cell, pbc=True) for a in displaced(9))
    outcome = run_of(
        tmp_path, only_copper, start=bulk("Cu", a=3.75, cubic=True), explorers=[Pool(silver)],
        most_labels=30,
    ).run()  # fmt: skip
    assert outcome.n_failed == 4
    assert outcome.n_labels == 3


# --------------------------------------------------------------------- starts and explorers


def test_explorers_begin_where_they_can(tmp_path):
    """A lone atom among the starts, for its energy, ended the run at its turn in dynamics."""
    start = [bulk("Cu", a=3.75, cubic=True), Atoms("Cu", cell=[12.0] * 3, pbc=True)]
    run_of(tmp_path, start=start, most_labels=12).run()
    explored = [one.explored[0] for one in rounds_of(tmp_path) if one.explored]
    assert explored
    assert {one["start"] for one in explored} == {0}


def test_what_fits_no_start_is_said_before_any_label(tmp_path):
    def message_of(*explorers, start=None):
        with pytest.raises(ValueError, match="cannot begin") as caught:
            run_of(tmp_path / "run", start=start or bulk("Cu"), explorers=list(explorers))
        return str(caught.value)

    assert "Give a supercell" in message_of(Dynamics(temperature=300.0))
    molecule = Atoms("Cu2", [[0, 0, 0], [2.2, 0, 0]])
    assert "needs a cell" in message_of(short_dynamics(pressure=1.0), start=molecule)
    assert "cell=False" in message_of(Relaxation(cell=True), start=molecule)
    assert "need a volume" in message_of(RandomStructures(), start=molecule)
    assert "same atoms" in message_of(Rattle(), NudgedElasticBand(molecule))
    assert not (tmp_path / "run").exists()
    assert fitting([Rattle(), short_dynamics()], [bulk("Cu"), copper_gold()]) == [[0, 1], [1]]


def test_atoms_that_are_fixed_stay_so_in_every_round(tmp_path):
    """The journal has no constraints: every other round went on without them."""
    start = copper_gold()
    start.set_constraint(FixAtoms([0, 1]))
    seen = []

    class Spy(Dynamics):
        def explore(self, calculator, start, watch, rng):
            seen.append(start.copy())
            return super().explore(calculator, start, watch, rng)

    spy = Spy(temperature=600.0, n_steps=10, n_frames=5, spacing=4)
    run_of(tmp_path, start=start, explorers=[spy]).run()
    assert len(seen) > 2
    for atoms in seen:
        assert [one.index.tolist() for one in atoms.constraints] == [[0, 1]]
        np.testing.assert_array_equal(atoms.positions[:2], start.positions[:2])


class Nothing:
    """An explorer of the user's: no dataclass, with steps, and without anything to show."""

    name = "nothing"
    n_steps = 3

    def explore(self, calculator, start, watch, rng):
        return Exploration([], [], 0, True, None, self.name)


def test_explorers_that_show_nothing(tmp_path):
    outcome = run_of(
        tmp_path, explorers=[Nothing(), Rattle(n=2)], final_steps=1, plateau_rounds=4,
        plateau=1e6, tolerance=10.0, most_labels=40,
    ).run()  # fmt: skip
    assert "no label was wanted" in outcome.why
    assert outcome.n_labels < 40
    assert run_of(
        tmp_path, explorers=[Nothing(), Rattle(n=2)], final_steps=1, plateau_rounds=4,
        plateau=1e6, tolerance=10.0, most_labels=40,
    ).run().why == outcome.why  # fmt: skip


def test_runs_without_dynamics_end(tmp_path):
    """Their final runs are never long enough for a coverage of 99.9 %."""
    outcome = run_of(
        tmp_path, explorers=[Rattle(n=3)], final_steps=1, plateau_rounds=4, plateau=1e6,
        tolerance=10.0, most_labels=40, coverage=0.999,
    ).run()  # fmt: skip
    assert "no label was wanted in 19 rounds" in outcome.why
    assert "coverage" in outcome.why


# ----------------------------------------------------------------------------- observables


def energies(frames):
    return [atoms.get_potential_energy() for atoms in frames]


def volumes(frames):
    return [atoms.get_volume() for atoms in frames]


def observed(folder, observable, **more):
    settings = {
        "observable_tolerance": 1.0, "tolerance": 10.0, "plateau": 1e6, "plateau_rounds": 4,
        "most_labels": 20,
    }  # fmt: skip
    return run_of(folder, more={"observable": observable}, **(settings | more))


def test_observables_of_unlike_starts_are_not_compared(tmp_path):
    start = [bulk("Cu", a=3.75, cubic=True), bulk("Cu", a=3.7, cubic=True) * (2, 1, 1)]
    dynamics = short_dynamics(temperature=100.0, n_steps=40, n_frames=20)
    outcome = observed(tmp_path, volumes, start=start, explorers=[dynamics, Rattle(n=2)]).run()
    found = {one.name: one.met for one in outcome.criteria if "observable" in one.name}
    assert found == {"observable, start 1": True, "observable, start 2": True}
    assert "every criterion is met" in outcome.why
    explored = [one.explored for one in rounds_of(tmp_path) if one.explored]
    assert all(one[1]["observable"] is None for one in explored)  # rattling is no trajectory


def test_frames_have_the_calculator_of_the_model(tmp_path):
    observed(tmp_path, energies, most_labels=4).run()
    series = [o["observable"] for r in rounds_of(tmp_path) for o in r.explored.values()]
    assert np.isfinite([one["mean"] for one in series if one]).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda frames: np.zeros(50), "for each of the .* frames; got"),
        (lambda frames: 3.0, "for each of the .* frames; got"),
        (lambda frames: [np.nan] * len(frames), "not finite"),
        (lambda frames: frames[0].no_such_thing, "AttributeError"),
    ],
)
def test_observables_that_fail_say_so(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=f"the observable failed.*{words}"):
        observed(tmp_path, wrong, most_labels=4).run()


def test_an_observable_needs_a_way(tmp_path):
    with pytest.raises(ValueError, match="with steps"):
        observed(tmp_path, volumes, explorers=[Rattle()])


# ----------------------------------------------------------------------------- going on


def test_an_interrupted_resume_leaves_the_last_model(tmp_path):
    outcome = run_of(tmp_path, most_labels=13).run()
    n = outcome.model.training_summary_["n_structures"]

    def tell(kind, content):
        if kind == "learning" and content["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, more={"tell": tell}, most_labels=20).run()
    saved = load(tmp_path / "model.kpot")
    assert saved.training_summary_["n_structures"] == n


def test_a_lowered_budget_explores_no_further(tmp_path):
    run_of(tmp_path, most_labels=13).run()
    entries = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    judged = [k for k, line in enumerate(entries) if b'"kind":"judged"' in line]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(entries[: judged[2] + 1]))
    n = len(History(read_entries(tmp_path)).labels)
    outcome = run_of(tmp_path, most_labels=n).run()
    assert f"{n} of {n} labels are used" in outcome.why
    assert len(rounds_of(tmp_path)) == 3


def test_other_structures_laws_and_observables_are_other_runs(tmp_path):
    one, other = displaced(3), displaced(3, seed=1)
    law = Law("volume", lambda atoms: 0.0, 1.0)
    pool = [Pool(one), short_dynamics()]
    run_of(tmp_path, explorers=pool, more={"laws": [law]}, most_labels=4).run()
    for explorers, laws, words in [
        ([Pool(other), short_dynamics()], [law], "another explorers 1: .*, now "),
        (pool[::-1], [law], "another explorers 1: .*Pool.*, now .*Dynamics"),
        (pool, [law._replace(weight=50.0)], "another weight of the laws 1: 1.0, now 50.0"),
        (pool, [law._replace(tolerance=2.0)], "another tolerance of the laws 1: 1.0, now 2.0"),
        (pool, [], "another laws: 1 of them, now 0"),
    ]:
        with pytest.raises(JournalError, match=words):
            run_of(tmp_path, explorers=explorers, more={"laws": laws}, most_labels=4).run()
    run_of(tmp_path, explorers=pool, more={"laws": [law]}, most_labels=4).run()
    assert in_words(short_dynamics()) == repr(short_dynamics())


def test_time_ends_explorations_too(tmp_path):
    """Days could pass in one, and a queue's limit with them."""
    slow = short_dynamics(temperature=100.0, n_steps=10_000_000, timestep=1.0)
    started = time.perf_counter()
    outcome = run_of(tmp_path, explorers=[slow], tolerance=10.0, most_seconds=8.0).run()
    assert time.perf_counter() - started < 60.0
    assert "are over" in outcome.why
    assert "plateau" in outcome.why
    assert load(tmp_path / "model.kpot").training_summary_["n_structures"] == 3
    assert [one.kind for one in read_entries(tmp_path)][-1] == "ended"


def test_ctrl_c_in_compiled_code_is_an_interruption(tmp_path):
    """Numba makes a SystemError of it."""

    def tell(kind, content):
        if kind == "learned":
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                raise SystemError("returned a result with an exception set") from error

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, more={"tell": tell}).run()

    def other(kind, content):
        raise SystemError("something else")

    with pytest.raises(SystemError):
        run_of(tmp_path, more={"tell": other}).run()


def test_there_is_a_model_from_the_first_round_on(tmp_path):
    def tell(kind, content):
        if kind == "exploring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, more={"tell": tell}).run()
    assert load(tmp_path / "model.kpot").training_summary_["n_structures"] == 3


def test_what_is_given_is_checked_before_any_label(tmp_path):
    start = copper_gold()
    start.positions[2, 1] = np.nan
    with pytest.raises(ValueError, match="not three finite numbers"):
        run_of(tmp_path, start=start)
    with pytest.raises(ValueError, match="label"):
        run_of(tmp_path, more={"images": [label(copper_gold()), copper_gold()]})
    run_of(tmp_path, explorers=short_dynamics())  # one is a list of one
    assert list(tmp_path.iterdir()) == []


def test_laws_that_fail_say_so(tmp_path, caplog):
    def nothing(atoms):
        return 1 / 0

    def worse(atoms):
        return atoms.no_such_thing

    run_of(tmp_path / "a", more={"laws": [Law("nothing", nothing, 1.0)]}).run()
    assert "law nothing could be evaluated for no candidate (ZeroDivisionError" in caplog.text
    with pytest.raises(ValueError, match=r"the law worse failed \(AttributeError"):
        run_of(tmp_path / "b", more={"laws": [Law("worse", worse, 1.0)]}).run()


def test_one_label_of_a_perfect_crystal_is_enough_to_go_on(tmp_path):
    """Its forces are zero by symmetry, and so are their errors."""
    perfect = bulk("Cu", a=3.75, cubic=True)

    def oracle(atoms):
        if np.abs(atoms.positions - perfect.positions).max() > 1e-6 and not done:
            raise RuntimeError("not yet")
        atoms.calc = EMT()
        return atoms

    done = []
    outcome = run_of(tmp_path, oracle, start=perfect, most_labels=3).run()
    assert outcome.n_labels == 1
    assert outcome.n_failed == 2


def test_starts_that_are_left_out_are_named(tmp_path, caplog):
    def only_copper(atoms):
        if 79 in atoms.numbers:
            raise RuntimeError("gold is too dear")
        atoms.calc = EMT()
        return atoms

    caplog.set_level(logging.WARNING, logger="kernelpot")
    run_of(tmp_path, only_copper, start=[copper_gold(), bulk("Cu", cubic=True)]).run()
    told = [one for one in caplog.messages if "is left out until a label" in one]
    assert len(told) == 1
    assert "AuCu3, structure 1 to start from" in told[0]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"model": EMT()}, "the model must be a KernelPotential"),
        ({"settings": {"tolerance": 0.1}}, "settings must be a LearnerSettings"),
        ({"explorers": "dynamics"}, "an explorer must have a name"),
        ({"explorers": [Dynamics]}, "an explorer must have a name"),
        ({"laws": [abs]}, "law 1 must be a Law"),
        ({"observable": 3.0}, "the observable must be a function"),
        ({"start": "start.xyz"}, "str, not ase.Atoms"),
    ],
)
def test_what_is_something_else_is_said_before_anything_is_labelled(tmp_path, other, says):
    mine = {"model": small_model(), "oracle": EMT, "start": bulk("Cu"),
            "explorers": [Rattle()], "folder": tmp_path / "run", **other}  # fmt: skip
    with pytest.raises(TypeError, match=says):
        ActiveLearner(**mine)
    assert not (tmp_path / "run").exists()


def test_settings_of_a_later_version_are_no_other_run(tmp_path):
    check_same(tmp_path, {"batch": 4}, {"batch": 4, "came_later": 1})
    with pytest.raises(JournalError, match="has another batch: 4, now 5"):
        check_same(tmp_path, {"batch": 4}, {"batch": 5, "came_later": 1})
