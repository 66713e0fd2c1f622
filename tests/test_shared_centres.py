"""Environments of unlike centres that know of each other: naive twins, laws, what it is for."""

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from kernelpot import KernelPotential, PairSplines, Soap, load
from kernelpot.conventions import System, as_int
from kernelpot.descriptors.projected import ProjectedDescriptor
from kernelpot.descriptors.protocol import single
from kernelpot.descriptors.shared import SharedCentres, shared_centres
from kernelpot.neighbours import find_pairs
from kernelpot.testing import check_descriptor, check_potential
from tests.naive import gp as naive
from tests.test_species_mixing import crystals

SOAP = {"cutoff": 4.5, "n_max": 5, "l_max": 3, "species_mixing": 0.8}
SPECIES = (29, 47, 79)


def local_features(atoms, bound):
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, bound.cutoff)
    system = System(as_int(np.searchsorted(bound.species, atoms.numbers)), pairs)
    return bound.features(system, np.arange(len(atoms)))[0]


@pytest.fixture(scope="module")
def alloys():
    known = [("Cu",), ("Ag",), ("Au",), ("Cu", "Ag"), ("Cu", "Au")]
    train = [a for k, symbols in enumerate(known) for a in crystals(symbols, 6, k)]
    return train, crystals(("Ag", "Au"), 6, 99)


@pytest.mark.parametrize("similarity", [0.0, 0.7, 1.0])
def test_products_are_those_of_the_formula(alloys, similarity):
    atoms = alloys[0][-1]
    inner = Soap(**SOAP, centre_similarity=similarity).bind(SPECIES)
    bound = shared_centres(inner)
    assert isinstance(bound, SharedCentres)
    x, plain = local_features(atoms, bound), local_features(atoms, inner)
    for i in range(len(atoms)):
        for j in range(len(atoms)):
            same = atoms.numbers[i] == atoms.numbers[j]
            expected = similarity * plain[i] @ plain[j] + (1.0 - similarity) * same
            assert x[i] @ x[j] == pytest.approx(expected, abs=1e-12)


def test_contract_of_descriptors(alloys):
    bound = shared_centres(Soap(**SOAP, centre_similarity=0.6).bind(SPECIES))
    check_descriptor(bound, alloys[0][-1])


def test_single_precision_of_descriptors_that_stand_on_others(alloys):
    atoms = alloys[0][-1]
    soap = Soap(**SOAP, centre_similarity=0.6).bind(SPECIES)
    axes_kq = np.linalg.qr(np.random.default_rng(0).standard_normal((soap.n_features, 9)))[0].T
    double = shared_centres(ProjectedDescriptor(soap, [axes_kq] * len(SPECIES)))
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, double.cutoff)
    system = System(as_int(np.searchsorted(SPECIES, atoms.numbers)), pairs)
    centres = np.arange(len(atoms))
    g = np.random.default_rng(1).standard_normal((len(atoms), double.n_features))
    found = []
    for bound in (double, single(double)):
        x, state = bound.features(system, centres)
        out = np.empty_like(pairs.D_pc)
        bound.vjp(system, centres, state, g, out)
        found.append((x, out))
    assert [x.dtype for x, _ in found] == [np.float64, np.float32]
    for exact, rough in zip(*found, strict=True):
        np.testing.assert_allclose(rough, exact, rtol=0, atol=1e-5)


def test_single_precision_leaves_descriptors_alone_that_have_none():
    bound = PairSplines(cutoff=4.5).bind(SPECIES)
    assert single(bound) is bound
    projected = ProjectedDescriptor(bound, [np.eye(bound.n_features)] * len(SPECIES))
    assert single(projected) is projected


