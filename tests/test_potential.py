"""The estimator: fit, predict, partial_fit, score, save; the contract of scikit-learn."""

import pickle
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from kernelpot import KernelPotential, Soap, load, rows, summary, training
from kernelpot.data import LabelKeys, Noise, structures_from_atoms
from kernelpot.data_checks import DataError, DataWarning
from kernelpot.gp.inducing import SELECTORS
from kernelpot.gp.triangles import empty_triangle
from kernelpot.memory import Room
from kernelpot.model_file import ModelFileError
from kernelpot.rows import centre_blocks
from kernelpot.selection import system_of
from kernelpot.testing import check_descriptor, check_potential
from tests.conftest import alloy, label
from tests.naive import gp as naive


def stripped(images, *kinds):
    """Copies that keep only some kinds of labels."""
    out = []
    for atoms in images:
        copy = atoms.copy()
        kept = {k: v for k, v in atoms.calc.results.items() if k in kinds}
        copy.calc = SinglePointCalculator(copy, **kept)
        out.append(copy)
    return out


# ------------------------------------------------------------------- the rows of K_rm


def numeric_rows(model, atoms, structures, h=1e-4):
    """Rows of K_rm by finite differences of the energy row."""
    fitted = model.fitted_

    def energy_row(positions, cell):
        moved = structures[0].__class__(
            **{**vars(structures[0]), "positions_nc": positions, "cell_cc": cell}
        )
        system = system_of(fitted.components[0].descriptor, moved)
        return rows.structure_rows(fitted.components, system, gradients=False).energy_m

    positions, cell = atoms.positions, atoms.cell[:]
    forces = []
    for n in range(len(atoms)):
        for c in range(3):
            step = np.zeros_like(positions)
            step[n, c] = h
            forces.append(
                -(energy_row(positions + step, cell) - energy_row(positions - step, cell)) / (2 * h)
            )
    strain = []
    for c, d in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        eps = np.zeros((3, 3))
        eps[c, d] += h / 2
        eps[d, c] += h / 2
        up, down = np.eye(3) + eps, np.eye(3) - eps
        strain.append(
            (energy_row(positions @ up, cell @ up) - energy_row(positions @ down, cell @ down))
            / (2 * h)
        )
    return np.array(forces), np.array(strain)


def test_rows_are_derivatives_of_the_energy_row(emt_model, emt_images):
    atoms = emt_images[0]
    structures = structures_from_atoms([atoms], LabelKeys(), Noise(1.0, 1.0, 1.0), labels="ignore")
    fitted = emt_model.fitted_
    system = system_of(fitted.components[0].descriptor, structures[0])
    found = rows.structure_rows(fitted.components, system, gradients=True)
    forces, strain = numeric_rows(emt_model, atoms, structures)
    scale = np.abs(forces).max()
    assert_allclose(found.forces_rm, forces, atol=1e-6 * scale)
    assert_allclose(found.strain_vm, strain, atol=1e-6 * np.abs(strain).max())


def test_blocks_of_centres_do_not_change_the_rows(emt_model, emt_images):
    fitted = emt_model.fitted_
    structures = structures_from_atoms(emt_images[:1], LabelKeys(), Noise(1.0, 1.0, 1.0))
    system = system_of(fitted.components[0].descriptor, structures[0])
    args = (fitted.components, system)
    whole = rows.structure_rows(*args, gradients=True, local=True)
    split = rows.structure_rows(*args, gradients=True, local=True, room=Room(block=1.0))
    for a, b in zip(whole, split, strict=True):
        assert_allclose(a, b, atol=1e-12)


# ---------------------------------------------------------- the fit against dense algebra


