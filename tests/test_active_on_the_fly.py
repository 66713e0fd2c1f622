"""The calculator that asks its oracle when it is unsure: it ends where the oracle's own ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc100
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.md.bussi import Bussi
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelpot import KernelPotential, Soap, load
from kernelpot.active.journal import JournalError, read_entries
from kernelpot.active.learner import replay
from kernelpot.active.on_the_fly import OnTheFlyCalculator
from kernelpot.data_files import read_images
from kernelpot.dynamics import thermalise
from tests.conftest import label

ROOT = Path(__file__).parent.parent


def small_model():
    return KernelPotential(
        Soap(cutoff=4.0, n_max=4, l_max=3, sigma=0.5), n_environments=20, n_tangents=5
    )


def copper(amplitude=0.05, seed=0):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(amplitude, seed=seed)
    return atoms


def force_error(atoms):
    """Root mean square of what the forces of the atoms are off."""
    truth = atoms.copy()
    truth.calc = EMT()
    return float(np.sqrt(np.mean((truth.get_forces() - atoms.get_forces()) ** 2)))


# ------------------------------------------------------------------------------- scripts of ASE


def test_constant_energy_dynamics():
    """64 atoms: the oracle is asked at the beginning, and then only where something is new."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 4)
    thermalise(atoms, 1000.0, 0)
    atoms.calc = OnTheFlyCalculator(small_model(), EMT(), tolerance=0.05)
    errors, energies, asked = [], [], []
    for step, _ in enumerate(VelocityVerlet(atoms, 3.0 * units.fs).irun(80)):
        asked.append(atoms.calc.results["labelled"])
        energies.append(atoms.get_total_energy() / len(atoms))
        if step % 10 == 0:
            errors.append(force_error(atoms))
    calc = atoms.calc
    assert asked[:4] == [True] * 4
    assert calc.n_calls == len(asked) == 81
    assert calc.n_labels == sum(asked) < 25
    assert max(errors) < 0.1  # the largest of an atom was to be 0.05 at most as expected
    assert np.ptp(energies) < 0.004  # jumps of the model's errors, eV/atom


def test_the_threshold_may_follow_what_is_left_after_learning():
    """A tolerance that is out of reach does not ask the oracle at every step then."""
    asked = {}
    for threshold in ("tolerance", "history"):
        atoms = bulk("Cu", cubic=True) * 2
        thermalise(atoms, 900.0, 0)
        atoms.calc = OnTheFlyCalculator(small_model(), EMT(), tolerance=1e-4, threshold=threshold)
        VelocityVerlet(atoms, 3.0 * units.fs).run(25)
        asked[threshold] = atoms.calc.n_labels
    assert asked["history"] < 0.8 * asked["tolerance"]


def test_thermostat_and_what_results_hold():
    atoms = bulk("Cu", cubic=True) * 2
    thermalise(atoms, 600.0, 1)
    atoms.calc = calc = OnTheFlyCalculator(small_model(), EMT(), tolerance=0.05)
    rng = np.random.default_rng(0)
    dynamics = Bussi(atoms, 3.0 * units.fs, temperature_K=600.0, taut=50.0 * units.fs, rng=rng)
    for step, _ in enumerate(dynamics.irun(40)):
        truth = atoms.copy()
        truth.calc = EMT()
        if calc.results["labelled"]:
            # The oracle's own, to the bit.
            assert atoms.get_potential_energy() == truth.get_potential_energy()
            assert np.array_equal(atoms.get_forces(), truth.get_forces())
            assert np.array_equal(atoms.get_stress(), truth.get_stress())
        elif step % 10 == 0:
            assert calc.results["energy"] == pytest.approx(calc.model.predict([atoms]).energy[0])
    assert 4 <= calc.n_labels < 15
    calls = calc.n_calls
    assert calc.get_property("novelty", atoms).shape == (32,)
    assert calc.get_property("forces_error", atoms).shape == (32, 3)
    assert calc.get_property("free_energy", atoms) == atoms.get_potential_energy()
    assert calc.n_calls == calls  # nothing was computed again


