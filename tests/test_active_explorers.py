"""Explorers: what all share, dynamics with ramps, and biased dynamics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet

from kernelpot import KernelPotential, Soap
from kernelpot.active.explorers.biased import BiasedCalculator, BiasedDynamics
from kernelpot.active.explorers.dynamics import (
    CellRescaling,
    Dynamics,
    automatic_timestep,
    degrees_of_freedom,
)
from kernelpot.active.explorers.paths import Relaxation
from kernelpot.active.explorers.protocol import EvenlySpaced, Track
from kernelpot.active.records import Verdict
from kernelpot.calculator import Calculator
from kernelpot.descriptors import SmoothBump
from kernelpot.dynamics import thermalise
from tests.conftest import alloy

CALM = Verdict(False, False, "", 0.0)


def calm(atoms):
    return CALM


def cluster(seed=3, amplitude=0.05):
    atoms = Atoms("Cu2Au2", positions=[[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0], [1.3, 0.7, 2.1]])
    atoms.positions += np.random.default_rng(seed).normal(0, amplitude, (4, 3))
    return atoms


def crystal(seed=5, amplitude=0.08):
    return alloy(np.random.default_rng(seed), amplitude, 0.01)


@pytest.fixture(scope="module")
def smooth_model(emt_images):
    """With a bump, not a cosine: its kink in the second derivative shows in differences."""
    soap = Soap(cutoff=4.0, n_max=4, l_max=3, sigma=0.5, smoothing=SmoothBump(width=1.5))
    model = KernelPotential(soap, n_environments=20, n_tangents=5, sigma_stress=1e-3)
    return model.fit(emt_images)


@pytest.fixture(scope="module")
def bad_model(emt_images, emt_soap):
    """Fitted to two structures: nonsense at 5000 K."""
    model = KernelPotential(
        emt_soap, n_environments=6, n_tangents=3, sigma_energy=1e-3, sigma_forces=0.05,
        sigma_stress=1e-3, core_repulsion=False,
    )  # fmt: skip
    return model.fit(emt_images[:2])


def same_bits(one, other):
    """Whether two explorations are the same to the bit."""
    pairs = [
        *zip(one.frames, other.frames, strict=True),
        *((a.atoms, b.atoms) for a, b in zip(one.candidates, other.candidates, strict=True)),
        (one.last, other.last),
    ]
    return (
        one.note == other.note
        and one.n_steps == other.n_steps
        and [c[1:] for c in one.candidates] == [c[1:] for c in other.candidates]
        and all(
            a.positions.tobytes() == b.positions.tobytes()
            and a.cell.array.tobytes() == b.cell.array.tobytes()
            and a.get_momenta().tobytes() == b.get_momenta().tobytes()
            for a, b in pairs
        )
    )


# ------------------------------------------------------------------------------------ protocol


@pytest.mark.parametrize("n_seen", [1, 7, 40, 41, 1000])
def test_evenly_spaced_frames_of_any_number(n_seen):
    kept = EvenlySpaced(10)
    for k in range(n_seen):
        kept.add(lambda k=k: k)
    assert min(10, n_seen) <= len(kept.kept) <= 20
    assert kept.kept[0] == 0
    assert len(set(np.diff(kept.kept))) <= 1
    # The last one is nearer to the end than one stride.
    stride = kept.kept[1] - kept.kept[0] if len(kept.kept) > 1 else 1
    assert n_seen - 1 - kept.kept[-1] < stride


def test_the_most_uncertain_of_a_stretch_is_the_candidate(emt_model):
    scores = iter([0.5, 1.5, 3.0, 2.0, 1.2, 0.1, 1.1, 1.3])
    atoms = crystal()
    atoms.calc = Calculator(emt_model)

    def watch(atoms):
        score = next(scores)
        return Verdict(False, score > 1.0, "novelty", score)

    track = Track("here", watch, spacing=5)
    for _ in range(8):
        track.look(atoms)
    found = track.exploration("note")
    assert [(c.step, c.score) for c in found.candidates] == [(2, 3.0), (7, 1.3)]
    assert found.finished
    assert found.n_steps == 8


def test_what_is_kept_carries_nothing_that_would_spoil_a_label(emt_model):
    # A fixed atom's force would be labelled as zero.
    start = crystal()
    start.info["REF_energy"] = 3.0
    start.set_array("REF_forces", np.ones((len(start), 3)))
    start.set_initial_magnetic_moments(np.arange(len(start)))
    start.set_constraint(FixAtoms([0]))
    unsure = Verdict(False, True, "novelty", 2.0)
    found = Dynamics(n_steps=5, spacing=2).explore(
        Calculator(emt_model), start, lambda _: unsure, np.random.default_rng(0)
    )
    for atoms in [*found.frames, *(c.atoms for c in found.candidates)]:
        assert not atoms.constraints
        assert atoms.calc is None
        assert not atoms.info
        assert "REF_forces" not in atoms.arrays
        assert np.array_equal(atoms.get_initial_magnetic_moments(), np.arange(len(start)))
        assert np.array_equal(atoms.positions[0], start.positions[0])
    assert found.last.constraints
    assert np.any(found.last.positions[1] != start.positions[1])
    assert start.has("momenta") is False


def test_dynamics_ends_where_the_watch_says_so(emt_model):
    seen = []

    def watch(atoms):
        assert set(atoms.calc.results) >= {"energy", "forces", "novelty"}
        assert not atoms.calc.check_state(atoms)  # fresh
        seen.append(atoms.positions.copy())
        stop = len(seen) == 5
        return Verdict(stop, stop, "forces_std" if stop else "", 2.0 if stop else 0.1)

    found = Dynamics(n_steps=50).explore(
        Calculator(emt_model), crystal(), watch, np.random.default_rng(0)
    )
    assert not found.finished
    assert found.n_steps == len(seen) == 5
    assert "forces_std" in found.note
    assert [(c.step, c.reason, c.score) for c in found.candidates] == [(4, "forces_std", 2.0)]
    assert np.array_equal(found.candidates[0].atoms.positions, seen[4])
    assert np.array_equal(found.last.positions, seen[3])  # the last with which all was well
    assert found.last.get_momenta().any()


def test_a_start_of_which_nothing_is_known_is_where_to_go_on(emt_model):
    stop = Verdict(True, True, "novelty", 9.0)
    for explorer in (Dynamics(n_steps=50), Relaxation()):
        found = explorer.explore(
            Calculator(emt_model), crystal(), lambda _: stop, np.random.default_rng(0)
        )
        assert found.n_steps == len(found.candidates) == 1
        assert np.array_equal(found.last.positions, crystal().positions)


# ------------------------------------------------------------------------------------ dynamics

WAYS = [
    Dynamics(temperature=600.0, n_steps=20),
    Dynamics(temperature=(300.0, 900.0), pressure=(0.0, 5.0), n_steps=20),
    BiasedDynamics(temperature=300.0, sigma="posterior", n_steps=30),
    BiasedDynamics(temperature=300.0, pressure=1.0, sigma="novelty", n_steps=30),
]


@pytest.mark.parametrize("explorer", WAYS, ids=lambda e: e.name)
def test_twice_the_same_bits(emt_model, explorer):
    def watch(atoms):
        novelty = float(atoms.calc.results["novelty"].max())
        return Verdict(False, novelty > 0.01, "novelty", novelty / 0.01)

    once, again, other = (
        explorer.explore(Calculator(emt_model), crystal(), watch, np.random.default_rng(seed))
        for seed in (7, 7, 8)
    )
    assert same_bits(once, again)
    assert not same_bits(once, other)
    assert once.finished
    assert once.n_steps == explorer.n_steps + 1


@pytest.mark.parametrize(
    "explorer",
    [
        Dynamics(temperature=5000.0, n_steps=100, timestep=4.0),
        Dynamics(temperature=5000.0, pressure=20.0, n_steps=100, barostat_time=50.0),
        Dynamics(temperature=5000.0, pressure=-50.0, n_steps=100, barostat_time=50.0),
        BiasedDynamics(temperature=5000.0, strength=5.0, sigma="posterior", n_steps=100),
    ],
    ids=lambda e: e.name,
)
@pytest.mark.parametrize("make", [crystal, cluster], ids=["crystal", "cluster"])
def test_explosions_raise_nothing(bad_model, explorer, make):
    start = make()
    if explorer.pressure is not None and not start.pbc.all():
        explorer = dataclasses.replace(explorer, pressure=None, thermostat_time=1e6)
        start.set_momenta(np.full((len(start), 3), 300.0) * [[1], [-1], [1], [-1]])
    found = explorer.explore(Calculator(bad_model), start, calm, np.random.default_rng(0))
    assert found.n_steps >= 1
    assert np.isfinite(found.last.positions).all()
    assert np.isfinite(found.last.get_momenta()).all()
    assert found.finished == (found.n_steps == explorer.n_steps + 1)
    assert all(np.isfinite(frame.positions).all() for frame in found.frames)
    again = explorer.explore(Calculator(bad_model), start, calm, np.random.default_rng(0))
    assert same_bits(found, again)


def test_an_explosion_is_told_of(bad_model):
    start = crystal()
    start.set_momenta(np.random.default_rng(0).normal(0.0, 1e4, (len(start), 3)))
    explorer = Dynamics(temperature=5000.0, thermostat_time=1e9, timestep=50.0, n_steps=50)
    found = explorer.explore(Calculator(bad_model), start, calm, np.random.default_rng(0))
    assert not found.finished
    assert "exploded" in found.note


class Sudden(AseCalculator):
    """Fails at the third structure as a calculator does of an exploded simulation."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, failure):
        super().__init__()
        self.failure, self.n = failure, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.n += 1
        if self.n == 3 and isinstance(self.failure, Exception):
            raise self.failure
        forces = np.full((len(atoms), 3), np.nan if self.n >= 3 else 0.0)
        self.results = {"energy": 0.0, "forces": forces, "stress": np.zeros(6)}


