"""The full gradient basis against dense algebra, difference quotients and its own training data."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from kernelpot import KernelPotential, Soap, fit_budget, load
from kernelpot.gp.exact import leave_out, solve
from kernelpot.gp.exact_noise import Labels, extrapolate, left_out_noise, maximise_noise
from kernelpot.gp.packed import Packed
from tests.naive import gp as naive

NOISE = {"sigma_energy": 2e-3, "sigma_forces": 0.02, "sigma_stress": 1e-3}


# --------------------------------------------------------------------------- exact algebra


@pytest.mark.parametrize("n", [1, 2, 3, 8, 31, 64])
def test_packed_matrix_is_solved_like_a_dense_one(n):
    rng = np.random.default_rng(n)
    root = rng.standard_normal((n, n + 2))
    K, y, sigma = root @ root.T, rng.standard_normal(n), rng.uniform(0.1, 0.5, n)
    packed = Packed(n, width=7)
    first = 0
    while first < n:
        count = min(int(rng.integers(1, 6)), n - first)
        packed.set_rows(first, K[first : first + count])
        first += count
    assert_allclose(packed.diagonal(), np.diag(K))
    told = []
    found = solve(packed, y, sigma, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    _, alpha, evidence = naive.gaussian_process(K, y, sigma)
    assert_allclose(found.alpha_r, alpha, atol=1e-8 * np.abs(alpha).max())
    assert_allclose(found.log_evidence, evidence, rtol=1e-8)
    assert_allclose(found.data_fit, -0.5 * y @ alpha, rtol=1e-8)
    counts = [min(3, n), max(n - 3, 0)]
    errors = leave_out(packed, found.alpha_r, counts)
    C = K + np.diag(sigma**2)
    parts = (slice(0, counts[0]), slice(counts[0], n))
    for here, there in (parts, parts[::-1]):
        guess = C[here, there] @ np.linalg.solve(C[there, there], y[there])
        assert_allclose(errors[here], y[here] - guess, atol=1e-8 * np.abs(y).max())


def test_singular_covariances_are_explained():
    packed = Packed(4)
    packed.set_rows(0, np.ones((4, 4)))
    with pytest.raises(ValueError, match="singular to rounding"):
        solve(packed, np.ones(4), np.full(4, 1e-12))


def test_noise_and_amplitude_are_found():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    K = (x @ x.T) ** 4
    y = 3.0 * np.linalg.cholesky(K + 1e-10 * np.eye(300)) @ rng.standard_normal(300)
    sets = np.arange(300) % 2
    sigma = np.where(sets == 0, 0.1, 1.0)
    y += rng.standard_normal(300) * np.where(sets == 0, 0.2, 0.5)
    delta, noise = maximise_noise(
        K, y, sets, sigma, delta=None, noise_l=[None, None], least_l=[1e-6, 1e-6]
    )
    assert 1.5 < delta < 6.0
    assert_allclose(noise, [2.0, 0.5], rtol=0.3)
    kept, _ = maximise_noise(K, y, sets, sigma, delta=2.0, noise_l=[1.0, 0.5], least_l=[1, 1])
    assert kept == 2.0


@pytest.mark.parametrize("width", [4, 7, 40])
def test_a_part_of_a_packed_matrix(width):
    rng = np.random.default_rng(width)
    root = rng.standard_normal((23, 25))
    K = root @ root.T
    packed = Packed(23, width=width)
    packed.set_rows(0, K)
    assert_allclose(np.tril(packed.lower()), np.tril(K))
    for rows in (np.arange(23), np.arange(3, 9), np.array([0, 6, 7, 8, 15, 22]), np.array([22])):
        part = packed.part(rows)
        assert_allclose(np.tril(part.lower()), np.tril(K[np.ix_(rows, rows)]))
        part.add_to_diagonal(np.ones(len(rows)))
    # What was taken is a copy.
    assert_allclose(np.tril(packed.lower()), np.tril(K))


def one_kind(y, counts, sigma=0.1):
    n = len(y)
    return Labels(y, np.full(n, sigma), np.zeros(n, dtype=int), np.ones(n), counts)


def left_out(K, y, counts, noise):
    """Each block predicted from all others, by dense algebra."""
    C, errors, first = K + noise**2 * np.eye(len(y)), np.empty(len(y)), 0
    for count in counts:
        block = np.zeros(len(y), dtype=bool)
        block[first : first + count] = True
        rest = ~block
        errors[block] = y[block] - C[np.ix_(block, rest)] @ np.linalg.solve(
            C[np.ix_(rest, rest)], y[rest]
        )
        first += count
    return np.sqrt(np.mean(errors**2))


@pytest.mark.parametrize("true", [0.02, 0.3])
@pytest.mark.parametrize("start", [1e-3, 0.1, 10.0])
def test_the_noise_of_least_errors_on_blocks_left_out(true, start):
    rng = np.random.default_rng(1)
    x = rng.uniform(0.0, 12.0, 120)
    K = np.exp(-0.5 * (x[:, None] - x) ** 2)
    y = np.sin(x) + true * rng.standard_normal(120)
    counts = [3] * 40
    packed = Packed(120, width=50)
    packed.set_rows(0, K)
    settings = {"delta": 1.0, "free_l": [True], "importance_l": [1.0]}
    found = left_out_noise(
        packed, one_kind(y, counts), noise_l=np.array([start]), least_l=[1e-4], step=4.0,
        patience=2, **settings,
    )  # fmt: skip
    found = left_out_noise(
        packed, one_kind(y, counts), noise_l=found, least_l=[1e-4], step=2.0, patience=1,
        **settings,
    )  # fmt: skip
    grid = [left_out(K, y, counts, 0.1 * factor) for factor in np.geomspace(1e-3, 30.0, 60)]
    assert left_out(K, y, counts, 0.1 * found[0]) < 1.01 * min(grid)
    assert true / 3.0 < 0.1 * found[0] < 3.0 * true
    assert_allclose(np.tril(packed.lower()), np.tril(K))
    kept = left_out_noise(
        packed, one_kind(y, counts), noise_l=np.array([start]), least_l=[1e-4], step=4.0,
        patience=2, **(settings | {"free_l": [False]}),
    )  # fmt: skip
    assert_allclose(kept, [start])


def test_noise_that_does_not_count_stays_as_it_is():
    """Two sets that say the same of each other whatever the noise of the second one is."""
    rng = np.random.default_rng(2)
    y = rng.standard_normal(40)
    packed = Packed(40)
    packed.set_rows(0, np.eye(40))
    sets = np.arange(40) % 2
    labels = Labels(y, np.full(40, 0.1), sets, (sets == 0).astype(float), [2] * 20)
    found = left_out_noise(
        packed, labels, delta=1.0, noise_l=np.array([0.5, 0.7]), free_l=[True, True],
        least_l=[1e-3, 1e-3], importance_l=[1.0, 1.0], step=2.0, patience=1,
    )  # fmt: skip
    assert_allclose(found, [0.5, 0.7])
    nothing = labels._replace(judged_r=np.zeros(40))
    found = left_out_noise(
        packed, nothing, delta=1.0, noise_l=np.array([0.5, 0.7]), free_l=[True, True],
        least_l=[1e-3, 1e-3], importance_l=[1.0, 1.0], step=2.0, patience=1,
    )  # fmt: skip
    assert_allclose(found, [0.5, 0.7])


def test_noise_of_more_labels_by_a_power_law():
    few, more = np.array([0.4, 0.1, 0.2, 0.8]), np.array([0.2, 0.1, 0.3, 0.1])
    found = extrapolate(1000, few, 4000, more, 16000, [1e-3, 1e-3, 1e-3, 1e-3])
    # Half for four times as many; the same; never more; at most a quarter.
    assert_allclose(found, [0.1, 0.1, 0.3, 0.025])
    assert_allclose(extrapolate(1000, few, 4000, more, 16000, [0.15] * 4), [0.15, 0.15, 0.3, 0.15])


# ------------------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def images(emt_images):
    return [*emt_images[:7], *emt_images[30:35]]


@pytest.fixture(scope="module")
def model(images, emt_soap):
    model = KernelPotential(emt_soap, basis="full", delta=2.0, feature_tolerance=0.0, **NOISE)
    return model.fit(images)


def energy_covariance(bound, one, other, zeta):
    """Sum over environments, by loops."""
    x, y = (bound.features(system, np.arange(len(system.species_n)))[0] for system in (one, other))
    total = 0.0
    for i, a in enumerate(one.species_n):
        for j, b in enumerate(other.species_n):
            if a == b:
                total += (x[i] @ y[j]) ** zeta
    return total


def test_the_fit_is_the_exact_gaussian_process(images, emt_soap):
    """Rows from difference quotients of the energies' covariance; two structures."""
    from kernelpot.conventions import System
    from kernelpot.data import structures_from_atoms
    from kernelpot.neighbours import find_pairs

    images = [images[0], images[8]]
    model = KernelPotential(
        emt_soap, basis="full", zeta=2, delta=2.0, feature_tolerance=0.0, core_repulsion=False,
        **NOISE,
    ).fit(images)  # fmt: skip
    bound = model.fitted_.components[0].descriptor
    h = 1e-3

    def system(atoms):
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, bound.cutoff)
        return System(np.searchsorted(bound.species, atoms.numbers).astype(np.intp), pairs)

    def variants(atoms):
        """Energy per atom, forces and stress as weighted sums of energies of moved copies."""
        rows = [[(system(atoms), 1.0 / len(atoms))]]
        for n in range(len(atoms)):
            for c in range(3):
                row = []
                for sign in (1, -1):
                    moved = atoms.copy()
                    moved.positions[n, c] += sign * h
                    row.append((system(moved), -sign / (2 * h)))
                rows.append(row)
        if atoms.pbc.all():
            for c, d in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
                row = []
                for sign in (1, -1):
                    strain = np.eye(3)
                    strain[c, d] += sign * h / 2
                    strain[d, c] += sign * h / 2
                    moved = atoms.copy()
                    moved.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
                    row.append((system(moved), sign / (2 * h * atoms.get_volume())))
                rows.append(row)
        return rows

    rows = [row for atoms in images for row in variants(atoms)]
    # The first energies' covariance by loops is what the rest rests on.
    n = len(rows)
    K = np.zeros((n, n))
    for r in range(n):
        for q in range(r + 1):
            K[r, q] = K[q, r] = sum(
                a * b * energy_covariance(bound, one, other, 2)
                for one, a in rows[r]
                for other, b in rows[q]
            )
    y, sigma = [], []
    for s in structures_from_atoms(images):
        residual = (s.energy - model.baseline_.energy_of(s.numbers_n)) / s.n_atoms
        y += [residual, *s.forces_nc.ravel(), *(s.stress_v if s.periodic else [])]
        sigma += [2e-3] + [0.02] * 3 * s.n_atoms + ([1e-3] * 6 if s.periodic else [])
    y, sigma = np.array(y), np.array(sigma)
    _, alpha, evidence = naive.gaussian_process(4.0 * K, y, sigma)
    mean = 4.0 * K @ alpha
    found = model.predict(images)
    values = []
    for k, atoms in enumerate(images):
        residual = found.energy[k] - model.baseline_.energy_of(atoms.numbers)
        values += [residual / len(atoms), *found.forces[k].ravel()]
        values += list(found.stress[k]) if atoms.pbc.all() else []
    assert_allclose(values, mean, atol=1e-5)
    assert_allclose(model.log_evidence_, evidence, rtol=1e-3)


