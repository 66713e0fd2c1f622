"""The class for ``pair_style mliap unified``, against a stand-in of LAMMPS's data."""

import pickle

import numpy as np
import pytest
from ase.geometry import wrap_positions

from kernelpot import Calculator, KernelPotential
from kernelpot.interfaces.lammps.mliap import MLIAPUnified
from tests.conftest import alloy


class Data:
    """What LAMMPS hands over: own atoms, images of them as ghosts, pairs; and what it does then.

    As ``MLIAPDataPy`` of LAMMPS and its ``update_pair_forces``. Elements are -1 where a type is no
    element of the model; ``numneighs`` may be longer than ``nlistatoms`` where ghosts have
    neighbours. The order of the list is not that of the atoms.
    """

    def __init__(self, atoms, elements, cutoff, order):
        positions = [wrap_positions(atoms.positions, atoms.cell, atoms.pbc)]
        home = [np.arange(len(atoms))]
        reach = range(-3, 4)
        for shift in [(a, b, c) for a in reach for b in reach for c in reach]:
            if shift != (0, 0, 0):
                positions.append(positions[0] + np.array(shift) @ atoms.cell.array)
                home.append(home[0])
        x, self.home = np.concatenate(positions), np.concatenate(home)
        self.ntotal, self.nlistatoms = len(x), len(order)
        self.iatoms = np.array(order, dtype=np.int32)
        self.elems = np.array(elements, dtype=np.int32)[self.home]
        pair_i, jatoms, rij = [], [], []
        for i in order:
            for j in range(self.ntotal):
                d = x[j] - x[i]
                # LAMMPS takes elements that are none for part of the list
                if i != j and d @ d < cutoff**2:
                    pair_i.append(i)
                    jatoms.append(j)
                    rij.append(d)
        self.pair_i, self.jatoms = np.array(pair_i, np.int32), np.array(jatoms, np.int32)
        self.rij = np.array(rij)
        self.npairs = len(pair_i)
        self.f = np.zeros((self.ntotal, 3))
        self.virial = np.zeros((3, 3))

    def update_pair_forces(self, fij):
        assert fij.shape == (self.npairs, 3)
        assert fij.dtype == np.float64
        assert fij.flags.c_contiguous
        for i, j, f, r in zip(self.pair_i, self.jatoms, fij, self.rij, strict=True):
            self.f[i] += f
            self.f[j] -= f
            self.virial -= np.outer(r, f)

    def forces(self, n_atoms):
        """Reverse communication: ghosts' forces go home."""
        forces = np.zeros((n_atoms, 3))
        np.add.at(forces, self.home, self.f)
        return forces


def run(unified, data):
    """The order in which LAMMPS calls."""
    unified.compute_descriptors(data)
    unified.compute_gradients(data)
    unified.compute_forces(data)


@pytest.mark.parametrize("through_a_file", [False, True])
def test_same_as_the_calculator(emt_model, tmp_path, through_a_file):
    atoms = alloy(np.random.default_rng(3), amplitude=0.1)
    unified = MLIAPUnified(emt_model)
    if through_a_file:
        emt_model.save(tmp_path / "alloy.kpot")
        unified = MLIAPUnified(tmp_path / "alloy.kpot")
        unified.pickle(tmp_path / "alloy.pickle")
        unified = pickle.loads((tmp_path / "alloy.pickle").read_bytes())
    assert unified.element_types == ["Cu", "Au"]
    assert 2 * unified.rcutfac == pytest.approx(emt_model.predictor_.cutoff)
    order = np.random.default_rng(4).permutation(len(atoms))
    elements = [unified.element_types.index(s) for s in atoms.get_chemical_symbols()]
    data = Data(atoms, elements, 2 * unified.rcutfac + 0.3, order)
    run(unified, data)
    atoms.calc = Calculator(emt_model)
    assert data.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-11)
    np.testing.assert_allclose(data.eatoms, atoms.get_potential_energies()[order], atol=1e-11)
    np.testing.assert_allclose(data.forces(len(atoms)), atoms.get_forces(), atol=1e-11)
    stress = atoms.get_stress(voigt=False)
    np.testing.assert_allclose(-data.virial / atoms.get_volume(), stress, atol=1e-12)


def test_types_without_an_element_are_not_seen(emt_model):
    atoms = alloy(np.random.default_rng(5), amplitude=0.1)
    gold = atoms.numbers == 79
    unified = MLIAPUnified(emt_model)
    elements = np.where(gold, -1, 0)
    data = Data(atoms, elements, 2 * unified.rcutfac, np.flatnonzero(~gold))
    run(unified, data)
    copper = atoms[~gold]
    copper.calc = Calculator(emt_model)
    assert 0 < gold.sum() < len(atoms)
    assert data.energy == pytest.approx(copper.get_potential_energy(), rel=1e-11)
    np.testing.assert_allclose(data.forces(len(atoms))[~gold], copper.get_forces(), atol=1e-11)
    np.testing.assert_array_equal(data.forces(len(atoms))[gold], 0.0)


def test_needs_a_fitted_model():
    with pytest.raises(ValueError, match="call fit first"):
        MLIAPUnified(KernelPotential())
