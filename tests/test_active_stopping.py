"""Stop criteria: what they must not be fooled by, and how often they may be."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from kernelpot.active.blocking import SeriesWarning, block_average
from kernelpot.active.stopping import (
    Criterion,
    Estimate,
    combine,
    coverage,
    label_budget,
    observable_converged,
    patience,
    plateau,
    time_budget,
)


def autoregressive(rng, phi, shape):
    """Unit variance, exponential correlations along the first axis: (1 + phi) / (1 - phi) each."""
    x = np.empty(shape)
    x[0] = rng.normal(size=shape[1:])
    for k in range(1, len(x)):
        x[k] = phi * x[k - 1] + math.sqrt(1.0 - phi**2) * rng.normal(size=shape[1:])
    return x


# Blocking


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_standard_errors_are_those_of_repeated_runs(phi):
    """400 runs: their scatter against the error that each says of itself."""
    x = 3.0 + autoregressive(np.random.default_rng(0), phi, (8192, 400))
    found = block_average(x)
    assert found.settled
    inefficiency = (1.0 + phi) / (1.0 - phi)
    assert np.median(found.n_effective) == pytest.approx(8192 / inefficiency, rel=0.2)
    # 400 numbers know a standard deviation to 3.5 per cent.
    z = (found.mean - 3.0) / found.standard_error
    assert np.sqrt(np.mean(z**2)) == pytest.approx(1.0, abs=0.2)
    assert np.mean(np.abs(z) < 1.96) > 0.9


def test_components_are_series_of_their_own():
    rng = np.random.default_rng(1)
    x = autoregressive(rng, 0.6, (1000, 2, 3)) * np.array([1e-9, 1.0, 1e9])
    found = block_average(x)
    assert found.mean.shape == found.standard_error.shape == (2, 3)
    for a in range(2):
        for b in range(3):
            one = block_average(x[:, a, b])
            assert_allclose(found.mean[a, b], one.mean, rtol=1e-12)
            assert_allclose(found.standard_error[a, b], one.standard_error, rtol=1e-9)
            assert found.block_length[a, b] == one.block_length


def test_first_level_is_the_textbook():
    x = np.random.default_rng(2).permutation(np.linspace(0, 1, 4000))
    found = block_average(x)
    naive = x.std(ddof=1) / math.sqrt(4000)
    assert naive <= found.standard_error * (1 + 1e-12)
    assert found.standard_error < 1.3 * naive


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_short_series_say_so(n):
    x = np.arange(float(n))
    with pytest.warns(SeriesWarning, match="too short"):
        found = block_average(x)
    assert not found.settled
    assert np.isnan(found.standard_error) == (n == 1)


def test_series_shorter_than_their_correlations_are_not_settled():
    rng = np.random.default_rng(3)
    x = autoregressive(rng, 0.995, (1000, 200))
    settled = [block_average(x[:, k], warn=False).settled for k in range(200)]
    assert np.mean(settled) < 0.02
    with pytest.warns(SeriesWarning):
        block_average(np.linspace(0.0, 1.0, 500))  # a drift is all correlation


@pytest.mark.parametrize(("n", "phi"), [(126, 0.0), (250, 0.3), (500, 0.6)])
def test_series_of_a_hundred_numbers_are_long_enough_where_they_are(n, phi):
    """By blocks alone half of them were too short: whether a run ended was decided by a coin."""
    x = autoregressive(np.random.default_rng(5), phi, (n, 500))
    found = [block_average(x[:, k], warn=False) for k in range(500)]
    assert np.mean([one.settled for one in found]) > 0.97
    z = np.array([one.mean / one.standard_error for one in found])
    assert np.sqrt(np.mean(z**2)) < 1.2
    assert np.mean(np.abs(z) < 1.96) > 0.9


@given(
    st.lists(st.floats(-1e200, 1e200), min_size=2, max_size=60),
    st.integers(-20, 20).map(lambda k: 2.0**k),  # exact, so that no comparison is decided otherwise
)
@settings(deadline=None)
def test_blocking_of_anything(values, factor):
    found = block_average(values, warn=False)
    assert found.standard_error >= 0.0
    assert 1.0 <= found.n_effective <= len(values)
    # A unit is a unit; what differs by rounding alone is left out of the comparison.
    assume(np.ptp(values) > 1e-3 * np.abs(values).max())
    scaled = block_average(np.array(values) * factor, warn=False)
    assert scaled.standard_error == pytest.approx(factor * found.standard_error, rel=1e-6)


def test_blocking_refuses():
    for bad in ([], 1.0, [1.0, math.nan]):
        with pytest.raises(ValueError, match="series"):
            block_average(bad)
    same = block_average([0.1] * 7)
    assert same.settled
    assert same.standard_error == 0.0


# Plateau


def rounds_of(rng, log_medians, n=40, spread=0.5):
    return [np.exp(m + spread * rng.normal(size=n)) for m in log_medians]


def test_a_plateau_is_found():
    rng = np.random.default_rng(0)
    met = [plateau(rounds_of(rng, 0.05 * rng.normal(size=8))).met for _ in range(200)]
    assert np.mean(met) > 0.6


@pytest.mark.parametrize("fall", [0.2, 0.4])
def test_no_plateau_while_uncertainty_falls(fall):
    """With 95 % confidence one look may be wrong one time in twenty; these are far from it."""
    rng = np.random.default_rng(1)
    fired = 0
    for _ in range(100):
        medians = -fall * np.arange(20) + 0.1 * rng.normal(size=20)
        rounds = rounds_of(rng, medians)
        fired += any(plateau(rounds[: k + 1]).met for k in range(20))
    assert fired <= 5


def test_the_level_holds_at_the_tolerance():
    """A change of just the tolerance passes one time in twenty, at most."""
    rng = np.random.default_rng(2)
    place = np.arange(6)
    met = [
        plateau([np.exp([m]) for m in -0.1 * place + 0.05 * rng.normal(size=6)]).met
        for _ in range(1000)
    ]
    assert np.mean(met) < 0.08


@pytest.mark.parametrize("lucky", range(3, 12))
def test_one_lucky_round_is_no_plateau(lucky):
    """A round as uncertain as the one before, or half as much, in a steady fall."""
    for jump in (0.3, -0.7):
        medians = -0.3 * np.arange(12.0)
        medians[lucky] += jump
        for k in range(12):
            assert not plateau([np.exp([m]) for m in medians[: k + 1]]).met


def test_noise_is_no_plateau():
    rng = np.random.default_rng(3)
    met = [plateau([np.exp([m]) for m in rng.normal(size=6)]).met for _ in range(300)]
    assert np.mean(met) < 0.05


def test_plateau_of_few_rounds():
    few = plateau([[1.0]] * 5)
    assert not few.met
    assert math.isnan(few.value)
    assert "5 rounds" in few.text
    assert plateau([[1.0]] * 6).met
    # Rounds of which nothing is known are no rounds, and symmetry's zeros no uncertainty.
    assert not plateau([[1.0], [], [0.0]] * 3).met
    assert plateau([[1.0, 0.0]] * 6).met


@given(
    st.lists(st.lists(st.floats(0.0, 1e300), max_size=5), max_size=12),
    st.integers(4, 8),
    st.floats(1e-3, 1.0),
)
@settings(deadline=None)
def test_plateau_of_anything(rounds, n, tolerance):
    found = plateau(rounds, rounds=n, tolerance=tolerance)
    assert found.met == (found.value <= tolerance)
    assert found.text


@pytest.mark.parametrize(
    ("sigma", "options"),
    [
        ([[-1.0]], {}),
        ([[math.nan]], {}),
        ([], {"rounds": 3}),
        ([], {"tolerance": 0.0}),
        ([], {"level": 1.0}),
    ],
)
def test_plateau_refuses(sigma, options):
    with pytest.raises(ValueError, match=r"round|plateau"):
        plateau(sigma, **options)


# Observable


def test_observable_that_has_converged():
    same = [Estimate(5.43 + 1e-4 * k, 1e-3) for k in range(3)]
    found = observable_converged(same, 0.01, name="lattice constant")
    assert found.met
    assert found.value == pytest.approx((2e-4 + 1.959964 * math.sqrt(2) * 1e-3) / 0.01, rel=1e-5)
    assert "lattice constant" in found.text
    # Only the last rounds count.
    assert observable_converged([Estimate(9.0, 1.0), *same], 0.01).met


def test_large_errors_do_not_pass_for_agreement():
    assert not observable_converged([Estimate(1.0, 0.5)] * 3, 0.1).met
    assert not observable_converged([Estimate(1.0, 0.0), Estimate(1.2, 0.0)], 0.1, rounds=2).met
    assert observable_converged([Estimate(1.0, 0.0)] * 2, 0.1, rounds=2).met


def test_observables_of_short_runs_wait():
    short = block_average(np.arange(10.0), warn=False)
    found = observable_converged([short] * 3, 100.0)
    assert not found.met
    assert "too short" in found.text
    assert not observable_converged([Estimate(1.0, 0.0)], 0.1).met


def test_each_component_has_its_tolerance():
    first, second = Estimate([1.0, 100.0], [0.0, 0.0]), Estimate([1.0, 101.0], [0.0, 0.0])
    assert observable_converged([first, second], [0.1, 2.0], rounds=2).met
    assert not observable_converged([first, second], 0.1, rounds=2).met


def test_agreement_by_chance_is_rare():
    """Two potentials whose observables differ by the tolerance."""
    rng = np.random.default_rng(4)
    met = [
        observable_converged(
            [Estimate(rng.normal(0.0, 0.1), 0.1), Estimate(rng.normal(1.0, 0.1), 0.1)],
            1.0,
            rounds=2,
        ).met
        for _ in range(1000)
    ]
    assert np.mean(met) < 0.05


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(0.0, 1e3), st.booleans()), min_size=0, max_size=6
    ),
    st.floats(1e-6, 1e6),
)
@settings(deadline=None)
def test_observables_of_anything(rounds, tolerance):
    found = observable_converged([Estimate(*one) for one in rounds], tolerance)
    assert found.met == (found.value <= 1.0)
    if found.met:
        last = [one[0] for one in rounds[-3:]]
        assert max(last) - min(last) <= tolerance * (1 + 1e-9)


def test_observable_refuses():
    fine = Estimate(1.0, 0.1)
    for bad in (
        ([fine] * 3, 0.0, {}),
        ([fine] * 3, 1.0, {"rounds": 1}),
        ([fine] * 3, 1.0, {"level": 0.5}),
        ([fine, fine, Estimate([1.0, 2.0], 0.1)], 1.0, {}),
        ([fine, fine, Estimate(math.nan, 0.1)], 1.0, {}),
        ([fine, fine, Estimate(1.0, -0.1)], 1.0, {}),
    ):
        with pytest.raises(ValueError, match="observable"):
            observable_converged(bad[0], bad[1], **bad[2])


# Coverage


def test_ten_environments_never_pass():
    rng = np.random.default_rng(5)
    for shape in ((10, 1), (1, 10), (5, 2)):
        found = coverage([0.1 * rng.random(shape)])
        assert not found.met
        assert found.value < 0.8


def test_many_independent_environments_pass():
    rng = np.random.default_rng(6)
    found = coverage([0.9 * rng.random((200, 40))])
    assert found.met
    assert found.value == pytest.approx(0.05 ** (1 / 8000), abs=1e-4)
    assert coverage([0.9 * rng.random((100, 40)), 0.9 * rng.random((100, 40))]).met


def test_frames_that_are_all_the_same_count_for_one():
    found = coverage([np.full((10_000, 100), 0.5)])
    assert not found.met
    assert found.value == pytest.approx(0.05)
    one = np.random.default_rng(7).random((1, 100_000)) * 0.5
    assert not coverage([one]).met


def test_correlated_environments_count_for_fewer():
    """Atoms of a frame that do the same, and frames that follow each other closely."""
    rng = np.random.default_rng(8)
    together = np.abs(autoregressive(rng, 0.0, (2000, 1))) * np.ones(100) / 10
    assert not coverage([together]).met  # 2000 frames are 2000, not 200,000
    slow = np.abs(autoregressive(rng, 0.95, (4000, 2))) / 10
    assert not coverage([slow]).met
    drift = np.linspace(0.1, 0.9, 5000)[:, None] + 0.01 * rng.random((5000, 20))
    assert not coverage([drift]).met


@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_the_confidence_holds(phi):
    """Runs of which 99.9 per cent are inside pass one time in twenty, at most."""
    rng = np.random.default_rng(9)
    edge = float(scipy.stats.norm.ppf(0.999))
    passed = 0
    for _ in range(200):
        x = autoregressive(rng, phi, (600, 40))
        passed += coverage([np.exp(x - edge)]).met
    assert passed <= 20  # 10 expected at most; 3.2 standard deviations above


def test_clustered_failures_count_by_themselves():
    """All atoms of one frame in five hundred fail together: frames count, not atoms."""
    rng = np.random.default_rng(10)
    score_fn = 0.5 * rng.random((4000, 50))
    score_fn[::500] = 1.5
    spread = 0.5 * rng.random((4000, 50))
    spread[rng.random((4000, 50)) < 1 / 500] = 1.5
    together, apart = coverage([score_fn], share=0.99), coverage([spread], share=0.99)
    assert together.value < apart.value < 0.998


def test_what_is_far_outside_is_only_outside():
    rng = np.random.default_rng(11)
    score_fn = 0.9 * rng.random((200, 40))
    score_fn[7, 3] = np.inf
    found = coverage([score_fn], share=0.99)
    assert found.met
    score_fn[7, 3] = 1.1
    assert coverage([score_fn], share=0.99).value == pytest.approx(found.value, abs=1e-3)


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 5), st.floats(0.0, 3.0))
@settings(deadline=None, max_examples=50)
def test_coverage_of_anything(seed, n_frames, n_atoms, scale):
    score_fn = scale * np.random.default_rng(seed).random((n_frames, n_atoms))
    found = coverage([score_fn])
    assert 0.0 <= found.value <= np.mean(score_fn <= 1.0) + 1e-12
    assert not found.met  # 300 at most


def test_environments_outside_in_a_cluster_count_for_fewer():
    """Their scores come and go too little for the mean of all to know."""
    rng = np.random.default_rng(3)
    inside_fn = rng.uniform(0.1, 0.9, (4000, 4))
    n_outside = 160
    scattered_fn, cluster_fn = inside_fn.copy(), inside_fn.copy()
    scattered_fn[rng.choice(4000, n_outside, replace=False), 0] = 1.01
    cluster_fn[1000 : 1000 + n_outside, 0] = 1.01
    scattered, cluster = (coverage([one], share=0.98) for one in (scattered_fn, cluster_fn))
    assert scattered.met
    assert scattered.value > 1.0 - 1.3 * n_outside / 16_000
    assert not cluster.met
    assert cluster.value < 1.0 - 1.5 * n_outside / 16_000


def test_a_run_that_is_still_drifting_counts_for_one():
    drift_f = np.linspace(0.2, 0.8, 5000)
    drifting = coverage([np.column_stack([drift_f, drift_f])], share=0.9)
    assert not drifting.met
    assert "count for 1," in drifting.text
    rng = np.random.default_rng(0)
    steady = coverage([rng.permuted(np.column_stack([drift_f, drift_f]), axis=0)], share=0.9)
    assert steady.met


def test_coverage_refuses():
    assert math.isnan(coverage([]).value)
    assert not coverage([np.zeros((0, 3))]).met
    for bad in ([np.zeros(3)], [[[math.nan]]], [[[-1.0]]]):
        with pytest.raises(ValueError, match="scores"):
            coverage(bad)
    with pytest.raises(ValueError, match="share"):
        coverage([], share=1.0)


# Together


def test_budgets():
    assert not label_budget(9, 10).met
    assert label_budget(10, 10).met
    assert not time_budget(3599.0, 3600.0).met
    assert time_budget(7200.0, 7200.0).text == "2.0 h of 2.0 h are over"
    assert not patience(18, 19).met
    assert patience(19, 19).met
    assert "in 18 rounds; 19 of them" in patience(18, 19).text
    for bad in (
        (label_budget, -1, 1),
        (patience, -1, 1),
        (time_budget, math.nan, 1.0),
        (time_budget, 1.0, -1.0),
    ):
        with pytest.raises(ValueError, match="negative"):
            bad[0](*bad[1:])


@given(st.lists(st.booleans(), max_size=3), st.lists(st.booleans(), max_size=2))
def test_stop_where_all_is_met_or_a_budget_is_spent(criteria, budgets):
    criteria = [Criterion(f"c{k}", met, 0.0, 0.0, f"c{k}") for k, met in enumerate(criteria)]
    budgets = [Criterion(f"b{k}", met, 0.0, 0.0, f"b{k}") for k, met in enumerate(budgets)]
    found = combine(criteria, budgets)
    all_met = bool(criteria) and all(one.met for one in criteria)
    assert found.stop == (all_met or any(one.met for one in budgets))
    assert found.criteria == (*criteria, *budgets)
    for one in criteria:
        if not one.met:
            assert one.name in found.why
