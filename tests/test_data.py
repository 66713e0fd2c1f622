"""Structures and labels: every road in, and every fault that is refused with a reason."""

import dataclasses
import gzip
import logging
import lzma
import math
import re
import warnings

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernelpot.data import (
    ORIGIN_KEY,
    DataError,
    DataWarning,
    LabelKeys,
    Noise,
    Structure,
    check_energy_scale,
    data_hash,
    read_images,
    split,
    structures_from_atoms,
)

STRESS = np.array([0.1, 0.2, 0.3, 0.04, 0.05, 0.06])
TENSOR = np.array([[0.1, 0.06, 0.05], [0.06, 0.2, 0.04], [0.05, 0.04, 0.3]])


def labelled(atoms=None, **results):
    """Atoms with these calculator results; energy, forces and stress by default."""
    atoms = bulk("Si", cubic=True) if atoms is None else atoms
    if not results:
        forces = np.arange(3.0 * len(atoms)).reshape(-1, 3)
        results = {"energy": -5.0 * len(atoms), "forces": forces, "stress": STRESS}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def with_keys(**labels):
    """Atoms whose labels stand in info and arrays."""
    atoms = bulk("Si", cubic=True)
    for key, value in labels.items():
        (atoms.arrays if np.shape(value) == (8, 3) else atoms.info)[key] = value
    return atoms


# Records


def test_calculator_results_become_labels():
    atoms = labelled()
    atoms.info.update(group="bulk", source="pbe")
    (s,) = structures_from_atoms([atoms])
    assert (s.n_atoms, s.group, s.source, s.name) == (8, "bulk", "pbe", "structure 0 (Si8)")
    assert s.energy == -40.0
    np.testing.assert_array_equal(s.forces_nc, atoms.calc.results["forces"])
    np.testing.assert_array_equal(s.stress_v, STRESS)
    assert (s.sigma_energy, s.sigma_forces, s.sigma_stress) == Noise()
    assert s.periodic
    assert s.has_labels
    assert s.formula == "Si8"
    assert s.volume == pytest.approx(atoms.get_volume(), rel=1e-14)


def test_arrays_are_cast_once_and_are_copies():
    atoms = labelled(molecule("H2O"), energy=-14)
    (s,) = structures_from_atoms([atoms])
    for array in (s.positions_nc, s.cell_cc, s.forces_nc, s.stress_v):
        assert array.dtype == np.float64
        assert array.flags["C_CONTIGUOUS"]
    assert s.numbers_n.dtype == np.intp
    assert isinstance(s.energy, float)
    s.positions_nc[0] += 1.0
    s.numbers_n[0] = 1
    assert atoms.numbers[0] == 8
    assert np.abs(atoms.positions[0] - s.positions_nc[0]).min() == 1.0


def test_a_structure_is_frozen_and_compares_by_identity():
    s, t = structures_from_atoms([labelled(), labelled()])
    assert s != t
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.energy = 1.0


def test_molecules_have_no_volume():
    (s,) = structures_from_atoms([labelled(molecule("H2O"), energy=-14.0)])
    assert math.isnan(s.volume)
    assert not s.periodic
    slab = labelled(energy=-1.0)
    slab.pbc = (True, True, False)
    slab.calc.atoms.pbc = slab.pbc
    assert math.isnan(structures_from_atoms([slab])[0].volume)


# Labels: where from


@pytest.mark.parametrize("value", [STRESS, TENSOR, TENSOR.ravel(), TENSOR.tolist()])
def test_a_stress_may_have_any_of_its_shapes(value):
    atoms = with_keys(my_stress=value)
    (s,) = structures_from_atoms([atoms], LabelKeys(stress="my_stress"))
    np.testing.assert_allclose(s.stress_v, STRESS, rtol=1e-15)


@pytest.mark.parametrize("value", [STRESS, TENSOR, TENSOR.ravel()])
def test_a_virial_is_minus_volume_times_stress(value):
    atoms = with_keys(virial=-160.0 * value)
    atoms.set_cell([4.0, 5.0, 8.0], scale_atoms=True)
    (s,) = structures_from_atoms([atoms], LabelKeys(virial="virial"))
    np.testing.assert_allclose(s.stress_v, STRESS, rtol=1e-14)


