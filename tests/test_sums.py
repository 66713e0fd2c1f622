"""Sums of Gaussian processes with linear terms: pair splines, their fit, comparison of models."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.testing import assert_allclose
from sklearn.base import clone

from kernelpot import KernelPotential, PairSplines, Soap, load
from kernelpot.collapsed import collapse
from kernelpot.comparison import ModelRow, comparison_table, fit_and_compare, verdict
from kernelpot.conventions import System, as_int
from kernelpot.data import structures_from_atoms
from kernelpot.descriptors import pairs as module
from kernelpot.folds import folds_of
from kernelpot.gp import solvers
from kernelpot.gp.triangles import RowReducer, empty_triangle
from kernelpot.gp.whitening import whiten_blocks
from kernelpot.neighbours import find_pairs
from kernelpot.testing import check_descriptor, check_potential

from .naive import pairs as naive
from .test_species_mixing import crystals

NOISE = {"sigma_energy": 1e-3, "sigma_forces": 0.05, "sigma_stress": 1e-3}


def system_of(atoms, cutoff, species=(29, 79)):
    pairs = find_pairs(atoms.positions, atoms.cell[:], atoms.pbc, cutoff)
    return System(as_int(np.searchsorted(species, atoms.numbers)), pairs)


@pytest.fixture(scope="module")
def sum_model(emt_images):
    terms = [Soap(cutoff=4.0, n_max=4, l_max=3), PairSplines(cutoff=4.5, n_splines=24)]
    model = KernelPotential(terms, zeta=3, n_environments=12, n_tangents=4, **NOISE)
    return model.fit(emt_images)


@pytest.fixture(scope="module")
def with_free_atoms(emt_images):
    """Structures whose baseline is that of free atoms, whatever is left out."""
    free = []
    for symbol, energy in (("Cu", 3.51), ("Au", 3.80)):
        atoms = Atoms(symbol)
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        free.append(atoms)
    return [*emt_images[:16], *free]


# ------------------------------------------------------------------------ the descriptor


def test_features_equal_the_naive_ones(emt_images):
    atoms = emt_images[0]
    bound = PairSplines(cutoff=4.0, n_splines=9, length_scale=0.5).bind((29, 79))
    # More pairs than count: those beyond the cutoff must not.
    system = system_of(atoms, 5.0)
    pairs_of_i = [[] for _ in atoms]
    for i, j, r in zip(system.pairs.i_p, system.pairs.j_p, system.pairs.r_p, strict=True):
        if r < 4.0:
            pairs_of_i[i].append((system.species_n[j], r))
    expected = naive.features(range(len(atoms)), pairs_of_i, 2, 9, 4.0, 0.5, module._CONSTANT)
    x_bq, _ = bound.features(system, np.arange(len(atoms)))
    assert x_bq.shape == (len(atoms), bound.n_features)
    assert_allclose(x_bq, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pbc", [True, False])
@pytest.mark.parametrize("parameters", [{}, {"n_splines": 5, "length_scale": 2.0}])
def test_contract_of_descriptors(emt_images, pbc, parameters):
    atoms = emt_images[0].copy()
    atoms.pbc = pbc
    # three species, the first of them without an atom
    check_descriptor(PairSplines(cutoff=3.9, **parameters).bind(("Cu", 79, "H")), atoms)


def test_vjp_leaves_other_centres_alone(emt_images):
    atoms = emt_images[0]
    bound = PairSplines(cutoff=4.0).bind((29, 79))
    system = system_of(atoms, 4.0)
    centres_b = as_int([2, 0])
    _, state = bound.features(system, centres_b)
    out_pc = np.full((len(system.pairs.i_p), 3), 7.0)
    bound.vjp(system, centres_b, state, np.ones((2, bound.n_features)), out_pc)
    mine_p = np.isin(system.pairs.i_p, centres_b)
    assert np.all(out_pc[~mine_p] == 7.0)
    _, J_pcq = bound.jacobian(system, centres_b)
    first_n = system.pairs.first_n
    order_p = np.r_[first_n[2] : first_n[3], first_n[0] : first_n[1]]
    assert_allclose(out_pc[order_p], J_pcq.sum(axis=2), atol=1e-12)


def test_weights_of_unit_variance_are_a_smooth_function():
    bound = PairSplines(cutoff=5.0, n_splines=50, length_scale=0.8).bind(("Cu",))

    def functions(r):  # (n_distances, n_features): of a neighbour at r, without the constant
        rows = []
        for d in r:
            pairs = find_pairs(np.array([[0, 0, 0], [0, 0, d]]), np.zeros((3, 3)), [False] * 3, 6.0)
            rows.append(bound.features(System(as_int([0, 0]), pairs), as_int([0]))[0][0, 1:])
        return np.array(rows)

    # Far from the cutoff the covariance is the squared exponential.
    r = np.linspace(0.5, 2.5, 9)
    phi = functions(r)
    expected = np.exp(-0.5 * ((r[:, None] - r) / 0.8) ** 2)
    assert_allclose(phi @ phi.T, expected, atol=0.02)
    # At the cutoff value, slope and curvature vanish: it grows with the cube of the distance.
    near = functions(5.0 - np.array([0.05, 0.1]))
    assert_allclose(near[1], 8.0 * near[0], rtol=1e-5, atol=1e-12)
    assert not functions([5.0, 5.5]).any()


def test_parameters_of_the_descriptor():
    one = PairSplines(cutoff=4.0, n_splines=20, length_scale=0.7)
    assert PairSplines.from_settings(one.to_settings()) == one
    assert clone(one) == one
    assert repr(PairSplines(cutoff=4.0, n_splines=20)) == "PairSplines(cutoff=4.0, n_splines=20)"
    assert one.set_params(cutoff=5.0).cutoff == 5.0
    for name in ("sigma", "smoothing__width"):
        with pytest.raises(ValueError, match="no parameter"):
            one.set_params(**{name: 1.0})


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"cutoff": 0.0}, "cutoff must be a positive length"),
        ({"length_scale": "1"}, "length_scale must be a positive length"),
        ({"n_splines": 3}, "whole number from 4"),
        ({"n_splines": 8.0}, "whole number from 4"),
        ({"cutoff": 6.0, "n_splines": 8, "length_scale": 0.5}, "take n_splines=12 or more"),
    ],
)
def test_wrong_parameters_of_the_descriptor(parameters, words):
    with pytest.raises(ValueError, match=words):
        PairSplines(**parameters).bind(("Cu",))
    with pytest.raises(ValueError, match="PairSplines: 'Xx' is neither"):
        PairSplines().bind(("Xx",))


# ------------------------------------------------------------------------------- the fit


def test_a_sum_fits_and_obeys_the_laws(sum_model, emt_images):
    assert sum_model.n_environments_ == 12
    assert [c.zeta for c in sum_model.fitted_.components] == [3, 1]
    assert sum_model.fitted_.components[1].n_columns == 2 * (1 + 2 * 24)
    assert sum_model.score(emt_images) > 0.9

    def potential(atoms):
        p = sum_model.predict([atoms])
        return p.energy[0], p.forces[0], p.stress[0]

    check_potential(potential, emt_images[0])


def test_a_pair_term_helps_a_small_soap(sum_model, emt_images):
    alone = KernelPotential(
        Soap(cutoff=4.0, n_max=4, l_max=3), zeta=3, n_environments=12, n_tangents=4, **NOISE
    ).fit(emt_images)
    assert sum_model.leave_out_errors_["forces"] < alone.leave_out_errors_["forces"]


def test_a_sum_is_saved_whole(sum_model, emt_images, tmp_path):
    sum_model.save(tmp_path / "sum.kpot")
    again = load(tmp_path / "sum.kpot")
    one, two = (m.predict(emt_images[:3], return_std=True) for m in (sum_model, again))
    assert np.array_equal(one.energy, two.energy)
    assert all(map(np.array_equal, one.forces, two.forces))
    assert_allclose(one.energy_std, two.energy_std, rtol=1e-8)
    assert again.descriptor == sum_model.descriptor
    assert again.leave_out_errors_ == sum_model.leave_out_errors_
    assert again.leave_systems_out_errors_ == {}
    assert (again.data_fit_, again.n_environments_) == (sum_model.data_fit_, 12)
    before = again.leave_out_errors_
    again.partial_fit(emt_images[:2])
    assert again.leave_out_errors_ == before
    assert again.data_fit_ < sum_model.data_fit_


def morse_crystals(n_images, seed):
    rng = np.random.default_rng(seed)
    calculator = MorsePotential(epsilon=0.5, r0=2.9, rho0=4.0, rcut1=1.5, rcut2=1.9)
    images = []
    for _ in range(n_images):
        atoms = bulk("Ni", "fcc", a=4.1 * rng.uniform(0.95, 1.08), cubic=True) * (2, 1, 1)
        atoms.positions += rng.normal(0, 0.12, atoms.positions.shape)
        atoms.calc = calculator
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    return images


@pytest.fixture(scope="module")
def pair_model():
    return KernelPotential(PairSplines(cutoff=5.6, n_splines=48)).fit(morse_crystals(8, 0))


def test_pair_splines_learn_a_pair_potential(pair_model):
    test = morse_crystals(8, 1)
    found = pair_model.predict(test)
    label = np.concatenate([atoms.get_forces() for atoms in test])
    error = np.sqrt(np.mean((np.concatenate(found.forces) - label) ** 2))
    assert error < 2e-3 * np.sqrt(np.mean(label**2))
    energy = np.array([atoms.get_potential_energy() for atoms in test])
    assert_allclose(found.energy / 8, energy / 8, atol=1e-3)
    assert pair_model.n_environments_ == 0
    # What folds promise is what the test shows.
    assert 0.4 * error < pair_model.leave_out_errors_["forces"] < 4.0 * error


def test_its_pair_potential_is_the_one_behind_the_data(pair_model):
    # Energy differences of a dimer at distances that the data have.
    r = np.linspace(2.5, 5.0, 26)
    dimers = [Atoms("Ni2", [[0, 0, 0], [0, 0, d]]) for d in r]
    calculator = MorsePotential(epsilon=0.5, r0=2.9, rho0=4.0, rcut1=1.5, rcut2=1.9)
    truth = []
    for atoms in dimers:
        atoms.calc = calculator
        truth.append(atoms.get_potential_energy())
    found = pair_model.predict(dimers).energy
    assert_allclose(found - found[-1], np.array(truth) - truth[-1], atol=0.02)


def test_a_linear_model_collapses_to_one_vector(sum_model, emt_images):
    (pair_terms,) = [c for c in sum_model.fitted_.components if c.zeta == 1]
    group = pair_terms.inducing[0]
    weights_m = np.random.default_rng(0).standard_normal(len(group.Z_mq))
    collapsed = collapse(group, weights_m, 1)
    assert collapsed.V_jq.shape == (2, len(group.Z_mq))
    assert_allclose(collapsed.alpha_e[0] * collapsed.V_jq[0], weights_m @ group.Z_mq)
    assert not collapsed.V_jq[1].any()
    # and the same in a linear SOAP, whose inducing variables are environments
    soap = Soap(cutoff=4.0, n_max=3, l_max=2)
    model = KernelPotential(soap, zeta=1, n_environments=15, n_tangents=0, **NOISE)
    model.fit(emt_images[:10])
    weights = model.fitted_.weights_m
    atoms = emt_images[12]
    system = system_of(atoms, 4.0)
    x_bq, _ = model.fitted_.components[0].descriptor.features(system, np.arange(len(atoms)))
    first, second = model.fitted_.components[0].inducing
    Z = [first.Z_mq, second.Z_mq]
    w = np.split(weights, [len(Z[0])])
    expected = [x_q @ Z[z].T @ w[z] for x_q, z in zip(x_bq, system.species_n, strict=True)]
    baseline = model.baseline_.energies_of(atoms.numbers)
    assert_allclose(model.predict([atoms]).energies[0] - baseline, expected, atol=1e-9)


def options_of(descriptor, **parameters):
    model = KernelPotential(descriptor, **parameters)
    return model._options().components


def test_linear_descriptors_settle_their_parameters():
    soap, splines = options_of([Soap(), PairSplines()], zeta=2, n_tangents=5)
    assert (soap.zeta, soap.n_tangents) == (2, 5)
    assert (splines.zeta, splines.n_tangents) == (1, 0)
    (alone,) = options_of(PairSplines())
    assert (alone.zeta, alone.n_tangents) == (1, 0)
    (said,) = options_of(PairSplines(), zeta=1, n_tangents=0, delta=2.0)
    assert said == alone._replace(delta=2.0, descriptor=said.descriptor)
    _, none = options_of([Soap(), PairSplines()], zeta=[4, None], n_tangents=[8, None])
    assert none.zeta == 1
    for parameters in ({"zeta": 2}, {"n_tangents": 3}):
        with pytest.raises(ValueError, match="for PairSplines, which is linear"):
            options_of(PairSplines(), **parameters)
    with pytest.raises(ValueError, match="a linear model has its features as basis"):
        options_of(PairSplines(), basis="full")
    with pytest.raises(ValueError, match="zeta must be 1 for PairSplines"):
        options_of([Soap(), PairSplines()], zeta=[4, 4])


# ------------------------------------------------------- evidence and left-out structures


def test_the_two_terms_of_the_evidence():
    rng = np.random.default_rng(3)
    A, y, sigma = rng.standard_normal((30, 8)), rng.standard_normal(30), rng.uniform(0.2, 1, 30)
    reducer = RowReducer(empty_triangle(8))
    reducer.add(A, y, sigma)
    whitening = whiten_blocks([np.eye(8)], 1e-12)
    found = solvers.posterior([reducer.finish()], whitening, [1.7], [1.3])
    C = 1.7**2 * A @ A.T + np.diag((1.3 * sigma) ** 2)
    assert_allclose(found.data_fit, -0.5 * y @ np.linalg.solve(C, y), rtol=1e-10)
    assert_allclose(found.occam, -0.5 * np.linalg.slogdet(2 * np.pi * C)[1], rtol=1e-10)
    assert found.log_evidence == found.data_fit + found.occam


def test_linear_blocks_stay_whole_in_the_search_of_hyperparameters():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((30, 30))
    whitening = whiten_blocks([root @ root.T, np.eye(10)], 1e-12)
    small = whitening.leading(20, [False, True])
    assert [len(block.pivots_k) for block in small.blocks] == [10, 10]
    # The others keep a quarter of what was asked for.
    small = whitening.leading(8, [False, True])
    assert [len(block.pivots_k) for block in small.blocks] == [2, 10]


@pytest.mark.parametrize("systems", [False, True])
def test_left_out_errors_are_those_of_fits_without_the_fold(systems, with_free_atoms, tmp_path):
    # A linear model chooses no environments and its baseline is that of free atoms, so that a fit
    # without a fold differs by the rows of that fold and by nothing else.
    images = alloys_with_free_atoms() if systems else with_free_atoms
    parameters = {"delta": 3.0, **NOISE, "core_repulsion": False}
    terms = PairSplines(cutoff=4.5, n_splines=24)
    model = KernelPotential(terms, **parameters).fit(images)
    structures = structures_from_atoms(images)
    free = [s for s, atoms in enumerate(images) if len(atoms) == 1]
    folds = folds_of(structures, free, model.random_state)
    assert folds.parts[folds.folds_p.index(())].tolist() == free
    ways = [model.leave_out_errors_]
    ways += [model.leave_systems_out_errors_] if systems else []
    assert len(folds.n_folds_w) == len(ways)
    members = iter([folds.members(fold) for fold in range(folds.n_folds)])
    for n_folds, errors in zip(folds.n_folds_w, ways, strict=True):
        squares = {kind: [] for kind in errors}
        for fold in itertools.islice(members, n_folds):
            rest = [atoms for s, atoms in enumerate(images) if s not in fold]
            left = [images[s] for s in fold]
            found = KernelPotential(terms, **parameters).fit(rest).predict(left)
            for k, atoms in enumerate(left):
                label = atoms.calc.results
                off = (found.energy[k] - label["energy"]) / len(atoms)
                squares["energy"].append(off**2)
                for kind, values in (("forces", found.forces[k]), ("stress", found.stress[k])):
                    if kind in label:
                        squares[kind] += ((values - label[kind]) ** 2).ravel().tolist()
        for kind, values in squares.items():
            assert_allclose(errors[kind], np.sqrt(np.mean(values)), rtol=1e-6, err_msg=kind)
    model.save(tmp_path / "model.kpot")
    again = load(tmp_path / "model.kpot")
    assert again.leave_systems_out_errors_ == model.leave_systems_out_errors_


def alloys_with_free_atoms():
    """Three species, and systems enough to leave some out."""
    kinds = [("Cu",), ("Ag", "Au"), ("Cu", "Ag"), ("Cu", "Au")]
    images = [atoms for k, symbols in enumerate(kinds) for atoms in crystals(symbols, 7, k)]
    for symbol in ("Cu", "Ag", "Au"):
        atoms = Atoms(symbol)
        atoms.calc = SinglePointCalculator(atoms, energy=3.5)
        images.append(atoms)
    return images


def test_few_structures_have_no_left_out_errors(emt_images):
    model = KernelPotential(PairSplines(cutoff=4.0), **NOISE).fit(emt_images[:2])
    assert model.leave_out_errors_ == model.leave_systems_out_errors_ == {}


# ------------------------------------------------------------------- models side by side


@pytest.fixture(scope="module")
def rows(emt_images):
    soap = Soap(cutoff=4.0, n_max=3, l_max=2)
    args = {"n_environments": 6, "n_tangents": 2, **NOISE}
    models = {
        "pairs": KernelPotential(PairSplines(cutoff=4.0), **NOISE),
        "sum": KernelPotential([soap, PairSplines(cutoff=4.5)], **args),
    }
    return models, fit_and_compare(models, emt_images[:20])


def test_models_are_compared(rows):
    models, found = rows
    assert [row.name for row in found] == ["pairs", "sum"]
    for model, row in zip(models.values(), found, strict=True):
        assert row.log_evidence == model.log_evidence_
        assert_allclose(row.data_fit + row.occam, row.log_evidence, rtol=1e-12)
        assert row.leave_out == model.leave_out_errors_
        assert row.n_inducing == model.n_inducing_
        assert 0.0 < row.cost < 1e5
        assert row.fit_seconds > 0.0
    assert max(row.behind for row in found) == 0.0
    assert min(row.behind for row in found) == -abs(found[0].log_evidence - found[1].log_evidence)
    table = comparison_table(found, "Models")
    assert table.row_count == 11
    assert "The evidence prefers" in verdict(found)


def row(name, evidence, behind, **leave_out):
    return ModelRow(name, evidence, 0.0, evidence, evidence, behind, leave_out, 1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            [row("a", -10.0, 0.0, energy=1, forces=1), row("b", -12.0, -2.0, energy=2, forces=3)],
            "prefers a to b by a factor of 7.39. Left-out errors agree: those of energy and forces",
        ),
        (
            [
                row("a", -1e3, -990.0, energy=1, forces=1),
                row("b", -10.0, 0.0, energy=2, forces=0.5),
            ],
            "prefers b to a by a factor of 10^430. Left-out errors agree in part: least are those "
            "of energy with a (1e+03 meV/atom; b 2e+03 meV/atom) and forces with b (500 meV/A).",
        ),
        ([row("a", 1.0, 0.0, forces=2), row("b", 0.0, -1.0, forces=1)], "do not agree: least"),
        ([row("a", 1.0, 0.0), row("b", 0.0, -1.0, forces=1)], "too few to leave any out"),
        ([row("a", 1.0, 0.0)], "There is but one model, a."),
    ],
)
def test_verdicts(found, words):
    assert words in verdict(found)


def test_other_labels_are_refused(emt_images):
    images = []
    for atoms in emt_images[:6]:
        copy = atoms.copy()
        copy.calc = atoms.calc
        copy.info["my_energy"] = atoms.get_potential_energy()
        images.append(copy)
    models = {
        "all": KernelPotential(PairSplines(cutoff=4.0), **NOISE),
        "half": KernelPotential(PairSplines(cutoff=4.0), energy_key="my_energy", **NOISE),
    }
    for copy in images[:2]:
        del copy.info["my_energy"]
    with pytest.raises(ValueError, match=r"all is fitted to 6 energy.* and half to 4 energy"):
        fit_and_compare(models, images)
    with pytest.raises(ValueError, match="nothing to compare"):
        fit_and_compare({}, images)
