"""What a fit on a Dask cluster costs: measured rates, a model of the cost, and runs that check it.

    KERNELPOT_DATA=/path/to/data OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 \\
        python benchmarks/scaling.py [--sizes 400 800 1600] [--workers 2] [--json FILE]

Rates are measured in this process on a part of the structures: seconds per structure to read and
check it, to look for its shortest distances, to predict it; seconds per label and column to make
rows; operations per second of their reduction and of the joins. With them the core-seconds of a fit
to n structures are predicted, and measured in fits of three sizes on a local cluster, as the time
that the worker processes spent computing (so that other load on the machine counts little). The
last lines say what 10^6 structures on 100 nodes would take. Without KERNELPOT_DATA the bundled
silicon data are used, repeated with displaced atoms where they are too few.
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
from kernelpot.data import LabelKeys, Noise, block_of_structures
from kernelpot.data_checks import check_energy_scale
from kernelpot.data_files import find_frames, read_frames
from kernelpot.data_outlines import joined_hash, outlines_of
from kernelpot.distributed import block_sizes
from kernelpot.gp.triangles import RowReducer, empty_triangle, join_triangles
from kernelpot.hyperparameters import folds_of
from kernelpot.label_rows import label_rows
from kernelpot.prediction import evaluate_structure
from kernelpot.selection import choose_sample
from kernelpot.terms.composition import fit_composition, isolated_atoms
from kernelpot.terms.repulsion import closest_distances

PARTS = 5
KINDS = 3  # triangles of a part: energy, forces, stress; a triangle of few rows costs little


class Rates(NamedTuple):
    """Of one core."""

    read: float  # s per structure: read, check, outline
    distances: float  # s per structure
    rows: float  # s per label and column
    predict: float  # s per structure
    reduce: float  # operations per second, of 2 b n^2
    join: float  # operations per second, of 2/3 n^3
    outline: float  # s per structure, in the client
    labels: float  # per structure
    columns: int


def cpu(function):
    """Seconds that this process spent on a call."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


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


