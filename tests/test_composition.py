"""Baseline energies: isolated atoms, least squares, both, none."""

import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelpot.data import DataError, Structure
from kernelpot.terms.composition import CompositionBaseline, fit_composition

CUTOFF = 5.0
ENERGY = {1: -13.6, 6: -1029.5, 8: -2042.0}


def made(numbers, energy=None, sigma=1e-3, cell=None, name="s"):
    """A chain of atoms 1.5 A apart; its energy by composition unless given."""
    numbers_n = np.asarray(numbers, dtype=np.intp)
    n_atoms = len(numbers_n)
    energy = sum(ENERGY[int(z)] for z in numbers_n) if energy is None else energy
    positions_nc = np.outer(np.arange(n_atoms), [1.5, 0.0, 0.0])
    pbc_c = np.full(3, cell is not None)
    return Structure(
        numbers_n, positions_nc, np.eye(3) * (cell or 0.0), pbc_c, energy,
        np.full((n_atoms, 3), np.nan), np.full(6, np.nan), sigma, 0.05, 1e-3, name=name,
    )  # fmt: skip


def test_isolated_atoms_are_the_baseline_and_leave_the_rows():
    structures = [made([1]), made([1, 8, 1], -2075.0), made([8]), made([8, 8], -4090.0)]
    baseline, keep = fit_composition(structures, CUTOFF)
    assert baseline == CompositionBaseline((1, 8), (-13.6, -2042.0), "isolated atoms")
    np.testing.assert_array_equal(keep, [1, 3])
    assert keep.dtype == np.intp


@pytest.mark.parametrize(("cell", "isolated"), [(None, True), (5.1, True), (4.9, False)])
def test_an_atom_that_sees_its_image_is_not_isolated(cell, isolated):
    structures = [made([1], -12.0, cell=cell), made([1, 1], -30.0)]
    baseline, keep = fit_composition(structures, CUTOFF)
    assert (baseline.kind == "isolated atoms") == isolated
    np.testing.assert_array_equal(keep, [1] if isolated else [0, 1])


def test_an_isolated_atom_without_an_energy_defines_nothing():
    baseline, keep = fit_composition([made([1], math.nan), made([1, 1], -30.0)], CUTOFF)
    assert baseline == CompositionBaseline((1,), (-15.0,), "least squares")
    np.testing.assert_array_equal(keep, [0, 1])


def test_isolated_atoms_that_disagree_give_the_lowest_and_a_warning(caplog):
    structures = [made([1], -13.0, name="singlet"), made([1], -13.6, name="doublet")]
    baseline, keep = fit_composition(structures, CUTOFF)
    assert baseline.energies == (-13.6,)
    assert len(keep) == 0
    assert "-13.6 eV (doublet) to -13 eV (singlet)" in caplog.text


def test_least_squares_finds_exact_energies():
    structures = [made(n) for n in ([1, 1], [6, 1, 1], [8, 1], [6, 8, 8, 8], [6] * 5)]
    baseline, keep = fit_composition(structures, CUTOFF)
    assert baseline.kind == "least squares"
    assert baseline.numbers == (1, 6, 8)
    np.testing.assert_allclose(baseline.energies, list(ENERGY.values()), rtol=1e-12)
    assert len(keep) == 5


def test_least_squares_weighs_energies_per_atom_by_their_noise():
    # Minimum of sum ((E/n - e)/sigma)^2 for one species is the weighted mean of E/n.
    structures = [made([14] * 2, -10.0, 0.1), made([14] * 9, -54.0, 0.2)]
    baseline, _ = fit_composition(structures, CUTOFF)
    expected = (-5.0 / 0.1**2 - 6.0 / 0.2**2) / (1 / 0.1**2 + 1 / 0.2**2)
    assert baseline.energies[0] == pytest.approx(expected, rel=1e-13)


