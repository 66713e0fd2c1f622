"""Fits that grow: new inducing variables without old structures, streamed labels, the schedule."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from sklearn.exceptions import NotFittedError

from kernelpot import Calculator, KernelPotential, PairSplines, Soap, load
from kernelpot.data_checks import DataError
from kernelpot.datasets import load_silicon
from kernelpot.fitted import Solved, Streamed, solve, solve_rows, whitening_of, with_posterior
from kernelpot.gp.covariances import K_ab, K_mm
from kernelpot.gp.evidence import gram, maximise
from kernelpot.gp.growth import Added, Candidates, extend, extend_posterior, extend_triangle
from kernelpot.gp.inducing import Inducing, join, merge
from kernelpot.gp.nuisance import put_in_front
from kernelpot.gp.solvers import posterior, update
from kernelpot.gp.triangles import RowReducer, empty_triangle
from kernelpot.gp.whitening import whiten_blocks
from kernelpot.growth import grow
from kernelpot.label_rows import add_rows, label_rows
from kernelpot.options import effective_noise
from kernelpot.schedule import Schedule
from kernelpot.selection import system_of
from kernelpot.streaming import Surprise, absorb_labels
from kernelpot.variances import variance_terms
from tests.conftest import label
from tests.naive import gp as naive

ZETA = 3


def quiet(*_):
    """Progress that nobody wants to see."""


def some_inducing(rng, n_environments, n_tangents=2, n_features=7):
    """Random unit vectors with orthogonal unit tangents."""
    x_eq = np.abs(rng.normal(size=(n_environments, n_features)))
    x_eq /= np.linalg.norm(x_eq, axis=1, keepdims=True)
    tangents = []
    for x_q in x_eq:
        basis = np.linalg.qr(np.column_stack([x_q, rng.normal(size=(n_features, n_tangents))]))[0]
        tangents.append(basis[:, 1:].T)
    return join(x_eq, tangents)


def reduced(A_rm, y_r, sigma=0.1):
    """Triangle of rows with the same noise."""
    reducer = RowReducer(empty_triangle(A_rm.shape[1]), 64)
    reducer.add(A_rm, y_r, np.full(len(y_r), sigma))
    return reducer.finish()


class Case:
    """Two blocks behind a variable in front, each with new variables; dense algebra."""

    def __init__(self, seed, n_rows=60, n_new=(2, 1), known=False):
        rng = np.random.default_rng(seed)
        self.old = [some_inducing(rng, 3), some_inducing(rng, 2)]
        self.new = [some_inducing(rng, n) for n in n_new]
        self.y_r = rng.normal(size=n_rows)
        x_nq = some_inducing(rng, n_rows, 0).Z_mq
        front_r = rng.integers(0, 3, n_rows).astype(float)

        def columns(groups):
            if not known:
                return [naive.K_bm(x_nq, group, ZETA) for group in groups]
            # Rows of which the old variables know everything: combinations of these.
            parts = zip(groups, self.old, self.mixing, strict=True)
            return [mixing_rm @ K_ab(old, group, ZETA) for group, old, mixing_rm in parts]

        self.mixing = [rng.normal(size=(n_rows, len(group.Z_mq))) for group in self.old]
        self.all = [merge([a, b]) for a, b in zip(self.old, self.new, strict=True)]
        self.A_rm = np.column_stack([front_r, *columns(self.old)])
        self.A_full_rm = np.column_stack([front_r, *columns(self.all)])
        self.whitening = put_in_front(
            1, whiten_blocks([K_mm(group, ZETA) for group in self.old], 1e-12)
        )
        added_b = [Added(np.zeros((1, 0)), np.zeros((0, 0)))]
        for old, new in zip(self.old, self.new, strict=True):
            added_b.append(Added(K_ab(old, new, ZETA), K_mm(new, ZETA)))
        self.extension = extend(self.whitening, added_b, 1e-12)
        self.delta_b = [10.0, 1.5, 0.7]


# ------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("n_new", [(2, 1), (0, 2), (3, 0)])
def test_an_extended_whitening_factorises_the_covariance_of_all_variables(n_new):
    case = Case(0, n_new=n_new)
    first = 1
    for group, block, before in zip(
        case.all, case.extension.whitening.blocks[1:], case.whitening.blocks[1:], strict=True
    ):
        places_k = block.pivots_k - first
        K = naive.K_mm(group, ZETA)[np.ix_(places_k, places_k)]
        np.testing.assert_allclose(block.L_kk @ block.L_kk.T, K, rtol=0, atol=1e-11)
        n = len(before.pivots_k)
        np.testing.assert_array_equal(block.L_kk[:n, :n], before.L_kk)
        first += len(group.Z_mq)
    assert case.extension.whitening.n_raw == first


def test_a_new_variable_that_is_there_already_is_dependent():
    rng = np.random.default_rng(1)
    there = some_inducing(rng, 3)
    whitening = whiten_blocks([K_mm(there, ZETA)], 1e-12)
    again = Added(K_ab(there, there, ZETA), K_mm(there, ZETA))
    extension = extend(whitening, [again], 1e-10)
    assert extension.whitening.n_whitened == whitening.n_whitened
    assert extension.whitening.n_raw == 2 * whitening.n_raw


@pytest.mark.parametrize("n_rows", [5, 60])
@pytest.mark.parametrize("n_new", [(2, 1), (0, 2), (3, 0)])
def test_new_columns_are_interpolated(n_rows, n_new):
    case = Case(2, n_rows, n_new)
    extended = extend_triangle(reduced(case.A_rm, case.y_r), case.extension)
    parts, first = [case.A_rm[:, :1]], 1
    for old, new in zip(case.old, case.new, strict=True):
        mine_rm = case.A_rm[:, first : first + len(old.Z_mq)]
        K_mn = naive.K_mm(merge([old, new]), ZETA)[: len(old.Z_mq), len(old.Z_mq) :]
        parts += [mine_rm, naive.interpolated(mine_rm, naive.K_mm(old, ZETA), K_mn)]
        first += len(old.Z_mq)
    rows = np.column_stack([*parts, case.y_r]) / 0.1
    R = extended.R
    np.testing.assert_allclose(R.T @ R, rows.T @ rows, rtol=0, atol=1e-8 * np.abs(rows).max() ** 2)
    assert np.array_equal(R, np.triu(R))
    assert len(R) <= R.shape[1]
    assert extended.n_rows == n_rows
    np.testing.assert_allclose(extended.log_noise, n_rows * np.log(0.1))


def test_growth_is_exact_for_rows_that_the_old_variables_know():
    case = Case(3, known=True)
    grown = extend_triangle(reduced(case.A_rm, case.y_r), case.extension)
    full = reduced(case.A_full_rm, case.y_r)
    size = np.abs(full.R.T @ full.R).max()
    np.testing.assert_allclose(grown.R.T @ grown.R, full.R.T @ full.R, rtol=0, atol=1e-9 * size)


def test_a_grown_posterior_is_that_of_the_grown_statistics():
    case = Case(4)
    triangle = reduced(case.A_rm, case.y_r)
    before = posterior([triangle], case.whitening, case.delta_b)
    grown = extend_posterior(before, case.extension, case.delta_b)
    grown_triangle = extend_triangle(triangle, case.extension)
    anew = posterior([grown_triangle], case.extension.whitening, case.delta_b)
    assert grown.log_evidence == before.log_evidence
    np.testing.assert_allclose(anew.log_evidence, grown.log_evidence, rtol=1e-9)
    np.testing.assert_allclose(case.A_full_rm @ grown.weights(), case.A_full_rm @ anew.weights(),
                               rtol=0, atol=1e-7)  # fmt: skip
    prior_r = np.full(len(case.y_r), 500.0)
    np.testing.assert_allclose(
        grown.variance(prior_r, case.A_full_rm), anew.variance(prior_r, case.A_full_rm), rtol=1e-8
    )


def test_a_posterior_that_absorbs_rows_is_that_of_all_rows():
    case = Case(5)
    parts = [slice(0, 20), slice(20, 23), slice(23, 60)]
    triangles = [reduced(case.A_rm[part], case.y_r[part]) for part in parts]
    streamed = posterior(triangles[:1], case.whitening, case.delta_b, [0.9])
    for one in triangles[1:]:
        streamed = update(streamed, [one], [0.9])
    at_once = posterior(triangles, case.whitening, case.delta_b, [0.9] * 3)
    np.testing.assert_allclose(streamed.w_k, at_once.w_k, rtol=1e-8)
    np.testing.assert_allclose(streamed.data_fit, at_once.data_fit, rtol=1e-10)
    np.testing.assert_allclose(streamed.occam, at_once.occam, rtol=1e-10)
    np.testing.assert_allclose(
        streamed.R_kk.T @ streamed.R_kk, at_once.R_kk.T @ at_once.R_kk, rtol=1e-8, atol=1e-8
    )


def test_candidates_know_the_variance_given_all_that_is_there_or_taken():
    rng = np.random.default_rng(6)
    there, tried = some_inducing(rng, 3), some_inducing(rng, 6)
    (block,) = whiten_blocks([K_mm(there, ZETA)], 1e-12).blocks
    candidates = Candidates(there, block, 0, tried.x_eq, ZETA)
    known = naive.variables(there)
    every = [(x_q, None) for x_q in tried.x_eq]
    for n in (4, 1):
        expected = naive.conditional_variance(every, known, ZETA)
        np.testing.assert_allclose(candidates.variance_n, expected, rtol=0, atol=1e-10)
        own = slice(tried.first_e[n] + 1, tried.first_e[n + 1])
        candidates.take(n, 3.0 * tried.Z_mq[own], 2, 1e-6)
        known += naive.variables(Inducing(candidates.taken.Z_mq[-3:], np.array([0, 3])))
    expected = naive.conditional_variance(every, known, ZETA)
    np.testing.assert_allclose(candidates.variance_n, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(candidates.taken.Z_mq, axis=1), 1.0)
    np.testing.assert_array_equal(candidates.taken.first_e, [0, 3, 6])
    np.testing.assert_array_equal(candidates.taken.x_eq, tried.x_eq[[4, 1]])


def test_of_tangents_those_that_are_known_least_are_taken():
    rng = np.random.default_rng(7)
    there = some_inducing(rng, 1, 3)
    (block,) = whiten_blocks([K_mm(there, ZETA)], 1e-12).blocks
    new = some_inducing(rng, 1, 4)
    candidates = Candidates(there, block, 0, new.x_eq, ZETA)
    candidates.take(0, new.Z_mq[1:], 2, 1e-6)
    x_q = new.Z_mq[0]
    known = [*naive.variables(there), (x_q, None)]
    tangents = [(x_q, tau_q) for tau_q in new.Z_mq[1:]]
    first = int(np.argmax(naive.conditional_variance(tangents, known, ZETA)))
    np.testing.assert_allclose(candidates.taken.Z_mq[1], new.Z_mq[1 + first], atol=1e-12)
    assert len(candidates.taken.Z_mq) == 3


def test_what_is_open_makes_the_bound_of_the_evidence_largest():
    rng = np.random.default_rng(8)
    there = some_inducing(rng, 4, 1)
    x_nq = some_inducing(rng, 30, 0).Z_mq
    K_rr = (x_nq @ x_nq.T) ** ZETA
    y_r = np.linalg.cholesky(4.0 * K_rr + 0.09 * np.eye(30)) @ rng.normal(size=30)
    whitening = whiten_blocks([K_mm(there, ZETA)], 1e-12)
    A_rm = naive.K_bm(x_nq, there, ZETA)
    phi_rk = whitening.whiten(A_rm)
    Q_rr = phi_rk @ phi_rk.T
    triangle = reduced(A_rm, y_r, 1.0)
    open_lg = np.array([[np.sum(1.0 - np.diag(Q_rr))]])
    component_k = np.zeros(whitening.n_whitened, np.intp)

    def found(start, open_lg=open_lg):
        one = maximise([gram(triangle, whitening)], component_k, [None], [None],
                       noise_range=[(1e-3, 10.0)], start=start, open_lg=open_lg)  # fmt: skip
        return float(one.delta_g[0]), float(one.noise_l[0])

    def bound(delta, noise):
        return naive.evidence_bound(delta**2 * Q_rr, delta**2 * K_rr, y_r, np.full(30, noise))

    delta, noise = found(([1.0], [0.5]))
    best = bound(delta, noise)
    for factor in (0.95, 1.05):
        assert bound(delta * factor, noise) < best > bound(delta, noise * factor)
    without = found(([1.0], [0.5]), np.zeros((1, 1)))
    assert without[1] < noise  # the evidence itself takes for signal what is not explained
    far = found(([delta / 6.0], [noise]))
    np.testing.assert_allclose(far[0], delta / 1.5, rtol=1e-6)  # no further than a factor of 4


# ----------------------------------------------------------------------------- potentials


def fitted_model(images, soap, **parameters):
    """A small model."""
    settings = {"n_environments": 8, "n_tangents": 3, "sigma_stress": 1e-3, **parameters}
    return KernelPotential(soap, **settings).fit(images)


def predictions(fitted, images, model):
    """Energies and forces by a fit, in the place of the model's own."""
    other = KernelPotential(model.descriptor)
    other._descriptor = model._descriptor
    other._adopt(fitted)
    found = other.predict(images)
    return np.concatenate([found.energy, np.concatenate(found.forces).ravel()])


