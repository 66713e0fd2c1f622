"""Error against the cost of a prediction: the same data, ever more inducing environments.

    KERNELPOT_DATA=/path/to/data python benchmarks/pareto.py Si Mo [--plot DIR] [--json FILE]
    python benchmarks/pareto.py --redraw FILE --plot DIR

Descriptors are those of accuracy.py, and smaller ones; tangents are 20 for each environment. For
molecules there are also models in the full gradient basis, which cost the more the more structures
they are fitted to, so these are fitted to the first 50, 100 and 200 (``--structures``). The cost is
that of energy, forces and stress with neighbours known, on one thread if OPENBLAS_NUM_THREADS and
NUMBA_NUM_THREADS are 1; it is measured when all models are there, in turns, since a machine may be
slower at one time than at another. A model is on the Pareto front if none is both cheaper and
better on the test set; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import accuracy
import numpy as np

ENVIRONMENTS = (10, 25, 50, 100, 200, 400)
STRUCTURES = (50, 100, 200)
ROUNDS = 5
SIZES = ({"n_max": 4, "l_max": 3}, {"n_max": 6, "l_max": 4}, {"n_max": 8, "l_max": 6}, {})


def models(case, train, environments, sizes, structures):
    """What is measured: in words, the model, and the structures to fit."""
    from kernelpot import KernelPotential

    for size in sizes:
        soap = accuracy.descriptor(case, **size)
        one = soap[0] if isinstance(soap, list) else soap
        words = f"n {one.n_max}, l {one.l_max}"
        for n in environments:
            model = KernelPotential(soap, n_environments=n, n_tangents=20, feature_tolerance=1e-5)
            yield words, model, train
    if case["model"].get("basis") == "full":
        for n in structures:
            # Isolated atoms stand at the beginning and are not counted.
            n_atoms = sum(len(atoms) == 1 for atoms in train)
            model = KernelPotential(accuracy.descriptor(case), **case["model"])
            yield "full basis", model, train[: n_atoms + n]


def measure(name, folder, environments, sizes, structures):
    """One row for each model: left-out and test errors, then the cost of all."""
    from kernelpot.comparison import prediction_cost

    case = accuracy.SETS[name]
    train, test = accuracy.read(case, folder, case["labels"])
    rows, models_of_rows = [], []
    for words, model, part in models(case, train, environments, sizes, structures):
        started = time.perf_counter()
        model.fit(part)
        row = {
            "set": name,
            "model": words,
            "n_structures": len(part),
            "n_environments": model.n_environments_,
            "seconds": time.perf_counter() - started,
            "left_out": model.leave_out_errors_,
            "test": accuracy.errors(case, model, test)["all"],
        }
        rows.append(row)
        predictor = copy.copy(model.predictor_)
        predictor._solve = None  # holds the statistics of the fit
        models_of_rows.append(SimpleNamespace(predictor_=predictor))
        print(f"{name}: {words}, {row['n_environments']} environments fitted", flush=True)
    costs = [[prediction_cost(one, train) for one in models_of_rows] for _ in range(ROUNDS)]
    for row, cost in zip(rows, np.min(costs, axis=0), strict=True):
        row["us_per_atom"] = float(cost)
        show(row, case)
    return rows


def show(row, case):
    """Print one row."""
    column = 0 if case["measure"] == "mae" else 1
    left, test = row["left_out"], row["test"]
    energy, forces = (1e3 * left.get(kind, float("nan")) for kind in ("energy", "forces"))
    print(
        f"{row['set']:8} {row['model']:10} {row['n_structures']:4} structures"
        f" {row['n_environments']:5} env. {row['us_per_atom']:7.1f} us/atom",
        f"left out (RMSE) {energy:6.2f} meV/atom {forces:6.1f} meV/A",
        f"test ({case['measure'].upper()}) {test['energy'][column]:6.2f}"
        f" {test['forces'][column]:6.1f}",
        f"{row['seconds']:.0f} s",
        sep="; ",
        flush=True,
    )


def front(costs, errors):
    """Models that none beats in cost and in error, the cheapest first."""
    best, kept = float("inf"), []
    for k in np.argsort(costs):
        if errors[k] < best:
            best = errors[k]
            kept.append(k)
    return kept


def draw(rows, name, path):
    """Test errors of energies and forces against cost; the front as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    case = accuracy.SETS[name]
    column = 0 if case["measure"] == "mae" else 1
    units = {"energy": "meV" if case.get("total") else "meV/atom", "forces": "meV/A"}
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
    kinds = dict.fromkeys(row["model"] for row in rows)
    for axes, (kind, unit) in zip(panels, units.items(), strict=True):
        for words in kinds:
            mine = [row for row in rows if row["model"] == words]
            cost = [row["us_per_atom"] for row in mine]
            axes.plot(cost, [row["test"][kind][column] for row in mine], "o", ms=4.5, label=words)
        costs = np.array([row["us_per_atom"] for row in rows])
        errors = np.array([row["test"][kind][column] for row in rows])
        best = front(costs, errors)
        axes.plot(
            costs[best], errors[best], "-", color="0.6", lw=1.2, zorder=0, label="Pareto front"
        )
        for style, (method, values) in zip(
            ("--", ":", "-."), case["published"].items(), strict=False
        ):
            # Those of 3BPA at 300 K; its test set here is both temperatures.
            if "more_tests" not in case:
                value = values[0 if kind == "energy" else 1]
                axes.axhline(value, ls=style, color="0.35", lw=1.0, label=f"{method}, published")
        axes.set(xscale="log", xlabel="energy, forces, stress (us/atom)")
        axes.set_ylabel(f"test {case['measure'].upper()} of {kind} ({unit})")
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_title(name, loc="left")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right", frameon=False)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=["Si"], help=", ".join(accuracy.SETS))
    parser.add_argument("--environments", type=int, nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--quick", action="store_true", help="two descriptors instead of four")
    parser.add_argument("--plot", type=Path, help="folder for a figure of each set")
    parser.add_argument("--structures", type=int, nargs="+", default=STRUCTURES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--redraw", type=Path, nargs="+", help="figures of what --json has written")
    args = parser.parse_args()
    if args.redraw:
        rows = [row for path in args.redraw for row in json.loads(path.read_text())]
        for name in dict.fromkeys(row["set"] for row in rows):
            args.plot.mkdir(parents=True, exist_ok=True)
            mine = [row for row in rows if row["set"] == name]
            draw(mine, name, args.plot / f"pareto_{name}.png")
        return
    if "KERNELPOT_DATA" not in os.environ:
        sys.exit("KERNELPOT_DATA must name the folder that holds the data sets")
    rows = []
    for name in args.sets:
        mine = measure(
            name,
            Path(os.environ["KERNELPOT_DATA"]),
            args.environments,
            SIZES[1::2] if args.quick else SIZES,
            args.structures,
        )
        rows += mine
        if args.plot:
            args.plot.mkdir(parents=True, exist_ok=True)
            draw(mine, name, args.plot / f"pareto_{name}.png")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