def test_stress_and_virial_keys_exclude_each_other():
    with pytest.raises(DataError, match="name one of them"):
        structures_from_atoms([labelled()], LabelKeys(stress="a", virial="b"))


def test_a_named_key_wins_over_the_calculator():
    atoms = labelled()
    atoms.info["REF_energy"] = -1.5
    (s,) = structures_from_atoms([atoms], LabelKeys(energy="REF_energy"))
    assert s.energy == -1.5
    assert np.isfinite(s.forces_nc).all()


def test_a_named_key_of_some_structures_leaves_the_others_without():
    # A fall-back to the calculator would mix two methods without a word.
    structures = structures_from_atoms(
        [labelled(), with_keys(REF_energy=2)], LabelKeys(energy="REF_energy")
    )
    assert math.isnan(structures[0].energy)
    assert structures[1].energy == 2.0


def test_a_named_key_nowhere_lists_the_keys_and_the_nearest():
    atoms = with_keys(REF_energy=-1.0, ref_force=np.zeros((8, 3)))
    with pytest.raises(DataError) as caught:
        structures_from_atoms([atoms], LabelKeys(energy="ref_Energies"))
    message = str(caught.value)
    assert "energy key 'ref_Energies'" in message
    assert "REF_energy, ref_force" in message
    assert "nearest name is 'REF_energy'" in message
    with pytest.raises(DataError, match="they have: none"):
        structures_from_atoms([labelled()], LabelKeys(forces="F"))
    assert len(structures_from_atoms([atoms], LabelKeys(energy="x"), labels="optional")) == 1


def test_a_key_that_ase_moved_into_the_calculator_is_found(tmp_path):
    ase.io.write(tmp_path / "a.xyz", labelled())
    images = read_images(tmp_path / "a.xyz")
    keys = LabelKeys(energy="energy", forces="forces", stress="stress")
    (s,) = structures_from_atoms(images, keys)
    assert s.energy == -40.0
    np.testing.assert_allclose(s.stress_v, STRESS)


def test_free_energy_serves_where_there_is_no_energy():
    (s,) = structures_from_atoms([labelled(free_energy=-3.0)])
    assert s.energy == -3.0


def test_a_free_energy_that_differs_is_mentioned_once(caplog):
    images = [labelled(energy=-40.0, free_energy=-41.0) for _ in range(3)]
    with caplog.at_level(logging.INFO, "kernelpot"):
        structures = structures_from_atoms(images)
    assert [s.energy for s in structures] == [-40.0] * 3
    assert len(caplog.records) == 1
    assert "LabelKeys(energy='free_energy')" in caplog.text
    assert structures_from_atoms(images, LabelKeys(energy="free_energy"))[0].energy == -41.0


def test_nothing_is_computed():
    atoms = bulk("Cu")
    atoms.calc = EMT()
    with pytest.raises(DataError, match="No structure has"):
        structures_from_atoms([atoms])
    atoms.get_potential_energy()
    assert structures_from_atoms([atoms])[0].energy == atoms.get_potential_energy()


def test_results_of_other_positions_are_refused():
    # One calculator shared by many structures holds the results of the last one only.
    images = [bulk("Cu"), bulk("Cu", a=3.7)]
    calculator = EMT()
    for atoms in images:
        atoms.calc = calculator
        atoms.get_potential_energy()
    with pytest.raises(DataError, match=r"structure 0 \(Cu\).*SinglePointCalculator"):
        structures_from_atoms(images)
    energies = [s.energy for s in structures_from_atoms(images, labels="optional")]
    assert math.isnan(energies[0])
    assert math.isfinite(energies[1])


def test_no_labels_anywhere_suggests_keys():
    atoms = with_keys(REF_energy=-1.0, REF_forces=np.zeros((8, 3)), dft_virial=TENSOR, note="x")
    with pytest.raises(DataError) as caught:
        structures_from_atoms([atoms, bulk("Si")])
    expected = "LabelKeys(energy='REF_energy', forces='REF_forces', virial='dft_virial')"
    assert expected in str(caught.value)
    with pytest.raises(DataError, match=r"Nothing in info or arrays looks like one.*\(note\)"):
        structures_from_atoms([with_keys(note="x")])


@pytest.mark.parametrize("labels", ["optional", "ignore"])
def test_labels_may_be_absent_where_they_are_not_required(labels):
    (s,) = structures_from_atoms([bulk("Si")], labels=labels)
    assert not s.has_labels


