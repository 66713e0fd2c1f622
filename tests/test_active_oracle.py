"""Labels by an oracle: right ones as they are, all others with the reason why they are not."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from importlib.util import find_spec

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms

from kernelpot.active import oracle_process
from kernelpot.active.oracle import end_processes, label_all
from tests.active_oracles import (
    assert_labelled,
    behaves,
    coppers,
    directly,
    returns_atoms,
    returns_dict,
)


@pytest.fixture(scope="module", autouse=True)
def no_processes_left():
    yield
    end_processes()


@pytest.fixture
def cells():
    return coppers()


@pytest.fixture(scope="module")
def ethanols():
    images = [molecule("CH3CH2OH") for _ in range(3)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.05, seed=seed)
    return images


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gpaw") is None, reason="needs pip install 'kernelpot[gpaw]'")
def test_pbe_of_gpaw_on_silicon():
    def pbe():
        from gpaw import GPAW, PW

        return GPAW(mode=PW(150.0), kpts=(2, 2, 2), xc="PBE", txt=None)

    perfect = bulk("Si", a=5.43)
    moved = bulk("Si", a=5.43)
    moved.rattle(0.1, seed=0)
    labels = label_all(pbe, [perfect, moved], time_limit=300.0)
    assert [label.reason for label in labels] == ["", ""]
    np.testing.assert_allclose(labels[0].atoms.get_forces(), 0.0, atol=1e-4)
    assert np.abs(labels[1].atoms.get_forces()).max() > 0.1
    assert labels[1].atoms.get_potential_energy() > labels[0].atoms.get_potential_energy()
    assert labels[1].atoms.get_stress().shape == (6,)
    # It has no `reset`, and starts afresh all the same.
    (alone,) = label_all(pbe, [moved], time_limit=300.0)
    assert np.array_equal(alone.atoms.get_forces(), labels[1].atoms.get_forces())


class MadeOnce:
    """A function with something expensive in it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, atoms):
        self.calls += 1
        return {"energy": float(self.calls), "forces": np.zeros((len(atoms), 3))}


@pytest.mark.parametrize(
    "oracle",
    [EMT(), EMT, lambda: EMT(), returns_atoms, returns_dict, lambda: returns_dict],
    ids=["calculator", "class", "factory", "atoms", "dict", "factory of function"],
)
def test_oracles_of_all_kinds(oracle, cells):
    for label, atoms in zip(label_all(oracle, cells[:2]), cells, strict=False):
        assert_labelled(label, atoms, EMT())


def test_a_molecule_has_no_stress_and_a_constraint_changes_no_force():
    atoms = molecule("CH3CH2OH")
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    atoms.set_momenta(np.ones((9, 3)))
    (label,) = label_all(EMT(), [atoms])
    assert_labelled(label, atoms, EMT())
    assert "stress" not in label.atoms.calc.results
    assert np.abs(label.atoms.get_forces()[:3]).min(axis=0).max() > 0.0
    assert np.array_equal(label.atoms.get_momenta(), atoms.get_momenta())
    assert atoms.constraints
    assert atoms.calc is None


def test_gfn2_on_ethanol(ethanols):
    tblite = pytest.importorskip("tblite.ase", reason="needs pip install 'kernelpot[tblite]'")

    def gfn2():
        return tblite.TBLite(method="GFN2-xTB", verbosity=0)

    labels = label_all(gfn2, ethanols, time_limit=60.0)
    for label, atoms in zip(labels, ethanols, strict=True):
        found = directly(atoms, gfn2())
        assert label.atoms.get_potential_energy() == pytest.approx(found["energy"], abs=1e-9)
        np.testing.assert_allclose(label.atoms.get_forces(), found["forces"], atol=1e-9)
    # A density of the structure before is no start of the next one.
    again = label_all(gfn2, ethanols[::-1])[::-1]
    for one, other in zip(labels, again, strict=True):
        assert np.array_equal(one.atoms.get_forces(), other.atoms.get_forces())


def test_the_process_stays_and_what_it_has_made(cells):
    def energies(**more):
        return [label.atoms.get_potential_energy() for label in label_all(once, cells, **more)]

    once = MadeOnce()
    assert energies() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert energies() == [9, 10, 11, 12, 13, 14, 15, 16]


