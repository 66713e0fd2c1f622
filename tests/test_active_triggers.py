"""Thresholds that set themselves, unphysical states, and the watch that uses both."""

import math

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator as AseCalculator
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelpot import Calculator
from kernelpot.active.records import Verdict
from kernelpot.active.thresholds import (
    Band,
    fit_novelty_map,
    force_tolerance,
    from_history,
    hold,
)
from kernelpot.active.triggers import Watch
from kernelpot.active.unphysical import Closest, Limits, Sanity, temperature_limit
from kernelpot.data import structures_from_atoms
from kernelpot.dynamics import thermalise
from kernelpot.terms.repulsion import closest_distances

from .conftest import alloy, label


class Scripted(AseCalculator):
    """Results as a test wants them; standard deviations on request, and counted."""

    implemented_properties = ("energy", "forces", "novelty", "forces_std", "forces_error")

    def __init__(self, novelty=0.0, std=0.0, energy=0.0, force=0.0):
        super().__init__()
        self.novelty, self.std, self.energy, self.force = novelty, std, energy, force
        self.n_std = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        n = len(self.atoms)
        self.results = {"energy": self.energy, "forces": np.full((n, 3), self.force)}
        if self.novelty is not None:
            self.results["novelty"] = np.array([0.0] * (n - 1) + [self.novelty])
        for factor, name in ((1.0, "forces_std"), (2.0, "forces_error")):
            if name in properties:
                self.n_std += 1
                self.results[name] = factor * np.array([[0.0] * 3] * (n - 1) + [[self.std] * 3])


def seen(atoms=None, **results):
    """Atoms with these results."""
    atoms = bulk("Cu", cubic=True) if atoms is None else atoms
    atoms.calc = Scripted(**results)
    atoms.calc.calculate(atoms)
    return atoms


# Thresholds


def test_tolerance_is_what_can_be_asked_for():
    assert force_tolerance(0.1) == 0.1
    # A model that has just begun is measured by its own errors.
    errors = np.random.default_rng(0).normal(0.0, 0.5, 5000)
    assert force_tolerance(0.1, errors=errors, multiple=2.0) == pytest.approx(1.0, rel=0.05)
    assert force_tolerance(errors=errors, multiple=1.0) == pytest.approx(0.5, rel=0.05)
    assert force_tolerance(0.1, errors=[], multiple=2.0) == 0.1
    assert force_tolerance(0.1, errors=errors) == 0.1
    # One label that went wrong does not move it.
    assert force_tolerance(errors=[*errors, 1e6], multiple=1.0) == pytest.approx(0.5, rel=0.05)
    # What no label takes away is not asked for.
    assert force_tolerance(0.01, floor=0.05) == pytest.approx(math.sqrt(2.0) * 0.05)
    assert force_tolerance(0.2, floor=0.05) == 0.2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"asked": 0.0},
        {"asked": math.inf},
        {"errors": [], "multiple": 1.0},
        {"errors": [math.nan], "multiple": 1.0},
        {"errors": [1.0], "multiple": 0.0},
        {"errors": [0.0], "multiple": 1.0},
        {"asked": 1.0, "floor": -1.0},
        {"asked": 1.0, "floor": math.nan},
    ],
)
def test_tolerance_refuses(options):
    with pytest.raises(ValueError, match=r"tolerance|errors|multiple|floor"):
        force_tolerance(**options)


def test_novelty_map_of_no_and_few_pairs():
    none = fit_novelty_map([], [])
    assert none.threshold(0.1, otherwise=0.03) == 0.03
    assert np.isnan(none.expected_error([0.1, 0.2])).all()
    assert fit_novelty_map([0.0], [1.0]).n_pairs == 0
    # One pair is the square-root law, as far as it may be followed.
    one = fit_novelty_map([0.01], [0.1])
    assert one.expected_error(0.01) == pytest.approx(0.1, rel=0.15)
    assert one.threshold(0.1, 1.0) == pytest.approx(0.01, rel=0.3)
    assert one.threshold(1e-9, 1.0) == pytest.approx(0.0025)
    assert one.threshold(1e9, 1.0) == pytest.approx(0.02)
    two = fit_novelty_map([0.01, 0.04], [0.1, 0.2])
    assert two.threshold(0.15, 1.0) == pytest.approx(0.0225, rel=0.3)


