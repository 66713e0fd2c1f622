"""Test errors against the number of training structures: kernelpot and GAP on the same data.

    KERNELPOT_DATA=/path/to/data KERNELPOT_PEERS=/path/to/peers-venv/bin \\
        python benchmarks/learning_curves.py Si ethanol [--plot DIR] [--json FILE]

Subsets are random, nested, and the same for both methods; isolated atoms are in all of them and
not counted. Both methods are tested on the whole test set by the code of accuracy.py. GAP (see
peers.txt) runs on one thread: for fair times set OPENBLAS_NUM_THREADS and NUMBA_NUM_THREADS to 1.
Its noise levels are tuned by cross-validation at every size. Results are appended to the cache as
they come; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import accuracy
import gap
import numpy as np
from own_process import in_own_process, peak_memory

SETS = accuracy.SETS
SIZES = {
    "Si": (27, 54, 107, 214),
    "Cu": (33, 66, 131, 262),
    "Mo": (24, 48, 97, 194),
    "ethanol": (50, 100, 200, 400, 950),
    "aspirin": (50, 100, 200, 400, 950),
    "3BPA": (50, 100, 200, 500),
    "NbMoTaW": (100, 200, 400, 5282),
}
MODEL_TAG = "settings of accuracy.py"
"""What `make_model` does: part of the cache's keys, so change it together with the function."""


def make_model(name):
    """The unfitted kernelpot model of a set."""
    from kernelpot import KernelPotential

    return KernelPotential(accuracy.descriptor(SETS[name]), **SETS[name]["model"])


def subset(train, size, seed):
    """The isolated atoms and a random part of the rest; a larger size holds the smaller one."""
    atoms = [a for a in train if gap.isolated(a)]
    rest = [a for a in train if not gap.isolated(a)]
    if size > len(rest):
        raise SystemExit(f"there are {len(rest)} training structures, {size} were asked for")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rest))[:size])
    return atoms + [rest[k] for k in chosen]


def load(name, size, seed):
    """Training subset and the whole test set."""
    case = SETS[name]
    train, test = accuracy.read(case, Path(os.environ["KERNELPOT_DATA"]), case["labels"])
    return subset(train, size, seed), test


def run_kernelpot(key, queue):
    """Fit and test; runs in a process of its own, so that its peak memory can be stated."""
    train, test = load(key["set"], key["size"], key["seed"])
    wall, cpu = time.perf_counter(), time.process_time()
    model = make_model(key["set"])
    model.fit(train)
    record = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "errors": accuracy.errors(SETS[key["set"]], model, test),
        "n_test": len(test),
        "n_environments": model.n_environments_,
        "n_inducing": model.n_inducing_,
    }
    record["peak_GB"] = peak_memory() / 1e9
    queue.put(record)


