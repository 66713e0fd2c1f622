"""Settings chosen by the data."""

import math
import time

import numpy as np
import pytest

from kernelpot import KernelPotential, Soap, datasets, load
from kernelpot.automatic import _affordable, _by_cost, _final_settings, _no_full_basis
from kernelpot.data import structures_from_atoms
from kernelpot.descriptors import ShiftedCosine, Willatt
from kernelpot.race import Race, Trial, race, score
from kernelpot.terms.composition import is_isolated
from kernelpot.variations import (
    apply,
    first_settings,
    nearest_distance,
    steps,
    suits_full_basis,
    variations,
)


def fake(errors, settings, n=25, **changes):
    entries = {
        "change": "", "settings": settings, "n_structures": n, "n_inducing": 400,
        "errors": errors, "unknown": {}, "score": score(errors, {}, n), "log_evidence": 0.0,
        "seconds": 1.0, "us_per_atom": 10.0,
        "stages": {
            "selection": 0.1, "environments": 0.1, "hyperparameters": 0.5, "covariance": 1.3,
        },
    }  # fmt: skip
    return Trial(**(entries | changes))


@pytest.fixture(scope="module")
def silicon():
    return structures_from_atoms(datasets.load_silicon("train"))


@pytest.fixture(scope="module")
def ethanol():
    return structures_from_atoms(datasets.load_ethanol("train")[:40])


def predict(images):
    """What fits to structures take."""
    return KernelPotential(Soap(cutoff=4.0, n_max=4, l_max=3), n_tangents=20).estimate_fit(images)


def quiet(stage, done, total):
    assert 0 <= done <= total


def test_the_length_scale_is_that_of_the_data(silicon, ethanol):
    assert 2.2 < nearest_distance(silicon) < 2.7
    assert 1.0 < nearest_distance(ethanol) < 1.2
    assert math.isnan(nearest_distance([s for s in silicon if is_isolated(s, 6.0)]))
    assert first_settings(silicon)["basis"] == "sparse"
    assert first_settings(ethanol)["basis"] == "full"
    assert not suits_full_basis(ethanol[:5])


def test_changes_are_made_where_they_belong():
    settings = {"descriptor": Soap(cutoff=5.0, sigma=0.4), "zeta": 4, "basis": "sparse"}
    for words, change in variations(settings):
        new = apply(settings, change)
        assert repr(new) != repr(settings), words
        new["descriptor"].validate()
        assert set(new) == set(settings)
    assert apply(settings, {"zeta": 2})["descriptor"] is settings["descriptor"]
    assert apply(settings, {"sigma": 0.3})["descriptor"].sigma == 0.3
    assert settings["descriptor"].sigma == 0.4


def test_steps_are_small_and_valid():
    tight = Soap(
        cutoff=1.5, sigma=0.4, smoothing=ShiftedCosine(width=1.4), scaling=Willatt(exponent=1.5)
    )
    for soap in (Soap(), tight, Soap(smoothing=None, scaling=None)):
        settings = {"descriptor": soap, "zeta": 2, "basis": "sparse"}
        found = steps(settings)
        for pair in found:
            for step in pair:
                if step is None:
                    continue
                new = apply(settings, step[1])
                new["descriptor"].validate()
                assert repr(new) != repr(settings)
                assert len(steps(new)) == len(found)
        up, down = found[1]
        assert up == ("zeta 3", {"zeta": 3})
        assert down is None


def test_the_descriptors_of_a_sum_change_together():
    both = [Soap(sigma=0.4, centre_similarity=1.0), Soap(sigma=0.4)]
    settings = {"descriptor": both, "zeta": 4, "basis": "sparse"}
    found = steps(settings)
    assert len(found) == len(steps({**settings, "descriptor": both[1]}))
    up, _ = found[0]
    new = apply(settings, up[1])["descriptor"]
    assert [soap.sigma for soap in new] == [0.46, 0.46]
    assert [soap.centre_similarity for soap in new] == [1.0, None]
    assert [soap.sigma for soap in both] == [0.4, 0.4]
    trial = fake({"forces": 0.1}, settings).describe()
    assert [soap["sigma"] for soap in trial["settings"]["descriptor"]] == [0.4, 0.4]


