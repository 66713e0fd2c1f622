"""Learning how alike species are."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernelpot import KernelPotential, Soap
from kernelpot.data import structures_from_atoms
from kernelpot.descriptors import Willatt
from kernelpot.descriptors._mixing import channels_of
from kernelpot.race import Race, Trial, score
from kernelpot.similarity import SCATTER, channels, learn_similarity, nearest_similarity
from kernelpot.similarity_search import _alternatives, learn_species
from kernelpot.trials import HEATS, runner
from kernelpot.variations import apply
from tests.test_species_mixing import crystals

TRUE = np.array([[1.0, 0.97, 0.5], [0.97, 1.0, 0.5], [0.5, 0.5, 1.0]])


def quiet(stage, done, total):
    assert stage in ("species", "steps")
    assert 0 <= done <= total


def distance(similarity_zz):
    """A made-up error: by how much the logarithm of the dissimilarity is wrong."""
    i, j = np.triu_indices(3, 1)
    unlike, wanted = 1.0 - similarity_zz[i, j], 1.0 - TRUE[i, j]
    return float(np.sum(np.abs(np.log((unlike + 0.01) / (wanted + 0.01)))))


@pytest.mark.parametrize("favourite", [0.0, 0.95])
def test_pairs_are_told_apart(favourite):
    tried = []

    def judge(words, alike):
        tried.append(words)
        if alike.common:
            return 100.0
        assert np.linalg.eigvalsh(alike.neighbours_zz).min() > -1e-9
        return distance(alike.neighbours_zz) + abs((alike.centres or 0.0) - favourite)

    found, centres, common = learn_similarity(
        (41, 42, 74), judge, start=0.0, deadline=math.inf, tell=quiet
    )
    assert not common
    assert distance(found) < 0.5 * min(
        distance(np.full((3, 3), s) + (1 - s) * np.eye(3)) for s in (0.0, 0.5, 0.8, 0.9, 0.95)
    )
    assert found[0, 1] > 0.9 > found[0, 2]
    assert (centres or 0.0) == favourite
    assert any(words.startswith("Nb and Mo alike by 0.9") for words in tried)


def test_noise_changes_no_pair():
    rng = np.random.default_rng(0)

    def judge(words, alike):
        return float(1e-3 * rng.standard_normal())

    found, centres, common = learn_similarity(
        (1, 6, 8), judge, start=0.0, deadline=math.inf, tell=quiet
    )
    assert centres is None
    assert not common
    assert len(np.unique(found[np.triu_indices(3, 1)].round(9))) == 1


@pytest.mark.parametrize(("gain", "wanted"), [(0.9 * SCATTER, False), (1.1 * SCATTER, True)])
def test_a_second_process_must_be_worth_its_cost(gain, wanted):
    """Made-up errors: best with centres alike by 0.95 alone, by 0.9 beside what is common."""

    def judge(words, alike):
        best = (0.9, 0.9) if alike.common else (0.9, 0.95)
        here = (alike.neighbours_zz[0, 1], 0.0 if alike.centres is None else alike.centres)
        return math.dist(here, best) - gain * alike.common

    found = learn_similarity((41, 42, 74), judge, start=0.0, deadline=math.inf, tell=quiet)
    assert found.common == wanted
    assert found.centres == (0.9 if wanted else 0.95)


def test_out_of_time():
    """A similarity that the race had chosen was lost: the first to be tried was none."""
    found = learn_similarity((1, 6), lambda words, s: 0.0, start=0.0, deadline=0.0, tell=quiet)
    np.testing.assert_array_equal(found.neighbours_zz, np.eye(2))
    found = learn_similarity((1, 6), lambda words, s: 0.0, start=0.9, deadline=0.0, tell=quiet)
    np.testing.assert_allclose(found.neighbours_zz, [[1.0, 0.9], [0.9, 1.0]])
    assert found.centres is None


@given(arrays(float, (4, 4), elements=st.floats(-0.2, 1.0)))
def test_the_nearest_similarity_is_one(matrix):
    matrix = 0.5 * (matrix + matrix.T)
    np.fill_diagonal(matrix, 1.0)
    found = nearest_similarity(matrix)
    np.testing.assert_allclose(np.diag(found), 1.0, atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > -1e-10
    np.testing.assert_allclose(nearest_similarity(found), found, atol=1e-9)


def test_channels_reproduce_the_similarity():
    species = (41, 42, 74)
    weights = channels_of(channels(nearest_similarity(TRUE), species), species)
    np.testing.assert_allclose(weights.T @ weights, TRUE, atol=1e-5)
    # Two species that are the same need no channel to tell them apart.
    same = np.ones((3, 3))
    same[2, :2] = same[:2, 2] = 0.3
    assert channels_of(channels(same, species), species).shape == (2, 3)


@pytest.fixture(scope="module")
def alloys():
    kinds = [("Cu",), ("Ag", "Au"), ("Cu", "Ag"), ("Cu", "Au")]
    return [atoms for k, symbols in enumerate(kinds) for atoms in crystals(symbols, 7, k)]


def test_errors_on_structures_and_on_systems_count_alike():
    known, unknown = {"energy": 0.004, "forces": 0.09}, {"energy": 4.0, "forces": 0.2}
    assert score(known, {}, 200) == pytest.approx(math.log(0.004**0.5 * 0.09) / 1.5)
    assert score(known, unknown, 200) == pytest.approx(math.log(0.004 * 0.09 * 0.2) / 3.0)
    # Few energies say little; those of systems count where there are no forces.
    assert score(known, unknown, 50) == pytest.approx(math.log(0.004**0.25 * 0.09 * 0.2) / 2.25)
    energies = {"energy": 0.004}, {"energy": 4.0}
    assert score(*energies, 200) == pytest.approx(math.log(0.004 * 4.0) / 2.0)


def test_what_the_race_changed_has_to_prove_itself():
    first = {"descriptor": Soap(cutoff=5.0, n_max=8, l_max=6, n_contracted=16), "zeta": 4}
    assert _alternatives(first, first) == []
    assert _alternatives(apply(first, {"species_mixing": 0.9}), first) == []
    shorter = apply(first, {"scaling": Willatt(radius=2.0, exponent=4.0)})
    tried = dict(_alternatives(shorter, first))
    assert [change["scaling"] for change in tried.values()] == [
        Soap(cutoff=5.0, n_max=8, l_max=6).scaling, Willatt(exponent=4.0), None,
    ]  # fmt: skip
    both = apply(shorter, {"zeta": 2, "n_max": 6, "l_max": 4, "n_contracted": 12})
    names = [set(change) for _, change in _alternatives(both, first)]
    resolution = {"n_max", "l_max", "n_contracted"}
    assert names == [resolution] * 2 + [{"scaling"}] * 3 + [{"zeta"}] * 2
    # Of a sum, all descriptors have them in common.
    common = {**both, "descriptor": [both["descriptor"], both["descriptor"]]}
    assert _alternatives(common, first) == _alternatives(both, first)


def made_up(settings, indices, heat):
    """Errors of systems that depend on the similarities alone, and on the scaling."""
    descriptor = settings["descriptor"]
    soap = descriptor[-1] if isinstance(descriptor, list) else descriptor
    off = 0.9 * (soap.centre_similarity is None) + 1.5 * (soap.scaling != WANTED)
    off += 0.6 * (not isinstance(descriptor, list)) + 0.3 * (settings["zeta"] - 3) ** 2
    known, unknown = {"energy": 0.01, "forces": 0.1}, {"forces": 0.1 * math.exp(off)}
    judged = score(known, unknown, len(indices))
    sizes = HEATS[heat]
    return Trial(
        "", {**settings, **sizes}, len(indices), 1, known, unknown, judged, 0.0, 1.0, 1.0, {}
    )


WANTED = Willatt(exponent=4.0)


def test_similarity_then_what_the_race_changed_then_numbers(alloys):
    images = [atoms for atoms in alloys for _ in range(6)]
    structures = structures_from_atoms(images)
    soap = Soap(cutoff=4.5, n_max=4, l_max=2)
    settings = {"descriptor": soap, "basis": "sparse", "zeta": 4}
    start = made_up(settings, range(25), 1)._replace(change="start")
    shorter = apply(start.settings, {"scaling": Willatt(radius=1.8, exponent=4.0)})
    winner = made_up(shorter, range(25), 1)._replace(change="shorter")
    seen = []

    def run(settings, indices, heat):
        seen.append((len(indices), heat))
        return made_up(settings, indices, heat)

    race, why = learn_species(
        Race((start, winner), winner, ""), run, structures,
        deadline=time.perf_counter() + 600.0, random_state=0, tell=quiet,
    )  # fmt: skip
    assert "what all have in common" in why[0]
    assert "unlike centres" in why[0]
    for trial, heat in zip(race.trials[-2:], HEATS, strict=True):
        common, one = trial.settings["descriptor"]
        assert one.scaling == common.scaling == WANTED
        assert trial.settings["zeta"] == 3
        assert common.species_mixing == common.centre_similarity == 1.0
        assert trial.settings["n_environments"] == heat["n_environments"]
    assert race.winner is race.trials[-1]
    # As many structures as time allows, the winner at last on those of the race.
    assert set(seen[:-1]) == {(len(structures), 0)}
    assert seen[-1] == (25, 1)
    # All that was tried is told, once.
    assert len(race.trials) == len(seen) + 2


def test_there_is_nothing_to_learn_of_two_species_or_without_time(alloys):
    settings = {"descriptor": Soap(cutoff=4.5, n_max=4, l_max=2), "basis": "sparse", "zeta": 4}
    start = made_up(settings, range(7), 1)
    for images, seconds in ((alloys[:14], 600.0), (alloys, -1.0)):
        race, why = learn_species(
            Race((start,), start, ""), None, structures_from_atoms(images),
            deadline=time.perf_counter() + seconds, random_state=0, tell=quiet,
        )  # fmt: skip
        assert race.winner is start
        assert why == []


def test_the_similarity_of_alloys_is_learned(alloys):
    soap = Soap(cutoff=4.5, n_max=4, l_max=3, n_contracted=6)
    settings = {"descriptor": soap, "basis": "sparse", "zeta": 4}
    structures = structures_from_atoms(alloys)
    run = runner(lambda settings: KernelPotential(**settings), alloys, structures)
    start = run(settings, range(len(alloys)), 0)._replace(change="start")
    found, why = learn_species(
        Race((start,), start, ""), run, structures,
        deadline=time.perf_counter() + 40.0, random_state=0, tell=quiet,
    )  # fmt: skip
    assert "Au-Cu" in why[0] or "Cu-Au" in why[0] or "Ag-Cu" in why[0]
    similarities = found.trials[1:-1]
    scores = {trial.change: trial.score for trial in similarities}
    # Species are alike, and that tells what no structure does.
    assert min(scores.values()) < scores["all species alike by 0"] - 0.2
    for trial in similarities:
        assert trial.score == score(trial.errors, trial.unknown, len(alloys))
    # No trial is better by more than scatter.
    assert similarities[-1].score < min(scores.values()) + SCATTER
    descriptor = found.winner.settings["descriptor"]
    soap = descriptor[-1] if isinstance(descriptor, list) else descriptor
    assert set(soap.species_mixing) == {"Cu", "Ag", "Au"}
    assert repr(similarities[-1].settings["descriptor"]) == repr(descriptor)
