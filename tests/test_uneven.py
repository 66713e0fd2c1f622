"""Uneven data: weights, sources with other zeros of energy, labels in doubt, leave-one-out."""

import logging

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from kernelpot import KernelPotential, Soap, load
from kernelpot.data import DataError, structures_from_atoms
from kernelpot.gp import nuisance, solvers
from kernelpot.gp.leave_out import leave_block_out
from kernelpot.gp.triangles import RowReducer, empty_triangle
from kernelpot.gp.whitening import whiten_blocks
from kernelpot.interfaces import cli
from kernelpot.report import compare_model
from kernelpot.terms.composition import fit_composition
from tests.conftest import alloy, label

SMALL = {"n_environments": 20, "n_tangents": 5}
FIXED = {"delta": 3.0, "sigma_energy": 2e-3, "sigma_forces": 0.05, "sigma_stress": 2e-3}
SHIFT = {"Cu": 3.0, "Au": -150.0}


def copied(images, change=None):
    """Copies with their labels; ``change(k, results, atoms)`` alters them."""
    result = []
    for k, atoms in enumerate(images):
        copy = atoms.copy()
        results = {
            name: np.array(v, copy=True) if np.ndim(v) else float(v)
            for name, v in atoms.calc.results.items()
        }
        if change is not None:
            change(k, results, copy)
        copy.calc = SinglePointCalculator(copy, **results)
        result.append(copy)
    return result


@pytest.fixture(scope="module")
def alloys():
    """Sixty periodic cells, and twenty to test on."""
    rng = np.random.default_rng(3)
    images = [label(alloy(rng)) for _ in range(80)]
    return images[:60], images[60:]


def free_atoms():
    atoms = []
    for symbol in ("Cu", "Au"):
        one = Atoms(symbol, positions=[[0, 0, 0]])
        atoms.append(label(one))
    return atoms


def errors(model, images):
    """Root mean square errors of energies per atom, forces and stresses."""
    p = model.predict(images)
    energy = [
        (e - a.calc.results["energy"]) / len(a) for e, a in zip(p.energy, images, strict=True)
    ]
    forces = [f - a.calc.results["forces"] for f, a in zip(p.forces, images, strict=True)]
    stress = [s - a.calc.results["stress"] for s, a in zip(p.stress, images, strict=True)]
    return [float(np.sqrt(np.mean(np.concatenate([np.ravel(e) for e in kind]) ** 2)))
            for kind in (energy, forces, stress)]  # fmt: skip


# ----------------------------------------------------------------------------- weights


def everything(x_nq, n, rng):
    return np.arange(len(x_nq))


@pytest.mark.parametrize("atoms", [False, True], ids=["least squares", "free atoms"])
def test_weight_two_is_the_structure_twice(alloys, emt_soap, atoms):
    images = copied(alloys[0][:8]) + (free_atoms() if atoms else [])
    twice = copied(alloys[0][:8]) + (free_atoms() if atoms else []) + copied(alloys[0][2:3])
    images[2].info["config_weight"] = 2.0

    def first_ones(x_nq, n, rng):
        return np.arange(n)

    args = {"n_environments": {"Cu": 9, "Au": 5}, "n_tangents": 3, "feature_tolerance": 0.0}
    args |= FIXED | {"selector": first_ones}
    one, two = (KernelPotential(emt_soap, **args).fit(data) for data in (images, twice))
    a, b = (m.predict(alloys[1][:4], return_std=True) for m in (one, two))
    assert_allclose(a.energy, b.energy, atol=1e-6)
    assert_allclose(a.energy_std, b.energy_std, rtol=1e-6)
    assert_allclose(np.concatenate(a.forces), np.concatenate(b.forces), atol=1e-6)


def test_weights_multiply_and_divide_the_noise():
    atoms = label(bulk("Cu", cubic=True))
    atoms.info.update(config_weight=4.0, config_forces_weight="0.25", config_stress_weight=9)
    (s,) = structures_from_atoms([atoms])
    assert_allclose([s.sigma_energy, s.sigma_forces, s.sigma_stress], [5e-4, 0.05, 1e-3 / 6])


@pytest.mark.parametrize("kind", ["energy", "forces", "stress"])
def test_weight_zero_leaves_labels_out(kind):
    atoms = label(bulk("Cu", cubic=True))
    broken = copied([atoms], lambda k, results, _: results.update({kind: np.inf}))[0]
    broken.info[f"config_{kind}_weight"] = 0.0
    (s,) = structures_from_atoms([broken])
    values = {"energy": s.energy, "forces": s.forces_nc, "stress": s.stress_v}
    assert {k for k, v in values.items() if np.isnan(v).all()} == {kind}
    broken.info["config_weight"] = 0
    (s, _) = structures_from_atoms([broken, atoms])
    assert not s.has_labels
    with pytest.raises(DataError, match="weights of 0 in info"):
        structures_from_atoms([broken])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "much"])
