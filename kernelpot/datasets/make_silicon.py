"""Make the silicon set: 2 to 16 atoms per cell, PBE energies, forces and stresses from GPAW.

Run ``python -m kernelpot.datasets.make_silicon --output DIR``. It needs GPAW 26 with its PAW data
(``pip install gpaw gpaw-data``) and ASE 3.29. An interrupted run goes on where it stopped: a
finished frame is read back from the partial file.

Each label is an accurate derivative of its own energy; what limits the set is the sampling of k
points. Measured (``--check``, and single frames):

- finite differences of the energy: forces within 0.12 meV/A (1.6 eV/A in strained and rattled
  diamond, 4 atoms; beta-tin, 2 atoms); stress within 0.02 GPa of 5.5 (diamond) and 0.04 GPa of 4.7
  (beta-tin);
- cutoff of 500 instead of 300 eV: 1.0 (diamond) and 1.2 (beta-tin) meV/atom, 0.5 meV/A, 0.01 GPa;
- self-consistency: ten times looser thresholds move forces by at most 0.5 meV/A; forces of a cell
  sum to less than 0.5 meV/A;
- k points in perfect crystals, against dense grids: fcc 1.3; sc 1.4; bcc 9 meV/atom;
- k points doubled, energy in meV/atom, force RMS and maximum in meV/A, stress in GPa: sheared
  diamond 1.2, 8 and 9, 0.2; rattled diamond of 4 atoms 0.2, 7 and 12, 0.2; of 8 atoms -0.5, 6 and
  8, 0.2; vacancy of 7 atoms -0.8, 26 and 45, 0.4; liquid of 8 atoms 2.9, 33 and 65, 1.0; beta-tin
  (14x14x11) 1.5, 7 and 10, 1.3.
"""

from __future__ import annotations

import argparse
import lzma
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.dft.kpoints import monkhorst_pack
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.neighborlist import neighbor_list

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["build_frames", "label", "main"]

SEED = 20240501
ECUT = 300.0  # eV
SMEARING = 0.1  # eV
CUBIC = 5.47  # A, close to the PBE minimum of diamond
CLOSEST = 1.8  # A, nearer pairs are not drawn: they cost k points and teach only repulsion
GROUPS = (
    "isolated",
    "diamond-strained",
    "diamond-rattled",
    "vacancy",
    "beta-tin",
    "fcc",
    "sc",
    "bcc",
    "liquid",
)

# Silicon of Tersoff, Phys. Rev. B 37, 6991 (1988): it only moves the atoms, no label is its own.
_TERSOFF = TersoffParameters(
    m=3.0,
    gamma=1.0,
    lambda3=1.3258,
    c=4.8381,
    d=2.0417,
    h=0.0,
    n=22.956,
    beta=0.33675,
    lambda2=1.3258,
    B=95.373,
    R=3.0,
    D=0.2,
    lambda1=3.2394,
    A=3264.7,
)


class Frame(NamedTuple):
    """A cell to label and the k-point grid that belongs to its shape."""

    atoms: Atoms
    kpts: tuple[int, int, int]  # Monkhorst-Pack
    folded: bool = False  # whether odd numbers stand for twice as many in a cell of half the edge

    def points(self, factor: int = 1) -> np.ndarray:
        """Scaled k points; of a folded grid those that the even grid of the half edge becomes."""
        size = np.multiply(self.kpts, factor)
        shift = np.where(self.folded & (size % 2 == 1), 0.5 / size, 0.0)
        return monkhorst_pack(size) + shift


def _rng(group: str, index: int) -> np.random.Generator:
    # One generator per frame: another count in one group leaves all other frames as they are.
    return np.random.default_rng([SEED, GROUPS.index(group), index])


def _strain(atoms: Atoms, strain_cc: np.ndarray) -> None:
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + strain_cc), scale_atoms=True)


def _random_strain(rng: np.random.Generator, size: float) -> np.ndarray:
    strain_cc = rng.uniform(-size, size, (3, 3))
    return 0.5 * (strain_cc + strain_cc.T)


def _rattle(atoms: Atoms, rng: np.random.Generator, amplitude: float) -> None:
    """Move each coordinate by a normal deviate, drawn again while two atoms are too close."""
    start_nc = atoms.positions.copy()
    for _ in range(1000):
        atoms.positions = start_nc + rng.normal(0.0, amplitude, start_nc.shape)
        if not len(neighbor_list("d", atoms, CLOSEST)):
            return
    raise RuntimeError(f"no rattle of {amplitude} A keeps all pairs beyond {CLOSEST} A")


