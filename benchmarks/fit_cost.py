"""What `kernelpot fit --dry-run` says of time and memory, and what is then measured.

    KERNELPOT_DATA=/path/to/data OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 \\
        python benchmarks/fit_cost.py [CASE ...] [--json FILE]

Each fit runs in a process of its own, so that its peak memory is its own; the estimate is made in
another. Seconds are predicted and measured by two clocks: wall, and that of the process (CPU),
which other work on the machine disturbs less; with one thread the two mean the same. The floor is
the number of operations of all products and factorisations at the rate of a matrix product.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import accuracy
from own_process import in_own_process, peak_memory

CASES = {
    "Si": ("Si", None, {}),
    "Si-small": ("Si", None, {"n_environments": 40, "n_tangents": 10}),
    "Mo": ("Mo", None, {}),
    "NbMoTaW-4GB": ("NbMoTaW", None, {"n_environments": 60, "n_tangents": 16, "memory": "4GB"}),
    "NbMoTaW-2GB": ("NbMoTaW", None, {"n_environments": 30, "n_tangents": 10, "memory": "2GB"}),
    "NbMoTaW-tight": (
        "NbMoTaW",
        None,
        {
            "soap": {"cutoff": 4.0, "n_max": 4, "l_max": 3},
            "n_environments": 60,
            "n_tangents": 16,
            "memory": "0.7GB",
        },
    ),
    "ethanol-full": ("ethanol", 200, {}),
    "ethanol-sparse": (
        "ethanol",
        200,
        {"basis": "sparse", "n_environments": 150, "n_tangents": 16},
    ),
}
"""Set of accuracy.py, number of training structures (None: all), changes of its settings."""


def load(name):
    """Unfitted model and training structures."""
    from kernelpot import KernelPotential

    which, n_train, changes = CASES[name]
    case = accuracy.SETS[which]
    train, _ = accuracy.read(case, Path(os.environ["KERNELPOT_DATA"]), case["labels"])
    case = {**case, "soap": changes.get("soap", case["soap"])}
    settings = {**case["model"], **{k: v for k, v in changes.items() if k != "soap"}}
    return KernelPotential(accuracy.descriptor(case), **settings), train[:n_train]


def predict(name, queue):
    """Estimate by both clocks, and what that takes."""
    model, train = load(name)
    found = {}
    for clock in ("perf_counter", "process_time"):
        started = time.perf_counter(), time.process_time()
        seen = model.estimate_fit(train, clock=getattr(time, clock))
        cost = seen.cost()
        found[clock] = {
            "stages": {s.name: s.seconds for s in cost.stages},
            "seconds": cost.seconds,
            "floor": sum(s.flops for s in cost.stages) / seen.rates.product,
            "memory": cost.memory,
            "took": [time.perf_counter() - started[0], time.process_time() - started[1]],
            "n_columns": cost.shape.n_columns,
        }
    queue.put(found)


def fit(name, queue):
    """Fit, and measure it."""
    model, train = load(name)
    started = time.perf_counter(), time.process_time()
    model.fit(train)
    queue.put(
        {
            "wall": time.perf_counter() - started[0],
            "cpu": time.process_time() - started[1],
            "memory": float(peak_memory()),
            "stages": model.training_summary_["seconds"],
            "n_columns": model.n_inducing_,
        }
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--predict-only", action="store_true", help="do not fit")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    if "KERNELPOT_DATA" not in os.environ:
        sys.exit("KERNELPOT_DATA must name the folder that holds the data sets")
    everything = {}
    for name in args.cases:
        said = in_own_process(predict, name)
        wall, cpu = said["perf_counter"], said["process_time"]
        print(
            f"{name}: {cpu['n_columns']} inducing variables expected; dry run {wall['took'][0]:.1f}"
            f" s (CPU {wall['took'][1]:.1f} s)"
        )
        print(f"  {'stage':<18}{'predicted CPU s':>16}{'predicted wall s':>18}")
        for stage, seconds in cpu["stages"].items():
            print(f"  {stage:<18}{seconds:>16.1f}{wall['stages'][stage]:>18.1f}", flush=True)
        everything[name] = {"predicted": said}
        if args.predict_only:
            continue
        done = in_own_process(fit, name)
        everything[name]["measured"] = done
        print("  measured wall s: " + ", ".join(f"{k} {v:.1f}" for k, v in done["stages"].items()))
        for words, predicted, measured, unit in (
            ("CPU", cpu["seconds"], done["cpu"], "s"),
            ("wall", wall["seconds"], done["wall"], "s"),
            ("memory", 1e-6 * cpu["memory"], 1e-6 * done["memory"], "MB"),
        ):
            print(
                f"  {words:<8}predicted {predicted:>8.1f} {unit}, measured {measured:>8.1f} {unit}:"
                f" ratio {predicted / measured:.2f}",
                flush=True,
            )
        times = done["cpu"] / cpu["floor"]
        print(f"  floor   {cpu['floor']:.1f} s; measured CPU {times:.2f} times that", flush=True)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
