"""The bundled data: complete, finite, consistent and small."""

from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from kernelpot.datasets import load_ethanol, load_silicon

LOADERS = {"silicon_pbe.xyz.xz": load_silicon, "ethanol_gfn2.xyz.xz": load_ethanol}
SILICON_GROUPS = {
    "isolated": 1,
    "diamond-strained": 32,
    "diamond-rattled": 46,
    "vacancy": 14,
    "beta-tin": 14,
    "fcc": 16,
    "sc": 8,
    "bcc": 8,
    "liquid": 18,
}
ETHANOL_GROUPS = {"trans": 250, "gauche": 250}


@pytest.fixture(scope="module", params=LOADERS)
def images(request):
    return LOADERS[request.param]()


def test_groups_and_counts():
    assert Counter(atoms.info["group"] for atoms in load_silicon()) == SILICON_GROUPS
    assert Counter(atoms.info["group"] for atoms in load_ethanol()) == ETHANOL_GROUPS


def test_compositions():
    for atoms in load_silicon():
        assert set(atoms.numbers) == {14}
        assert len(atoms) <= 16
        assert atoms.pbc.all()
    for atoms in load_ethanol():
        assert Counter(atoms.symbols) == {"C": 2, "O": 1, "H": 6}
        assert not atoms.pbc.any()


def test_labels_are_present_and_finite(images):
    for index, atoms in enumerate(images):
        wanted = {"energy", "free_energy", "forces"} | ({"stress"} if atoms.pbc.any() else set())
        assert set(atoms.calc.results) == wanted, index
        assert all(np.isfinite(value).all() for value in atoms.calc.results.values()), index
        assert np.isfinite(atoms.positions).all(), index
        assert atoms.get_forces().shape == (len(atoms), 3), index


def test_energy_is_the_one_that_belongs_to_the_forces(images):
    for atoms in images:
        assert atoms.get_potential_energy() == atoms.get_potential_energy(force_consistent=True)


def test_no_two_atoms_are_close(images):
    for index, atoms in enumerate(images):
        assert not len(neighbor_list("d", atoms, 0.5)), index


def test_forces_sum_to_nothing(images):
    # eV/A. The convergence of the density leaves up to 6e-4 in GPAW's forces; tblite leaves 3e-6.
    for index, atoms in enumerate(images):
        np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0.0, atol=1e-3, err_msg=index)


def test_the_isolated_atom_comes_first_and_feels_no_force():
    isolated = load_silicon()[0]
    assert isolated.info["group"] == "isolated"
    np.testing.assert_allclose(isolated.get_forces(), 0.0, atol=1e-3)


def test_cohesive_energy_of_silicon():
    # PBE: 4.5 to 4.6 eV per atom without zero-point energy.
    images = load_silicon()
    diamond = [a for a in images if a.info["group"] == "diamond-strained"]
    lowest = min(a.get_potential_energy() / len(a) for a in diamond)
    assert 4.45 < images[0].get_potential_energy() - lowest < 4.65


@pytest.mark.parametrize("name", LOADERS)
def test_files_are_small(name):
    size = len(files("kernelpot.datasets").joinpath(name).read_bytes())
    assert size < 500_000


@pytest.mark.parametrize("load", LOADERS.values())
def test_splits_are_disjoint_and_cover(load):
    def keys(images):
        return [(atoms.positions.tobytes(), atoms.cell[:].tobytes()) for atoms in images]

    both = keys(load())
    train, test = keys(load("train")), keys(load(split="test"))
    assert len(set(both)) == len(both)
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(both)
    assert [key for key in both if key in set(test)] == test


@pytest.mark.parametrize("load", LOADERS.values())
def test_splits_are_stratified(load):
    count = Counter(atoms.info["group"] for atoms in load())
    test = Counter(atoms.info["group"] for atoms in load("test"))
    assert test == Counter({group: n // 5 for group, n in count.items()})


def test_the_isolated_atom_is_in_training():
    assert "isolated" in {atoms.info["group"] for atoms in load_silicon("train")}
    assert "isolated" not in {atoms.info["group"] for atoms in load_silicon("test")}


@pytest.mark.parametrize("load", LOADERS.values())
def test_wrong_split_names_the_allowed_ones(load):
    with pytest.raises(ValueError, match="None, 'train' or 'test', got 'validation'"):
        load("validation")


@pytest.mark.parametrize("load", LOADERS.values())
def test_two_calls_share_nothing(load):
    first, second = load(), load()
    before = second[3].positions.copy(), second[3].get_forces().copy()
    first[3].positions += 1.0
    first[3].calc.results["forces"][:] = 0.0
    first.clear()
    assert len(second) > 3
    np.testing.assert_array_equal(second[3].positions, before[0])
    np.testing.assert_array_equal(second[3].get_forces(), before[1])
    assert not np.array_equal(load()[3].positions, before[0] + 1.0)