def test_small_steps_find_the_least_error(silicon):
    """A made-up error whose least value lies between the settings that race."""

    def run(settings, indices, heat):
        soap, scaling = settings["descriptor"], settings["descriptor"].scaling
        radius = soap.cutoff / 2 if scaling.radius is None else scaling.radius
        error = 0.1 + abs(math.log(soap.sigma / 0.55)) + abs(math.log(radius / 3.7))
        error += 0.05 * abs(settings["zeta"] - 7)
        return fake({"energy": error, "forces": error}, settings, len(indices))

    told = []
    found = race(
        12 * [s for s in silicon if s.periodic], without_none(run), deadline=math.inf,
        random_state=0, tell=lambda stage, done, total: told.append((stage, done <= total)),
    )  # fmt: skip
    soap = found.winner.settings["descriptor"]
    assert 0.5 < soap.sigma < 0.6
    assert 3.3 < (soap.scaling.radius or soap.cutoff / 2) < 4.1
    assert found.winner.settings["zeta"] == 7
    assert found.winner is min(found.trials, key=lambda t: (t.score, -t.n_structures))
    assert "zeta 7" in found.winner.change
    assert ("steps", True) in told
    assert all(within for _, within in told)


def without_none(run):
    """No scaling at all has no radius to judge by."""

    def judged(settings, indices, heat):
        if settings["descriptor"].scaling is None:
            return fake({"energy": 9.0, "forces": 9.0}, settings, len(indices))
        return run(settings, indices, heat)

    return judged


def test_the_better_setting_wins(silicon):
    """Judge by a made-up error that has its least value at sigma 0.3 and zeta 2."""
    heats = []

    def run(settings, indices, heat):
        heats.append((heat, len(indices)))
        soap = settings["descriptor"]
        error = 0.1 + abs(soap.sigma - 0.3) + 0.02 * abs(settings["zeta"] - 2)
        return fake({"energy": error, "forces": error}, settings, len(indices))

    found = race(12 * silicon, run, deadline=math.inf, random_state=0, tell=quiet)
    assert found.winner.settings["descriptor"].sigma == 0.3
    assert found.winner.settings["zeta"] == 2
    assert "less error" in found.reason
    assert {heat for heat, _ in heats} == {0, 1}
    assert max(n for heat, n in heats if heat == 0) < max(n for heat, n in heats if heat == 1)


def test_more_structures_where_there_is_time(ethanol):
    """Trials of a second, in the full basis."""
    sizes = {}
    for seconds in (1.0, 300.0, 1e6):
        heats = [set(), set()]

        def run(settings, indices, heat, heats=heats):
            heats[heat].add(len(indices))
            return fake({"energy": 0.1, "forces": 0.1}, settings, len(indices))

        deadline = time.perf_counter() + seconds
        race(20 * ethanol, run, deadline=deadline, random_state=0, tell=quiet)
        sizes[seconds] = heats
    assert all(first == {77} for first, _ in sizes.values())
    second = {seconds: min(found[1]) for seconds, found in sizes.items()}
    assert second[1.0] == 155  # 1400 atoms, nine in each molecule
    assert 155 < second[300.0] < second[1e6] == 311
    last = {seconds: max(found[1]) for seconds, found in sizes.items()}
    assert last[1.0] == 155
    assert last[1e6] == 16000 // 28


