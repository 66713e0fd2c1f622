"""Rattled, random, given structures, and unsampled directions as explorers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.data import covalent_radii

from kernelpot import KernelPotential, PairSplines
from kernelpot.active.explorers.directions import (
    UnsampledDirections,
    growth_of,
    unsampled_directions,
)
from kernelpot.active.explorers.static import Pool, RandomStructures, Rattle
from kernelpot.active.records import Verdict
from kernelpot.calculator import Calculator
from kernelpot.conventions import System
from kernelpot.neighbours import find_pairs
from tests.test_active_explorers import bad_model, calm, cluster, crystal, same_bits  # noqa: F401


def rng(seed=0):
    return np.random.default_rng(seed)


def by_novelty(atoms):
    novelty = float(atoms.calc.results["novelty"].max())
    return Verdict(False, novelty > 0.01, "novelty", novelty / 0.01)


WAYS = [
    Rattle(n=5),
    RandomStructures(n=3, n_steps=4),
    UnsampledDirections(n_directions=2, n_steps=3),
    Pool(tuple(crystal(seed) for seed in range(5))),
]


@pytest.mark.parametrize("explorer", WAYS, ids=lambda e: type(e).__name__)
def test_twice_the_same_bits(emt_model, explorer):
    once, again = (
        explorer.explore(Calculator(emt_model), crystal(), by_novelty, rng()) for _ in range(2)
    )
    assert same_bits(once, again)
    assert once.finished
    assert np.array_equal(once.last.positions, crystal().positions)


@pytest.mark.parametrize("explorer", WAYS, ids=lambda e: type(e).__name__)
def test_a_watch_that_says_stop_ends_one_structure_and_not_the_others(emt_model, explorer):
    stop = Verdict(True, True, "novelty", 3.0)
    found = explorer.explore(Calculator(emt_model), crystal(), lambda _: stop, rng())
    n = {"Rattle": 5, "RandomStructures": 3, "UnsampledDirections": 2, "Pool": 5}
    assert len(found.candidates) == n[type(explorer).__name__] == found.n_steps
    assert found.finished


@pytest.mark.parametrize("explorer", WAYS, ids=lambda e: type(e).__name__)
def test_a_bad_model_raises_nothing(bad_model, explorer):  # noqa: F811
    found = explorer.explore(Calculator(bad_model), crystal(), calm, rng())
    assert found.n_steps >= 1
    assert all(np.isfinite(frame.positions).all() for frame in found.frames)


class Forgetful:
    """Remembers what it has seen since it was told to forget."""

    def __init__(self):
        self.seen, self.lengths = 0, []

    def restart(self):
        self.lengths.append(self.seen)
        self.seen = 0

    def __call__(self, atoms):
        self.seen += 1
        return Verdict(False, False, "", 0.0)


@pytest.mark.parametrize("explorer", WAYS, ids=lambda e: type(e).__name__)
def test_a_watch_forgets_between_structures_that_are_not_one_way(emt_model, explorer):
    # It would compare volumes of unlike cells, and be quiet after the first candidate of a pool.
    watch = Forgetful()
    found = explorer.explore(Calculator(emt_model), crystal(), watch, rng())
    ways = [n for n in (*watch.lengths, watch.seen) if n]
    expected = {
        "Rattle": [1] * 5, "RandomStructures": [5] * 3, "UnsampledDirections": [4] * 2,
        "Pool": [1] * 5,
    }  # fmt: skip
    assert ways == expected[type(explorer).__name__]
    assert sum(ways) == found.n_steps


def test_rattled_structures_are_displaced_and_strained_as_much_as_told(emt_model):
    start = bulk("Cu", cubic=True)
    found = Rattle(displacement=0.1, strain=0.03, n=100).explore(
        Calculator(emt_model), start, calm, rng()
    )
    assert len(found.frames) == 100
    strains, moves = [], []
    for frame in found.frames:
        strain = np.linalg.solve(start.cell.array, frame.cell.array) - np.eye(3)
        assert strain == pytest.approx(strain.T, abs=1e-12)
        strains.append(strain)
        moves.append(frame.positions - start.positions @ (np.eye(3) + strain))
    assert 0.028 < np.abs(np.diagonal(strains, axis1=1, axis2=2)).max() <= 0.03
    assert np.std(moves) == pytest.approx(0.1, rel=0.1)


def test_rattling_leaves_directions_that_are_not_periodic(emt_model):
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    frame = Rattle(n=1).explore(Calculator(emt_model), slab, calm, rng()).frames[0]
    assert frame.cell.array[2] == pytest.approx(slab.cell.array[2])
    assert frame.cell.array[0, 0] != slab.cell.array[0, 0]
    molecule = Rattle(n=1).explore(Calculator(emt_model), cluster(), calm, rng()).frames[0]
    assert not molecule.cell.array.any()


def test_given_structures_are_rattled_in_the_place_of_the_start(emt_model):
    given = (bulk("Cu", cubic=True), bulk("Au", cubic=True))
    found = Rattle(n=2, structures=given).explore(Calculator(emt_model), crystal(), calm, rng())
    assert [str(frame.symbols) for frame in found.frames] == ["Cu4", "Cu4", "Au4", "Au4"]


def test_structures_that_are_none_are_left_out(emt_model):
    good, double = crystal(), crystal()
    double.positions[1] = double.positions[0]
    found = Pool((double, good)).explore(
        Calculator(emt_model), good, lambda _: Verdict(False, True, "given", 1.0), rng()
    )
    assert len(found.frames) == 1
    assert [c.step for c in found.candidates] == [1]
    assert "1 of them refused, the first: exploded: atoms 0 and 1" in found.note
    assert found.finished


def test_a_pool_is_ranked(emt_model):
    pool = tuple(crystal(seed, amplitude) for seed, amplitude in enumerate([0.02, 0.3, 0.1, 0.2]))
    found = Pool(pool, n_most=3).explore(
        Calculator(emt_model), pool[0],
        lambda a: by_novelty(a)._replace(unsure=True), rng(),
    )  # fmt: skip
    scores = [c.score for c in found.candidates]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    for candidate in found.candidates:
        assert np.array_equal(candidate.atoms.positions, pool[candidate.step].positions)


@pytest.mark.parametrize("periodic", [True, False])
def test_random_structures_have_their_density_and_distances(emt_model, periodic):
    explorer = RandomStructures(
        "Cu5Au3", volume=(16.0, 20.0), n=6, n_steps=0, periodic=periodic, distance=0.6
    )
    found = explorer.explore(Calculator(emt_model), crystal(), calm, rng())
    assert len(found.frames) == 6
    for frame in found.frames:
        assert str(frame.symbols) == "Cu5Au3"
        assert frame.pbc.all() == periodic
        if periodic:
            assert 16.0 <= frame.get_volume() / 8 <= 20.0
        least = 0.6 * np.add.outer(*[covalent_radii[frame.numbers]] * 2)
        near = frame.get_all_distances(mic=periodic)[np.triu_indices(8, 1)]
        assert np.all(near >= least[np.triu_indices(8, 1)] - 1e-9)
    assert len({frame.positions.tobytes() for frame in found.frames}) == 6


def test_atoms_that_find_no_room_come_nearer(emt_model):
    explorer = RandomStructures("Cu8", volume=4.0, n=1, n_steps=0, distance=1.0)
    found = explorer.explore(Calculator(emt_model), crystal(), calm, rng())
    assert len(found.frames) == 1


def test_random_structures_relax(emt_model):
    energies = []
    RandomStructures(n=1, n_steps=15).explore(
        Calculator(emt_model), crystal(),
        lambda a: energies.append(a.get_potential_energy()) or calm(a), rng(),
    )  # fmt: skip
    assert len(energies) == 16
    assert energies[-1] < energies[0]


# ---------------------------------------------------------------------------------- directions


def test_unsampled_directions_are_those_of_the_pseudo_inverse(emt_model):
    # Dense algebra on finite differences: nothing in common with the code but the features.
    atoms, predictor = cluster(), emt_model.predictor_
    (component,) = predictor.process.components
    bound = component.descriptor
    species_n = predictor.species_of(atoms.numbers)

    def features(positions_nc):
        pairs = find_pairs(positions_nc, np.zeros((3, 3)), [False] * 3, predictor.cutoff)
        return bound.features(System(species_n, pairs), np.arange(4, dtype=np.intp))[0].ravel()

    J_xg, h = np.empty((4 * bound.n_features, 12)), 1e-5
    for g in range(12):
        shift = np.zeros(12)
        shift[g] = h
        ahead, back = (features(atoms.positions + s * shift.reshape(4, 3)) for s in (1, -1))
        J_xg[:, g] = (ahead - back) / (2.0 * h)
    U, S, _ = np.linalg.svd(J_xg, full_matrices=False)
    U = U[:, S / S[0] > 0.05]
    C_xx = np.zeros((len(J_xg), len(J_xg)))
    for n in range(4):
        x_eq = component.inducing[species_n[n]].x_eq
        rows = slice(n * bound.n_features, (n + 1) * bound.n_features)
        C_xx[rows, rows] = np.cov(x_eq.T, bias=True)
    variance_k, w_kk = np.linalg.eigh(U.T @ C_xx @ U)
    expected = np.linalg.pinv(J_xg, rcond=0.05) @ U @ w_kk
    expected /= np.linalg.norm(expected, axis=0)

    found = unsampled_directions(predictor, atoms, least_singular_value=0.05)
    assert found.variance_k == pytest.approx(variance_k / variance_k.mean(), rel=1e-4)
    likeness = np.abs(found.displacements_knc.reshape(-1, 12) @ expected)
    assert np.diag(likeness) == pytest.approx(np.ones(len(likeness)), abs=1e-4)


@pytest.mark.parametrize("make", [cluster, crystal], ids=["cluster", "crystal"])
def test_unsampled_directions_are_no_rigid_motions(emt_model, make):
    atoms = make()
    found = unsampled_directions(emt_model.predictor_, atoms, least_singular_value=0.01)
    n_rigid = 6 if make is cluster else 3
    assert 0 < len(found.variance_k) <= 3 * len(atoms) - n_rigid
    for u_nc in found.displacements_knc:
        assert np.linalg.norm(u_nc) == pytest.approx(1.0)
        # The pseudo-inverse gives the shortest displacement: nothing of what changes nothing.
        assert u_nc.sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-8)
        if make is cluster:
            turn = np.cross(atoms.positions, u_nc).sum(axis=0)
            assert turn == pytest.approx(np.zeros(3), abs=1e-8)
    assert np.all(np.diff(found.variance_k) >= 0.0)


def test_a_symmetric_crystal_has_no_direction(emt_model):
    start = bulk("Cu", "fcc", a=3.65)
    assert len(unsampled_directions(emt_model.predictor_, start).variance_k) == 0
    found = UnsampledDirections().explore(Calculator(emt_model), start, calm, rng())
    assert found.finished
    assert "rattle" in found.note


def test_a_direction_that_training_lacks_is_found(emt_soap):
    # Dimers along x only change their length; trimers that only stretch symmetrically know nothing
    # of the asymmetric stretch.
    images = []
    for stretch in np.linspace(-0.3, 0.3, 9):
        atoms = Atoms("Cu3", [[-2.5 - stretch, 0, 0], [0, 0, 0], [2.5 + stretch, 0, 0]])
        atoms.calc = EMT()
        atoms.get_forces()
        images.append(atoms)
    model = KernelPotential(emt_soap, n_environments=9, n_tangents=2).fit(images)
    start = Atoms("Cu3", [[-2.5, 0, 0], [0, 0, 0], [2.5, 0, 0]])
    found = unsampled_directions(model.predictor_, start)
    ends = found.displacements_knc[:, [0, 2], 0]
    symmetric = np.abs(ends[:, 0] - ends[:, 1]) / np.sqrt(2.0)
    assert symmetric[-1] > 0.99  # what was sampled comes last
    assert symmetric[0] < 0.1


def test_uncertainty_and_error_grow_along_the_path(emt_model):
    explorer = UnsampledDirections(n_directions=2, n_steps=8, step=0.08, energy=2.0, oracle=EMT())
    found = explorer.explore(Calculator(emt_model), crystal(amplitude=0.02), calm, rng())
    assert found.n_steps == 18
    path = found.frames[:9]
    growth = growth_of(Calculator(emt_model), path, EMT())
    assert growth.forces_std[-1] > 2.0 * growth.forces_std[0]
    assert growth.forces_error[-1] > 1.5 * growth.forces_error[0]
    assert growth.energy_std[0] == 0.0
    assert growth.energy_error[0] == 0.0
    assert growth.energy_std[-1] > growth.energy_std[1]
    longest = [
        np.linalg.norm(b.positions - a.positions, axis=1).max() for a, b in itertools.pairwise(path)
    ]
    assert longest == pytest.approx([0.08] * 8)
    moved = [np.linalg.norm(b.positions - a.positions) for a, b in itertools.pairwise(path)]
    assert growth.distance == pytest.approx(np.concatenate([[0.0], np.cumsum(moved)]))
    assert f"std {growth.forces_std[0]:.3g} to {growth.forces_std[-1]:.3g}" in found.note
    assert f"error {growth.forces_error[0]:.3g} to {growth.forces_error[-1]:.3g}" in found.note
    without = growth_of(Calculator(emt_model), path)
    assert np.isnan(without.forces_error).all()


def test_a_path_turns_smoothly(emt_model):
    explorer = UnsampledDirections(n_directions=1, n_steps=6, energy=5.0)
    frames = explorer.explore(Calculator(emt_model), crystal(), calm, rng()).frames
    steps = np.array([
        b.positions - a.positions for a, b in itertools.pairwise(frames)
    ]).reshape(6, -1)  # fmt: skip
    steps /= np.linalg.norm(steps, axis=1)[:, None]
    assert np.all(np.einsum("kg,kg->k", steps[:-1], steps[1:]) > 0.5)


def test_a_path_ends_where_the_energy_has_risen(emt_model):
    start = crystal()
    explorer = UnsampledDirections(n_directions=1, n_steps=100, step=0.1, energy=0.05)
    found = explorer.explore(Calculator(emt_model), start, calm, rng())
    assert found.n_steps < 101
    assert "energy has risen by 0.05" in found.note
    for frame in found.frames:
        energies = []
        for atoms in (frame.copy(), start.copy()):
            atoms.calc = Calculator(emt_model)
            energies.append(atoms.get_potential_energy())
        assert energies[0] <= energies[1] + 0.05 * len(start)


def test_fixed_atoms_stay(emt_model):
    start = crystal()
    start.set_constraint(FixAtoms([0]))
    found = UnsampledDirections(n_directions=1, n_steps=3).explore(
        Calculator(emt_model), start, calm, rng()
    )
    assert np.array_equal(found.frames[-1].positions[0], start.positions[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rattle(displacement=-0.1), "displacement must not be negative"),
        (lambda: Rattle(strain=2.0), "0.02 for two per cent"),
        (lambda: Rattle(n=0), "n must be a whole number"),
        (lambda: RandomStructures(volume=0.0), "volume must be above zero"),
        (lambda: RandomStructures(volume=(1.0, 2.0, 3.0)), "one number or a range"),
        (lambda: RandomStructures("Qq2"), "Qq"),
        (lambda: Pool(()), "one structure at least"),
        (lambda: UnsampledDirections(step=0.0), "step must be above zero"),
        (lambda: UnsampledDirections(least_singular_value=1.0), "between 0 and 1"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises((ValueError, KeyError), match=message):
        make()


def test_random_structures_need_a_volume(emt_model):
    with pytest.raises(ValueError, match="need a volume"):
        RandomStructures().explore(Calculator(emt_model), cluster(), calm, rng())


def test_directions_need_environments_to_compare_with(emt_images):
    model = KernelPotential(PairSplines(cutoff=4.0)).fit(emt_images[:10])
    with pytest.raises(ValueError, match="zeta of 2 or more"):
        UnsampledDirections().explore(Calculator(model), crystal(), calm, rng())
