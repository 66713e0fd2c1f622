"""Collapsed weights: the same energies as all inducing variables one by one, and their slopes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from kernelpot import Calculator, KernelPotential, Soap, local_energies
from kernelpot.collapsed import collapse, single
from kernelpot.descriptors.projected import projection_pays
from kernelpot.gp.inducing import join
from kernelpot.neighbours import find_pairs
from kernelpot.prediction import predictor_of


def unit(rng, n, n_q, around=0.0, spread=1.0):
    x_nq = around + rng.normal(0.0, spread, (n, n_q))
    return x_nq / np.linalg.norm(x_nq, axis=1, keepdims=True)


def problem(seed, n_q=12, n_e=5, size=1.0):
    """Inducing variables near one another, as environments of one species are, and weights."""
    rng = np.random.default_rng(seed)
    middle = unit(rng, 1, n_q)[0]
    spread = 0.2 / np.sqrt(n_q)
    x_eq = unit(rng, n_e, n_q, middle, spread)
    tangents = []
    for x_q in x_eq:
        tau_rq = rng.standard_normal((int(rng.integers(0, 4)), n_q))
        tau_rq -= np.outer(tau_rq @ x_q, x_q)
        tangents.append(np.linalg.qr(tau_rq.T)[0].T[: len(tau_rq)] if len(tau_rq) else tau_rq)
    group = join(x_eq, tangents)
    return group, size * rng.standard_normal(len(group.Z_mq)), unit(rng, 7, n_q, middle, spread)


def naive_energy(group, weights_m, x_q, zeta):
    """One term for each inducing variable: k(x, x_e), or its derivative along a tangent."""
    total = 0.0
    for e in range(len(group.first_e) - 1):
        first, last = group.first_e[e], group.first_e[e + 1]
        X = x_q @ group.Z_mq[first]
        total += weights_m[first] * X**zeta
        for m in range(first + 1, last):
            total += weights_m[m] * zeta * X ** (zeta - 1) * (x_q @ group.Z_mq[m])
    return total


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), zeta=st.integers(1, 6), precise=st.booleans())
def test_energies_and_slopes_are_those_of_all_inducing_variables(seed, zeta, precise):
    group, weights_m, x_bq = problem(seed)
    collapsed = collapse(group, weights_m, zeta)
    if not precise:
        collapsed, _ = single(collapsed, zeta)
    scale = np.abs(weights_m).sum() * zeta**2
    energies_b, g_bq, values_be = collapsed.energies(x_bq, zeta, values=True)
    expected_b = [naive_energy(group, weights_m, x_q, zeta) for x_q in x_bq]
    tolerance = 1e-13 if precise else 1e-6
    assert_allclose(energies_b, expected_b, rtol=0, atol=tolerance * scale)
    if zeta > 1:
        expected_be = (x_bq @ group.Z_mq[group.first_e[:-1]].T) ** zeta
        assert_allclose(values_be, expected_be, rtol=0, atol=1e-14 if precise else 1e-6)
    h = 1e-4
    step_q = unit(np.random.default_rng(seed), 1, x_bq.shape[1])[0]
    for x_q, g_q in zip(x_bq, g_bq, strict=True):
        up, down = (naive_energy(group, weights_m, x_q + s * h * step_q, zeta) for s in (1, -1))
        assert g_q @ step_q == pytest.approx((up - down) / (2 * h), abs=1e-5 * scale)


@pytest.mark.parametrize("zeta", [2, 4])
def test_the_mean_is_what_keeps_digits(zeta):
    """Large weights that cancel: products as they are would lose what differences do not."""
    group, weights_m, x_bq = problem(3, n_q=60, n_e=80, size=1e3)
    collapsed = collapse(group, weights_m, zeta)
    expected_b, expected_bq, _ = collapsed.energies(x_bq, zeta)
    found, stated = single(collapsed, zeta)
    energies_b, g_bq, _ = found.energies(x_bq, zeta)
    plain = collapsed._replace(V_jq=collapsed.V_jq.astype(np.float32))
    plain_b, *_ = plain.energies(x_bq.astype(np.float32), zeta)
    error = np.sqrt(np.mean((energies_b - expected_b) ** 2))
    assert error < 0.3 * np.sqrt(np.mean((plain_b - expected_b) ** 2))
    assert 0.1 * stated < error < 10 * stated
    assert_allclose(g_bq, expected_bq, rtol=0, atol=1e-5 * np.abs(expected_bq).max())


def test_single_precision_of_a_fitted_model(emt_model, emt_images):
    exact, rough = Calculator(emt_model), Calculator(emt_model, single_precision=True)
    for atoms in emt_images[:5]:
        found = []
        for calculator in (exact, rough):
            atoms = atoms.copy()
            atoms.calc = calculator
            found.append((atoms.get_potential_energy(), atoms.get_forces()))
        assert abs(found[0][0] - found[1][0]) < 1e-3 * len(atoms)  # eV
        assert_allclose(found[1][1], found[0][1], rtol=0, atol=2e-3)  # eV/A
        assert np.any(found[1][1] != found[0][1])


def test_single_precision_is_refused_where_it_would_change_energies(emt_model):
    with pytest.raises(ValueError, match="are large and cancel"):
        emt_model.predictor_.in_single_precision(max_error=1e-12)


def test_nothing_to_collapse():
    collapsed = collapse(join(np.zeros((0, 12)), []), np.zeros(0), 4)
    assert len(collapsed.alpha_e) == 0
    assert single(collapsed, 4) == (collapsed, 0.0)


@pytest.mark.parametrize("mixing", [{}, {"species_mixing": 0.7, "centre_similarity": 0.8}])
def test_weights_that_contain_the_axes_give_the_same(emt_images, mixing, monkeypatch):
    soap = Soap(cutoff=4.5, n_max=6, l_max=4, **mixing)
    model = KernelPotential(soap, n_environments=6, n_tangents=3, feature_tolerance=1e-3)
    model.fit(emt_images[:10])
    kept = model.fitted_.components[0].descriptor
    found = {}
    for pays in (True, False):
        monkeypatch.setattr(local_energies, "projection_pays", lambda *_, pays=pays: pays)
        predictor = predictor_of(model.fitted_)
        found[pays] = predictor
        assert all((one.descriptor is kept) == pays for one in predictor._blocks[0])
    assert found[False]._blocks[0][0].descriptor.n_features > kept.n_features
    for atoms in emt_images[10:14]:
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, model.predictor_.cutoff)
        one, other = (found[pays].evaluate(atoms.numbers, pairs) for pays in (True, False))
        for a, b in zip(one, other, strict=True):
            assert_allclose(b, a, rtol=0, atol=1e-10 * max(1.0, np.abs(a).max()))
        rough = found[False].in_single_precision().evaluate(atoms.numbers, pairs)
        assert_allclose(rough.forces_nc, one.forces_nc, rtol=0, atol=2e-3)


def test_few_environments_are_compared_with_all_features():
    assert projection_pays(324, 119, 300)
    assert not projection_pays(324, 119, 50)
    assert not projection_pays(680, 467, 300)
    assert not projection_pays(100, 100, 1e6)