def _beta_tin() -> Atoms:
    a, c = 4.82, 2.66
    cell = [[-a / 2, a / 2, c / 2], [a / 2, -a / 2, c / 2], [a / 2, a / 2, -c / 2]]
    return Atoms("Si2", cell=cell, scaled_positions=[[0, 0, 0], [0.75, 0.25, 0.5]], pbc=True)


def _isolated() -> Iterator[Frame]:
    # Three unequal edges: a cubic box would leave the two p electrons in a degenerate shell.
    atoms = Atoms("Si", cell=[10.0, 10.6, 11.2], pbc=True)
    atoms.center()
    yield Frame(atoms, (1, 1, 1))


def _diamond_strained() -> Iterator[Frame]:
    kpts = (6, 6, 6)
    for scale in np.linspace(0.93, 1.07, 12):
        atoms = bulk("Si", "diamond", CUBIC)
        _strain(atoms, (scale - 1.0) * np.eye(3))
        yield Frame(atoms, kpts, folded=True)
    for index in range(12, 32):
        rng = _rng("diamond-strained", index)
        atoms = bulk("Si", "diamond", CUBIC)
        strain_cc = _random_strain(rng, 0.08)
        if index < 22:  # pure shear
            np.fill_diagonal(strain_cc, 0.0)
        _strain(atoms, strain_cc)
        yield Frame(atoms, kpts, folded=True)


def _diamond_rattled() -> Iterator[Frame]:
    # Repeats of the primitive cell with its 6x6x6 grid folded: the sampling is the same in all.
    shapes = (
        [((1, 1, 1), (6, 6, 6))] * 10
        + [((2, 1, 1), (3, 6, 6))] * 14
        + [((2, 2, 1), (3, 3, 6))] * 18
        + [((2, 2, 2), (3, 3, 3))] * 4
    )
    amplitudes = (0.02, 0.05, 0.10, 0.15, 0.20, 0.25)
    for index, (repeat, kpts) in enumerate(shapes):
        rng = _rng("diamond-rattled", index)
        atoms = bulk("Si", "diamond", CUBIC) * repeat
        _strain(atoms, _random_strain(rng, 0.03))
        _rattle(atoms, rng, amplitudes[index % len(amplitudes)])
        yield Frame(atoms, kpts, folded=True)


def _vacancy() -> Iterator[Frame]:
    for index in range(14):
        rng = _rng("vacancy", index)
        small = index < 10
        atoms = bulk("Si", "diamond", CUBIC) * ((2, 2, 1) if small else (2, 2, 2))
        del atoms[int(rng.integers(len(atoms)))]
        _strain(atoms, _random_strain(rng, 0.02))
        _rattle(atoms, rng, (0.02, 0.06, 0.10, 0.15)[index % 4])
        yield Frame(atoms, (3, 3, 6) if small else (3, 3, 3), folded=True)


def _beta_tin_frames() -> Iterator[Frame]:
    for index in range(14):
        rng = _rng("beta-tin", index)
        atoms = _beta_tin()
        _strain(atoms, rng.uniform(-0.05, 0.05) * np.eye(3) + _random_strain(rng, 0.04))
        if index >= 5:
            _rattle(atoms, rng, (0.05, 0.10, 0.15)[index % 3])
        yield Frame(atoms, (10, 10, 8))


def _fcc() -> Iterator[Frame]:
    for index in range(16):
        rng = _rng("fcc", index)
        pair = index >= 10
        atoms = bulk("Si", "fcc", 3.87) * ((2, 1, 1) if pair else (1, 1, 1))
        _strain(atoms, rng.uniform(-0.05, 0.05) * np.eye(3))
        if index >= 4:
            _strain(atoms, _random_strain(rng, 0.05))
        if pair:
            _rattle(atoms, rng, (0.05, 0.10, 0.15)[index % 3])
        yield Frame(atoms, (4, 8, 8) if pair else (8, 8, 8))


def _orthorhombic(group: str, edge: float) -> Iterator[Frame]:
    # The energies of sc and bcc still move by 20 to 45 meV/atom between 8x8x8 and 10x10x10 (nested
    # Fermi surfaces), so they get 14x14x14, which is affordable for as long as mirrors are kept:
    # one atom, volume and orthorhombic strains, no rattle.
    for index in range(8):
        rng = _rng(group, index)
        atoms = bulk("Si", group, edge)
        strain_c = np.full(3, rng.uniform(-0.06, 0.06))
        if index >= 4:
            strain_c += rng.uniform(-0.04, 0.04, 3)
        _strain(atoms, np.diag(strain_c))
        yield Frame(atoms, (14, 14, 14))