def test_ignored_labels_are_not_looked_at():
    atoms = labelled(energy=math.inf)
    atoms.info["sigma_energy"] = -1.0
    (s,) = structures_from_atoms([atoms], labels="ignore")
    assert math.isnan(s.energy)
    assert math.isnan(s.sigma_energy)


def test_an_unknown_wish_for_labels_is_refused():
    with pytest.raises(ValueError, match="'required', 'optional' or 'ignore'"):
        structures_from_atoms([labelled()], labels="maybe")


# Labels: their content


def test_nan_components_are_left_out():
    forces = np.ones((8, 3))
    forces[2, 1] = np.nan
    stress = STRESS.copy()
    stress[3] = np.nan
    (s,) = structures_from_atoms([labelled(energy=np.nan, forces=forces, stress=stress)])
    assert math.isnan(s.energy)
    assert np.isnan(s.forces_nc).sum() == 1
    assert np.isnan(s.stress_v).tolist() == [False] * 3 + [True] + [False] * 2


@pytest.mark.parametrize("kind", ["energy", "forces", "stress"])
def test_infinite_labels_are_refused(kind):
    value = {"energy": np.inf, "forces": np.full((8, 3), -np.inf), "stress": np.full(6, np.inf)}
    with pytest.raises(DataError, match=rf"structure 0 \(Si8\): the {kind} has infinite"):
        structures_from_atoms([labelled(**{kind: value[kind]})])


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (LabelKeys(energy="k"), [1.0, 2.0], "must be one number"),
        (LabelKeys(energy="k"), "low", "not numbers"),
        (LabelKeys(forces="k"), np.zeros((7, 3)), r"shape \(7, 3\).*\(8, 3\)"),
        (LabelKeys(forces="k"), np.zeros(24), r"shape \(24,\)"),
        (LabelKeys(stress="k"), np.zeros((2, 3)), r"shape \(2, 3\)"),
        (LabelKeys(virial="k"), 1.0, r"virial has shape \(\)"),
        (LabelKeys(stress="k"), [[1.0], [1.0, 2.0]], "not numbers"),
    ],
)
def test_labels_of_the_wrong_kind_are_refused(keys, value, words):
    atoms = bulk("Si", cubic=True)
    atoms.info["k"] = value
    with pytest.raises(DataError, match=words):
        structures_from_atoms([labelled(), atoms], keys)


def test_a_stress_without_a_periodic_cell_is_left_out_with_one_warning(caplog):
    images = [labelled(molecule("H2O"), energy=-14.0, stress=np.zeros(6)) for _ in range(3)]
    structures = structures_from_atoms([*images, labelled()])
    assert [np.isfinite(s.stress_v).all() for s in structures] == [False] * 3 + [True]
    assert len(caplog.records) == 1
    assert "stress of 3 structures" in caplog.text
    assert "structure 0 (H2O)" in caplog.text


LABEL = st.one_of(
    st.none(),
    st.floats(width=32),
    st.text(max_size=3),
    st.lists(st.floats(-9, 9), max_size=10),
    st.sampled_from([(), (3,), (6,), (9,), (3, 3), (2, 3), (6, 1), (2, 9)]).map(np.ones),
    st.just(np.array([[np.nan, 0.0, 0.0], [0.0, 1.0, 2.0]])),
    st.just(np.full(6, np.nan)),
)


@settings(max_examples=150, deadline=None)
@given(energy=LABEL, forces=LABEL, stress=LABEL, virial=st.booleans(), mode=st.booleans())
def test_any_mixture_of_labels_is_taken_or_refused_with_a_reason(
    energy, forces, stress, virial, mode
):
    atoms = bulk("Si")
    atoms.info.update(e=energy, f=forces, s=stress)
    keys = LabelKeys("e", "f", virial="s") if virial else LabelKeys("e", "f", "s")
    try:
        (s,) = structures_from_atoms(
            [atoms, labelled()], keys, labels="optional" if mode else "required"
        )[:1]
    except DataError:
        return
    assert isinstance(s.energy, float)
    assert s.forces_nc.shape == (2, 3)
    assert s.stress_v.shape == (6,)
    assert not any(np.isinf(x).any() for x in (s.energy, s.forces_nc, s.stress_v))
    given_nan = energy is None or np.isnan(np.float64(np.asarray(energy).reshape(())))
    assert math.isnan(s.energy) == given_nan


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=24, max_size=24), st.booleans())
def test_missing_components_stay_where_they_are(missing, with_energy):
    forces = np.where(np.reshape(missing, (8, 3)), np.nan, 1.0)
    atoms = labelled(forces=forces, energy=1.0 if with_energy else np.nan)
    (s,) = structures_from_atoms([atoms], labels="optional")
    np.testing.assert_array_equal(s.forces_nc, forces)
    assert s.has_labels == (with_energy or not all(missing))


