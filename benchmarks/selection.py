"""Learning curves of the selectors: error against the number of inducing environments.

    KERNELPOT_DATA=/path/to/data python benchmarks/selection.py Si Mo ethanol [--plot FILE]

Errors are those of a held-out fifth of the *training* structures; the test sets are not used. A
seed stands for a split, a subset and a selector's start. All selectors see the same seeds, and are
compared seed by seed: beside each median stands the ratio to the first selector, its median and
range. "joint" chooses environments and tangents together, the others environments only. The
settings are small on purpose (n_max 6, l_max 6, few structures), a curve takes minutes. Smaller
still: ``Si --structures 20 --environments 10 20 --seeds 1``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from accuracy import SETS, errors, read

from kernelpot import KernelPotential, Soap
from kernelpot.data import split
from kernelpot.gp.inducing import SELECTORS

SOAP = {"n_max": 6, "l_max": 6}


def subset(images, n_structures, seed):
    """A random part of every group, or all."""
    if n_structures >= len(images):
        return images
    _, kept = split(images, n_structures / len(images), random_state=seed)
    return [images[k] for k in kept]


def measure(name, images, selector, n_environments, args, seed):
    """Errors of one fit: energy (meV/atom, or meV where molecules), forces (meV/A); seconds."""
    case = SETS[name]
    fit, held = split(images, 0.2, random_state=seed)
    train = subset([images[k] for k in fit], args.structures, seed)
    held = subset([images[k] for k in held], max(args.structures // 2, 1), seed)
    settings = {**case["model"], "n_environments": n_environments, "n_tangents": args.tangents}
    model = KernelPotential(
        Soap(**{**case["soap"], **SOAP}), **settings, selector=selector, random_state=seed
    )
    started = time.perf_counter()
    model.fit(train)
    found = errors(case, model, held)["all"]
    return {
        "energy": found["energy"][0],
        "forces": found["forces"][0],
        "seconds": time.perf_counter() - started,
        "selection": model.training_summary_["seconds"]["selection"],
        "n_inducing": model.n_inducing_,
        "log_evidence": model.log_evidence_,
    }


def show(name, results, args):
    """Print a table of one set: medians, and ratios to the first selector."""
    unit = "meV" if SETS[name].get("total") else "meV/atom"
    print(f"\n{name}: {args.structures} structures, {args.tangents} tangents, {args.seeds} seeds")
    head = f"energy {unit}   ratio (range)       forces meV/A   ratio (range)    select s"
    print(f"  {'environments':>12}  {'selector':<10}{head}")
    for n_environments in args.environments:
        first = results[name][args.selectors[0]][str(n_environments)]
        for selector in args.selectors:
            found = results[name][selector][str(n_environments)]
            line = f"  {n_environments:>12}  {selector:<10}"
            for kind in ("energy", "forces"):
                ratio = [f[kind] / g[kind] for f, g in zip(found, first, strict=True)]
                line += f"{np.median([f[kind] for f in found]):>10.3g}  {np.median(ratio):>6.3f}"
                line += f" ({min(ratio):.2f} to {max(ratio):.2f})   "
            print(line + f"{np.median([f['selection'] for f in found]):>6.1f}")
    sys.stdout.flush()


def plot(results, args):
    """Force errors against the number of environments, one panel for each set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = len(results)
    figure, axes = plt.subplots(1, n, figsize=(4.2 * n, 3.8), squeeze=False, layout="constrained")
    for axis, (name, by_selector) in zip(axes[0], results.items(), strict=True):
        for k, (selector, curve) in enumerate(by_selector.items()):
            forces = np.array([[f["forces"] for f in found] for found in curve.values()])
            shift = 1.0 + 0.03 * (k - 0.5 * (len(by_selector) - 1))  # bars side by side
            x = shift * np.array([int(n) for n in curve])
            middle = np.median(forces, axis=1)
            bars = [middle - forces.min(axis=1), forces.max(axis=1) - middle]
            axis.errorbar(x, middle, bars, marker="o", ms=4, lw=1.2, elinewidth=0.7, label=selector)
        axis.set(xscale="log", yscale="log", xlabel="inducing environments", title=name)
        axis.set_xticks(args.environments, [str(n) for n in args.environments])
        axis.minorticks_off()
        low, high = axis.get_ylim()
        steps = [a * 10**b for b in range(4) for a in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)]
        ticks = [t for t in steps if low <= t <= high]
        axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes[0, 0].set_ylabel("held-out force MAE, meV/A")
    axes[0, -1].legend(fontsize=8, frameon=False)
    figure.savefig(args.plot, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=["Si", "Mo", "ethanol"], help=", ".join(SETS))
    parser.add_argument("--selectors", nargs="+", default=list(SELECTORS))
    parser.add_argument("--environments", nargs="+", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--tangents", type=int, default=8)
    parser.add_argument("--structures", type=int, default=80, help="training structures at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")
    args = parser.parse_args()
    if "KERNELPOT_DATA" not in os.environ:
        sys.exit(
            "KERNELPOT_DATA must name the folder that holds the data sets (mlearn, rMD17, ...)"
        )
    folder = Path(os.environ["KERNELPOT_DATA"])
    results = {}
    for name in args.sets:
        images, _ = read(SETS[name], folder, SETS[name]["labels"])  # the test set stays unused
        results[name] = {
            selector: {
                str(n): [measure(name, images, selector, n, args, s) for s in range(args.seeds)]
                for n in args.environments
            }
            for selector in args.selectors
        }
        show(name, results, args)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
        if args.plot:
            plot(results, args)


if __name__ == "__main__":
    main()
