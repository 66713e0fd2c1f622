"""Measures of standard deviations: closed forms, loops, other packages, what cannot matter."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from rich.console import Console
from scipy.special import erf
from scipy.stats import norm, spearmanr
from sklearn.metrics import roc_auc_score

from kernelpot.report_tables import csv_table, json_table, markdown_table, rich_table
from kernelpot.report_uncertainty import (
    Deviations,
    UncertaintyRow,
    error_sigma_figure,
    reliability_figure,
    uncertainty_table,
)
from kernelpot.uncertainty.metrics import (
    COVERAGES,
    LEVELS,
    auroc,
    calibration,
    central_half_width,
    conformal_factor,
    empirical_coverage,
    error_bins,
    spearman,
)


def gaussian(n=20000, factor=1.0, seed=0, spread=0.8):
    """Errors of a normal distribution whose width is ``factor`` times what is said of it."""
    rng = np.random.default_rng(seed)
    sigma_r = np.exp(rng.normal(0.0, spread, n))
    return factor * sigma_r * rng.normal(size=n), sigma_r


def sets(n=300, seed=0):
    rng = np.random.default_rng(seed)
    error_r, sigma_r = gaussian(n, seed=seed)
    group_r = rng.choice(["bulk", "surface"], n)
    return [
        Deviations("energy", "meV/atom", error_r[:40], sigma_r[:40], group_r[:40]),
        Deviations("forces", "meV/A", error_r, sigma_r, group_r),
    ]


# What is so small that another unit makes it zero makes ties.
errors = st.floats(-50, 50).map(lambda x: x if abs(x) > 1e-290 else 0.0)
numbers = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        st.lists(errors, min_size=n, max_size=n),
        st.lists(st.floats(1e-3, 1e3), min_size=n, max_size=n),
    )
)


# --------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_gaussian_errors_have_closed_forms(factor):
    error_r, sigma_r = gaussian(200_000, factor)
    found = calibration(error_r, sigma_r)
    # An interval of sigma u holds an error of width factor * sigma with 2 Phi(u / factor) - 1.
    exact = [2 * norm.cdf(norm.ppf(0.5 + p / 2) / factor) - 1 for p in COVERAGES]
    assert_allclose(found.coverage, exact, atol=5e-3)
    exact_ece = np.mean([abs(2 * norm.cdf(norm.ppf(0.5 + p / 2) / factor) - 1 - p) for p in LEVELS])
    assert found.ece == pytest.approx(exact_ece, abs=4e-3)
    # E[-log N(e; 0, s)] = log s + log(2 pi) / 2 + factor^2 / 2.
    exact_nll = np.mean(np.log(sigma_r)) + 0.5 * math.log(2 * math.pi) + 0.5 * factor**2
    assert found.nll == pytest.approx(exact_nll, abs=0.02)
    assert found.rms_z == pytest.approx(factor, rel=0.01)
    assert found.sharpness == pytest.approx(math.exp(0.8**2), rel=0.02)
    assert found.rmse == pytest.approx(factor * math.exp(0.8**2), rel=0.05)


def test_right_sigmas_have_a_small_calibration_error():
    few, many = (calibration(*gaussian(n, seed=3)) for n in (300, 100_000))
    assert many.ece < 4e-3 < few.ece < 0.06
    assert many.miscalibration < 4e-3
    assert calibration(*gaussian(100_000, 2.0)).ece > 0.15
    # Every error is within every interval, or within none.
    assert calibration(np.zeros(9), np.ones(9)).miscalibration == pytest.approx(0.5)
    assert calibration(1e9 * np.ones(9), np.ones(9)).miscalibration == pytest.approx(0.5)
    assert calibration(np.zeros(9), np.ones(9)).ece == pytest.approx(0.5)


def test_area_is_the_integral_over_levels():
    error_r, sigma_r = gaussian(37, 1.4, seed=5)
    levels = (np.arange(200_000) + 0.5) / 200_000
    integral = np.mean(np.abs(empirical_coverage(error_r, sigma_r, levels=levels) - levels))
    assert calibration(error_r, sigma_r).miscalibration == pytest.approx(integral, abs=1e-5)


# ---------------------------------------------------------------------------- loops, other code


def naive_calibration(error_r, sigma_r):
    """By loops over numbers, pairs and levels."""
    n = len(error_r)
    pairs = list(zip(error_r, sigma_r, strict=True))

    def covered(p):
        u = norm.ppf(0.5 + p / 2)
        return sum(abs(e) <= u * s for e, s in pairs) / n

    worst = sorted(abs(e) for e in error_r)[-math.ceil(0.1 * n)]
    large = [s for e, s in pairs if abs(e) >= worst]
    others = [s for e, s in pairs if abs(e) < worst]
    wins = sum((a > b) + 0.5 * (a == b) for a in large for b in others)
    return {
        "ece": sum(abs(covered(p) - p) for p in LEVELS) / len(LEVELS),
        "nll": -sum(norm.logpdf(e, scale=s) for e, s in pairs) / n,
        "sharpness": math.sqrt(sum(s * s for s in sigma_r) / n),
        "rms_z": math.sqrt(sum((e / s) ** 2 for e, s in pairs) / n),
        "rmse": math.sqrt(sum(e * e for e in error_r) / n),
        "coverage": tuple(covered(p) for p in COVERAGES),
        "auroc": wins / (len(large) * len(others)),
        "count": n,
    }


@pytest.mark.parametrize("n", [2, 10, 57])
def test_measures_are_those_of_loops(n):
    error_r, sigma_r = gaussian(n, 1.3, seed=n)
    if n == 57:
        error_r, sigma_r = np.round(error_r, 1), np.ceil(3 * sigma_r)  # ties
    found = calibration(error_r, sigma_r)._asdict()
    for name, value in naive_calibration(error_r.tolist(), sigma_r.tolist()).items():
        assert_allclose(found[name], value, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_agree_with_scipy_and_scikit_learn(ties):
    error_r, sigma_r = gaussian(500, seed=8)
    if ties:
        error_r, sigma_r = np.round(error_r), np.ceil(sigma_r)
    magnitude_r = np.abs(error_r)
    assert spearman(magnitude_r, sigma_r) == pytest.approx(
        spearmanr(magnitude_r, sigma_r).statistic, rel=1e-12
    )
    large_r = magnitude_r >= np.sort(magnitude_r)[-50]
    assert large_r.sum() > 50 or not ties
    assert auroc(error_r, sigma_r) == pytest.approx(roc_auc_score(large_r, sigma_r), rel=1e-12)
    assert auroc(error_r, sigma_r, worst=0.5) == pytest.approx(
        roc_auc_score(magnitude_r >= np.sort(magnitude_r)[-250], sigma_r), rel=1e-12
    )


def test_finding_large_errors_goes_from_always_to_never():
    error_r = np.linspace(-3.0, 0.0, 50)
    assert auroc(error_r, np.abs(error_r)) == 1.0
    assert auroc(error_r, -np.abs(error_r)) == 0.0
    assert auroc(error_r, np.ones(50)) == 0.5
    assert spearman(np.abs(error_r), np.abs(error_r)) == pytest.approx(1.0)
    assert math.isnan(auroc(np.ones(50), np.abs(error_r)))
    assert math.isnan(spearman(np.ones(50), error_r))


def test_bins_are_those_of_a_loop():
    error_r, sigma_r = gaussian(103, seed=2)
    bins = error_bins(error_r, sigma_r, 10)
    assert bins.count.sum() == 103
    assert set(bins.count.tolist()) == {10, 11}
    assert (np.diff(bins.sigma) > 0).all()
    ordered = sorted(zip(sigma_r, error_r, strict=True))
    first = 0
    for b, n in enumerate(bins.count):
        mine = ordered[first : first + n]
        first += n
        assert bins.sigma[b] == pytest.approx(math.sqrt(sum(s * s for s, _ in mine) / n))
        squares = [e * e for _, e in mine]
        mean = sum(squares) / n
        assert bins.error[b] == pytest.approx(math.sqrt(mean))
        variance = sum((x - mean) ** 2 for x in squares) / (n - 1)
        expected = math.sqrt(variance / n) / (2 * math.sqrt(mean))
        assert bins.standard_error[b] == pytest.approx(expected)
    assert len(error_bins(error_r[:3], sigma_r[:3]).sigma) == 3  # one number in each


def test_standard_errors_of_bins_are_their_scatter():
    many = [error_bins(*gaussian(2000, seed=seed, spread=0.01), n_bins=1) for seed in range(300)]
    scatter = np.std([bins.error[0] for bins in many])
    assert np.mean([bins.standard_error[0] for bins in many]) == pytest.approx(scatter, rel=0.15)


# ------------------------------------------------------------------------- what cannot matter


@given(numbers, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_units_and_order_do_not_matter(values, unit, random):
    error_r, sigma_r = np.array(values)
    found = calibration(error_r, sigma_r)
    order = list(range(len(error_r)))
    random.shuffle(order)
    # A power of two, or rounding would make and break ties.
    unit = 2.0 ** round(math.log2(unit))
    other = calibration(unit * error_r[order], unit * sigma_r[order])
    for name in ("ece", "miscalibration", "coverage", "spearman", "auroc", "rms_z"):
        assert_allclose(
            getattr(other, name), getattr(found, name), rtol=1e-9, atol=1e-12, err_msg=name
        )
    assert other.nll == pytest.approx(found.nll + math.log(unit), rel=1e-9, abs=1e-9)
    assert other.sharpness == pytest.approx(unit * found.sharpness)


@given(numbers)
@settings(max_examples=60, deadline=None)
def test_ranks_are_blind_to_monotone_maps(values):
    error_r, sigma_r = np.array(values)
    sigma_r = np.round(sigma_r, 3)  # so that the map keeps unlike numbers unlike
    found = calibration(error_r, sigma_r)
    other = calibration(error_r, 3.0 + 10.0 * sigma_r**3)
    assert_allclose([other.spearman, other.auroc], [found.spearman, found.auroc], rtol=1e-12)
    reversed_ranks = spearman(np.abs(error_r), -sigma_r)
    assert_allclose(reversed_ranks, -found.spearman, rtol=1e-9, atol=1e-12)


@given(numbers)
@settings(max_examples=60, deadline=None)
def test_wider_intervals_cover_more(values):
    error_r, sigma_r = np.array(values)
    covered = empirical_coverage(error_r, sigma_r, levels=np.linspace(0.01, 0.99, 30))
    assert (np.diff(covered) >= 0.0).all()
    wider = empirical_coverage(error_r, 2.0 * sigma_r, levels=np.linspace(0.01, 0.99, 30))
    assert (wider >= covered).all()
    found = calibration(error_r, sigma_r)
    assert 0.0 <= found.ece < 1.0
    assert 0.0 <= found.miscalibration <= 0.5 + 1e-12


# ------------------------------------------------------------------------------ intervals


def test_intervals_of_ones_own_replace_the_gaussian_ones():
    error_r, sigma_r = gaussian(4000)
    # Intervals that are half as wide: their levels are those of twice the errors.
    level_r = erf(2.0 * np.abs(error_r / sigma_r) / math.sqrt(2.0))
    found, plain = calibration(error_r, sigma_r, level_r), calibration(error_r, sigma_r)
    narrow = calibration(error_r, 0.5 * sigma_r)
    assert found.coverage == narrow.coverage
    assert found.ece == pytest.approx(narrow.ece, abs=1e-12)
    assert found.ece > 4 * plain.ece
    assert found.nll == plain.nll
    assert empirical_coverage(error_r, sigma_r, np.ones(4000)).max() == 0.0
    assert central_half_width(0.95) == pytest.approx(1.959964, abs=1e-6)


def test_conformal_factor_is_a_place_in_the_order():
    score_r = np.arange(1.0, 20.0)[::-1]  # 19 of them: 0.95 of 20 is the 19th
    assert conformal_factor(score_r, 0.95) == 19.0
    assert conformal_factor(score_r, 0.951) == math.inf
    assert conformal_factor(score_r, 0.9) == 18.0
    assert conformal_factor(score_r, 0.05) == 1.0
    # 0.07 * 100 is a little more than 7 in binary.
    assert conformal_factor(np.arange(1.0, 100.0), 0.07) == 7.0
    for n in range(1, 60):
        for level in (0.5, 0.9, 0.95, 0.99):
            score_r = np.arange(1.0, n + 1)
            least = [k for k in range(1, n + 1) if k / (n + 1) >= level - 1e-12]
            assert conformal_factor(score_r, level) == (least[0] if least else math.inf)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_conformal_intervals_cover_what_they_promise(level):
    # Far from Gaussian, with standard deviations that say little.
    rng = np.random.default_rng(4)
    n, n_trials = 39, 4000
    covered = 0
    for _ in range(n_trials):
        sigma_r = np.exp(rng.normal(size=n + 1))
        error_r = rng.standard_t(2, size=n + 1) * sigma_r**0.3
        factor = conformal_factor(np.abs(error_r[:n]) / sigma_r[:n], level)
        covered += abs(error_r[n]) <= factor * sigma_r[n]
    # Exactly ceil((n + 1) level) / (n + 1), which is the level here, to three standard errors.
    assert covered / n_trials == pytest.approx(level, abs=3 * math.sqrt(0.25 / n_trials))


def test_conformal_intervals_are_those_of_crepes():
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(6)
    # (n + 1) level is no whole number: those it takes by int((1 - 0.8) * 400), which is 79, not 80.
    for n in (26, 202, 398):
        error_r, sigma_r = rng.normal(size=n), np.exp(rng.normal(size=n))
        theirs = crepes.ConformalRegressor().fit(residuals=np.abs(error_r), sigmas=sigma_r)
        for level in (0.5, 0.8, 0.9, 0.95):
            new = np.array([0.5, 2.0])
            interval = theirs.predict_int(np.zeros(2), sigmas=new, confidence=level)
            ours = conformal_factor(np.abs(error_r) / sigma_r, level) * new
            assert_allclose(np.asarray(interval)[:, 1], ours, rtol=1e-12)


# ------------------------------------------------------------------------------ bad input


def test_mistakes_are_named():
    one = np.ones(3)
    with pytest.raises(ValueError, match=r"shape \(3,\) with standard deviations of shape \(2,\)"):
        calibration(one, one[:2])
    with pytest.raises(ValueError, match="no errors"):
        calibration([], [])
    with pytest.raises(ValueError, match="1 of 3 errors or standard deviations are not finite"):
        calibration([1.0, np.nan, 1.0], one)
    with pytest.raises(ValueError, match=r"2 of 3 .* the first is number 1: 0\. .*noise"):
        calibration(one, [1.0, 0.0, -1.0])
    with pytest.raises(ValueError, match="3 numbers between 0 and 1, one for each error; got 2"):
        calibration(one, one, one[:2])
    with pytest.raises(ValueError, match="3 numbers between 0 and 1"):
        calibration(one, one, 2.0 * one)
    with pytest.raises(ValueError, match="n_bins must be 1"):
        error_bins(one, one, 0)
    with pytest.raises(ValueError, match="level must be between 0 and 1; got 95"):
        conformal_factor(one, 95)
    with pytest.raises(ValueError, match="none negative"):
        conformal_factor([1.0, np.nan], 0.5)
    with pytest.raises(ValueError, match="3 errors with 2 scores"):
        auroc(one, one[:2])
    with pytest.raises(ValueError, match="nothing to show"):
        reliability_figure({})
    with pytest.raises(ValueError, match="nothing to show"):
        error_sigma_figure({})


def test_a_single_number_has_no_ranks():
    found = calibration([0.5], [1.0])
    assert math.isnan(found.spearman)
    assert math.isnan(found.auroc)
    assert found.coverage == (1.0, 1.0, 1.0, 1.0)
    assert found.nll == pytest.approx(-norm.logpdf(0.5))


# -------------------------------------------------------------------------- tables and figures


def test_rows_of_groups():
    energy, forces = sets()
    rows = uncertainty_table([energy, forces], by_group=True)
    assert [(row.group, row.kind) for row in rows] == [
        (group, kind) for group in ("all", "bulk", "surface") for kind in ("energy", "forces")
    ]
    mine = forces.group == "bulk"
    found = calibration(forces.error[mine], forces.sigma[mine])
    row = rows[3]
    assert (row.ece, row.nll, row.spearman) == (found.ece, found.nll, found.spearman)
    covered = (row.coverage_50, row.coverage_90, row.coverage_95, row.coverage_99)
    assert covered == found.coverage
    assert row.count == mine.sum()
    assert len(uncertainty_table([energy, forces])) == 2


def test_tables_as_text():
    rows = uncertainty_table(sets(), by_group=True)
    alone = uncertainty_table(
        [Deviations("energy", "meV/atom", np.ones(1), np.ones(1), np.array(["all"]))]
    )
    lines = markdown_table(rows).splitlines()
    assert lines[0].startswith("| group | label | ECE | NLL | sigma |")
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1
    assert csv_table(rows).splitlines()[0] == ",".join(UncertaintyRow._fields)
    assert json.loads(json_table(rows))[5]["group"] == "surface"
    assert json.loads(json_table(alone))[0]["auroc"] is None
    assert "| - | - |" in markdown_table(alone)
    console = Console(width=160, file=io.StringIO())
    console.print(rich_table(rows, "Uncertainty of the test"))
    text = console.file.getvalue()
    for word in ("ECE", "Spearman", "AUROC", "meV/A", "95 %"):
        assert word in text


@pytest.mark.parametrize("n", [400, 3])
def test_figures(tmp_path, n):
    error_r, sigma_r = gaussian(n)
    group_r = np.full(n, "all")
    one = Deviations("forces", "meV/A", error_r, sigma_r, group_r)
    two = Deviations("forces", "meV/A", 2 * error_r, sigma_r, group_r)
    three = Deviations("energy", "meV/atom", error_r, sigma_r, group_r)
    figure = reliability_figure({"right": one, "too sure": two}, title="test")
    figure.savefig(tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 10_000
    curve = figure.axes[0].lines[1]
    assert_allclose(
        np.array(curve.get_ydata())[99] / 100, empirical_coverage(error_r, sigma_r, levels=[0.5])[0]
    )
    figure = error_sigma_figure({"right": one, "too sure": two, "energies": three}, title="test")
    figure.savefig(tmp_path / "errors.png")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "standard deviation (meV/A)",
        "standard deviation (meV/atom)",
    ]
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
