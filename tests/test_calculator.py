"""The ASE calculator: derivatives, kept neighbours, dynamics, relaxation, and its errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter, StrainFilter
from ase.io import read, write
from ase.optimize import BFGS

from kernelpot.calculator import Calculator
from kernelpot.descriptors import SmoothBump, Soap
from kernelpot.dynamics import (
    bare_copy,
    energy_drift,
    parse_supercell,
    resume_from,
    run,
    thermalise,
)
from kernelpot.potential import KernelPotential


def labelled(atoms: Atoms) -> Atoms:
    atoms.calc = EMT()
    results = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def alloy(seed: int, amplitude: float = 0.12, size: int = 2) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.65, cubic=True) * size
    atoms.numbers[rng.permutation(len(atoms))[: len(atoms) // 4]] = 79
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True
    )
    atoms.positions += rng.normal(scale=amplitude, size=atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module")
def model() -> KernelPotential:
    images = [labelled(alloy(seed, 0.03 + 0.02 * (seed % 6))) for seed in range(12)]
    # A bump, not a cosine: its kink in the second derivative would show in finite differences.
    descriptor = Soap(cutoff=4.0, n_max=4, l_max=3, smoothing=SmoothBump(width=1.5))
    return KernelPotential(descriptor, n_environments=30, n_tangents=6).fit(images)


def fresh(model: KernelPotential, atoms: Atoms) -> dict[str, np.ndarray]:
    again = atoms.copy()
    again.calc = Calculator(model, skin=0.0)
    found = {"energies": again.get_potential_energies(), "forces": again.get_forces()}
    if again.pbc.all():
        found["stress"] = again.get_stress()
    return found


def assert_as_fresh(model: KernelPotential, atoms: Atoms) -> None:
    for name, expected in fresh(model, atoms).items():
        found = atoms.calc.get_property(name, atoms)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10, err_msg=name)


def five_points(energy_at, h: float) -> float:
    """Derivative of a function at 0, with an error of order h^4."""
    near, far = energy_at(h) - energy_at(-h), energy_at(2 * h) - energy_at(-2 * h)
    return (8.0 * near - far) / (12.0 * h)


def test_forces_are_minus_the_gradient(model):
    atoms = alloy(100)
    atoms.calc = Calculator(model)
    forces_nc = atoms.get_forces()
    for n, c in ((0, 0), (7, 1), (31, 2)):

        def energy_at(h: float, n: int = n, c: int = c) -> float:
            moved = atoms.copy()
            moved.positions[n, c] += h
            moved.calc = atoms.calc
            return moved.get_potential_energy()

        assert -five_points(energy_at, 2e-3) == pytest.approx(
            forces_nc[n, c], rel=1e-6, abs=1e-6 * np.abs(forces_nc).max()
        )


def test_stress_is_the_strain_derivative(model):
    atoms = alloy(101)
    atoms.calc = Calculator(model)
    stress_v = atoms.get_stress()
    for v, (c, d) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):

        def energy_at(h: float, c: int = c, d: int = d) -> float:
            strain_cd = np.eye(3)
            strain_cd[c, d] += 0.5 * h
            strain_cd[d, c] += 0.5 * h
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain_cd, scale_atoms=True)
            strained.calc = atoms.calc
            return strained.get_potential_energy()

        derivative = five_points(energy_at, 5e-4) / atoms.get_volume()
        assert derivative == pytest.approx(stress_v[v], rel=1e-6, abs=1e-6 * np.abs(stress_v).max())


def test_agrees_with_predict(model):
    atoms = alloy(102)
    expected = model.predict([atoms], return_std=True)
    atoms.calc = Calculator(model)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy[0], rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), expected.forces[0], atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), expected.stress[0], atol=1e-14)
    np.testing.assert_allclose(atoms.get_stresses().sum(axis=0), expected.stress[0], atol=1e-14)
    assert "energy_std" not in atoms.calc.results
    std = atoms.calc.get_property("energy_std", atoms)
    assert std == pytest.approx(expected.energy_std[0], rel=1e-10)
    assert atoms.calc.results["forces"].shape == (len(atoms), 3)  # kept beside it


def test_energy_std_alone_computes_no_forces(model):
    calculator = Calculator(model)
    calculator.get_property("energy_std", alloy(102))
    assert set(calculator.results) == {"energy_std"}


def test_any_change_gives_what_a_fresh_calculator_gives(model):
    rng = np.random.default_rng(0)
    atoms = alloy(103)
    atoms.calc = Calculator(model, skin=0.6)
    assert_as_fresh(model, atoms)
    for _ in range(5):  # within the skin
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        assert_as_fresh(model, atoms)
    atoms.positions[3] += 1.5  # beyond it
    assert_as_fresh(model, atoms)
    atoms.numbers = rng.permutation(atoms.numbers)  # same list, other species
    assert_as_fresh(model, atoms)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * rng.normal(size=(3, 3))), True)
    assert_as_fresh(model, atoms)
    atoms.set_cell(1.05 * atoms.cell.array, scale_atoms=True)
    assert_as_fresh(model, atoms)
    atoms.pbc = (True, True, False)
    assert_as_fresh(model, atoms)
    atoms.pbc = False
    assert_as_fresh(model, atoms)
    atoms.pbc = True
    assert_as_fresh(model, atoms)
    atoms.wrap()
    assert_as_fresh(model, atoms)
    atoms += Atoms("Au", positions=[atoms.positions[0] + 0.5 * atoms.cell.array.sum(axis=0)])
    assert_as_fresh(model, atoms)
    del atoms[5]
    assert_as_fresh(model, atoms)
    reordered = atoms[::-1]
    reordered.calc = atoms.calc
    assert_as_fresh(model, reordered)


def test_relaxation_of_cell_and_atoms_ends_without_stress(model):
    atoms = alloy(104, amplitude=0.05, size=1)
    atoms.calc = Calculator(model)
    with BFGS(FrechetCellFilter(atoms), logfile=None) as optimiser:
        assert optimiser.run(fmax=1e-5, steps=400)
    assert np.abs(atoms.get_stress()).max() < 1e-6
    assert np.abs(atoms.get_forces()).max() < 1e-3


def test_strain_filter(model):
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
    atoms.calc = Calculator(model)
    with BFGS(StrainFilter(atoms), logfile=None) as optimiser:
        optimiser.run(fmax=1e-4, steps=100)
    assert np.abs(atoms.get_stress()).max() < 1e-5


def test_nve_conserves_energy_and_keeps_neighbours(model):
    atoms = alloy(105, amplitude=0.0)
    atoms.calc = Calculator(model)
    thermalise(atoms, 600.0, seed=1)
    assert atoms.get_temperature() == pytest.approx(600.0)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-10
    samples = run(atoms, "nve", temperature=0.0, timestep=2.0, steps=200, log_interval=2)
    drift = energy_drift([s.time for s in samples], [s.conserved for s in samples], len(atoms))
    kinetic = 1.5 * units.kB * samples[-1].temperature * 1e3
    assert abs(drift.change) < 2e-3 * kinetic
    assert drift.fluctuation < 5e-3 * kinetic
    assert len(samples) == 101
    assert samples[-1].step == 200
    assert atoms.calc._pair_list.n_builds < 40


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_thermostats_conserve_what_they_should(model, ensemble):
    atoms = alloy(106, amplitude=0.05)
    atoms.calc = Calculator(model)
    thermalise(atoms, 400.0, seed=2)
    volume = atoms.get_volume()
    samples = run(
        atoms, ensemble, temperature=400.0, timestep=2.0, steps=100, pressure=1.0, log_interval=5
    )
    drift = energy_drift([s.time for s in samples], [s.conserved for s in samples], len(atoms))
    assert abs(drift.change) < 0.5  # meV/atom, of 52 kinetic
    assert (atoms.get_volume() != volume) == (ensemble == "npt")


def test_run_is_repeatable(model):
    ends = []
    for _ in range(2):
        atoms = alloy(107, amplitude=0.02)
        atoms.calc = Calculator(model)
        thermalise(atoms, 300.0, seed=3)
        run(atoms, "nvt", temperature=300.0, timestep=2.0, steps=10, seed=4)
        ends.append(atoms.get_positions())
    np.testing.assert_array_equal(*ends)


def test_a_run_can_be_resumed(model, tmp_path):
    atoms = alloy(108, amplitude=0.02)
    atoms.calc = Calculator(model)
    thermalise(atoms, 300.0, seed=3)
    path = tmp_path / "traj.extxyz"
    start = atoms.copy()
    run(atoms, "nve", temperature=0, timestep=2.0, steps=20, trajectory=path)
    again, first_step = resume_from(path)
    assert first_step == 20
    again.calc = Calculator(model)
    run(again, "nve", temperature=0, timestep=2.0, steps=20, trajectory=path, first_step=20)
    frames = read(path, ":")
    assert [frame.info["kernelpot_step"] for frame in frames] == [0, 10, 20, 30, 40]
    assert frames[-1].get_potential_energy() == pytest.approx(again.get_potential_energy())

    through = start.copy()
    through.calc = Calculator(model)
    run(through, "nve", temperature=0, timestep=2.0, steps=40)
    # The file keeps eight decimals.
    np.testing.assert_allclose(again.positions, through.positions, atol=1e-5)


def test_copies_are_independent(model):
    atoms = alloy(109)
    atoms.calc = Calculator(model)
    energy = atoms.get_potential_energy()
    for twin in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert twin.calc is not atoms.calc
        twin.positions[0] += 0.1
        assert twin.get_potential_energy() != energy
        assert_as_fresh(model, twin)
    assert atoms.get_potential_energy() == energy
    assert_as_fresh(model, atoms)


def test_results_go_through_files(model, tmp_path):
    atoms = alloy(110)
    atoms.calc = Calculator(model)
    atoms.get_forces()
    atoms.calc.get_property("energy_std", atoms)
    for name in ("one.extxyz", "one.traj"):
        write(tmp_path / name, atoms)
        back = read(tmp_path / name)
        np.testing.assert_allclose(back.get_forces(), atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(back.get_stress(), atoms.get_stress(), atol=1e-7)


def test_calculator_from_file(model, tmp_path):
    model.save(tmp_path / "alloy.kpot")
    atoms = alloy(111)
    atoms.calc = Calculator(tmp_path / "alloy.kpot")
    energy = atoms.get_potential_energy()
    atoms.calc = Calculator(str(tmp_path / "alloy.kpot"))
    assert atoms.get_potential_energy() == energy
    assert energy == model.predict([atoms]).energy[0]


def test_stress_needs_three_periodic_directions(model):
    atoms = alloy(112)
    atoms.pbc = (True, True, False)
    atoms.calc = Calculator(model)
    energy = atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError, match=r"three directions; pbc is \[True, T"):
        atoms.get_stress()
    assert atoms.get_potential_energy() == energy


def break_positions(atoms: Atoms) -> None:
    atoms.positions[4, 1] = np.nan


def break_cell(atoms: Atoms) -> None:
    atoms.cell[2] = atoms.cell[0] + atoms.cell[1]


def break_vector(atoms: Atoms) -> None:
    atoms.cell[1] = 0.0


def break_species(atoms: Atoms) -> None:
    atoms.numbers[0] = 6


def break_distance(atoms: Atoms) -> None:
    atoms.positions[2] = atoms.positions[9] + 0.01


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (break_positions, r"not finite, the first of atom 4 \("),
        (break_cell, "span no volume"),
        (break_vector, "span no volume"),
        (break_species, "contains C, but the model was fitted with Cu, Au only"),
        (break_distance, "atoms 2 and 9 are 0.0173 A apart"),
    ],
)
def test_errors_teach_and_leave_nothing_stale(model, break_it, message):
    atoms = alloy(113)
    atoms.calc = Calculator(model)
    good = atoms.copy()
    energy = atoms.get_potential_energy()
    break_it(atoms)
    for _ in range(2):  # the second call must not find results of the first
        with pytest.raises(ValueError, match=message):
            atoms.get_potential_energy()
        assert atoms.calc.results == {}
    good.calc = atoms.calc
    assert good.get_potential_energy() == pytest.approx(energy, rel=1e-12)


def test_wrong_arguments(model, tmp_path):
    with pytest.raises(ValueError, match="call fit first"):
        Calculator(KernelPotential())
    with pytest.raises(ValueError, match="skin must be zero or positive"):
        Calculator(model, skin=-0.1)
    with pytest.raises(FileNotFoundError):
        Calculator(tmp_path / "nothing.kpot")


def test_dynamics_errors(model):
    atoms = molecule("H2")
    atoms.calc = Calculator(model)
    fine = {"temperature": 300.0, "timestep": 1.0, "steps": 1}
    with pytest.raises(ValueError, match="ensemble 'nvp' is unknown: choose nve, nvt, npt"):
        run(atoms, "nvp", **fine)
    with pytest.raises(ValueError, match="npt needs a cell"):
        run(atoms, "npt", **fine)
    with pytest.raises(ValueError, match="timestep must be positive"):
        run(atoms, "nve", **{**fine, "timestep": 0.0})
    with pytest.raises(ValueError, match="steps and log_interval"):
        run(atoms, "nve", **{**fine, "steps": 0})
    with pytest.raises(ValueError, match="temperature must not be negative"):
        thermalise(atoms, -1.0, seed=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        run(atoms, "nvt", **{**fine, "temperature": 0.0})


def test_small_parts_of_dynamics():
    assert parse_supercell("2x3X4") == (2, 3, 4)
    assert parse_supercell("2") == (2, 2, 2)
    for text in ("2x2", "0x1x1", "axbxc", ""):
        with pytest.raises(ValueError, match="2x2x2"):
            parse_supercell(text)
    drift = energy_drift([0.0, 500.0, 1000.0], [1.0, 1.004, 1.008], n_atoms=4)
    np.testing.assert_allclose(drift, (2.0, 2.0, 0.0), atol=1e-12)
    assert np.isnan(energy_drift([0.0], [1.0], 1)).all()
    atoms = molecule("H2O")
    atoms.info["REF_energy"] = 3.0
    atoms.arrays["REF_forces"] = np.ones((3, 3))
    bare = bare_copy(atoms)
    assert not bare.info
    assert set(bare.arrays) == {"numbers", "positions", "masses"}