def test_fit_equals_the_dense_posterior(emt_images, emt_soap):
    images = [*emt_images[:4], *emt_images[30:33]]
    noise = {"sigma_energy": 1e-3, "sigma_forces": 0.05, "sigma_stress": 1e-3}
    model = KernelPotential(emt_soap, n_environments=8, n_tangents=3, delta=2.0, **noise)
    fitted = model.fit(images).fitted_
    component = fitted.components[0]
    structures = structures_from_atoms(images, LabelKeys(), Noise(1e-3, 0.05, 1e-3))
    K, y, sigma = [], [], []
    for s in structures:
        system = system_of(fitted.components[0].descriptor, s)
        row = rows.structure_rows(fitted.components, system, gradients=True)
        K.append(row.energy_m[None] / s.n_atoms)
        y.append([(s.energy - fitted.baseline.energy_of(s.numbers_n)) / s.n_atoms])
        sigma.append([1e-3])
        K.append(row.forces_rm)
        y.append(s.forces_nc.ravel())
        sigma.append(np.full(3 * s.n_atoms, 0.05))
        if s.periodic:
            K.append(row.strain_vm / s.volume)
            y.append(s.stress_v)
            sigma.append(np.full(6, 1e-3))
    K, y, sigma = np.vstack(K), np.concatenate(y), np.concatenate(sigma)
    blocks = [naive.K_mm(group, component.zeta) for group in component.inducing]
    K_mm = np.zeros((K.shape[1], K.shape[1]))
    first = 0
    for block in blocks:
        K_mm[first : first + len(block), first : first + len(block)] = block
        first += len(block)
    mean, _, evidence = naive.dtc(K_mm, K, y, sigma, 2.0, K, np.ones(len(y)))
    assert_allclose(K @ fitted.weights_m, mean, atol=1e-5 * np.abs(mean).max())
    assert_allclose(model.log_evidence_, evidence, rtol=1e-5)
    prediction = model.predict(images)
    forces = np.concatenate([f.ravel() for f in prediction.forces])
    own = np.concatenate(
        [r for r, k in zip(mean_forces(K, fitted.weights_m, structures), structures, strict=True)]
    )
    assert_allclose(forces, own, atol=1e-9 * np.abs(own).max())


def mean_forces(K, weights, structures):
    """Force part of K a, structure by structure: the slow road, tangents not collapsed."""
    values, row = K @ weights, 0
    for s in structures:
        yield values[row + 1 : row + 1 + 3 * s.n_atoms]
        row += 1 + 3 * s.n_atoms + (6 if s.periodic else 0)


def test_fit_learns(emt_images, emt_model):
    found = emt_model.training_summary_
    assert emt_model.score(emt_images) > 0.9
    assert found["mae"]["forces"] < 0.15
    assert found["n_labels"] == {
        "energy": 40,
        "forces": 3 * sum(len(a) for a in emt_images),
        "stress": 180,
    }


