"""Pairs against ASE's, and the Verlet list against a fresh search."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from kernelpot.conventions import Pairs
from kernelpot.neighbours import PairList, find_pairs


def triclinic():
    cell = [[4.1, 0.3, -0.2], [1.9, 3.7, 0.4], [-1.1, 0.8, 5.2]]
    scaled = np.random.default_rng(3).random((7, 3))
    return Atoms("Si7", cell=cell, scaled_positions=scaled, pbc=True)


def rattled(atoms):
    atoms.positions += np.random.default_rng(5).normal(0.0, 0.1, atoms.positions.shape)
    return atoms


def far_outside(atoms):
    rng = np.random.default_rng(6)
    atoms.positions += rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    return atoms


def left_handed():
    atoms = triclinic()
    atoms.cell = atoms.cell[[1, 0, 2]]
    return atoms


def needle():
    return Atoms("HHe", [(0, 0, 0), (0.4, 11.0, 0)], cell=[1.1, 23.0, 3.0], pbc=True)


SYSTEMS = {
    "one atom, cell smaller than the cutoff": lambda: bulk("Cu"),
    "rattled cubic": lambda: rattled(bulk("Si", cubic=True)),
    "triclinic": triclinic,
    "atoms outside the cell": lambda: far_outside(triclinic()),
    "left-handed cell": left_handed,
    "needle": needle,
    "slab": lambda: rattled(fcc111("Al", (2, 2, 3), vacuum=6.0)),
    "molecule": lambda: molecule("CH3CH2OH"),
    "molecule in a cell": lambda: molecule("CH3CH2OH", vacuum=2.0),
    "two atoms far apart": lambda: Atoms("H2", [(0, 0, 0), (50.0, 0, 0)]),
    "one atom": lambda: Atoms("H"),
}
PBC = [None, (True, True, True), (True, True, False), (False, True, False), (False,) * 3]
CUTOFFS = [0.9, 2.63, 5.07, 8.11]


def assert_same_pairs(pairs, i_p, j_p, D_pc, message):
    """The same pairs in any order, each vector once."""
    assert len(pairs.i_p) == len(i_p), message
    if len(i_p) == 0:
        return
    # Atoms 1000 apart in two more dimensions: only equal pairs are near each other.
    ours = np.column_stack([1e3 * pairs.i_p, 1e3 * pairs.j_p, pairs.D_pc])
    theirs = np.column_stack([1e3 * i_p, 1e3 * j_p, D_pc])
    distance, match = cKDTree(theirs).query(ours)
    assert distance.max() < 1e-8, message
    assert len(np.unique(match)) == len(match), message


def assert_well_formed(pairs, n_atoms):
    """What the rest of the library trusts without looking."""
    n_pairs = len(pairs.i_p)
    assert pairs.first_n.shape == (n_atoms + 1,)
    assert pairs.first_n[0] == 0
    assert pairs.first_n[-1] == n_pairs
    np.testing.assert_array_equal(pairs.i_p, np.repeat(np.arange(n_atoms), np.diff(pairs.first_n)))
    np.testing.assert_allclose(pairs.r_p, np.linalg.norm(pairs.D_pc, axis=1), rtol=1e-14)
    assert pairs.i_p.dtype == pairs.j_p.dtype == pairs.first_n.dtype == np.intp
    assert pairs.D_pc.dtype == pairs.r_p.dtype == np.float64
    assert pairs.D_pc.shape == (n_pairs, 3)
    for array in pairs:
        assert array.flags["C_CONTIGUOUS"]
    # Each pair from both sides.
    sides = Pairs(pairs.j_p, pairs.i_p, -pairs.D_pc, pairs.r_p, pairs.first_n)
    assert_same_pairs(sides, pairs.i_p, pairs.j_p, pairs.D_pc, "not a full list")


@pytest.mark.parametrize("pbc", PBC)
@pytest.mark.parametrize("name", SYSTEMS)
def test_pairs_are_those_of_ase(name, pbc):
    seed = int(np.random.SeedSequence().entropy % 2**32)
    for k, cutoff in enumerate(CUTOFFS):
        atoms = SYSTEMS[name]()
        if pbc is not None and atoms.cell.rank == 3:
            atoms.pbc = pbc
        rotation = Rotation.random(rng=np.random.default_rng([seed, k])).as_matrix()
        atoms.set_cell(atoms.cell.array @ rotation, scale_atoms=False)
        atoms.positions = atoms.positions @ rotation
        message = f"{name}, cutoff {cutoff}, pbc {atoms.pbc}, seed [{seed}, {k}]"
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        assert_same_pairs(pairs, *neighbor_list("ijD", atoms, cutoff), message)
        assert_well_formed(pairs, len(atoms))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_atoms=st.integers(1, 8),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    cutoff=st.floats(0.3, 6.0),
)
def test_pairs_of_random_cells_are_those_of_ase(seed, n_atoms, pbc, cutoff):
    rng = np.random.default_rng(seed)
    cell = rng.normal(0.0, 1.0, (3, 3)) + 3.0 * np.eye(3)
    positions = rng.normal(0.0, 6.0, (n_atoms, 3))
    if abs(np.linalg.det(cell)) < 3.0:
        return
    atoms = Atoms(f"H{n_atoms}", positions, cell=cell, pbc=pbc)
    pairs = find_pairs(positions, cell, pbc, cutoff)
    assert_same_pairs(pairs, *neighbor_list("ijD", atoms, cutoff), f"seed {seed}")
    assert_well_formed(pairs, n_atoms)


def test_vectors_of_directions_that_are_not_periodic_play_no_part():
    atoms = fcc111("Al", (2, 2, 3), vacuum=6.0)
    expected = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 5.0)
    for third in ([0.0, 0.0, 0.0], [0.0, 0.0, 1e-3], [5.0, 9.0, 1.0], [np.nan] * 3):
        cell = atoms.cell.array.copy()
        cell[2] = third
        pairs = find_pairs(atoms.positions, cell, atoms.pbc, 5.0)
        for ours, theirs in zip(pairs, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_order_is_the_same_every_time():
    atoms = rattled(bulk("Si", cubic=True) * 2)
    first = find_pairs(atoms.positions, atoms.cell.array, True, 5.0)
    for _ in range(3):
        again = find_pairs(atoms.positions, atoms.cell.array, True, 5.0)
        for ours, theirs in zip(first, again, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_input_of_any_type_is_cast_and_kept():
    positions = np.asfortranarray(bulk("Si", cubic=True).positions.astype(np.float32))
    before = positions.copy()
    pairs = find_pairs(positions, (5.43 * np.eye(3)).tolist(), [1, 1, 1], 3)
    assert_well_formed(pairs, 8)
    assert len(pairs.r_p) == 32
    np.testing.assert_array_equal(positions, before)


# The Verlet list


def assert_fresh(kept, positions, cell, pbc, cutoff, message):
    fresh = find_pairs(positions, cell, pbc, cutoff)
    np.testing.assert_array_equal(kept.i_p, fresh.i_p, err_msg=message)
    np.testing.assert_array_equal(kept.j_p, fresh.j_p, err_msg=message)
    np.testing.assert_array_equal(kept.first_n, fresh.first_n, err_msg=message)
    np.testing.assert_allclose(kept.D_pc, fresh.D_pc, atol=1e-12, err_msg=message)
    np.testing.assert_allclose(kept.r_p, fresh.r_p, atol=1e-12, err_msg=message)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    skin=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    pbc=st.sampled_from([(True, True, True), (True, False, True), (False, False, False)]),
    step=st.sampled_from([0.01, 0.05, 0.3]),
)
def test_the_kept_list_equals_a_fresh_search_along_random_walks(seed, skin, pbc, step):
    rng = np.random.default_rng(seed)
    cutoff = 3.1
    kept = PairList(cutoff, skin=skin)
    cell = 4.0 * np.eye(3) + rng.normal(0.0, 0.3, (3, 3))
    positions = rng.random((6, 3)) @ cell
    for k in range(25):
        event = rng.integers(0, 10)
        positions = positions + rng.normal(0.0, step, positions.shape)
        strain = np.eye(3) + rng.normal(0.0, 0.2 * step, (3, 3))
        if event < 3:  # atoms follow the cell
            cell, positions = cell @ strain, positions @ strain
        elif event == 3:  # the cell alone
            cell = cell @ strain
        elif event == 4:  # an atom comes or goes
            positions = np.vstack([positions, rng.random((1, 3)) @ cell])
            positions = positions[rng.integers(0, 2) :]
        elif event == 5:  # an atom is wrapped
            positions[0] += rng.integers(-1, 2, 3) * np.array(pbc) @ cell
        elif event == 6:  # two atoms change places
            positions[[0, 1]] = positions[[1, 0]]
        message = f"seed {seed}, step {k}, event {event}"
        assert_fresh(kept.update(positions, cell, pbc), positions, cell, pbc, cutoff, message)
    assert kept.n_builds <= 25


def test_a_change_of_the_periodic_directions_is_noticed():
    atoms = triclinic()
    kept = PairList(4.0)
    for pbc in (True, (True, True, False), False, (True, True, False)):
        pairs = kept.update(atoms.positions, atoms.cell.array, pbc)
        assert_fresh(pairs, atoms.positions, atoms.cell.array, pbc, 4.0, str(pbc))
    assert kept.n_builds == 4


def test_the_kept_list_is_not_spoilt_by_changes_in_place():
    atoms = triclinic()
    kept = PairList(4.0)
    positions, cell = atoms.positions.copy(), atoms.cell.array.copy()
    kept.update(positions, cell, True)
    positions += np.array([[1.0, 0.0, 0.0]] + [[0.0] * 3] * 6)
    cell *= 1.2
    assert_fresh(kept.update(positions, cell, True), positions, cell, True, 4.0, "in place")


def test_small_moves_do_not_search_again():
    atoms = bulk("Si", cubic=True) * 2
    rng = np.random.default_rng(0)
    kept = PairList(5.0, skin=0.5)
    kept.update(atoms.positions, atoms.cell.array, atoms.pbc)
    for _ in range(200):
        moved = atoms.positions + rng.uniform(-0.14, 0.14, atoms.positions.shape)
        kept.update(moved, atoms.cell.array, atoms.pbc)
    assert kept.n_builds == 1  # no atom is further than skin / 2 from where it was


def test_small_strains_do_not_search_again():
    atoms = bulk("Si", cubic=True)
    kept = PairList(5.0, skin=0.5)
    for strain in np.linspace(-0.05, 0.05, 21):
        F = np.diag([1.0 + strain, 1.0 - 0.5 * strain, 1.0])
        kept.update(atoms.positions @ F, atoms.cell.array @ F, True)
    assert kept.n_builds <= 3


def test_a_trajectory_searches_rarely():
    atoms = bulk("Si", cubic=True) * 2
    rng = np.random.default_rng(0)
    kept = PairList(5.0, skin=0.6)
    velocities = rng.normal(0.0, 0.01, atoms.positions.shape)  # A per step: a hot crystal
    for k in range(100):
        moved = atoms.positions + 15 * velocities * np.sin(k / 15)
        kept.update(moved, atoms.cell.array, True)
    assert kept.n_builds <= 12


def test_no_skin_searches_every_time():
    atoms = bulk("Si", cubic=True)
    kept = PairList(4.0, skin=0.0)
    for _ in range(3):
        kept.update(atoms.positions, atoms.cell.array, True)
    assert kept.n_builds == 3
