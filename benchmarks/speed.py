"""Time per atom of energy, forces and stress: stages beside their floors, sizes, species, threads.

    export OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
    python benchmarks/speed.py [stages sizes species samples]
    python benchmarks/speed.py threads

The model's speed depends on its shape alone (environments, features, neighbours), so it is fitted
on the bundled silicon data, or on alloys with the labels of ASE's EMT, and then run on rattled
crystals. Medians of several runs; the neighbour list is kept over a Verlet skin of 0.5 A while
atoms move by 0.02 A a step, its search included in "whole step". The floor counts floating-point
operations and divides by the rate of a matrix product measured in the same run. ``threads``
compares one thread with two, in turns; with KERNELPOT_DATA a fit to all of mlearn's silicon, too.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from ase.build import bulk
from own_process import in_own_process, peak_memory
from threadpoolctl import threadpool_limits

from kernelpot import Calculator, KernelPotential, Soap, datasets
from kernelpot._machine import side_by_side
from kernelpot.conventions import System
from kernelpot.neighbours import PairList
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


def silicon(n_atoms):
    """Rattled diamond at PBE's lattice constant."""
    repeat = max(1, round((n_atoms / 8) ** (1 / 3)))
    atoms = bulk("Si", a=5.47, cubic=True) * (repeat, repeat, repeat)
    atoms.rattle(0.1, seed=1)
    return atoms


def alloy(elements, n_atoms, seed=1):
    """Rattled face-centred crystal, occupied at random."""
    repeat = max(1, round((n_atoms / 4) ** (1 / 3)))
    atoms = bulk("Cu", a=3.9, cubic=True) * (repeat, repeat, repeat)
    atoms.symbols[:] = np.random.default_rng(seed).choice(elements, len(atoms))
    atoms.rattle(0.1, seed=seed)
    return atoms


def alloy_data(elements, n_structures=30):
    """Structures with the labels of ASE's EMT."""
    from ase.calculators.emt import EMT
    from ase.calculators.singlepoint import SinglePointCalculator

    images = []
    for seed in range(n_structures):
        atoms = alloy(elements, 32, seed)
        atoms.calc = EMT()
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **found)
        images.append(atoms)
    return images


def moving(atoms, calculator):
    """A step: atoms move, and everything is computed anew."""
    atoms.calc = calculator
    rng = np.random.default_rng(0)
    still = atoms.positions.copy()

    def step():
        atoms.positions = still + rng.uniform(-0.02, 0.02, still.shape)
        atoms.get_potential_energy()

    return step


def time_stages(model, atoms, repeats):
    """Neighbours per atom, and for each stage its seconds per atom and the floors it holds."""
    component = model.fitted_.components[0]
    descriptor = model.predictor_._blocks[0][0].descriptor
    n = len(atoms)
    pairs = PairList(descriptor.cutoff).update(atoms.positions, atoms.cell[:], atoms.pbc)
    system = System(np.zeros(n, dtype=np.intp), pairs)
    block = np.arange(min(n, 256), dtype=np.intp)
    x_bq, state = descriptor.features(system, block)
    out_pc = np.zeros((len(pairs.i_p), 3))

    def per_block(function):
        return median_seconds(function, repeats) / len(block)

    stages = {
        "features": (
            per_block(lambda: descriptor.features(system, block)),
            ("density", "power spectrum"),
        )
    }
    for words, predictor in precisions(model):
        weights = predictor._blocks[0][0].collapsed
        stages[f"kernel, {words}"] = (
            per_block(lambda weights=weights: weights.energies(x_bq, component.zeta)),
            ("kernel",),
        )
    stages["adjoint"] = (
        per_block(lambda: descriptor.vjp(system, block, state, x_bq, out_pc)),
        ("adjoint",),
    )
    for words, _ in precisions(model):
        calculator = Calculator(model, single_precision=words == "single")
        seconds = median_seconds(moving(atoms, calculator), repeats) / n
        stages[f"whole step, {words}"] = (seconds, None)
    return len(pairs.i_p) / n, stages


def precisions(model):
    """The predictor in double and in single precision."""
    predictor = model.predictor_
    return ("double", predictor), ("single", predictor.in_single_precision())


