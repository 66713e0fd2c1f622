"""Amplitudes and noise levels: evidence, errors on left-out folds, sums of Gaussian processes."""

import functools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from kernelpot import KernelPotential, Soap, load
from kernelpot.gp import crossvalidation, evidence, solvers
from kernelpot.gp.triangles import RowReducer, empty_triangle, join_triangles
from kernelpot.gp.whitening import whiten_blocks

DELTA, NOISE = np.array([2.0, 0.7]), np.array([1.3, 0.6])
COUNTS, SIGMAS = (20, 90), (0.1, 0.5)
M = 24


def problem(seed=0, n_folds=4):
    """Rows of two kinds of labels, in folds, of a sum of two components."""
    rng = np.random.default_rng(seed)
    blocks = [(lambda root: root @ root.T)(rng.standard_normal((M // 2, M // 2))) for _ in range(2)]
    whitening = whiten_blocks(blocks, 1e-12)
    K_mm = np.zeros((M, M))
    K_mm[: M // 2, : M // 2], K_mm[M // 2 :, M // 2 :] = blocks
    truth = rng.standard_normal(M)
    rows = []
    for _ in range(n_folds):
        fold = []
        for count, sigma in zip(COUNTS, SIGMAS, strict=True):
            A = rng.standard_normal((count, M)) @ K_mm
            y = A @ np.linalg.solve(np.linalg.cholesky(K_mm).T, truth)
            fold.append((A, y + 2.0 * sigma * rng.standard_normal(count), sigma))
        rows.append(fold)
    component_k = whitening.spread([0, 1]).astype(np.intp)
    return whitening, component_k, rows


def triangle(A, y, sigma):
    reducer = RowReducer(empty_triangle(A.shape[1]))
    reducer.add(A, y, np.full(len(y), sigma))
    return reducer.finish()


def grams_of(whitening, rows):
    folds = [[evidence.gram(triangle(*kind), whitening) for kind in fold] for fold in rows]
    totals = [functools.reduce(evidence.add_grams, column) for column in zip(*folds, strict=True)]
    return totals, folds


def test_joined_triangles_are_the_triangle_of_all_rows():
    whitening, _, rows = problem()
    parts = [triangle(*fold[1]) for fold in rows]
    few = empty_triangle(M)
    joined = few
    for part in [*parts, triangle(*(part[:3] for part in rows[0][0][:2]), 0.1)]:
        joined = join_triangles(joined, part)
    A = np.vstack([np.column_stack([a, y]) / s for (_, (a, y, s)) in rows])
    extra = np.column_stack([rows[0][0][0][:3], rows[0][0][1][:3]]) / 0.1
    A = np.vstack([A, extra])
    assert joined.n_rows == len(A)
    assert_allclose(joined.R.T @ joined.R, A.T @ A, rtol=1e-10, atol=1e-8 * np.abs(A.T @ A).max())
    log_noise = 4 * 90 * np.log(0.5) + 3 * np.log(0.1)
    assert_allclose(joined.log_noise, log_noise)
    assert whitening.n_whitened == M


def test_evidence_from_products_equals_that_of_the_posterior():
    whitening, component_k, rows = problem()
    triangles = [triangle(*kind) for kind in rows[0]]
    grams = [evidence.gram(one, whitening) for one in triangles]
    value, _, _ = evidence.log_evidence(grams, component_k, DELTA, NOISE)
    solved = solvers.posterior(triangles, whitening, DELTA, NOISE)
    assert_allclose(value, solved.log_evidence, rtol=1e-9)
    # and that of the dense covariance
    phi = np.vstack([whitening.whiten(A) for A, _, _ in rows[0]])
    y = np.concatenate([y for _, y, _ in rows[0]])
    sigma = np.repeat(NOISE * SIGMAS, COUNTS)
    C = (phi * DELTA[component_k] ** 2) @ phi.T + np.diag(sigma**2)
    dense = -0.5 * (
        y @ np.linalg.solve(C, y) + np.linalg.slogdet(C)[1] + len(y) * np.log(2 * np.pi)
    )
    assert_allclose(value, dense, rtol=1e-9)


@pytest.mark.parametrize("k", range(4))
def test_gradients_of_the_evidence(k):
    whitening, component_k, rows = problem(seed=k)
    grams = [evidence.gram(triangle(*kind), whitening) for kind in rows[0]]

    def value(theta):
        return evidence.log_evidence(grams, component_k, np.exp(theta[:2]), np.exp(theta[2:]))

    theta = np.log(np.concatenate([DELTA, NOISE]))
    step = 1e-5 * np.eye(4)[k]
    numeric = (value(theta + step)[0] - value(theta - step)[0]) / 2e-5
    assert_allclose(np.concatenate(value(theta)[1:])[k], numeric, rtol=1e-5, atol=1e-4)


def test_evidence_finds_the_noise():
    whitening, component_k, rows = problem(n_folds=8)
    triangles = [triangle(*(np.concatenate([f[k][part] for f in rows]) for part in (0, 1)), s)
                 for k, s in enumerate(SIGMAS)]  # fmt: skip
    grams = [evidence.gram(one, whitening) for one in triangles]
    found = evidence.maximise(
        grams, component_k, [None, None], [None, None], noise_range=[(1e-3, 1e3)] * 2
    )
    assert_allclose(found.noise_l, [2.0, 2.0], rtol=0.15)
    assert found.log_evidence > evidence.log_evidence(grams, component_k, DELTA, NOISE)[0]
    kept = evidence.maximise(grams, component_k, [3.0, None], [None, 1.5], noise_range=[(1, 2)] * 2)
    assert kept.delta_g[0] == 3.0
    assert kept.noise_l[1] == 1.5


def naive_fold_errors(whitening, component_k, rows, delta_g, noise_l):
    """Fit without each fold, by dense algebra, and predict it."""
    sse, count = np.zeros(2), np.zeros(2)
    for left in range(len(rows)):
        phi, y = [], []
        for f, fold in enumerate(rows):
            for (A, labels, sigma), a in zip(fold, noise_l, strict=True):
                if f != left:
                    phi.append(whitening.whiten(A) / (a * sigma))
                    y.append(labels / (a * sigma))
        phi, y = np.vstack(phi), np.concatenate(y)
        A = phi.T @ phi + np.diag(delta_g[component_k] ** -2.0)
        w = np.linalg.solve(A, phi.T @ y)
        for k, (A, labels, sigma) in enumerate(rows[left]):
            sse[k] += np.sum((labels - whitening.whiten(A) @ w) ** 2) / sigma**2
            count[k] += len(labels)
    return sse / count


def test_fold_errors_are_those_of_fits_without_the_fold():
    whitening, component_k, rows = problem()
    totals, folds = grams_of(whitening, rows)
    found = crossvalidation.fold_errors(totals, folds, component_k, DELTA, NOISE)
    naive = naive_fold_errors(whitening, component_k, rows, DELTA, NOISE)
    assert_allclose(found.mse_l, naive, rtol=1e-8)


@pytest.mark.parametrize("k", range(4))
def test_gradients_of_the_fold_errors(k):
    whitening, component_k, rows = problem(seed=k)
    totals, folds = grams_of(whitening, rows)

    def errors(theta):
        return crossvalidation.fold_errors(
            totals, folds, component_k, np.exp(theta[:2]), np.exp(theta[2:])
        )

    theta = np.log(np.concatenate([DELTA, NOISE]))
    step = 1e-5 * np.eye(4)[k]
    numeric = (errors(theta + step).mse_l - errors(theta - step).mse_l) / 2e-5
    found = errors(theta)
    analytic = np.hstack([found.by_delta_lg, found.by_noise_ll])[:, k]
    assert_allclose(analytic, numeric, rtol=1e-4, atol=1e-6)


def test_least_fold_errors_are_found():
    whitening, component_k, rows = problem()
    totals, folds = grams_of(whitening, rows)
    found = crossvalidation.minimise(
        totals, [folds], component_k, [None, None], [None, None],
        importance_wl=[[1.0, 1.0]], delta_range=(1e-3, 1e3), noise_range=[(1e-3, 1e3)] * 2,
    )  # fmt: skip

    def loss(delta_g, noise_l):
        mse = crossvalidation.fold_errors(totals, folds, component_k, delta_g, noise_l).mse_l
        return np.log(mse).sum()

    best = loss(found.delta_g, found.noise_l)
    rng = np.random.default_rng(3)
    for _ in range(20):
        other = loss(np.exp(rng.normal(0, 2, 2)), np.exp(rng.normal(0, 2, 2)))
        assert best < other + 0.02
    # The common factor is that of the largest evidence.
    scales = [
        evidence.log_evidence(totals, component_k, s * found.delta_g, s * found.noise_l)[0]
        for s in (0.97, 1.0, 1.03)
    ]
    assert scales[1] == max(scales)


def test_ways_of_leaving_out_count_alike():
    """One more fold of the first way does not make it count more than the second."""
    whitening, component_k, rows = problem(n_folds=6)
    totals, folds = grams_of(whitening, rows)
    ways = [folds[:4], folds[4:]]
    found = crossvalidation.minimise(
        totals, ways, component_k, [None, None], [None, None],
        importance_wl=[[1.0, 0.5], [0.0, 0.5]],
        delta_range=(1e-3, 1e3), noise_range=[(1e-3, 1e3)] * 2,
    )  # fmt: skip

    def loss(delta_g, noise_l):
        logs = [
            np.log(crossvalidation.fold_errors(totals, way, component_k, delta_g, noise_l).mse_l)
            for way in ways
        ]
        return np.mean(np.array(logs) * [[1.0, 0.5], [0.0, 0.5]], axis=0).sum()

    best = loss(found.delta_g, found.noise_l)
    rng = np.random.default_rng(3)
    for _ in range(20):
        other = loss(np.exp(rng.normal(0, 2, 2)), np.exp(rng.normal(0, 2, 2)))
        assert best < other + 0.02


def test_leading_pivots_are_a_smaller_model():
    whitening, _, rows = problem()
    small = whitening.leading(9)
    A = rows[0][1][0]
    whole = whitening.whiten(A)
    first = [block.columns.start for block in whitening.blocks]
    expected = np.hstack(
        [whole[:, f : f + len(b.pivots_k)] for f, b in zip(first, small.blocks, strict=True)]
    )
    assert_allclose(small.whiten(A), expected, atol=1e-12)
    assert small.n_whitened == 10  # an equal share of each of the two blocks, rounded up
    assert whitening.leading(100) is whitening


# ------------------------------------------------------------------- in the potential


def test_learned_noise_is_near_that_of_the_labels(emt_images, emt_soap):
    rng = np.random.default_rng(5)
    images = []
    for atoms in emt_images:
        copy = atoms.copy()
        copy.calc = atoms.calc.__class__(copy, **atoms.calc.results)
        copy.calc.results["forces"] = atoms.calc.results["forces"] + rng.normal(
            0, 0.3, (len(atoms), 3)
        )
        images.append(copy)
    model = KernelPotential(emt_soap, n_environments=20, n_tangents=5).fit(images)
    assert 0.2 < model.noise_["forces"] < 0.5
    assert model.noise_["energy"] < 0.1
    again = KernelPotential(emt_soap, n_environments=20, n_tangents=5, sigma_forces=0.07).fit(
        images
    )
    assert again.noise_["forces"] == 0.07


def test_force_priority_lowers_the_error_of_forces_in_training(emt_images, emt_soap):
    args = {"n_environments": 10, "n_tangents": 2, "delta": 3.0}
    args |= {"sigma_energy": 1e-3, "sigma_forces": 0.5, "sigma_stress": 1e-2}
    plain = KernelPotential(emt_soap, **args).fit(emt_images)
    forced = KernelPotential(emt_soap, force_priority=100.0, **args).fit(emt_images)
    same = KernelPotential(emt_soap, **(args | {"sigma_forces": 0.05})).fit(emt_images)
    rmse = [m.training_summary_["rmse"]["forces"] for m in (plain, forced, same)]
    assert rmse[1] < rmse[0]
    assert_allclose(rmse[1], rmse[2], rtol=1e-6)
    with pytest.raises(ValueError, match="force_priority must be at least 1"):
        KernelPotential(emt_soap, force_priority=0.5).fit(emt_images)


def test_few_structures_are_fitted_with_the_assumed_noise(emt_images, emt_soap):
    model = KernelPotential(emt_soap, n_environments=4, n_tangents=2).fit(emt_images[:2])
    assert model.noise_ == {"energy": 1e-3, "forces": 0.05, "stress": 1e-3}


def test_each_source_has_its_own_noise(emt_images, emt_soap):
    rng = np.random.default_rng(8)
    images = []
    for k, atoms in enumerate(emt_images):
        copy = atoms.copy()
        copy.calc = atoms.calc.__class__(copy, **atoms.calc.results)
        copy.info["source"] = "coarse" if k % 2 else "fine"
        if k % 2:
            noise = rng.normal(0, 0.5, (len(atoms), 3))
            copy.calc.results["forces"] = atoms.calc.results["forces"] + noise
        images.append(copy)
    model = KernelPotential(emt_soap, n_environments=20, n_tangents=5).fit(images)
    noise = model.noise_["forces"]
    assert set(noise) == {"coarse", "fine"}
    assert noise["coarse"] > 2.0 * noise["fine"]


@pytest.fixture(scope="module")
def sum_model(emt_images):
    soaps = [Soap(cutoff=4.0, n_max=4, l_max=3), Soap(cutoff=3.0, n_max=3, l_max=2, sigma=0.4)]
    model = KernelPotential(soaps, zeta=[4, 2], n_environments=[12, 6], n_tangents=[3, 2])
    return model.fit(emt_images)


def test_a_sum_of_descriptors_fits_and_its_forces_are_derivatives(sum_model, emt_images):
    assert sum_model.n_environments_ == 18
    assert len(sum_model.delta_) == 2
    assert sum_model.score(emt_images) > 0.9
    atoms = emt_images[1].copy()
    forces = sum_model.predict([atoms]).forces[0]
    numeric = np.zeros_like(forces)
    for n in range(len(atoms)):
        for c in range(3):
            ends = []
            for h in (1e-4, -1e-4):
                moved = atoms.copy()
                moved.positions[n, c] += h
                ends.append(sum_model.predict([moved]).energy[0])
            numeric[n, c] = -(ends[0] - ends[1]) / 2e-4
    # The energies are sums of terms of 1e5 eV, whose rounding is divided by 2e-4 A.
    assert_allclose(forces, numeric, atol=4e-6)


def test_a_sum_is_saved_whole(sum_model, emt_images, tmp_path):
    sum_model.save(tmp_path / "sum.kpot")
    again = load(tmp_path / "sum.kpot")
    one, two = (m.predict(emt_images[:3], return_std=True) for m in (sum_model, again))
    assert np.array_equal(one.energy, two.energy)
    assert_allclose(one.energy_std, two.energy_std, rtol=1e-10)
    assert again.delta_ == sum_model.delta_
    assert again.noise_ == sum_model.noise_
    again.partial_fit(emt_images[:2])
    assert np.all(np.isfinite(again.predict(emt_images[:2]).energy))


def test_a_sum_with_one_descriptor_twice_is_that_descriptor(emt_images, emt_soap):
    args = {"n_environments": 8, "n_tangents": 2}
    args |= {"sigma_energy": 1e-3, "sigma_forces": 0.05, "sigma_stress": 1e-3}
    one = KernelPotential(emt_soap, delta=2.0, **args).fit(emt_images[:10])
    half = [2.0 * np.sqrt(0.5)] * 2
    two = KernelPotential([emt_soap, emt_soap], delta=half, **args).fit(emt_images[:10])
    a, b = (m.predict(emt_images[10:13], return_std=True) for m in (one, two))
    assert_allclose(a.energy, b.energy, atol=1e-6)
    assert_allclose(a.energy_std, b.energy_std, rtol=1e-4)
    assert_allclose(one.log_evidence_, two.log_evidence_, rtol=1e-7)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"descriptor": []}, "empty list"),
        ({"zeta": [4, 2]}, "list of 2 values for 1 descriptor"),
        ({"descriptor": [Soap(), Soap()], "delta": [1.0]}, "list of 1 values for 2 descriptor"),
        ({"delta": [-1.0]}, "delta must be None or positive"),
        ({"sigma_forces": -1.0}, "above 0"),
    ],
)
def test_wrong_parameters_are_explained(parameters, words, emt_images):
    parameters = {"descriptor": Soap(cutoff=3.0), **parameters}
    with pytest.raises(ValueError, match=words):
        KernelPotential(**parameters).fit(emt_images[:4])


# ------------------------------------------------------------------------------- the bound


def test_the_bound_is_below_the_exact_evidence_and_reaches_it(emt_images, emt_soap):
    images = [*emt_images[:5], *emt_images[30:33]]
    args = {"delta": 2.0, "feature_tolerance": 0.0, "core_repulsion": False}
    args |= {"sigma_energy": 5e-3, "sigma_forces": 0.1, "sigma_stress": 2e-3}
    exact = KernelPotential(emt_soap, basis="full", **args).fit(images).log_evidence_
    bounds = []
    for n_environments, n_tangents in ((3, 0), (8, 4), (100, 200)):
        model = KernelPotential(
            emt_soap, n_environments=n_environments, n_tangents=n_tangents, **args
        ).fit(images)
        bounds.append(model.evidence_bound(images))
        assert bounds[-1] < model.log_evidence_ + 1e-6
    assert bounds[0] < bounds[1] < bounds[2]
    assert bounds[2] < exact + 1e-3
    # Environments and all their tangents span all labels, but for the tolerance of the rank.
    assert_allclose(bounds[2], exact, atol=0.05 * abs(exact))
    with pytest.raises(ValueError, match="keeps its weights only"):
        KernelPotential(emt_soap, basis="full", **args).fit(images).evidence_bound(images)