def test_leave_one_out_errors(model):
    errors = model.leave_out_errors_
    training = model.training_summary_["rmse"]
    assert set(errors) == {"energy", "forces", "stress"}
    assert all(errors[kind] > training[kind] for kind in errors)


def test_training_labels_are_reproduced(model, images):
    summary = model.training_summary_
    assert summary["rmse"]["forces"] < 0.02
    assert summary["rmse"]["energy"] < 2e-3
    assert model.n_environments_ == sum(len(atoms) for atoms in images)
    assert model.noise_ == {"energy": 2e-3, "forces": 0.02, "stress": 1e-3}


def test_forces_and_stress_are_derivatives(model, images):
    atoms = images[2].copy()
    atoms.positions += 0.02
    found = model.predict([atoms])
    for n, c in ((0, 0), (1, 2)):
        ends = []
        for h in (1e-4, -1e-4):
            moved = atoms.copy()
            moved.positions[n, c] += h
            ends.append(model.predict([moved]).energy[0])
        assert_allclose(found.forces[0][n, c], -(ends[0] - ends[1]) / 2e-4, atol=1e-6)
    ends = []
    for h in (1e-5, -1e-5):
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] @ np.diag([1 + h, 1, 1]), scale_atoms=True)
        ends.append(model.predict([moved]).energy[0])
    slope = (ends[0] - ends[1]) / 2e-5 / atoms.get_volume()
    assert_allclose(found.stress[0, 0], slope, atol=1e-7)