@pytest.mark.parametrize("power", [0.5, 0.8, 1.2])
def test_novelty_map_learns_what_labels_say(power):
    """Errors that grow otherwise than the prior has it, to a quarter of the threshold."""
    rng = np.random.default_rng(1)
    novelty = np.exp(rng.uniform(math.log(1e-4), math.log(0.1), 4000))
    truth = 2.0 * novelty**power
    error = truth * np.sqrt(rng.chisquare(3, 4000) / 3.0)
    found = fit_novelty_map(novelty, error)
    for at in (1e-3, 3e-3, 1e-2):
        assert found.threshold(2.0 * at**power, 1.0) == pytest.approx(at, rel=0.25)


def test_novelty_map_bears_a_label_gone_wrong():
    rng = np.random.default_rng(2)
    novelty = rng.uniform(1e-3, 1e-1, 300)
    error = np.sqrt(novelty * rng.chisquare(3, 300) / 3.0)
    before = fit_novelty_map(novelty, error).threshold(0.2, 1.0)
    error[:3] = 1e4
    assert fit_novelty_map(novelty, error).threshold(0.2, 1.0) == pytest.approx(before, rel=0.3)


@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1e3)), max_size=40),
    st.floats(1e-6, 1e3),
)
@settings(deadline=None)
def test_novelty_maps_never_fall_and_stay_within_bounds(pairs, tolerance):
    pairs = [(n, e) for n, e in pairs if n == 0.0 or n > 1e-9]
    found = fit_novelty_map([n for n, _ in pairs], [e for _, e in pairs])
    some = [n for n, _ in pairs if n > 0.0]
    threshold = found.threshold(tolerance, 0.5)
    if not some:
        assert threshold == 0.5
        return
    assert 0.25 * min(some) * (1 - 1e-9) <= threshold <= 2.0 * max(some) * (1 + 1e-9)
    error = found.expected_error(np.linspace(0.0, 1.0, 200))
    assert np.all(np.diff(error) >= -1e-9 * error.max())
    # A larger tolerance never has a smaller threshold.
    assert found.threshold(2.0 * tolerance, 0.5) >= threshold * (1 - 1e-5)


def test_novelty_map_refuses():
    for bad in (([0.1], []), ([-0.1], [1.0]), ([0.1], [math.nan])):
        with pytest.raises(ValueError, match="novelties"):
            fit_novelty_map(*bad)
    with pytest.raises(ValueError, match="positive"):
        fit_novelty_map([0.1], [0.1]).threshold(0.0, 1.0)


def test_novelty_map_of_a_model_tells_large_errors_from_small(emt_model):
    """Learned from some structures, true for others: errors above the threshold are larger."""
    rng = np.random.default_rng(4)

    def pairs(n):
        novelty, error = [], []
        for k in range(n):
            atoms = label(alloy(rng, amplitude=0.05 + 0.05 * (k % 6)))
            forces_nc = atoms.get_forces()
            atoms.calc = Calculator(emt_model)
            off_nc = atoms.get_forces() - forces_nc
            error.append(np.sqrt(np.mean(off_nc**2, axis=1)))
            novelty.append(atoms.calc.results["novelty"])
        return np.concatenate(novelty), np.concatenate(error)

    found = fit_novelty_map(*pairs(30))
    novelty, error = pairs(30)
    tolerance = 2.0 * float(np.median(error))
    above = novelty > found.threshold(tolerance, 0.1)
    assert 10 < above.sum() < len(above) - 10
    rms = [np.sqrt(np.mean(error[part] ** 2)) for part in (above, ~above)]
    assert rms[0] > tolerance > rms[1]


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_hold_neither_chatters_nor_leaps(previous, proposed):
    found = hold(previous, proposed)
    assert min(previous, proposed) * (1 - 1e-12) <= found <= max(previous, proposed) * (1 + 1e-12)
    assert previous / 3.0 * (1 - 1e-12) <= found <= previous * 3.0 * (1 + 1e-12)
    if previous / 1.19 < proposed < previous * 1.19:
        assert found == previous
    assert hold(None, proposed) == proposed
    # It gets there.
    for _ in range(60):
        found = hold(found, proposed)
    assert abs(math.log(found / proposed)) <= math.log(1.2) + 1e-9


