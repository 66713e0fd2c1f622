"""Samples of the posterior: their statistics, their derivatives, and what is computed with them."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.emt import EMT
from ase.units import GPa, kB
from numpy.testing import assert_allclose, assert_array_equal

from kernelpot import Calculator, KernelPotential, PairSplines, Soap
from kernelpot.conventions import as_int
from kernelpot.data import structures_from_atoms
from kernelpot.descriptors.protocol import vjp_many
from kernelpot.rows import structure_rows
from kernelpot.selection import system_of
from kernelpot.uncertainty.observables import elastic_constants, lattice_constant, vacancy_energy
from kernelpot.uncertainty.propagate import propagate, reweight
from tests.conftest import alloy, label

GIVEN = {"sigma_energy": 2e-3, "sigma_forces": 0.03, "sigma_stress": 2e-3, "delta": 5.0}


def models():
    soap = Soap(cutoff=4.0, n_max=4, l_max=3)
    small = {"n_environments": 12, "n_tangents": 4}
    yield "projected", {"descriptor": soap, **small}
    yield "whole", {"descriptor": soap, **small, "feature_tolerance": 0.0}
    # A prediction with so few environments is cheaper with all features.
    yield "lifted", {"descriptor": soap, "n_environments": 3, "n_tangents": 4}
    alike = Soap(cutoff=4.0, n_max=3, l_max=2, centre_similarity=0.6, n_contracted=3)
    yield "shared", {"descriptor": alike, **small}
    several = [Soap(cutoff=3.5, n_max=5, l_max=2, compression="mu1nu1"), PairSplines(cutoff=4.0)]
    yield "sum", {"descriptor": several, **small, "delta": [5.0, 1.0]}
    yield "linear", {"descriptor": PairSplines(cutoff=4.0)}
    yield "zeta 2", {"descriptor": soap, **small, "zeta": 2}


@pytest.fixture(scope="module", params=list(models()), ids=lambda one: one[0])
def model(request, emt_images):
    return KernelPotential(**{**GIVEN, **request.param[1]}).fit(emt_images[::2])


@pytest.fixture(scope="module")
def images(emt_images):
    """A periodic cell, a cluster, and a cell that is unlike the data."""
    return [emt_images[1], emt_images[33], alloy(np.random.default_rng(5), amplitude=0.4)]


# --------------------------------------------------------------------------------- statistics


def numbers_of(prediction, s):
    """Energy, force components and stress of a structure, sample by sample."""
    n = len(prediction.energy)
    parts = [prediction.energy[:, [s]], prediction.forces[s].reshape(n, -1)]
    if np.isfinite(prediction.stress[:, s]).all():
        parts.append(prediction.stress[:, s])
    return np.hstack(parts)


def expected(model, atoms):
    """Mean, and phi R^-1 R^-T phi^T by inverting R^T R, of the same numbers."""
    posterior = model.predictor_.process.posterior
    structure = structures_from_atoms([atoms], labels="ignore")[0]
    components = model.fitted_.components
    longest = max((c.descriptor for c in components), key=lambda bound: bound.cutoff)
    system = system_of(longest, structure)
    rows = structure_rows(components, system, gradients=True)
    K = [rows.energy_m[None], rows.forces_rm]
    p = model.predict([atoms])
    mean = [p.energy, p.forces[0].ravel()]
    if structure.periodic:
        K.append(rows.strain_vm / structure.volume)
        mean.append(p.stress[0])
    phi = np.zeros((sum(map(len, K)), posterior.whitening.n_whitened))
    for block in posterior.whitening.blocks:
        raw = np.vstack(K)[:, block.pivots_k]
        phi[:, block.columns] = np.linalg.solve(block.L_kk, raw.T).T
    inverse = np.linalg.inv(posterior.R_kk.T @ posterior.R_kk)
    return np.concatenate(mean), phi @ inverse @ phi.T


def test_many_samples_have_the_mean_and_covariance_of_the_posterior(model, images):
    n = 4000
    found = model.sample(n, random_state=1).predict(images)
    for s, atoms in enumerate(images):
        values = numbers_of(found, s)
        mean, covariance = expected(model, atoms)
        std = np.sqrt(np.diag(covariance))
        active = std > 1e-6 * std.max()  # forces on an atom alone are none
        z = (values.mean(axis=0) - mean)[active] / std[active] * np.sqrt(n)
        # Normal: of 30 numbers one beyond 4.5 comes once in 5,000 tests.
        assert np.abs(z).max() < 4.5
        assert np.abs(z).max() > 0.2  # it is a sample, not the mean
        sampled = np.cov(values.T)[np.ix_(active, active)] / np.outer(std[active], std[active])
        correlation = covariance[np.ix_(active, active)] / np.outer(std[active], std[active])
        # The standard error of a sampled covariance is sqrt((1 + rho^2) / n).
        error = (sampled - correlation) / np.sqrt((1 + correlation**2) / n)
        assert np.abs(error).max() < 5.5
        # Errors of few independent weights go together.
        assert 0.3 < np.sqrt(np.mean(error**2)) < 2.0


def test_samples_lack_what_inducing_variables_cannot_express(emt_images):
    soap = Soap(cutoff=4.0, n_max=4, l_max=3)
    model = KernelPotential(soap, n_environments=3, n_tangents=1, **GIVEN).fit(emt_images[::2])
    far = alloy(np.random.default_rng(3), amplitude=0.6)
    over_samples = model.sample(500, random_state=0).predict([far]).forces[0].std(axis=0)
    whole = model.predict([far], return_std="forces").forces_std[0]
    assert over_samples.mean() < 0.5 * whole.mean()


# ------------------------------------------------------------------------------- many at once


def test_samples_at_once_are_those_one_by_one(model, images):
    committee = model.sample(18, random_state=2)  # no multiple of what registers hold
    found = committee.predict(images)
    mean = model.predict(images)
    for k in (0, 7, 17):
        calculator = Calculator(committee[k])
        for s, atoms in enumerate(images):
            one = atoms.copy()
            one.calc = calculator
            energy, forces = one.get_potential_energy(), one.get_forces()
            scale = np.abs(energy - mean.energy[s])
            assert_allclose(found.energy[k, s], energy, rtol=0, atol=1e-6 * scale + 1e-9)
            energies = one.get_potential_energies()
            assert_allclose(found.energies[s][k], energies, atol=1e-6 * scale + 1e-9)
            scale = np.sqrt(np.mean((forces - mean.forces[s]) ** 2))
            assert scale > 1e-4
            assert_allclose(found.forces[s][k], forces, rtol=0, atol=0.02 * scale)
            if atoms.pbc.all():
                stress = one.get_stress()
                scale = np.abs(stress - mean.stress[s]).max()
                assert_allclose(found.stress[k, s], stress, rtol=0, atol=0.02 * scale)
            else:
                assert np.isnan(found.stress[k, s]).all()


def test_forces_of_a_sample_are_the_derivative_of_its_energy(model):
    committee = model.sample(3, random_state=4)
    atoms = alloy(np.random.default_rng(11), amplitude=0.2)
    found = committee.predict([atoms])
    h = 1e-4
    moved = []
    for sign in (1, -1):
        other = atoms.copy()
        other.positions[2, 1] += sign * h
        moved.append(other)
    for sign in (1, -1):
        other = atoms.copy()
        strain = np.zeros((3, 3))
        strain[0, 2] = strain[2, 0] = 0.5 * sign * h
        other.set_cell(other.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        moved.append(other)
    energy_st = committee.predict(moved).energy
    force_s = (energy_st[:, 1] - energy_st[:, 0]) / (2 * h)
    stress_s = (energy_st[:, 2] - energy_st[:, 3]) / (2 * h * atoms.get_volume())
    spread = found.forces[0].std(axis=0).max()
    assert_allclose(found.forces[0][:, 2, 1], force_s, rtol=1e-5, atol=0.01 * spread)
    spread = found.stress[:, 0].std(axis=0).max()
    assert_allclose(found.stress[:, 0, 4], stress_s, rtol=1e-5, atol=0.01 * spread)
    one = atoms.copy()
    one.calc = Calculator(committee[1])  # in double precision throughout
    assert one.get_forces()[2, 1] == pytest.approx(force_s[1], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("compression", ["off", "crossover", "mu1nu1", "mu2"])
@pytest.mark.parametrize("n_max", [3, 9])
def test_adjoint_of_many_outputs_is_that_of_each(compression, n_max, emt_images):
    bound = Soap(cutoff=4.0, n_max=n_max, l_max=2, compression=compression).bind((29, 79))
    structure = structures_from_atoms(emt_images[:1], labels="ignore")[0]
    system = system_of(bound, structure)
    centres = as_int([1, 3])
    x_bq, state = bound.features(system, centres)
    g_bqs = np.random.default_rng(0).standard_normal((*x_bq.shape, 5))
    found = vjp_many(bound, system, centres, state, g_bqs)
    assert found.dtype == np.float32
    all_pc = np.zeros((len(system.pairs.i_p), 3))
    mine = np.isin(system.pairs.i_p, centres)
    for s in range(5):
        bound.vjp(system, centres, state, g_bqs[..., s].copy(), all_pc)
        assert_allclose(found[..., s], all_pc[mine], atol=2e-5 * np.abs(all_pc).max())


def test_mixed_species_have_adjoints_of_many_outputs(emt_images):
    bound = Soap(cutoff=4.0, n_max=3, l_max=2, species_mixing=0.4).bind((29, 79))
    system = system_of(bound, structures_from_atoms(emt_images[:1], labels="ignore")[0])
    centres = as_int([0, 2])
    x_bq, state = bound.features(system, centres)
    g_bqs = np.random.default_rng(0).standard_normal((*x_bq.shape, 2))
    found = vjp_many(bound, system, centres, state, g_bqs)
    all_pc = np.zeros((len(system.pairs.i_p), 3))
    bound.vjp(system, centres, state, g_bqs[..., 1].copy(), all_pc)
    mine = np.isin(system.pairs.i_p, centres)
    assert_allclose(found[..., 1], all_pc[mine], atol=2e-5 * np.abs(all_pc).max())


# ---------------------------------------------------------------------------------- committees


def test_first_samples_do_not_depend_on_how_many_are_drawn(emt_model, images):
    few, many = (emt_model.sample(n, random_state=3).predict(images[:1]) for n in (2, 9))
    assert_allclose(many.energy[:2], few.energy, rtol=1e-13)
    again = emt_model.sample(2, random_state=3).predict(images[:1])
    assert_array_equal(again.energy, few.energy)
    other = emt_model.sample(2, random_state=4).predict(images[:1])
    assert (np.abs(other.energy - few.energy) > 1e-6).all()


def test_slices_are_committees(emt_model, images):
    for antithetic in (False, True):
        committee = emt_model.sample(7, random_state=0, antithetic=antithetic)
        assert len(committee) == len(list(committee)) == 7
        whole = committee.predict(images[:1])
        part = committee[5:1:-2]
        assert len(part) == 2
        assert_allclose(part.predict(images[:1]).energy, whole.energy[5:1:-2], rtol=1e-12)
        last = committee[-1].predictor_.evaluate
        pairs = system_of(
            emt_model.fitted_.components[0].descriptor,
            structures_from_atoms(images[:1], labels="ignore")[0],
        ).pairs
        energies = last(images[0].numbers, pairs).energies_n
        assert energies.sum() == pytest.approx(whole.energy[-1, 0], abs=1e-8)
        with pytest.raises(IndexError):
            committee[7]


def test_pairs_of_samples_are_opposite(emt_model, images):
    found = emt_model.sample(6, random_state=0, antithetic=True).predict(images)
    mean = emt_model.predict(images)
    assert_allclose(found.energy.mean(axis=0), mean.energy, rtol=1e-10)
    for s in range(len(images)):
        assert_allclose(found.forces[s].mean(axis=0), mean.forces[s], atol=1e-9)
        assert_allclose(found.forces[s][0] - mean.forces[s], mean.forces[s] - found.forces[s][1],
                        atol=1e-9)  # fmt: skip
    drawn = emt_model.sample(3, random_state=0).predict(images)
    assert_allclose(found.energy[::2], drawn.energy, rtol=1e-12)


def test_a_loaded_model_has_the_same_samples(emt_model, images, tmp_path):
    from kernelpot import load

    emt_model.save(tmp_path / "model.kpot")
    one, two = (
        model.sample(2, random_state=0).predict(images[:1])
        for model in (emt_model, load(tmp_path / "model.kpot"))
    )
    assert_allclose(two.energy, one.energy, atol=1e-6)


def test_energy_deviations_are_those_of_predictions(model, images):
    committee = model.sample(4, random_state=0)
    found = committee.energy_deviations(images)
    by_hand = committee.predict(images).energy - model.predict(images).energy
    assert_allclose(found, by_hand, atol=1e-7 * np.abs(by_hand).max())


def test_what_samples_are_refused(emt_model, emt_images):
    for n in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            emt_model.sample(n)
    unlike = bulk("Ag", cubic=True)
    with pytest.raises(ValueError, match="contains Ag"):
        emt_model.sample(1).predict([unlike])
    full = KernelPotential(
        Soap(cutoff=4.0, n_max=3, l_max=2), basis="full", sigma_energy=2e-3, sigma_forces=0.03
    ).fit(emt_images[30:34])
    with pytest.raises(ValueError, match="basis='full'"):
        full.sample(2)
    atoms = emt_images[0].copy()
    atoms.calc = Calculator(emt_model.sample(1)[0])
    with pytest.raises(ValueError, match="a sample is one potential"):
        atoms.calc.get_property("energy_std", atoms)


# --------------------------------------------------------------------------------- observables


@pytest.fixture(scope="module")
def copper():
    """A model of copper, from EMT."""
    rng = np.random.default_rng(0)
    images = []
    for k in range(24):
        atoms = bulk("Cu", cubic=True, a=3.6) * (1, 1, 2)
        if k % 3 == 0:
            del atoms[0]
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))), True)
        atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
        images.append(label(atoms))
    return KernelPotential(
        Soap(cutoff=4.5, n_max=5, l_max=4), n_environments=40, n_tangents=8,
        sigma_energy=1e-3, sigma_forces=0.02, sigma_stress=1e-3,
    ).fit(images)  # fmt: skip


def crystal(repeat=1):
    atoms = bulk("Cu", cubic=True, a=3.7) * repeat
    atoms.calc = EMT()
    return atoms


def test_lattice_constant_of_emt():
    # By a polynomial through energies around the minimum.
    edges = np.linspace(3.55, 3.63, 9)
    energies = []
    for a in edges:
        atoms = bulk("Cu", cubic=True, a=a)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    fit = np.polynomial.Polynomial.fit(edges, energies, 6)
    minima = [r.real for r in fit.deriv().roots() if abs(r.imag) < 1e-9 and 3.55 < r.real < 3.63]
    atoms = crystal()
    before = atoms.cell[:].copy()
    assert lattice_constant(atoms) == pytest.approx(minima[0], abs=2e-5)
    assert_array_equal(atoms.cell[:], before)
    assert lattice_constant(crystal(2)) == pytest.approx(2 * minima[0], abs=1e-4)


def test_elastic_constants_of_emt():
    # From second differences of the energy: no stress involved.
    a = lattice_constant(crystal())

    def energy(strain):
        atoms = bulk("Cu", cubic=True, a=a)
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        atoms.calc = EMT()
        return atoms.get_potential_energy() / a**3 / GPa

    def curvature(strain, h=2e-3):
        strain = np.array(strain, dtype=float)
        return (energy(h * strain) + energy(-h * strain) - 2 * energy(0 * strain)) / h**2

    C11 = curvature(np.diag([1, 0, 0]))
    C11_and_C12 = 0.5 * curvature(np.diag([1, 1, 0]))
    C44 = 0.25 * curvature([[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    found = elastic_constants(crystal())
    # EMT of ASE has a cutoff that is not smooth; the two differ by a percent.
    assert_allclose(found, [C11, C11_and_C12 - C11, C44], rtol=0.02)


class Ideal(AseCalculator):
    """Springs between neighbours of a diamond: atoms relax under shear."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=(), system_changes=()):
        from kernelpot.neighbours import find_pairs

        super().calculate(atoms, properties, system_changes)
        pairs = find_pairs(atoms.positions, atoms.cell[:], atoms.pbc, 4.4)
        near = pairs.r_p < 3.0
        r0 = np.where(near, np.sqrt(3) / 4 * 5.4, np.sqrt(0.5) * 5.4)
        k = np.where(near, 10.0, 2.0)
        e_pc = pairs.D_pc / pairs.r_p[:, None]
        pull_pc = (0.5 * k * (pairs.r_p - r0))[:, None] * e_pc
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, pairs.i_p, pull_pc)
        np.add.at(forces, pairs.j_p, -pull_pc)
        strain = pull_pc.T @ pairs.D_pc / atoms.get_volume()
        order = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
        energy = float(np.sum(0.25 * k * (pairs.r_p - r0) ** 2))
        self.results = {"energy": energy, "forces": forces, "stress": strain[order]}


