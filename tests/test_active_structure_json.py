"""Structures and labels as JSON: the same to the bit."""

from __future__ import annotations

import json

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernelpot.active.journal import (
    label_from_json,
    label_to_json,
    structure_from_json,
    structure_to_json,
)
from kernelpot.active.records import Label

# NaN counts, too: an exploded structure is written as it is.
floats = st.floats(width=64)
infos = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | arrays(np.float64, st.integers(0, 3), elements=floats),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def structures(draw):
    n = draw(st.integers(0, 4))
    vectors = arrays(np.float64, (n, 3), elements=floats)
    atoms = Atoms(
        numbers=draw(arrays(np.int64, n, elements=st.integers(0, 118))),
        positions=draw(vectors),
        cell=draw(arrays(np.float64, (3, 3), elements=floats)),
        pbc=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        info=draw(st.dictionaries(st.text(), infos, max_size=3)),
    )
    if draw(st.booleans()):
        atoms.set_momenta(draw(vectors))
    if draw(st.booleans()):
        atoms.set_initial_charges(draw(arrays(np.float64, n, elements=floats)))
    if draw(st.booleans()):
        atoms.new_array("kind", draw(arrays(np.dtype("<U3"), n)))
        atoms.new_array("flag", draw(arrays(np.bool_, n)))
    if draw(st.booleans()):
        labels = {"energy": draw(st.floats(allow_nan=False)), "forces": draw(vectors)}
        labels |= {"stress": draw(arrays(np.float64, 6, elements=floats))} if n else {}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()  # also the sign of zero and the kind of NaN
    else:
        assert repr(one) == repr(other)


@given(structures())
def test_structures_come_back_to_the_bit(atoms):
    record = structure_to_json(atoms)
    found = structure_from_json(json.loads(json.dumps(record)))
    assert_same(found.arrays, atoms.arrays)
    assert_same(found.cell.array, atoms.cell.array)
    assert_same(found.info, atoms.info)
    assert_same(found.pbc, atoms.pbc)
    assert (found.calc is None) == (atoms.calc is None)
    if atoms.calc is not None:
        assert_same(found.calc.results, atoms.calc.results)
    assert json.dumps(structure_to_json(found)) == json.dumps(record)


def test_what_is_no_label_and_no_number_is_left_out():
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = EMT()
    atoms.get_forces()
    atoms.info = {"kept": (1, [2.0, "x"]), "function": len, "inner": {"f": [len]}, 3: "number"}
    atoms.info["float32"] = np.float32(0.1)
    atoms.new_array("objects", np.array([None, 1, "a", len], dtype=object))
    atoms.set_celldisp([0.1, 0.2, 0.3])
    found = structure_from_json(json.loads(json.dumps(structure_to_json(atoms))))
    assert found.calc is None
    assert found.constraints == []
    assert found.info == {"kept": [1, [2.0, "x"]], "float32": np.float32(0.1)}
    assert found.info["float32"].dtype == np.float32
    assert sorted(found.arrays) == ["numbers", "positions"]
    assert np.array_equal(found.get_celldisp(), atoms.get_celldisp())
    found.positions += 1.0  # not a view of something that cannot be written


def test_labels_come_back():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0 / 3.0, forces=np.ones((4, 3)) / 7.0)
    for label in (Label(atoms, "", 0.1), Label(None, "time limit", 3)):
        record = json.loads(json.dumps(label_to_json(label) | {"round": 2}))
        found = label_from_json(record)
        assert found[1:] == label[1:]
        assert (found.atoms is None) == (label.atoms is None)
        if label.atoms is not None:
            assert_same(found.atoms.calc.results, atoms.calc.results)
            assert found.atoms.get_potential_energy() == 1.0 / 3.0
