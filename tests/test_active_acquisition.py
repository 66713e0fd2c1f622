"""Batches: the twin that computes every determinant anew, copies, noise, laws, costs."""

import math

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from kernelpot.active.acquisition import pick_by_covariance, pick_by_factors
from kernelpot.active.batches import Beside
from kernelpot.active.costs import fit_label_cost
from kernelpot.active.mean_variance import pick_for_mean
from kernelpot.active.scores import (
    Law,
    energy_below,
    exploration_share,
    low_energy,
    relevances,
    sum_differs,
    uncertainty,
    violation_score,
    violations,
)

from .conftest import alloy
from .naive import acquisition as naive


def candidates(rng, n=6, largest=4, k=5):
    """Factors of candidates of unlike sizes, some of them near others."""
    factors = []
    for _ in range(n):
        if factors and rng.random() < 0.3:
            other = factors[rng.integers(len(factors))]
            factors.append(other + rng.choice([1e-3, 0.05, 0.5]) * rng.normal(size=other.shape))
        else:
            size = rng.integers(0, largest + 1)
            factors.append(rng.normal(size=(size, k)) * np.exp(rng.normal()))
    return factors


def joint(factors):
    phi_rk = np.concatenate(factors)
    structure_r = np.repeat(np.arange(len(factors)), [len(one) for one in factors])
    return phi_rk @ phi_rk.T, structure_r