def test_one_molecule_gets_the_minimum_norm():
    structures = [made([8, 1, 1], -30.0 + d) for d in (-0.1, 0.1)]
    baseline, _ = fit_composition(structures, CUTOFF)
    np.testing.assert_allclose(baseline.energies, [-12.0, -6.0], rtol=1e-12)
    assert baseline.energy_of(np.array([8, 1, 1])) == pytest.approx(-30.0, rel=1e-13)


def test_species_without_an_isolated_atom_are_fitted_given_the_others():
    structures = [made([1]), made([6, 1, 1]), made([6, 8]), made([8, 1])]
    baseline, keep = fit_composition(structures, CUTOFF)
    assert baseline.kind == "isolated atoms, least squares for C, O"
    np.testing.assert_allclose(baseline.energies, list(ENERGY.values()), rtol=1e-12)
    np.testing.assert_array_equal(keep, [1, 2, 3])


def test_a_species_that_no_energy_tells_of_is_zero():
    structures = [made([1]), made([6, 1], math.nan)]
    baseline, _ = fit_composition(structures, CUTOFF)
    assert baseline.energies == (-13.6, 0.0)
    assert baseline.kind == "isolated atoms, least squares for C"


def test_without_energies_the_baseline_is_none():
    baseline, keep = fit_composition([made([8, 1], math.nan), made([6], math.nan)], CUTOFF)
    assert baseline == CompositionBaseline((1, 6, 8), (0.0, 0.0, 0.0), "none")
    assert len(keep) == 2
    assert "none" in baseline.describe()


def test_the_log_says_which_and_how_much(caplog):
    with caplog.at_level(logging.INFO, "kernelpot"):
        fit_composition([made([1]), made([6]), made([1, 6])], CUTOFF)
    assert "Baseline from isolated atoms: H -13.6, C -1029.5 eV" in caplog.text


def test_energies_of_atoms_and_structures():
    baseline = CompositionBaseline((1, 8), (-13.6, -2042.0), "isolated atoms")
    numbers_n = np.array([8, 1, 1])
    np.testing.assert_array_equal(baseline.energies_of(numbers_n), [-2042.0, -13.6, -13.6])
    assert baseline.energy_of(numbers_n) == pytest.approx(-2069.2, rel=1e-14)
    assert isinstance(baseline.energy_of(numbers_n), float)
    assert baseline.energy_of(np.array([], dtype=np.intp)) == 0.0
    with pytest.raises(DataError, match="knows H, O, but not Fe"):
        baseline.energy_of(np.array([1, 26]))


@settings(max_examples=60, deadline=None)
@given(
    species=st.lists(st.integers(1, 94), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 10**6),
)
def test_settings_survive_json_exactly(species, seed):
    rng = np.random.default_rng(seed)
    structures = [
        made(rng.choice(species, rng.integers(1, 8)), rng.normal() * 10.0 ** rng.integers(-3, 6))
        for _ in range(6)
    ]
    baseline, keep = fit_composition(structures, CUTOFF)
    again = CompositionBaseline.from_settings(json.loads(json.dumps(baseline.to_settings())))
    assert again == baseline
    assert np.isfinite(baseline.energies).all()
    assert list(baseline.numbers) == sorted({int(z) for s in structures for z in s.numbers_n})
    assert all(structures[i].n_atoms == 1 for i in set(range(6)) - set(keep.tolist()))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_least_squares_leaves_residuals_orthogonal_to_compositions(seed):
    rng = np.random.default_rng(seed)
    structures = [
        made(rng.choice([1, 6, 8], rng.integers(2, 9)), 10 * rng.normal(), rng.uniform(0.1, 1.0))
        for _ in range(12)
    ]
    baseline, _ = fit_composition(structures, CUTOFF)
    gradient_z = np.zeros(3)
    for s in structures:
        fraction_z = np.array([np.mean(s.numbers_n == z) for z in (1, 6, 8)])
        residual = (s.energy - baseline.energy_of(s.numbers_n)) / s.n_atoms
        gradient_z += fraction_z * residual / s.sigma_energy**2
    np.testing.assert_allclose(gradient_z, 0.0, atol=1e-9)