def test_learned_noise_and_projected_features(images, emt_soap):
    model = KernelPotential(emt_soap, basis="full", feature_tolerance=1e-4).fit(images)
    assert model.noise_["forces"] < 0.05
    assert 0.01 < model.delta_ < 100.0
    assert model.score(images) > 0.99


def test_noise_of_many_labels_is_extrapolated(images, emt_soap, monkeypatch):
    """The search with a part of the labels; what it finds is used for all."""
    from kernelpot import full_noise

    monkeypatch.setattr(full_noise, "EVIDENCE_ROWS", 120)
    monkeypatch.setattr(full_noise, "_SEARCHES", ((120, 4.0, 2), (240, 2.0, 1)))
    monkeypatch.setattr(full_noise, "_FEW_STRUCTURES", 2)
    monkeypatch.setattr(full_noise, "_FEW_LABELS", 30)
    calls = []

    def extrapolated(*arguments):
        calls.append(arguments)
        return extrapolate(*arguments)

    monkeypatch.setattr(full_noise, "extrapolate", extrapolated)
    model = KernelPotential(emt_soap, basis="full").fit(images)
    assert len(calls) == 1
    n_few, _, n_more, _, n_all, least = calls[0]
    assert n_few <= 120 < n_more <= 240 < n_all == sum(model.training_summary_["n_labels"].values())
    found = extrapolate(*calls[0])
    ratio = model.noise_["forces"] / model.noise_["energy"]
    assumed = {"energy": 1e-3, "forces": 0.05}
    assert_allclose(ratio, found[1] * assumed["forces"] / (found[0] * assumed["energy"]))
    assert np.all(found >= least)
    assert calls[0][1][0] == calls[0][3][0]  # too few energies to ask them
    assert model.score(images) > 0.99


