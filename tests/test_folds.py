"""What is left out in turn: every structure once, and systems whose species others have."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from kernelpot import KernelPotential, Soap
from kernelpot.conventions import LabelSet
from kernelpot.data import structures_from_atoms
from kernelpot.data_records import Outline
from kernelpot.folds import N_FOLDS, folds_of, systems_of
from kernelpot.hyperparameters import _importance
from kernelpot.label_rows import add_rows
from kernelpot.training_data import InProcess, grams_of, say_nothing
from tests.test_species_mixing import crystals


def outline(numbers, group="", source=""):
    return Outline(
        **{
            **dict.fromkeys(Outline._fields),
            "numbers_n": np.array(numbers),
            "group": group,
            "source": source,
        }
    )


SPECIES = st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True)


@settings(deadline=None, max_examples=60)
@given(
    systems=st.lists(SPECIES, max_size=9),
    sizes=st.lists(st.integers(1, 12), min_size=9, max_size=9),
    n_isolated=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_parts_make_folds(systems, sizes, n_isolated, seed):
    structures = [outline([1])] * n_isolated
    structures += [outline(z) for z, n in zip(systems, sizes, strict=False) for _ in range(n)]
    found = folds_of(structures, range(n_isolated), seed)
    everything = np.sort(np.concatenate([*found.parts, np.zeros(0, dtype=int)]))
    assert everything.tolist() == list(range(len(structures)))
    n = len(structures) - n_isolated
    if n < 3:
        assert (len(found.parts), found.n_folds) == (1, 0)
        return
    n_folds, *more = found.n_folds_w
    assert n_folds == min(n, N_FOLDS)
    left_out = [found.members(f).tolist() for f in range(found.n_folds)]
    assert sorted(s for fold in left_out[:n_folds] for s in fold) == list(
        range(n_isolated, n + n_isolated)
    )
    assert max(map(len, left_out[:n_folds])) - min(map(len, left_out[:n_folds])) <= 1
    assert more == ([len(left_out) - n_folds] if len(left_out) > n_folds else [])
    rest = set(range(n_isolated, len(structures)))
    seen = [s for fold in left_out[n_folds:] for s in fold]
    assert len(seen) == len(set(seen))
    for fold in left_out[n_folds:]:
        known = {z for s in rest - set(fold) for z in structures[s].numbers_n}
        for s in fold:
            assert known.issuperset(structures[s].numbers_n)
            # A system is left out whole.
            same = set(structures[s].numbers_n.tolist())
            twins = [t for t in rest if set(structures[t].numbers_n.tolist()) == same]
            assert set(twins) <= set(fold)


def test_groups_are_dealt_out():
    structures = [outline([1, 6], group="ab"[k % 2]) for k in range(20)]
    found = folds_of(structures, [], 0)
    for f in range(N_FOLDS):
        assert sorted(structures[s].group for s in found.members(f)) == ["a", "a", "b", "b"]


def test_no_systems_of_molecules_alike_or_of_two_species():
    assert systems_of([outline([1, 6, 8])] * 30, range(30)) == []
    assert (
        systems_of([outline([1])] * 8 + [outline([6])] * 8 + [outline([1, 6])] * 8, range(24)) == []
    )


@pytest.mark.parametrize("kinds", [("energy", "forces"), ("energy",)])
def test_energies_of_systems_left_out_count_where_there_are_no_forces(kinds):
    triangles = {LabelSet(kind, ""): SimpleNamespace(n_rows=10) for kind in kinds}
    structures, systems = (_importance(triangles, way) for way in (0, 1))
    assert structures == [1.0] * len(kinds)
    assert systems == ([1.0] if kinds == ("energy",) else [0.0, 1.0])


def test_products_of_each_fold_are_those_of_its_rows(monkeypatch):
    known = [("Cu",), ("Ag",), ("Cu", "Ag"), ("Cu", "Au"), ("Ag", "Au")]
    train = [a for k, symbols in enumerate(known) for a in crystals(symbols, 6, k)]
    seen = {}
    plain = InProcess.statistics

    def watched(self, folds, known, coarse, doubts, tell):
        seen["given"] = folds, known, coarse
        seen["found"] = plain(self, folds, known, coarse, doubts, tell)
        return seen["found"]

    monkeypatch.setattr(InProcess, "statistics", watched)
    model = KernelPotential(Soap(cutoff=4.0, n_max=3, l_max=2), n_environments=8, n_tangents=3)
    model.fit(train)
    folds, given, coarse = seen["given"]
    assert folds.n_folds_w == (5, 5)
    structures = structures_from_atoms(train)
    members = [range(len(train)), *map(folds.members, range(folds.n_folds))]
    for found, mine in zip(seen["found"].grams, members, strict=True):
        rows = add_rows({}, [structures[s] for s in mine], given, say_nothing)
        expected = grams_of(rows, coarse)
        assert set(found) == set(expected)
        for label, one in expected.items():
            scale = np.abs(one.G_kk).max()
            lower = np.tril(found[label].G_kk) - np.tril(one.G_kk)
            assert_allclose(lower, 0.0, atol=1e-10 * scale)
            assert_allclose(found[label].b_k, one.b_k, atol=1e-10 * np.abs(one.b_k).max())
            assert found[label].y_y == pytest.approx(one.y_y, rel=1e-10)
            assert found[label].n_rows == one.n_rows
