"""Species that are alike, and contraction of the density: against a naive twin and the laws."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from kernelpot import KernelPotential, Soap, load
from kernelpot.conventions import System, as_int
from kernelpot.data import structures_from_atoms
from kernelpot.descriptors import ShiftedCosine
from kernelpot.descriptors._mixing import channels_of
from kernelpot.neighbours import find_pairs
from kernelpot.reduction import contract_density
from kernelpot.testing import check_descriptor, check_potential
from tests.naive import soap as naive

SMALL = {"cutoff": 3.4, "n_max": 3, "l_max": 2}
CHANNELS = {"H": [1.0, 0.2], "C": [0.4, -0.7], "O": [0.3, 0.9]}


@pytest.fixture(scope="module")
def molecule():
    positions = [[0, 0, 0.1], [0.9, 0.1, 0], [-0.3, 0.9, 0.2], [0.4, -0.2, 1.3], [1.2, 1.0, 0.8]]
    return Atoms("OHHCC", positions=positions)


def system_of(atoms, bound):
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, bound.cutoff)
    return System(as_int(np.searchsorted(bound.species, atoms.numbers)), pairs)


def kernel(atoms, soap, species=(1, 6, 8)):
    bound = soap if hasattr(soap, "features") else soap.bind(species)
    x, _ = bound.features(system_of(atoms, bound), np.arange(len(atoms)))
    return x @ x.T


@pytest.mark.parametrize("mixing", [0.0, 0.6, 1.0, CHANNELS], ids=str)
def test_equals_the_naive_twin(molecule, mixing):
    soap = Soap(**SMALL, sigma=0.45, scaling=None, species_mixing=mixing)
    c = naive.coefficients(
        **SMALL, sigma=0.45, basis="gto", positions=molecule.positions, numbers=molecule.numbers,
        cell=molecule.cell.array, pbc=molecule.pbc, species=(1, 6, 8), reach=3.4,
        weight=lambda r: naive.shifted_cosine(r, 3.4, 1.0),
    )  # fmt: skip
    if isinstance(mixing, dict):
        channels = np.array(list(mixing.values())).T
    else:
        similarity = np.full((3, 3), mixing) + (1.0 - mixing) * np.eye(3)
        channels = np.real(np.linalg.cholesky(similarity + 1e-14 * np.eye(3))).T
    p = np.array([naive.mixed_products(one, channels) for one in c])
    x = p / np.linalg.norm(p, axis=1)[:, None]
    np.testing.assert_allclose(kernel(molecule, soap), x @ x.T, rtol=0, atol=1e-9)


def test_only_the_similarity_matters(molecule):
    """Channels may be rotated into one another."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    turned = {z: (rotation @ weights).tolist() for z, weights in CHANNELS.items()}
    one = kernel(molecule, Soap(**SMALL, species_mixing=CHANNELS))
    np.testing.assert_allclose(
        kernel(molecule, Soap(**SMALL, species_mixing=turned)), one, atol=1e-13
    )
    similarity = channels_of(0.3, (1, 6, 8)).T @ channels_of(0.3, (1, 6, 8))
    np.testing.assert_allclose(similarity, 0.7 * np.eye(3) + 0.3, atol=1e-14)
    assert channels_of(1.0, (1, 6, 8)).shape == (1, 3)


def test_the_same_species_under_two_names(molecule):
    """With similarity 1 it does not matter which species a neighbour is of."""
    changed = molecule.copy()
    changed.numbers[1] = 8
    alike, unlike = (Soap(**SMALL, species_mixing=s) for s in (1.0, 0.5))
    np.testing.assert_allclose(kernel(changed, alike), kernel(molecule, alike), atol=1e-14)
    assert np.abs(kernel(changed, unlike) - kernel(molecule, unlike)).max() > 1e-3


@pytest.mark.parametrize("mixing", [0.5, CHANNELS], ids=str)
@pytest.mark.parametrize("n_contracted", [None, 3, 5])
def test_contract_of_descriptors(molecule, mixing, n_contracted):
    soap = Soap(
        cutoff=4.0, n_max=3, l_max=3, smoothing=ShiftedCosine(width=2.0), species_mixing=mixing,
        n_contracted=n_contracted,
    )  # fmt: skip
    structures = structures_from_atoms([molecule], labels="ignore")
    bound = contract_density(structures, soap.bind((1, 6, 8)), 0)
    if n_contracted is not None:
        assert bound.n_features == 4 * n_contracted * (n_contracted + 1) // 2
    check_descriptor(bound, molecule)