@pytest.mark.parametrize(
    "failure",
    [ValueError("atoms 0 and 1 are 0.01 A apart"), FloatingPointError("overflow"),
     np.linalg.LinAlgError("singular")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_errors_of_the_calculator_end_it_with_the_last_sane_structure(failure):
    found = Dynamics(n_steps=20).explore(Sudden(failure), crystal(), calm, np.random.default_rng(0))
    assert found.n_steps == 2
    assert not found.finished
    assert "exploded" in found.note
    assert str(failure) in found.note
    assert np.isfinite(found.last.positions).all()


def test_errors_of_the_watch_are_raised(emt_model):
    # They were taken for explosions, and would have come back round after round.
    def watch(atoms):
        raise ValueError("no distances of Au")

    with pytest.raises(RuntimeError, match="watch failed: no distances of Au"):
        Dynamics().explore(Calculator(emt_model), crystal(), watch, np.random.default_rng(0))


def test_errors_of_the_start_are_raised(emt_model):
    with pytest.raises(ValueError, match="Ag"):
        Dynamics().explore(
            Calculator(emt_model), bulk("Ag", cubic=True), calm, np.random.default_rng(0)
        )


def test_a_molecule_neither_drifts_nor_turns_and_has_the_temperature():
    # Half of the degrees of freedom of four atoms are those of the whole, which a thermostat that
    # rescales velocities never heats: with 12 in the place of 6 it would be twice too hot.
    start = cluster(amplitude=0.0)
    assert degrees_of_freedom(start) == 6
    kinetic, drift, turn = [], [], []

    def watch(atoms):
        kinetic.append(atoms.get_kinetic_energy())
        drift.append(np.abs(atoms.get_momenta().sum(axis=0)).max())
        turn.append(np.abs(atoms.get_angular_momentum()).max())
        return CALM

    explorer = Dynamics(temperature=200.0, n_steps=1000, timestep=4.0, thermostat_time=20.0)
    explorer.explore(EMT(), start, watch, np.random.default_rng(1))
    mean = np.mean(kinetic[200:])
    assert mean == pytest.approx(0.5 * 6 * units.kB * 200.0, rel=0.06)
    # chi-squared: the variance of the kinetic energy is 2/6 of the square of its mean
    assert np.var(kinetic[200:]) / mean**2 == pytest.approx(2.0 / 6.0, rel=0.25)
    assert max(drift) < 1e-9
    assert max(turn) < 1e-8


def test_degrees_of_freedom():
    assert degrees_of_freedom(Atoms("H")) == 0
    assert degrees_of_freedom(Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])) == 1
    assert degrees_of_freedom(crystal()) == 3 * len(crystal()) - 3
    fixed = crystal()
    fixed.set_constraint(FixAtoms([0, 1]))
    assert degrees_of_freedom(fixed) == 3 * len(fixed) - 6


