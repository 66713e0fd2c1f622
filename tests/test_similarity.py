"""Learning how alike species are."""

import math
import time

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernelpot import KernelPotential, Soap, left_out_systems
from kernelpot.data import structures_from_atoms
from kernelpot.descriptors import Willatt
from kernelpot.descriptors._mixing import channels_of
from kernelpot.left_out_systems import (
    _alternatives,
    _log_error,
    _without_systems,
    choose_splits,
    learn_species,
)
from kernelpot.race import Race, Trial, score
from kernelpot.similarity import (
    SCATTER,
    channels,
    learn_similarity,
    nearest_similarity,
    system_splits,
)
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


@pytest.mark.parametrize(("gain", "wanted"), [(0.09, False), (0.11, True)])
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


def test_systems_are_left_out_whole(alloys):
    structures = structures_from_atoms(alloys)
    splits = system_splits(structures, range(len(structures)), np.random.default_rng(0))
    assert len(splits) == 3
    assert sorted(s for split in splits for s in split.test) == list(range(28))
    for split in splits:
        assert not set(split.fit) & set(split.test)
        known = {z for s in split.fit for z in structures[s].numbers_n}
        systems = [{tuple(np.unique(structures[s].numbers_n)) for s in part} for part in split]
        assert not systems[0] & systems[1]
        assert known.issuperset(z for system in systems[1] for z in system)
    # Two species, or two systems, say nothing of a third.
    assert system_splits(structures, range(14), np.random.default_rng(0)) == []
    copper = structures_from_atoms([bulk("Cu")] * 5, labels="ignore")
    assert system_splits(copper, range(5), np.random.default_rng(0)) == []


def test_parts_of_the_data_have_systems_left_out_of_their_own(alloys, monkeypatch):
    structures = structures_from_atoms([atoms for atoms in alloys for _ in range(4)])
    n_atoms = sum(s.n_atoms for s in structures)
    monkeypatch.setattr(left_out_systems, "_ATOMS", 0.45 * n_atoms)
    parts = choose_splits(structures, 0)  # what is left has systems too small
    assert len(parts) == 2
    mine = [{s for split in part for s in (*split.fit, *split.test)} for part in parts]
    assert not mine[0] & mine[1]
    assert all(len(part) == 3 for part in parts)
    monkeypatch.undo()
    assert len(choose_splits(structures, 0)) == 1


def test_systems_count_alike_and_as_much_as_structures(alloys):
    structures = structures_from_atoms(alloys)
    splits = system_splits(structures, range(28), np.random.default_rng(0))
    settings = {"descriptor": Soap(cutoff=4.5, n_max=4, l_max=2), "n_environments": 8}
    trial = _without_systems(lambda s: KernelPotential(**s), settings, splits, alloys, structures)
    expected, known = [], []
    for split in splits:
        model = KernelPotential(**settings).fit([alloys[s] for s in split.fit])
        known.append(score(model.leave_out_errors_, len(split.fit)))
        for system in {str(np.unique(structures[s].numbers_n)) for s in split.test}:
            members = [s for s in split.test if str(np.unique(structures[s].numbers_n)) == system]
            predicted = model.predict([alloys[s] for s in members]).forces
            squares = [
                ((f - structures[s].forces_nc) ** 2).ravel()
                for s, f in zip(members, predicted, strict=True)
            ]
            expected.append(np.mean(np.concatenate(squares)))
    assert len(expected) == 4
    unknown = np.mean(0.5 * np.log(expected))
    assert trial.score == pytest.approx(0.5 * (np.mean(known) + unknown), rel=1e-6)
    assert trial.errors["forces"] == pytest.approx(np.sqrt(np.mean(expected)), rel=1e-6)


def test_energies_of_systems_left_out_count_where_there_are_no_forces():
    assert _log_error({"energy": 4.0, "forces": 0.01}) == pytest.approx(math.log(0.1))
    assert _log_error({"energy": 4.0, "stress": 0.01}) == pytest.approx(math.log(2.0))
    # Forces that vanish by symmetry are predicted without error.
    assert _log_error({"forces": 1e-30}) == _log_error({"forces": 1e-10}) == math.log(1e-3)


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


