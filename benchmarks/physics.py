"""Derivatives, symmetries and energy conservation of a fitted potential, as figures.

    KERNELPOT_DATA=/path/to/data python benchmarks/physics.py [--steps 10000]

The potential is fitted on the silicon set of mlearn (energies and forces). Printed are the worst
relative errors of forces and stress against central differences of the energy with Richardson
extrapolation, of the symmetries, and the slope of the total energy over NVE dynamics of 512 atoms
at 1000 K with a time step of 1 fs. A slope counts as drift when it exceeds its own statistical
error, which is estimated from the slopes of ten pieces of the run.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.velocitydistribution import (
    MaxwellBoltzmannDistribution,
    Stationary,
    force_temperature,
)
from ase.md.verlet import VelocityVerlet

from kernelpot import Calculator, KernelPotential, Soap, read_images
from kernelpot.conventions import VOIGT


def richardson(energy, h):
    """Central difference at h and 2 h, extrapolated: error of order h^4."""
    fine = (energy(h) - energy(-h)) / (2 * h)
    coarse = (energy(2 * h) - energy(-2 * h)) / (4 * h)
    return (4 * fine - coarse) / 3


def derivatives(model, atoms, h=2e-3):
    """Worst error of forces and stress relative to the largest component of each."""
    base = model.predict([atoms])

    def moved(n, c, step):
        copy = atoms.copy()
        copy.positions[n, c] += step
        return model.predict([copy]).energy[0]

    forces = np.array(
        [
            [-richardson(lambda s, n=n, c=c: moved(n, c, s), h) for c in range(3)]
            for n in range(len(atoms))
        ]
    )

    def strained(c, d, step):
        strain = np.eye(3)
        strain[c, d] += step / 2
        strain[d, c] += step / 2
        copy = atoms.copy()
        copy.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
        return model.predict([copy]).energy[0]

    stress = np.array([richardson(lambda s, v=v: strained(*v, s), h) for v in VOIGT])
    stress /= atoms.get_volume()
    return (
        np.abs(forces - base.forces[0]).max() / np.abs(base.forces[0]).max(),
        np.abs(stress - base.stress[0]).max() / np.abs(base.stress[0]).max(),
    )


def symmetries(model, atoms):
    """Worst relative violation of each law."""
    rng = np.random.default_rng(0)
    base = model.predict([atoms])
    force = np.abs(base.forces[0]).max()
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ turn)
    turned.positions = atoms.positions @ turn
    order = rng.permutation(len(atoms))
    moved = atoms.copy()
    moved.positions += [1.7, -31.0, 4.4]
    found = {
        "rotation": (turned, lambda p: p.forces[0] @ turn.T, 1),
        "permutation": (atoms[order], lambda p: p.forces[0][np.argsort(order)], 1),
        "translation": (moved, lambda p: p.forces[0], 1),
        "extensivity": (atoms * (1, 1, 2), lambda p: p.forces[0][: len(atoms)], 2),
    }
    out = {}
    for law, (other, forces, factor) in found.items():
        p = model.predict([other])
        out[law] = max(
            abs(p.energy[0] / factor / base.energy[0] - 1),
            np.abs(forces(p) - base.forces[0]).max() / force,
        )
    out["sum of forces"] = np.abs(base.forces[0].sum(axis=0)).max() / force
    return out


def dynamics(model, atoms, n_steps):
    """Total energy of an NVE run, meV/atom, and the time of one step per atom."""
    atoms.calc = Calculator(model)
    rng = np.random.default_rng(0)
    # Twice the temperature: half of it goes into the potential energy of a perfect crystal.
    MaxwellBoltzmannDistribution(atoms, temperature_K=2000, rng=rng)
    Stationary(atoms)
    force_temperature(atoms, 2000)
    VelocityVerlet(atoms, 1.0 * units.fs).run(500)
    total, kelvin = [], []
    md = VelocityVerlet(atoms, 1.0 * units.fs)
    md.attach(lambda: total.append(atoms.get_total_energy()))
    md.attach(lambda: kelvin.append(atoms.get_temperature()))
    started = time.perf_counter()
    md.run(n_steps)
    seconds = time.perf_counter() - started
    energy = 1e3 * (np.array(total) - total[0]) / len(atoms)
    return energy, float(np.mean(kelvin)), 1e6 * seconds / n_steps / len(atoms)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--n-environments", type=int, default=150)
    parser.add_argument("--n-tangents", type=int, default=20)
    args = parser.parse_args()
    folder = Path(os.environ["KERNELPOT_DATA"]) / "mlearn"
    train = read_images(folder / "Si_train.xyz.xz")
    for atoms in train:
        kept = {k: atoms.calc.results[k] for k in ("energy", "forces")}
        atoms.calc = SinglePointCalculator(atoms, **kept)
    model = KernelPotential(
        Soap(cutoff=5.0, n_max=8, l_max=8),
        n_environments=args.n_environments,
        n_tangents=args.n_tangents,
    ).fit(train)

    atoms = bulk("Si", a=5.47, cubic=True)
    atoms.rattle(0.15, seed=3)
    forces, stress = derivatives(model, atoms)
    print(f"{'forces against finite differences':<40}{forces:.1e}   target 1e-6")
    print(f"{'stress against finite differences':<40}{stress:.1e}   target 1e-6")
    for law, value in symmetries(model, atoms).items():
        print(f"{law:<40}{value:.1e}   target 1e-10")

    energy, kelvin, cost = dynamics(model, bulk("Si", a=5.47, cubic=True) * (4, 4, 4), args.steps)
    time_ps = np.arange(len(energy)) * 1e-3
    slope = np.polyfit(time_ps, energy, 1)[0]
    pieces = [
        np.polyfit(t, e, 1)[0]
        for t, e in zip(np.array_split(time_ps, 10), np.array_split(energy, 10), strict=True)
    ]
    # A line through ten pieces has a tenth of the pieces' statistical error to the power 3/2.
    error = np.std(pieces, ddof=1) / 10**1.5
    rms = np.std(energy - np.polyval(np.polyfit(time_ps, energy, 1), time_ps))
    print(
        f"NVE, 512 atoms, {args.steps / 1e3:g} ps, mean {kelvin:.0f} K: slope {slope:+.5f} +- "
        f"{error:.5f} meV/atom/ps (target 0.02), fluctuation {rms:.4f} meV/atom, "
        f"{cost:.0f} us/atom/step"
    )


if __name__ == "__main__":
    main()