def _liquid() -> Iterator[Frame]:
    """Snapshots of Langevin dynamics with the Tersoff potential, near the liquid's density."""
    index = 0
    for repeat, kpts, count in (((2, 2, 1), (3, 3, 6), 12), ((2, 2, 2), (3, 3, 3), 6)):
        rng = _rng("liquid", index)
        atoms = bulk("Si", "diamond", CUBIC) * repeat
        # 18.3 A^3 per atom: 2.55 g/cm^3, the density of liquid silicon.
        _strain(atoms, ((18.3 * 8 / CUBIC**3) ** (1 / 3) - 1.0) * np.eye(3))
        _rattle(atoms, rng, 0.10)
        atoms.calc = Tersoff({("Si", "Si", "Si"): _TERSOFF})
        thermalize_momenta(atoms, 6000, rng=rng)
        md = Langevin(
            atoms,
            2.0 * units.fs,
            temperature_K=6000,
            friction=0.02 / units.fs,
            fixcm=False,
            rng=rng,
        )
        md.run(150)
        md.set_temperature(temperature_K=3000)
        for _ in range(count):
            for _ in range(50):
                md.run(20)
                if not len(neighbor_list("d", atoms, CLOSEST)):
                    break
            snapshot = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
            _strain(snapshot, _random_strain(_rng("liquid", index), 0.04))
            snapshot.wrap()
            yield Frame(snapshot, kpts, folded=True)
            index += 1


def build_frames() -> list[Frame]:
    """Build all cells, not yet labelled, with ``info["group"]`` and rounded coordinates.

    Returns
    -------
    list[Frame]
        The cells in file order; the same in every run.
    """
    makers = {
        "isolated": _isolated(),
        "diamond-strained": _diamond_strained(),
        "diamond-rattled": _diamond_rattled(),
        "vacancy": _vacancy(),
        "beta-tin": _beta_tin_frames(),
        "fcc": _fcc(),
        "sc": _orthorhombic("sc", 2.53),
        "bcc": _orthorhombic("bcc", 3.08),
        "liquid": _liquid(),
    }
    frames = []
    for group in GROUPS:
        for frame in makers[group]:
            # Rounded before the calculation: the labels belong to what the file holds.
            frame.atoms.set_cell(np.round(frame.atoms.cell[:], 6))
            frame.atoms.positions = np.round(frame.atoms.positions, 6)
            frame.atoms.info = {"group": group}
            frames.append(frame)
    return frames


def _calculator(frame: Frame, **changes: Any) -> Any:
    try:
        from gpaw import GPAW, PW
    except ImportError as error:
        raise ImportError("labelling needs GPAW: pip install gpaw gpaw-data") from error
    settings: dict[str, Any] = {
        # dedecut: the stress then belongs to a fixed cutoff, not to a fixed number of plane waves.
        "mode": PW(changes.pop("ecut", ECUT), dedecut="estimate"),
        "xc": "PBE",
        "kpts": frame.points(changes.pop("k_factor", 1)),
        "occupations": {"name": "fermi-dirac", "width": SMEARING},
        "convergence": {"density": 1e-5, "eigenstates": 1e-7, "energy": 1e-6},
        "txt": None,
    }
    if frame.atoms.info["group"] == "isolated":
        # The triplet ground state; a narrow smearing leaves no entropy in the reference energy.
        settings["occupations"] = {"name": "fermi-dirac", "width": 0.01, "fixmagmom": True}
        settings["spinpol"] = True
    return GPAW(**(settings | changes))


def _copy(frame: Frame) -> Atoms:
    atoms = frame.atoms.copy()
    if atoms.info["group"] == "isolated":
        atoms.set_initial_magnetic_moments([2.0])
    return atoms


def label(frame: Frame, **changes: Any) -> Atoms:
    """Compute energy, forces and stress of one cell with GPAW.

    The energy is the free energy of the smeared electrons (GPAW's ``force_consistent`` energy): the
    forces and the stress are its derivatives, those of the extrapolated energy are not.

    Parameters
    ----------
    frame : Frame
        The cell and its k-point grid.
    **changes : Any
        Settings of GPAW to replace (`ecut` in eV, `k_factor` on each direction's k points), for
        convergence checks.

    Returns
    -------
    Atoms
        The cell with a calculator that holds ``energy`` (eV), ``forces`` (eV/A), ``stress``
        (eV/A^3).

    Raises
    ------
    ImportError
        If GPAW is not installed.
    """
    atoms = _copy(frame)
    atoms.calc = _calculator(frame, **changes)
    energy = atoms.get_potential_energy(force_consistent=True)
    forces_nc = atoms.get_forces()
    stress = atoms.get_stress()
    labelled = frame.atoms.copy()
    labelled.calc = SinglePointCalculator(
        labelled,
        energy=round(float(energy), 6),
        free_energy=round(float(energy), 6),
        forces=np.round(forces_nc, 6),
        stress=np.round(stress, 8),
    )
    return labelled