def test_hold_refuses():
    for bad in ((1.0, 0.0, {}), (math.inf, 1.0, {}), (1.0, 1.0, {"most": 0.5})):
        with pytest.raises(ValueError, match="must be"):
            hold(bad[0], bad[1], **bad[2])


def test_history_sets_the_threshold_as_in_vasp():
    rng = np.random.default_rng(5)
    steady = (0.05 + 0.005 * rng.normal(size=10)).tolist()
    assert from_history(0.002, steady) == pytest.approx(np.mean(steady))
    assert from_history(0.002, [9.0, 9.0, *steady]) == pytest.approx(np.mean(steady))
    assert from_history(0.002, steady, excess=-0.1) == pytest.approx(0.9 * np.mean(steady))
    half = from_history(0.002, steady, mixing=0.5)
    assert half == pytest.approx(0.5 * (0.002 + np.mean(steady)))
    # Too few, a jump, a trend: what was, stays.
    assert from_history(0.002, steady[:9]) == 0.002
    assert from_history(0.002, [*steady[:9], 0.5]) == 0.002
    trend = np.linspace(0.01, 0.03, 10)
    assert from_history(0.002, trend, spread=1.0, slope=0.05) == 0.002
    assert from_history(0.002, trend, spread=1.0, slope=0.2) == pytest.approx(0.02)
    assert from_history(0.002, [0.0] * 10) == 0.002


@given(st.lists(st.floats(0.0, 1e3), max_size=30), st.floats(1e-6, 1e3), st.floats(0.01, 1.0))
@settings(deadline=None)
def test_history_of_anything(history, threshold, mixing):
    found = from_history(threshold, history, mixing=mixing)
    around = [threshold, *history[-10:]]
    assert min(around) * (1 - 1e-9) <= found <= max(around) * (1 + 1e-9)
    assert found > 0.0


def test_history_refuses():
    for bad in (
        (0.0, [], {}),
        (1.0, [math.nan], {}),
        (1.0, [-1.0], {}),
        (1.0, [], {"length": 1}),
        (1.0, [], {"mixing": 0.0}),
        (1.0, [], {"excess": -1.0}),
    ):
        with pytest.raises(ValueError, match="history"):
            from_history(bad[0], bad[1], **bad[2])


# Unphysical states


def known_distances(images):
    numbers = np.unique(np.concatenate([atoms.numbers for atoms in images]))
    return Closest(numbers, closest_distances(structures_from_atoms(images), numbers, 5.0))


@given(st.integers(0, 10_000), st.floats(0.0, 0.6))
@settings(deadline=None, max_examples=30)
def test_distances_against_a_search_of_all_pairs(seed, amplitude):
    rng = np.random.default_rng(seed)
    numbers = np.array([29, 79])
    distance_zz = np.array([[2.2, 2.4], [2.4, 2.6]])
    sanity = Sanity(Limits(Closest(numbers, distance_zz), near=0.9, hopeless=0.6))
    atoms = alloy(rng)
    for _ in range(5):  # the kept pairs must stay those of the moving atoms
        atoms.positions += rng.normal(0.0, 0.5 * amplitude, atoms.positions.shape)
        i_p, j_p, r_p = neighbor_list("ijd", atoms, 3.0)
        ratio = [
            r / distance_zz[int(atoms.numbers[i] == 79), int(atoms.numbers[j] == 79)]
            for i, j, r in zip(i_p, j_p, r_p, strict=True)
        ]
        nearest = min(ratio, default=np.inf)
        found = sanity.look(seen(atoms))
        if nearest < 0.9:
            assert found.reason == "too close"
            assert found.worth_a_label == (nearest >= 0.6)
        else:
            assert found is None


def test_training_structures_are_physical(emt_images):
    closest = known_distances(emt_images)
    for atoms in emt_images:
        assert Sanity(Limits(closest)).look(seen(atoms.copy())) is None