def test_atoms_of_diamond_relax_under_shear():
    atoms = bulk("Si", cubic=True, a=5.4)
    atoms.calc = Ideal()
    relaxed = elastic_constants(atoms)
    clamped = elastic_constants(atoms, fmax=1e9)
    assert_allclose(relaxed[:2], clamped[:2], rtol=1e-6)
    assert relaxed[2] < 0.95 * clamped[2]
    # Second difference of the energy, relaxed by hand.
    h, energies = 2e-3, []
    for sign in (1, 0, -1):
        other = atoms.copy()
        shear = np.eye(3)
        shear[1, 2] = shear[2, 1] = sign * h
        other.set_cell(other.cell[:] @ shear, scale_atoms=True)
        other.calc = Ideal()
        for _ in range(3000):
            other.positions += 0.02 * other.get_forces()
        energies.append(other.get_potential_energy())
    C44 = (energies[0] - 2 * energies[1] + energies[2]) / (2 * h) ** 2 / 5.4**3 / GPa
    assert relaxed[2] == pytest.approx(C44, rel=1e-3)


def test_vacancy_energy_of_emt():
    found = vacancy_energy(crystal(2), fmax=1e-3)
    a = lattice_constant(crystal())
    whole = bulk("Cu", cubic=True, a=a) * 2
    whole.calc = EMT()
    vacant = whole.copy()
    del vacant[5]  # any one
    vacant.calc = EMT()
    unrelaxed = vacant.get_potential_energy() - 31 / 32 * whole.get_potential_energy()
    for _ in range(300):
        vacant.positions += 0.02 * vacant.get_forces()
    relaxed = vacant.get_potential_energy() - 31 / 32 * whole.get_potential_energy()
    assert found == pytest.approx(relaxed, abs=1e-4)
    assert found < unrelaxed - 0.01