def test_a_ramp_leads_from_one_temperature_to_the_other():
    seen = []

    def watch(atoms):
        seen.append(2.0 * atoms.get_kinetic_energy() / (degrees_of_freedom(atoms) * units.kB))
        return CALM

    explorer = Dynamics(
        temperature=(200.0, 1000.0), n_steps=1000, timestep=3.0, thermostat_time=10.0
    )
    explorer.explore(EMT(), bulk("Cu", cubic=True), watch, np.random.default_rng(2))
    parts = np.array(seen[:1000]).reshape(5, 200).mean(axis=1)
    assert parts == pytest.approx([280.0, 440.0, 600.0, 760.0, 920.0], rel=0.15)


def test_momenta_of_the_start_are_kept():
    start = crystal()
    thermalise(start, 400.0, 1)
    first = []
    Dynamics(n_steps=1).explore(
        EMT(), start, lambda a: first.append(a.get_momenta()) or CALM, np.random.default_rng(0)
    )
    assert np.array_equal(first[0], start.get_momenta())


class VolumeSpring(AseCalculator):
    """An ideal gas in a box whose volume is held by a spring."""

    implemented_properties = ("energy", "forces", "stress")
    stiffness, rest = 3e-4, 60.0  # eV/angstrom^6, angstrom^3

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        stretch = atoms.get_volume() - self.rest
        stress = np.zeros(6)
        stress[:3] = self.stiffness * stretch
        self.results = {
            "energy": 0.5 * self.stiffness * stretch**2,
            "forces": np.zeros((len(atoms), 3)),
            "stress": stress,
        }