@pytest.mark.parametrize("several", [True, False])
def test_one_process_or_two_is_decided_with_more_structures(several, alloys, monkeypatch):
    images = [atoms for atoms in alloys for _ in range(6)]
    structures = structures_from_atoms(images)
    n_atoms = sum(s.n_atoms for s in structures)
    monkeypatch.setattr(left_out_systems, "_ATOMS", 0.25 * n_atoms)
    monkeypatch.setattr(left_out_systems, "_LAST_ATOMS", n_atoms)
    seen = []

    def made_up(make, settings, splits, images, structures):
        """Centres that are alike help; with many structures, two processes or one."""
        descriptor = settings["descriptor"]
        two = isinstance(descriptor, list)
        soap = descriptor[-1] if two else descriptor
        errors = -0.5 * (soap.centre_similarity is not None)
        many = settings["n_environments"] == HEATS[1]["n_environments"]
        seen.append((many, sum(len(split.fit) for split in splits)))
        if many:
            errors -= 1.0 * (two == several)
        return Trial("", {}, 1, 1, {}, errors, 0.0, 1.0, 1.0, {})

    monkeypatch.setattr(left_out_systems, "_without_systems", made_up)
    settings = {"descriptor": Soap(cutoff=4.5, n_max=4, l_max=2), "basis": "sparse", "zeta": 4}
    start = Trial("start", settings, 25, 1, {}, 0.0, 0.0, 1.0, 1.0, {})
    again = []

    def run(settings, part, heat):
        again.append(settings["descriptor"])
        return start._replace(settings=settings)

    parts = choose_splits(structures, 0)
    _, why = learn_species(
        Race((start,), start, ""), parts, None, run, images, structures,
        deadline=time.perf_counter() + 600.0, random_state=0, tell=quiet,
    )  # fmt: skip
    assert ("what all have in common" in why[0]) == several
    assert all(isinstance(descriptor, list) == several for descriptor in again)
    with_many = [n for many, n in seen if many]
    assert len(with_many) == 2
    assert min(with_many) > max(n for many, n in seen if not many) / len(parts)


def test_the_similarity_of_alloys_is_learned(alloys):
    soap = Soap(cutoff=4.5, n_max=4, l_max=3, n_contracted=6)
    settings = {"descriptor": soap, "basis": "sparse", "zeta": 4}
    start = Trial("start", settings, 25, 1, {}, 0.0, 0.0, 1.0, 1.0, {})
    structures = structures_from_atoms(alloys)

    def make(settings):
        return KernelPotential(**settings)

    parts = choose_splits(structures, 0)
    found, why = learn_species(
        Race((start,), start, ""), parts, make, runner(make, alloys, structures), alloys,
        structures, deadline=time.perf_counter() + 75.0, random_state=0, tell=quiet,
    )  # fmt: skip
    assert "Au-Cu" in why[0] or "Cu-Au" in why[0] or "Ag-Cu" in why[0]
    left_out = [trial for trial in found.trials if trial.change.endswith("systems left out")]
    scores = {trial.change: trial.score for trial in left_out}
    unlike = scores["all species alike by 0; systems left out"]
    assert min(scores.values()) < unlike - 0.2
    descriptor = found.winner.settings["descriptor"]
    soap = descriptor[-1] if isinstance(descriptor, list) else descriptor
    assert set(soap.species_mixing) == {"Cu", "Ag", "Au"}
    alone = {words: score for words, score in scores.items() if "common" not in words}
    apart = min(score for words, score in alone.items() if words.startswith("all species"))
    together = min(score for words, score in scores.items() if words.startswith("unlike centres"))
    # No trial is better by more than scatter.
    chosen = [t.score for t in found.trials if repr(t.settings["descriptor"]) == repr(descriptor)]
    assert chosen[0] < min(scores.values()) + SCATTER
    if soap is descriptor:
        assert (soap.centre_similarity is not None) == (together < apart - SCATTER)
    only_copper = alloys[:7]
    assert choose_splits(structures_from_atoms(only_copper), 0) == []
    same, why = learn_species(
        Race((start,), start, ""), [], make, None, only_copper, structures_from_atoms(only_copper),
        deadline=math.inf, random_state=0, tell=quiet,
    )  # fmt: skip
    assert same.winner is start
    assert why == []