def gap_record(key, limit_GB):
    """Errors and cost of a GAP."""
    train, test = load(key["set"], key["size"], key["seed"])
    case, settings = SETS[key["set"]], gap.Settings(*key["settings"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            run, tuning, noise, table = gap.fit(
                settings, train, folder, limit_GB, case.get("total", False), case["measure"]
            )
        except gap.OverMemory as reason:
            return {"over_memory": str(reason), "limit_GB": limit_GB}
        model = gap.Predicted(folder)
        return {
            "seconds": run.seconds,
            "cpu_seconds": run.cpu_seconds,
            "tuning_cpu_seconds": tuning,
            "errors": accuracy.errors(case, model, test),
            "predict_cpu_seconds": model.run.cpu_seconds,
            "n_test": len(test),
            "peak_GB": run.peak_GB,
            "noise": noise,
            "cross_validation": table,
        }


class Cache:
    """Records in a file of JSON lines, found again by their keys."""

    def __init__(self, path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.records = [json.loads(line) for line in lines]

    def get(self, key, compute, limit_GB=0.0):
        """The record of a key, computed if it is not there (or was over a smaller limit)."""
        key = json.loads(json.dumps(key))
        for record in self.records:
            if record["key"] == key and record.get("limit_GB", limit_GB) >= limit_GB:
                return record
        record = json.loads(json.dumps({"key": key, **compute(key)}))
        self.records.append(record)
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        return record


def curve_of_gap(name, sizes, args, cache):
    """Records of GAP."""
    settings = gap.SETTINGS[name]
    if args.gap_sparse:
        settings = settings._replace(n_sparse=args.gap_sparse)
    if args.gap_virial:
        settings = settings._replace(virial="stress" in SETS[name]["labels"])
    print(f"{name}: GAP {settings}", flush=True)
    for size in sizes:
        key = {"set": name, "method": "GAP", "size": size, "seed": args.seed}
        key["settings"] = settings
        record = cache.get(key, lambda k: gap_record(k, args.gap_memory), args.gap_memory)
        yield show(record)


def curve_of_kernelpot(name, sizes, args, cache):
    """Records of kernelpot."""
    print(f"{name}: kernelpot, {MODEL_TAG}", flush=True)
    measure = functools.partial(in_own_process, run_kernelpot)
    for size in sizes:
        key = {"set": name, "method": "kernelpot", "size": size, "seed": args.seed}
        yield show(cache.get(key | {"settings": MODEL_TAG}, measure))


def show(record):
    """Print one row of the table; returns the record."""
    key = record["key"]
    head = f"  {key['set']:<8}{key['size']:>6}  {key['method']:<10}"
    if "over_memory" in record:
        print(f"{head}  over memory: {record['over_memory']}", flush=True)
        return record
    cells = []
    for kind in ("energy", "forces"):
        mae, rmse, _ = record["errors"]["all"][kind]
        cells.append(f"{mae:>9.2f}{rmse:>9.2f}")
    cost = f"{record['cpu_seconds']:>9.0f}{record['seconds']:>9.0f}{record['peak_GB']:>8.2f}"
    noise = (
        "  sigma " + ", ".join(f"{s:g}" for s in record["noise"] if s) if "noise" in record else ""
    )
    print(f"{head}{''.join(cells)}{cost}{noise}", flush=True)
    return record


def plot(name, records, folder):
    """Energy and force error against size on logarithmic axes, into DIR/NAME.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    case = SETS[name]
    column = ("mae", "rmse").index(case["measure"])
    energy_unit = "meV" if case.get("total") else "meV/atom"
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    done = [r for r in records if "errors" in r]
    ends = sorted({r["key"]["size"] for r in done})
    for axis, kind, unit in zip(axes, ("energy", "forces"), (energy_unit, "meV/Å"), strict=True):
        for method, style in (("GAP", "C1s--"), ("kernelpot", "C0o-")):
            points = sorted(
                (r["key"]["size"], r["errors"]["all"][kind][column])
                for r in done
                if r["key"]["method"] == method
            )
            if points:
                axis.plot(*zip(*points, strict=True), style, label=method)
        full = max(SIZES[name])
        for k, (method, values) in enumerate(case["published"].items()):
            value = values[("energy", "forces").index(kind)]
            label = f"{method}, published"
            color = "C1" if method == "GAP" else f"C{k + 2}"
            axis.plot(full, value, "x+1*"[k % 4], color=color, ms=9, label=label)
        axis.set(xscale="log", yscale="log", xlabel="training structures")
        axis.set_ylabel(f"{kind} {case['measure'].upper()} ({unit})")
        ticks = sorted({*ends, full})
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(name)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=["Si"], help=", ".join(SIZES))
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of training structures")
    parser.add_argument("--seed", type=int, default=0, help="of the random subsets")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--kernelpot-only", action="store_true")
    only.add_argument("--gap-only", action="store_true")
    parser.add_argument("--gap-memory", default="6GB", help="limit of one gap_fit (default 6GB)")
    parser.add_argument("--gap-sparse", type=int, help="sparse points per element of GAP")
    parser.add_argument("--gap-virial", action="store_true", help="fit GAP to stresses, too")
    parser.add_argument("--cache", type=Path, default=Path("learning_curves.jsonl"))
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write a figure per set")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if "KERNELPOT_DATA" not in os.environ:
        sys.exit("KERNELPOT_DATA must name the folder that holds the data sets")
    args.gap_memory = float(args.gap_memory.upper().removesuffix("B").removesuffix("G"))
    cache, everything = Cache(args.cache), []
    print(f"  {'':26}{'energy':>18}{'forces':>18}{'fit':>9}")
    print(
        f"  {'set':<8}{'size':>6}  {'method':<10}{'MAE':>9}{'RMSE':>9}{'MAE':>9}{'RMSE':>9}"
        f"{'CPU s':>9}{'wall s':>9}{'GB':>8}   meV (molecules) or meV/atom, meV/A"
    )
    for name in args.sets:
        sizes = args.sizes or SIZES[name]
        records = []
        if not args.kernelpot_only:
            records += curve_of_gap(name, sizes, args, cache)
        if not args.gap_only:
            records += curve_of_kernelpot(name, sizes, args, cache)
        if args.plot:
            plot(name, records, args.plot)
        everything += records
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