def test_a_relaxation_ends_where_that_of_the_oracle_does():
    atoms = bulk("Cu", cubic=True) * 2
    del atoms[0]
    atoms.rattle(0.15, seed=1)
    mine = atoms.copy()
    atoms.calc = EMT()
    assert BFGS(atoms, logfile=None).run(fmax=0.01, steps=100)
    mine.calc = OnTheFlyCalculator(small_model(), EMT(), tolerance=0.02)
    relaxation = BFGS(mine, logfile=None)
    assert relaxation.run(fmax=0.01, steps=100)
    assert relaxation.nsteps > 15
    assert mine.calc.n_labels <= relaxation.nsteps // 2
    assert mine.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=0.01)
    assert np.abs(mine.positions - atoms.positions).max() < 0.02


def test_a_cell_is_relaxed_where_stresses_count():
    """No force acts on the atoms of a perfect crystal: without, the oracle is not asked again."""
    ends, asked = [], []
    for stress_tolerance in (None, 0.3):
        atoms = bulk("Cu", a=3.3, cubic=True)
        atoms.calc = OnTheFlyCalculator(
            small_model(), EMT(), tolerance=0.05, stress_tolerance=stress_tolerance, n_first=2
        )
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.005, steps=60)
        truth = atoms.copy()
        truth.calc = EMT()
        ends.append(np.abs(truth.get_stress()).max() / units.GPa)
        asked.append(atoms.calc.n_labels)
    assert ends[1] < 0.5
    assert ends[1] < 0.5 * ends[0]
    assert asked[0] == 2 < asked[1] < 20


def hop(calculators):
    """Barrier of a gold atom on copper, and how many forces were computed."""
    ends = []
    for site in ("hollow", "bridge"):
        slab = fcc100("Cu", (2, 2, 2), vacuum=6.0)
        add_adsorbate(slab, "Au", 1.7, site)
        slab.set_constraint(FixAtoms(indices=[a.index for a in slab if a.tag > 1]))
        ends.append(slab)
    first, top = ends
    top.positions[-1, 0] += 0.5 * np.linalg.norm(first.cell[0]) / 2.0  # on to the next hollow
    for end in (first, top):
        end.calc = calculators()
        BFGS(end, logfile=None).run(fmax=0.03, steps=60)
    images = [first, *(first.copy() for _ in range(3)), top]
    for image in images[1:-1]:
        image.calc = calculators()
    band = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=True)
    band.interpolate(mic=True)
    relaxation = BFGS(band, logfile=None)
    assert relaxation.run(fmax=0.05, steps=80)
    energies = [image.get_potential_energy() for image in images]
    return max(energies) - energies[0], 3 * relaxation.nsteps


def test_an_elastic_band_ends_at_the_barrier_of_the_oracle():
    calc = OnTheFlyCalculator(small_model(), EMT(), tolerance=0.03)
    found, n_forces = hop(lambda: calc)
    truth, _ = hop(EMT)
    assert truth > 0.1
    assert found == pytest.approx(truth, abs=0.02)
    assert calc.n_calls > n_forces > 40
    assert calc.n_labels < calc.n_calls // 3


# ------------------------------------------------------------------------------------ its folder

SECOND = """
import sys
from ase.calculators.emt import EMT
from kernelpot.active.on_the_fly import OnTheFlyCalculator
from tests.test_active_on_the_fly import copper, small_model
calc = OnTheFlyCalculator(small_model(), EMT(), folder=sys.argv[1], n_first=3)
assert calc.n_labels == int(sys.argv[2]) and calc.n_calls == 0
atoms = copper(seed=1)
atoms.calc = calc
print(atoms.get_potential_energy().hex(), calc.n_labels, calc.results["labelled"])
"""