# Noise


def test_noise_by_source_with_a_default():
    images = [labelled(), labelled(), labelled()]
    images[0].info["source"] = "md"
    images[1].info["source"] = "relaxed"
    images[2].info.update(source="md", sigma_energy=0.5, sigma_forces=0.6, sigma_stress=0.7)
    noise = Noise(energy={"md": 0.01, "default": 0.02}, forces=0.3, stress={"default": 0.4})
    structures = structures_from_atoms(images, noise=noise)
    sigmas = [(s.sigma_energy, s.sigma_forces, s.sigma_stress) for s in structures]
    assert sigmas == [(0.01, 0.3, 0.4), (0.02, 0.3, 0.4), (0.5, 0.6, 0.7)]


def test_a_source_without_noise_is_named():
    atoms = labelled()
    atoms.info["source"] = "rpa"
    with pytest.raises(DataError, match=r"structure 0 \(Si8\).*'rpa'.*forces.*'md'.*'default'"):
        structures_from_atoms([atoms], noise=Noise(forces={"md": 0.1}))
    (s,) = structures_from_atoms([labelled(energy=1.0)], noise=Noise(forces={"md": 0.1}))
    assert math.isnan(s.sigma_forces)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "small", None])
@pytest.mark.parametrize("kind", ["energy", "forces", "stress"])
def test_noise_must_be_finite_and_positive(bad, kind):
    with pytest.raises(DataError, match=f"noise for {kind} is"):
        structures_from_atoms([labelled()], noise=Noise(**{kind: bad}))
    with pytest.raises(DataError, match=f"noise for {kind} of source 'md'"):
        structures_from_atoms([labelled()], noise=Noise(**{kind: {"md": bad}}))
    if bad is not None:
        atoms = labelled()
        atoms.info[f"sigma_{kind}"] = bad
        with pytest.raises(DataError, match=rf"sigma_{kind}'\] of structure 0 \(Si8\)"):
            structures_from_atoms([atoms])


# What is handed in


def test_what_is_no_list_of_atoms_is_refused():
    with pytest.raises(TypeError, match=r"write \[atoms\]"):
        structures_from_atoms(labelled())
    with pytest.raises(TypeError, match=r"read_images\('train.xyz'\)"):
        structures_from_atoms("train.xyz")
    with pytest.raises(TypeError, match="Entry 1 is str"):
        structures_from_atoms([labelled(), "H2O"])
    with pytest.raises(TypeError, match="not int"):
        structures_from_atoms(3)
    with pytest.raises(DataError, match="empty"):
        structures_from_atoms([])
    assert len(structures_from_atoms(labelled() for _ in range(2))) == 2


# Geometries


def broken(**changes):
    atoms = bulk("Si", cubic=True)
    for name, value in changes.items():
        if name == "positions":
            atoms.positions[3] = value
        elif name == "numbers":
            atoms.numbers[3] = value
        else:
            setattr(atoms, name, value)
    atoms.info[ORIGIN_KEY] = "train.xyz, frame 12"
    return labelled(atoms, energy=-1.0)


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (broken(positions=np.nan), "position of atom 3"),
        (broken(positions=(0.0, np.inf, 0.0)), "position of atom 3"),
        (broken(cell=[np.nan, 5.0, 5.0]), "cell"),
        (broken(positions=(0.0, 0.0, 0.05)), "atoms 0 and 3 are 0.05 A"),
        (broken(positions=(5.43, 5.43, 0.0)), "atoms 0 and 3 are"),
        (broken(cell=[5.43, 5.43, 0.0]), "cell vector 2.*pbc to False"),
        (broken(cell=[0.0, 0.0, 0.0]), "cell vector 0.*pbc to False"),
        (broken(cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]]), "plane.*no volume"),
        (broken(cell=[[5, 0, 0], [5, 0, 0], [0, 0, 9]], pbc=(1, 1, 0)), "line.*no volume"),
        (broken(positions=(1e6, 0.0, 0.0), pbc=False), r"is 1e\+06 A large"),
        (broken(cell=[1e5, 5.43, 5.43]), r"is 1e\+05 A large"),
        (broken(numbers=0), "atom 3 has atomic number 0"),
        (broken(numbers=-1), "atom 3 has atomic number -1"),
    ],
)
def test_impossible_geometries_are_refused_by_name(atoms, words):
    with pytest.raises(DataError, match=words) as caught:
        structures_from_atoms([labelled(), atoms])
    assert str(caught.value).startswith("train.xyz, frame 12")


