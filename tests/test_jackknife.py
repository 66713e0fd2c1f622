"""How much structures pull at a fit: scores, and the infinitesimal jackknife made of them."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

from kernelpot import KernelPotential, PairSplines, Soap, load
from kernelpot.conventions import LABEL_KINDS
from kernelpot.data import structures_from_atoms
from kernelpot.jackknife import MOST_SCORES, folded, structure_score
from kernelpot.label_rows import label_rows
from kernelpot.options import effective_noise
from kernelpot.structure_prediction import evaluate_structure, variances_of
from tests.conftest import alloy, label

SIGMAS = {"sigma_energy": 2e-3, "sigma_forces": 0.05, "sigma_stress": 1e-3}


def copied(images):
    result = [atoms.copy() for atoms in images]
    for new, old in zip(result, images, strict=True):
        new.calc = old.calc
    return result


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    images = [label(alloy(rng)) for _ in range(14)]
    for k, atoms in enumerate(images):
        atoms.info["source"] = "ab"[k % 2]
    return images


@pytest.fixture(scope="module")
def model(data):
    """Two processes, one of them linear, two sources, forces that count more."""
    descriptors = [Soap(cutoff=4.0, n_max=3, l_max=2), PairSplines(cutoff=4.5)]
    return KernelPotential(
        descriptors, n_environments=10, n_tangents=4, force_priority=2.0, random_state=1
    ).fit(data)


def test_a_score_is_the_sum_of_rows_times_residuals(model, data):
    """Naive twin: all rows of a structure, and their residuals by the weights."""
    fitted = model.fitted_
    noise = effective_noise(fitted.noise, fitted.force_priority)
    weights_m = fitted.posterior().weights()
    structures = structures_from_atoms(data[:4], *model._labels())
    structures[1].forces_nc[2, 1] = np.nan  # a force component without label
    structures[2].stress_v[:] = np.nan
    for structure in structures:
        expected_m = np.zeros(fitted.known.n_columns)
        for rows in label_rows(structure, fitted.known):
            A_rm = np.zeros((len(rows.y_r), fitted.known.n_columns))
            A_rm[:, A_rm.shape[1] - rows.A_rm.shape[1] :] = rows.A_rm
            residual_r = rows.y_r - A_rm @ weights_m
            expected_m += A_rm.T @ (residual_r / (noise[rows.label] * rows.sigma_r) ** 2)
        energy, forces_nc, stress_v, _ = evaluate_structure(model.predictor_, structure)
        energy += fitted.shifts.energy_of(structure.source, structure.numbers_n)
        errors = (
            energy - structure.energy,
            forces_nc - structure.forces_nc,
            stress_v - structure.stress_v,
        )
        found_m = structure_score(fitted, structure, *errors)
        assert_allclose(found_m, expected_m, rtol=1e-6, atol=1e-6 * np.abs(expected_m).max())


def test_the_jackknife_is_the_derivative_by_the_weight_of_each_structure(data):
    """Against fits in which one structure counts a little more."""
    images = copied(data[:8])
    for atoms in images:
        del atoms.info["source"]
    # Free atoms decide the baseline, which would move with the weights otherwise.
    images += [label(Atoms(symbol, cell=[12.0] * 3, pbc=True)) for symbol in ("Cu", "Au")]
    soap = Soap(cutoff=4.0, n_max=3, l_max=2)
    given = {**SIGMAS, "n_environments": 12, "n_tangents": 4, "delta": 2.0, "core_repulsion": False}
    given |= {"feature_tolerance": 0.0}
    model = KernelPotential(soap, **given).fit(images)
    new = structures_from_atoms(data[8:10], *model._labels())
    step, moved = 1e-4, []
    for s in range(8):
        changed = []
        for weight in (1.0 + step, 1.0 - step):
            images[s].info["config_weight"] = weight
            changed.append(KernelPotential(soap, **given).fit(images).predict(data[8:10]))
        del images[s].info["config_weight"]
        more, less = changed
        moved.append(
            {
                kind: [
                    np.atleast_1d(a - b) / (2.0 * step)
                    for a, b in zip(getattr(more, kind), getattr(less, kind), strict=True)
                ]
                for kind in LABEL_KINDS
            }
        )
    for s, one in enumerate(new):
        found = variances_of(model.predictor_, one, LABEL_KINDS, jackknife=True)
        for kind in LABEL_KINDS:
            expected = sum(of[kind][s] ** 2 for of in moved)
            assert_allclose(found[kind].jackknife, expected, rtol=2e-2)


def test_scores_of_many_structures_keep_the_expectation():
    rng = np.random.default_rng(0)
    scores_mj = rng.standard_normal((40, 3000))
    few = folded([scores_mj[:, :100], scores_mj[:, 100:200]])
    assert_allclose(few, scores_mj[:, :200], rtol=0)
    parts = np.split(scores_mj, 10, axis=1)
    at_once, one_by_one = folded([scores_mj]), scores_mj[:, :0]
    for part in parts:
        one_by_one = folded([one_by_one, part])
    blocks = folded([folded([part]) for part in np.split(scores_mj, 3, axis=1)])
    expected = np.sum(scores_mj**2)
    for found in (at_once, one_by_one, blocks):
        assert found.shape == (40, MOST_SCORES)
        assert np.sum(found**2) == pytest.approx(expected, rel=0.05)
    assert np.array_equal(at_once, folded([scores_mj]))


def test_scores_are_saved_and_added_to(model, data, tmp_path):
    model.save(tmp_path / "model.kpot")
    again = load(tmp_path / "model.kpot")
    (one,) = structures_from_atoms(data[:1], *model._labels())
    a, b = (
        variances_of(m.predictor_, one, ["forces"], jackknife=True)["forces"].jackknife
        for m in (model, again)
    )
    assert np.array_equal(a, b)
    assert np.all(variances_of(again.predictor_, one, ["forces"])["forces"].jackknife == 0.0)
    assert again.partial_fit(data[:2]).fitted_.scores_mj.shape[1] == len(data) + 2
    # A model of a file that has none knows of none.
    without = load(tmp_path / "model.kpot")
    without.fitted_ = without.fitted_._replace(scores_mj=None)
    assert without.partial_fit(data[:2]).fitted_.scores_mj is None
    assert without.calibrate(data[2:6]).calibration_.scale_of("forces").scale_t[2:] == (0.0, 0.0)