def test_what_is_best_with_few_molecules_may_not_be_with_many(ethanol):
    """A made-up error of the coarsest descriptor that stops falling with the structures."""

    def run(settings, indices, heat):
        coarse = settings["descriptor"].n_max == 6
        error = 0.8 / min(len(indices), 400) if coarse else 1.0 / len(indices)
        error *= 1.0 if settings["zeta"] == 4 else 1.5
        return fake({"energy": error, "forces": error}, settings, len(indices))

    found = {}
    for seconds in (20.0, 1e6):
        deadline = time.perf_counter() + seconds
        found[seconds] = race(20 * ethanol, run, deadline=deadline, random_state=0, tell=quiet)
    assert found[20.0].winner.settings["descriptor"].n_max == 6
    assert found[1e6].winner.change == "start"
    assert found[1e6].winner.n_structures == 16000 // 28
    assert "no change" in found[1e6].reason


@pytest.mark.parametrize(("gain", "n_max"), [(1.0, 8), (0.9, 10)])
def test_a_finer_resolution_proves_itself_in_the_last_heat(gain, n_max, ethanol):
    """A made-up error: of the first heats the finest is the worst."""

    def run(settings, indices, heat):
        error = 1.0 / len(indices)
        if settings["descriptor"].n_max == 10:
            error *= gain if len(indices) > 400 else 2.0
        return fake({"energy": error, "forces": error}, settings, len(indices))

    deadline = time.perf_counter() + 1e6
    found = race(20 * ethanol, run, deadline=deadline, random_state=0, tell=quiet)
    assert found.winner.settings["descriptor"].n_max == n_max
    assert found.winner.n_structures == 16000 // 28


def test_noise_changes_nothing(silicon):
    rng = np.random.default_rng(0)

    def run(settings, indices, heat):
        error = 0.1 * (1.0 + 1e-3 * rng.standard_normal())
        return fake({"energy": error, "forces": error}, settings)

    found = race(silicon, run, deadline=math.inf, random_state=0, tell=quiet)
    assert found.winner.change == "start"
    assert "no change" in found.reason


def test_a_race_out_of_time_still_has_a_winner(silicon):
    def run(settings, indices, heat):
        return fake({"forces": 0.1}, settings)

    found = race(silicon, run, deadline=0.0, random_state=0, tell=quiet)
    assert len(found.trials) == 1
    assert found.winner is found.trials[0]


def test_scores():
    assert score({"energy": 1.0, "forces": 1.0}, {}, 30) == pytest.approx(0.0)
    assert score({"stress": math.e}, {}, 30) == pytest.approx(1.0)
    assert score({"energy": math.e}, {}, 30) == pytest.approx(1.0)
    better = {"energy": 0.01, "forces": 0.09}
    assert score(better, {}, 300) < score({"energy": 0.01, "forces": 0.1}, {}, 300)
    # Few energies count less than many.
    worse = {"energy": 0.02, "forces": 0.09}
    assert score(worse, {}, 20) - score(better, {}, 20) < score(worse, {}, 300) - score(
        better, {}, 300
    )
    assert math.isfinite(score({"energy": 0.0}, {}, 10))


def test_budgets(silicon, ethanol):
    sparse = {"basis": "sparse", "descriptor": Soap()}
    trials = [
        fake({"forces": 0.1}, {**sparse, "n_environments": 40}, us_per_atom=10.0),
        fake({"forces": 0.1}, {**sparse, "n_environments": 80}, us_per_atom=14.0),
    ]
    assert _by_cost(trials, 18.0) == 120
    assert _by_cost(trials[:1], 20.0) == 80
    assert _by_cost(trials, 1.0) == 1
    found = Race(tuple(trials), trials[1], "")
    predicted = predict(datasets.load_silicon("train"))
    least, reason = _affordable(found, predicted, silicon, 0.0, None)
    many, _ = _affordable(found, predicted, silicon, 1e9, None)
    assert least == 30 < many
    assert "time" in reason
    tight = predicted._replace(options=predicted.options._replace(memory=1e8))
    least, reason = _affordable(found, tight, silicon, 1e9, None)
    assert least == 30
    assert "memory" in reason
    both = trials[1].settings | {"descriptor": [Soap(), Soap(cutoff=6.0)]}
    winner = trials[1]._replace(settings=both)
    half, _ = _affordable(Race((), winner, ""), predicted, silicon, 1e9, None)
    assert many / 3 < half < many
    cheap, reason = _affordable(found, predicted, silicon, 1e9, 11.0)
    assert cheap <= 50
    assert "us/atom" in reason
    full = fake({"forces": 0.1}, {"basis": "full"}, n=20)
    assert _no_full_basis(full, ethanol, 1e6, None) is None
    assert "s are left" in _no_full_basis(full, ethanol, 1.0, None)
    assert "us/atom" in _no_full_basis(full, ethanol, 1e6, 5.0)
    assert "GB" in _no_full_basis(full._replace(jacobians=1e15), ethanol, 1e6, None)