def show_stages(args):
    """Stages beside their floors, for features as they are and on their principal axes."""
    rate = gemm_rate()
    print(f"matrix product {rate / 1e9:.0f} GFLOP/s, double precision; cutoff {args.cutoff} A")
    for setting in args.settings:
        n_max, l_max, n_environments = map(int, setting.split(","))
        for tolerance in (0.0, 1e-6):
            model = KernelPotential(
                Soap(cutoff=args.cutoff, n_max=n_max, l_max=l_max),
                n_environments=n_environments,
                n_tangents=args.n_tangents,
                feature_tolerance=tolerance,
            ).fit(datasets.load_silicon("train"))
            kept = model.fitted_.components[0].descriptor
            n_features = getattr(kept, "inner", kept).n_features
            print(
                f"\nn_max {n_max}, l_max {l_max}: {n_features} features, {kept.n_features} kept, "
                f"{model.n_environments_} environments, "
                f"{model.n_inducing_ - model.n_environments_} tangents"
            )
            print(f"{'atoms':>8} {'stage':<28} {'us/atom':>9} {'floor':>8} {'share of floor':>15}")
            for size in args.sizes:
                atoms = silicon(size)
                n_neighbours, stages = time_stages(model, atoms, args.repeats)
                flops = prediction_flops(
                    n_max, l_max, n_features, kept.n_features, model.n_environments_, n_neighbours
                )
                for stage, (seconds, parts) in stages.items():
                    floor = sum(flops[part] for part in parts or flops) / rate
                    if stage.endswith("single"):
                        floor -= 0.5 * flops["kernel"] / rate
                    print(
                        f"{len(atoms):>8} {stage:<28} {1e6 * seconds:>9.1f} {1e6 * floor:>8.1f} "
                        f"{floor / seconds:>14.0%}",
                        flush=True,
                    )


def one_size(path, n_atoms, repeats, queue):
    """Atoms, seconds of a step, and peak memory in bytes."""
    atoms = silicon(n_atoms)
    seconds = median_seconds(moving(atoms, Calculator(path)), repeats)
    queue.put((len(atoms), seconds, peak_memory()))


def show_sizes(args):
    """Time and memory per atom against the number of atoms."""
    import tempfile

    model = KernelPotential(
        Soap(cutoff=args.cutoff, n_max=8, l_max=8), n_environments=300, n_tangents=8
    ).fit(datasets.load_silicon("train"))
    with tempfile.NamedTemporaryFile(suffix=".kpot") as file:
        model.save(file.name)
        base = None
        print(f"\n{'atoms':>8} {'us/atom':>9} {'peak GB':>9} {'bytes/atom':>12}")
        for n_wanted in args.large:
            n, seconds, peak = in_own_process(one_size, file.name, n_wanted, 3)
            base = base or peak
            each = f"{(peak - base) / n:12.0f}" if peak > base else f"{'':12}"
            print(f"{n:>8} {1e6 * seconds / n:>9.1f} {peak / 1e9:>9.2f} {each}", flush=True)


def show_species(args):
    """A step of alloys of one, two and four species."""
    print(f"\n{'species':>8} {'features':>9} {'kept':>6} {'environments':>13} {'us/atom':>9}")
    for elements in (["Cu"], ["Cu", "Au"], ["Cu", "Ag", "Au", "Pt"]):
        for contracted in (None, 16):
            if contracted and len(elements) == 1:
                continue
            soap = Soap(cutoff=args.cutoff, n_max=8, l_max=6, n_contracted=contracted)
            model = KernelPotential(soap, n_environments=300, n_tangents=8)
            model.fit(alloy_data(elements))
            kept = model.fitted_.components[0].descriptor
            atoms = alloy(elements, 500)
            seconds = median_seconds(moving(atoms, Calculator(model)), args.repeats) / len(atoms)
            print(
                f"{len(elements):>8} {getattr(kept, 'inner', kept).n_features:>9} "
                f"{kept.n_features:>6} {model.n_environments_:>13} {1e6 * seconds:>9.1f}"
                + (f"   {contracted} radial functions" if contracted else ""),
                flush=True,
            )