def test_a_species_without_distances():
    closest = known_distances([label(bulk("Cu"))])
    with pytest.raises(ValueError, match="not of Au"):
        Sanity(Limits(closest, near=1.0)).look(seen(Atoms("CuAu", [[0, 0, 0], [0, 0, 1.0]])))
    with pytest.raises(ValueError, match="not of Al"):
        Sanity(Limits(closest, near=1.0)).look(seen(Atoms("CuAl", [[0, 0, 0], [0, 0, 1.0]])))


@pytest.mark.parametrize("results", [{"energy": np.nan}, {"force": np.inf}])
def test_what_is_not_finite(results):
    found = Watch()(seen(**results))
    assert found[:3] == (True, False, "not finite")
    atoms = seen()
    atoms.positions[0, 0] = np.nan
    assert Watch()(atoms).reason == "not finite"


def test_results_that_are_missing():
    atoms = bulk("Cu")
    atoms.calc = Scripted()
    with pytest.raises(ValueError, match="get_forces"):
        Watch()(atoms)


def test_temperature_that_runs_away():
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    limits = Limits(temperature=temperature_limit(300.0, len(atoms)))
    watch = Watch(limits=limits)
    thermalise(atoms, 500.0, 0)
    assert not watch(seen(atoms)).stop
    thermalise(atoms, 700.0, 0)
    assert watch(seen(atoms)) == Verdict(True, False, "temperature", 0.0)
    # Atoms that are held have no temperature.
    atoms.set_constraint(FixAtoms(range(16)))
    atoms.set_momenta(np.full((32, 3), 0.0))
    momenta = np.zeros((32, 3))
    momenta[16:] = np.sqrt(limits.temperature * units.kB * atoms.get_masses()[16:, None])
    atoms.set_momenta(0.99 * momenta)
    assert not watch(seen(atoms)).stop
    atoms.set_momenta(1.01 * momenta)
    assert watch(seen(atoms)).stop


@pytest.mark.parametrize("n_atoms", [2, 9, 64])
def test_the_temperature_of_few_atoms_may_fluctuate(n_atoms):
    """Canonical kinetic energies: a chi-squared number of 3 N degrees of freedom."""
    drawn = np.random.default_rng(6).chisquare(3 * n_atoms, 100_000) / (3 * n_atoms)
    assert np.all(drawn < temperature_limit(1.0, n_atoms))


def test_volume_energy_and_drift():
    atoms = bulk("Cu", cubic=True)
    watch = Watch(limits=Limits(volume=1.5, lowest_energy=-2.0, drift=0.1))
    assert not watch(seen(atoms.copy())).stop
    for factor in (1.2, 1 / 1.2):
        other = atoms.copy()
        other.set_cell(atoms.cell[:] * factor, scale_atoms=True)
        assert watch(seen(other))[:3] == (True, True, "volume")
    assert watch(seen(atoms.copy(), energy=-8.1))[:3] == (True, True, "energy")
    assert watch(seen(atoms.copy(), energy=0.5))[:3] == (True, False, "drift")
    thermalise(atoms, 1000.0, 0)  # 0.129 eV/atom of kinetic energy
    assert watch(seen(atoms)).reason == "drift"
    watch.restart()
    assert not watch(seen(atoms)).stop
    # Without a cell there is no volume to run away.
    free = Atoms("Cu2", [[0, 0, 0], [0, 0, 3.0]])
    watch.restart()
    assert not watch(seen(free)).stop
    free.positions *= 9.0
    assert not watch(seen(free)).stop


def test_a_molecule_that_loses_an_atom():
    pair = molecule("CH3CH2OH") + molecule("H2O")
    pair.positions[-3:] += [8.0, 0.0, 0.0]
    watch = Watch(limits=Limits(stretch=1.5))
    for _ in range(25):
        assert not watch(seen(pair)).stop
    leaving = pair.copy()
    leaving.positions[8] += 3.0 * (leaving.positions[8] - leaving.positions.mean(axis=0))
    verdicts = [watch(seen(leaving)) for _ in range(10)]
    assert sum(v.stop for v in verdicts) == 1
    assert [v.reason for v in verdicts if v.stop] == ["fragments"]
    watch.restart()
    assert not any(watch(seen(leaving)).stop for _ in range(12))


