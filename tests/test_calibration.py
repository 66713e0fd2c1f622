"""Calibration: standard deviations and intervals by errors on structures that were left out."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import norm

import kernelpot.report_uncertainty as report_uncertainty
from kernelpot import Calculator, KernelPotential, Soap, load
from kernelpot.conventions import LABEL_KINDS, VarianceTerms
from kernelpot.data import structures_from_atoms
from kernelpot.leave_out import left_out_terms
from kernelpot.structure_prediction import variances_of
from kernelpot.uncertainty.calibration_fit import Errors, recalibrate
from kernelpot.uncertainty.recalibration import KindScale, Recalibration, terms_of, uncalibrated
from tests.conftest import alloy, label

_LABELS = {"energy": "energy", "forces": "forces_nc", "stress": "stress_v"}
NOISE = {"energy": 2e-3, "forces": 0.05, "stress": 1e-3}


def errors_of(rng, n, scale, floor, symbols=("Cu",)):
    sigma_r = 0.05 * np.exp(rng.normal(0, 1, n))
    error_r = rng.normal(size=n) * np.hypot(scale * sigma_r, floor)
    return Errors(error_r, one_term(sigma_r), rng.choice(symbols, n), np.arange(n) // 30)


def one_term(sigma_r):
    """All that is known is one standard deviation."""
    return np.stack([sigma_r**2, *np.zeros((3, len(sigma_r)))])


def joined(parts):
    return Errors(*(np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.3, 8.0),
    floor=st.floats(1e-3, 0.2),
    unit=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_scale_and_floor_are_found(seed, scale, floor, unit):
    errors = errors_of(np.random.default_rng(seed), 6000, scale, floor)
    sigma_r = np.sqrt(errors.variance_tr[0])
    errors = errors._replace(
        error_r=unit * errors.error_r, variance_tr=unit**2 * errors.variance_tr
    )
    noise = {"energy": 1.0, "forces": 0.05 * unit, "stress": 1.0}
    found = recalibrate({"forces": errors}, noise, "held-out").scale_of("forces", 29)
    s_r = found.std(errors.variance_tr)
    expected_r = unit * np.hypot(scale * sigma_r, floor)
    # Where one of the two decides, the other says little: what counts is their sum.
    assert np.median(np.abs(s_r / expected_r - 1.0)) < 0.08
    assert np.mean((errors.error_r / s_r) ** 2) == pytest.approx(1.0, abs=0.08)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.floats(0.5, 0.97))
def test_intervals_hold_whatever_the_distribution(seed, level):
    """Heavy tails, the wrong scale: new numbers are covered all the same."""
    rng = np.random.default_rng(seed)

    def draw(n):
        sigma_r = np.exp(rng.normal(size=n))
        error_r = 3.0 * sigma_r**1.3 * rng.standard_t(3, n)
        return Errors(error_r, one_term(sigma_r), np.full(n, "Cu"), np.arange(n) // 30)

    found = recalibrate({"forces": draw(2000)}, NOISE, "held-out").scale_of("forces")
    new = draw(20_000)
    held = np.mean(np.abs(new.error_r) <= found.std(new.variance_tr) * found.factor(level))
    assert held == pytest.approx(level, abs=0.05)


def test_species_have_scales_of_their_own_where_there_are_errors_enough():
    rng = np.random.default_rng(0)
    parts = [errors_of(rng, n, scale, 1e-3, [s]) for n, scale, s in
             ((3000, 1.0, "Cu"), (3000, 4.0, "Au"), (60, 9.0, "Ag"))]  # fmt: skip
    found = recalibrate({"forces": joined(parts)}, NOISE, "held-out")
    assert set(found.kinds["forces"]) == {"", "Cu", "Au"}
    assert found.scale_of("forces", 29).scale_t[0] == pytest.approx(1.0, rel=0.1)
    assert found.scale_of("forces", 79).scale_t[0] == pytest.approx(4.0, rel=0.1)
    assert found.scale_of("forces", 47) == found.scale_of("forces")
    variances = VarianceTerms(np.full((3, 3), 0.01), *np.zeros((2, 3, 3)))
    std_nc = found.std("forces", variances, np.array([29, 79, 29]))
    assert_allclose(std_nc[1] / std_nc[0], 4.0, rtol=0.15)
    assert found.scale_of("energy")[:2] == uncalibrated(NOISE).scale_of("energy")[:2]


def test_what_is_known_by_symmetry_says_nothing():
    rng = np.random.default_rng(1)
    errors = errors_of(rng, 1000, 2.0, 1e-3)
    zeros = Errors(np.zeros(3000), np.zeros((4, 3000)), np.full(3000, "Cu"), np.zeros(3000, int))
    some = Errors(*(values[..., :900] for values in zeros))
    alone, together = (
        recalibrate({"forces": one}, NOISE, "held-out").scale_of("forces")
        for one in (errors, joined([errors, some]))
    )
    assert together.scale_t == pytest.approx(alone.scale_t, rel=1e-6)
    only = recalibrate({"forces": zeros}, NOISE, "held-out").scale_of("forces")
    assert only.factor(0.95) == pytest.approx(norm.ppf(0.975))
    assert only.floor == NOISE["forces"]


def test_few_scores_do_not_promise_much():
    scale = KindScale((1.0, 1.0, 0.0, 0.0), 0.1, np.array([0.2, 0.5, 1.0, 2.0]), 4)
    assert scale.factor(0.5) == 1.0  # the third of four
    assert scale.factor(0.95) > 2.0  # wider than any that was seen
    assert np.isfinite(scale.factor(0.999))
    assert scale.factor(0.999) > scale.factor(0.95)


def test_settings_and_arrays_make_the_same_again():
    errors = errors_of(np.random.default_rng(3), 900, 2.0, 0.01, ["Cu", "Au"])
    one = recalibrate({"forces": errors, "energy": errors._replace(symbol_r=np.full(900, ""))},
                      NOISE, "leave-one-out")  # fmt: skip
    other = Recalibration.from_settings(one.to_settings(), one.to_arrays())
    assert other.source == "leave-one-out"
    for (kind, symbol, a), (kind_b, symbol_b, b) in zip(one._each(), other._each(), strict=True):
        assert (kind, symbol, a[:2], a[3]) == (kind_b, symbol_b, b[:2], b[3])
        assert_allclose(a.scores_r, b.scores_r, rtol=0)


# ------------------------------------------------------------------------------- of a model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(20)
    return [label(alloy(rng)) for _ in range(70)]


@pytest.fixture(scope="module")
def fitted(data):
    soap = Soap(cutoff=4.0, n_max=4, l_max=3)
    return KernelPotential(soap, n_environments=20, n_tangents=6).fit(data[:30])


def covered(model, images, level):
    """Share of the labels within the intervals, by kind."""
    p = model.predict(images, return_interval=level)
    energy = np.array([a.get_potential_energy() for a in images])
    stress = np.array([a.get_stress() for a in images])
    forces = np.concatenate([a.get_forces() for a in images])
    return {
        "energy": np.mean(np.abs(p.energy - energy) <= p.interval.energy),
        "forces": np.mean(
            np.abs(np.concatenate(p.forces) - forces) <= np.concatenate(p.interval.forces)
        ),
        "stress": np.mean(np.abs(p.stress - stress) <= p.interval.stress),
    }


def test_calibration_on_held_out_structures(fitted, data, tmp_path):
    model = fitted
    assert model.calibration_.source == "none"
    assert model.calibrate(data[30:50]) is model
    assert model.calibration_.source == "held-out"
    for level, tolerance in ((0.9, 0.08), (0.5, 0.13)):
        found = covered(model, data[50:], level)
        assert found["forces"] == pytest.approx(level, abs=tolerance)
        assert found["stress"] == pytest.approx(level, abs=2 * tolerance)
        assert found["energy"] == pytest.approx(level, abs=3 * tolerance)
    model.save(tmp_path / "calibrated.kpot")
    again = load(tmp_path / "calibrated.kpot")
    p, q = (m.predict(data[50:53], return_interval=0.95) for m in (model, again))
    assert p.interval.level == 0.95
    for a, b in zip(p.interval.forces, q.interval.forces, strict=True):
        assert np.array_equal(a, b)
    assert again.calibration_.kinds.keys() == set(LABEL_KINDS)
    # The next fit is another model.
    assert again.partial_fit(data[30:32]).calibration_.source == "none"


def test_calibration_by_leaving_one_out_needs_no_other_data(fitted, data):
    model = fitted.calibrate(data[:30], left_out=True)
    assert model.calibration_.source == "leave-one-out"
    found = covered(model, data[30:], 0.9)
    assert found["forces"] == pytest.approx(0.9, abs=0.07)
    one = model.calibration_.scale_of("forces")
    held_out = fitted.calibrate(data[30:]).calibration_.scale_of("forces")
    structures = structures_from_atoms(data[:30], *model._labels())
    variances = [
        variances_of(model.predictor_, s, ["forces"], jackknife=True)["forces"] for s in structures
    ]
    variance_t = np.concatenate([terms_of(one).reshape(4, -1) for one in variances], axis=1)
    rms = [np.sqrt(np.mean(scale.std(variance_t) ** 2)) for scale in (one, held_out)]
    assert rms[0] == pytest.approx(rms[1], rel=0.2)


def test_a_left_out_structure_is_as_uncertain_as_by_a_refit(data):
    soap = Soap(cutoff=4.0, n_max=3, l_max=2)
    small = {"n_environments": 30, "n_tangents": 8, "delta": 4.0, "feature_tolerance": 0.0}
    given = {f"sigma_{kind}": sigma for kind, sigma in NOISE.items()}
    model = KernelPotential(soap, **small, **given).fit(data[:12])
    found = left_out_terms(model.fitted_, structures_from_atoms(data[:12], *model._labels()))
    without = [atoms.copy() for atoms in data[:12]]
    for atoms, old in zip(without, data, strict=False):
        atoms.calc = old.calc
    without[4].info["config_weight"] = 0.0
    model = KernelPotential(soap, **small, **given).fit(without)
    (one,) = structures_from_atoms([data[4]], *model._labels())
    expected = variances_of(model.predictor_, one, LABEL_KINDS, jackknife=True)
    # Residuals of the others are those of the fit to all, which is near enough.
    jackknife = [
        of["forces"].jackknife.mean() for of in (expected, {"forces": found[4]["forces"][1]})
    ]
    assert jackknife[0] == pytest.approx(jackknife[1], rel=0.2)
    for kind, (error, terms) in found[4].items():
        assert_allclose(terms.std, expected[kind].std, rtol=1e-3)
        predicted = getattr(model.predict([data[4]]), kind)[0]
        expected_error = np.atleast_1d(predicted - getattr(one, _LABELS[kind]))
        assert_allclose(error, expected_error, rtol=1e-3, atol=1e-4)


def test_bad_levels_and_models_without_posterior_are_refused(fitted, data):
    for level in (0.0, 1.0, 95, np.nan):
        with pytest.raises(ValueError, match="return_interval must be between 0 and 1"):
            fitted.predict(data[:1], return_interval=level)
    full = KernelPotential(Soap(cutoff=3.5, n_max=3, l_max=2), basis="full").fit(data[:3])
    with pytest.raises(ValueError, match="basis='full'"):
        full.calibrate(data[3:6])
    with pytest.raises(ValueError, match="basis='full'"):
        full.calibrate(data[:3], left_out=True)


def test_a_table_of_deviations_has_the_units_that_it_says(fitted, data):
    model = fitted.calibrate(data[30:50])
    energy, forces, stress = report_uncertainty.model_deviations(model, data[50:])
    p = model.predict(data[50:], return_std=True)
    expected = 1e3 * (
        np.concatenate(p.forces) - np.concatenate([a.get_forces() for a in data[50:]])
    )
    assert_allclose(forces.error, expected.ravel(), atol=1e-9)
    structures = structures_from_atoms(data[50:], *model._labels())
    variances = [
        variances_of(model.predictor_, s, ("energy", "forces"), jackknife=True) for s in structures
    ]
    of_first = model.calibration_.std("forces", variances[0]["forces"], structures[0].numbers_n)
    assert forces.sigma[0] == pytest.approx(1e3 * of_first[0, 0])
    assert energy.unit == "meV/atom"
    of_energy = [
        model.calibration_.std("energy", of["energy"], one.numbers_n)[0] / one.n_atoms
        for of, one in zip(variances, structures, strict=True)
    ]
    assert_allclose(energy.sigma, 1e3 * np.array(of_energy), rtol=1e-10)
    assert stress.level.shape == stress.error.shape == (20 * 6,)
    # What the table says of coverage is what the intervals of `predict` do.
    rows = report_uncertainty.uncertainty_table([energy, forces, stress])
    for row in rows:
        assert row.coverage_90 == pytest.approx(covered(model, data[50:], 0.9)[row.kind], abs=1e-12)
    raw = report_uncertainty.model_deviations(model, data[50:], calibrated=False)[1]
    noise = model.noise_["forces"]
    assert_allclose(raw.sigma[:3], 1e3 * np.hypot(p.forces_std[0][0], noise), rtol=1e-10)


def test_a_calculator_has_the_errors_to_be_expected(fitted, data):
    model = fitted.calibrate(data[30:50])
    atoms = data[50].copy()
    atoms.calc = Calculator(model)
    (one,) = structures_from_atoms([data[50]], *model._labels())
    found = variances_of(model.predictor_, one, LABEL_KINDS, jackknife=True)
    for kind in LABEL_KINDS:
        expected = model.calibration_.std(kind, found[kind], one.numbers_n)
        error = atoms.calc.get_property(f"{kind}_error", atoms)
        assert_allclose(np.atleast_1d(error), expected, rtol=1e-8)
    assert isinstance(atoms.calc.results["energy_error"], float)
    atoms.calc = Calculator(model.sample(1, random_state=0)[0])
    with pytest.raises(PropertyNotImplementedError, match="sample"):
        atoms.calc.get_property("forces_error", atoms)