def test_observables_say_why_there_is_no_answer():
    primitive = bulk("Cu")
    primitive.calc = EMT()
    with pytest.raises(ValueError, match="cubic cell is needed"):
        lattice_constant(primitive)
    with pytest.raises(RuntimeError, match="no minimum within 1 %"):
        lattice_constant(crystal(), max_strain=0.01)
    mixed = crystal()
    mixed.symbols[0] = "Au"
    with pytest.raises(ValueError, match="one element"):
        vacancy_energy(mixed)


# --------------------------------------------------------------------------------- propagation


def energy_of_strain(atoms):
    """Observable that stands in a module, so that processes can be sent it."""
    atoms.set_cell(1.01 * atoms.cell[:], scale_atoms=True)
    return [atoms.get_potential_energy(), len(atoms)]


def test_observables_of_samples(copper):
    atoms = bulk("Cu", cubic=True, a=3.6)
    told = []
    found = propagate(
        energy_of_strain, copper, atoms, n=5, random_state=0,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(k, 6) for k in range(1, 7)]
    strained = atoms.copy()
    strained.set_cell(1.01 * atoms.cell[:], scale_atoms=True)
    energies = copper.sample(5, random_state=0).predict([strained]).energy[:, 0]
    assert_allclose(found.values[:, 0], energies, atol=1e-7)
    assert found.of_mean[0] == pytest.approx(copper.predict([strained]).energy[0], abs=1e-7)
    assert found.mean[0] == pytest.approx(energies.mean(), abs=1e-7)
    assert found.std[0] == pytest.approx(energies.std(ddof=1), rel=1e-4)
    assert found.failures == ()
    assert atoms.calc is None


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_samples_run_beside_one_another(copper, pool):
    atoms = bulk("Cu", cubic=True, a=3.6)
    committee = copper.sample(3, random_state=0)
    with pool(2) as executor:
        found = propagate(energy_of_strain, committee, atoms, executor=executor)
    assert_allclose(found.values, propagate(energy_of_strain, committee, atoms).values, rtol=1e-12)


