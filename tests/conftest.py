"""Small labelled structures and small models that many tests share."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from kernelpot import KernelPotential, Soap


def label(atoms, stress=True):
    """Freeze EMT's energy, forces and stress on a structure."""
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if stress and atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def alloy(rng, amplitude=0.15, strain=0.03):
    """A strained, rattled, randomly occupied cell of copper and gold."""
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * (1, 1, int(rng.integers(1, 3)))
    atoms.numbers[rng.random(len(atoms)) < 0.4] = 79
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.uniform(-strain, strain, (3, 3))), True)
    atoms.positions += rng.normal(0, amplitude, atoms.positions.shape)
    return atoms


@pytest.fixture(scope="session")
def emt_images():
    """Thirty periodic alloy cells and ten clusters with EMT labels."""
    rng = np.random.default_rng(0)
    images = [alloy(rng) for _ in range(30)]
    for _ in range(10):
        cluster = Atoms(
            "Cu2Au2", positions=[[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0], [1.3, 0.7, 2.1]]
        )
        cluster.positions += rng.normal(0, 0.1, (4, 3))
        images.append(cluster)
    for k, atoms in enumerate(images):
        label(atoms)
        atoms.info["group"] = "periodic" if k < 30 else "cluster"
    return images


@pytest.fixture(scope="session")
def emt_soap():
    """A small descriptor."""
    return Soap(cutoff=4.0, n_max=4, l_max=3, sigma=0.5)


@pytest.fixture(scope="session")
def emt_model(emt_images, emt_soap):
    """A small model with tangents; tests must not change it."""
    model = KernelPotential(emt_soap, n_environments=20, n_tangents=5, sigma_stress=1e-3)
    return model.fit(emt_images)


@pytest.fixture(scope="session")
def molecule_images():
    """Distorted molecules of C, N and O with EMT labels."""
    rng = np.random.default_rng(1)
    images = []
    for name in ("CO", "N2O", "CO2", "C2N2") * 3:
        atoms = molecule("CO2" if name == "C2N2" else name)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        images.append(label(atoms))
    return images
