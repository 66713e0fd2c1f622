"""Energies of some atoms among others: blocks of centres, novelty."""

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError

from kernelpot import Calculator, KernelPotential, PairSplines, Soap
from kernelpot.conventions import Pairs, System, as_int
from kernelpot.neighbours import find_pairs
from tests.conftest import alloy
from tests.naive.gp import novelty

NOISE = {"sigma_energy": 1e-3, "sigma_forces": 0.05, "sigma_stress": 1e-3}


@pytest.fixture(scope="module")
def model(emt_images, emt_soap):
    parts = [emt_soap, PairSplines(cutoff=5.0, n_splines=12)]
    return KernelPotential(parts, n_environments=10, n_tangents=3, **NOISE).fit(emt_images[::3])


def structure(seed):
    atoms = alloy(np.random.default_rng(seed), amplitude=0.1)
    atoms.positions[1] = atoms.positions[0] + [1.4, 0.2, 0.1]  # within the core repulsion
    return atoms


def test_blocks_of_centres_add_to_the_whole(model):
    atoms = structure(0)
    predictor = model.predictor_
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, predictor.cutoff)
    whole = predictor.evaluate(atoms.numbers, pairs, novelty=True)
    forces_nc = np.zeros((len(atoms), 3))
    rng = np.random.default_rng(1)
    for centres in np.array_split(rng.permutation(len(atoms)), 3):
        others = np.setdiff1d(np.arange(len(atoms)), centres)
        order = np.concatenate([centres, others])
        place_n = np.argsort(order)
        index_p = np.concatenate([np.flatnonzero(pairs.i_p == n) for n in centres])
        counts = np.diff(pairs.first_n)[centres]
        part = Pairs(
            as_int(place_n[pairs.i_p[index_p]]),
            as_int(place_n[pairs.j_p[index_p]]),
            pairs.D_pc[index_p],
            pairs.r_p[index_p],
            as_int(np.concatenate([[0], np.cumsum(counts)])),
        )
        assert part.n_centres == len(centres)
        found = predictor.evaluate(atoms.numbers[order], part, novelty=True)
        np.testing.assert_allclose(found.energies_n, whole.energies_n[centres], rtol=1e-12)
        np.testing.assert_allclose(found.strain_ncd, whole.strain_ncd[centres], atol=1e-11)
        np.testing.assert_allclose(found.novelty_n, whole.novelty_n[centres], atol=1e-13)
        forces_nc[order] += found.forces_nc
    np.testing.assert_allclose(forces_nc, whole.forces_nc, atol=1e-11)


def test_novelty_is_that_of_the_naive_twin(model, emt_images):
    predictor = model.predictor_
    component = predictor._components[0]
    for atoms in (structure(2), emt_images[0]):
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, predictor.cutoff)
        found = predictor.evaluate(atoms.numbers, pairs, novelty=True).novelty_n
        near = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, component.descriptor.cutoff)
        species_n = predictor.species_of(atoms.numbers)
        x_nq, _ = component.descriptor.features(System(species_n, near), np.arange(len(atoms)))
        expected = [
            novelty(x_q, component.inducing[z], component.zeta)
            for x_q, z in zip(x_nq, species_n, strict=True)
        ]
        np.testing.assert_allclose(found, expected, atol=3e-5)
        assert found.min() >= 0.0
        assert found.max() < 1.0


