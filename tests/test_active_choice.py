"""What is labelled of the candidates that explorers have met."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from numpy.testing import assert_allclose

import kernelpot.active.choice as choice
from kernelpot import Calculator
from kernelpot.active.choice import Wishes, choose, expected_error
from kernelpot.active.records import Candidate
from tests.active_run import small_model
from tests.conftest import alloy


@pytest.fixture(scope="module")
def known(emt_images):
    return small_model().fit(emt_images[:12]).calibrate(emt_images[12:24])


def candidate(atoms, reason="novelty", score=np.nan):
    return Candidate(atoms, "dynamics", 0, reason, score)


def new_ones(n, amplitude=0.4):
    return [alloy(np.random.default_rng(100 + k), amplitude=amplitude) for k in range(n)]


def test_scores_are_expected_errors_over_the_threshold(known):
    images = new_ones(6)
    expected = [expected_error(Calculator(known), atoms).max() for atoms in images]
    threshold = 0.5 * min(expected)
    found = choose([candidate(one) for one in images], known, 3, threshold=threshold, n_looked=6)
    assert len(found) == 3
    of_image = {id(atoms): error for atoms, error in zip(images, expected, strict=True)}
    for one, information in found:
        assert one.score == pytest.approx(of_image[id(one.atoms)] / threshold, rel=1e-6)
        assert information > 0.0
    # Those below it are no candidates, but for what is given.
    threshold = 2.0 * max(expected)
    everything = [candidate(one) for one in images]
    assert choose(everything, known, 3, threshold=threshold, n_looked=6) == []
    everything[4] = everything[4]._replace(reason="given")
    (found,) = choose(everything, known, 3, threshold=threshold, n_looked=6)
    assert found[0].atoms is images[4]


def test_large_structures_are_chosen_by_factors(known, monkeypatch):
    """Without their joint covariance; their scores are the same."""
    everything = [candidate(one) for one in new_ones(5)]
    dense = choose(everything, known, 5, threshold=1e-6, n_looked=5)
    monkeypatch.setattr(choice, "_DENSE", 0)
    open_alone = choose(everything, known, 5, threshold=1e-6, n_looked=5)
    scores = [{id(one.atoms): one.score for one, _ in found} for found in (dense, open_alone)]
    both = scores[0].keys() & scores[1].keys()
    assert len(both) >= 3
    assert_allclose([scores[0][k] for k in both], [scores[1][k] for k in both], rtol=1e-6)


@pytest.mark.parametrize("dense", [1200, 0])
def test_what_is_no_structure_any_more_is_passed_over(known, monkeypatch, dense):
    monkeypatch.setattr(choice, "_DENSE", dense)
    exploded, stacked, stranger = new_ones(3)
    exploded.positions[0] = np.nan
    stacked.positions[1] = stacked.positions[0]
    stranger.numbers[0] = 2
    good = new_ones(5)[3:]
    everything = [candidate(one) for one in (exploded, good[0], stacked, stranger, good[1])]
    found = choose(everything, known, 9, threshold=1e-6, n_looked=9)
    assert {id(one.atoms) for one, _ in found} <= {id(one) for one in good}
    assert found
    assert choose(everything[:1], known, 9, threshold=1e-6, n_looked=9) == []
    typical = [candidate(one, "typical", 0.0) for one in (exploded, *new_ones(7)[5:])]
    found = choose(everything, known, 2, threshold=1e-6, n_looked=9, typical=typical)
    assert len(found) == 2
    assert all(np.isfinite(one.atoms.positions).all() for one, _ in found)


def test_fewer_structures_are_compared_where_memory_would_not_do(known, monkeypatch):
    """A choice for the mean needs the joint covariance: it takes the square of all numbers."""
    images = new_ones(8)
    largest = 3 * max(len(atoms) for atoms in images)
    seen = []
    covariance_of = choice.covariance_of

    def looking(predictor, structures, kinds):
        seen.append(3 * sum(one.n_atoms for one in structures))
        return covariance_of(predictor, structures, kinds)

    monkeypatch.setattr(choice, "covariance_of", looking)
    everything = [candidate(one) for one in images]
    arguments = {"threshold": 1e-6, "n_looked": 8, "typical": everything}
    assert len(choose(everything, known, 8, **arguments)) == 8
    monkeypatch.setattr(choice, "_MOST", 6 * largest)
    assert choose(everything, known, 8, **arguments)
    assert seen[1] <= 6 * largest < seen[0]


def test_of_new_species_a_few_of_each_kind_are_first(known):
    images = new_ones(6)
    for k, atoms in enumerate(images):
        atoms.numbers[0] = (47, 78)[k % 2]  # silver and platinum
    strange = [candidate(one, "new species") for one in images]
    familiar = [candidate(one) for one in new_ones(3, amplitude=0.6)]
    found = choose([*familiar, *strange], known, 6, threshold=1e-6, n_looked=6)
    assert [one.reason for one, _ in found[:4]] == ["new species"] * 4
    assert found[0][0].atoms is images[0]
    assert found[1][0].atoms is images[2]
    assert len(found) == 6
    assert len(choose(strange, known, 3, threshold=1e-6, n_looked=6)) == 3


def test_nothing_to_choose(known):
    one = candidate(new_ones(1)[0])
    assert choose([], known, 3, threshold=0.1, n_looked=4) == []
    assert choose([one], known, 0, threshold=1e-6, n_looked=4) == []
    assert choose([candidate(Atoms("He"))], known, 3, threshold=1e-6, n_looked=4) == []


@pytest.mark.parametrize("dense", [True, False])
def test_relevance_decides_where_uncertainties_are_below_the_tolerance(known, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(choice, "_DENSE", 0)
    images = [one for one in new_ones(16) if len(one) == 8][:6]  # labels of one cost
    assert len(images) == 6
    everything = [candidate(one) for one in images]
    worth = {one.positions.tobytes(): float(k) for k, one in enumerate(images)}

    def picked(n, wishes):
        found = choose(everything, known, n, threshold=1e-6, n_looked=6, wishes=wishes)
        return [next(k for k, a in enumerate(images) if a is one.atoms) for one, _ in found]

    def relevance(atoms):
        assert np.isfinite(atoms.get_potential_energy())
        return worth[atoms.positions.tobytes()]

    found = picked(6, Wishes(relevance=relevance, tolerance=1e6))
    assert found == sorted(found, reverse=True)  # without those that say the same as a better one
    assert found[0] == 5
    assert len(found) > 2
    found = picked(6, Wishes(relevance=lambda atoms: -relevance(atoms), tolerance=1e6))
    assert found == sorted(found)
    assert found[0] == 0
    assert picked(6, Wishes(relevance=relevance, tolerance=1e-6)) == picked(6, None)


@pytest.mark.parametrize("dense", [True, False])
def test_stresses_make_candidates_and_tell(known, dense, monkeypatch):
    """Crystals at other volumes, without forces, beside rattled ones at the known volume."""
    if not dense:
        monkeypatch.setattr(choice, "_DENSE", 0)
    volumes = [bulk("Cu", a=a, cubic=True) for a in (3.5, 4.0, 4.2)]
    rattled = [bulk("Cu", a=3.8, cubic=True) for _ in range(3)]
    for k, atoms in enumerate(rattled):
        atoms.rattle(0.1, seed=k)
    cluster = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])  # has no stress
    everything = [candidate(one) for one in (*volumes, *rattled, cluster)]
    threshold, area = 1e-4, 500.0
    scores = {}
    for wishes in (Wishes(), Wishes(area=area)):
        found = choose(everything, known, 7, threshold=threshold, n_looked=7, wishes=wishes)
        for one, information in found:
            expected = expected_error(Calculator(known), one.atoms, wishes.area).max()
            assert one.score == pytest.approx(expected / threshold, rel=1e-6)
            assert information > 0.0
        scores[wishes.area] = {id(one.atoms): one.score for one, _ in found}
    # No force acts on their atoms, of which the model is certain.
    assert not any(id(one) in scores[0.0] for one in volumes)
    assert any(id(one) in scores[area] for one in volumes)
    # Beside a threshold that forces are below, it is the volumes alone that are wanted.
    forces = [expected_error(Calculator(known), one.atoms).max() for one in everything]
    wanted = choose(
        everything, known, 7, threshold=1.01 * max(forces), n_looked=7, wishes=Wishes(area=area)
    )
    assert wanted
    assert all(any(one.atoms is kept for kept in (*volumes, *rattled)) for one, _ in wanted)
    assert choose(everything, known, 7, threshold=1.01 * max(forces), n_looked=7) == []


@pytest.mark.parametrize("dense", [True, False])
def test_what_is_most_unsure_goes_first_where_stresses_count(known, dense, monkeypatch):
    """Though frames of dynamics are many, novel, and tell more of forces."""
    if not dense:
        monkeypatch.setattr(choice, "_DENSE", 0)
    frames = [candidate(one, score=90.0) for one in new_ones(20)]
    volumes = [candidate(bulk("Cu", a=a, cubic=True), "stress_error", 2.0) for a in (3.4, 4.3)]
    volumes = [one._replace(origin="rattling") for one in volumes]
    area = 1e4
    scores = [expected_error(Calculator(known), one.atoms, area).max() for one in volumes]
    volumes = [one._replace(score=score / 0.1) for one, score in zip(volumes, scores, strict=True)]
    arguments = {"threshold": 0.1, "n_looked": 6}
    found = choose([*frames, *volumes], known, 3, wishes=Wishes(area=area), **arguments)
    best = max(found, key=lambda pick: pick[0].score)
    assert found[0] is best
    assert found[0][1] > 0.0
    picked = choose([*frames, *volumes], known, 6, wishes=Wishes(area=area), **arguments)
    origins = [one.origin for one, _ in picked]
    assert "rattling" in origins
    picked = choose([*frames, *volumes], known, 6, **arguments)
    assert "rattling" not in [one.origin for one, _ in picked]
