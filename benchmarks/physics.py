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
from ase.md.verlet import VelocityVerlet

from kernelpot import Calculator, KernelPotential, Soap, read_images
from kernelpot.dynamics import thermalise
from kernelpot.testing import potential_errors


def dynamics(model, atoms, n_steps):
    """Total energy of an NVE run, meV/atom, and the time of one step per atom."""
    atoms.calc = Calculator(model)
    # Twice the temperature: half of it goes into the potential energy of a perfect crystal.
    thermalise(atoms, temperature=2000.0, seed=0)
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

    def potential(atoms):
        p = model.predict([atoms])
        return p.energy[0], p.forces[0], p.stress[0]

    for law, value in potential_errors(potential, atoms).items():
        target = "1e-6" if law in ("forces", "stress") else "1e-10"
        print(f"{law:<20}{value:.1e}   target {target}")

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
