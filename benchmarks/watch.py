"""What a `Watch` costs beside a step of dynamics: 512 atoms of silicon at 1000 K.

    python benchmarks/watch.py [--steps 200]

Prints the median time of a step with energy, forces, stress and novelty, that of the watch (and its
mean, which has the searches for pairs in it), and the time of standard deviations of all forces.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean, median

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from kernelpot import Calculator, KernelPotential, Soap, datasets
from kernelpot.active.thresholds import Band
from kernelpot.active.triggers import Watch
from kernelpot.active.unphysical import Closest, Limits
from kernelpot.data import structures_from_atoms
from kernelpot.dynamics import thermalise
from kernelpot.terms.repulsion import closest_distances


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    images = datasets.load_silicon("train")[:60]
    soap = Soap(cutoff=5.0, n_max=8, l_max=6, sigma=0.5)
    model = KernelPotential(soap, n_environments=100, n_tangents=4).fit(images)
    numbers = np.array([14])
    known = closest_distances(structures_from_atoms(images), numbers, 5.0)
    common = {"closest": Closest(numbers, known), "temperature": 4000.0, "drift": 1.0}
    atoms = bulk("Si", cubic=True) * (4, 4, 4)
    atoms.calc = Calculator(model)
    thermalise(atoms, 1000.0, 0)
    for name, limits in {
        "novelty and limits": Limits(**common),
        "and fragments": Limits(**common, stretch=1.3),
    }.items():
        watch = Watch(novelty=Band(0.9), limits=limits)
        md = VelocityVerlet(atoms, units.fs)
        md.run(2)
        watch(atoms)
        step, look = [], []
        for _ in range(steps):
            start = time.perf_counter()
            md.run(1)
            half = time.perf_counter()
            watch(atoms)
            step.append(half - start)
            look.append(time.perf_counter() - half)
        print(
            f"{name:20s} step {1e3 * median(step):7.2f} ms, watch {1e3 * median(look):6.3f} ms"
            f" (mean {1e3 * mean(look):6.3f} ms): {100 * mean(look) / mean(step):.2f} %"
        )
    start = time.perf_counter()
    atoms.calc.get_property("forces_std", atoms)
    print(f"standard deviations of forces {1e3 * (time.perf_counter() - start):.0f} ms")


if __name__ == "__main__":
    main()
