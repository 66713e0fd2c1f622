"""Measures of extrapolation: loops and brute force, laws, what is known and what is not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from kernelpot import KernelPotential, PairSplines, Soap, load
from kernelpot.data import DataError, structures_from_atoms
from kernelpot.model_file import read, write
from kernelpot.selection import system_of
from kernelpot.uncertainty.extrapolation import MEASURES, Extrapolation, Verdicts
from kernelpot.uncertainty.maxvol import coefficients, maxvol
from kernelpot.uncertainty.reach import reach_of
from tests.conftest import alloy, label

GIVEN = {"sigma_energy": 2e-3, "sigma_forces": 0.03, "sigma_stress": 2e-3, "delta": 5.0}


def structures(images):
    return structures_from_atoms(images, labels="ignore")


def unit_vectors(n, n_features, seed=0):
    """Vectors that spread much in some directions and little in others, around one."""
    rng = np.random.default_rng(seed)
    x_nq = 0.3 * rng.normal(size=(n, n_features)) * 0.5 ** np.arange(n_features)
    x_nq[:, 0] += 1.0
    return x_nq / np.linalg.norm(x_nq, axis=1, keepdims=True)


def models():
    soap = Soap(cutoff=4.0, n_max=4, l_max=3)
    alike = Soap(cutoff=4.0, n_max=3, l_max=2, centre_similarity=0.6, n_contracted=3)
    several = [PairSplines(cutoff=4.5), Soap(cutoff=3.5, n_max=3, l_max=2)]
    yield "projected", {"descriptor": soap}
    yield "whole", {"descriptor": soap, "feature_tolerance": 0.0}
    yield "shared", {"descriptor": alike}
    yield "sum", {"descriptor": several, "delta": [1.0, 5.0]}


@pytest.fixture(scope="module", params=list(models()), ids=lambda one: one[0])
def model(request, emt_images):
    parameters = {**GIVEN, **request.param[1]}
    return KernelPotential(n_environments=8, n_tangents=2, **parameters).fit(emt_images[::2])


@pytest.fixture(scope="module")
def extrapolation(model, emt_images):
    return Extrapolation.of(model.fitted_, structures(emt_images[::2]))


# ---------------------------------------------------------------------------------------- maxvol


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_maxvol_beside_brute_force(seed, k, more):
    rng = np.random.default_rng(seed)
    X_nk = rng.normal(size=(k + more, k)) * np.exp(rng.normal(size=(k + more, 1)))
    active_k = maxvol(X_nk)
    assert len(set(active_k.tolist())) == k
    B_nk = coefficients(X_nk, X_nk[active_k])
    assert_allclose(B_nk @ X_nk[active_k], X_nk, atol=1e-9 * np.abs(X_nk).max())
    assert np.abs(B_nk).max() <= 1.001 + 1e-9
    volume = abs(np.linalg.det(X_nk[active_k]))
    of_all = [
        abs(np.linalg.det(X_nk[list(rows)])) for rows in itertools.combinations(range(k + more), k)
    ]
    # No exchange of one row makes the volume larger, which bounds it by the largest there is.
    for j, n in itertools.product(range(k), range(k + more)):
        other = active_k.copy()
        other[j] = n
        assert abs(np.linalg.det(X_nk[other])) <= volume * (1.001 + 1e-9)
    assert volume >= max(of_all) / (1.001 * math.sqrt(k)) ** k * (1 - 1e-9)
    if k == 1:
        assert volume >= max(of_all) / 1.001


def test_maxvol_exchanges_rows():
    # The pivots take the longest row first, (1, 1, 1), which does not belong to the largest volume.
    X_nk = np.vstack([np.eye(3), [[1.0, 1.0, 1.0]], -np.eye(3) + 1.0])
    largest = max(
        abs(np.linalg.det(X_nk[list(rows)])) for rows in itertools.combinations(range(7), 3)
    )
    assert abs(np.linalg.det(X_nk[maxvol(X_nk)])) == pytest.approx(largest)


def test_maxvol_needs_full_rank():
    with pytest.raises(ValueError, match="2 rows cannot span 3 dimensions"):
        maxvol(np.eye(3)[:2])
    with pytest.raises(ValueError, match="span 1 of 2 dimensions"):
        maxvol(np.outer(np.arange(1.0, 5.0), [1.0, 2.0]))


# ------------------------------------------------------------------------- a sample of vectors


def naive_measures(x_eq, x_nq, ridge, active_rows, axes_kq):
    """Covariance, coefficients and distances one by one."""
    n_e, n_features = x_eq.shape
    mean_q = sum(x_eq) / n_e
    C_qq = ridge * np.eye(n_features)
    for x_q in x_eq:
        C_qq = C_qq + np.outer(x_q - mean_q, x_q - mean_q) / n_e
    inverse_qq = np.linalg.inv(C_qq)
    found = []
    for x_q in x_nq:
        d_q = x_q - mean_q
        c_k = np.linalg.lstsq((x_eq[active_rows] @ axes_kq.T).T, axes_kq @ x_q, rcond=None)[0]
        nearest = min(2.0 - 2.0 * sum(a * b for a, b in zip(x_q, one, strict=True)) for one in x_eq)
        found.append(
            (
                math.sqrt(d_q @ inverse_qq @ d_q),
                max(abs(c) for c in c_k),
                math.sqrt(max(nearest, 0.0)),
            )
        )
    return np.array(found)


@pytest.mark.parametrize(("n", "n_features"), [(60, 6), (24, 40), (5, 3)])
def test_measures_are_those_of_loops(n, n_features):
    x_eq = unit_vectors(n, n_features)
    x_nq = np.vstack([unit_vectors(7, n_features, seed=1), x_eq[:3], np.eye(n_features)[-1:]])
    reach = reach_of(x_eq)
    n_axes = reach.grade_qk.shape[1]
    assert len(set(reach.active_k.tolist())) == n_axes <= max(1, n // 4)
    axes_kq = np.linalg.svd(x_eq, full_matrices=False)[2][:n_axes]
    expected = naive_measures(x_eq, x_nq, reach.ridge, reach.active_k, axes_kq)
    assert_allclose(reach.measures(x_nq), expected, rtol=1e-6, atol=1e-6)
    spread = sum(float(np.var(x_eq[:, q])) for q in range(n_features))
    assert reach.ridge == pytest.approx(1e-6 * (spread + 1e-6))


def test_limits_are_those_of_leaving_out():
    x_eq = unit_vectors(80, 5)
    reach = reach_of(x_eq)
    alone, nearest = [], []
    for e in range(80):
        rest = np.delete(x_eq, e, axis=0)
        mean_q = rest.mean(axis=0)
        # The divisor stays, as the formula has it.
        C_qq = (rest - mean_q).T @ (rest - mean_q) / 80 + reach.ridge * np.eye(5)
        d_q = x_eq[e] - mean_q
        alone.append(math.sqrt(d_q @ np.linalg.inv(C_qq) @ d_q))
        nearest.append(np.linalg.norm(rest - x_eq[e], axis=1).min())
    within = reach.measures(x_eq)
    assert reach.limits[0] == pytest.approx(
        max(np.quantile(alone, 0.99), within[:, 0].max()), rel=1e-8
    )
    assert reach.limits[2] == pytest.approx(np.quantile(nearest, 0.99), rel=1e-6)
    assert reach.limits[1] == pytest.approx(max(1.0, within[:, 1].max()))
    assert reach.limits[1] <= 1.001


def test_one_outlier_does_not_open_the_limits():
    usual = unit_vectors(300, 6)
    far = np.eye(6)[-1:]
    with_it = reach_of(np.vstack([usual, far]))
    without = reach_of(usual)
    assert with_it.limits[2] < 1.5 * without.limits[2]
    assert with_it.limits[0] <= math.sqrt(300.0)  # of a sample of 301, whatever is in it
    assert without.limits[0] < with_it.limits[0]
    assert (with_it.measures(far) <= with_it.limits * (1 + 1e-9)).all()
    between = far + usual[:1]
    between /= np.linalg.norm(between)
    assert (with_it.measures(between)[0] > with_it.limits).any()


def test_vectors_of_the_same_kind_are_mostly_within():
    reach = reach_of(unit_vectors(600, 12))
    fresh = reach.measures(unit_vectors(2000, 12, seed=9)) / reach.limits
    assert (np.mean(fresh > 1.0, axis=0) < 0.05).all()
    other = unit_vectors(2000, 12, seed=9)[:, ::-1]
    assert (reach.measures(other) > reach.limits).all()


@pytest.mark.parametrize("n", [1, 2, 50])
def test_equal_vectors_know_themselves_only(n):
    x_q = unit_vectors(1, 7)[0]
    reach = reach_of(np.tile(x_q, (n, 1)))
    assert (reach.measures(x_q[None] * (1 + 1e-14)) <= reach.limits * (1 + 1e-6)).all()
    other = x_q + 1e-2 * np.eye(7)[3]
    ratio = reach.measures(other[None] / np.linalg.norm(other))[0] / reach.limits
    assert ratio[0] > 10.0
    assert ratio[2] > 10.0


# ------------------------------------------------------------------------------- of structures


def test_training_environments_are_known(extrapolation, emt_images):
    for structure in structures(emt_images[::2]):
        found = extrapolation.of_structure(structure)
        assert isinstance(found, Verdicts)
        assert not found.extrapolates_n.any()
        assert found.reason_n == ("",) * structure.n_atoms
        assert found.ratio_nk.max() <= 1.0 + 1e-6
        # The nearest is the environment itself, up to what axes leave out.
        assert found.distance_n.max() < 3e-3


def test_measures_of_structures_are_those_of_loops(model, emt_images):
    images = emt_images[::2]
    extrapolation = Extrapolation.of(model.fitted_, structures(images))
    component = next(c for c in model.fitted_.components if c.zeta > 1)
    bound = component.descriptor
    shared = len(component.inducing) == 1
    x_all, block_all = [], []
    for structure in structures(images):
        system = system_of(bound, structure)
        x_all.append(bound.features(system, np.arange(structure.n_atoms))[0])
        block_all.append(np.zeros(structure.n_atoms) if shared else system.species_n)
    x_all, block_all = np.concatenate(x_all), np.concatenate(block_all)
    shortest = {}
    for atoms in images:
        distances = periodic_distances(atoms, bound.cutoff)
        for z, zz, r in distances:
            shortest[z, zz] = min(shortest.get((z, zz), np.inf), r)

    probe = alloy(np.random.default_rng(77), amplitude=0.3)
    probe.set_cell(probe.cell[:] * 0.93, True)
    [structure] = structures([probe])
    found = extrapolation.of_structure(structure)
    system = system_of(bound, structure)
    x_nq, _ = bound.features(system, np.arange(structure.n_atoms))
    arrays = extrapolation.to_arrays()
    limits = list(extrapolation.limits.values())
    for n in range(structure.n_atoms):
        z = 0 if shared else system.species_n[n]
        x_eq = x_all[block_all == z]
        active = arrays[f"{z}/x_eq"][arrays[f"{z}/active_k"]]
        places = [np.argmin(np.linalg.norm(x_eq - x_q, axis=1)) for x_q in active]
        axes_kq = np.linalg.svd(x_eq, full_matrices=False)[2][: len(active)]
        expected = naive_measures(x_eq, x_nq[n : n + 1], arrays[f"{z}/ridge"], places, axes_kq)[0]
        ours = np.array([found.mahalanobis_n[n], found.grade_n[n], found.distance_n[n]])
        assert_allclose(ours, expected, rtol=1e-5)
        assert_allclose(
            found.ratio_nk[n, :3], [expected[k] / limits[z][MEASURES[k]] for k in range(3)],
            rtol=1e-5,
        )  # fmt: skip
    for n, number in enumerate(probe.numbers):
        factors = [
            shortest.get((z, zz), np.inf) / r
            for z, zz, r in periodic_distances(probe, bound.cutoff, n)
        ]
        assert found.ratio_nk[n, 3] == pytest.approx(max(factors))
        assert (found.ratio_nk[n] > 1 + 1e-6).any() == found.extrapolates_n[n]
        assert number in (29, 79)
    assert found.extrapolates_n.any()


def periodic_distances(atoms, cutoff, only=None):
    """Species and distance of all pairs of images within the cutoff, by loops."""
    shifts = list(itertools.product((-2, -1, 0, 1, 2), repeat=3)) if atoms.pbc.any() else [(0,) * 3]
    found = []
    for i, j, shift in itertools.product(range(len(atoms)), range(len(atoms)), shifts):
        if (only is not None and i != only) or (i == j and not any(shift)):
            continue
        r = np.linalg.norm(atoms.positions[j] + shift @ atoms.cell[:] - atoms.positions[i])
        if r < cutoff:
            found.append((atoms.numbers[i], atoms.numbers[j], r))
    return found


def test_other_structures_are_not_known(extrapolation, emt_images):
    def share_of(images):
        verdicts = [extrapolation.of_structure(one) for one in structures(images)]
        return np.mean(np.concatenate([one.extrapolates_n for one in verdicts]))

    def scaled(factor):
        images = [atoms.copy() for atoms in emt_images[1:30:2]]
        for atoms in images:
            atoms.set_cell(atoms.cell[:] * factor, True)
        return images

    fresh = share_of(emt_images[1:30:2])
    assert fresh < 0.3  # fifteen cells of several volumes do not know all others
    for factor in (0.8, 1.25):
        assert share_of(scaled(factor)) > 0.9
    assert share_of(scaled(0.9)) > 3 * fresh


def test_other_lattices_are_not_known(emt_model, emt_images):
    # Neighbours as far apart as in the training, in other places: no contact is shorter.
    extrapolation = Extrapolation.of(emt_model.fitted_, structures(emt_images))
    for lattice in (bulk("Cu", "sc", a=2.6), bulk("Au", "diamond", a=6.0), bulk("Cu", "sc", a=2.9)):
        found = extrapolation.of_structure(structures([lattice])[0])
        assert found.extrapolates_n.all()
        assert found.ratio_nk[:, 3].max() < 1.0 < found.ratio_nk[:, 1].min()


def test_reasons_say_which_and_how_much(extrapolation, emt_images):
    atoms = emt_images[0].copy()
    atoms.set_cell(atoms.cell[:] * 0.8, True)
    found = extrapolation.of_structure(structures([atoms])[0])
    assert found.extrapolates_n.all()
    n = int(np.argmax(found.ratio_nk[:, 3]))
    assert found.ratio_nk[n, 3] > 1.0
    assert "A apart, shortest in training" in found.reason_n[n]
    for n, reason in enumerate(found.reason_n):
        parts = reason.split("; ")
        assert len(parts) == np.count_nonzero(found.ratio_nk[n] > 1 + 1e-6)
        for k, name in enumerate(MEASURES[:3]):
            assert (f"{name} " in reason) == (found.ratio_nk[n, k] > 1 + 1e-6)
    assert any("distance" in reason and "times)" in reason for reason in found.reason_n)


def test_pairs_that_training_never_had(emt_soap):
    rng = np.random.default_rng(3)
    images = []
    for number in (29, 79) * 4:
        atoms = bulk("Cu", "fcc", a=3.9, cubic=True)
        atoms.numbers[:] = number
        atoms.positions += rng.normal(0, 0.1, (4, 3))
        images.append(label(atoms))
    model = KernelPotential(emt_soap, n_environments=6, n_tangents=2, **GIVEN).fit(images)
    extrapolation = Extrapolation.of(model.fitted_, structures(images))
    dimer = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 2.5]])
    found = extrapolation.of_structure(structures([dimer])[0])
    assert np.isinf(found.ratio_nk[:, 3]).all()
    assert found.reason_n[0].startswith("Cu-Au 2.500 A apart, none within 4 A in training")
    assert found.reason_n[1].startswith("Au-Cu 2.500 A apart")
    alone = extrapolation.of_structure(structures([Atoms("Cu")])[0])
    assert alone.ratio_nk[0, 3] == 0.0  # no pair at all
    assert alone.extrapolates_n.all()


def test_laws(extrapolation):
    atoms = alloy(np.random.default_rng(21), amplitude=0.25)
    reference = extrapolation.of_structure(structures([atoms])[0])
    turned = atoms.copy()
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    turned.positions += [0.3, -4.0, 1.7]
    larger = atoms * (2, 1, 1)
    order = np.random.default_rng(0).permutation(len(atoms))
    for other, expected in (
        (turned, reference.ratio_nk),
        (larger, np.tile(reference.ratio_nk, (2, 1))),
        (atoms[order], reference.ratio_nk[order]),
    ):
        found = extrapolation.of_structure(structures([other])[0])
        assert_allclose(found.ratio_nk, expected, rtol=1e-6, atol=1e-6)


def test_samples_are_bounded_and_repeatable(model, emt_images, monkeypatch):
    train = structures(emt_images[::2])
    few = [Extrapolation.of(model.fitted_, train, n_sample=24, random_state=s) for s in (5, 5, 6)]
    first, again, other = (one.to_arrays() for one in few)
    assert set(first) == set(again)
    for name, array in first.items():
        assert_array_equal(array, again[name])
    assert any(
        first[name].shape != other[name].shape or (first[name] != other[name]).any()
        for name in first
    )
    assert all(len(first[name]) <= 24 for name in first if name.endswith("x_eq"))
    # Shortest distances are those of all structures, whatever the sample.
    assert_array_equal(first["shortest_zz"], other["shortest_zz"])
    found = np.concatenate([few[0].of_structure(one).extrapolates_n for one in train])
    assert 0.0 < found.mean() < 0.7
    monkeypatch.setattr("kernelpot.uncertainty.extrapolation._MEMORY", 2.0**14)
    small = Extrapolation.of(model.fitted_, train).to_arrays()
    sizes = [array.nbytes for name, array in small.items() if name.endswith(("x_eq", "W_kq"))]
    assert sum(sizes) <= 2**14


def test_arrays_make_the_same_again(tmp_path, model, extrapolation, emt_images):
    write(tmp_path / "arrays.kpot", {}, extrapolation.to_arrays())
    model.save(tmp_path / "model.kpot")
    fitted = load(tmp_path / "model.kpot").fitted_
    again = Extrapolation.from_arrays(fitted, read(tmp_path / "arrays.kpot")[1])
    atoms = alloy(np.random.default_rng(4), amplitude=0.3)
    ours, theirs = (one.of_structure(structures([atoms])[0]) for one in (extrapolation, again))
    assert_array_equal(ours.ratio_nk, theirs.ratio_nk)
    assert ours.reason_n == theirs.reason_n
    assert again.limits == extrapolation.limits


def test_mistakes_are_named(model, extrapolation, emt_images, emt_model):
    train = structures(emt_images[::2])
    with pytest.raises(ValueError, match="n_sample must be 2"):
        Extrapolation.of(model.fitted_, train, n_sample=1)
    copper = [atoms for atoms in emt_images if set(atoms.numbers) == {29}]
    with pytest.raises(DataError, match="no Au in the structures"):
        Extrapolation.of(model.fitted_, structures(copper))
    with pytest.raises(DataError, match=r"atomic numbers \[13\]"):
        extrapolation.of_structure(structures([bulk("Al")])[0])
    arrays = extrapolation.to_arrays()
    arrays["0/mean_q"] = arrays["0/mean_q"][1:]
    with pytest.raises(ValueError, match="of another model"):
        Extrapolation.from_arrays(model.fitted_, arrays)
    linear = KernelPotential(PairSplines(cutoff=4.0), **GIVEN).fit(emt_images[::4])
    with pytest.raises(ValueError, match="linear in functions of pairs"):
        Extrapolation.of(linear.fitted_, train)


def test_models_of_the_full_basis_too(molecule_images):
    model = KernelPotential(
        Soap(cutoff=3.0, n_max=3, l_max=2), basis="full", sigma_energy=1e-3, sigma_forces=0.05
    ).fit(molecule_images)
    extrapolation = Extrapolation.of(model.fitted_, structures(molecule_images))
    assert set(extrapolation.limits) == {"C", "N", "O"}
    for structure in structures(molecule_images):
        assert not extrapolation.of_structure(structure).extrapolates_n.any()
    stretched = molecule_images[0].copy()
    stretched.set_distance(0, 1, 1.6)
    found = extrapolation.of_structure(structures([stretched])[0])
    assert found.extrapolates_n.all()