@pytest.mark.parametrize(
    "options",
    [
        {"near": 0.4},
        {"near": 1.1},
        {"temperature": 0.0},
        {"volume": 1.0},
        {"drift": math.nan},
        {"stretch": 1.0},
        {"lowest_energy": math.nan},
    ],
)
def test_limits_refuse(options):
    with pytest.raises(ValueError, match="must"):
        Limits(**options)


# Watch


def test_below_and_above():
    watch = Watch(novelty=Band(0.1, 0.2), cooldown=0)
    assert watch(seen(novelty=0.05)) == Verdict(False, False, "", 0.5)
    assert watch(seen(novelty=0.15)) == Verdict(False, True, "novelty", pytest.approx(1.5))
    assert watch(seen(novelty=0.25)) == Verdict(True, True, "novelty", pytest.approx(2.5))
    assert math.isnan(watch(seen(novelty=None)).score)


def test_standard_deviations_come_every_so_many_steps():
    watch = Watch(error=Band(0.1, 0.2), uncertainty="forces_std", std_every=25)
    atoms = seen(std=0.15)
    verdicts = [watch(atoms) for _ in range(100)]
    assert [k for k, v in enumerate(verdicts) if v.unsure] == [0, 25, 50, 75]
    assert watch.n_std == 4
    assert atoms.calc.n_std == 1  # the calculator keeps what it has computed
    assert verdicts[0] == Verdict(False, True, "forces_std", pytest.approx(1.5))
    assert Watch(error=Band(0.1, 0.2), std_every=1)(seen(std=0.15)).stop


def test_standard_deviations_come_near_the_threshold_of_novelty():
    watch = Watch(novelty=Band(0.1), error=Band(0.1), std_near=0.5, std_gap=10, cooldown=15)
    assert [watch(seen(novelty=0.04, std=1.0)).unsure for _ in range(50)] == [False] * 50
    assert watch.n_std == 0
    found = [watch(seen(novelty=0.06, std=1.0)) for _ in range(25)]
    assert watch.n_std == 2  # the second where the cooldown has ended
    assert [k for k, one in enumerate(found) if one.unsure] == [0, 15]
    assert found[0].reason == found[15].reason == "forces_error"


def test_what_is_known_of_errors_decides():
    watch = Watch(novelty=Band(0.1), error=Band(1.0), std_gap=2)
    novel = seen(novelty=0.2, std=0.1)  # the calibrated error is twice the standard deviation
    assert watch(novel) == Verdict(False, False, "", pytest.approx(0.2))
    assert watch(novel) == Verdict(False, True, "novelty", pytest.approx(2.0))  # not computed


def test_looks_are_a_fair_sample():
    watch = Watch(novelty=Band(0.1), error=Band(1.0), std_every=10, std_gap=1)
    for _ in range(2):  # from the second start on as from the first
        for step in range(25):
            near = step % 10 == 5
            watch(seen(novelty=0.09 if near else 0.01, std=0.3 if near else 0.1))
        watch.restart()
    assert watch.looks == pytest.approx([0.2] * 6)


def test_errors_as_calibrated_or_standard_deviations():
    found = {
        name: Watch(error=Band(0.1), uncertainty=name, std_every=1)(seen(std=0.06))
        for name in ("forces_error", "forces_std")
    }
    assert found["forces_error"] == Verdict(False, True, "forces_error", pytest.approx(1.2))
    assert found["forces_std"] == Verdict(False, False, "", pytest.approx(0.6))