def test_another_process_goes_on_with_the_folder(tmp_path):
    with OnTheFlyCalculator(small_model(), EMT(), folder=tmp_path, n_first=3) as calc:
        atoms = copper()
        atoms.calc = calc
        for seed in range(3):
            atoms.positions = copper(seed=seed).positions
            atoms.get_forces()
        atoms.positions[0] += [0.7, 0.2, 0.0]  # far from all that it knows
        atoms.get_forces()
        assert calc.results["labelled"]
        n_labels = calc.n_labels
        assert n_labels == 4
        model = calc.model
        atoms.positions = copper(seed=1).positions
        energy = atoms.get_potential_energy()
        assert not calc.results["labelled"]
        calc.save(tmp_path / "now.kpot")
    with pytest.raises(JournalError, match="another zeta"):
        OnTheFlyCalculator(small_model().set_params(zeta=2), EMT(), folder=tmp_path, n_first=3)
    weights_m = model.fitted_.weights_m
    for again in (
        replay(tmp_path, small_model()), load(tmp_path / "model.kpot"), load(tmp_path / "now.kpot"),
    ):  # fmt: skip
        assert np.array_equal(again.fitted_.weights_m, weights_m)
    assert len(read_images(tmp_path / "labels.xyz")) == n_labels
    said, again = (
        subprocess.run(
            [sys.executable, "-c", SECOND, str(tmp_path), str(n_labels)],
            capture_output=True, text=True, cwd=ROOT, check=True,
        ).stdout.split()
        for _ in range(2)
    )  # fmt: skip
    assert said == again
    assert said[1:] == [str(n_labels), "False"]
    # A process that has run hundreds of other tests was seen to round otherwise.
    assert float.fromhex(said[0]) == pytest.approx(energy, rel=5e-3)


def test_a_process_that_ended_before_it_learned_loses_no_label(tmp_path):
    calc = OnTheFlyCalculator(small_model(), EMT(), folder=tmp_path, n_first=2)
    for seed in range(2):
        atoms = copper(seed=seed)
        atoms.calc = calc
        atoms.get_forces()
    calc.close()
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert [one.kind for one in read_entries(tmp_path)][-1] == "learned"
    path.write_bytes(b"".join(lines[:-1]))
    with OnTheFlyCalculator(small_model(), refuses, folder=tmp_path, n_first=2) as again:
        assert np.array_equal(again.model.fitted_.weights_m, calc.model.fitted_.weights_m)
    assert [one.kind for one in read_entries(tmp_path)][-1] == "learned"


# ------------------------------------------------------------------------------- bad oracles


def refuses(atoms):
    raise RuntimeError("no licence")


def refuses_wide_cells(atoms):
    if atoms.cell.lengths().max() > 3.8:
        raise RuntimeError("too wide")
    atoms.calc = EMT()
    return atoms


def test_an_oracle_that_fails_at_the_beginning_is_an_error():
    atoms = copper()
    atoms.calc = OnTheFlyCalculator(small_model(), refuses)
    with pytest.raises(CalculationFailed, match=r"knows nothing yet: .*no licence"):
        atoms.get_forces()
    assert (atoms.calc.n_labels, atoms.calc.n_failed) == (0, 1)
    assert not atoms.calc.results


def test_an_oracle_that_fails_later_leaves_the_answer_to_the_model():
    calc = OnTheFlyCalculator(small_model(), refuses_wide_cells, n_first=3, error_every=5)
    for seed in range(3):
        atoms = copper(seed=seed)
        atoms.calc = calc
        atoms.get_forces()
    wide = copper(0.3, seed=7)
    wide.set_cell(1.1 * wide.cell[:], scale_atoms=True)
    wide.calc = calc
    with pytest.warns(RuntimeWarning, match=r"the model answers.*too wide"):
        energy = wide.get_potential_energy()
    assert energy == pytest.approx(calc.model.predict([wide]).energy[0])
    assert not calc.results["labelled"]
    assert calc.n_failed == 1
    for step in range(5):  # it is left in peace
        wide.positions[0, 0] += 0.01
        wide.get_forces()
        assert calc.n_failed == 1, step
    wide.positions[0, 0] += 0.01
    with pytest.warns(RuntimeWarning, match="too wide"):
        wide.get_forces()
    gold = copper()
    gold.numbers[0] = 79
    gold.set_cell(1.1 * gold.cell[:], scale_atoms=True)
    gold.calc = calc
    with pytest.raises(CalculationFailed, match="too wide"):
        gold.get_forces()


def only_energy_and_forces(atoms):
    atoms.calc = EMT()
    return {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}


