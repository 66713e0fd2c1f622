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
        Soap.from_settings({**case["soap"], **SOAP}),
        **settings,
        selector=selector,
        random_state=seed,
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


def summarise(results, args):
    """Print the ratios to the first selector over all sets, sizes and seeds."""
    print(
        "\nover all sets, sizes and seeds: geometric mean of the ratio, standard deviation of one"
    )
    for selector in args.selectors[1:]:
        line = f"  {selector:<10}"
        for kind in ("energy", "forces"):
            log_ratio = np.log(
                [
                    f[kind] / g[kind]
                    for by_selector in results.values()
                    for n, first in by_selector[args.selectors[0]].items()
                    for f, g in zip(by_selector[selector][n], first, strict=True)
                ]
            )
            line += f"  {kind} {np.exp(log_ratio.mean()):.3f} +- {log_ratio.std():.3f}"
        print(line)


def plot(results, args):
    """Force errors against the number of environments, and below their ratio to the first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = len(results)
    figure, axes = plt.subplots(
        2, n, figsize=(3.8 * n + 1.2, 5.6), squeeze=False, sharex=True, layout="constrained"
    )
    for (top, below), (name, by_selector) in zip(axes.T, results.items(), strict=True):
        x = np.array(args.environments)
        first = None
        for k, (selector, curve) in enumerate(by_selector.items()):
            forces = np.array([[f["forces"] for f in curve[str(m)]] for m in x])
            first = forces if first is None else first
            ratio = forces / first
            middle = np.median(ratio, axis=1)
            bars = [middle - ratio.min(axis=1), ratio.max(axis=1) - middle]
            aside = 1.0 + 0.04 * (k - 0.5 * (len(by_selector) - 1))  # bars side by side
            top.plot(x, np.median(forces, axis=1), marker="o", ms=4, lw=1.2, label=selector)
            below.errorbar(aside * x, middle, bars, marker="o", ms=4, ls="none", elinewidth=0.8)
        below.axhline(1.0, color="0.6", lw=0.8, zorder=0)
        top.set(xscale="log", yscale="log", title=name)
        below.set_xlabel("inducing environments")
        below.set_xticks(x, [str(m) for m in x])
        low, high = top.get_ylim()
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5)
        ticks = [a * 10**b for b in range(4) for a in steps if low <= a * 10**b <= high]
        top.set_yticks(ticks, [f"{t:g}" for t in ticks])
        top.minorticks_off()
    axes[0, 0].set_ylabel("median force MAE, meV/A")
    axes[1, 0].set_ylabel(f"ratio to {args.selectors[0]}, same seed")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right", frameon=False)
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
    summarise(results, args)


if __name__ == "__main__":
    main()
