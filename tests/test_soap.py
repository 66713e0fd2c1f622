"""SOAP: against dscribe, a naive twin, finite differences and the symmetries of space."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from sklearn.base import clone

from kernelpot.conventions import System, as_int
from kernelpot.descriptors import DscribePoly, ShiftedCosine, SmoothBump, Soap, Willatt
from kernelpot.descriptors.soap import COMPRESSIONS
from kernelpot.neighbours import find_pairs
from tests.naive import soap as naive


def rattled(atoms, seed=0, amplitude=0.1):
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0, amplitude, atoms.positions.shape)
    return atoms


def boxed(name, pbc, box):
    atoms = molecule(name)
    atoms.set_cell(box)
    atoms.pbc = pbc
    return atoms


STRUCTURES = {
    "crystal smaller than the cutoff": rattled(bulk("Si"), 1),
    "skewed crystal of two species": rattled(bulk("NaCl", "rocksalt", a=5.6), 2),
    "slab": rattled(boxed("CH3CH2OH", (True, True, False), [4.5, 5.0, 20.0]), 3),
    "wire": rattled(boxed("CH3CH2OH", (False, False, True), [20.0, 20.0, 4.0]), 4),
    "molecule": rattled(molecule("CH3CH2OH"), 5),
    "lone atom": Atoms("Si", positions=[[0.3, 0.2, 0.1]]),
}
WEIGHTINGS = {
    "none": None,
    "w0": {"w0": 0.3},
    "poly": {"function": "poly", "c": 1.3, "m": 2, "r0": 4.0},
    "pow w0": {"function": "pow", "c": 1.7, "d": 1.2, "m": 3, "r0": 2.0, "w0": 0.5},
    "exp": {"function": "exp", "c": 1.7, "d": 3.0, "r0": 2.0},
}
WEIGHTS = {"H": 0.6, "C": 1.1, "O": 1.4, "Na": 0.8, "Cl": 1.3, "Si": 0.9}


def system_of(bound, atoms, cutoff=None):
    cutoff = bound.cutoff if cutoff is None else cutoff
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    return System(as_int(np.searchsorted(bound.species, atoms.numbers)), pairs)


def features(soap, atoms):
    bound = soap.bind(set(atoms.numbers.tolist()))
    return bound.features(system_of(bound, atoms), np.arange(len(atoms)))[0]


def close(got, want, tolerance):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


# Values


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("basis", ["gto", "polynomial"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_equals_dscribe(name, basis, weighting, compression):
    atoms, weighting = STRUCTURES[name], WEIGHTINGS[weighting]
    settings = {"cutoff": 3.6, "n_max": 4, "l_max": 3, "basis": basis, "compression": compression}
    if weighting is None:
        settings |= {"smoothing": None, "scaling": None}
    else:
        settings["weighting"] = weighting
    # dscribe 2.1.2 mixes up the species weights of mu2 with the polynomial basis.
    if compression != "off" and (basis, compression) != ("polynomial", "mu2"):
        settings["species_weights"] = {z: WEIGHTS[z] for z in set(atoms.symbols)}
    expected = Soap(**settings, engine="dscribe").create(atoms)
    close(Soap(**settings).create(atoms), expected, 1e-10)


@pytest.mark.parametrize(
    ("basis", "n_max", "l_max", "sigma"),
    [("gto", 8, 8, 0.5), ("gto", 5, 12, 0.7), ("gto", 1, 0, 0.5), ("polynomial", 8, 8, 0.5)],
)
def test_equals_dscribe_at_working_sizes(basis, n_max, l_max, sigma):
    atoms = rattled(bulk("Si", cubic=True))
    soap = Soap(cutoff=5.0, n_max=n_max, l_max=l_max, sigma=sigma, basis=basis)
    soap.set_params(smoothing=None, scaling=None)
    expected = clone(soap).set_params(engine="dscribe").create(atoms)
    close(soap.create(atoms), expected, 1e-10)


def test_a_cell_that_is_periodic_along_one_vector_only_of_the_cell_given():
    # dscribe wants a whole cell; here the vectors of open directions may be missing.
    whole = STRUCTURES["wire"]
    bare = whole.copy()
    bare.cell[:2] = 0.0
    np.testing.assert_allclose(
        Soap(cutoff=4.0).create(bare), Soap(cutoff=4.0).create(whole), rtol=0, atol=1e-12
    )


CUTOFFS = {
    "cosine": (ShiftedCosine(width=1.0), lambda r: naive.shifted_cosine(r, 3.4, 1.0)),
    "bump": (SmoothBump(width=2.0), lambda r: naive.smooth_bump(r, 3.4, 2.0)),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("basis", ["gto", "polynomial"])
def test_equals_the_naive_twin(basis, cutoff, scaled, compression):
    smoothing, smooth = CUTOFFS[cutoff]

    def weight(r):
        return smooth(r) * (naive.willatt(r, 1.7, 2.0) if scaled else 1.0)

    atoms = Atoms("OHH", positions=[[0, 0, 0.1], [0.9, 0.1, 0], [-0.3, 0.9, 0.2]])
    atoms.set_cell([[3.0, 0.4, 0.0], [0.0, 3.2, 0.3], [0.0, 0.0, 9.0]])
    atoms.pbc = (True, False, False)
    common = {"cutoff": 3.4, "n_max": 3, "l_max": 2, "basis": basis, "compression": compression}
    soap = Soap(
        **common,
        sigma=0.45,
        smoothing=smoothing,
        scaling=Willatt() if scaled else None,
        species_weights={"H": 0.7, 8: 1.2},
    )
    expected = naive.power_spectrum(
        **common,
        sigma=0.45,
        positions=atoms.positions,
        numbers=atoms.numbers,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        species=(1, 8),
        weight=weight,
        reach=3.4,
        species_weights={1: 0.7, 8: 1.2},
    )
    close(soap.create(atoms), expected, 1e-9)


def test_pairs_beyond_the_cutoff_do_not_matter():
    atoms = STRUCTURES["slab"]
    bound = Soap(cutoff=3.0, n_max=3, l_max=3).bind((1, 6, 8))
    near, far = (system_of(bound, atoms, cutoff) for cutoff in (3.0, 5.0))
    centres = np.arange(len(atoms))
    x, state = bound.features(near, centres)
    y, far_state = bound.features(far, centres)
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-15)
    g = np.random.default_rng(0).standard_normal(x.shape)
    out, far_out = np.empty_like(near.pairs.D_pc), np.full_like(far.pairs.D_pc, np.nan)
    bound.vjp(near, centres, state, g, out)
    bound.vjp(far, centres, far_state, g, far_out)
    beyond = far.pairs.r_p >= 3.0
    assert beyond.any()
    assert np.all(far_out[beyond] == 0.0)
    np.testing.assert_allclose(far_out[~beyond].sum(axis=0), out.sum(axis=0), atol=1e-12)
    assert np.all(bound.jacobian(far, centres)[1][beyond] == 0.0)


@pytest.mark.parametrize("smoothing", [ShiftedCosine(), SmoothBump()], ids=repr)
def test_no_jump_when_a_neighbour_crosses_the_cutoff(smoothing):
    soap = Soap(cutoff=4.0, n_max=4, l_max=3, smoothing=smoothing)
    x = [
        features(soap, Atoms("Si3", positions=[[0, 0, 0], [2.3, 0, 0], [0, r, 0]]))[0]
        for r in (4.0 - 1e-6, 4.0 + 1e-6)
    ]
    np.testing.assert_allclose(x[0], x[1], rtol=0, atol=1e-10)


def test_a_centre_that_sees_nothing():
    # The second atom lies beyond the neighbour radius, but in the pair list.
    atoms = Atoms("Si2", positions=[[0, 0, 0], [0, 0, 4.9]])
    bound = Soap(cutoff=3.0, weighting={"w0": 0.0}).bind([14])
    assert bound.cutoff == pytest.approx(3.0 + 0.5 * np.sqrt(-2 * np.log(1e-3)))
    system, centres = system_of(bound, atoms, 5.0), np.arange(2)
    assert len(system.pairs.r_p) == 2
    x, state = bound.features(system, centres)
    out = np.full_like(system.pairs.D_pc, np.nan)
    bound.vjp(system, centres, state, np.ones_like(x), out)
    _, J = bound.jacobian(system, centres)
    assert not x.any()
    assert not out.any()
    assert not J.any()


# Derivatives

DERIVATIVES = [
    (compression, basis, ShiftedCosine(), name)
    for compression in COMPRESSIONS
    for basis, name in (("gto", "slab"), ("polynomial", "wire"))
] + [
    ("off", "gto", None, "molecule"),
    ("off", "gto", SmoothBump(), "crystal smaller than the cutoff"),
    ("off", "gto", DscribePoly(c=1.2, m=3.0, r0=3.5), "skewed crystal of two species"),
]


@pytest.mark.parametrize(("compression", "basis", "smoothing", "name"), DERIVATIVES)
def test_jacobian_is_the_derivative(compression, basis, smoothing, name):
    atoms = STRUCTURES[name]
    soap = Soap(cutoff=3.5, n_max=4, l_max=3, basis=basis, smoothing=smoothing)
    soap.set_params(compression=compression, species_weights=WEIGHTS)
    bound = soap.bind(set(atoms.numbers.tolist()))
    system = system_of(bound, atoms)
    pairs = system.pairs
    centres = as_int([len(atoms) - 1, 0])
    x, J = bound.jacobian(system, centres)
    np.testing.assert_array_equal(x, bound.features(system, centres)[0])
    rows = np.concatenate([np.arange(pairs.first_n[n], pairs.first_n[n + 1]) for n in centres])
    assert J.shape == (len(rows), 3, bound.n_features)
    h = 1e-4
    for k, p in enumerate(rows[::3]):
        for d in range(3):
            moved = []
            for step in (h, -h):
                D_pc = pairs.D_pc.copy()
                D_pc[p, d] += step
                r_p = np.linalg.norm(D_pc, axis=1)
                system_ = System(system.species_n, pairs._replace(D_pc=D_pc, r_p=r_p))
                moved.append(bound.features(system_, pairs.i_p[p : p + 1])[0][0])
            numerical = (moved[0] - moved[1]) / (2 * h)
            np.testing.assert_allclose(J[3 * k, d], numerical, rtol=0, atol=3e-8)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(("n_max", "l_max"), [(1, 0), (3, 1), (4, 6), (6, 3), (9, 2)])
def test_vjp_is_the_contracted_jacobian(compression, n_max, l_max):
    atoms = STRUCTURES["slab"]
    soap = Soap(cutoff=4.5, n_max=n_max, l_max=l_max, compression=compression)
    bound = soap.bind((1, 6, 8, 9))
    system, centres = system_of(bound, atoms), as_int([7, 2, 3])
    pairs = system.pairs
    x, state = bound.features(system, centres)
    assert x.shape == (3, bound.n_features)
    _, J = bound.jacobian(system, centres)
    g = np.random.default_rng(0).standard_normal(x.shape)
    out = np.full_like(pairs.D_pc, np.nan)
    bound.vjp(system, centres, state, g, out)
    counts = np.diff(pairs.first_n)[centres]
    g_p = np.repeat(g, counts, axis=0)
    rows = np.concatenate([np.arange(pairs.first_n[n], pairs.first_n[n + 1]) for n in centres])
    expected = np.einsum("pcq,pq->pc", J, g_p)
    np.testing.assert_allclose(
        out[rows], expected, rtol=0, atol=1e-12 * np.abs(expected).max() + 1e-15
    )
    untouched = np.setdiff1d(np.arange(len(out)), rows)
    assert np.isnan(out[untouched]).all()


@pytest.mark.parametrize(
    "species", [*({"compression": c} for c in COMPRESSIONS), {"species_mixing": 0.6}]
)
@pytest.mark.parametrize(("n_max", "l_max"), [(1, 0), (3, 2), (4, 6), (6, 3), (9, 8)])
def test_single_precision(species, n_max, l_max):
    atoms = STRUCTURES["slab"]
    soap = Soap(cutoff=4.5, n_max=n_max, l_max=l_max, **species)
    double = soap.bind((1, 6, 8, 9))
    single = double.in_single_precision()
    system, centres = system_of(double, atoms), as_int([7, 2, 3])
    x, state = double.features(system, centres)
    y, single_state = single.features(system, centres)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x, rtol=0, atol=5e-6)
    g = np.random.default_rng(0).standard_normal(x.shape)
    expected, out = np.full((2, *system.pairs.D_pc.shape), np.nan)
    double.vjp(system, centres, state, g, expected)
    single.vjp(system, centres, single_state, g, out)
    assert np.any(out != expected)
    np.testing.assert_allclose(out, expected, rtol=0, atol=3e-5)


def test_energy_is_conserved_around_a_loop():
    # The slope of the interpolated radial functions is theirs to rounding, so the work of the
    # forces along a closed path vanishes as fast as the quadrature converges.
    bound = Soap(cutoff=4.0, n_max=4, l_max=3).bind([14])
    g = np.random.default_rng(1).standard_normal((1, bound.n_features))
    base = np.array([[0, 0, 0], [2.3, 0, 0], [0.4, 2.5, 0], [-0.5, 0.6, 2.2]], float)

    def force(t):
        positions = base.copy()
        positions[3] += 0.6 * np.array([np.cos(t), np.sin(t), np.sin(2 * t)])
        velocity = 0.6 * np.array([-np.sin(t), np.cos(t), 2 * np.cos(2 * t)])
        system = System(as_int([0] * 4), find_pairs(positions, np.zeros((3, 3)), False, 4.0))
        _, state = bound.features(system, as_int([0]))
        out = np.zeros_like(system.pairs.D_pc)
        bound.vjp(system, as_int([0]), state, g, out)
        mine = (system.pairs.i_p == 0) & (system.pairs.j_p == 3)
        return out[mine].sum(axis=0) @ velocity

    t = np.linspace(0.0, 2.0 * np.pi, 200, endpoint=False)
    powers = np.array([force(s) for s in t])
    # The interpolant has a jump in its third derivative at each node: the mean converges, but
    # not exponentially.
    assert abs(powers.mean()) < 1e-9 * np.abs(powers).max()


# Symmetries


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", list(STRUCTURES)[:-1])
def test_rotation_translation_permutation(name, compression):
    atoms = STRUCTURES[name]
    soap = Soap(cutoff=4.0, n_max=4, l_max=4, compression=compression)
    x = features(soap, atoms)
    rng = np.random.default_rng(3)
    order = rng.permutation(len(atoms))
    turn = Rotation.random(rng=np.random.default_rng(4)).as_matrix()
    moved = atoms[order]
    moved.set_cell(moved.cell.array @ turn)
    moved.positions = moved.positions @ turn + rng.normal(0, 3, 3)
    np.testing.assert_allclose(features(soap, moved), x[order], rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=1e-14)


def test_supercell_repeats_the_features():
    atoms = STRUCTURES["skewed crystal of two species"]
    soap = Soap(cutoff=4.0, n_max=4, l_max=4)
    np.testing.assert_allclose(
        features(soap, atoms * (2, 1, 3)), np.tile(features(soap, atoms), (6, 1)), atol=1e-12
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_atoms=st.integers(1, 6),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    compression=st.sampled_from(COMPRESSIONS),
)
def test_random_systems(seed, n_atoms, pbc, compression):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.5, 6.0, 3)) + rng.uniform(-0.8, 0.8, (3, 3))
    atoms = Atoms(rng.choice([1, 8], n_atoms), scaled_positions=rng.random((n_atoms, 3)),
                  cell=cell, pbc=pbc)  # fmt: skip
    bound = Soap(cutoff=3.5, n_max=4, l_max=2, compression=compression).bind((1, 8))
    system, centres = system_of(bound, atoms), np.arange(n_atoms)
    x, state = bound.features(system, centres)
    assert np.all(np.isfinite(x))
    g = rng.standard_normal(x.shape)
    out = np.empty_like(system.pairs.D_pc)
    bound.vjp(system, centres, state, g, out)
    # Turning an environment does not change it: no torque, about any centre.
    torque_n = np.zeros((n_atoms, 3))
    np.add.at(torque_n, system.pairs.i_p, np.cross(system.pairs.D_pc, out))
    np.testing.assert_allclose(torque_n, 0.0, atol=1e-10 * max(1.0, np.abs(out).max(initial=0.0)))
    # Blocks of centres do not see one another.
    for n in range(n_atoms):
        np.testing.assert_array_equal(bound.features(system, centres[n : n + 1])[0][0], x[n])


# Execution


UNCOMPILED = """
import numpy as np
from ase import Atoms
from kernelpot.conventions import System, as_int
from kernelpot.descriptors import Soap
from kernelpot.neighbours import find_pairs
atoms = Atoms("OHHO", positions=[[0, 0, 0], [.9, .1, 0], [-.3, .9, .2], [0, -.4, 2.4]])
total = []
for compression in ("off", "mu1nu1"):
    bound = Soap(cutoff=3.0, n_max=5, l_max=2, compression=compression).bind((1, 8))
    pairs = find_pairs(atoms.positions, np.zeros((3, 3)), False, 3.0)
    system = System(as_int([1, 0, 0, 1]), pairs)
    x, state = bound.features(system, np.arange(4))
    out = np.empty_like(pairs.D_pc)
    bound.vjp(system, np.arange(4), state, np.cos(x), out)
    J = bound.jacobian(system, np.arange(4))[1]
    total += [np.sin(x).sum(), out[:, 0].sum(), np.abs(out).sum(), np.abs(J).sum()]
    single = bound.in_single_precision()
    x, state = single.features(system, np.arange(4))
    single.vjp(system, np.arange(4), state, np.cos(x), out)
    # Rounded to what single precision says.
    total += [round(float(value), 4) for value in (x.sum(), out[:, 0].sum(), np.abs(out).sum())]
print(" ".join(repr(float(t)) for t in total))
"""


def test_uncompiled_code_gives_the_same():
    outputs = []
    for disable in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disable}
        done = subprocess.run(
            [sys.executable, "-c", UNCOMPILED],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append([float(value) for value in done.stdout.split()])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-12)