def test_samples_can_be_sent(copper):
    atoms = bulk("Cu", cubic=True, a=3.6)
    atoms.rattle(0.05)
    committee = copper.sample(2, random_state=0)
    other = atoms.copy()
    atoms.calc = Calculator(committee[1])
    other.calc = Calculator(pickle.loads(pickle.dumps(committee[1])))
    assert_array_equal(atoms.get_forces(), other.get_forces())


def test_lattice_constant_and_its_uncertainty(copper):
    found = propagate(lattice_constant, copper, bulk("Cu", cubic=True, a=3.6), n=8, random_state=0)
    assert found.of_mean == pytest.approx(lattice_constant(crystal()), abs=0.01)
    assert 0.0 < found.std < 0.02
    assert abs(found.mean - found.of_mean) < 4 * found.std
    # To first order the constant moves by what the samples' stress is at it.
    a = float(found.of_mean)
    atoms = bulk("Cu", cubic=True, a=a)
    pressure_s = copper.sample(8, 0).predict([atoms]).stress[:, 0, :3].mean(axis=1)
    moduli = []
    for scale in (1.002, 0.998):
        other = bulk("Cu", cubic=True, a=scale * a)
        moduli.append(copper.predict([other]).stress[0, :3].mean())
    shift_s = -a * pressure_s * 0.004 / (moduli[0] - moduli[1])
    assert_allclose(found.values - a, shift_s, rtol=0.1, atol=0.05 * found.std)


