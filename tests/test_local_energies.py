"""Energies of some atoms among others: blocks of centres, novelty."""

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError

from kernelpot import Calculator, KernelPotential, PairSplines
from kernelpot.collapsed import collapse
from kernelpot.conventions import Pairs, System, as_int
from kernelpot.gp.inducing import join
from kernelpot.neighbours import find_pairs
from tests.conftest import alloy
from tests.naive.gp import nearest_environment

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
    whole = predictor.evaluate(atoms.numbers, pairs)
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
        found = predictor.evaluate(atoms.numbers[order], part)
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
        found = predictor.evaluate(atoms.numbers, pairs).novelty_n
        near = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, component.descriptor.cutoff)
        species_n = predictor.species_of(atoms.numbers)
        x_nq, _ = component.descriptor.features(System(species_n, near), np.arange(len(atoms)))
        expected = [
            1.0 - nearest_environment(x_q, component.inducing[z])
            for x_q, z in zip(x_nq, species_n, strict=True)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-13)
        assert found.min() >= 0.0
        assert found.max() < 1.0


def test_novelty_of_nothing_alike():
    weights = collapse(join(np.eye(3)[:1], [np.zeros((0, 3))]), np.ones(1), 4)
    x_bq = np.array([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(weights.energies(x_bq, 4).novelty_b, [0.5, 1.0, 1.0])


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
    with pytest.raises(PropertyNotImplementedError, match="fit with zeta of 2 or more"):
        atoms.calc.get_property("novelty", atoms)
    with pytest.raises(PropertyNotImplementedError, match="fit with zeta of 2 or more"):
        atoms.calc.get_property("novelty")


def test_zeta_one_of_soap_has_none_either(emt_images, emt_soap):
    model = KernelPotential(emt_soap, zeta=1, n_environments=10, n_tangents=0, **NOISE)
    atoms = emt_images[0]
    found = model.fit(emt_images[::4]).predictor_.evaluate(
        atoms.numbers, find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    )
    assert np.isnan(found.novelty_n).all()