def test_growth_by_itself_changes_no_prediction(emt_images, emt_soap):
    model = fitted_model(emt_images[:10], emt_soap)
    new = model._structures(emt_images[10:14], "required")
    grown = grow(model.fitted_, new, model._options(), 3, 1e-6)
    bound = grown.components[0].descriptor
    assert grown.components[0].n_environments == model.n_environments_ + 3
    assert grown.log_evidence == model.log_evidence_
    np.testing.assert_allclose(
        predictions(grown, emt_images[:14], model),
        predictions(model.fitted_, emt_images[:14], model),
        rtol=0, atol=1e-9,
    )  # fmt: skip

    # The new variables make the variance of nothing larger, but for what the rows say of them.
    def open_energies(fitted):
        model._adopt(fitted)
        process = model.predictor_.process
        return np.concatenate(
            [
                variance_terms(process, system_of(bound, one), np.nan, ("energies",))[
                    "energies"
                ].std
                for one in new
            ]
        )

    before, after = open_energies(model.fitted_), open_energies(grown)
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_a_grown_fit_is_close_to_one_of_all_rows(emt_images, emt_soap):
    model = fitted_model(emt_images[:15], emt_soap, n_environments=16)
    fitted = model.fitted_
    old = model._structures(emt_images[:15], "required")
    new = model._structures(emt_images[15:25], "required")
    for one in new:
        fitted = grow(fitted, [one], model._options(), 2, 1e-5)
        fitted, _ = absorb_labels(fitted, [one], quiet)
    triangles = add_rows({}, [*old, *new], fitted.known, quiet)
    effective = effective_noise(fitted.noise, 1.0)
    components = fitted.components
    anew = solve_rows(triangles, whitening_of(components), components, fitted.delta_g, effective)
    anew = with_posterior(fitted._replace(triangles=triangles), Solved(anew))
    test = emt_images[25:]
    exact = predictions(anew, test, model)
    forces = np.concatenate([a.get_forces() for a in test])
    labels = np.concatenate([[a.get_potential_energy() for a in test], forces.ravel()])
    error = np.sqrt(np.mean((exact - labels) ** 2))
    moved = np.sqrt(np.mean((predictions(fitted, test, model) - exact) ** 2))
    print(f"error of the fit to all rows {error:.4f}, moved by interpolation {moved:.4f}")
    assert components[0].n_environments > model.n_environments_
    assert moved < 0.2 * error
    # The statistics alone, solved anew, give what was streamed.
    np.testing.assert_allclose(
        predictions(with_posterior(fitted, Solved(solve(fitted))), test, model),
        predictions(fitted, test, model), rtol=0, atol=1e-5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def silicon():
    """Rattled crystals, other structures to learn one by one, and such to test with."""
    images = load_silicon()
    crystals = [a for a in images if a.info["group"] == "diamond-rattled" and len(a) == 8][:6]
    others = [a for a in images if a.info["group"] in ("liquid", "vacancy") and len(a) < 12]
    return crystals, others[::2], others[1::2]


@pytest.fixture(scope="module")
def silicon_model(silicon):
    """A model that knows crystals; tests must not change it."""
    soap = Soap(cutoff=4.5, n_max=6, l_max=4)
    return KernelPotential(soap, n_environments=4, n_tangents=8).fit(silicon[0])


def copy_of(model, tmp_path):
    """The same model again."""
    model.save(tmp_path / "model.kpot")
    return load(tmp_path / "model.kpot")


def force_error(model, images):
    """Root mean square, eV/A."""
    errors = [f - a.get_forces() for f, a in zip(model.predict(images).forces, images, strict=True)]
    return np.sqrt(np.mean(np.concatenate(errors) ** 2))


@pytest.fixture(scope="module")
def grown_silicon(silicon, silicon_model, tmp_path_factory):
    """That model after new structures one by one."""
    model = copy_of(silicon_model, tmp_path_factory.mktemp("grown"))
    for atoms in silicon[1]:
        model.partial_fit([atoms], grow=True)
    return model


def test_a_grown_model_knows_what_its_first_structures_did_not_show(
    silicon, silicon_model, grown_silicon, tmp_path
):
    crystals, new, test = silicon
    plain = copy_of(silicon_model, tmp_path).partial_fit(new)
    settings = {"n_tangents": 8, "n_environments": grown_silicon.n_environments_}
    anew = KernelPotential(silicon_model.descriptor, **settings).fit(crystals + new)
    errors = [force_error(m, test) for m in (silicon_model, plain, grown_silicon, anew)]
    print("crystals only {:.3f}, without growth {:.3f}, grown {:.3f}, anew {:.3f}".format(*errors))
    assert grown_silicon.n_environments_ > silicon_model.n_environments_ + 4
    assert errors[2] < 0.8 * errors[1] < errors[0]
    assert errors[2] < 1.2 * errors[3]


def test_hyperparameters_are_found_at_once_or_later(silicon, silicon_model, tmp_path):
    (at_once, later), new = (copy_of(silicon_model, tmp_path) for _ in range(2)), silicon[1][:4]
    n_before = later.schedule_.n_tuned
    at_once.partial_fit(new, grow=True)
    later.partial_fit(new, grow=True, tune=False)
    assert at_once.schedule_.tunings, "the case is to be one in which it is due"
    why = later.schedule_.advice.tune
    assert why
    assert later.schedule_.n_tuned == n_before
    assert later.noise_ != at_once.noise_
    assert later.tune() is later
    assert later.schedule_ == at_once.schedule_
    assert later.schedule_.tunings[-1][1] == why
    assert later.noise_ == at_once.noise_
    assert later.delta_ == at_once.delta_
    np.testing.assert_array_equal(later.fitted_.weights_m, at_once.fitted_.weights_m)
    one, other = (m.predict(silicon[2][:2], return_std=True) for m in (later, at_once))
    np.testing.assert_array_equal(one.forces_std, other.forces_std)
    # The file has it all.
    again = copy_of(later, tmp_path)
    assert again.schedule_ == later.schedule_
    np.testing.assert_array_equal(again.predict(silicon[2][:2]).forces, one.forces)
    # Where nothing is due it is done all the same, and goes on from where it was.
    before = dict(later.noise_)
    later.tune()
    assert later.schedule_.tunings[-1][1] == "asked for"
    for kind, noise in later.noise_.items():
        assert 0.2 < noise / before[kind] < 5.0


def test_what_cannot_be_tuned(emt_images, emt_soap):
    with pytest.raises(NotFittedError):
        KernelPotential(emt_soap).tune()
    with pytest.raises(ValueError, match="basis='full' keeps its weights only"):
        KernelPotential(emt_soap, basis="full").fit(emt_images[:6]).tune()


def test_a_grown_model_gets_axes_for_what_it_had_left_out(silicon, silicon_model, grown_silicon):
    narrow, wide = (m.fitted_.components[0] for m in (silicon_model, grown_silicon))
    n_old = narrow.descriptor.n_features
    assert wide.descriptor.n_features > n_old
    axes_kq = wide.descriptor.axes_z[0]
    np.testing.assert_allclose(axes_kq @ axes_kq.T, np.eye(len(axes_kq)), rtol=0, atol=1e-9)
    old, new = narrow.inducing[0].Z_mq, wide.inducing[0].Z_mq
    np.testing.assert_array_equal(new[: len(old), :n_old], old)
    assert not new[: len(old), n_old:].any()
    # New environments are as long as the tolerance says, which on the old axes alone they are not.
    x_eq = wide.inducing[0].x_eq[len(narrow.inducing[0].first_e) - 1 :]
    short = 1.0 - np.sum(x_eq**2, axis=1)
    without = 1.0 - np.sum(x_eq[:, :n_old] ** 2, axis=1)
    assert np.max(short) < 1e-4
    assert np.max(without) > 10 * np.max(short)


def test_a_grown_model_is_the_same_from_its_file(silicon, grown_silicon, tmp_path):
    grown = copy_of(grown_silicon, tmp_path).partial_fit(silicon[2][2:3], grow=True)
    assert isinstance(grown.fitted_.posterior, Streamed)
    again = copy_of(grown, tmp_path)
    assert isinstance(again.fitted_.posterior, Streamed)
    assert again.fitted_.open_rows == grown.fitted_.open_rows
    assert again.schedule_ == grown.schedule_
    assert again.fitted_.posterior().log_evidence == grown.log_evidence_
    one, other = (m.predict(silicon[2][:2], return_std=True) for m in (grown, again))
    for a, b in zip(one, other, strict=True):
        if a is not None:
            np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in a]),
                                              np.concatenate([np.ravel(x) for x in b]))  # fmt: skip
    # And goes on in the same way.
    for model in (grown, again):
        model.partial_fit(silicon[2][:1], grow=True)
    np.testing.assert_array_equal(again.fitted_.weights_m, grown.fitted_.weights_m)
    np.testing.assert_array_equal(again.fitted_.posterior().R_kk, grown.fitted_.posterior().R_kk)


