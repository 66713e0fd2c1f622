"""Errors that differ where environments do not."""

from __future__ import annotations

import numpy as np
import pytest

from kernelpot import KernelPotential, Soap
from kernelpot.data import structures_from_atoms
from kernelpot.uncertainty.misspecification import nugget, nuggets_of
from tests.conftest import alloy, label


def directions(rng, n, n_q=3):
    x_nq = rng.normal(size=(n, n_q))
    return x_nq / np.linalg.norm(x_nq, axis=1)[:, None]


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_noise_on_a_smooth_function_is_what_is_left(noise):
    rng = np.random.default_rng(0)
    x_nq = directions(rng, 4000)
    smooth_n = np.sin(3.0 * x_nq[:, 0]) + x_nq[:, 1]
    found = nugget(x_nq, smooth_n + noise * rng.normal(size=4000))
    assert found.nugget == pytest.approx(noise, rel=0.15, abs=0.03)
    assert found.sill == pytest.approx(np.hypot(np.std(smooth_n), noise), rel=0.05)
    assert found.distance < 0.02
    assert 200 <= found.count <= 400


def test_pairs_are_those_of_the_nearest_by_loops():
    rng = np.random.default_rng(1)
    x_nq, error_n = directions(rng, 40), rng.normal(size=40)
    pairs = set()
    nearest = [
        max((j for j in range(40) if j != i), key=lambda j: x_nq[i] @ x_nq[j]) for i in range(40)
    ]
    order = sorted(range(40), key=lambda i: -(x_nq[i] @ x_nq[nearest[i]]))[:30]
    for i in order:
        pairs.add((min(i, nearest[i]), max(i, nearest[i])))
    expected = np.sqrt(np.mean([0.5 * (error_n[i] - error_n[j]) ** 2 for i, j in pairs]))
    found = nugget(x_nq, error_n)
    assert found.nugget == pytest.approx(expected)
    assert found.count == len(pairs)
    assert np.isnan(nugget(x_nq[:1], error_n[:1]).nugget)


def test_a_short_cutoff_is_seen():
    """Of small distortions of one crystal: what is beyond the cutoff looks like noise."""
    rng = np.random.default_rng(5)
    images = [label(alloy(rng, amplitude=0.08, strain=0.01)) for _ in range(60)]
    for atoms in images:
        atoms.calc = atoms.calc  # alloys of copper and gold
    found = {}
    for cutoff in (2.9, 5.0):
        model = KernelPotential(
            Soap(cutoff=cutoff, n_max=4, l_max=3), n_environments=40, n_tangents=6
        ).fit(images)
        structures = structures_from_atoms(images, *model._labels())
        found[cutoff] = nuggets_of(model.fitted_, model.predictor_, structures)
    for number in (29, 79):
        assert found[2.9][number].nugget > 1.5 * found[5.0][number].nugget
        assert 0.0 < found[5.0][number].share < 1.5
    assert nuggets_of(model.fitted_, model.predictor_, []) == {}
