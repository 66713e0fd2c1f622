"""Time per atom of energy, forces and stress, by stage, size and setting, beside its floor.

    OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/speed.py [--sizes 64 512 4096]

The model's speed depends on its shape alone (environments, features, neighbours), so it is
fitted on the bundled silicon data and then run on rattled diamond at PBE's lattice constant.
Medians of several runs; the neighbour list is kept over a Verlet skin of 0.5 A while atoms move
by 0.02 A a step, its search included in "whole step". The floor counts floating-point operations
and divides by the rate of a matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from ase.build import bulk

from kernelpot import Calculator, KernelPotential, Soap, datasets
from kernelpot.conventions import System
from kernelpot.neighbours import PairList
from kernelpot.prediction import collapse
from kernelpot.prediction_cost import prediction_flops


def median_seconds(function, repeats):
    """Median time of calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def gemm_rate():
    """Floating-point operations per second of a matrix product of this library's shape."""
    a, b = np.random.default_rng(0).standard_normal((2, 1024, 1024))
    return 2 * 1024**3 / median_seconds(lambda: a @ b, 9)


def time_stages(model, atoms, repeats):
    """Neighbours per atom, and for each stage its seconds per atom and the floors it holds."""
    descriptor = model.fitted_.components[0].descriptor
    n = len(atoms)
    pairs = PairList(descriptor.cutoff).update(atoms.positions, atoms.cell[:], atoms.pbc)
    system = System(np.zeros(n, dtype=np.intp), pairs)
    block = np.arange(min(n, 256), dtype=np.intp)
    x_bq, state = descriptor.features(system, block)
    out_pc = np.zeros((len(pairs.i_p), 3))
    V_jq = collapse(
        model.fitted_.components[0].inducing[0], model.fitted_.weights_m, model.zeta
    ).V_jq  # environments and collapsed tangents

    atoms.calc = Calculator(model)
    rng = np.random.default_rng(0)
    still = atoms.positions.copy()

    def step():
        atoms.positions = still + rng.uniform(-0.02, 0.02, (n, 3))
        atoms.get_potential_energy()

    def per_block(function):
        return median_seconds(function, repeats) / len(block)

    stages = {
        "features": (
            per_block(lambda: descriptor.features(system, block)),
            ("density", "power spectrum"),
        ),
        "kernel products": (per_block(lambda: (x_bq @ V_jq.T) @ V_jq), ("kernel",)),
        "adjoint": (
            per_block(lambda: descriptor.vjp(system, block, state, x_bq, out_pc)),
            ("adjoint",),
        ),
        "whole step (calculator)": (median_seconds(step, repeats) / n, None),
    }
    return len(pairs.i_p) / n, stages


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 512, 4096])
    parser.add_argument(
        "--settings",
        nargs="*",
        default=["8,8,300", "8,6,300", "6,4,100"],
        metavar="N_MAX,L_MAX,N_ENVIRONMENTS",
    )
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--n-tangents", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    rate = gemm_rate()
    print(f"matrix product {rate / 1e9:.0f} GFLOP/s; cutoff {args.cutoff} A")
    for setting in args.settings:
        n_max, l_max, n_environments = map(int, setting.split(","))
        model = KernelPotential(
            Soap(cutoff=args.cutoff, n_max=n_max, l_max=l_max),
            n_environments=n_environments,
            n_tangents=args.n_tangents,
        ).fit(datasets.load_silicon("train"))
        n_features = model.fitted_.components[0].descriptor.n_features
        print(
            f"\nn_max {n_max}, l_max {l_max}: {n_features} features, {model.n_environments_} "
            f"environments, {model.n_inducing_ - model.n_environments_} tangents"
        )
        print(f"{'atoms':>8} {'stage':<28} {'us/atom':>9} {'floor':>8} {'share of floor':>15}")
        for size in args.sizes:
            repeat = max(1, round((size / 8) ** (1 / 3)))
            atoms = bulk("Si", a=5.47, cubic=True) * (repeat, repeat, repeat)
            atoms.rattle(0.1, seed=1)
            n_neighbours, stages = time_stages(model, atoms, args.repeats)
            flops = prediction_flops(
                n_max, l_max, n_features, n_features, model.n_environments_, n_neighbours
            )
            for stage, (seconds, parts) in stages.items():
                floor = sum(flops[part] for part in parts or flops) / rate
                print(
                    f"{len(atoms):>8} {stage:<28} {1e6 * seconds:>9.1f} {1e6 * floor:>8.1f} "
                    f"{floor / seconds:>14.0%}"
                )


if __name__ == "__main__":
    main()