def test_the_barostat_samples_the_exact_distribution_of_the_volume():
    # p(V) ~ V^N exp(-(P V + E(V)) / kT), with N for the atoms that may be anywhere: exact here, so
    # that a wrong sign or factor of a term shows.
    temperature, pressure, n = 800.0, 0.002, 4
    atoms = Atoms("Ar4", np.random.default_rng(0).random((n, 3)) * 3.9, cell=[3.9] * 3, pbc=True)
    atoms.calc = VolumeSpring()
    thermalise(atoms, temperature, 0)
    integrator = CellRescaling(
        atoms,
        1.0 * units.fs,
        temperature_K=temperature,
        taut=5.0 * units.fs,
        rng=np.random.default_rng(1),
        pressure=pressure,
        taup=36.0 * units.fs,
        compressibility=1.0 / (VolumeSpring.stiffness * VolumeSpring.rest),
    )
    integrator.ndof = 3 * n - 3  # thermalise takes the drift out
    integrator.target_kinetic_energy = 0.5 * integrator.ndof * integrator.temp
    volumes = []
    for _ in range(8000):
        integrator.step()
        volumes.append(atoms.get_volume())
    kt = units.kB * temperature
    grid = np.linspace(1.0, 300.0, 20001)
    spring = 0.5 * VolumeSpring.stiffness * (grid - VolumeSpring.rest) ** 2
    # N - 1: without drift the momenta of the whole, which scale with the cell, are missing.
    log = (n - 1) * np.log(grid) - (pressure * grid + spring) / kt
    weights = np.exp(log - log.max())
    mean = np.average(grid, weights=weights)
    width = np.sqrt(np.average((grid - mean) ** 2, weights=weights))
    assert np.mean(volumes[500:]) == pytest.approx(mean, abs=0.2 * width)
    assert np.std(volumes[500:]) == pytest.approx(width, rel=0.12)


def test_pressure_compresses(emt_model):
    start = bulk("Cu", "fcc", a=3.65, cubic=True)
    explorer = Dynamics(
        temperature=300.0, pressure=(0.0, 20.0), n_steps=300, barostat_time=50.0, n_frames=50
    )
    found = explorer.explore(Calculator(emt_model), start, calm, np.random.default_rng(0))
    volumes = np.array([frame.get_volume() for frame in found.frames])
    assert found.finished
    assert volumes[-20:].mean() < 0.97 * volumes[:20].mean()
    assert np.allclose(found.last.cell.lengths() / found.last.cell.lengths()[0], 1.0)