def test_everything_works_on_a_grown_model(silicon, grown_silicon):
    _, new, test = silicon
    found = grown_silicon.predict(test[:2], return_std=True, return_cov="energy")
    np.testing.assert_allclose(np.diag(found.cov.matrix), found.energy_std**2, rtol=1e-6)
    calculator = Calculator(grown_silicon)
    atoms = new[0].copy()
    atoms.calc = calculator
    # Environments that were taken are known; those of a structure never seen are less so.
    assert np.min(calculator.get_property("novelty", atoms)) < 1e-4
    assert np.isfinite(grown_silicon.evidence_bound(test))
    assert len(grown_silicon.sample(2, random_state=0)) == 2
    with pytest.raises(ValueError, match="grew"):
        grown_silicon.leave_one_out(new[:3])


def test_atoms_that_come_nearer_take_their_range_from_the_repulsion(silicon_model, tmp_path):
    model = copy_of(silicon_model, tmp_path)
    dimer = Atoms("Si2", [[0, 0, 0], [0, 0, 0.9 * model.repulsion_.outer[0]]])
    dimer.calc = SinglePointCalculator(
        dimer, energy=-8.0, forces=np.array([[0, 0, -5.0], [0, 0, 5.0]])
    )
    model.partial_fit([dimer], grow=True)
    assert model.repulsion_.outer[0] < 0.9 * silicon_model.repulsion_.outer[0]
    assert model.repulsion_.inner[0] < model.repulsion_.outer[0]


