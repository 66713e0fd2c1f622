"""Oracles of all kinds, good and bad, and what a label must be."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


def coppers(n=8):
    """Rattled cells of one atom of gold and three of copper."""
    cells = [bulk("Cu", cubic=True) for _ in range(n)]
    for seed, atoms in enumerate(cells):
        atoms.numbers[0] = 79
        atoms.rattle(0.1, seed=seed)
    return cells


def directly(atoms, calculator):
    """What the calculator says in this process."""
    atoms = atoms.copy()
    atoms.set_constraint()
    atoms.calc = calculator
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    return found | ({"stress": atoms.get_stress()} if atoms.pbc.all() else {})


def assert_labelled(label, atoms, calculator):
    assert label.reason == ""
    assert label.seconds > 0.0
    found = label.atoms
    assert isinstance(found.calc, SinglePointCalculator)
    assert not found.constraints
    for name in ("numbers", "positions", "pbc"):
        assert np.array_equal(getattr(found, name), getattr(atoms, name))
    assert np.array_equal(found.cell[:], atoms.cell[:])
    for name, value in directly(atoms, calculator).items():
        # The same code in another process: equal to the bit.
        assert np.array_equal(found.calc.results[name], value), name


def returns_atoms(atoms):
    atoms.calc = EMT()
    return atoms


def returns_dict(atoms):
    found = returns_atoms(atoms)
    return {
        "energy": found.get_potential_energy(),
        "forces": found.get_forces().tolist(),
        "stress": found.get_stress(voigt=False) if atoms.pbc.all() else None,
    }


def changed(**more):
    return lambda atoms: returns_dict(atoms) | more


def relaxed(atoms):
    atoms.positions[2, 0] += 0.4
    return returns_atoms(atoms)


def another_order(atoms):
    return returns_atoms(atoms[::-1])


def raises(atoms):
    raise RuntimeError("SCF not converged\nafter 300 cycles")


def nan_force(atoms):
    forces = np.zeros((4, 3))
    forces[2, 1] = np.nan
    return returns_dict(atoms) | {"forces": forces}


def segfault(atoms):
    ctypes.string_at(0)


def says_and_ends(atoms):
    print("ERROR STOP: basis set is empty")
    sys.stdout.flush()
    os._exit(3)


def killed(atoms):
    os.kill(os.getpid(), signal.SIGKILL)


TROUBLE = {
    "exits": lambda atoms: sys.exit("no licence"),
    "nothing": lambda atoms: {},
    "no energy": lambda atoms: {"forces": np.zeros((4, 3))},
    "number": lambda atoms: 3.0,
    "bare": lambda atoms: atoms,
    "nan energy": changed(energy=np.nan),
    "inf energy": changed(energy=-np.inf),
    "nan stress": changed(stress=[0, 0, 0, np.nan, 0, 0]),
    "shape of forces": changed(forces=np.zeros((3, 3))),
    "shape of energy": changed(energy=[1.0, 2.0]),
    "shape of stress": changed(stress=np.zeros(5)),
    "text": changed(energy="low"),
    "hangs": lambda atoms: time.sleep(600.0),
} | {
    f.__name__.replace("_", " "): f
    for f in (raises, nan_force, relaxed, another_order, segfault, killed, says_and_ends)
}


def behaves(atoms):
    """Right labels, but for structures whose info names a trouble."""
    return TROUBLE.get(atoms.info.get("trouble"), returns_dict)(atoms)


def slow(atoms):
    """Half a second; the energy is the number of the process."""
    time.sleep(0.5)
    return {"energy": os.getpid(), "forces": np.zeros((len(atoms), 3))}


def pids(labels):
    """Numbers of the processes that `slow` was in."""
    return {int(label.atoms.get_potential_energy()) for label in labels}
