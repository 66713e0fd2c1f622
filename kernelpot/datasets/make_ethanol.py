"""Make the ethanol set: 500 frames of dynamics at 500 K, GFN2-xTB energies and forces from tblite.

Run ``python -m kernelpot.datasets.make_ethanol --output DIR``. It needs tblite
(``pip install tblite``), ASE 3.29, and takes a minute of one core.

Two runs of Langevin dynamics, one from the trans and one from the gauche conformer, each with its
own seed: steps of 0.5 fs, 500 K, friction 0.01 / fs, 2 ps of equilibration, then 250 frames, one
per 25 fs. The molecule is free in space; each frame is moved so that its centre of mass is at the
origin, and rounded to 1e-6 A before it is labelled.

Measured on five frames: central differences of the energy (step 0.001 A) reproduce all forces
within 0.06 meV/A, the error of the differences themselves (they grow as the step squared).
"""

from __future__ import annotations

import argparse
import lzma
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["label", "main", "sample"]

SEED = 20240502
TEMPERATURE = 500.0  # K
TIMESTEP = 0.5  # fs
FRICTION = 0.01  # 1 / fs
EQUILIBRATION = 4000  # steps
STRIDE = 50  # steps
N_FRAMES = 250  # per run
CONFORMERS = {"trans": 180.0, "gauche": 60.0}  # C-C-O-H dihedral at the start, degrees


def _calculator() -> Any:
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise ImportError("labelling needs tblite: pip install tblite") from error
    # accuracy scales all thresholds: at 0.01 the charges converge a hundred times tighter.
    return TBLite(method="GFN2-xTB", accuracy=0.01, max_iterations=500, verbosity=0)


def sample() -> Iterator[Atoms]:
    """Run the dynamics and yield its frames, not yet labelled.

    Yields
    ------
    Atoms
        A frame with rounded positions and ``info["group"]``, the conformer its run started from.
    """
    for run, (conformer, dihedral) in enumerate(CONFORMERS.items()):
        rng = np.random.default_rng([SEED, run])
        atoms = molecule("CH3CH2OH")
        carbons = [atom.index for atom in atoms if atom.symbol == "C"]
        oxygen = next(atom.index for atom in atoms if atom.symbol == "O")
        hydroxyl = int(
            next(
                n
                for n in np.argsort(atoms.get_distances(oxygen, range(len(atoms))))
                if atoms[n].symbol == "H"
            )
        )
        carbons.sort(key=lambda n: -atoms.get_distance(n, oxygen))
        atoms.set_dihedral(carbons[0], carbons[1], oxygen, hydroxyl, dihedral, indices=[hydroxyl])
        atoms.calc = _calculator()
        thermalize_momenta(atoms, TEMPERATURE, rng=rng)
        md = Langevin(
            atoms,
            TIMESTEP * units.fs,
            temperature_K=TEMPERATURE,
            friction=FRICTION / units.fs,
            fixcm=False,
            rng=rng,
        )
        md.run(EQUILIBRATION)
        for _ in range(N_FRAMES):
            md.run(STRIDE)
            centred_nc = atoms.positions - atoms.get_center_of_mass()
            yield Atoms(atoms.numbers, np.round(centred_nc, 6), info={"group": conformer})


def label(atoms: Atoms) -> Atoms:
    """Compute energy and forces of one frame with GFN2-xTB.

    Parameters
    ----------
    atoms : Atoms
        The frame.

    Returns
    -------
    Atoms
        The frame with a calculator that holds ``energy`` (eV) and ``forces`` (eV/A).

    Raises
    ------
    ImportError
        If tblite is not installed.
    """
    labelled = atoms.copy()
    # A new calculator per frame: no label depends on the charges of the frame before it.
    labelled.calc = _calculator()
    forces_nc = np.round(labelled.get_forces(), 6)
    energy = round(float(labelled.get_potential_energy()), 6)
    labelled.calc = SinglePointCalculator(
        labelled, energy=energy, free_energy=energy, forces=forces_nc
    )
    return labelled


def check(images: list[Atoms], step: float = 0.001) -> None:
    """Print the largest difference between forces and finite differences of the energy.

    Parameters
    ----------
    images : list[Atoms]
        Labelled frames.
    step : float
        Displacement in A.
    """
    for atoms in images:
        numeric_nc = np.zeros((len(atoms), 3))
        for n, c in np.ndindex(numeric_nc.shape):
            energies = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[n, c] += sign * step
                moved.calc = _calculator()
                energies.append(moved.get_potential_energy())
            numeric_nc[n, c] = -(energies[0] - energies[1]) / (2 * step)
        error = 1e3 * np.abs(numeric_nc - atoms.get_forces()).max()
        print(f"{atoms.info['group']}: largest force error {error:.3f} meV/A", flush=True)


def main() -> None:
    """Make the set, check five of its frames and write ``ethanol_gfn2.xyz.xz``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the file")
    arguments = parser.parse_args()
    images = [label(atoms) for atoms in sample()]
    check(images[::100])
    text = StringIO()
    write(text, images, format="extxyz")
    arguments.output.mkdir(parents=True, exist_ok=True)
    packed = lzma.compress(text.getvalue().encode(), preset=9)
    (arguments.output / "ethanol_gfn2.xyz.xz").write_bytes(packed)


if __name__ == "__main__":
    main()
