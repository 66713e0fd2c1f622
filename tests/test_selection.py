"""Choice of environments and tangents: greedy variance, the joint choice, shares of groups."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from kernelpot import KernelPotential, Soap
from kernelpot.conventions import as_int
from kernelpot.data import LabelKeys, Noise, structures_from_atoms
from kernelpot.gp import covariances, greedy, inducing
from kernelpot.selection import _shares, choose_inducing, choose_sample, system_of
from tests.naive import gp as naive


def unit(rng, n, q):
    x = rng.standard_normal((n, q)) + 1.0
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def some_pool(rng, n, q=9, most=4, copies=1):
    """Environments with tangents times singular values, the largest first; each `copies` times."""
    x_eq = unit(rng, n, q)
    weighted = []
    for x in x_eq:
        J = rng.standard_normal((2, 3, q)) * rng.uniform(0.2, 2.0)
        J -= (J @ x)[..., None] * x
        singular, tau = inducing.singular_tangents(J, int(rng.integers(0, most + 1)), 1e-3)
        weighted.append(singular[:, None] * tau)
    return inducing.join(np.vstack([x_eq] * copies), weighted * copies)


def jointly(pool, n_select, n_tangents=3, zeta=4, **settings):
    n = len(pool.first_e) - 1
    settings = {
        "n_lead": 2,
        "threshold": 1e-3,
        "group_e": np.zeros(n, dtype=np.intp),
        "quota_g": as_int([n_select]),
        **settings,
    }
    return greedy.choose_jointly(pool, n_tangents=n_tangents, zeta=zeta, **settings)


def by_environment(pool):
    """The naive twin's variables (x, tau), a list for each environment."""
    variables = naive.variables(pool)
    return [variables[a:b] for a, b in zip(pool.first_e, pool.first_e[1:], strict=False)]


# --------------------------------------------------------------- against dense algebra


@given(seed=st.integers(0, 2**32 - 1), zeta=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_greedy_variance_takes_the_largest_exact_one(seed, zeta):
    x_nq = unit(np.random.default_rng(seed), 20, 30)
    candidates = [(x, None) for x in x_nq]
    chosen = inducing.select_variance(x_nq, 8, np.random.default_rng(seed), zeta)
    for k in range(1, len(chosen)):
        before = [candidates[n] for n in chosen[:k]]
        exact_n = naive.conditional_variance(candidates, before, zeta)
        assert_allclose(exact_n[chosen[k]], exact_n.max(), atol=1e-9)


@given(seed=st.integers(0, 2**32 - 1), zeta=st.integers(2, 5))
@settings(max_examples=15, deadline=None)
def test_joint_choice_takes_the_largest_exact_block(seed, zeta):
    pool = some_pool(np.random.default_rng(seed), 9)
    blocks = by_environment(pool)
    chosen, tangents = jointly(pool, 6, zeta=zeta)
    assert len(chosen) == 6
    given_ = []
    for k, (best, kept) in enumerate(zip(chosen, tangents, strict=True)):
        score = [
            exact[0] + greedy._STEP**2 * exact[1:3].sum()
            for exact in (naive.conditional_variance(block, given_, zeta) for block in blocks)
        ]
        left = [e for e in range(len(blocks)) if e not in chosen[:k]]
        assert_allclose(score[best], max(score[e] for e in left), rtol=1e-6)
        x, rows = blocks[best][0][0], [tau for _, tau in blocks[best][1:]]
        given_.append((x, None))
        for tau in kept:
            exact_t = naive.conditional_variance([(x, row) for row in rows], given_, zeta)
            same = [abs(tau @ row) / np.linalg.norm(row) for row in rows]
            assert_allclose(max(same), 1.0)
            assert_allclose(exact_t[np.argmax(same)], exact_t.max(), rtol=1e-6)
            given_.append((x, tau))


def test_covariances_of_two_sets_are_blocks_of_those_of_both():
    rng = np.random.default_rng(0)
    first, second = some_pool(rng, 3), some_pool(rng, 4)
    both = inducing.Inducing(
        np.vstack([first.Z_mq, second.Z_mq]),
        np.concatenate([first.first_e, first.first_e[-1] + second.first_e[1:]]),
    )
    n = len(first.Z_mq)
    expected = naive.K_mm(both, 4)[:n, n:]
    assert_allclose(covariances.K_ab(first, second, 4), expected, atol=1e-12)
    assert_allclose(covariances.K_ab(second, first, 4), expected.T, atol=1e-12)


# ------------------------------------------------------------------ sizes, duplicates


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    n_select=st.integers(1, 15),
    n_tangents=st.integers(0, 5),
    copies=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_joint_choice_of_any_size(seed, n, n_select, n_tangents, copies):
    pool = some_pool(np.random.default_rng(seed), n, q=12, copies=copies)
    chosen, tangents = jointly(pool, n_select, n_tangents)
    again, _ = jointly(pool, n_select, n_tangents)
    assert np.array_equal(chosen, again)
    # A copy of a chosen one is explained: it is never chosen, whatever is asked for.
    assert len(set((chosen % n).tolist())) == len(chosen) <= min(n, n_select)
    if n * 5 < 12:
        assert len(chosen) == min(n, n_select)
    for e, tau_tq in zip(chosen, tangents, strict=True):
        n_candidates = pool.first_e[e + 1] - pool.first_e[e] - 1
        assert len(tau_tq) <= min(n_tangents, n_candidates)
        assert_allclose(tau_tq @ tau_tq.T, np.eye(len(tau_tq)), atol=1e-12)
        assert_allclose(tau_tq @ pool.x_eq[e], 0, atol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 30), share=st.floats(0.05, 1.0))