def test_time_step_of_the_lightest_atoms():
    assert automatic_timestep(Atoms("CH4")) == pytest.approx(0.5)
    assert automatic_timestep(Atoms("Si")) == 2.0
    heavy = Atoms("CH4")
    heavy.set_masses([12.0, 2.0, 2.0, 2.0, 2.0])
    assert automatic_timestep(heavy) == pytest.approx(0.5 * np.sqrt(2.0 / 1.008))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be above zero"),
        ({"temperature": (300.0, 400.0, 500.0)}, "two for a ramp"),
        ({"pressure": np.nan}, "pressure must be finite"),
        ({"timestep": 0.0}, "timestep must be above zero"),
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1"),
        ({"n_steps": 10.5}, "n_steps must be a whole number"),
        ({"bulk_modulus": -100.0}, "bulk_modulus"),
        ({"strength": 0.0}, "strength must be above zero"),
        ({"sigma": "committee"}, "posterior, novelty"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        BiasedDynamics(**settings)


@pytest.mark.parametrize(
    ("explorer", "start", "message"),
    [
        (Dynamics(pressure=0.0), cluster(), "pressure=None"),
        (Dynamics(), Atoms("Cu"), "two atoms"),
    ],
)
def test_starts_are_checked(emt_model, explorer, start, message):
    with pytest.raises(ValueError, match=message):
        explorer.explore(Calculator(emt_model), start, calm, np.random.default_rng(0))


def test_a_cell_cannot_change_around_fixed_atoms(emt_model):
    start = crystal()
    start.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="remove the constraints"):
        Dynamics(pressure=0.0).explore(Calculator(emt_model), start, calm, np.random.default_rng(0))


# -------------------------------------------------------------------------------------- biased


@pytest.mark.parametrize("sigma", ["posterior", "novelty"])
@pytest.mark.parametrize("make", [crystal, cluster], ids=["crystal", "cluster"])
def test_biased_forces_and_stress_are_derivatives(smooth_model, sigma, make):
    atoms = make()
    atoms.calc = BiasedCalculator(Calculator(smooth_model), tau=0.7, sigma=sigma)
    forces, positions = atoms.get_forces(), atoms.positions.copy()
    bias = forces - atoms.calc.calculator.results["forces"]
    assert np.abs(bias).max() > 1e-3
    numerical, h = np.zeros_like(forces), 1e-4
    for n, c in np.ndindex(*forces.shape):
        energies = []
        for sign in (1.0, -1.0):
            atoms.positions = positions
            atoms.positions[n, c] += sign * h
            energies.append(atoms.get_potential_energy())
        numerical[n, c] = (energies[1] - energies[0]) / (2.0 * h)
    atoms.positions = positions
    assert forces == pytest.approx(numerical, abs=1e-6)
    if atoms.pbc.all():
        stress = atoms.get_stress()
        assert np.abs(stress - atoms.calc.calculator.results["stress"]).max() > 1e-4
        assert stress == pytest.approx(calculate_numerical_stress(atoms, eps=1e-5), abs=1e-6)


def test_what_is_climbed_is_the_posterior_standard_deviation(emt_model):
    for atoms in (crystal(), cluster()):
        atoms.calc = BiasedCalculator(Calculator(emt_model), tau=0.0, sigma="posterior")
        atoms.get_potential_energy()
        std = emt_model.predict([atoms], return_std="energy").energy_std[0]
        # A floor of 0.1 meV, so that it has a derivative everywhere.
        assert atoms.calc.results["sigma"] == pytest.approx(np.hypot(std, 1e-4), rel=1e-6)


def test_derivatives_of_a_sum_of_processes(emt_images):
    soaps = [
        Soap(cutoff=r, n_max=3, l_max=2, sigma=0.5, smoothing=SmoothBump(width=1.5))
        for r in (3.0, 4.0)
    ]
    model = KernelPotential(soaps, n_environments=12, n_tangents=3).fit(emt_images[:12])
    atoms = crystal()
    for sigma in ("posterior", "novelty"):
        atoms.calc = BiasedCalculator(Calculator(model), tau=1.0, sigma=sigma)
        assert atoms.get_stress() == pytest.approx(
            calculate_numerical_stress(atoms, eps=1e-5), abs=1e-6
        )