@pytest.mark.parametrize("key", ["config_weight", "config_stress_weight"])
def test_impossible_weights_are_errors(key, bad):
    images = [label(bulk("Cu", cubic=True)) for _ in range(2)]
    images[1].info[key] = bad
    with pytest.raises(DataError, match=rf"'{key}'\] of structure 1 \(Cu4\) is .*at least 0"):
        structures_from_atoms(images)


# ----------------------------------------------------------------------------- sources


def two_sources(images, shift=SHIFT, every=3):
    """Every third structure is of a source with another zero of energy."""

    def change(k, results, atoms):
        atoms.info["source"] = "fine" if k % every else "other"
        if k % every == 0:
            results["energy"] += sum(shift[symbol] for symbol in atoms.symbols)

    return copied(images, change)


def with_free_atoms(images, shift=SHIFT):
    """Free atoms of both sources."""
    fine, other = copied(free_atoms()), two_sources(free_atoms(), shift, every=1)
    for atoms in fine:
        atoms.info["source"] = "fine"
    return [*images, *fine, *other]


@pytest.mark.parametrize("atoms", [False, True], ids=["least squares", "free atoms"])
def test_shifts_between_sources_are_recovered(alloys, emt_soap, atoms, tmp_path):
    train, test = alloys
    nothing = {"Cu": 0.0, "Au": 0.0}
    data, no_offset = two_sources(train), two_sources(train, nothing)
    if atoms:
        data, no_offset = with_free_atoms(data), with_free_atoms(no_offset, nothing)
    model = KernelPotential(emt_soap, **SMALL).fit(data)
    assert model.reference_source_ == "fine"
    assert set(model.source_shifts_) == {"other"}
    for symbol, shift in SHIFT.items():
        assert abs(model.source_shifts_["other"][symbol] - shift) < 0.03
    # Predictions are on the scale of the reference, and as good as without an offset.
    same = KernelPotential(emt_soap, **SMALL).fit(no_offset)
    ours, theirs = errors(model, test), errors(same, test)
    # The search of noise levels ends where its loss is flat, a few per cent apart.
    assert_allclose(ours, theirs, rtol=0.05)
    assert model.training_summary_["rmse"]["energy"] < 0.1
    assert model.doubts_ == ()
    # ... also in error tables, whose labels may be of any source
    compared = compare_model(model, two_sources(test))[0]
    assert np.abs(compared.predicted - compared.reference).max() < 200.0  # meV/atom
    std = model.predict(test[:4], return_std=True).energy_std
    std_same = same.predict(test[:4], return_std=True).energy_std
    assert np.all(std < 5.0 * std_same)

    model.save(tmp_path / "model.kpot")
    again = load(tmp_path / "model.kpot")
    assert again.source_shifts_ == model.source_shifts_
    assert again.reference_source_ == "fine"
    assert np.array_equal(again.predict(test[:3]).energy, model.predict(test[:3]).energy)
    assert_allclose(again.predict(test[:4], return_std=True).energy_std, std, rtol=1e-9)


def test_other_sources_do_not_change_forces_of_the_fit(alloys, emt_soap):
    """With everything else fixed a shift is absorbed whole, whatever its size."""
    args = SMALL | FIXED
    train, test = alloys
    small = KernelPotential(emt_soap, **args).fit(two_sources(train, {"Cu": 0.0, "Au": 0.0}))
    large = KernelPotential(emt_soap, **args).fit(two_sources(train, {"Cu": 1e3, "Au": -2e4}))
    a, b = (m.predict(test[:5]) for m in (small, large))
    assert_allclose(a.energy, b.energy, atol=1e-5)
    assert_allclose(np.concatenate(a.forces), np.concatenate(b.forces), atol=1e-5)
    assert_allclose(large.source_shifts_["other"]["Cu"] - 1e3, small.source_shifts_["other"]["Cu"],
                    atol=1e-5)  # fmt: skip