def test_the_full_basis_beats_a_sparse_one_of_all_environments(emt_images, emt_soap):
    test = emt_images[20:30]
    full = KernelPotential(emt_soap, basis="full").fit(emt_images[:12])
    sparse = KernelPotential(emt_soap, n_environments=12, n_tangents=4).fit(emt_images[:12])
    assert full.score(test) > sparse.score(test)


def test_labels_may_be_missing(images, emt_soap):
    some = []
    for k, atoms in enumerate(images):
        copy = atoms.copy()
        kept = (
            ("energy", "forces", "stress") if k % 3 == 0 else ("energy", "forces")[k % 3 - 1 :][:1]
        )
        copy.calc = atoms.calc.__class__(
            copy, **{kind: v for kind, v in atoms.calc.results.items() if kind in kept}
        )
        some.append(copy)
    some[0].calc.results["forces"] = some[0].calc.results["forces"].copy()
    some[0].calc.results["forces"][0, 1] = np.nan
    model = KernelPotential(emt_soap, basis="full", **NOISE).fit(some)
    assert np.all(np.isfinite(model.predict(images).energy))
    assert model.training_summary_["n_labels"]["energy"] == sum(
        "energy" in atoms.calc.results for atoms in some
    )


def test_saved_and_loaded(model, images, tmp_path):
    model.save(tmp_path / "full.kpot")
    again = load(tmp_path / "full.kpot")
    one, two = (m.predict(images[:3]) for m in (model, again))
    assert np.array_equal(one.energy, two.energy)
    assert all(np.array_equal(a, b) for a, b in zip(one.forces, two.forces, strict=True))
    for m in (model, again):
        with pytest.raises(ValueError, match="basis='full' keeps its weights only"):
            m.predict(images[:1], return_std=True)
        with pytest.raises(ValueError, match="basis='full' keeps its weights only"):
            m.partial_fit(images[:1])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"basis": "fuller"}, "one of sparse, full"),
        ({"descriptor": [Soap(), Soap()]}, "takes one descriptor"),
    ],
)
def test_wrong_parameters_are_explained(parameters, words, images):
    with pytest.raises(ValueError, match=words):
        KernelPotential(**{"basis": "full", **parameters}).fit(images)


def test_too_many_labels_for_the_memory_are_refused(images, emt_soap, monkeypatch):
    monkeypatch.setattr(fit_budget, "physical_memory", lambda: 1e8)
    with pytest.raises(ValueError, match="nine tenths of this machine"):
        KernelPotential(emt_soap, basis="full").fit(images)
