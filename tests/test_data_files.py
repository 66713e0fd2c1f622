"""Frames of files: each process reads its own, and reads what the whole file would give."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from kernelpot.data import DataError, read_images, structures_from_atoms
from kernelpot.data_files import find_frames, read_frames
from kernelpot.data_outlines import data_hash


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Seven frames of 1 to 7 atoms, with labels and a comment that is not ASCII."""
    rng = np.random.default_rng(0)
    images = []
    for n in range(1, 8):
        atoms = Atoms(f"Si{n}", positions=3.0 * np.arange(3 * n).reshape(n, 3), info={"who": "Å"})
        atoms.calc = SinglePointCalculator(
            atoms, energy=-float(n), forces=rng.standard_normal((n, 3))
        )
        images.append(atoms)
    path = tmp_path_factory.mktemp("frames") / "some.xyz"
    write(path, images, format="extxyz")
    return path


@pytest.mark.parametrize("index", [":", "::2", "2:5", "-2:", "3", "::-1"])
def test_frames_by_their_bytes_are_those_of_the_file(file, index):
    index = f"{file}@{index}"
    found = find_frames(index)
    whole = read_images(index)
    assert found.n_atoms_s.tolist() == [len(atoms) for atoms in whole]
    assert len(found.bytes_sb) == len(whole)
    apart = [atoms for s in range(len(whole)) for atoms in read_frames(found.some([s]))]
    assert [s.name for s in structures_from_atoms(apart)] == [
        s.name for s in structures_from_atoms(whole)
    ]
    assert data_hash(structures_from_atoms(apart)) == data_hash(structures_from_atoms(whole))


def test_nothing_but_the_frames_is_read(file, tmp_path):
    copy = tmp_path / "copy.xyz"
    content = file.read_bytes()
    copy.write_bytes(content)
    third = find_frames(str(copy)).some([2])
    first, last = third.bytes_sb[0]
    copy.write_bytes(b"x" * first + content[first:last])
    assert read_frames(third)[0].get_potential_energy() == -3.0


def test_empty_lines_at_the_end_are_no_frames(file, tmp_path):
    (tmp_path / "more.xyz").write_bytes(file.read_bytes() + b"\n\n")
    assert len(find_frames(str(tmp_path / "more.xyz")).n_atoms_s) == 7


def test_other_files_are_read_whole(file, tmp_path):
    write(tmp_path / "some.xyz.gz", read_images(file), format="extxyz")
    found = find_frames(f"{tmp_path / 'some.xyz.gz'}@1::2")
    assert found.bytes_sb is None
    assert found.numbers_s.tolist() == [1, 3, 5]
    assert found.n_atoms_s.tolist() == [2, 4, 6]
    write(tmp_path / "one.vasp", bulk("Si"), format="vasp")
    assert find_frames(str(tmp_path / "one.vasp")).n_atoms_s.tolist() == [2]


def test_files_that_cannot_be_read(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Did you mean some\.xyz"):
        find_frames(str(file.with_name("sone.xyz")))
    with pytest.raises(DataError, match="no frame at index '9:'"):
        find_frames(f"{file}@9:")
    lines = file.read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.xyz").write_bytes(b"".join(lines[:-2]))
    with pytest.raises(DataError, match="cut off"):
        find_frames(str(tmp_path / "cut.xyz"))
    changed = find_frames(str(file))
    changed = changed._replace(bytes_sb=changed.bytes_sb + 7)
    with pytest.raises(DataError, match="changed while it was read"):
        read_frames(changed.some([1]))
