"""The arrays-only room: covariances, choice of inducing variables, solvers, regressor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.utils.estimator_checks import estimator_checks_generator

from kernelpot.gp import SparseGPRegressor, covariances, evidence, inducing, kernels, solvers
from kernelpot.gp.householder import absorb
from kernelpot.gp.triangles import RowReducer, empty_triangle
from kernelpot.gp.whitening import whiten_blocks
from tests.naive import gp as naive


def unit(rng, n, q):
    x = rng.standard_normal((n, q)) + 1.5
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def some_inducing(rng, n_environments=4, q=7, most=3):
    x_eq = unit(rng, n_environments, q)
    groups = []
    for x in x_eq:
        J = rng.standard_normal((2, 3, q))
        J -= (J @ x)[..., None] * x
        groups.append(inducing.tangents(J, int(rng.integers(0, most + 1)), 1e-3))
    return inducing.join(x_eq, groups)


# ------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize("zeta", [1, 2, 3, 4, 7])
def test_kernel_derivatives(zeta):
    X = np.array([-0.3, 0.0, 0.2, 0.9, 1.0])
    h = 1e-6
    value, first, second = kernels.power_kernel(X, zeta)
    up, down = kernels.power_kernel(X + h, zeta), kernels.power_kernel(X - h, zeta)
    assert_allclose(first, (up[0] - down[0]) / (2 * h), atol=1e-8)
    assert_allclose(second, (up[1] - down[1]) / (2 * h), atol=1e-7)
    for k in range(len(X)):
        scalar = kernels.power_kernel_scalar(X[k], zeta)
        assert_allclose(scalar, [value[k], first[k], second[k]], rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("zeta", [0, -1, 2.5, True, float("nan")])
def test_zeta_must_be_a_whole_number(zeta):
    with pytest.raises(ValueError, match="zeta must be a whole number"):
        kernels.check_zeta(zeta)


# -------------------------------------------------------------------------- covariances


@given(seed=st.integers(0, 2**32 - 1), zeta=st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_covariances_equal_their_naive_twins(seed, zeta):
    rng = np.random.default_rng(seed)
    group = some_inducing(rng)
    assert_allclose(covariances.K_mm(group, zeta), naive.K_mm(group, zeta), atol=1e-12)
    x_bq = unit(rng, 5, 7)
    found = covariances.K_bm(x_bq @ group.Z_mq.T, group, zeta)
    assert_allclose(found, naive.K_bm(x_bq, group, zeta), atol=1e-12)
    assert np.linalg.eigvalsh(covariances.K_mm(group, zeta)).min() > -1e-12


def test_tangent_covariances_are_derivatives_of_the_kernel():
    rng = np.random.default_rng(3)
    group = some_inducing(rng, most=2)
    h, zeta = 1e-5, 4
    everything = naive.variables(group)
    K = covariances.K_mm(group, zeta)
    for a, (x, tau) in enumerate(everything):
        for b, (y, sigma) in enumerate(everything):
            steps_x = (
                [(x, 1.0)] if tau is None else [(x + h * tau, 0.5 / h), (x - h * tau, -0.5 / h)]
            )
            steps_y = (
                [(y, 1.0)]
                if sigma is None
                else [(y + h * sigma, 0.5 / h), (y - h * sigma, -0.5 / h)]
            )
            numeric = sum(c * d * (u @ v) ** zeta for u, c in steps_x for v, d in steps_y)
            assert_allclose(K[a, b], numeric, atol=2e-5)


def test_gradient_rows_equal_the_chain_rule():
    rng = np.random.default_rng(5)
    zeta, n_atoms, q = 4, 3, 7
    group = some_inducing(rng, q=q)
    m = len(group.Z_mq)
    x_bq = unit(rng, 2, q)  # centres 0 and 2 of three atoms
    first_b = np.array([0, 2, 3])
    i_p, j_p = np.array([0, 0, 2]), np.array([1, 0, 1])
    D_pc = rng.standard_normal((3, 3))
    J_pcq = rng.standard_normal((3, 3, q))
    forces_rm, strain_vm = np.zeros((3 * n_atoms, m + 4)), np.zeros((6, m + 4))
    covariances.add_gradient_rows(
        x_bq @ group.Z_mq.T, J_pcq.reshape(-1, q) @ group.Z_mq.T, group.first_e, zeta,
        first_b, i_p, j_p, D_pc, 4, forces_rm, strain_vm,
    )  # fmt: skip
    h = 1e-6
    forces, strain = np.zeros((n_atoms, 3, m)), np.zeros((3, 3, m))
    for p, b in enumerate([0, 0, 1]):
        for c in range(3):
            up = naive.K_bm([x_bq[b] + h * J_pcq[p, c]], group, zeta)[0]
            down = naive.K_bm([x_bq[b] - h * J_pcq[p, c]], group, zeta)[0]
            g_m = (up - down) / (2 * h)
            forces[i_p[p], c] += g_m
            forces[j_p[p], c] -= g_m
            for d in range(3):
                strain[c, d] += g_m * D_pc[p, d]
    assert_allclose(forces_rm[:, 4:], forces.reshape(-1, m), atol=1e-7)
    sym = 0.5 * (strain + strain.transpose(1, 0, 2))
    expected = [sym[0, 0], sym[1, 1], sym[2, 2], sym[1, 2], sym[0, 2], sym[0, 1]]
    assert_allclose(strain_vm[:, 4:], expected, atol=1e-7)
    assert not forces_rm[:, :4].any()


# ---------------------------------------------------------------- inducing variables


def test_tangents_are_orthonormal_and_orthogonal_to_their_environment():
    rng = np.random.default_rng(0)
    x = unit(rng, 1, 30)[0]
    J = rng.standard_normal((4, 3, 30))
    J -= (J @ x)[..., None] * x
    tau = inducing.tangents(J, 8, 1e-3)
    assert tau.shape == (8, 30)
    assert_allclose(tau @ tau.T, np.eye(8), atol=1e-12)
    assert_allclose(tau @ x, 0, atol=1e-12)


def test_tangents_follow_the_threshold_on_singular_values():
    J = np.zeros((2, 3, 5))
    J[0, 0, 0], J[0, 1, 1], J[1, 2, 2] = 1.0, 0.1, 1e-12
    assert len(inducing.tangents(J, 5, 1e-3)) == 2
    assert len(inducing.tangents(J, 5, 0.5)) == 1
    assert len(inducing.tangents(J, 5, 0.0)) == 2  # rounding errors are never directions
    assert len(inducing.tangents(J, 1, 0.0)) == 1
    assert len(inducing.tangents(np.zeros((0, 3, 5)), 5, 0.0)) == 0


@pytest.mark.parametrize("selector", inducing.SELECTORS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), share=st.floats(0.01, 1.5))
@settings(max_examples=20, deadline=None)
def test_selectors_choose_distinct_candidates(selector, seed, n, share):
    rng = np.random.default_rng(seed)
    x_nq = unit(rng, n, 6)
    n_select = max(1, int(share * n))
    chosen = inducing.select(x_nq, n_select, selector, np.random.default_rng(seed))
    again = inducing.select(x_nq, n_select, selector, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen.tolist())) == min(n_select, n)
    assert chosen.min() >= 0
    assert chosen.max() < n
    assert np.array_equal(chosen, again)


@pytest.mark.parametrize("selector", ["fps", "cur"])
def test_diversity_selectors_find_every_cluster(selector):
    rng = np.random.default_rng(1)
    centres = unit(rng, 6, 40)
    sizes = [200, 100, 50, 5, 2, 1]
    x = np.vstack(
        [c + 1e-3 * rng.standard_normal((k, 40)) for c, k in zip(centres, sizes, strict=True)]
    )
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    label = np.repeat(np.arange(6), sizes)
    chosen = inducing.select(x, 6, selector, np.random.default_rng(0))
    assert set(label[chosen]) == set(range(6))


def test_farthest_points_equal_brute_force_and_stop_at_duplicates():
    rng = np.random.default_rng(2)
    x = unit(rng, 30, 5)
    chosen = inducing.select_fps(x, 10, np.random.default_rng(0))
    for e in range(1, 10):
        gaps = [min(np.sum((p - x[c]) ** 2) for c in chosen[:e]) for p in x]
        assert np.isclose(gaps[chosen[e]], max(gaps))
    twice = np.vstack([x[:4], x[:4]])
    assert len(inducing.select_fps(twice, 8, np.random.default_rng(0))) == 4


def test_unknown_selector_names_the_known_ones():
    with pytest.raises(ValueError, match="'kmeans' is not one of fps, cur"):
        inducing.select(np.eye(3), 2, "kmeans", np.random.default_rng(0))


def test_a_function_serves_as_selector():
    chosen = inducing.select(np.eye(5), 2, lambda x, n, rng: np.arange(n), np.random.default_rng(0))
    assert chosen.tolist() == [0, 1]


# ------------------------------------------------------------------------------ solvers


@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 60),
    n_columns=st.integers(1, 30),
    n_buffer=st.integers(1, 70),
)
@settings(max_examples=40, deadline=None)
def test_streaming_reduction_keeps_the_normal_equations(seed, n_rows, n_columns, n_buffer):
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((n_rows, n_columns)), rng.standard_normal(n_rows)
    # Rows of structures that lack a species are zero in its columns: cutting the triangle at the
    # number of rows once lost the row of an isolated atom.
    A *= rng.random((n_rows, 1)) < np.where(np.arange(n_columns) < n_columns // 2, 0.3, 0.9)
    sigma = rng.uniform(0.1, 2.0, n_rows)
    reducer = RowReducer(empty_triangle(n_columns), n_buffer)
    cut = int(rng.integers(0, n_rows + 1))
    reducer.add(A[:cut], y[:cut], sigma[:cut])
    reducer.add(A[cut:], y[cut:], sigma[cut:])
    triangle = reducer.finish()
    full = np.column_stack([A, y]) / sigma[:, None]
    assert len(triangle.R) <= n_columns + 1
    assert_allclose(
        triangle.R.T @ triangle.R, full.T @ full, atol=1e-10 * np.abs(full.T @ full).max()
    )
    assert triangle.n_rows == n_rows
    assert np.isclose(triangle.log_noise, np.log(sigma).sum())
    assert not np.tril(triangle.R, -1).any()


@given(
    seed=st.integers(0, 2**32 - 1),
    n_before=st.integers(0, 12),
    n_rows=st.integers(1, 9),
    n_columns=st.integers(1, 12),
    triangular=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_rows_are_absorbed_whatever_is_empty(seed, n_before, n_rows, n_columns, triangular):
    """Rounding in columns of zeros once took up a row that had something to say."""
    rng = np.random.default_rng(seed)
    full_k = rng.random(n_columns) < 0.7
    R = np.triu(rng.standard_normal((min(n_before, n_columns), n_columns))) * full_k
    R = np.asfortranarray(R[np.abs(R).max(axis=1) > 0.0])
    rows = rng.standard_normal((n_rows, n_columns)) * (rng.random(n_columns) < 0.7)
    rows *= rng.random((n_rows, 1)) < 0.8
    rows = np.asfortranarray(np.triu(rows) if triangular else rows)
    expected = R.T @ R + rows.T @ rows
    found = absorb(R, rows, triangular=triangular)
    assert found.shape[1] == n_columns >= len(found)
    assert not np.tril(found, -1).any()
    assert_allclose(found.T @ found, expected, atol=1e-12 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("n_before", [0, 70, 500])
@pytest.mark.parametrize("triangular", [False, True])
def test_threads_absorb_what_one_does(n_before, triangular, monkeypatch):
    rng = np.random.default_rng(3)
    start = np.asfortranarray(np.triu(rng.standard_normal((n_before, 500))))
    rows = rng.standard_normal((230, 500))
    rows[:, 150:250] = 0.0
    rows = np.asfortranarray(np.triu(rows) if triangular else rows)
    expected = start.T @ start + rows.T @ rows
    found = []
    for n in ("1", "2", "4"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", n)
        found.append(absorb(start.copy(order="F"), rows.copy(order="F"), triangular=triangular))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert_allclose(found[0].T @ found[0], expected, atol=1e-10)
    assert_allclose(
        np.linalg.norm(found[0], axis=0), np.sqrt(np.diag(expected)), rtol=1e-12, atol=1e-300
    )
    rows[3, 400] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        absorb(start, rows)


def test_a_reduction_goes_on_from_a_triangle():
    rng = np.random.default_rng(0)
    A, y, sigma = rng.standard_normal((50, 12)), rng.standard_normal(50), np.ones(50)
    triangle = empty_triangle(12)
    for rows in (slice(0, 7), slice(7, 50)):
        reducer = RowReducer(triangle)
        reducer.add(A[rows], y[rows], sigma[rows])
        triangle = reducer.finish()
    full = np.column_stack([A, y])
    assert_allclose(triangle.R.T @ triangle.R, full.T @ full, atol=1e-11)
    assert triangle.n_rows == 50


def test_whitening_drops_dependent_variables_and_keeps_the_span():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((6, 4))
    K = base @ base.T  # rank 4
    other = np.eye(3)
    whitening = whiten_blocks([K, np.zeros((0, 0)), other], 1e-10)
    assert whitening.n_whitened == 7
    assert whitening.n_raw == 9
    full = np.zeros((9, 9))
    full[:6, :6], full[6:, 6:] = K, other
    phi = whitening.whiten(full)
    assert_allclose(phi @ phi.T, full, atol=1e-9)
    w = rng.standard_normal(7)
    assert_allclose(full @ whitening.raw_weights(w), phi @ w, atol=1e-9)


@pytest.mark.parametrize("delta", [0.3, 1.0, 5.0])
def test_posterior_equals_dense_algebra(delta):
    rng = np.random.default_rng(7)
    group = some_inducing(rng, n_environments=6, q=9)
    x_bq = unit(rng, 40, 9)
    K_mm = covariances.K_mm(group, 3)
    K_rm = covariances.K_bm(x_bq @ group.Z_mq.T, group, 3)
    y, sigma = rng.standard_normal(40), rng.uniform(0.1, 0.5, 40)
    x_sq = unit(rng, 5, 9)
    K_sm = covariances.K_bm(x_sq @ group.Z_mq.T, group, 3)
    triangles = []
    for rows in (slice(0, 10), slice(10, 40)):
        reducer = RowReducer(empty_triangle(len(K_mm)))
        reducer.add(K_rm[rows], y[rows], sigma[rows])
        triangles.append(reducer.finish())
    whitening = whiten_blocks([K_mm], 1e-12)
    found = solvers.posterior(triangles, whitening, [delta])
    mean, variance, evidence = naive.dtc(K_mm, K_rm, y, sigma, delta, K_sm, np.ones(5))
    assert_allclose(K_sm @ found.weights(), mean, atol=1e-8)
    assert_allclose(found.variance(np.full(5, delta**2), K_sm), variance, atol=1e-8)
    assert_allclose(found.log_evidence, evidence, rtol=1e-9)


def test_with_every_sample_inducing_the_posterior_is_the_exact_one():
    rng = np.random.default_rng(9)
    x = unit(rng, 25, 6)
    y, sigma = rng.standard_normal(25), np.full(25, 0.2)
    group = inducing.join(x, [np.zeros((0, 6))] * 25)
    K = (x @ x.T) ** 3
    new = unit(rng, 4, 6)
    K_sm = (new @ x.T) ** 3
    reducer = RowReducer(empty_triangle(25))
    reducer.add(K, y, sigma)
    whitening = whiten_blocks([covariances.K_mm(group, 3)], 1e-13)
    found = solvers.posterior([reducer.finish()], whitening, [1.0])
    C, alpha, evidence = naive.gaussian_process(K, y, sigma)
    assert_allclose(K_sm @ found.weights(), K_sm @ alpha, atol=1e-8)
    exact = 1.0 - np.sum(K_sm * np.linalg.solve(C, K_sm.T).T, axis=1)
    assert_allclose(found.variance(np.ones(4), K_sm), exact, atol=1e-8)
    assert_allclose(found.log_evidence, evidence, rtol=1e-9)


def test_evidence_finds_the_amplitude_of_the_prior():
    rng = np.random.default_rng(4)
    x = unit(rng, 60, 4)
    group = inducing.join(x[:20], [np.zeros((0, 4))] * 20)
    K_rm = covariances.K_bm(x @ group.Z_mq.T, group, 4)
    whitening = whiten_blocks([covariances.K_mm(group, 4)], 1e-10)
    phi = whitening.whiten(K_rm)
    y = 30.0 * phi @ rng.standard_normal(phi.shape[1]) + 0.01 * rng.standard_normal(60)
    reducer = RowReducer(empty_triangle(20))
    reducer.add(K_rm, y, np.full(60, 0.01))
    triangle = reducer.finish()
    best = evidence.maximise(
        [evidence.gram(triangle, whitening)],
        np.zeros(phi.shape[1], dtype=np.intp),
        [None],
        [1.0],
        noise_range=[(1.0, 1.0)],
    )
    assert 15 < best.delta_g[0] < 60
    grid = [
        solvers.posterior([triangle], whitening, [d]).log_evidence for d in np.logspace(-2, 3, 26)
    ]
    assert best.log_evidence > max(grid) - 1e-3


# ---------------------------------------------------------------------------- regressor


@pytest.mark.parametrize(
    ("estimator", "check"),
    list(estimator_checks_generator(SparseGPRegressor(n_inducing=50))),
    ids=lambda part: getattr(getattr(part, "func", None), "__name__", ""),
)
@pytest.mark.filterwarnings("default")
def test_regressor_keeps_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def test_regressor_uncertainty_grows_away_from_the_data():
    x = np.linspace(0, 1, 40)[:, None]
    model = SparseGPRegressor(n_inducing=40, zeta=6, sigma=0.05).fit(x, np.sin(4 * x[:, 0]))
    mean, std = model.predict(np.array([[0.5], [-2.0]]), return_std=True)
    assert abs(mean[0] - np.sin(2.0)) < 0.05
    assert std[1] > 5 * std[0] > 0


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"n_inducing": 0}, "n_inducing must be"),
        ({"sigma": -1.0}, "must be positive"),
        ({"selector": "best"}, "not one of fps"),
        ({"zeta": 1.5}, "zeta must be a whole number"),
    ],
)
def test_regressor_names_the_wrong_parameter(parameter, message):
    with pytest.raises(ValueError, match=message):
        SparseGPRegressor(**parameter).fit(np.eye(4), np.arange(4.0))