def measure_rates(path, model, n):
    """Rates on the first structures of a file, with the inducing variables of a fitted model."""
    index = find_frames(path)
    part = index.some(np.arange(n))
    known, fitted = model.fitted_.known, model.fitted_

    def read():
        structures, _ = block_of_structures(read_frames(part), LabelKeys(), Noise())
        outlines_of(structures)
        return structures

    read_s, structures = cpu(read)
    index_s, _ = cpu(lambda: find_frames(path))
    numbers = as_int(model.species_)
    distances_s, _ = cpu(lambda: closest_distances(structures, numbers, 5.0))
    label_rows(structures[0], known)  # compiled before
    rows_s, rows = cpu(lambda: [label_rows(s, known) for s in structures])
    predict_s, _ = cpu(lambda: [evaluate_structure(model.predictor_, s) for s in structures])

    n_labels = sum(s.n_labels for s in structures)
    n_columns = known.n_columns
    found = [one for of_structure in rows for one in of_structure if one.label.kind == "forces"]
    repeats = max(1, 4 * n_columns // sum(len(one.y_r) for one in found))

    def reduce(chosen):
        reducer = RowReducer(empty_triangle(n_columns))
        for one in chosen:
            reducer.add(one.A_rm, one.y_r, one.sigma_r)
        return reducer.finish()

    reduce_s, triangle = cpu(lambda: reduce(found * repeats))
    n_reduced = repeats * sum(len(one.y_r) for one in found)
    join_s, _ = cpu(lambda: join_triangles(triangle, triangle))
    rank = len(triangle.R)  # a triangle, or a trapezoid of fewer rows
    outlines = outlines_of(structures) * (100_000 // n)
    options = model._options()

    def client():
        check_energy_scale(outlines)
        isolated = isolated_atoms(outlines, 5.0)
        choose_sample(outlines, isolated, options.selection_sample, 0)
        fit_composition(outlines, 5.0)
        folds_of(outlines, set(isolated), options)
        joined_hash(one.key for one in outlines)

    client_s, _ = cpu(client)
    return Rates(
        (read_s + index_s * n / len(index.n_atoms_s)) / n,
        distances_s / n,
        rows_s / n_labels / n_columns,
        predict_s / n,
        2.0 * n_reduced * n_columns**2 / reduce_s,
        2.0 / 3.0 * rank**3 / join_s,
        client_s / len(outlines),
        n_labels / n,
        n_columns,
    ), fitted.seconds


def predict(rates, n_structures, n_atoms, options):
    """Core-seconds of the workers by stage."""
    m, labels = rates.columns, rates.labels * n_structures
    n_blocks = len(block_sizes(np.full(n_structures, n_atoms), options))
    n_leaves = n_blocks * PARTS
    # A leaf of b rows has a trapezoid of min(b, m); only forces have many rows.
    rank = min(m, labels / n_leaves)
    joins = 0.0
    for level in range(math.ceil(math.log2(max(2, n_leaves)))):
        rows = min(m, rank * 2**level)
        each = 2.0 / 3.0 * m**3 / rates.join if rows == m else 2.0 * rows * m**2 / rates.reduce
        joins += n_leaves / 2 ** (level + 1) * each
    return {
        "read": rates.read * n_structures,
        "distances": rates.distances * n_structures,
        "rows": rates.rows * labels * m,
        "reduction": 2.0 * labels * m**2 / rates.reduce,
        "joins": joins,
        "errors": rates.predict * n_structures,
    }, n_leaves


def worker_seconds(client):
    """What the worker processes have computed so far."""
    return sum(client.run(time.process_time).values())


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
    parser.add_argument("--network", type=float, default=1e9, help="bytes/s between workers")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from distributed import Client, LocalCluster

    images = images_of(max(args.sizes))
    n_atoms = np.mean([len(atoms) for atoms in images])
    result = {"atoms per structure": n_atoms, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "train.xyz")
        write(path, images, format="extxyz")
        small = make_model(args).fit(images[: args.rates_from])
        options = small._options()
        rates, serial = measure_rates(path, small, args.rates_from)
        result["rates"], result["serial"] = rates._asdict(), serial
        print(f"{n_atoms:.1f} atoms and {rates.labels:.0f} labels per structure")
        print(f"rates of one core, model of {rates.columns} columns:")
        print(f"  read and check        {1e3 * rates.read:9.3f} ms per structure")
        print(f"  shortest distances    {1e3 * rates.distances:9.3f} ms per structure")
        print(f"  rows                  {1e9 * rates.rows:9.3f} ns per label and column")
        print(f"  reduction             {rates.reduce / 1e9:9.2f} GFLOP/s")
        print(f"  join                  {rates.join / 1e9:9.2f} GFLOP/s")
        print(f"  training errors       {1e3 * rates.predict:9.3f} ms per structure")
        print(f"  outlines, client      {1e6 * rates.outline:9.3f} us per structure")
        print(f"\n{'structures':>10} {'predicted':>10} {'measured':>10} {'ratio':>6} "
              f"{'client':>8} {'wall':>8}   core-seconds; s")  # fmt: skip
        with (
            LocalCluster(
                n_workers=args.workers, threads_per_worker=1, dashboard_address=":0"
            ) as cluster,
            Client(cluster) as client,
        ):
            # Imports and compiled code, once.
            make_model(args).fit(f"{path}@:{args.rates_from // 2}", client=client)
            for n in args.sizes:
                before, mine, wall = worker_seconds(client), time.process_time(), time.time()
                make_model(args).fit(f"{path}@:{n}", client=client)
                measured = worker_seconds(client) - before
                mine, wall = time.process_time() - mine, time.time() - wall
                stages, _ = predict(rates, n, n_atoms, options)
                total = sum(stages.values())
                result["runs"].append(
                    {"n": n, "predicted": stages, "measured": measured, "client": mine, "s": wall}
                )
                print(f"{n:>10} {total:>10.1f} {measured:>10.1f} {measured / total:>6.2f} "
                      f"{mine:>8.1f} {wall:>8.1f}")  # fmt: skip

    n, m = 10**6, args.columns
    large = rates._replace(columns=m)
    options = options._replace(
        components=(options.components[0]._replace(n_environments=m, n_tangents=0),)
    )
    stages, n_leaves = predict(large, n, n_atoms, options)
    n_cores = args.nodes * args.cores
    depth = math.ceil(math.log2(n_leaves))
    triangle = 8.0 * m**2
    path_s = depth * (2.0 / 3.0 * m**3 / rates.join + KINDS * triangle / args.network)
    # Whitening, search and posterior: some 10 m^3 operations, at the rate of a reduction.
    dense_s = 10.0 * m**3 / rates.reduce
    print(f"\n10^6 structures, {m} columns, {args.nodes} nodes of {args.cores} cores:")
    for name, seconds in stages.items():
        print(f"  {name:<22}{seconds / 3600:10.1f} core-hours {seconds / n_cores:10.1f} s")
    print(f"  {'last joins':<22}{'':>21} {path_s:10.1f} s ({depth} levels, one after the other)")
    print(f"  {'client, outlines':<22}{'':>21} {rates.outline * n:10.1f} s")
    print(f"  {'client, dense algebra':<22}{'':>21} {dense_s:10.1f} s (one core)")
    total = sum(stages.values()) / n_cores + path_s + rates.outline * n + dense_s
    print(f"  {'together':<22}{'':>21} {total:10.1f} s, and the selection from the sample")
    print(f"  {n_leaves} leaves; a triangle is {triangle / 1e9:.2f} GB, {KINDS} of them a part")
    result["extrapolated"] = {**stages, "path": path_s, "dense": dense_s, "total s": total}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