@settings(max_examples=25, deadline=None)
def test_greedy_variance_never_chooses_a_duplicate(seed, n, share):
    x_nq = np.repeat(unit(np.random.default_rng(seed), n, 40), 3, axis=0)
    n_select = max(1, int(3 * n * share))
    chosen = inducing.select(x_nq, n_select, "variance", np.random.default_rng(seed))
    assert len(set((chosen // 3).tolist())) == len(chosen) == min(n_select, n)


def test_identical_candidates_are_one():
    x_nq = np.repeat(unit(np.random.default_rng(0), 1, 5), 7, axis=0)
    assert len(inducing.select(x_nq, 4, "variance", np.random.default_rng(0))) == 1
    pool = some_pool(np.random.default_rng(0), 1, copies=7)
    assert len(jointly(pool, 4)[0]) == 1


def test_an_explained_tangent_is_left_out():
    # Two environments an angle apart, each with the direction towards the other, and one aside.
    angle = 0.01
    x = np.array([[1.0, 0.0, 0.0], [np.cos(angle), np.sin(angle), 0.0]])
    toward = np.array([[0.0, 1.0, 0.0], [-np.sin(angle), np.cos(angle), 0.0]])
    aside = np.array([0.0, 0.0, 1.0])
    pool = inducing.join(x, [np.array([toward[0]]), np.array([toward[1], 0.5 * aside])])
    chosen, tangents = jointly(pool, 2, threshold=0.1, n_lead=1)
    # The first says what the second's local energy and derivative towards it are, to order angle^2.
    assert chosen[0] == 0
    assert_allclose(np.abs(tangents[1] @ aside), [1.0])


# ------------------------------------------------------------------------------ groups


@given(total=st.integers(0, 60), counts=st.lists(st.integers(0, 500), min_size=1, max_size=6))
@settings(deadline=None)
def test_shares_add_up(total, counts):
    share_g = _shares(total, np.array(counts))
    assert share_g.sum() == min(total, sum(counts))
    assert np.all(share_g <= counts)
    if total >= len(counts):
        assert np.all((share_g > 0) == (np.array(counts) > 0))


def test_shares_go_by_the_square_root():
    assert _shares(60, np.array([400, 100, 0, 9])).tolist() == [36, 18, 0, 6]
    assert _shares(2, np.array([4, 900, 100])).tolist() == [0, 1, 1]


def test_joint_choice_keeps_the_quotas_of_groups():
    pool = some_pool(np.random.default_rng(3), 12, q=40)
    group_e = as_int([0] * 8 + [1] * 3 + [2])
    chosen, _ = jointly(pool, 7, group_e=group_e, quota_g=as_int([4, 2, 1]), n_first=2)
    assert chosen[:2].tolist() == [0, 1]
    assert np.bincount(group_e[chosen]).tolist() == [4, 2, 1]


# -------------------------------------------------------------------------- structures


@pytest.fixture(scope="module")
def crystals():
    """Rattled cells of copper, one of aluminium and copper, an isolated atom; by group."""
    rng = np.random.default_rng(0)
    images = []
    for k in range(12):
        atoms = bulk("Cu", "fcc", a=3.7, cubic=True)
        if k == 11:
            atoms.numbers[0] = 13
        atoms.info["group"] = "hot" if k < 10 else "rare"
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        images.append(atoms)
    images.append(Atoms("Cu", cell=[20, 20, 20], pbc=True, info={"group": "free"}))
    return structures_from_atoms(images, LabelKeys(), Noise(), labels="ignore")


def choose(crystals, **options):
    options = {
        "n_environments": {"Al": 1, "Cu": 14},
        "n_tangents": 4,
        "tangent_threshold": 1e-3,
        "selector": "joint",
        "random_state": 0,
        "tell": lambda stage, done, total: None,
        **options,
    }
    bound = Soap(cutoff=4.0, n_max=4, l_max=3).bind((13, 29))
    return choose_inducing(crystals, {12}, bound, **options)


@pytest.mark.parametrize("selector", inducing.SELECTORS)
@pytest.mark.parametrize("balance_groups", [False, True])
def test_inducing_variables_of_structures(crystals, selector, balance_groups):
    groups = choose(crystals, selector=selector, balance_groups=balance_groups)
    again = choose(crystals, selector=selector, balance_groups=balance_groups)
    for group, twin in zip(groups, again, strict=True):
        assert np.array_equal(group.Z_mq, twin.Z_mq)
        assert np.array_equal(group.first_e, twin.first_e)
        assert_allclose(np.linalg.norm(group.Z_mq, axis=1), 1.0)
        assert np.diff(group.first_e).max() <= 5
    assert [len(group.first_e) - 1 for group in groups] == [1, 14]
    # The isolated atom comes first and cannot move.
    assert groups[1].first_e[1] == 1


def test_joint_choice_without_tangents_is_that_of_environments(crystals):
    joint, alone = (choose(crystals, selector=s, n_tangents=0) for s in ("joint", "variance"))
    assert np.array_equal(joint[1].Z_mq, alone[1].Z_mq)


def test_more_environments_than_atoms(crystals):
    groups = choose(crystals, n_environments=500, selector="fps")
    assert [len(group.first_e) - 1 for group in groups] == [1, 48]
    # In cells this small the local energies of some follow from the tangents of the others.
    groups = choose(crystals, n_environments=500, selector="joint")
    assert len(groups[0].first_e) - 1 == 1
    assert 10 < len(groups[1].first_e) - 1 <= 48


@pytest.mark.parametrize("selector", ["random", "joint"])
def test_balanced_groups_get_their_shares(crystals, selector):
    bound = Soap(cutoff=4.0, n_max=4, l_max=3).bind((13, 29))
    x_nq, group_n = [], []
    for structure in crystals:
        copper = as_int(np.flatnonzero(structure.numbers_n == 29))
        x_nq.append(bound.features(system_of(bound, structure), copper)[0])
        group_n += [structure.group] * len(copper)
    chosen = choose(crystals, selector=selector, balance_groups=True)[1]
    groups = [group_n[n] for n in np.argmax(chosen.x_eq @ np.vstack(x_nq).T, axis=1)]
    # 40 and 7 atoms; the isolated one comes on top of its group's share.
    hot, rare = _shares(13, np.array([40, 7]))
    assert [groups.count(name) for name in ("free", "hot", "rare")] == [1, hot, rare]
    assert rare == 4


def test_progress_reaches_its_total(crystals):
    told = []
    choose(crystals, tell=lambda *news: told.append(news))
    steps = [(done, total) for stage, done, total in told if stage == "tangents"]
    assert steps == sorted(steps)
    assert steps[-1] == (15, 15)


@pytest.mark.parametrize("selector", ["variance", "joint"])
def test_a_model_is_fitted_with_it(emt_images, emt_soap, selector):
    model = KernelPotential(emt_soap, n_environments=12, n_tangents=4, selector=selector)
    model.fit(emt_images[:10])
    assert model.n_environments_ == 12
    assert np.isfinite(model.predict(emt_images[10:12]).energy).all()


# The sample from which everything is chosen


def test_a_sample_has_every_group_every_species_and_all_isolated_atoms(crystals):
    many = [*crystals[:10] * 100, *crystals[10:]]  # 1000 hot, one rare, one rare with Al, one free
    for seed in range(5):
        chosen = choose_sample(many, {1002}, 30, seed)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert 30 <= len(chosen) <= 32
        assert {1002, 1001} <= set(chosen.tolist()), "the isolated atom, and the only Al"
        assert {many[s].group for s in chosen} == {"hot", "rare", "free"}
    again = choose_sample(many, {1002}, 30, 4)
    assert again.tolist() == chosen.tolist()
    few = choose_sample(many, {1002}, 1, 0)
    assert {z for s in few for z in many[s].numbers_n.tolist()} == {13, 29}


def test_small_data_are_their_own_sample(crystals):
    everything = np.arange(len(crystals))
    assert choose_sample(crystals, {12}, len(crystals), 0).tolist() == everything.tolist()