def test_failures_are_reported_and_not_fatal(copper):
    committee = copper.sample(4, random_state=0)
    atoms = bulk("Cu", cubic=True, a=3.6)
    values = committee.predict([atoms]).energy[:, 0]
    mean = copper.predict([atoms]).energy[0]
    level = np.sort(values)[1]

    def sometimes(atoms):
        energy = atoms.get_potential_energy()
        # One by one and all at once differ by rounding, which the amplitude makes large.
        if energy <= level + 1e-6 and energy != pytest.approx(mean, abs=1e-6):
            raise RuntimeError("the relaxation did not end")
        return np.nan if energy == pytest.approx(values.max(), abs=1e-6) else energy

    found = propagate(sometimes, committee, atoms)
    reasons = {one.sample: one.reason for one in found.failures}
    assert set(reasons) == {*np.flatnonzero(values <= level), values.argmax()}
    assert reasons[values.argmin()] == "RuntimeError: the relaxation did not end"
    assert "not finite" in reasons[values.argmax()]
    assert len(found.values) == 1
    assert np.isnan(found.std)

    def only_mean(atoms):
        return 1 / int(abs(atoms.get_potential_energy() - mean) < 1e-7)

    with pytest.raises(RuntimeError, match="fails for all 4 samples; for the first: ZeroDiv"):
        propagate(only_mean, committee, atoms)
    with pytest.raises(RuntimeError, match="fails for the potential of the mean weights: KeyErr"):
        propagate(lambda atoms: atoms.info["nothing"], committee, atoms)
    shapes = iter(range(1, 9))
    with pytest.raises(ValueError, match="different shapes"):
        propagate(lambda atoms: np.zeros(next(shapes)), committee, atoms)