def test_the_reference_can_be_named(alloys, emt_soap):
    data = two_sources(alloys[0][:30])
    args = SMALL | FIXED
    fine = KernelPotential(emt_soap, **args).fit(data)
    other = KernelPotential(emt_soap, reference_source="other", **args).fit(data)
    assert set(other.source_shifts_) == {"fine"}
    atoms = alloys[1][0]
    offset = other.predict([atoms]).energy[0] - fine.predict([atoms]).energy[0]
    assert_allclose(offset, sum(SHIFT[symbol] for symbol in atoms.symbols), rtol=2e-3)
    with pytest.raises(ValueError, match=r"'best' is the source of no structure.*'fine', 'other'"):
        KernelPotential(emt_soap, reference_source="best").fit(data)
    silent = copied(data[:1], lambda k, results, _: results.pop("energy"))
    silent[0].info["source"] = "silent"
    with pytest.raises(ValueError, match="'silent' has no energies"):
        KernelPotential(emt_soap, reference_source="silent").fit([*data, *silent])


def test_the_baseline_is_that_of_the_reference(alloys, caplog):
    data = with_free_atoms(two_sources(alloys[0][:9]))
    gold = [a for a in data if "Au" in a.symbols and a.info["source"] == "other"]
    structures = structures_from_atoms(data)
    baseline, keep = fit_composition(structures, 4.0, "fine")
    assert baseline == fit_composition(structures_from_atoms(free_atoms()), 4.0)[0]
    assert len(keep) == 9
    # A species that the reference does not have comes from the others, with a word.
    rest = [a for a in data if "Au" not in a.symbols] + gold
    baseline, _ = fit_composition(structures_from_atoms(rest), 4.0, "fine")
    assert abs(baseline.energies[1] - SHIFT["Au"]) < 5.0
    assert "contains Au" in caplog.text


def test_partial_fit_learns_shifts_too(alloys, emt_soap):
    train, test = alloys
    data = with_free_atoms(two_sources(train))
    args = SMALL | FIXED | {"reference_source": "fine"}
    model = KernelPotential(emt_soap, **args).fit(data[:20] + data[-4:])
    before = abs(model.source_shifts_["other"]["Cu"] - SHIFT["Cu"])
    model.partial_fit(data[20:60])
    assert abs(model.source_shifts_["other"]["Cu"] - SHIFT["Cu"]) < before
    stranger = copied(test[:1])
    stranger[0].info["source"] = "new"
    with pytest.raises(DataError, match=r"energy of the source 'new'.*'fine', 'other'"):
        model.partial_fit(stranger)
    stranger[0].info["config_energy_weight"] = 0.0  # forces are of any source
    model.partial_fit(stranger)
    assert model.training_summary_["n_structures"] == 65


def test_variables_in_front_are_marginalised():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    K_mm = root @ root.T
    own = whiten_blocks([K_mm], 1e-12)
    both = nuisance.put_in_front(2, own)
    A = np.hstack([rng.standard_normal((30, 2)), rng.standard_normal((30, 5)) @ K_mm])
    reducer = RowReducer(empty_triangle(7))
    y, sigma = rng.standard_normal(30), np.full(30, 0.1)
    reducer.add(A[:20], y[:20], sigma[:20])
    reducer.add(A[20:, 2:], y[20:], sigma[20:])  # nothing of the two in front
    A[20:, :2] = 0.0
    solved = solvers.posterior([reducer.finish()], both, [10.0, 2.0])
    marginal = nuisance.without_front(solved, 2)
    phi = both.whiten(A) / 0.1
    prior = np.diag([0.01, 0.01, *[0.25] * 5])
    S = np.linalg.inv(phi.T @ phi + prior)
    w = S @ phi.T @ y / 0.1
    assert_allclose(solved.w_k, w, rtol=1e-8)
    assert_allclose(marginal.w_k, w[2:], rtol=1e-8)
    assert_allclose(np.linalg.inv(marginal.R_kk.T @ marginal.R_kk), S[2:, 2:], rtol=1e-7)
    assert_allclose(marginal.weights(), solved.weights()[2:])
    K_new = rng.standard_normal((3, 5)) @ K_mm
    padded = np.hstack([np.zeros((3, 2)), K_new])
    prior_r = np.full(3, 1e4)
    assert_allclose(marginal.variance(prior_r, K_new), solved.variance(prior_r, padded))
    assert nuisance.put_in_front(0, own) is own
    assert nuisance.without_front(solved, 0) is solved


# ----------------------------------------------------------------------- leave one out


def naive_leave_block_out(phi, y, block, delta_k):
    """A fit without the block, and its prediction for the block."""
    rest = np.setdiff1d(np.arange(len(y)), block)
    A = phi[rest].T @ phi[rest] + np.diag(delta_k**-2.0)
    w = np.linalg.solve(A, phi[rest].T @ y[rest])
    covariance = np.eye(len(block)) + phi[block] @ np.linalg.inv(A) @ phi[block].T
    return y[block] - phi[block] @ w, covariance