def test_sources_sums_and_models_without_tangents_grow(emt_images, emt_soap, tmp_path):
    images = [a.copy() for a in emt_images[:24]]
    for k, (atoms, labelled) in enumerate(zip(images, emt_images, strict=False)):
        label(atoms)
        atoms.info["source"] = ("a", "b")[k % 3 == 0]
        assert labelled is not atoms
    model = KernelPotential(
        [emt_soap, PairSplines(cutoff=4.0, n_splines=8), Soap(cutoff=3.0, n_max=3, l_max=2)],
        zeta=[4, 1, 2], n_environments=[6, 1, 4], n_tangents=[2, 0, 0],
    ).fit(images[:12])  # fmt: skip
    n_columns = [component.n_columns for component in model.fitted_.components]
    before = force_error(model, images[18:])
    model.partial_fit(images[12:18], grow=9)
    more = [c.n_columns for c in model.fitted_.components]
    assert more[1] == n_columns[1]
    assert sum(more) > sum(n_columns)
    assert model.n_inducing_ == sum(more)
    assert force_error(model, images[18:]) < 1.1 * before
    streamed = model.fitted_
    anew = with_posterior(streamed, Solved(solve(streamed)))
    np.testing.assert_allclose(
        predictions(anew, images[18:], model), predictions(streamed, images[18:], model),
        rtol=0, atol=1e-4,
    )  # fmt: skip
    again = copy_of(model, tmp_path)
    assert again.source_shifts_ == model.source_shifts_
    np.testing.assert_array_equal(again.fitted_.posterior().R_kk, streamed.posterior().R_kk)