def test_a_package_that_is_not_installed_has_no_version(emt_images, emt_soap, monkeypatch):
    """A checkout on the path has no version: no reason to lose a fit."""

    def none(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(summary, "version", none)
    summary._version.cache_clear()
    model = KernelPotential(emt_soap, n_environments=5).fit(emt_images[:3])
    summary._version.cache_clear()
    assert model.training_summary_["versions"]["kernelpot"] is None


def test_tangents_lower_the_training_error(emt_images, emt_soap):
    plain = KernelPotential(emt_soap, n_environments=10, n_tangents=0).fit(emt_images)
    tangents = KernelPotential(emt_soap, n_environments=10, n_tangents=8).fit(emt_images)
    assert (
        tangents.training_summary_["mae"]["forces"] < 0.7 * plain.training_summary_["mae"]["forces"]
    )
    assert tangents.log_evidence_ > plain.log_evidence_


def test_evidence_peaks_near_the_true_noise(emt_images, emt_soap):
    images = stripped(emt_images[:20], "forces")
    rng = np.random.default_rng(0)
    for atoms in images:
        atoms.calc.results["forces"] = atoms.calc.results["forces"] + rng.normal(
            0, 0.3, (len(atoms), 3)
        )
    evidence = {
        sigma: KernelPotential(emt_soap, n_environments=10, n_tangents=5, sigma_forces=sigma)
        .fit(images)
        .log_evidence_
        for sigma in (0.03, 0.3, 3.0)
    }
    assert max(evidence, key=evidence.get) == 0.3


@pytest.mark.parametrize("kinds", [("energy",), ("forces",), ("energy", "stress"), ("stress",)])
def test_any_mix_of_labels(kinds, emt_images, emt_soap):
    images = stripped(emt_images[:10], *kinds)
    model = KernelPotential(emt_soap, n_environments=10, n_tangents=4).fit(images)
    assert set(model.training_summary_["mae"]) == set(kinds)
    assert np.isfinite(model.predict(images).energy).all()


def test_missing_components_are_left_out(emt_images, emt_soap):
    images = stripped(emt_images[:6], "energy", "forces")
    images[2].calc.results["forces"] = images[2].calc.results["forces"].copy()
    images[2].calc.results["forces"][1, 2] = np.nan
    model = KernelPotential(emt_soap, n_environments=8, n_tangents=2).fit(images)
    assert model.training_summary_["n_labels"]["forces"] == 3 * sum(map(len, images)) - 1


def test_noise_per_structure_and_source_weights_labels(emt_images, emt_soap):
    # Without energies: those of another source come with a shift, which the other model lacks.
    images = stripped(emt_images[:12], "forces")
    for k, atoms in enumerate(images):
        atoms.info["source"] = "good" if k % 2 else "bad"
    args = {"n_environments": 10, "n_tangents": 4, "sigma_energy": 1e-3, "delta": 2.0}
    model = KernelPotential(emt_soap, sigma_forces={"good": 0.01, "bad": 1.0}, **args).fit(images)
    assert model.noise_["forces"] == {"good": 0.01, "bad": 1.0}
    error = {"good": [], "bad": []}
    for atoms, forces in zip(images, model.predict(images).forces, strict=True):
        error[atoms.info["source"]].append(np.abs(forces - atoms.calc.results["forces"]).mean())
    assert np.mean(error["good"]) < np.mean(error["bad"])
    one = stripped(emt_images[:12], "forces")
    for k, atoms in enumerate(one):
        atoms.info["sigma_forces"] = 0.01 if k % 2 else 1.0
    same = KernelPotential(emt_soap, sigma_forces=0.05, **args).fit(one)
    assert_allclose(same.log_evidence_, model.log_evidence_, rtol=1e-9)


@pytest.mark.parametrize("selector", [*SELECTORS, lambda x_nq, n, rng: np.arange(n)])
def test_every_selector_fits(selector, emt_images, emt_soap, tmp_path):
    counts = {"Cu": 5, "Au": 3}
    model = KernelPotential(emt_soap, n_environments=counts, n_tangents=3, selector=selector)
    model.fit(emt_images[:12])
    assert [len(group.first_e) - 1 for group in model.fitted_.components[0].inducing] == [5, 3]
    assert model.score(emt_images[:12]) > 0.5
    model.save(tmp_path / "model.kpot")  # a file holds the name of a function, not the function
    assert np.array_equal(load(tmp_path / "model.kpot").fitted_.weights_m, model.fitted_.weights_m)


def test_symmetric_environments_get_fewer_tangents(emt_soap):
    crystal = label(bulk("Cu", "fcc", a=3.7))
    shaken = label(alloy(np.random.default_rng(5)))
    model = KernelPotential(emt_soap, n_environments=9, n_tangents=40).fit([crystal, shaken])
    counts = [
        n - 1 for group in model.fitted_.components[0].inducing for n in np.diff(group.first_e)
    ]
    assert min(counts) < max(counts) <= 40


# --------------------------------------------------------------------------- partial_fit


def test_partial_fit_equals_one_fit_with_the_same_inducing_variables(emt_images, emt_soap):
    images = stripped(emt_images, "energy", "forces", "stress")
    model = KernelPotential(emt_soap, n_environments=10, n_tangents=4).fit(images[:15])
    model.partial_fit(images[15:])
    fitted = model.fitted_
    structures = structures_from_atoms(images, LabelKeys(), Noise(1e-3, 0.05, 1e-3))
    empty = {k: empty_triangle(len(fitted.weights_m)) for k in fitted.triangles}
    whole = training.update(fitted._replace(triangles=empty), structures)
    assert_allclose(fitted.log_evidence, whole.log_evidence, rtol=1e-8)
    a = model.predict(images[:3]).forces[0]
    model._adopt(whole)
    assert_allclose(a, model.predict(images[:3]).forces[0], atol=1e-7)
    assert model.training_summary_["n_structures"] == 40


def test_partial_fit_of_a_new_species_changes_nothing(emt_images, emt_soap):
    model = KernelPotential(emt_soap, n_environments=5, n_tangents=2).fit(emt_images[:5])
    before = model.predict(emt_images[:2]).energy
    other = Atoms("Ag2", positions=[[0, 0, 0], [2.5, 0, 0]])
    other.calc = SinglePointCalculator(other, energy=1.0)
    with pytest.raises(DataError, match="does not know"):
        model.partial_fit([other])
    assert np.array_equal(model.predict(emt_images[:2]).energy, before)


# ---------------------------------------------------------------------------- uncertainty


def test_energy_std_is_small_on_training_data_and_large_far_away(emt_images, emt_model):
    near = emt_model.predict(emt_images[:5], return_std=True)
    far = emt_images[0].copy()
    far.set_cell(far.cell[:] * 1.35, scale_atoms=True)
    away = emt_model.predict([far], return_std=True)
    assert (near.energy_std >= 0).all()
    assert away.energy_std[0] / len(far) > 2 * np.max(
        near.energy_std / [len(a) for a in emt_images[:5]]
    )


def test_energy_std_in_blocks_and_of_supercells(emt_images, emt_model, monkeypatch):
    atoms = emt_images[0]
    one = emt_model.predict([atoms], return_std=True).energy_std[0]
    # The same environments twice: a fully correlated error doubles.
    two = emt_model.predict([atoms * (2, 1, 1)], return_std=True).energy_std[0]
    assert_allclose(two, 2 * one, rtol=1e-5)
    monkeypatch.setattr(rows, "centre_blocks", lambda one, n, _: centre_blocks(one, n, 3))
    assert_allclose(emt_model.predict([atoms], return_std=True).energy_std[0], one, rtol=1e-6)


# ------------------------------------------------------------------------- physical laws


@pytest.mark.parametrize("index", [0, 2, 35])
def test_laws(index, emt_images, emt_model):
    def potential(atoms):
        p = emt_model.predict([atoms])
        return p.energy[0], p.forces[0], p.stress[0]

    check_potential(potential, emt_images[index])


def test_a_broken_law_is_named(emt_images, emt_model):
    def potential(atoms):
        p = emt_model.predict([atoms])
        return p.energy[0] + 1e-4 * atoms.positions[0, 0], p.forces[0], p.stress[0]

    with pytest.raises(AssertionError, match="forces: relative error"):
        check_potential(potential, emt_images[0])


def test_descriptor_keeps_its_contract(emt_images, emt_soap):
    check_descriptor(emt_soap.bind((29, 79)), emt_images[0])


def test_energies_sum_to_the_energy(emt_images, emt_model):
    found = emt_model.predict(emt_images[:3])
    for energy, energies in zip(found.energy, found.energies, strict=True):
        assert_allclose(energies.sum(), energy, rtol=1e-12)


def test_no_jump_at_the_cutoff(emt_model):
    cutoff = emt_model.predictor_.cutoff
    gaps = cutoff + np.linspace(-1e-3, 1e-3, 21)
    images = [Atoms("Cu2", positions=[[0, 0, 0], [0, 0, d]]) for d in gaps]
    energy = emt_model.predict(images).energy
    assert np.ptp(energy) < 1e-6
    assert_allclose(energy[gaps > cutoff], energy[-1], rtol=1e-14)


def test_work_along_a_closed_loop_vanishes(emt_images, emt_model):
    atoms = emt_images[2].copy()
    rng = np.random.default_rng(0)
    a, b = 0.05 * rng.standard_normal((2, *atoms.positions.shape))
    n = 400
    angles, weights = np.arange(n) * 2 * np.pi / n, 2 * np.pi / n
    images, steps = [], []
    for t in angles:  # the cutoff's second derivative jumps: the rule converges algebraically
        copy = atoms.copy()
        copy.positions += a * np.cos(t) + b * np.sin(t)
        images.append(copy)
        steps.append(-a * np.sin(t) + b * np.cos(t))
    forces = emt_model.predict(images).forces
    work = weights * sum(np.sum(f * s) for f, s in zip(forces, steps, strict=True))
    size = weights * sum(np.abs(f * s).sum() for f, s in zip(forces, steps, strict=True))
    assert abs(work) < 1e-6 * size


# ------------------------------------------------------------------------- scikit-learn


def test_clone_parameters_and_nested_parameters(emt_soap):
    model = KernelPotential(emt_soap, zeta=3)
    copy = clone(model)
    assert copy.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    assert copy.zeta == 3
    copy.set_params(descriptor__cutoff=3.5, n_tangents=2)
    assert copy.descriptor.cutoff == 3.5
    assert emt_soap.cutoff == 4.0
    with pytest.raises(NotFittedError):
        copy.predict([])


def test_cross_validation_and_grid_search_over_images(emt_images, emt_soap):
    images = stripped(emt_images[:12], "energy", "forces")
    model = KernelPotential(emt_soap, n_environments=6, n_tangents=3)
    scores = cross_val_score(model, images, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    search = GridSearchCV(
        model, {"zeta": [2, 4], "descriptor__cutoff": [3.0, 4.0]}, cv=2, error_score="raise"
    ).fit(images)
    assert search.best_score_ <= 1.0
    assert search.best_estimator_.n_environments_ <= 6


def test_same_seed_same_model(emt_images, emt_soap):
    args = {"n_environments": 6, "n_tangents": 3, "selector": "random"}
    one, two = (KernelPotential(emt_soap, **args).fit(emt_images[:8]) for _ in range(2))
    assert np.array_equal(one.fitted_.weights_m, two.fitted_.weights_m)
    other = KernelPotential(emt_soap, random_state=1, **args).fit(emt_images[:8])
    assert not np.array_equal(
        one.fitted_.components[0].inducing[0].Z_mq, other.fitted_.components[0].inducing[0].Z_mq
    )


# -------------------------------------------------------------------------- model file


def test_a_loaded_model_predicts_bit_identically(tmp_path, emt_images, emt_model):
    path = tmp_path / "model.kpot"
    emt_model.save(path)
    again = load(path)
    a, b = (
        emt_model.predict(emt_images, return_std=True),
        again.predict(emt_images, return_std=True),
    )
    assert np.array_equal(a.energy, b.energy)
    assert np.array_equal(a.stress, b.stress, equal_nan=True)
    assert np.array_equal(a.energy_std, b.energy_std)
    assert all(np.array_equal(f, g) for f, g in zip(a.forces, b.forces, strict=True))
    assert again.training_summary_ == emt_model.training_summary_
    assert again.log_evidence_ == emt_model.log_evidence_
    assert again.get_params(deep=False).keys() == emt_model.get_params(deep=False).keys()
    again.save(tmp_path / "twice.kpot")
    assert (tmp_path / "twice.kpot").read_bytes() == path.read_bytes()


def test_a_loaded_model_learns_on(tmp_path, emt_images, emt_soap):
    model = KernelPotential(emt_soap, n_environments=6, n_tangents=3).fit(emt_images[:8])
    model.save(tmp_path / "a.kpot")
    again = load(tmp_path / "a.kpot").partial_fit(emt_images[8:12])
    model.partial_fit(emt_images[8:12])
    assert np.array_equal(model.fitted_.weights_m, again.fitted_.weights_m)


def test_a_file_with_foreign_content_is_refused(tmp_path):
    from kernelpot import model_file

    model_file.write(tmp_path / "x.kpot", {"something": 1}, {"a": np.zeros(3)})
    with pytest.raises(ModelFileError, match="does not make a model"):
        load(tmp_path / "x.kpot")


def test_pickle_round_trip(emt_images, emt_model):
    again = pickle.loads(pickle.dumps(emt_model))
    assert np.array_equal(
        again.predict(emt_images[:2]).energy, emt_model.predict(emt_images[:2]).energy
    )


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"zeta": 2.5}, "zeta must be a whole number"),
        ({"zeta": 1}, "zeta must be at least 2 with tangents"),
        ({"delta": -1.0}, "delta must be"),
        ({"delta": 0}, "delta must be None or positive"),
        ({"delta": np.nan}, "delta must be"),
        ({"n_environments": 0}, "n_environments must be"),
        ({"n_environments": {"Cu": 3}}, "every species needs one entry"),
        ({"n_environments": {"Cu": 3, "Au": 2.5}}, "n_environments.'Au'. must be"),
        ({"n_tangents": -1}, "n_tangents must be"),
        ({"tangent_threshold": -0.1}, "tangent_threshold must be"),
        ({"selector": "best"}, "'best' is not one of fps"),
        ({"sigma_forces": 0.0}, "sigma_forces|forces"),
        ({"descriptor": Soap(cutoff=0.8)}, "cutoff"),
    ],
)
def test_wrong_parameters_are_named(parameters, message, emt_images, emt_soap):
    model = KernelPotential(**{"descriptor": emt_soap, "n_environments": 4, **parameters})
    with pytest.raises(ValueError, match=message):
        model.fit(emt_images[:4])
    assert not hasattr(model, "fitted_")