REASONS = {
    "raises": r"^RuntimeError: SCF not converged after 300 cycles \(active_.*line \d+\)$",
    "exits": "SystemExit: no licence",
    "nothing": r"gave no energy \(it gave nothing\)",
    "no energy": "no energy .it gave forces",
    "number": "returned float, which is neither",
    "bare": "without a calculator",
    "nan energy": "energy is not finite: nan",
    "inf energy": "energy is not finite: -inf",
    "nan force": "forces of atom 2 is not finite: nan",
    "nan stress": "stress is not finite",
    "shape of forces": r"shape \(3, 3\), not \(4, 3\)",
    "shape of energy": r"energy .* shape \(2,\)",
    "shape of stress": r"stress .* shape \(5,\)",
    "text": "energy of the oracle are no numbers",
    "relaxed": "atom 2 is 0.4 angstrom from its place; was it relaxed",
    "another order": "in another order",
    "segfault": r"ended its process by signal 11 \(SIGSEGV\)",
    "killed": "by signal 9 .SIGKILL.; was memory short",
    "says and ends": "with status 3; it said: ERROR STOP: basis set is empty",
    "hangs": "time limit of 1 s was reached",
}


@pytest.mark.parametrize("trouble", REASONS)
def test_a_label_that_fails_says_why_and_the_others_come(trouble, cells):
    cells[1].info["trouble"] = trouble
    told = []
    labels = label_all(
        behaves, cells[:3], time_limit=1.0 if trouble == "hangs" else 60.0,
        tell=lambda place, label: told.append((place, label)),
    )  # fmt: skip
    assert labels[1].atoms is None
    assert re.search(REASONS[trouble], labels[1].reason), labels[1].reason
    assert "\n" not in labels[1].reason
    for k in (0, 2):
        assert_labelled(labels[k], cells[k], EMT())
    assert [place for place, _ in told] == [0, 1, 2]
    assert all(label is labels[place] for place, label in told)
    if trouble == "hangs":
        assert labels[1].seconds == pytest.approx(1.0, abs=0.8)


def test_a_calculator_that_fails_is_made_anew(cells):
    cells[1].numbers[:] = 14  # EMT knows no silicon
    labels = label_all(EMT(), cells[:3])
    assert labels[1].atoms is None
    assert labels[1].reason.startswith("NotImplementedError")
    assert_labelled(labels[2], cells[2], EMT())


def test_an_oracle_that_cannot_be_made_fails_every_label(cells):
    def factory():
        raise ImportError("No module named 'vasp_of_mine'")

    labels = label_all(factory, cells[:2], n_parallel=2)
    assert all(
        "the oracle could not be made: ImportError: No module" in one.reason for one in labels
    )


def test_an_oracle_whose_making_hangs_fails_too(cells, monkeypatch):
    monkeypatch.setattr(oracle_process, "START_LIMIT", 2.0)
    (label,) = label_all(lambda: time.sleep(600.0), cells[:1], time_limit=1.0)
    assert "could not be made: the time limit of 2 s was reached" in label.reason


def test_what_is_no_oracle_is_refused(cells):
    with pytest.raises(TypeError, match="list is none of these"):
        label_all([EMT()], cells)
    lock = threading.Lock()
    with pytest.raises(TypeError, match="Give a function that makes it there"):
        label_all(lambda atoms: lock, cells)
    for wrong in ({"n_parallel": 0}, {"threads": 0}, {"time_limit": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            label_all(EMT(), cells, **wrong)


def test_no_structures_no_labels():
    assert label_all(EMT(), []) == []


def test_a_process_that_was_killed_while_it_waited_is_replaced(cells):
    def pid(atoms):
        return {"energy": os.getpid()}

    first, second = (int(one.atoms.get_potential_energy()) for one in label_all(pid, cells[:2]))
    assert first == second != os.getpid()
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    (label,) = label_all(pid, cells[:1])
    assert int(label.atoms.get_potential_energy()) not in (first, os.getpid())


def test_threads_of_an_oracle(cells, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PMI_RANK", "3")

    def of_environment(atoms):
        names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
        threads = {int(os.environ[f"{name}_NUM_THREADS"]) for name in names}
        return {
            "energy": threads.pop() + 100.0 * len(threads) + 1000.0 * ("PMI_RANK" in os.environ)
        }

    for threads in (1, 3):
        (label,) = label_all(of_environment, cells[:1], threads=threads)
        assert label.atoms.get_potential_energy() == threads


def test_what_a_calculator_prints_goes_nowhere(cells, capfd):
    def talks(atoms):
        os.system("echo from a program")
        print("x" * 100_000)
        print(input() if not sys.stdin.closed else "", end="")
        return {"energy": 1.0}

    (label,) = label_all(talks, cells[:1])
    assert "EOFError" in label.reason  # nothing to read: not the pipe
    assert capfd.readouterr() == ("", "")


def test_another_calculator(cells):
    """Keyword arguments of a calculator reach the process."""
    settings = {"sigma": 2.2, "epsilon": 0.4, "rc": 6.0}
    (label,) = label_all(LennardJones(**settings), cells[:1])
    assert_labelled(label, cells[0], LennardJones(**settings))
