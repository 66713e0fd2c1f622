"""Molecular dynamics of a large crystal in LAMMPS: time and memory per atom.

    python benchmarks/lammps_run.py si.kpot --atoms 100000 --steps 100

One process, one thread unless NUMBA_NUM_THREADS says otherwise; under mpiexec each process prints
its own memory. Memory per atom is the slope between two sizes: run it twice.
"""

from __future__ import annotations

import argparse
import math
import resource
import time

from kernelpot.interfaces import lammps

INPUT = """
units metal
boundary p p p
lattice diamond 5.43
region box block 0 {n} 0 {n} 0 {n}
create_box 1 box
create_atoms 1 box
mass 1 28.0855
pair_style kernelpot
pair_coeff * * {model} Si
neighbor 0.5 bin
velocity all create 600 1
fix nve all nve
timestep 0.001
thermo {every}
fix new all pair {every} kernelpot novelty 1
compute most all reduce max f_new
thermo_style custom step temp pe etotal press c_most
run 0
"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--atoms", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    n = math.ceil((args.atoms / 8) ** (1 / 3))
    lmp = lammps.start(["-log", "none"])
    lmp.commands_string(INPUT.format(n=n, model=args.model, every=max(1, args.steps // 10)))
    n_atoms = lmp.get_natoms()
    wall, cpu = time.perf_counter(), time.process_time()
    lmp.command(f"run {args.steps}")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    per_step = 1e6 / (n_atoms * args.steps)
    print(
        f"{n_atoms} atoms, {args.steps} steps: {wall:.1f} s, {per_step * wall:.2f} us/atom/step "
        f"({per_step * cpu:.2f} of CPU time); peak memory {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
