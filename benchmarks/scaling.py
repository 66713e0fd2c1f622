"""What a fit on a Dask cluster costs: measured rates, a model of the cost, and runs that check it.

    KERNELPOT_DATA=/path/to/data OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 \\
        python benchmarks/scaling.py [--sizes 400 800 1600] [--workers 2] [--json FILE]

Rates are measured on the workers, all at a time, on a part of the structures: seconds per
structure to read and check it, to look for its shortest distances, to predict it; seconds per label
and column to make rows; operations per second of their reduction and of joins of triangles; seconds
per task of Dask itself, and per byte that goes from one worker to another. With them the
core-seconds of a fit to n structures are predicted, and measured in fits of three sizes, as the
time that the worker processes spent computing, less what idle ones spend, so that other load on the
machine counts little. The last lines say what 10^6 structures on 100 nodes would take.
Without KERNELPOT_DATA the bundled silicon data are used. Data
are repeated with displaced atoms where they are too few.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.io import write

from kernelpot import KernelPotential, Soap, datasets, read_images
from kernelpot.conventions import as_int
from kernelpot.data import LabelKeys, Noise, block_of_structures, structures_from_atoms
from kernelpot.data_checks import check_energy_scale
from kernelpot.data_files import find_frames, read_frames
from kernelpot.data_outlines import joined_hash, outlines_of
from kernelpot.distributed import blocks_of
from kernelpot.fit_cost import absorption_flops
from kernelpot.folds import folds_of
from kernelpot.gp.triangles import RowReducer, empty_triangle, join_triangles
from kernelpot.hyperparameters import COARSE
from kernelpot.label_rows import add_rows, label_rows
from kernelpot.selection import choose_sample
from kernelpot.structure_prediction import evaluate_structure
from kernelpot.terms.composition import fit_composition, isolated_atoms
from kernelpot.terms.repulsion import closest_distances
from kernelpot.training_data import join_sets, say_nothing
from kernelpot.workers import LEAST_SHARES, ROWS_PER_COLUMN, alone, shares

FOLDS = 10
"""Of structures and of systems."""
LARGE = 1500
"""Columns of the triangles from which the rates of large models are taken."""
COARSE_EVALUATIONS = 40
"""Of the left-out errors, in the search for noise levels: its most."""


class Rates(NamedTuple):
    """Of one core."""

    read: float  # s per structure: read, check, outline
    distances: float  # s per structure
    rows: float  # s per label and column
    predict: float  # s per structure
    reduce: float  # operations per second, of 2 b n^2
    join: float  # operations per second, of 2/3 n^3
    reduce_large: float  # with many columns
    join_large: float
    outline: float  # s per structure, in the client


def seconds(function):
    """Seconds that this thread spent on a call, and its result."""
    started = time.thread_time()
    result = function()
    return time.thread_time() - started, result


def images_of(n):
    """So many labelled structures."""
    folder = os.environ.get("KERNELPOT_DATA")
    if folder:
        images = read_images(Path(folder) / "NbMoTaW" / "train_noSQS.xyz.xz")
    else:
        images = datasets.load_silicon("train")
    rng = np.random.default_rng(0)
    images = [images[k] for k in rng.permutation(len(images))]
    more = []
    for k in range(max(0, n - len(images))):
        source = images[k % len(images)]
        atoms = source.copy()  # other environments; the labels are wrong by what costs nothing
        atoms.positions += rng.normal(scale=0.01, size=atoms.positions.shape)
        atoms.calc = type(source.calc)(atoms, **source.calc.results)
        more.append(atoms)
    return (images + more)[:n]


def make_model(args):
    """The unfitted model, the same at every size."""
    soap = Soap(cutoff=5.0, n_max=6, l_max=4, n_contracted=12)
    return KernelPotential(soap, n_environments=args.n_environments, n_tangents=args.n_tangents)


def large_algebra(n_columns):
    """Operations per second of the reduction of rows, and of a join, with many columns."""
    A_rm = np.random.default_rng(0).standard_normal((2 * n_columns, n_columns))
    y_r = A_rm[:, 0].copy()

    def reduce():
        reducer = RowReducer(empty_triangle(n_columns))
        reducer.add(A_rm, y_r, np.ones(len(y_r)))
        return reducer.finish()

    reduce()
    reduce_s, triangle = seconds(reduce)
    join_s, _ = seconds(lambda: join_triangles(triangle, triangle))
    return 2.0 * len(A_rm) * n_columns**2 / reduce_s, 2.0 / 3.0 * n_columns**3 / join_s


def algebra(structures, known, rows_s):
    """The same of these structures, so many rows at a time as in a fit."""
    n = known.n_columns
    parts = shares(as_int([s.n_labels for s in structures]), ROWS_PER_COLUMN * n)
    reduce_s, sets = seconds(
        lambda: [add_rows({}, [structures[s] for s in p], known, say_nothing) for p in parts]
    )
    flops = sum(absorption_flops(0.0, t.n_rows, n) for one in sets for t in one.values())
    reduce = flops / (reduce_s - rows_s)
    flops = join_s = 0.0
    while len(sets) > 1:
        pairs = list(zip(sets[::2], sets[1::2], strict=False))
        flops += sum(
            absorption_flops(
                *(float(min(t.n_rows, n)) for t in (one[k], other[k])), n, triangular=True
            )
            for one, other in pairs
            for k in one.keys() & other.keys()
        )
        took, sets = seconds(lambda pairs=pairs: [join_sets(*pair) for pair in pairs])
        join_s += took
    return reduce, flops / join_s


def measure_rates(path, model, n):
    """Rates on some structures of a file, with the inducing variables of a fitted model."""
    index_s, index = seconds(lambda: find_frames(path))
    part = index.some(np.linspace(0, len(index.n_atoms_s) - 1, n).astype(int))
    known, n_columns = model.fitted_.known, model.fitted_.known.n_columns

    def read():
        structures, _ = block_of_structures(read_frames(part), LabelKeys(), Noise())
        outlines_of(structures)
        return structures

    read_s, structures = seconds(read)
    numbers = as_int(model.species_)
    label_rows(structures[0], known)  # loads compiled code
    evaluate_structure(model.predictor_, structures[0])
    distances_s, _ = seconds(lambda: closest_distances(structures, numbers, 5.0))
    rows_s, _ = seconds(lambda: [label_rows(s, known) and None for s in structures])
    predict_s, _ = seconds(lambda: [evaluate_structure(model.predictor_, s) for s in structures])
    outlines = outlines_of(structures) * (20_000 // n)
    options = model._options()

    def client():
        check_energy_scale(outlines)
        isolated = isolated_atoms(outlines, 5.0)
        choose_sample(outlines, isolated, options.selection_sample, 0)
        fit_composition(outlines, 5.0)
        folds_of(outlines, isolated, options.random_state)
        joined_hash(one.key for one in outlines)

    client_s, _ = seconds(client)
    return Rates(
        read_s / n + index_s / len(index.n_atoms_s),
        distances_s / n,
        rows_s / sum(s.n_labels for s in structures) / n_columns,
        predict_s / n,
        *algebra(structures, known, rows_s),
        *large_algebra(LARGE),
        client_s / len(outlines),
    )


def join_seconds(rows, m, reduce, join):
    """Of two triangles, or trapezoids of fewer rows than columns."""
    flops = absorption_flops(min(rows, m), min(rows, m), m, triangular=True)
    return flops / (join if rows >= m else reduce)


def predict(rates, dask, n_structures, labels_k, m, n_blocks, n_parts, n_leaves, *, large=False):
    """Core-seconds of the workers by stage, those of the joins by level, and bytes that travel.

    labels_k: per structure, of each kind.
    """
    reduce = rates.reduce_large if large else rates.reduce
    join = rates.join_large if large else rates.join
    labels = sum(labels_k) * n_structures
    by_level, travelled = [], 0.0
    for level in range(math.ceil(math.log2(n_leaves))):
        rows_k = [k * n_structures / n_leaves * 2**level for k in labels_k if k]
        by_level.append(sum(join_seconds(rows, m, reduce, join) for rows in rows_k))
        # One of a pair is where the other is by chance only.
        away = n_leaves / 2 ** (level + 1) * (1.0 - 1.0 / dask.n_workers)
        travelled += away * sum(8.0 * min(rows, m) * m for rows in rows_k)
    joins = sum(n_leaves / 2 ** (level + 1) * each for level, each in enumerate(by_level))
    # Of a block: read, take apart (2), outline, distances, fetch, errors; of a leaf: rows, a join.
    n_tasks = 7 * n_blocks + 2 * n_leaves
    return (
        {
            "read": rates.read * n_structures,
            "distances": rates.distances * n_structures,
            "rows": rates.rows * labels * m,
            "reduction": n_leaves
            * sum(absorption_flops(0.0, k * n_structures / n_leaves, m) for k in labels_k)
            / reduce,
            "joins": joins,
            "products": n_parts
            * sum(2.0 * min(k * n_structures / n_parts, m) * min(m, COARSE) ** 2 for k in labels_k)
            / rates.reduce_large,
            "errors": rates.predict * n_structures,
            "Dask, tasks": dask.task * n_tasks,
            "Dask, triangles": dask.byte * travelled,
        },
        by_level,
        travelled,
    )


def nothing(_):
    """What Dask does beside the work."""


def worker_seconds(client):
    """What the worker processes have computed so far."""
    return sum(client.run(time.process_time).values())


def idle_seconds(client, wait=10.0):
    """Of all workers that have nothing to do, per second: Dask looks after itself."""
    before = worker_seconds(client)
    time.sleep(wait)
    return (worker_seconds(client) - before) / wait


class DaskRates(NamedTuple):
    """What Dask takes, of a core."""

    n_workers: int
    task: float  # s of a worker per task
    byte: float  # s of both workers per byte that goes from one to the other
    client: float  # s of this process per task


def triangle_of(n_rows, n_columns):
    """Something to send."""
    return empty_triangle(n_columns)._replace(R=np.ones((n_rows, n_columns), order="F"))


def dask_rates(client, n=300, n_columns=400):
    """Of tasks that do nothing, and of triangles that are asked for by another worker."""
    from distributed import wait

    workers = list(client.nthreads())

    def spent(submit):
        before, mine = worker_seconds(client), time.process_time()
        client.gather([submit(k) for k in range(n)])
        return (worker_seconds(client) - before) / n, (time.process_time() - mine) / n

    task = spent(lambda k: client.submit(alone, nothing, k, pure=False))
    sent = [
        client.submit(triangle_of, n_columns, n_columns, workers=[workers[0]], pure=False)
        for _ in range(n)
    ]
    wait(sent)
    away = spent(lambda k: client.submit(nothing, sent[k], workers=[workers[-1]], pure=False))
    return DaskRates(len(workers), task[0], (away[0] - task[0]) / (8.0 * n_columns**2), task[1])


def extrapolate(rates, dask, labels_k, n_parts, args):
    """Print what 10^6 structures would take."""
    n, m, n_cores = 10**6, args.columns, args.nodes * args.cores
    n_blocks = math.ceil(n * sum(labels_k) / (10 * m))
    n_leaves = n_parts * math.ceil(n * sum(labels_k) / n_parts / (ROWS_PER_COLUMN * m))
    stages, by_level, travelled = predict(
        rates, dask._replace(n_workers=n_cores), n, labels_k, m, n_blocks, n_parts, n_leaves,
        large=True,
    )  # fmt: skip
    triangles = 8.0 * m**2 * sum(k > 0 for k in labels_k)
    # What cannot be shared out: as many levels as it takes to come from all cores to one.
    last = by_level[-math.ceil(math.log2(n_cores)) :]
    # Whitening and posterior take some 10 m^3 operations.
    search = COARSE_EVALUATIONS * FOLDS * COARSE**3 / 3.0
    alone_s = {
        f"last joins ({len(last)} levels)": sum(last) + len(last) * triangles / args.network,
        "client: outlines": rates.outline * n,
        "network": travelled / args.nodes / args.network,
        "client: tasks": dask.client * (7 * n_blocks + 2 * n_leaves),
        "client: algebra": (10.0 * m**3 + search) / rates.reduce_large,
    }
    print(f"\n10^6 structures, {m} columns, {args.nodes} nodes of {args.cores} cores:")
    for name, core_s in stages.items():
        print(f"  {name:<24}{core_s / 3600:10.1f} core-hours {core_s / n_cores:8.1f} s")
    for name, wall_s in alone_s.items():
        print(f"  {name:<24}{'':>21} {wall_s:8.1f} s")
    total = sum(stages.values()) / n_cores + sum(alone_s.values())
    print(f"  {'together':<24}{'':>21} {total:8.1f} s, and the choice from the sample")
    print(f"  {n_blocks} blocks, {n_leaves} times {ROWS_PER_COLUMN * m} rows; triangles: "
          f"{triangles / 1e9:.2f} GB, {travelled / 1e12:.1f} TB sent")  # fmt: skip
    return {"core-seconds": stages, "alone": alone_s, "total": total}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=3, default=[400, 800, 1600])
    parser.add_argument("--rates-from", type=int, default=100, metavar="N")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--n-environments", type=int, default=40)
    parser.add_argument("--n-tangents", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--cores", type=int, default=32, help="of a node")
    parser.add_argument("--columns", type=int, default=6300, help="of the extrapolated model")
    parser.add_argument("--network", type=float, default=1e9, help="bytes/s of a node")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import dask
    from distributed import Client, LocalCluster

    images = images_of(max(args.sizes))
    structures = structures_from_atoms(images)
    labels_k = [
        float(np.mean([np.count_nonzero(np.isfinite(getattr(s, name))) for s in structures]))
        for name in ("energy", "forces_nc", "stress_v")
    ]
    n_atoms_s = as_int([s.n_atoms for s in structures])
    result = {"labels per structure": labels_k, "runs": []}
    print(f"{n_atoms_s.mean():.1f} atoms and {sum(labels_k):.1f} labels per structure")
    with (
        # The profiler looks a hundred times a second, however slow the machine is.
        dask.config.set({"distributed.worker.profile.enabled": False}),
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=args.workers, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        path = str(Path(folder) / "train.xyz")
        write(path, images, format="extxyz")
        small = make_model(args).fit(f"{path}@:{args.rates_from}", client=client)
        m, options = small.fitted_.known.n_columns, small._options()
        dask_s, idle = dask_rates(client), idle_seconds(client)
        found = client.gather(
            [
                client.submit(
                    alone, measure_rates, path, small, args.rates_from, workers=[w], pure=False
                )
                for w in client.nthreads()
            ]
        )
        rates = Rates(*np.mean(found, axis=0).tolist())
        result |= {"rates": rates._asdict(), "Dask": dask_s._asdict(), "columns": m}
        print(f"rates of one core of {args.workers} that are busy, model of {m} columns:")
        print(f"  read and check        {1e3 * rates.read:9.3f} ms per structure")
        print(f"  shortest distances    {1e3 * rates.distances:9.3f} ms per structure")
        print(f"  rows                  {1e9 * rates.rows:9.1f} ns per label and column")
        print(f"  reduction             {rates.reduce / 1e9:9.2f} GFLOP/s")
        print(f"  join                  {rates.join / 1e9:9.2f} GFLOP/s")
        print(f"  the same, {LARGE} columns {rates.reduce_large / 1e9:8.2f}, "
              f"{rates.join_large / 1e9:.2f} GFLOP/s")  # fmt: skip
        print(f"  training errors       {1e3 * rates.predict:9.3f} ms per structure")
        print(f"  Dask                  {1e3 * dask_s.task:9.3f} ms per task; "
              f"client {1e3 * dask_s.client:.3f}; idle workers {idle:.3f} s/s")  # fmt: skip
        print(f"  Dask, triangles       {1e9 * dask_s.byte:9.3f} ns per byte sent")
        print(f"  client, outlines      {1e6 * rates.outline:9.1f} us per structure")
        print(f"\n{'structures':>10} {'predicted':>10} {'measured':>10} {'ratio':>6} "
              f"{'client':>8} {'wall':>8}   core-seconds; s")  # fmt: skip
        for n in args.sizes:
            before, mine, wall = worker_seconds(client), time.process_time(), time.time()
            make_model(args).fit(f"{path}@:{n}", client=client)
            measured = worker_seconds(client) - before
            mine, wall = time.process_time() - mine, time.time() - wall
            measured -= idle * wall
            n_blocks = len(blocks_of(n_atoms_s[:n], options))
            parts = folds_of(structures[:n], isolated_atoms(structures[:n], 5.0), 0).parts
            rows_s = 3 * n_atoms_s[:n] + 7
            largest = min(ROWS_PER_COLUMN * m, rows_s.sum() / LEAST_SHARES)
            n_leaves = sum(len(shares(rows_s[part], largest)) for part in parts)
            stages, _, _ = predict(rates, dask_s, n, labels_k, m, n_blocks, len(parts), n_leaves)
            total = sum(stages.values())
            result["runs"].append(
                {"n": n, "predicted": stages, "measured": measured, "client": mine, "s": wall}
            )
            print(f"{n:>10} {total:>10.1f} {measured:>10.1f} {measured / total:>6.2f} "
                  f"{mine:>8.1f} {wall:>8.1f}")  # fmt: skip
    result["extrapolated"] = extrapolate(rates, dask_s, labels_k, len(parts), args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