def test_a_failed_fit_leaves_the_earlier_one(emt_images, emt_soap):
    model = KernelPotential(emt_soap, n_environments=4, n_tangents=1).fit(emt_images[:4])
    before = model.predict(emt_images[:1]).energy
    broken = emt_images[0].copy()
    broken.positions[0] = np.nan
    with pytest.raises(ValueError, match="structure 1"):
        model.fit([emt_images[0], broken])
    assert np.array_equal(model.predict(emt_images[:1]).energy, before)


def test_unknown_species_at_prediction_is_named(emt_images, emt_model):
    with pytest.raises(ValueError, match=r"structure 1 .*contains Ag.*Cu, Au only"):
        emt_model.predict([emt_images[0], Atoms("Ag")])


def test_isolated_atoms_alone_cannot_be_fitted(emt_soap):
    lone = Atoms("Cu")
    lone.calc = SinglePointCalculator(lone, energy=-1.0)
    with pytest.raises(DataError, match="only isolated atoms are left"):
        KernelPotential(emt_soap).fit([lone])


def test_isolated_atoms_become_the_baseline(emt_images, emt_soap):
    lone = [Atoms("Cu"), Atoms("Au")]
    for atoms, energy in zip(lone, (-1.25, -2.5), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    model = KernelPotential(emt_soap, n_environments=6, n_tangents=2).fit([*lone, *emt_images[:5]])
    assert_allclose(model.baseline_.energies, [-1.25, -2.5])
    # An isolated atom sees itself: its environment must be learned to have no energy.
    assert_allclose(model.predict(lone).energy, [-1.25, -2.5], atol=0.01)
    assert "isolated" in model.baseline_.kind


def test_stress_of_the_wrong_sign_is_noticed(emt_images, emt_soap):
    images = stripped(emt_images[:25], "energy", "forces", "stress")
    for atoms in images:
        atoms.calc.results["stress"] = -atoms.calc.results["stress"]
    with pytest.warns(DataWarning, match="virial or a pressure"):
        KernelPotential(emt_soap, n_environments=15, n_tangents=5).fit(images)


def test_stress_in_other_units_is_noticed(emt_images, emt_soap):
    images = stripped(emt_images[:25], "energy", "forces", "stress")
    for atoms in images:
        atoms.calc.results["stress"] = 160.2 * atoms.calc.results["stress"]
    with pytest.warns(DataWarning, match="probably not in eV/A"):
        KernelPotential(emt_soap, n_environments=15, n_tangents=5).fit(images)


def test_stress_is_not_judged_where_all_cells_are_alike():
    """Right labels were said to have the wrong sign: the fit knew nothing of other volumes."""
    rng = np.random.default_rng(0)
    images = [bulk("Cu", cubic=True) * 2 for _ in range(4)]
    way_nc = rng.normal(0, 0.05, (32, 3))
    for k, atoms in enumerate(images):  # steps of one trajectory
        atoms.positions += (k + 1) / 4.0 * way_nc
        label(atoms)
    soap = Soap(cutoff=4.0, n_max=4, l_max=3, sigma=0.5)
    KernelPotential(soap, n_environments=20, n_tangents=5).fit(images)  # warnings are errors


def test_progress_is_told(emt_images, emt_soap):
    heard = []
    KernelPotential(
        emt_soap, n_environments=4, n_tangents=2, progress=lambda *a: heard.append(a)
    ).fit(emt_images[:6])
    stages = [stage for stage, _, _ in heard]
    assert list(dict.fromkeys(stages)) == [
        "features", "tangents", "rows", "hyperparameters", "posterior", "training errors",
        "jackknife",
    ]  # fmt: skip
    assert all(0 <= done <= total for _, done, total in heard)
    assert heard[-1] == ("jackknife", 6, 6)