def test_stresses_count_as_forces_on_an_area(emt_model, emt_images):
    """An expanded crystal, on whose atoms no force acts, is unsure by its stress alone."""
    atoms = bulk("Cu", a=4.1, cubic=True)
    atoms.calc = Calculator(emt_model)
    atoms.get_potential_energy()
    stress_error = np.sqrt(np.mean(atoms.calc.get_property("stress_error", atoms) ** 2))
    force_error = np.sqrt((atoms.calc.get_property("forces_error", atoms) ** 2).mean(axis=1).max())
    area = 3.0 * force_error / stress_error
    found = {
        area: Watch(error=Band(2.0 * force_error), area=area, std_every=1)(atoms)
        for area in (0.0, 0.5 * area, area)
    }
    assert found[0.0] == Verdict(False, False, "", pytest.approx(0.5))
    assert found[0.5 * area] == Verdict(False, False, "", pytest.approx(0.75))
    assert found[area] == Verdict(False, True, "stress_error", pytest.approx(1.5))
    found = Watch(error=Band(1e-6), area=area, std_every=1, uncertainty="forces_std")(atoms)
    assert found.reason == "stress_std"
    cluster = emt_images[-1].copy()  # without a volume
    cluster.calc = Calculator(emt_model)
    cluster.get_potential_energy()
    assert Watch(error=Band(1e-6), area=1e6, std_every=1)(cluster).reason == "forces_error"


def test_neighbouring_frames_are_not_all_candidates():
    watch = Watch(novelty=Band(0.1, 1.0), cooldown=20, leap=1.5)
    found = [watch(seen(novelty=0.12)).unsure for _ in range(45)]
    assert [k for k, unsure in enumerate(found) if unsure] == [0, 20, 40]
    # One that is far worse is, at once.
    assert not watch(seen(novelty=0.15)).unsure
    assert watch(seen(novelty=0.19)).unsure
    assert not watch(seen(novelty=0.19)).unsure
    watch.restart()
    assert watch(seen(novelty=0.12)).unsure


@given(
    st.lists(st.floats(0.0, 1.0), max_size=60),
    st.floats(1e-3, 1.0),
    st.floats(1.0, 3.0),
    st.integers(0, 30),
)
@settings(deadline=None, max_examples=40)
def test_verdicts_follow_from_what_was_seen(novelties, lower, ratio, cooldown):
    atoms = bulk("Cu")
    watch = Watch(novelty=Band(lower, ratio * lower), cooldown=cooldown)
    runs = []
    for _ in range(2):
        runs.append([watch(seen(atoms, novelty=novelty)) for novelty in novelties])
        watch.restart()
    assert runs[0] == runs[1]
    for novelty, verdict in zip(novelties, runs[0], strict=True):
        assert verdict.stop == (novelty > ratio * lower)
        assert not verdict.unsure or verdict.score > 1.0
        assert bool(verdict.reason) == (verdict.stop or verdict.unsure)


@pytest.mark.parametrize(
    "options",
    [
        {"novelty": Band(0.2, 0.1)},
        {"novelty": Band(0.0, 0.1)},
        {"error": Band(math.nan, 0.1)},
        {"cooldown": -1},
        {"std_gap": 0},
        {"std_near": -0.1},
        {"leap": 0.5},
        {"uncertainty": "stress_std"},
        {"std_every": -1},
        {"area": -1.0},
        {"area": math.inf},
    ],
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ValueError, match="must"):
        Watch(**options)


def test_watching_dynamics_of_a_model(emt_model, emt_images):
    """A crystal that is heated until it is unlike its training data: first sure, then not."""
    atoms = bulk("Cu", a=3.8, cubic=True) * (2, 2, 1)
    atoms.calc = Calculator(emt_model)
    atoms.get_forces()
    rest = float(atoms.calc.results["novelty"].max())
    unlike = max(4.0 * rest, 0.01)
    watch = Watch(
        novelty=Band(unlike, 8.0 * unlike),
        error=Band(0.5, 4.0),
        uncertainty="forces_std",
        limits=Limits(known_distances(emt_images)),
        cooldown=5,
        std_every=20,
    )
    thermalise(atoms, 50.0, 0)
    cold = []
    md = VelocityVerlet(atoms, 2 * units.fs)
    md.attach(lambda: cold.append(watch(atoms)))
    md.run(40)
    assert not any(v.unsure or v.stop for v in cold)
    assert watch.n_std == 3  # of 41 calls
    thermalise(atoms, 6000.0, 0)
    hot = []
    for _ in range(200):
        md.run(1)
        hot.append(watch(atoms))
        if hot[-1].stop:
            break
    assert any(v.unsure for v in hot)
    assert all(v.score > 1.0 for v in hot if v.unsure and v.reason in ("novelty", "forces_std"))