def test_an_atom_on_its_own_image_is_refused():
    atoms = labelled(Atoms("H", cell=[9.0, 9.0, 9.0], pbc=True), energy=-1.0)
    atoms.cell[2, 2] = 0.11
    atoms.cell[2, 0] = 0.0
    atoms.calc.atoms.cell = atoms.cell
    structures_from_atoms([atoms])
    atoms.cell = [[9.0, 0.0, 0.0], [9.0, 0.09, 0.0], [0.0, 0.0, 9.0]]
    with pytest.raises(DataError, match="atom 0 and its own periodic image"):
        structures_from_atoms([atoms])


def test_a_structure_without_atoms_is_refused():
    with pytest.raises(DataError, match="structure 0 has no atoms"):
        structures_from_atoms([Atoms()], labels="optional")


def test_what_is_unusual_but_possible_is_taken():
    left_handed = bulk("Si")
    left_handed.cell = left_handed.cell[[1, 0, 2]]
    outside = molecule("H2O")
    outside.positions += 1e4
    slab = Atoms("Cu2", [(0, 0, 0), (1.5, 1.5, 2)], cell=[3, 3, 0], pbc=(1, 1, 0))
    structures = structures_from_atoms([left_handed, outside, slab, Atoms("H")], labels="optional")
    assert structures[0].volume > 0.0


# Files


@pytest.fixture
def file(tmp_path):
    images = [labelled(bulk("Si") * (n, 1, 1)) for n in (1, 2, 3, 4, 5)]
    ase.io.write(tmp_path / "train.xyz", images)
    return tmp_path / "train.xyz"


@pytest.mark.parametrize(
    ("index", "frames"),
    [
        (":", [0, 1, 2, 3, 4]),
        ("1:3", [1, 2]),
        ("::2", [0, 2, 4]),
        ("1::2", [1, 3]),
        ("-2:", [3, 4]),
        ("-1", [4]),
        (-2, [3]),
        (0, [0]),
        (slice(None, -3), [0, 1]),
        ("::-2", [4, 2, 0]),
    ],
)
def test_frames_remember_their_place(file, index, frames):
    images = read_images(file, index)
    assert [len(a) // 2 - 1 for a in images] == frames
    structures = structures_from_atoms(images)
    names = [f"train.xyz, frame {f} (Si{2 * f + 2})" for f in frames]
    assert [s.name for s in structures] == names


def test_the_path_may_name_frames_as_in_ase(file):
    assert [a.info[ORIGIN_KEY] for a in read_images(f"{file}@3:")] == [
        "train.xyz, frame 3",
        "train.xyz, frame 4",
    ]


@pytest.mark.parametrize(("suffix", "module"), [(".xz", lzma), (".gz", gzip)])
def test_compressed_files_are_read(file, suffix, module):
    path = file.with_name(f"train.xyz{suffix}")
    path.write_bytes(module.compress(file.read_bytes()))
    images = read_images(path)
    assert len(images) == 5
    assert images[0].info[ORIGIN_KEY] == f"train.xyz{suffix}, frame 0"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="could not read"):
        read_images(path)