def test_a_coarser_descriptor_saves_the_full_basis(ethanol):
    """The race's winner would take too long with all structures, the runner-up does not."""
    costly = fake({"forces": 0.10}, {"basis": "full", "zeta": 4}, n=20, change="start")
    coarse = fake({"forces": 0.11}, {"basis": "full", "zeta": 2}, n=20, change="coarser")
    costly = costly._replace(stages=costly.stages | {"covariance": 50.0})
    found = Race((costly, coarse), costly, "")

    def run(settings, indices, heat):
        covariance = 1.0 if settings["feature_tolerance"] == light else 50.0
        return costly._replace(settings=settings, stages=costly.stages | {"covariance": covariance})

    for light, words in ((1e-5, "1e-05"), (1e-4, "0.0001")):
        settings, why = _final_settings(found, run, None, ethanol, 60.0, None)
        assert settings == {"basis": "full", "zeta": 4, "feature_tolerance": light}
        assert any(f"start, feature_tolerance {words} instead" in line for line in why)
    light = None
    settings, why = _final_settings(found, run, None, ethanol, 60.0, None)
    assert settings == {"basis": "full", "zeta": 2}
    assert any("coarser instead" in line and "s are left" in line for line in why)


@pytest.mark.parametrize("full", [False, True])
def test_an_automatic_fit(full, emt_images, tmp_path):
    images = emt_images[:10] if not full else emt_images[30:]
    model = KernelPotential.auto(images, time_budget=60.0 if full else 6.0, random_state=1)
    assert model.basis == ("full" if full else "sparse")
    assert model.score(images) > 0.8
    assert model.auto_["why"][0].startswith("descriptor: ")
    assert model.auto_["trials"][0]["change"] == "start"
    assert model.auto_["trials"][0]["errors"]["forces"] > 0
    model.save(tmp_path / "auto.kpot")
    assert load(tmp_path / "auto.kpot").auto_ == model.auto_


def test_molecules_too_dear_in_the_full_basis_keep_to_the_cost(ethanol):
    """The cost was forgotten where the race had been in the full basis."""
    settings = {"basis": "full", "zeta": 4, "descriptor": Soap()}
    full = fake({"forces": 0.1}, settings, n=20, us_per_atom=500.0)

    def run(settings, indices, heat):
        if settings["basis"] == "full":
            return full._replace(settings=settings)
        size = {"n_environments": (40, 100)[heat]}
        return fake({"forces": 0.1}, {**settings, **size}, us_per_atom=(10.0, 22.0)[heat])

    found = Race((full,), full, "")
    predicted = predict(20 * datasets.load_ethanol("train")[:40])
    settings, why = _final_settings(found, run, lambda _: predicted, 20 * ethanol, 1e9, 20.0)
    assert settings["basis"] == "sparse"
    assert settings["n_environments"] <= 90
    assert "20 us/atom" in why[-1]


def test_wrong_budgets_are_explained(emt_images):
    with pytest.raises(ValueError, match="time_budget must be positive"):
        KernelPotential.auto(emt_images, time_budget=0.0)
    with pytest.raises(ValueError, match="cost must be positive"):
        KernelPotential.auto(emt_images, cost=-1.0)
