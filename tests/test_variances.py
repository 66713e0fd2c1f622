"""Posterior variances and covariances of energies, forces and stresses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose, assert_array_equal

import kernelpot.fitted as fitted
import kernelpot.prior_variances as prior_variances
from kernelpot import Calculator, KernelPotential, PairSplines, Soap
from kernelpot.conventions import OBSERVABLES, VOIGT
from kernelpot.data import structures_from_atoms
from kernelpot.selection import system_of
from kernelpot.structure_prediction import variances_of
from tests.conftest import alloy, label
from tests.naive import gp as naive

GIVEN = {"sigma_energy": 2e-3, "sigma_forces": 0.03, "sigma_stress": 2e-3}


def clusters(n, seed):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        atoms = Atoms("Cu2Au", positions=[[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0]])
        atoms.positions += rng.normal(0, 0.15, (3, 3))
        images.append(label(atoms))
    return images


def models():
    soap = Soap(cutoff=4.0, n_max=4, l_max=3)
    alike = Soap(cutoff=4.0, n_max=3, l_max=2, centre_similarity=0.6, n_contracted=3)
    yield "projected", {"descriptor": soap, "n_environments": 12, "n_tangents": 4}
    yield (
        "whole",
        {"descriptor": soap, "n_environments": 12, "n_tangents": 4, "feature_tolerance": 0.0},
    )
    yield "shared", {"descriptor": alike, "n_environments": 12, "n_tangents": 4}
    several = [Soap(cutoff=3.5, n_max=3, l_max=2), PairSplines(cutoff=4.0)]
    yield "sum", {"descriptor": several, "n_environments": 12, "n_tangents": 4}


@pytest.fixture(scope="module", params=list(models()), ids=lambda one: one[0])
def model(request, emt_images):
    parameters = {**request.param[1], **GIVEN}
    n = 2 if isinstance(parameters["descriptor"], list) else 1
    delta = [5.0, 1.0] if n == 2 else 5.0
    return KernelPotential(**parameters, delta=delta).fit(emt_images[::2])


def numbers_of(prediction, kind):
    """All standard deviations of a kind, structure by structure."""
    values = getattr(prediction, f"{kind}_std")
    return np.concatenate([np.ravel(value) for value in values])


# ------------------------------------------------------------------------------- the formulas


def test_variances_are_the_diagonal_of_the_covariances(model, emt_images):
    images = [emt_images[1], emt_images[33], alloy(np.random.default_rng(5), amplitude=0.4)]
    p = model.predict(images, return_std=True, return_cov=True)
    assert_allclose(p.cov.matrix, p.cov.matrix.T, rtol=0, atol=1e-14)
    variance_r = np.diag(p.cov.matrix)
    scale = variance_r.max()
    for kind in OBSERVABLES:
        mine = p.cov.kind_r == kind
        std = numbers_of(p, kind)
        assert_allclose(variance_r[mine], std[np.isfinite(std)] ** 2, rtol=1e-7, atol=1e-11 * scale)
    assert np.isnan(p.stress_std[1]).all()  # a cluster
    assert set(p.cov.structure_r[p.cov.kind_r == "stress"]) == {0, 2}
    # Energies of atoms add up to the total, with their covariances.
    for s in range(3):
        atoms = (p.cov.kind_r == "energies") & (p.cov.structure_r == s)
        total = (p.cov.kind_r == "energy") & (p.cov.structure_r == s)
        assert_allclose(
            p.cov.matrix[total] , p.cov.matrix[atoms].sum(axis=0, keepdims=True),
            rtol=1e-7, atol=1e-11 * scale,
        )  # fmt: skip
        # Newton: the forces add up to nothing, for certain.
        forces = (p.cov.kind_r == "forces") & (p.cov.structure_r == s)
        for c in range(3):
            weights = np.where(forces & (p.cov.place_r % 3 == c), 1.0, 0.0)
            assert p.cov.std(weights) < 1e-5 * np.sqrt(scale)


@pytest.mark.parametrize("kinds", ["forces", ("energy", "stress"), ("stress", "forces")])
def test_covariances_of_some_kinds_and_structures(model, emt_images, kinds):
    images = [emt_images[1], emt_images[33], alloy(np.random.default_rng(5), amplitude=0.4)]
    whole, some = (model.predict(images, return_cov=asked).cov for asked in (True, kinds))
    places = {key: r for r, key in enumerate(zip(*whole[1:4], strict=True))}
    of_whole = [places[key] for key in zip(*some[1:4], strict=True)]
    assert len(of_whole) > 9
    scale = np.abs(whole.matrix).max()
    expected = whole.matrix[np.ix_(of_whole, of_whole)]
    assert_allclose(some.matrix, expected, rtol=1e-9, atol=1e-12 * scale)
    # In parts: as without covariances.
    found = {
        (s, kind): getattr(model.predict([images[s]], return_std=kind), f"{kind}_std")[0]
        for s in range(3)
        for kind in ([kinds] if isinstance(kinds, str) else kinds)
    }
    for (s, kind), std in found.items():
        mine = (some.structure_r == s) & (some.kind_r == kind)
        variance_r = some.terms.novelty[mine] + some.terms.open[mine]
        if mine.any():
            assert_allclose(np.sqrt(variance_r), np.ravel(std), rtol=1e-6, atol=1e-6 * scale**0.5)
    two, structure_r = some.between([0, 2])
    kept = np.isin(some.structure_r, [0, 2])
    assert_array_equal(two, some.matrix[kept][:, kept])
    assert_array_equal(structure_r, some.structure_r[kept] // 2)


def test_covariances_know_the_jackknife(model, emt_images):
    joint = model.predict(emt_images[:2], return_cov="forces").cov
    for s, one in enumerate(model._structures(emt_images[:2], labels="ignore")):
        terms = variances_of(model.predictor_, one, ["forces"], jackknife=True)["forces"]
        mine = joint.structure_r == s
        assert terms.jackknife.max() > 0.0
        assert_allclose(joint.terms.jackknife[mine], terms.jackknife.ravel(), rtol=1e-6, atol=1e-14)


def test_covariances_are_those_of_differences_of_energies(model):
    atoms = alloy(np.random.default_rng(11), amplitude=0.3)
    h = 1e-3
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
    energies = model.predict(moved, return_cov="energy").cov
    p = model.predict([atoms], return_std=True, return_cov=("forces", "stress"))
    force, stress = p.forces_std[0][2, 1], p.stress_std[0, 4]
    assert energies.std([1, -1, 0, 0]) / (2 * h) == pytest.approx(force, rel=1e-4)
    assert energies.std([0, 0, 1, -1]) / (2 * h * atoms.get_volume()) == pytest.approx(
        stress, rel=1e-4
    )
    # And of the one with the other.
    one = np.flatnonzero((p.cov.kind_r == "forces") & (p.cov.place_r == 7))[0]
    two = np.flatnonzero((p.cov.kind_r == "stress") & (p.cov.place_r == 4))[0]
    both = energies.matrix
    by_hand = (both[1] - both[0])[2:] @ [1, -1] / (4 * h**2 * atoms.get_volume())
    assert p.cov.matrix[one, two] == pytest.approx(by_hand, rel=1e-3, abs=1e-4 * force * stress)


def functionals(model, images):
    """Energies, forces and stresses of structures as lists of (factor, block, x, tau)."""
    bound = model.fitted_.components[0].descriptor
    found, kinds = [], []
    for structure in structures_from_atoms(images, labels="ignore"):
        system = system_of(bound, structure)
        pairs, n = system.pairs, structure.n_atoms
        x_nq, J_pcq = bound.jacobian(system, np.arange(n))
        block_n = system.species_n
        found.append([(1.0, block_n[k], x_nq[k], None) for k in range(n)])
        for k, c in itertools.product(range(n), range(3)):
            terms = []
            for i, j, J_cq in zip(pairs.i_p, pairs.j_p, J_pcq, strict=True):
                sign = (i == k) * 1.0 - (j == k) * 1.0  # minus the derivative
                if sign:
                    terms.append((sign, block_n[i], x_nq[i], J_cq[c]))
            found.append(terms)
        if structure.periodic:
            for c, d in VOIGT:
                found.append(
                    [
                        (0.5 / structure.volume, block_n[i], x_nq[i], J_cq[a] * D_c[b])
                        for i, D_c, J_cq in zip(pairs.i_p, pairs.D_pc, J_pcq, strict=True)
                        for a, b in ((c, d), (d, c))
                    ]
                )
        kinds += ["energy"] + ["forces"] * (3 * n) + ["stress"] * (6 if structure.periodic else 0)
    return found, np.array(kinds)


@pytest.mark.parametrize("periodic", [False, True])
def test_with_all_data_as_inducing_variables_it_is_the_exact_process(periodic, monkeypatch):
    # By default what is 1e-10 of the prior variance counts as dependent: 1e-9 of it are missing.
    monkeypatch.setattr(fitted, "RANK_TOLERANCE", 1e-14)
    train, test = clusters(3, 0), clusters(2, 1)
    if periodic:
        for atoms in [*train, *test]:
            atoms.set_cell([4.4, 4.6, 4.5])
            atoms.pbc = True
            label(atoms)
    sigma = {"sigma_energy": 0.02, "sigma_forces": 0.1, "sigma_stress": 0.02}
    model = KernelPotential(
        Soap(cutoff=3.4, n_max=3, l_max=2), n_environments=100, n_tangents=400,
        feature_tolerance=0.0, tangent_threshold=0.0, delta=1.3, core_repulsion=False, **sigma,
    ).fit(train)  # fmt: skip
    assert model.n_environments_ == 9
    rows, kind_r = functionals(model, train)
    tests, kind_s = functionals(model, test)

    def K(one, other):
        return 1.3**2 * np.array(
            [[naive.functional_covariance(a, b, 4) for b in other] for a in one]
        )

    n_atoms = 3
    sigma_r = np.array(
        [{"energy": n_atoms * 0.02, "forces": 0.1, "stress": 0.02}[k] for k in kind_r]
    )
    y_r = []
    for atoms in train:
        base = sum(model.baseline_.energies_of(atoms.numbers))
        y_r += [atoms.get_potential_energy() - base, *atoms.get_forces().ravel()]
        y_r += list(atoms.get_stress()) if periodic else []
    mean_s, covariance_ss = naive.exact(
        K(rows, rows), K(tests, rows), K(tests, tests), np.array(y_r), sigma_r
    )
    p = model.predict(test, return_std=True, return_cov=("energy", "forces", "stress"))
    found_s = np.concatenate(
        [
            np.concatenate([[p.energy[s] - sum(model.baseline_.energies_of(atoms.numbers))],
                            p.forces[s].ravel(), p.stress[s] if periodic else []])
            for s, atoms in enumerate(test)
        ]
    )  # fmt: skip
    assert_allclose(found_s, mean_s, rtol=1e-6, atol=1e-7)
    scale = np.diag(covariance_ss).max()
    assert_allclose(p.cov.matrix, covariance_ss, rtol=0, atol=1e-8 * scale)
    for kind in ("energy", "forces", *(["stress"] if periodic else [])):
        expected = np.sqrt(np.diag(covariance_ss)[kind_s == kind])
        assert_allclose(numbers_of(p, kind), expected, rtol=1e-6)


# ------------------------------------------------------------------------------------ sanity


def test_never_negative_and_never_nan(model, emt_images):
    far = [atoms.copy() for atoms in emt_images[:2]]
    for atoms in far:
        atoms.set_cell(atoms.cell[:] * 0.87, scale_atoms=True)
    apart = Atoms("Cu2", positions=[[0, 0, 0], [30.0, 0, 0]])
    images = [*emt_images[:4], emt_images[0], *far, apart, Atoms("Au")]
    p = model.predict(images, return_std=True)
    for kind in OBSERVABLES:
        std = numbers_of(p, kind)
        finite = np.isfinite(std)
        assert (std[finite] >= 0).all()
        if kind != "stress":
            assert finite.all()
    # Free atoms feel no force, for certain; and the baseline knows their energies.
    assert_allclose(p.forces_std[-1], 0.0, atol=1e-12)
    assert_allclose(p.forces_std[-2], 0.0, atol=1e-12)
    # What the model was fitted to is known better than what is far from it.
    assert p.forces_std[0].mean() < 0.5 * p.forces_std[-4].mean()


def test_a_label_seen_often_leaves_less_open(emt_images, emt_soap):
    """Duplicates: n labels of one structure have the noise of one divided by sqrt(n)."""
    small = {"n_environments": 100, "n_tangents": 8, "delta": 5.0, **GIVEN}
    one = KernelPotential(emt_soap, **small).fit(emt_images[:6])
    more = KernelPotential(emt_soap, **small).fit(emt_images[:6] * 100)
    few, many = (m.predict(emt_images[:1], return_std=True) for m in (one, more))
    assert many.energy_std[0] < 0.5 * few.energy_std[0]
    assert (many.forces_std[0] <= few.forces_std[0] + 1e-12).all()


def test_pieces_give_the_same(model, monkeypatch):
    atoms = alloy(np.random.default_rng(3)) * (2, 1, 1)
    whole = model.predict([atoms], return_std=True)
    monkeypatch.setattr(prior_variances, "_ROOM", prior_variances.Room(block=2.0**17))
    pieces = model.predict([atoms], return_std=True)
    for kind in OBSERVABLES:
        assert_allclose(numbers_of(pieces, kind), numbers_of(whole, kind), rtol=1e-9)


def test_symmetries(emt_model):
    atoms = alloy(np.random.default_rng(7))
    turned = atoms.copy()
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    order = np.random.default_rng(0).permutation(len(atoms))
    shuffled = atoms[order]
    p, q, r = (emt_model.predict([one], return_std=True) for one in (atoms, turned, shuffled))
    assert_allclose(q.energy_std, p.energy_std, rtol=1e-7)
    assert_allclose(q.energies_std[0], p.energies_std[0], rtol=1e-7)
    assert_allclose(r.forces_std[0], p.forces_std[0][order], rtol=1e-7)
    # Components turn with the structure: the sum of their variances does not.
    assert_allclose(
        (q.forces_std[0] ** 2).sum(axis=1), (p.forces_std[0] ** 2).sum(axis=1), rtol=1e-7
    )
    # Supercells: the same forces of all images, the same stress.
    double = emt_model.predict([atoms * (1, 1, 2)], return_std=True)
    assert_allclose(double.forces_std[0][: len(atoms)], p.forces_std[0], rtol=1e-6)
    assert_allclose(double.stress_std, p.stress_std, rtol=1e-6)


# ------------------------------------------------------------------------------ for users


def test_a_barrier_is_surer_than_its_energies(emt_model, emt_images):
    """What two similar structures share is not open in their difference."""
    start, saddle = emt_images[0].copy(), emt_images[0].copy()
    saddle.positions[0] += [0.1, 0.05, 0.0]
    p = emt_model.predict([start, saddle], return_std="energy", return_cov="energy")
    barrier = p.cov.std([-1, 1])
    assert barrier < 0.7 * np.hypot(*p.energy_std)
    assert p.forces_std is None
    assert p.cov.kind_r.tolist() == ["energy"] * 2


def test_the_calculator_has_them(emt_model, emt_images):
    atoms = emt_images[3].copy()
    p = emt_model.predict([atoms], return_std=True)
    atoms.calc = Calculator(emt_model)
    forces_std = atoms.calc.get_property("forces_std", atoms)
    assert set(atoms.calc.results) == {"forces_std"}
    assert_allclose(forces_std, p.forces_std[0], rtol=1e-10)
    assert_allclose(atoms.calc.get_property("stress_std", atoms), p.stress_std[0], rtol=1e-10)
    assert_allclose(atoms.calc.get_property("energies_std", atoms), p.energies_std[0], rtol=1e-10)
    assert "forces_std" in atoms.calc.results
    cluster = emt_images[33].copy()
    cluster.calc = Calculator(emt_model)
    with pytest.raises(NotImplementedError, match="periodic in three directions"):
        cluster.calc.get_property("stress_std", cluster)


def test_unknown_kinds_are_named(emt_model, emt_images):
    with pytest.raises(ValueError, match=r"return_std does not know .virial.*energies"):
        emt_model.predict(emt_images[:1], return_std=["energy", "virial"])
    with pytest.raises(ValueError, match="return_cov does not know"):
        emt_model.predict(emt_images[:1], return_cov="force")
    alone = emt_model.predict(emt_images[33:34], return_cov="stress")
    assert alone.cov.matrix.shape == (0, 0)