@pytest.mark.parametrize("sigma", ["posterior", "novelty"])
def test_a_constant_tau_conserves_the_biased_energy(smooth_model, sigma):
    atoms = crystal(amplitude=0.02)
    atoms.calc = BiasedCalculator(Calculator(smooth_model), tau=5.0, sigma=sigma)
    thermalise(atoms, 300.0, 0)
    integrator = VelocityVerlet(atoms, 1.0 * units.fs)
    total, unbiased = [], []
    for _ in range(150):
        integrator.step()
        total.append(atoms.get_total_energy())
        unbiased.append(atoms.calc.results["unbiased_energy"] + atoms.get_kinetic_energy())
    assert np.ptp(total) < 0.03 * np.ptp(unbiased)
    assert np.ptp(total) < 1e-3 * len(atoms)


def test_tau_keeps_the_bias_at_its_share_of_the_forces(smooth_model):
    bias, force, tau = [], [], []

    def watch(atoms):
        plain = atoms.calc.calculator.results["forces"]
        tau.append(atoms.calc.tau)
        bias.append(np.linalg.norm(atoms.calc.results["forces"] - plain, axis=1).mean())
        force.append(np.linalg.norm(plain, axis=1).mean())
        return CALM

    found = BiasedDynamics(temperature=300.0, strength=0.3, n_steps=80).explore(
        Calculator(smooth_model), crystal(), watch, np.random.default_rng(0)
    )
    assert not any(tau[:20])  # the means gather first
    assert np.mean(bias[20:]) / np.mean(force[20:]) == pytest.approx(0.3, rel=0.2)
    assert "tau" in found.note


@pytest.mark.parametrize("sigma", ["posterior", "novelty"])
def test_the_bias_leads_to_where_the_model_is_less_certain(emt_model, sigma):
    def unknown(explorer):
        found = explorer.explore(
            Calculator(emt_model), crystal(amplitude=0.02), calm, np.random.default_rng(0)
        )
        calculator = BiasedCalculator(Calculator(emt_model), tau=0.0, sigma=sigma)
        seen = []
        for frame in found.frames[20:]:
            frame.calc = calculator
            frame.get_potential_energy()
            seen.append(calculator.results["sigma"])
        return np.mean(seen)

    plain = unknown(Dynamics(temperature=300.0, n_steps=100))
    biased = BiasedDynamics(temperature=300.0, n_steps=100, strength=0.5, sigma=sigma)
    assert unknown(biased) > 1.2 * plain


def test_the_biased_calculator_passes_on_what_it_does_not_change(emt_model):
    plain, atoms = Calculator(emt_model), crystal()
    atoms.calc = BiasedCalculator(Calculator(emt_model), tau=2.0)
    atoms.get_forces()
    for name in ("novelty", "forces_std", "stress_std"):
        assert np.array_equal(atoms.calc.get_property(name, atoms), plain.get_property(name, atoms))
    energy = atoms.calc.results["energy"]
    assert energy == atoms.calc.results["unbiased_energy"] - 2.0 * atoms.calc.results["sigma"]
    assert atoms.get_potential_energy() == energy


@pytest.mark.parametrize("sigma", ["posterior", "novelty"])
def test_a_perfect_crystal_is_not_blown_up(emt_model, sigma):
    # Forces are rounding there, and the ratio of two roundings was the strength of the bias: at
    # a pressure the cell exploded within five steps.
    start = bulk("Cu", "fcc", a=3.65, cubic=True)
    found = BiasedDynamics(temperature=300.0, pressure=0.0, sigma=sigma, n_steps=60).explore(
        Calculator(emt_model), start, calm, np.random.default_rng(0)
    )
    assert found.finished
    assert found.last.get_volume() == pytest.approx(start.get_volume(), rel=0.1)


@pytest.mark.parametrize("settings", [{}, {"tau": 1.0, "strength": 0.1}])
def test_a_bias_has_one_strength(emt_model, settings):
    with pytest.raises(ValueError, match="either a strength"):
        BiasedCalculator(Calculator(emt_model), **settings)