def show_threads(args):
    """One thread against two, in turns: what the machine gives, a step, and a fit by stage."""
    train = datasets.load_silicon("train")
    settings = {"n_environments": 150, "n_tangents": 16}
    model = KernelPotential(Soap(cutoff=args.cutoff, n_max=8, l_max=8), **settings).fit(train)
    step = moving(silicon(4096), Calculator(model))
    matrices = np.random.default_rng(0).standard_normal((2, 1024, 1024))

    def products():
        """As many products on any number of threads, each on a thread of its own."""
        side_by_side(lambda _: matrices[0] @ matrices[1], range(8))

    def fit():
        fitted = KernelPotential(Soap(cutoff=args.cutoff, n_max=8, l_max=8), **settings).fit(train)
        return fitted.fitted_.seconds

    def large_fit():
        import fit_cost

        model, structures = fit_cost.load("Si")
        return model.fit(structures).fitted_.seconds

    cases = [
        ("products of matrices", products, 9),
        ("step of 4096 atoms", step, 9),
        ("fit", fit, 3),
    ]
    if "KERNELPOT_DATA" in os.environ:
        cases.append(("fit to 214 structures of silicon", large_fit, 1))
    for words, function, rounds in cases:
        if rounds > 1:
            function()
        times = {1: [], 2: []}
        stages = {1: [], 2: []}
        for _ in range(rounds):
            for n, found in times.items():
                os.environ["NUMBA_NUM_THREADS"] = str(n)
                with threadpool_limits(n):
                    started = time.perf_counter()
                    stages[n].append(function())
                    found.append(time.perf_counter() - started)
        ratio = np.median(np.array(times[1]) / np.array(times[2]))
        print(
            f"{words}: one thread {np.median(times[1]):.3f} s, two {np.median(times[2]):.3f} s; "
            f"median ratio of {rounds} rounds {ratio:.2f}",
            flush=True,
        )
        if function in (fit, large_fit):
            for stage in stages[1][0]:
                one, two = (np.median([run[stage] for run in stages[n]]) for n in (1, 2))
                print(f"    {stage:18s} {one:7.3f} s {two:7.3f} s  {one / two:.2f}", flush=True)


def show_samples(args):
    """Energies, forces and strain derivatives by 32 samples, in predictions by the mean."""
    model = KernelPotential(
        Soap(cutoff=args.cutoff, n_max=8, l_max=8), n_environments=300, n_tangents=args.n_tangents
    ).fit(datasets.load_silicon("train"))
    atoms = silicon(512)
    predictor = model.predictor_
    pairs = PairList(predictor.cutoff, skin=0.0).update(atoms.positions, atoms.cell[:], atoms.pbc)
    cases = {"one prediction": predictor.evaluate}
    for words, antithetic in (("drawn alone", False), ("in pairs", True)):
        committee = model.sample(32, random_state=0, antithetic=antithetic)
        cases[f"32 samples, {words}"] = committee.evaluate
    times = {words: [] for words in cases}
    for k in range(args.repeats + 1):
        for words, evaluate in cases.items():
            started = time.perf_counter()
            evaluate(atoms.numbers, pairs)
            if k:  # the first one compiles
                times[words].append(time.perf_counter() - started)
    one = np.array(times["one prediction"])
    print(f"\n{len(atoms)} atoms, {args.repeats} rounds\n{'':<24} {'us/atom':>9} {'ratio':>7}")
    for words, found in times.items():
        ratio = np.median(np.array(found) / one)
        print(f"{words:<24} {1e6 * np.median(found) / len(atoms):>9.1f} {ratio:>7.2f}", flush=True)


SECTIONS = {
    "stages": show_stages,
    "sizes": show_sizes,
    "species": show_species,
    "samples": show_samples,
    "threads": show_threads,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", default=["stages"], help=", ".join(SECTIONS))
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 512, 4096])
    parser.add_argument("--large", type=int, nargs="*", default=[500, 4000, 32000, 200000])
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
    unknown = sorted(set(args.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    for section in args.sections:
        SECTIONS[section](args)


if __name__ == "__main__":
    main()