def test_files_that_cannot_be_read_say_why(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Did you mean train\.xyz"):
        read_images(tmp_path / "trian.xyz")
    with pytest.raises(FileNotFoundError, match="Looked in"):
        read_images(tmp_path / "nowhere" / "a.xyz")
    with pytest.raises(DataError, match="folder"):
        read_images(tmp_path)
    (tmp_path / "empty.xyz").touch()
    with pytest.raises(DataError, match=r"empty\.xyz is empty"):
        read_images(tmp_path / "empty.xyz")
    with pytest.raises(DataError, match="no frame at index '7:'"):
        read_images(file, "7:")
    with pytest.raises(DataError, match="no frame at index 9"):
        read_images(file, 9)
    with pytest.raises(DataError, match="neither a number nor a slice"):
        read_images(file, "first")
    (tmp_path / "bad.xyz").write_text("5\nLattice\nSi 0 0\n")
    with pytest.raises(DataError, match=r"bad\.xyz: .*Error"):
        read_images(tmp_path / "bad.xyz")
    text = file.read_text()
    (tmp_path / "cut.xyz").write_text(text[: len(text) - 200])
    with pytest.raises(DataError, match=r"cut\.xyz"):
        read_images(tmp_path / "cut.xyz")


def test_more_atoms_than_the_file_can_hold_are_not_counted_one_by_one(tmp_path):
    # ASE reads one line per announced atom, also past the end: this took for ever.
    (tmp_path / "a.xyz").write_text("3000000000000\nx\n")
    with pytest.raises(DataError, match="announces 3000000000000 atoms but has only 16 bytes"):
        read_images(tmp_path / "a.xyz")


RUBBISH = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.text(min_size=1, max_size=200).map(str.encode),
).filter(lambda content: not re.search(r"\d{5}", content.decode(errors="replace")))


