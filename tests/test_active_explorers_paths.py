"""Relaxation and the nudged elastic band as explorers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms

from kernelpot.active.explorers.barriers import band_of
from kernelpot.active.explorers.paths import NudgedElasticBand, Relaxation
from kernelpot.active.records import Verdict
from kernelpot.calculator import Calculator
from tests.test_active_explorers import bad_model, calm, cluster, crystal, same_bits  # noqa: F401

RNG = np.random.default_rng(0)


def vacancy():
    """A hop of an atom into the vacancy beside it; both ends are the same by symmetry."""
    whole = bulk("Cu", "fcc", a=3.6, cubic=True) * 2
    start = whole[1:]
    final = start.copy()
    nearest = int(whole.get_distances(0, range(1, len(whole)), mic=True).argmin())
    shift = whole.get_distance(nearest + 1, 0, mic=True, vector=True)
    final.positions[nearest] += shift
    return start, final


@pytest.fixture(scope="module")
def hop(emt_model):
    start, final = vacancy()
    explorer = NudgedElasticBand(final=final, n_images=5, tolerance=1e-6)
    calculator = Calculator(emt_model)
    return explorer, calculator, start, explorer.explore(calculator, start, calm, RNG)


def test_a_relaxed_structure_has_no_forces(emt_model):
    seen = []
    found = Relaxation(fmax=0.01).explore(
        Calculator(emt_model), crystal(), lambda a: seen.append(a) or calm(a), RNG
    )
    end = found.last.copy()
    end.calc = Calculator(emt_model)
    assert found.finished
    assert np.linalg.norm(end.get_forces(), axis=1).max() < 0.01
    assert found.n_steps == len(seen) > 3


def test_a_relaxed_cell_is_under_the_pressure(emt_model):
    found = Relaxation(fmax=0.01, cell=True, pressure=5.0).explore(
        Calculator(emt_model), crystal(), calm, RNG
    )
    end = found.last.copy()
    end.calc = Calculator(emt_model)
    assert found.finished
    expected = -5.0 / 160.21766 * np.array([1, 1, 1, 0, 0, 0])
    assert end.get_stress() == pytest.approx(expected, abs=2e-3)


def test_a_relaxation_that_does_not_end_says_so(emt_model):
    found = Relaxation(fmax=1e-6, n_steps=3, optimizer="fire").explore(
        Calculator(emt_model), crystal(), calm, RNG
    )
    assert not found.finished
    assert "above 1e-06" in found.note
    assert found.n_steps == 4


@pytest.mark.parametrize("settings", [{}, {"cell": True}])
def test_a_relaxation_ends_where_the_watch_says_so(emt_model, settings):
    verdicts = iter([Verdict(False, True, "novelty", 1.5), Verdict(True, True, "novelty", 3.0)])
    found = Relaxation(**settings).explore(
        Calculator(emt_model), crystal(), lambda _: next(verdicts), RNG
    )
    assert not found.finished
    assert found.n_steps == 2
    assert [c.score for c in found.candidates] == [3.0]


def test_relaxations_with_a_bad_model_raise_nothing(bad_model):  # noqa: F811
    start = crystal(amplitude=0.5)
    for explorer in (Relaxation(cell=True, n_steps=50), Relaxation(n_steps=50)):
        found = explorer.explore(Calculator(bad_model), start, calm, RNG)
        assert np.isfinite(found.last.positions).all()
        assert same_bits(found, explorer.explore(Calculator(bad_model), start, calm, RNG))


def test_the_band_climbs_to_a_saddle(hop):
    explorer, calculator, _, found = hop
    assert found.finished
    assert len(found.frames) == explorer.n_images + 2
    band = band_of(calculator, found.frames)
    assert band.saddle == explorer.n_images // 2 + 1  # the hop is symmetric
    assert band.barrier > 0.1
    assert band.reverse == pytest.approx(band.barrier, abs=5e-3)
    assert band.energies == pytest.approx(band.energies[::-1], abs=0.05)
    top = found.frames[band.saddle].copy()
    top.calc = calculator
    assert np.linalg.norm(top.get_forces(), axis=1).max() < explorer.fmax
    # A first-order saddle: along the path downhill both ways, and forces vanish.
    across = found.frames[band.saddle + 1].positions - found.frames[band.saddle - 1].positions
    energies = []
    for shift in (-0.02, 0.0, 0.02):
        moved = top.copy()
        moved.positions += shift * across / np.linalg.norm(across)
        moved.calc = calculator
        energies.append(moved.get_potential_energy())
    assert energies[1] > max(energies[0], energies[2])


def test_the_barrier_has_the_standard_deviation_of_the_difference(hop, emt_model):
    _, calculator, _, found = hop
    band = band_of(calculator, found.frames)
    ends = [found.frames[0], found.frames[band.saddle]]
    predicted = emt_model.predict(ends, return_std="energy", return_cov="energy")
    assert band.barrier == pytest.approx(predicted.energy[1] - predicted.energy[0], abs=1e-9)
    assert band.barrier_std == pytest.approx(predicted.cov.std([-1, 1]), rel=1e-6)
    # What is unknown of both alike cancels.
    assert band.barrier_std < np.hypot(*predicted.energy_std)
    assert f"{band.barrier:.4f} +- {band.barrier_std:.4f}" in found.note


def test_the_images_that_tell_most_of_the_barrier_come_first(hop):
    _, calculator, _, found = hop
    band = band_of(calculator, found.frames)
    weights = np.zeros(len(band.images))
    weights[[0, band.saddle]] = -1.0, 1.0
    left = []
    for i in range(len(band.images)):
        column = band.cov.matrix[:, i]
        conditional = band.cov.matrix - np.outer(column, column) / column[i]
        left.append(weights @ conditional @ weights)
    # Both sides of a symmetric path tell the same, to rounding.
    assert np.all(np.diff(np.array(left)[band.order]) > -1e-6 * max(left))
    assert min(left) < 0.9 * max(left)
    wanted = [c for c in found.candidates if c.reason == "barrier"]
    assert len(wanted) == 2
    for candidate, i in zip(wanted, band.order, strict=False):
        assert np.array_equal(candidate.atoms.positions, band.images[i].positions)
        assert candidate.score == pytest.approx(band.barrier_std / 1e-6)


def test_a_barrier_that_is_certain_enough_asks_for_nothing(hop):
    explorer, calculator, start, found = hop
    content = dataclasses.replace(explorer, tolerance=10.0)
    again = content.explore(calculator, start, calm, RNG)
    assert again.candidates == []
    assert again.note == found.note
    assert all(
        np.array_equal(a.positions, b.positions)
        for a, b in zip(again.frames, found.frames, strict=True)
    )


def test_unsure_images_are_candidates_the_highest_first(hop):
    explorer, calculator, start, before = hop
    low = before.frames[0].copy()
    low.calc = calculator
    low = low.get_potential_energy()

    def watch(atoms):
        # Of what is high up: the barrier is 0.7 eV.
        score = (atoms.get_potential_energy() - low) / 0.2
        return Verdict(score > 3.0, score > 1.0, "novelty", score)

    found = explorer.explore(calculator, start, watch, RNG)
    unsure = [c for c in found.candidates if c.reason == "novelty"]
    assert len(unsure) > 1
    energies = []
    for candidate in unsure:
        probe = candidate.atoms.copy()
        probe.calc = calculator
        energies.append(probe.get_potential_energy())
    assert energies == sorted(energies, reverse=True)
    assert not found.finished
    assert unsure[0].score == max(c.score for c in unsure) > 3.0


def test_a_band_with_a_bad_model_raises_nothing(bad_model):  # noqa: F811
    start = cluster(amplitude=0.0)
    final = start.copy()
    final.positions[0] += [0.3, 0.1, 4.5]
    explorer = NudgedElasticBand(final=final, n_images=3, n_steps=30)
    found = explorer.explore(Calculator(bad_model), start, calm, RNG)
    assert np.array_equal(found.last.positions, start.positions)
    assert all(np.isfinite(frame.positions).all() for frame in found.frames)


def test_fixed_atoms_stay_on_the_band(emt_model):
    start, final = vacancy()
    fixed = [i for i in range(len(start)) if np.allclose(start.positions[i], final.positions[i])]
    start.set_constraint(FixAtoms(fixed[:10]))
    explorer = NudgedElasticBand(final=final, n_images=3, n_steps=5, relax_ends=False)
    found = explorer.explore(Calculator(emt_model), start, calm, RNG)
    for frame in found.frames:
        assert frame.positions[fixed[:10]] == pytest.approx(start.positions[fixed[:10]], abs=1e-9)


@pytest.mark.parametrize(
    ("final", "message"),
    [
        (Atoms("Au2Cu2", np.eye(4, 3)), "same atoms in the same order"),
        (Atoms("Cu2Au2", np.eye(4, 3), cell=[9, 9, 9], pbc=True), "same cell"),
    ],
)
def test_ends_are_checked(emt_model, final, message):
    with pytest.raises(ValueError, match=message):
        NudgedElasticBand(final=final).explore(Calculator(emt_model), cluster(), calm, RNG)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relaxation(fmax=0.0), "fmax must be above zero"),
        (lambda: Relaxation(optimizer="newton"), "bfgs or fire"),
        (lambda: Relaxation(pressure=np.inf), "pressure must be finite"),
        (lambda: NudgedElasticBand(final=cluster(), n_images=0), "n_images"),
        (lambda: NudgedElasticBand(final=cluster(), tolerance=-1.0), "tolerance"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_molecule_has_no_cell_to_relax(emt_model):
    with pytest.raises(ValueError, match="cell=False"):
        Relaxation(cell=True).explore(Calculator(emt_model), cluster(), calm, RNG)


def test_a_path_has_two_images(emt_model):
    with pytest.raises(ValueError, match="two images"):
        band_of(Calculator(emt_model), [cluster()])


def test_a_band_ends_where_the_watch_stops_the_relaxation_of_an_end(emt_model):
    # The watch stops at once: that structure alone is a candidate, and there is no band.
    start, final = vacancy()
    stop = Verdict(True, True, "forces_std", 5.0)
    found = NudgedElasticBand(final=final).explore(
        Calculator(emt_model), start, lambda _: stop, RNG
    )
    assert not found.finished
    assert [c.score for c in found.candidates] == [5.0]
    assert np.array_equal(found.candidates[0].atoms.positions, start.positions)
    assert len(found.frames) == 1
    assert "barrier" not in found.note