def test_shared_centres_grow(emt_images, tmp_path):
    soap = Soap(cutoff=4.0, n_max=4, l_max=3, centre_similarity=0.5)
    model = fitted_model(emt_images[:6], soap, n_environments=6, feature_tolerance=1e-3)
    before = predictions(model.fitted_, emt_images[30:], model)
    new = model._structures(emt_images[30:], "required")
    grown = grow(model.fitted_, new, model._options(), 6, 1e-6)
    assert (
        grown.components[0].descriptor.n_features
        > model.fitted_.components[0].descriptor.n_features
    )
    np.testing.assert_allclose(
        predictions(grown, emt_images[30:], model), before, rtol=0, atol=1e-8
    )
    model.partial_fit(emt_images[30:34], grow=True)
    again = copy_of(model, tmp_path)
    np.testing.assert_array_equal(again.predict(emt_images[:1]).energy,
                                  model.predict(emt_images[:1]).energy)  # fmt: skip


def test_what_is_refused_changes_nothing(emt_images, emt_model, tmp_path):
    model = copy_of(emt_model, tmp_path)
    before = model.fitted_
    stranger = label(bulk("Ag", cubic=True))
    with pytest.raises(DataError, match="does not know"):
        model.partial_fit([stranger], grow=True)
    with pytest.raises(ValueError, match="how many environments"):
        model.partial_fit(emt_images[:1], grow=-1)
    assert model.fitted_ is before