@pytest.mark.parametrize("shared", [False, True])
def test_novelty_is_followed_by_its_derivatives(emt_images, emt_soap, shared):
    """Of a sum of two processes; by positions and strain, with and without weights."""
    similarity = 0.7 if shared else None
    parts = [emt_soap, Soap(cutoff=3.0, n_max=3, l_max=2, centre_similarity=similarity)]
    model = KernelPotential(parts, n_environments=12, n_tangents=2, delta=[3.0, 1.0], **NOISE).fit(
        emt_images[::3]
    )
    predictor = model.predictor_
    atoms = alloy(np.random.default_rng(4))
    weights_n = np.random.default_rng(0).uniform(-1, 2, len(atoms))

    def novelty_of(one):
        pairs = find_pairs(one.positions, one.cell.array, one.pbc, predictor.cutoff)
        return predictor.novelty(one.numbers, pairs, weights_n)

    found = novelty_of(atoms)
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, predictor.cutoff)
    at_once = predictor.evaluate(atoms.numbers, pairs, novelty=True).novelty_n
    np.testing.assert_allclose(found.novelty_n, at_once, atol=1e-10)
    h = 1e-4
    for n, c in ((0, 0), (1, 2), (3, 1)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[n, c] += sign * h
            ends.append(novelty_of(moved).novelty_n @ weights_n)
        assert found.gradient_nc[n, c] == pytest.approx(
            (ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-9
        )
    ends = []
    for sign in (1, -1):
        strained = atoms.copy()
        strain = np.zeros((3, 3))
        strain[0, 1] = strain[1, 0] = 0.5 * sign * h
        strained.set_cell(strained.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        ends.append(novelty_of(strained).novelty_n @ weights_n)
    assert found.strain_cd[0, 1] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-9)


def test_novelty_in_single_precision(emt_model, emt_images):
    single = emt_model.predictor_.in_single_precision()
    for atoms in emt_images[:3]:
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, single.cutoff)
        found, expected = (
            one.evaluate(atoms.numbers, pairs, novelty=True).novelty_n
            for one in (single, emt_model.predictor_)
        )
        np.testing.assert_allclose(found, expected, atol=3e-5)


def test_novelty_where_nobody_asks(emt_model, emt_images):
    atoms = emt_images[0].copy()
    atoms.calc = Calculator(emt_model, novelty=False)
    atoms.get_forces()
    assert "novelty" not in atoms.calc.results
    assert atoms.calc.get_property("novelty", atoms).shape == (len(atoms),)
    atoms.calc = Calculator(emt_model)
    atoms.get_forces()
    assert "novelty" in atoms.calc.results
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, emt_model.predictor_.cutoff)
    assert np.isnan(emt_model.predictor_.evaluate(atoms.numbers, pairs).novelty_n).all()


def test_novelty_grows_away_from_the_data(emt_model, emt_images):
    calc = Calculator(emt_model)
    known = [calc.get_property("novelty", atoms.copy()).max() for atoms in emt_images[:10]]
    atoms = emt_images[0].copy()
    atoms.set_cell(0.7 * atoms.cell.array, scale_atoms=True)
    squeezed = calc.get_property("novelty", atoms)
    assert squeezed.shape == (len(atoms),)
    assert squeezed.min() > 3 * max(known)


def test_a_linear_kernel_has_no_novelty(emt_images):
    linear = KernelPotential(PairSplines(cutoff=4.0, n_splines=12), **NOISE).fit(emt_images[:8])
    atoms = emt_images[0].copy()
    atoms.calc = Calculator(linear)
    assert np.isfinite(atoms.get_potential_energy())
    assert "novelty" not in atoms.calc.results
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    with pytest.raises(ValueError, match="fit with zeta of 2 or more"):
        linear.predictor_.novelty(atoms.numbers, pairs)
    with pytest.raises(PropertyNotImplementedError, match="fit with zeta of 2 or more"):
        atoms.calc.get_property("novelty", atoms)
    with pytest.raises(PropertyNotImplementedError, match="fit with zeta of 2 or more"):
        atoms.calc.get_property("novelty")


def test_zeta_one_of_soap_has_none_either(emt_images, emt_soap):
    model = KernelPotential(emt_soap, zeta=1, n_environments=10, n_tangents=0, **NOISE)
    atoms = emt_images[0]
    found = model.fit(emt_images[::4]).predictor_.evaluate(
        atoms.numbers, find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 4.0), novelty=True
    )
    assert np.isnan(found.novelty_n).all()
