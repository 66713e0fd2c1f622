"""An oracle that is somebody else: inputs in a folder, outputs when they come."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT

from kernelpot.active.oracle import FileOracle, label_all
from tests.active_oracles import coppers, directly, returns_atoms, returns_dict

ANSWERS = """
import os, sys, time
import ase.io
from ase.calculators.emt import EMT
from pathlib import Path
root = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for folder in sorted(root.glob("[0-9]*")):
        if (folder / "output.xyz").exists() or (folder / "failed").exists():
            continue
        atoms = ase.io.read(folder / "input.xyz")  # complete as soon as it is there
        if atoms.info.get("trouble"):
            (folder / "failed").write_text("SCF not\\nconverged")
            continue
        atoms.calc = EMT()
        atoms.get_forces(), atoms.get_stress() if atoms.pbc.all() else None
        ase.io.write(folder / "part.xyz", atoms)
        os.replace(folder / "part.xyz", folder / "output.xyz")
    time.sleep(0.05)
"""


@pytest.fixture
def oracle(tmp_path):
    """One that is answered at once or not at all."""
    return FileOracle(tmp_path / "queue", settle=0.0, poll=0.02)


@pytest.fixture
def cells():
    return coppers(4)


def folders(oracle):
    return sorted(p for p in Path(oracle.folder).iterdir() if p.name[0].isdigit())


def ask(oracle, structures):
    """Write inputs, and leave before there is an answer."""
    return label_all(oracle, structures, time_limit=0.01)


def computed(atoms):
    """With results, which then are in the file, too."""
    atoms = returns_atoms(atoms)
    atoms.get_forces()
    atoms.get_stress()
    return atoms


def answer(folder, name="output.xyz"):
    ase.io.write(folder / name, computed(ase.io.read(folder / "input.xyz")))


def assert_right(label, atoms):
    assert label.reason == ""
    assert np.array_equal(label.atoms.positions, atoms.positions)
    for name, value in directly(atoms, EMT()).items():
        # The files hold eight decimals, of positions and of results.
        np.testing.assert_allclose(label.atoms.calc.results[name], value, atol=1e-6)


def test_another_process_answers(oracle, cells):
    cells[1].info["trouble"] = True
    cells.append(molecule("CH3CH2OH"))
    program = [sys.executable, "-c", ANSWERS, str(oracle.folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            told = {}
            labels = label_all(oracle, cells, time_limit=60.0, tell=told.__setitem__)
        finally:
            process.kill()
    assert labels[1].atoms is None
    assert labels[1].reason == "SCF not converged"
    for k in (0, 2, 3, 4):
        assert_right(labels[k], cells[k])
        assert told[k] is labels[k]
        assert 0.0 <= labels[k].seconds < 60.0
    assert "stress" not in labels[4].atoms.calc.results
    assert [folder.name[:6] for folder in folders(oracle)] == [f"0000{k}-" for k in range(5)]


def test_what_was_written_and_answered_before_is_taken(oracle, cells):
    labels = ask(oracle, cells[:3])
    assert all("within the time limit of 0.01 s: there is none" in one.reason for one in labels)
    before = {folder: (folder / "input.xyz").stat().st_mtime_ns for folder in folders(oracle)}
    assert len(before) == 3
    answer(folders(oracle)[1])
    (Path(oracle.folder) / ".unfinished").mkdir()  # as left by one that was killed
    cells[1].set_momenta(np.ones((4, 3)))  # of no matter
    again = ask(oracle, [cells[3], cells[1], cells[0], cells[1]])
    assert_right(again[1], cells[1])
    assert_right(again[3], cells[1])
    assert again[0].atoms is again[2].atoms is None
    assert {f: (f / "input.xyz").stat().st_mtime_ns for f in before} == before
    assert [folder.name[:5] for folder in folders(oracle)] == [f"0000{k}" for k in range(4)]
    # A charge is of matter.
    charged = cells[1].copy()
    charged.info["charge"] = 1
    ask(oracle, [charged])
    assert len(folders(oracle)) == 5


def test_half_an_output_is_waited_for(oracle, cells, caplog):
    caplog.set_level(logging.WARNING, "kernelpot")
    ask(oracle, cells[:1])
    (folder,) = folders(oracle)
    answer(folder, "whole.xyz")
    text = (folder / "whole.xyz").read_text()
    (folder / "output.xyz").write_text(text[: len(text) // 2])
    (label,) = label_all(oracle, cells[:1], time_limit=0.3)
    assert label.atoms is None
    assert "within the time limit" in label.reason
    assert "cannot be read yet" in caplog.text
    assert len(caplog.records) == 1  # said once
    os.replace(folder / "whole.xyz", folder / "output.xyz")
    (label,) = label_all(oracle, cells[:1], time_limit=5.0)
    assert_right(label, cells[0])


def test_an_output_settles_first(tmp_path, cells):
    oracle = FileOracle(tmp_path, settle=1.0, poll=0.02)
    ask(oracle, cells[:1])
    answer(folders(oracle)[0])
    start = time.time()
    (label,) = label_all(oracle, cells[:1], time_limit=30.0)
    assert_right(label, cells[0])
    assert time.time() - start > 0.7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda atoms: atoms.positions.__iadd__([[0, 0, 0]] * 3 + [[0.2, 0, 0]]), "was it relaxed"),
        (lambda atoms: atoms.set_cell(atoms.cell * 1.01), "another cell; was it relaxed"),
        (lambda atoms: atoms.numbers.__setitem__(1, 47), "of other atoms"),
    ],
)
def test_outputs_of_other_structures_are_failures(oracle, cells, change, reason):
    ask(oracle, cells[:1])
    atoms = cells[0].copy()
    change(atoms)
    ase.io.write(folders(oracle)[0] / "output.xyz", computed(atoms))
    (label,) = label_all(oracle, cells[:1], time_limit=5.0)
    assert label.atoms is None
    assert reason in label.reason


def test_outputs_that_are_wrapped_and_moved_as_a_whole_are_right(oracle, cells):
    ask(oracle, cells[:1])
    atoms = cells[0].copy()
    atoms.positions += 1.7
    atoms.wrap()
    ase.io.write(folders(oracle)[0] / "output.xyz", computed(atoms))
    (label,) = label_all(oracle, cells[:1], time_limit=5.0)
    assert_right(label, cells[0])


def test_an_output_without_an_energy_is_not_complete(oracle, cells, caplog):
    """Programs write as they go: a file that has not changed for a while need not be all of it."""
    ask(oracle, cells[:1])
    (folder,) = folders(oracle)
    ase.io.write(folder / "output.xyz", cells[0])
    (label,) = label_all(oracle, cells[:1], time_limit=0.2)
    assert "within the time limit" in label.reason
    assert "there is no energy in output.xyz" in label.reason
    assert "write a file 'failed' there" in caplog.text
    answer(folder)
    (label,) = label_all(oracle, cells[:1], time_limit=5.0)
    assert_right(label, cells[0])


def test_files_that_vanish_are_no_trouble(oracle, cells, monkeypatch):
    """Calculations have scratch files, which are gone between a look at the folder and at them."""
    ask(oracle, cells[:1])
    (folder,) = folders(oracle)
    (folder / "scratch").write_text("for a moment")
    stat = Path.stat

    def gone(path, **more):
        if path.name == "scratch":
            raise FileNotFoundError(path)
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", gone)
    answer(folder)
    (label,) = label_all(oracle, cells[:1], time_limit=5.0)
    assert_right(label, cells[0])


def test_files_of_other_formats(tmp_path, cells):
    oracle = FileOracle(tmp_path, "POSCAR", "result.traj", settle=0.0, poll=0.02)
    ask(oracle, cells[:1])
    (folder,) = folders(oracle)
    assert [p.name for p in folder.iterdir()] == ["POSCAR"]
    ase.io.write(folder / "result.traj", computed(ase.io.read(folder / "POSCAR")))
    (label,) = label_all(oracle, cells[:1], time_limit=5.0)
    assert_right(label, cells[0])


def test_functions_write_and_read(tmp_path, cells):
    def write(folder, atoms):
        if atoms is not None and atoms.info.get("trouble"):
            raise KeyError("no pseudopotential")
        ase.io.write(folder / "in.traj", atoms)
        (folder / "settings").write_text("PBE")

    def read(folder):
        assert (folder / "settings").read_text() == "PBE"
        found = returns_dict(ase.io.read(folder / "in.traj"))
        (folder / "looked").touch()
        return found

    cells[1].info["trouble"] = True
    oracle = FileOracle(tmp_path, write=write, read=read, poll=0.02)
    labels = label_all(oracle, cells[:3], time_limit=5.0)
    assert_right(labels[0], cells[0])
    assert_right(labels[2], cells[2])
    assert "the input was not written: KeyError: 'no pseudopotential'" in labels[1].reason
    assert len(folders(oracle)) == 2