def test_nothing_new_adds_nothing(emt_images, emt_soap):
    model = fitted_model(emt_images[:10], emt_soap)
    n_inducing = model.n_inducing_
    new = model._structures(emt_images[10:11], "required")
    assert grow(model.fitted_, new, model._options(), 5, 1.0).components == model.fitted_.components
    assert grow(model.fitted_, new, model._options(), 0).components[0].n_columns == n_inducing


def test_surprise_is_that_of_the_predictive_covariance(emt_images, emt_soap):
    model = fitted_model(emt_images[:12], emt_soap, sigma_forces=0.05, sigma_energy=1e-3)
    (one,) = model._structures(emt_images[12:13], "required")
    _, (surprise,) = absorb_labels(model.fitted_, [one], quiet)
    fitted = model.fitted_
    found = label_rows(one, fitted.known)
    A_rm = np.concatenate([rows.A_rm for rows in found])
    y_r = np.concatenate([rows.y_r for rows in found])
    noise_r = np.concatenate([fitted.noise[rows.label] * rows.sigma_r for rows in found])
    solved = fitted.posterior()
    # Of what is open beside the inducing variables only the variances count.
    std = model.predict(emt_images[12:13], return_std=True)
    n = one.n_atoms
    std_r = np.concatenate([std.energy_std / n, std.forces_std[0].ravel(), std.stress_std[0]])
    spread_rk = solved.parts(A_rm)[1]
    C_rr = spread_rk @ spread_rk.T
    np.fill_diagonal(C_rr, std_r**2 + noise_r**2)
    expected = naive.chi_squared(y_r, A_rm @ solved.weights(), C_rr)
    assert surprise.n_rows == len(y_r)
    np.testing.assert_allclose(surprise.chi_squared, expected, rtol=1e-6)