@pytest.mark.parametrize("n_block", [0, 1, 7, 25])
def test_leave_block_out_is_a_fit_without_the_block(n_block):
    rng = np.random.default_rng(n_block)
    root = rng.standard_normal((12, 12))
    whitening = whiten_blocks([root @ root.T], 1e-12)
    K_rm = rng.standard_normal((30, 12)) @ root @ root.T
    y = rng.standard_normal(30)
    reducer = RowReducer(empty_triangle(12))
    reducer.add(K_rm, y, np.full(30, 0.5))
    solved = solvers.posterior([reducer.finish()], whitening, [0.7])
    phi = whitening.whiten(K_rm) / 0.5
    block = rng.choice(30, n_block, replace=False)
    residual, covariance, _ = leave_block_out(phi[block], y[block] / 0.5, solved)
    naive = naive_leave_block_out(phi, y / 0.5, block, solved.delta_k)
    assert_allclose(residual, naive[0], rtol=1e-6, atol=1e-9)
    assert_allclose(covariance, naive[1], rtol=1e-6, atol=1e-9)


def test_leave_block_out_refuses_rows_that_were_not_in_the_fit():
    whitening = whiten_blocks([np.eye(2)], 1e-12)
    reducer = RowReducer(empty_triangle(2))
    reducer.add(np.eye(2), np.ones(2), np.ones(2))
    solved = solvers.posterior([reducer.finish()], whitening, [1.0])
    with pytest.raises(ValueError, match="not among those"):
        leave_block_out(np.array([[100.0, 0.0]]), np.ones(1), solved)


@pytest.mark.parametrize("sources", [False, True])
def test_leave_one_out_equals_refits(alloys, emt_soap, sources):
    data = with_free_atoms(two_sources(alloys[0][:16])) if sources else alloys[0][:16]
    data = data if sources else [*data, *free_atoms()]
    args = SMALL | FIXED | {"force_priority": 4.0}
    model = KernelPotential(emt_soap, **args).fit(data)
    found = model.leave_one_out(data)
    for k in (1, 6, 15):
        without = copied(data)
        without[k].info["config_weight"] = 0.0
        again = KernelPotential(emt_soap, **args).fit(without)
        p = again.predict([data[k]])
        own = again.source_shifts_.get(data[k].info.get("source"), {"Cu": 0.0, "Au": 0.0})
        shift = sum(own[symbol] for symbol in data[k].symbols)
        results = data[k].calc.results
        # The start of the shifts moves with the data, the prior of 10 eV hardly notices.
        assert_allclose(found.energy[k], p.energy[0] + shift - results["energy"], atol=2e-4)
        assert_allclose(found.forces[k], p.forces[0] - results["forces"], atol=2e-4)
        assert_allclose(found.stress[k], p.stress[0] - results["stress"], atol=1e-5)
        assert found.energy_std[k] >= 2e-3 * len(data[k])
        assert np.all(found.forces_std[k] >= 0.05)
        assert np.all(found.stress_std[k] >= 2e-3)
    assert np.isnan(found.stress[-1]).all()


def test_leave_one_out_wants_structures_of_the_fit(alloys, emt_soap):
    model = KernelPotential(emt_soap, **SMALL).fit(two_sources(alloys[0][:12]))
    with pytest.raises(DataError, match="which the model has not seen"):
        model.leave_one_out(copied(alloys[0][:1]))


# ------------------------------------------------------------------------------ doubts

BAD = {7: "energy", 11: "forces", 20: "stress"}


@pytest.fixture(scope="module")
def planted(alloys):
    """An energy 5 eV too high, random forces, a stress in GPa; and the same without these."""
    rng = np.random.default_rng(8)

    def change(k, results, atoms):
        atoms.info["kernelpot_origin"] = f"train.xyz, frame {k}"
        if k == 7:
            results["energy"] += 5.0
        elif k == 11:
            results["forces"] += rng.normal(0, 2.0, results["forces"].shape)
        elif k == 20:
            results["stress"] *= 160.2

    return copied(alloys[0], change)


@pytest.fixture(scope="module")
def robust_model(planted, emt_soap):
    return KernelPotential(emt_soap, robust=True, **SMALL).fit(planted)


def test_wrong_labels_are_found_and_named(robust_model, planted):
    doubts = robust_model.doubts_
    assert {(d.name.split(" (")[0], d.kind) for d in doubts} == {
        (f"train.xyz, frame {k}", kind) for k, kind in BAD.items()
    }
    assert [d.sigmas for d in doubts] == sorted((d.sigmas for d in doubts), reverse=True)
    for d in doubts:
        assert_allclose(d.weight, 0.0, atol=0.2)
    energy = next(d for d in doubts if d.kind == "energy")
    assert_allclose(energy.residual, 5.0 / len(planted[7]), atol=0.2)