def _energy(frame: Frame, atoms: Atoms) -> float:
    atoms.calc = _calculator(frame)
    return float(atoms.get_potential_energy(force_consistent=True))


def check(frames: list[Frame]) -> None:
    """Print finite-difference and convergence figures for two cells.

    Parameters
    ----------
    frames : list[Frame]
        What `build_frames` returns.
    """
    by_group = {group: [f for f in frames if f.atoms.info["group"] == group] for group in GROUPS}
    for frame in (by_group["diamond-rattled"][13], by_group["beta-tin"][6]):
        group, n_atoms = frame.atoms.info["group"], len(frame.atoms)
        labelled = label(frame)
        step = 0.01
        for n, c in ((0, 0), (1, 2)):
            energies = []
            for sign in (1, -1):
                atoms = frame.atoms.copy()
                atoms.positions[n, c] += sign * step
                energies.append(_energy(frame, atoms))
            numeric = -(energies[0] - energies[1]) / (2 * step)
            error = 1e3 * (labelled.get_forces()[n, c] - numeric)
            print(f"{group} {n_atoms}: force {numeric:.4f} eV/A, error {error:.2f} meV/A")
        for voigt, (c, d) in ((0, (0, 0)), (5, (0, 1))):
            energies = []
            for sign in (1, -1):
                atoms = frame.atoms.copy()
                strain_cc = np.zeros((3, 3))
                strain_cc[c, d] += 0.5 * sign * step
                strain_cc[d, c] += 0.5 * sign * step
                _strain(atoms, strain_cc)
                energies.append(_energy(frame, atoms))
            numeric = (energies[0] - energies[1]) / (2 * step) / frame.atoms.get_volume()
            found = labelled.get_stress()[voigt]
            print(
                f"{group} {n_atoms}: stress[{voigt}] {numeric / units.GPa:.3f} GPa,"
                f" error {(found - numeric) / units.GPa:.3f} GPa",
                flush=True,
            )
        for name, change in (("ecut 500 eV", {"ecut": 500.0}), ("kpts doubled", {"k_factor": 2})):
            better = label(frame, **change)
            shift = (labelled.get_potential_energy() - better.get_potential_energy()) / n_atoms
            forces = np.abs(labelled.get_forces() - better.get_forces()).max()
            stress = np.abs(labelled.get_stress() - better.get_stress()).max()
            print(
                f"{group} {n_atoms}: against {name}: energy {1e3 * shift:.2f} meV/atom, forces"
                f" {1e3 * forces:.2f} meV/A, stress {stress / units.GPa:.3f} GPa",
                flush=True,
            )


def main() -> None:
    """Make or continue the set and write ``silicon_pbe.xyz.xz``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--check", action="store_true", help="measure consistency, label nothing")
    arguments = parser.parse_args()
    frames = build_frames()
    if arguments.check:
        check(frames)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    partial = arguments.output / "silicon_pbe.partial.xyz"
    done = read(partial, ":", format="extxyz") if partial.exists() else []
    for index, (frame, atoms) in enumerate(zip(frames, done, strict=False)):
        same = len(atoms) == len(frame.atoms) and np.allclose(
            atoms.positions, frame.atoms.positions, rtol=0, atol=1e-6
        )
        if not same:
            raise RuntimeError(f"{partial}: frame {index} is not the one of this script; remove it")
    for index in range(len(done), len(frames)):
        start = time.perf_counter()
        labelled = label(frames[index])
        write(partial, labelled, format="extxyz", append=True)
        done.append(labelled)
        per_atom = labelled.get_potential_energy() / len(labelled)
        print(
            f"{index + 1}/{len(frames)} {labelled.info['group']} {len(labelled)} atoms"
            f" {per_atom:.4f} eV/atom {time.perf_counter() - start:.1f} s",
            flush=True,
        )
    text = partial.read_bytes()
    (arguments.output / "silicon_pbe.xyz.xz").write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main()