# ------------------------------------------------------------------------------- schedule


def test_hyperparameters_wait_while_labels_are_as_expected():
    rng = np.random.default_rng(0)
    schedule = Schedule(200, 200, 200)
    for _ in range(49):
        schedule = schedule.after([Surprise(31, rng.chisquare(31))])
        assert schedule.advice == ("", "")
    assert schedule.n_structures == 249
    assert len(schedule.ratios) == 20


def test_they_are_due_when_labels_are_less_probable_than_expected():
    scale = 3.0
    rng = np.random.default_rng(1)
    schedule = Schedule(30, 30, 30)
    for _ in range(5):
        assert not schedule.advice.tune
        schedule = schedule.after([Surprise(31, scale * rng.chisquare(31))])
    assert "labels of the last 5 structures" in schedule.advice.tune
    tuned = schedule.tuned(schedule.advice.tune)
    assert tuned.tunings == ((35, schedule.advice.tune),)
    assert not tuned.advice.tune
    # Labels nearer than expected are no reason. And whatever they say, there is a pause.
    assert not Schedule(100, 100, 100).after([Surprise(31, 9.0)] * 20).advice.tune
    wait = Schedule(1000, 1000, 1000).after([Surprise(31, 31 * scale)] * 50)
    assert not wait.advice.tune