def test_a_robust_fit_is_as_good_as_one_without_wrong_labels(
    robust_model, planted, alloys, emt_soap
):
    without = [atoms for k, atoms in enumerate(planted) if k not in BAD]
    clean = errors(KernelPotential(emt_soap, **SMALL).fit(without), alloys[1])
    plain = errors(KernelPotential(emt_soap, **SMALL).fit(planted), alloys[1])
    ours = errors(robust_model, alloys[1])
    assert np.all(np.array(ours) < 1.3 * np.array(clean))
    assert ours[0] < 0.7 * plain[0]
    assert ours[2] < 0.7 * plain[2]


def test_doubts_are_saved_and_count_in_leave_one_out(robust_model, planted, tmp_path):
    robust_model.save(tmp_path / "model.kpot")
    again = load(tmp_path / "model.kpot")
    assert again.doubts_ == robust_model.doubts_
    assert again.robust is True
    a, b = (m.leave_one_out(planted[5:12]) for m in (robust_model, again))
    assert_allclose(a.energy, b.energy, atol=1e-9)
    assert abs(a.energy[2]) > 4.0
    assert np.abs(np.delete(a.energy, 2)).max() < 1.0
    assert len(again.partial_fit(planted[:2]).doubts_) >= 3


def test_without_robust_far_labels_are_reported(planted, emt_soap, caplog):
    with caplog.at_level(logging.WARNING, logger="kernelpot"):
        model = KernelPotential(emt_soap, **SMALL).fit(planted)
    assert {d.kind for d in model.doubts_} >= {"energy", "stress"}
    assert {d.weight for d in model.doubts_} == {1.0}
    assert "far from the fit" in caplog.text


def test_one_wrong_atom_is_named(alloys, emt_soap):
    def change(k, results, atoms):
        if k == 25:
            results["forces"][2, 1] += 4.0

    model = KernelPotential(emt_soap, robust=5.0, **SMALL).fit(copied(alloys[0], change))
    (doubt,) = model.doubts_
    assert (doubt.kind, doubt.atom) == ("forces", 2)
    assert doubt.name.startswith("structure 25 ")


def test_good_labels_are_not_doubted(alloys, emt_images, emt_soap):
    for images in (alloys[0], emt_images):
        robust = KernelPotential(emt_soap, robust=True, **SMALL).fit(images)
        plain = KernelPotential(emt_soap, **SMALL).fit(images)
        assert robust.doubts_ == ()
        assert_allclose(robust.fitted_.weights_m, plain.fitted_.weights_m)


def test_the_full_basis_neither_doubts_nor_shifts(alloys, emt_soap):
    few = alloys[0][:6]
    args = {"basis": "full", "n_tangents": 1}
    with pytest.raises(ValueError, match="robust needs basis='sparse'"):
        KernelPotential(emt_soap, robust=True, **args).fit(few)
    with pytest.raises(DataError, match=r"no shifts between sources.*'fine', 'other'"):
        KernelPotential(emt_soap, **args).fit(two_sources(few))
    model = KernelPotential(emt_soap, **args).fit(few)
    assert model.doubts_ == ()
    with pytest.raises(ValueError, match="keeps its weights only"):
        model.leave_one_out(few)


def test_the_command_line_prints_doubts(planted, tmp_path):
    write(tmp_path / "train.xyz", planted, format="extxyz")
    small = ["--cutoff", "4", "--n-max", "4", "--l-max", "3", "--n-environments", "20"]
    command = ["fit", str(tmp_path / "train.xyz"), "-o", str(tmp_path / "m.kpot"), *small]
    runner = CliRunner(env={"COLUMNS": "120"})
    result = runner.invoke(cli.app, [*command, "--n-tangents", "5", "--robust"])
    assert result.exit_code == 0, result.output
    for words in ("Labels in doubt", "train.xyz, frame 7", "train.xyz, frame 11", "meV/atom"):
        assert words in result.stdout
    assert "frame 20" in runner.invoke(cli.app, ["info", str(tmp_path / "m.kpot")]).stdout
    result = runner.invoke(cli.app, [*command, "--force", "--reference-source", "none"])
    assert result.exit_code == 2
    assert "is the source of no structure" in result.output


@pytest.mark.parametrize("value", [1.0, -3.0, np.nan, 0])
def test_impossible_thresholds_are_errors(value, alloys):
    with pytest.raises(ValueError, match="at least 2 sigma"):
        KernelPotential(Soap(cutoff=3.0), robust=value).fit(alloys[0][:4])