@settings(max_examples=60, deadline=None)
@given(content=RUBBISH)
def test_any_rubbish_in_a_file_gives_one_kind_of_error(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("rubbish") / "x.xyz"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            images = read_images(path)
        except DataError:
            return
    assert all(isinstance(a, Atoms) for a in images)


# Energies in mixed units


def made(number, size, energy, name="s", numbers=None):
    numbers_n = np.full(size, number) if numbers is None else np.asarray(numbers)
    nan = math.nan
    positions_nc = np.arange(3.0 * len(numbers_n)).reshape(-1, 3)
    return Structure(
        numbers_n, positions_nc, np.zeros((3, 3)), np.zeros(3, bool), energy,
        np.full((len(numbers_n), 3), nan), np.full(6, nan), 1e-3, 0.05, 1e-3, name=name,
    )  # fmt: skip


def solid_and_liquid(rng):
    sizes = rng.integers(20, 64, 60)
    spread = rng.choice([0.02, 0.6], 60)
    return [
        made(14, int(n), n * (-5.4 + w * rng.random()), f"frame {i}")
        for i, (n, w) in enumerate(zip(sizes, spread, strict=True))
    ]


def molecules_and_atoms(rng):
    numbers = [6] * 3 + [1] * 8 + [8]
    images = [made(0, 0, -6000.0 + rng.normal(), f"m {i}", numbers) for i in range(60)]
    return images + [made(z, 1, e) for z, e in ((1, -13.6), (6, -1029.0), (8, -2042.0))]


def alloys(rng):
    structures = []
    for i in range(80):
        numbers = rng.choice([41, 42, 73, 74], rng.integers(2, 30))
        energy = sum({41: -10.1, 42: -10.8, 73: -11.9, 74: -12.9}[z] for z in numbers)
        energy += len(numbers) * 0.15 * rng.normal()
        structures.append(made(0, 0, energy, f"alloy {i}", numbers))
    return structures


def isolated_and_stretched(rng):
    bulk_like = solid_and_liquid(rng)
    dimers = [made(14, 2, 2 * e) for e in np.linspace(-2.7, -0.1, 25)]
    return bulk_like + dimers + [made(14, 1, -0.2) for _ in range(3)]


SETS = [solid_and_liquid, molecules_and_atoms, alloys]
SCALES = {
    "Hartree": lambda s: s.energy / 27.2114,
    "kcal/mol": lambda s: s.energy * 23.0605,
    "per atom": lambda s: s.energy / s.n_atoms,
}


@pytest.mark.parametrize("make", [*SETS, isolated_and_stretched])
@pytest.mark.parametrize("seed", range(5))
def test_legitimate_energies_pass_in_silence(make, seed):
    check_energy_scale(make(np.random.default_rng(seed)))


@pytest.mark.parametrize("make", SETS)
@pytest.mark.parametrize("unit", SCALES)
@pytest.mark.parametrize("share", [0.08, 1 / 3])
def test_energies_in_mixed_units_are_noticed(make, unit, share):
    rng = np.random.default_rng(1)
    structures = [
        dataclasses.replace(s, energy=SCALES[unit](s)) if rng.random() < share else s
        for s in make(rng)
    ]
    with pytest.warns(DataWarning, match=unit):
        check_energy_scale(structures)


def test_the_warning_names_two_structures_and_numbers():
    structures = [made(14, 8, -43.2, f"frame {i}") for i in range(10)]
    structures[3:5] = [made(14, 8, -43.2 / 27.2114, f"odd {i}") for i in range(2)]
    with pytest.warns(DataWarning, match=r"2 of 10.*odd 0 has -0.198.* frame 0 has -5.4"):
        check_energy_scale(structures)


def test_few_or_zero_or_missing_energies_say_nothing():
    rng = np.random.default_rng(0)
    check_energy_scale([])
    check_energy_scale([made(14, 8, -1.0), made(14, 8, -27.0)])
    check_energy_scale([made(14, 8, math.nan) for _ in range(9)])
    check_energy_scale([made(14, 8, 0.0) for _ in range(9)])
    check_energy_scale([made(14, 8, rng.normal()) for _ in range(99)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=20), st.integers(1, 9))
def test_no_energies_break_the_check(energies, size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        check_energy_scale([made(14, size, e) for e in energies])


# Splits


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
@example([1, 1, 1, 1, 10], 0.34375, 0)
def test_a_split_takes_its_share_of_every_group(sizes, fraction, seed):
    groups = [f"g{g}" for g, n in enumerate(sizes) for _ in range(n)]
    structures = [dataclasses.replace(made(14, 1, 0.0), group=g) for g in groups]
    n_test = round(fraction * len(structures))
    if not 0 < n_test < len(structures):
        with pytest.raises(DataError, match="leaves a part empty"):
            split(structures, fraction, seed)
        return
    train, test = split(structures, fraction, seed)
    assert len(test) == n_test
    assert sorted([*train, *test]) == list(range(len(structures)))
    for g, n in enumerate(sizes):
        taken = sum(groups[i] == f"g{g}" for i in test)
        assert abs(taken - n_test / len(structures) * n) < 1.0


def test_a_split_is_repeatable_and_takes_atoms_too():
    images = [bulk("Si") for _ in range(20)]
    for i, atoms in enumerate(images):
        atoms.info["group"] = "ab"[i % 2]
    first, again = (split(images, 0.3, 7) for _ in range(2))
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].dtype == np.intp
    assert sorted(first[1] % 2) == [0, 0, 0, 1, 1, 1]
    plain = split(images, 0.3, np.random.default_rng(3), by_group=False)
    assert len(plain[1]) == 6


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_split_leaves_no_part_empty(fraction):
    with pytest.raises(DataError, match="between 0 and 1"):
        split([bulk("Si")] * 5, fraction, 0)


# Fingerprint


def test_the_hash_depends_on_what_is_fitted_only():
    def base():
        return structures_from_atoms([labelled(), labelled(molecule("H2O"), energy=-14.0)])

    reference = data_hash(base())
    assert reference == data_hash(base())
    assert len(reference) == 64
    renamed = [dataclasses.replace(s, name="x", group="g", sigma_energy=1.0) for s in base()]
    assert data_hash(renamed) == reference
    assert data_hash(base()[::-1]) != reference
    for field in ("positions_nc", "cell_cc", "forces_nc", "stress_v"):
        changed = base()
        getattr(changed[0], field).flat[0] += 1e-15 if field == "positions_nc" else 1e-9
        assert data_hash(changed) != reference, field
    for change in ({"energy": -14.1}, {"pbc_c": np.array([True, False, False])}):
        first, second = base()
        assert data_hash([first, dataclasses.replace(second, **change)]) != reference


def test_the_hash_is_stable():
    # A change here makes model files disown the data they were fitted to.
    expected = "a34d213fac763f3c7d982d7b18b1e3bdbac255ef7871444d4913e682bdd85893"
    assert data_hash([made(14, 2, -1.5), made(1, 1, math.nan)]) == expected