@given(st.integers(0, 10_000), st.floats(0.05, 5.0), st.integers(0, 7), st.booleans())
@settings(max_examples=60, deadline=None)
def test_picks_are_those_of_the_twin(seed, noise, n, with_much_beside):
    rng = np.random.default_rng(seed)
    factors = candidates(rng)
    C_rr, structure_r = joint(factors)
    noise_r = noise * np.exp(0.3 * rng.normal(size=len(C_rr)))
    known, beside, budget = (), Beside(), math.inf
    if with_much_beside and len(structure_r):
        n_candidates = structure_r[-1] + 1
        known = tuple(rng.choice(n_candidates, rng.integers(0, 2), replace=False).tolist())
        beside = Beside(
            rng.random(),
            rng.integers(0, 4, n_candidates).astype(float),
            rng.random(n_candidates),
            np.exp(rng.normal(size=n_candidates)),
        )
        budget = 3.0
    before = C_rr.copy()
    found = pick_by_covariance(
        C_rr, structure_r, noise_r, n, beside=beside, given=known, budget=budget
    )
    picks, told = naive.pick(
        C_rr, structure_r.tolist(), noise_r, n, given=known, budget=budget,
        gamma=beside.gamma, relevance=beside.relevance_s, violation=beside.violation_s,
        cost=beside.cost_s,
    )  # fmt: skip
    assert found.picks.tolist() == picks
    assert_allclose(found.information, told, rtol=1e-9, atol=1e-9)
    assert np.array_equal(C_rr, before)
    # The sum is what the batch tells: the chain rule of determinants.
    if len(picks) and not known:
        rows = naive.rows_of(structure_r, picks)
        assert_allclose(found.information.sum(), naive.information(C_rr, noise_r, rows), rtol=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_factors_pick_what_their_covariance_picks(seed, n):
    rng = np.random.default_rng(seed)
    factors = candidates(rng)
    factors[-1] = rng.normal(size=(2, 5))  # one that has numbers
    C_rr, structure_r = joint(factors)
    noise_r = np.exp(0.3 * rng.normal(size=len(C_rr)))
    cheap = pick_by_factors(factors, noise_r, n)
    dense = pick_by_covariance(C_rr, structure_r, noise_r, n)
    assert cheap.picks.tolist() == dense.picks.tolist()
    assert_allclose(cheap.information, dense.information, rtol=1e-9, atol=1e-9)
    assert cheap.why == dense.why


@pytest.mark.parametrize("noise", [1e-4, 0.1, 10.0])
def test_near_duplicates_are_never_picked_together(noise):
    """With a large noise a second label of the same tells almost as much as the first."""
    rng = np.random.default_rng(0)
    apart = [10.0 * rng.normal(size=(9, 60)) for _ in range(4)]
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(3)
    factors = []
    for phi_bk in apart:
        turned = np.einsum("cd,ndk->nck", turn, phi_bk.reshape(3, 3, 60)[order]).reshape(9, 60)
        factors += [phi_bk, phi_bk + 0.1 * rng.normal(size=(9, 60)), turned]
    found = pick_by_factors(factors, noise, 12, least=1e-6)
    assert len(found.picks) == 4
    assert sorted(found.picks // 3) == [0, 1, 2, 3]
    assert "no other" in found.why
    # And those that are being labelled already count as picks.
    later = pick_by_factors(factors, noise, 12, given=[0, 5], least=1e-6)
    assert sorted(later.picks // 3) == [2, 3]


def test_batches_of_a_model_have_no_near_duplicates(emt_model):
    """Rattled copies of the most uncertain frames: maximum variance picks them, this not."""
    rng = np.random.default_rng(3)
    frames = [alloy(rng, amplitude=0.2) for _ in range(8)]
    images = []
    for atoms in frames:
        images.append(atoms)
        for _ in range(3):
            twin = atoms.copy()
            twin.positions += rng.normal(0, 0.01, twin.positions.shape)
            images.append(twin)
    cov = emt_model.predict(images, return_cov="forces").cov
    noise = emt_model.noise_["forces"]
    found = pick_by_covariance(cov.matrix, cov.structure_r, noise, 6)
    assert len(found.picks) == 6
    assert len(set((found.picks // 4).tolist())) == 6
    by_variance = np.argsort(-uncertainty(np.diag(cov.matrix), cov.structure_r))[:6]
    assert len(set((by_variance // 4).tolist())) < 6
    assert np.all(np.diff(found.information) <= 1e-9)


def test_samples_of_the_posterior_make_factors(emt_model):
    """What they pick tells nearly as much as what the whole posterior picks."""
    rng = np.random.default_rng(4)
    frames = [alloy(rng, amplitude=0.05 + 0.02 * k) for k in range(8)]
    images = [atoms for atoms in frames for _ in range(2)]  # each of them twice
    forces = emt_model.sample(200, random_state=0).predict(images).forces
    factors = [(one - one.mean(axis=0)).reshape(200, -1).T / math.sqrt(199) for one in forces]
    noise = emt_model.noise_["forces"]
    found = pick_by_factors(factors, noise, 4)
    assert len(set((found.picks // 2).tolist())) == 4
    cov = emt_model.predict(images, return_cov="forces").cov
    best = pick_by_covariance(cov.matrix, cov.structure_r, noise, 4)
    rows = naive.rows_of(cov.structure_r, found.picks)
    told = naive.information(cov.matrix, np.full(len(cov.matrix), noise), rows)
    assert told > 0.9 * best.information.sum()


@given(st.integers(0, 1000), st.floats(0.0, 5.0))
@settings(max_examples=30, deadline=None)
def test_nothing_below_the_floor_is_picked(seed, least):
    factors = candidates(np.random.default_rng(seed))
    found = pick_by_factors(factors, 1.0, 10, least=least)
    assert np.all(found.information >= least)
    assert np.all(found.information > 0.0)
    assert len(set(found.picks.tolist())) == len(found.picks)
    left = [s for s in range(len(factors)) if s not in found.picks]
    again = pick_by_factors(factors, 1.0, 10, given=found.picks.tolist(), least=least)
    assert not set(again.picks.tolist()) & set(left)


def test_nothing_to_pick_from():
    assert pick_by_covariance(np.zeros((0, 0)), [], 1.0, 3).picks.tolist() == []
    assert pick_by_factors([], 1.0, 3).picks.tolist() == []
    known = pick_by_covariance(np.zeros((4, 4)), [0, 0, 1, 1], 1.0, 3, least=0.0)
    assert len(known.picks) == 0


def test_a_covariance_that_rounding_moved_below_zero():
    C_rr = np.array([[1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0]])
    found = pick_by_covariance(C_rr, [0, 1], 1e-6, 2, alike=1.0)
    assert np.isfinite(found.information).all()


def test_rounding_below_the_noise_stops_nothing():
    rng = np.random.default_rng(0)
    phi_rk = 1e3 * rng.normal(size=(12, 4))
    structure_r = np.repeat(np.arange(4), 3)
    C_rr = phi_rk @ phi_rk.T
    axis_r = np.linalg.eigh(C_rr)[1][:, 0]
    C_rr -= 5e-5 * np.outer(axis_r, axis_r)  # beyond a noise of 1e-3, and 1e-11 of the largest
    for pick in (
        pick_by_covariance(C_rr, structure_r, 1e-3, 4, alike=1.0).picks,
        pick_for_mean(C_rr, structure_r, np.ones(4, bool), 1e-3, 4, alike=1.0).picks,
    ):
        assert set(pick) <= set(range(4))
        assert len(pick) > 1
    C_rr[0, 5] += 1e3
    with pytest.raises(ValueError, match="not symmetric"):
        pick_by_covariance(C_rr, structure_r, 1e-3, 4)


@given(st.integers(0, 10_000), st.floats(0.05, 5.0), st.integers(0, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_picks_for_the_mean_are_those_of_the_twin(seed, noise, n, with_much_beside):
    rng = np.random.default_rng(seed)
    factors = [one for one in candidates(rng, n=6) if len(one)]
    if not factors:
        return
    C_rr, structure_r = joint(factors)
    noise_r = noise * np.exp(0.3 * rng.normal(size=len(C_rr)))
    target_s = rng.random(len(factors)) < 0.5
    target_s[rng.integers(len(factors))] = True
    beside = Beside()
    if with_much_beside:
        beside = Beside(
            violation_s=0.1 * rng.random(len(factors)), cost_s=np.exp(rng.normal(size=len(factors)))
        )
    found = pick_for_mean(C_rr, structure_r, target_s, noise_r, n, beside=beside, alike=1.0)
    twin = naive.pick_for_mean(C_rr, structure_r, target_s, noise_r, n, beside)
    # Of equal ones either may come first.
    assert_allclose(found.score, [score for _, score in twin][: len(found.score)], rtol=1e-6)
    assert len(set(found.picks.tolist())) == len(found.picks)


def test_the_mean_is_lowered_by_what_is_typical():
    # Three alike, in the midst of things, and one that is far off and uncertain by itself.
    phi = [np.array([[1.0, 0.0]]), np.array([[0.9, 0.1]]), np.array([[1.1, 0.1]])]
    phi.append(np.array([[0.0, 3.0]]))
    C_rr, structure_r = joint(phi)
    far = pick_by_covariance(C_rr, structure_r, 0.1, 1)
    typical = pick_for_mean(C_rr, structure_r, [True, True, True, False], 0.1, 1)
    assert far.picks.tolist() == [3]
    assert typical.picks[0] != 3
    assert typical.score[0] > 0.9  # of all of the variance


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_s": [True]}, "target_s must say"),
        ({"target_s": [False] * 3}, "0 targets"),
        ({"n": -1}, "n must not be negative"),
        ({"noise": 0.0}, "noise must be"),
        ({"beside": Beside(cost_s=np.zeros(3))}, "costs must be positive"),
        ({"covariance_rr": np.eye(5)}, "must be square"),
    ],
)
def test_what_does_not_fit_the_mean_is_refused(changed, message):
    arguments = {
        "covariance_rr": np.eye(6), "structure_r": np.repeat(np.arange(3), 2),
        "target_s": [True] * 3, "noise": 0.1, "n": 2, **changed,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        pick_for_mean(**arguments)


def test_relevance_decides_where_gamma_is_small():
    factors = [np.eye(3) * size for size in (3.0, 2.0, 1.0)]
    factors = [np.pad(one, ((0, 0), (3 * k, 6 - 3 * k))) for k, one in enumerate(factors)]
    relevance = np.array([-1e6, 0.0, 1e-3])
    first = {
        gamma: pick_by_factors(factors, 1.0, 1, beside=Beside(gamma, relevance)).picks[0]
        for gamma in (1.0, 0.0)
    }
    assert first == {1.0: 0, 0.0: 2}
    # Only the order counts: any unit, any monotone map.
    scaled = pick_by_factors(factors, 1.0, 3, beside=Beside(0.4, np.exp(relevance)))
    assert np.array_equal(
        scaled.picks, pick_by_factors(factors, 1.0, 3, beside=Beside(0.4, relevance)).picks
    )


def test_small_cells_come_first_where_they_tell_more_per_second():
    small, large = np.eye(12)[:3], np.eye(12)[3:]
    factors = [large, small]
    assert pick_by_factors(factors, 0.5, 1).picks.tolist() == [0]
    cost_s = fit_label_cost([], []).predict([9, 3])
    assert pick_by_factors(factors, 0.5, 1, beside=Beside(cost_s=cost_s)).picks.tolist() == [1]
    # Not where the large one tells so much more.
    loud = [30.0 * large, 0.05 * small]
    found = pick_by_factors(loud, 0.5, 2, beside=Beside(cost_s=cost_s), least=1e-6)
    assert found.picks.tolist() == [0, 1]
    none = pick_by_factors(factors, 0.5, 2, beside=Beside(cost_s=cost_s), budget=cost_s[1])
    assert none.picks.tolist() == [1]
    assert "budget" in none.why


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(3), [0, 0], 1.0, 1), "square"),
        ((np.eye(2), [1, 0], 1.0, 1), "ascend"),
        ((np.eye(2), [-1, 0], 1.0, 1), "ascend"),
        ((np.eye(2) * np.nan, [0, 1], 1.0, 1), "not finite"),
        ((np.eye(2), [0, 1], 0.0, 1), "noise"),
        ((np.eye(2), [0, 1], [1.0, 1.0, 1.0], 1), "noise"),
        ((np.eye(2), [0, 1], 1.0, -1), "negative"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pick_by_covariance(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beside": Beside(1.5)}, "gamma"),
        ({"beside": Beside(0.5)}, "relevance_s, which is None"),
        ({"beside": Beside(cost_s=np.array([1.0, 0.0]))}, "positive"),
        ({"beside": Beside(violation_s=np.array([1.0]))}, "2 finite"),
        ({"beside": Beside(relevance_s=np.array([1.0, np.nan]))}, "2 finite"),
        ({"given": [2]}, "given"),
        ({"alike": 0.0}, "alike"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pick_by_covariance(np.eye(2), [0, 1], 1.0, 1, **options)


def test_a_matrix_that_is_no_covariance_is_refused():
    with pytest.raises(ValueError, match="not symmetric"):
        pick_by_covariance([[1.0, 0, 0], [0, 2.0, 1.0], [0, 0.9, 2.0]], [0, 1, 1], 1.0, 2)


def test_factors_of_unlike_width_are_refused():
    with pytest.raises(ValueError, match="one k"):
        pick_by_factors([np.eye(2), np.eye(3)], 1.0, 1)
    with pytest.raises(ValueError, match="not finite"):
        pick_by_factors([np.full((1, 2), np.inf)], 1.0, 1)


def test_uncertainty_of_candidates():
    variance_r, structure_r = [1.0, 9.0, 4.0], [0, 0, 2]
    assert_allclose(uncertainty(variance_r, structure_r), [3.0, 0.0, 2.0])
    assert_allclose(uncertainty(variance_r, structure_r, "mean"), [math.sqrt(5.0), 0.0, 2.0])
    assert len(uncertainty([], [])) == 0
    for bad in (([-1.0], [0]), ([1.0], [0, 1]), ([np.inf], [0])):
        with pytest.raises(ValueError, match="varianc"):
            uncertainty(*bad)
    with pytest.raises(ValueError, match="mean"):
        uncertainty([1.0], [0], "median")


@given(st.lists(st.floats(0.0, 1e300), max_size=20), st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_exploration_share(variance_r, noise):
    gamma = exploration_share(variance_r, noise)
    assert 0.0 <= gamma <= 1.0
    if variance_r and max(variance_r) < 1e12:
        mean = np.mean(variance_r)
        assert gamma == pytest.approx(mean / (mean + noise**2), rel=1e-9, abs=1e-12)


def test_exploration_share_refuses():
    assert exploration_share([], 1.0) == 1.0
    for bad in (([1.0], 0.0), ([1.0], math.nan), ([-1.0], 1.0), ([math.nan], 1.0)):
        with pytest.raises(ValueError, match="must be"):
            exploration_share(*bad)


@given(
    st.lists(st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True)), min_size=1),
    st.floats(1e-6, 1e6),
)
@settings(deadline=None)
def test_violations_add_up_to_their_weights_at_most(rows, tolerance):
    score_s = violation_score(np.array(rows), [tolerance, 1.0], [2.0, 1.0])
    assert np.all((score_s >= 0.0) & (score_s <= 3.0))
    assert_allclose(violation_score([[tolerance, 0.0]], [tolerance, 1.0], [2.0, 1.0]), [1.0])
    assert_allclose(violation_score([[np.nan, -np.inf]], [1.0, 1.0]), [2.0])


def test_violation_score_refuses():
    for bad in (
        ([[1.0]], [1.0, 1.0], None),
        ([[1.0]], [0.0], None),
        ([[1.0]], [1.0], [-1.0]),
        ([[1.0]], [1.0], [1.0, 1.0]),
    ):
        with pytest.raises(ValueError, match="tolerances"):
            violation_score(*bad)


def test_relevances(caplog):
    images = [Atoms("H2", [[0, 0, 0], [0, 0, z]]) for z in (0.7, 0.8, 0.9)]
    for k, atoms in enumerate(images):
        atoms.calc = SinglePointCalculator(atoms, energy=-4.0 - k)
    assert_allclose(relevances(low_energy, images), [2.0, 2.5, 3.0])

    def some(atoms):
        if atoms is images[0]:
            raise ValueError("atoms on top of each other")
        return np.nan if atoms is images[1] else 7.0

    assert_allclose(relevances(some, images), [7.0, 7.0, 7.0])
    assert_allclose(relevances(lambda atoms: np.inf, images), np.zeros(3))
    assert "could be evaluated" not in caplog.text
    assert_allclose(relevances(lambda atoms: 1 // 0, images), np.zeros(3))
    assert "could be evaluated for no candidate (ZeroDivisionError" in caplog.text
    assert relevances(low_energy, []).shape == (0,)
    for wrong, words in (
        (lambda atoms: atoms.charge, "the relevance failed .AttributeError"),
        (lambda atoms: [1.0, 2.0], "one number, but is .1.0, 2.0."),
        (lambda atoms: None, "one number, but is None"),
    ):
        with pytest.raises(ValueError, match=words):
            relevances(wrong, images)


def test_laws():
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1]])
    atoms.set_initial_charges([0.25, 0.25])
    atoms.calc = SinglePointCalculator(atoms, energy=-4.0, charges=np.array([0.5, -0.4]))

    def broken(atoms):
        raise ValueError("atoms on top of each other")

    laws = [
        Law("bound", energy_below(-1.5), 0.1),
        Law("bound", energy_below(-3.0), 0.1),
        Law("charge", sum_differs("charges"), 0.1, 0.5),
        Law("charge", sum_differs("initial_charges", 1.0), 0.1),
        Law("several", lambda atoms: [0.1, -0.3], 0.1),
        Law("broken", broken, 0.1),
    ]
    found_sk = violations(laws, [atoms])
    assert_allclose(found_sk, [[0.5, 0.0, 0.1, 0.5, 0.3, np.nan]], atol=1e-12)
    # A mistake in a law is not a violated law.
    with pytest.raises(ValueError, match=r"the law wrong failed \(KeyError"):
        violations([Law("wrong", lambda atoms: atoms.info["nothing"], 1.0)], [atoms])


def test_a_violated_law_brings_a_candidate_forward():
    factors = [np.eye(4)[:2] * 2.0, np.eye(4)[2:]]
    violated = violation_score([[0.0], [10.0]], [0.1])
    assert pick_by_factors(factors, 1.0, 1).picks.tolist() == [0]
    found = pick_by_factors(factors, 1.0, 1, beside=Beside(violation_s=violated))
    assert found.picks.tolist() == [1]


@pytest.mark.parametrize("power", [1.0, 1.7, 2.6, 3.0])
def test_power_of_the_cost_is_found_among_outliers(power):
    rng = np.random.default_rng(1)
    n_atoms = rng.choice([8, 16, 64, 128], 40)
    seconds = 0.01 * n_atoms**power * np.exp(0.1 * rng.normal(size=40))
    seconds[::8] *= 100.0
    cost = fit_label_cost(n_atoms, seconds)
    assert cost.power == pytest.approx(power, abs=0.2)
    assert_allclose(cost.predict([8, 128]), 0.01 * np.array([8.0, 128.0]) ** power, rtol=0.5)


def test_cost_of_few_labels_is_the_prior():
    assert fit_label_cost([], [])[:2] == (1.0, 2.0)
    one = fit_label_cost([10], [3.0])
    assert one.power == pytest.approx(2.0, abs=1e-3)
    assert one.predict(10) == pytest.approx(3.0)
    same = fit_label_cost([8] * 30, np.linspace(1, 2, 30))
    assert same.power == pytest.approx(2.0, abs=1e-3)
    assert 1.0 < fit_label_cost([8, 9], [1.0, 5.0]).power < 2.9


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-6, 1e8)), max_size=30),
)
@settings(deadline=None)
def test_costs_are_positive_and_grow(labels):
    cost = fit_label_cost([n for n, _ in labels], [t for _, t in labels])
    assert 1.0 <= cost.power <= 3.0
    predicted = cost.predict([1, 2, 100, 1000])
    assert np.all(predicted > 0.0)
    assert np.all(np.diff(predicted) > 0.0)


@pytest.mark.parametrize(
    ("n_atoms", "seconds"), [([1], []), ([0], [1.0]), ([1], [0.0]), ([1], [math.nan])]
)
def test_costs_refuse(n_atoms, seconds):
    with pytest.raises(ValueError, match="atom"):
        fit_label_cost(n_atoms, seconds)