# --------------------------------------------------------------------------------- reweighting


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(60):
        atoms = bulk("Cu", cubic=True, a=3.6)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        frames.append(atoms)
    return frames


def test_averages_are_weighted_for_each_sample(copper, frames):
    committee = copper.sample(6, random_state=0)
    values = np.array([[np.linalg.norm(a.positions[0]), a.positions[1, 0]] for a in frames])
    temperature = 3000.0
    found = reweight(values, committee, frames, temperature, min_effective=2.0)
    energy = committee.predict(frames).energy - copper.predict(frames).energy
    for s in range(6):
        weights = np.exp(-(energy[s] - energy[s].mean()) / (kB * temperature))
        by_hand = (weights[:, None] * values).sum(axis=0) / weights.sum()
        assert_allclose(found.values[s], by_hand, rtol=1e-6)
        assert found.n_effective[s] == pytest.approx(
            weights.sum() ** 2 / (weights**2).sum(), rel=1e-5
        )
        first = [
            value.mean() - np.cov(value, energy[s], ddof=0)[0, 1] / (kB * temperature)
            for value in values.T
        ]
        assert_allclose(found.first_order[s], first, rtol=1e-6)
    assert_allclose(found.std, found.values.std(axis=0, ddof=1))
    assert_allclose(found.of_mean, values.mean(axis=0))
    # Where energies hardly differ in units of kT both say the same.
    hot = reweight(values, committee, frames, 1e5)
    assert_allclose(hot.values, hot.first_order, atol=0.05 * hot.std.max())
    assert hot.std.max() > 0


def test_too_few_frames_that_count_are_warned_of(copper, frames):
    values = [a.positions[1, 0] for a in frames]
    with pytest.warns(UserWarning, match="fewer than 20 frames that count"):
        found = reweight(values, copper, frames, 5.0, n=6, random_state=0)
    few = found.n_effective < 20.0
    assert few.any()
    assert not few.all()
    assert_array_equal(np.isnan(found.values), few)
    assert np.isfinite(found.first_order).all()
    with pytest.raises(ValueError, match="59 values and 60 frames"):
        reweight(values[:-1], copper, frames, 300.0)
    with pytest.raises(ValueError, match="has to be positive"):
        reweight(values, copper, frames, 0.0)