def test_contraction_leaves_out_as_little_as_it_can(molecule):
    structures = structures_from_atoms([molecule], labels="ignore")
    whole = kernel(molecule, Soap(**SMALL, species_mixing=0.0))
    errors = []
    for n in (9, 7, 5, 2):
        soap = Soap(**SMALL, n_contracted=n)
        bound = contract_density(structures, soap.bind((1, 6, 8)), 0)
        errors.append(np.abs(kernel(molecule, bound) - whole).max())
    assert errors[0] < 1e-13
    assert np.all(np.diff(errors) > 0)
    assert errors[1] < 0.02
    same = Soap(**SMALL).bind((1, 6, 8))
    assert contract_density(structures, same, 0) is same


def test_moments_of_derivatives(molecule):
    """Of one neighbour, the moment is that of the coefficients' finite differences."""
    bound = Soap(**SMALL, sigma=0.4, species_mixing=0.4).bind((1, 8))
    pair = Atoms("OH", positions=[[0, 0, 0], [0.7, -0.5, 0.9]])

    def coefficients(positions):
        atoms = Atoms("OH", positions=positions)
        _, state = bound.features(system_of(atoms, bound), as_int([0]))
        return state.c_bi.reshape(9, -1)[:, : bound.functions.shape[1]]

    moments = bound.density_moments(system_of(pair, bound), as_int([0]))
    h = 1e-5
    found = np.zeros_like(moments[1])
    for d in range(3):
        step = np.zeros((2, 3))
        step[1, d] = h
        difference = coefficients(pair.positions + step) - coefficients(pair.positions - step)
        for ell in range(3):
            dc = difference[ell**2 : (ell + 1) ** 2] / (2 * h)
            found[ell] += dc.T @ dc
    for ell in range(3):
        c = coefficients(pair.positions)[ell**2 : (ell + 1) ** 2]
        np.testing.assert_allclose(moments[0][ell], c.T @ c, atol=1e-12)
        scale = np.trace(found[ell]) / np.trace(moments[1][ell])
        np.testing.assert_allclose(scale * moments[1][ell], found[ell], rtol=1e-6, atol=1e-9)


def crystals(symbols, n_images, seed):
    """Rattled cells of these species, labelled by EMT."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n_images):
        atoms = bulk("Cu", "fcc", a=rng.uniform(3.85, 4.1), cubic=True) * (2, 1, 1)
        atoms.symbols = rng.permutation(list(symbols) * (8 // len(symbols)))
        atoms.rattle(0.1, rng=rng)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    return images


@pytest.fixture(scope="module")
def alloys():
    known = [("Cu",), ("Ag",), ("Au",), ("Cu", "Ag"), ("Cu", "Au")]
    train = [a for k, symbols in enumerate(known) for a in crystals(symbols, 6, k)]
    return train, crystals(("Ag", "Au"), 6, 99)


def fitted(train, **mixing):
    soap = Soap(cutoff=4.5, n_max=5, l_max=3, **mixing)
    return KernelPotential(soap, n_environments=45, n_tangents=6).fit(train)


def test_what_is_learned_of_one_species_helps_another(alloys, tmp_path):
    """Silver next to gold was never seen."""
    train, test = alloys
    forces = np.concatenate([a.get_forces() for a in test])
    errors = {}
    for name, mixing in {"unlike": {}, "alike": {"species_mixing": 0.8}}.items():
        model = fitted(train, **mixing)
        errors[name] = np.abs(np.concatenate(model.predict(test).forces) - forces).mean()
    assert errors["alike"] < 0.6 * errors["unlike"]
    contracted = fitted(train, species_mixing=0.8, n_contracted=8)
    found = np.concatenate(contracted.predict(test).forces)
    assert np.abs(found - forces).mean() < 0.6 * errors["unlike"]
    contracted.save(tmp_path / "contracted.kpot")
    again = load(tmp_path / "contracted.kpot")
    np.testing.assert_array_equal(np.concatenate(again.predict(test).forces), found)

    # Fewer environments: with 45 for these few structures weights cancel to ten digits.
    soap = Soap(cutoff=4.5, n_max=5, l_max=3, species_mixing=0.8, n_contracted=8)
    smaller = KernelPotential(soap, n_environments=20, n_tangents=6).fit(train)

    def potential(atoms):
        p = smaller.predict([atoms])
        return p.energy[0], p.forces[0], p.stress[0]

    check_potential(potential, test[0])