def test_one_outlier_is_no_trend():
    rng = np.random.default_rng(2)
    schedule = Schedule(90, 90, 90).after([Surprise(31, rng.chisquare(31)) for _ in range(9)])
    assert not schedule.after([Surprise(31, 31e6)]).advice.tune


def test_hyperparameters_are_due_after_a_quarter_and_a_fit_to_all_after_as_many_structures():
    schedule = Schedule(10, 10, 10).after([Surprise(0, 0.0)] * 2)
    assert schedule.advice == ("", "")
    schedule = schedule.after([Surprise(0, 0.0)])
    assert schedule.advice == ("13 structures, 10 when they were found", "")
    schedule = schedule.tuned(schedule.advice.tune).after([Surprise(0, 0.0)] * 3)
    assert schedule.advice == ("", "")
    schedule = schedule.after([Surprise(0, 0.0)] * 4)
    assert schedule.advice.tune == "20 structures, 13 when they were found"
    assert schedule.advice.refit == "20 structures, 10 at the last fit to all"
    assert Schedule.from_settings(schedule.tuned("why").to_settings()) == schedule.tuned("why")


def test_a_model_says_when_and_why_it_was_tuned(silicon, silicon_model, grown_silicon):
    n_first, n_new = len(silicon[0]), len(silicon[1])
    schedule = grown_silicon.schedule_
    assert schedule.n_refit == n_first
    assert (
        schedule.n_structures == n_first + n_new == grown_silicon.training_summary_["n_structures"]
    )
    assert schedule.tunings
    assert schedule.n_tuned == schedule.tunings[-1][0]
    assert schedule.advice.refit
    assert grown_silicon.noise_ != silicon_model.noise_
    assert silicon_model.schedule_ == Schedule(n_first, n_first, n_first)