@pytest.mark.parametrize("basis", ["sparse", "full"])
def test_energies_are_those_of_dense_algebra(alloys, basis):
    """All environments are inducing variables, or all energies: an exact Gaussian process."""
    train, test = alloys
    train = train[::3]
    only_energies = []
    for atoms in train:
        one = atoms.copy()
        one.calc = SinglePointCalculator(one, energy=atoms.get_potential_energy())
        only_energies.append(one)
    soap = Soap(**SOAP, centre_similarity=0.7)
    bound, sigma, delta = soap.bind(SPECIES), 2e-3, 1.5
    model = KernelPotential(
        soap, basis=basis, n_environments=10_000, n_tangents=0, delta=delta,
        sigma_energy=sigma, feature_tolerance=0.0, core_repulsion=False,
    ).fit(only_energies)  # fmt: skip
    baseline = model.fitted_.baseline

    def covariance(a, b):
        x, y = (local_features(atoms, bound) for atoms in (a, b))
        same = a.numbers[:, None] == b.numbers[None, :]
        return ((0.7 * x @ y.T + 0.3 * same) ** 4).sum() / len(a) / len(b)

    def rest(atoms, energy):
        return (energy - baseline.energies_of(atoms.numbers).sum()) / len(atoms)

    K = delta**2 * np.array([[covariance(a, b) for b in train] for a in train])
    y = np.array([rest(a, a.get_potential_energy()) for a in train])
    _, alpha, _ = naive.gaussian_process(K, y, np.full(len(y), sigma))
    found = model.predict(test).energy
    for atoms, energy in zip(test, found, strict=True):
        k = delta**2 * np.array([covariance(atoms, b) for b in train])
        assert rest(atoms, energy) == pytest.approx(k @ alpha, abs=1e-7)


def renamed(images, symbol):
    """The same structures and labels under another name, as of an isotope."""
    out = []
    for atoms in images:
        new = atoms.copy()
        new.symbols = [symbol] * len(atoms)
        new.calc = SinglePointCalculator(new, **atoms.calc.results)
        out.append(new)
    return out


@pytest.mark.parametrize("options", [{}, {"n_contracted": 6}, {"feature_tolerance": 1e-4}], ids=str)
def test_what_is_learned_around_one_centre_counts_for_another(tmp_path, options):
    """Copper under two names, and little data under one of them."""
    images = crystals(("Cu",), 20, 5)
    train = images[:10] + renamed(images[10:12], "Ag")
    test = renamed(images[12:], "Ag")
    forces = np.concatenate([a.get_forces() for a in test])
    options = dict(options)
    tolerance = options.pop("feature_tolerance", 0.0)

    def fit(**more):
        soap = Soap(**{**SOAP, "species_mixing": 0.95}, **options, **more)
        model = KernelPotential(
            soap, n_environments=40, n_tangents=8, feature_tolerance=tolerance, random_state=0
        ).fit(train)
        return model, np.abs(np.concatenate(model.predict(test).forces) - forces).mean()

    _, apart = fit()
    model, together = fit(centre_similarity=0.9)
    assert together < 0.8 * apart
    assert len(model.fitted_.components[0].inducing) == 1
    model.save(tmp_path / "shared.kpot")
    again = load(tmp_path / "shared.kpot")
    for mine, other in zip(again.predict(test).forces, model.predict(test).forces, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (again.predict(test, return_std=True).energy_std > 0).all()
    model.partial_fit(test)
    found = np.concatenate(model.predict(test).forces)
    assert np.abs(found - forces).mean() < together

    def potential(atoms):
        p = again.predict([atoms])
        return p.energy[0], p.forces[0], p.stress[0]

    check_potential(potential, test[0])


def test_forces_of_the_full_basis(alloys):
    """They are derivatives, and the fit passes through its labels."""
    train = alloys[0][::4]
    model = KernelPotential(
        Soap(**SOAP, centre_similarity=0.8), basis="full", feature_tolerance=1e-4
    ).fit(train)
    found = np.concatenate(model.predict(train).forces)
    labels = np.concatenate([a.get_forces() for a in train])
    assert np.abs(found - labels).mean() < 0.05 * np.abs(labels).mean()

    def potential(atoms):
        p = model.predict([atoms])
        return p.energy[0], p.forces[0], p.stress[0]

    check_potential(potential, alloys[1][0])