def test_what_the_oracle_does_not_give_is_the_model_s():
    calc = OnTheFlyCalculator(small_model(), only_energy_and_forces, n_first=2)
    first = copper()
    first.calc = calc
    first.get_forces()
    with pytest.raises(PropertyNotImplementedError):  # there is no model yet
        first.get_stress()
    second = copper(seed=1)
    second.calc = calc
    assert second.get_stress().shape == (6,)
    assert calc.results["labelled"]


# ------------------------------------------------------------------------------- other species


def test_a_new_species_is_labelled_and_learned():
    calc = OnTheFlyCalculator(small_model(), EMT(), n_first=2)
    for seed in range(2):
        atoms = copper(seed=seed)
        atoms.calc = calc
        atoms.get_forces()
    atoms = copper()
    atoms.numbers[0] = 79
    atoms.calc = calc
    atoms.get_forces()
    assert calc.results["labelled"]
    assert calc.model.species_ == (29, 79)
    molecule = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])
    molecule.calc = calc
    assert molecule.get_forces().shape == (2, 3)
    with pytest.raises(PropertyNotImplementedError):
        molecule.get_stress()


# ------------------------------------------------------------------------------------- the door


@pytest.fixture(scope="module")
def few_images():
    return [label(copper(seed=seed)) for seed in range(4)]


def test_a_fitted_model_comes_with_its_structures(few_images):
    fitted = small_model().fit(few_images)
    with pytest.raises(ValueError, match="does not keep the structures"):
        OnTheFlyCalculator(fitted, EMT())
    weights_m = fitted.fitted_.weights_m
    atoms = copper(seed=2)
    atoms.calc = calc = OnTheFlyCalculator(fitted, refuses, images=few_images)
    assert np.array_equal(calc.model.fitted_.weights_m, weights_m)
    atoms.get_forces()
    assert calc.n_labels == 0
    assert len(calc.images) == 4
    assert fitted.fitted_.weights_m is weights_m


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["tolerance", "stress_tolerance", "n_first", "error_every", "window"]),
    value=st.one_of(st.floats(max_value=0.0), st.integers(max_value=0), st.just(float("nan"))),
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        OnTheFlyCalculator(small_model(), EMT(), **{name: value})


@settings(max_examples=15, deadline=None)
@given(
    amplitude=st.floats(0.0, 0.3), seed=st.integers(0, 2**31), scale=st.floats(0.9, 1.1),
    asked=st.sampled_from(["energy", "forces", "stress", "novelty", "forces_error"]),
)  # fmt: skip
def test_any_structure_gets_an_answer(on_the_fly, amplitude, seed, scale, asked):
    """Whatever comes: an answer with all properties, right to the tolerance or the oracle's."""
    atoms = copper(amplitude, seed=seed)
    atoms.set_cell(scale * atoms.cell[:], scale_atoms=True)
    atoms.calc = on_the_fly
    found = on_the_fly.get_property(asked, atoms)
    assert np.isfinite(found).all()
    assert {"energy", "free_energy", "forces", "stress", "novelty"} <= on_the_fly.results.keys()
    if on_the_fly.results["labelled"]:
        assert force_error(atoms) == 0.0
    copied = SinglePointCalculator(atoms, energy=atoms.get_potential_energy())
    assert copied.get_potential_energy() == on_the_fly.results["energy"]


@pytest.fixture(scope="module")
def on_the_fly(few_images):
    return OnTheFlyCalculator(small_model(), EMT(), images=few_images)


def test_labels_that_are_not_believed_are_in_no_file_for_others(tmp_path):
    bad = copper(seed=3)

    def oracle(atoms):
        atoms.calc = EMT()
        forces = atoms.get_forces()
        if np.array_equal(atoms.positions, bad.positions):
            forces = forces + 3e3 * np.random.default_rng(0).normal(size=forces.shape)
        return {"energy": atoms.get_potential_energy(), "forces": forces}

    with OnTheFlyCalculator(small_model(), oracle, folder=tmp_path, n_first=8) as calculator:
        for seed in range(8):
            calculator.get_forces(copper(seed=seed))
        assert calculator.n_labels == 8
    images = read_images(tmp_path / "labels.xyz")
    assert len(images) == 7
    assert max(np.abs(atoms.get_forces()).max() for atoms in images) < 100.0
