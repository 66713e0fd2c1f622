"""How sure models are, and how right they are to be: calibration, ranks, novelty, cost.

    KERNELPOT_DATA=/path/to/data python benchmarks/uncertainty.py [CASE ...] [--plots FOLDER]

Each model is fitted to the training set of `accuracy.py`. Even-numbered structures of the test set
calibrate it, odd-numbered ones are what is printed: once with the posterior and the noise that the
fit found, once calibrated on the even ones, once calibrated on the training structures themselves,
each predicted by all others ("left-out"). 3BPA is calibrated at 300 K and measured at 600 K. In the
full basis there is no posterior, so molecules are fitted in the sparse one.

Si, Cu, Mo, ethanol, 3BPA
    Force components but those that symmetry fixes: coverage, expected calibration error, Spearman
    correlation of |error| and sigma, AUROC of the tenth of largest errors; of both in brackets what
    they would be were each error normal with exactly its sigma. For Si also an ensemble of eight
    refits to bootstrap samples.
GAP
    The same of the local variance of a GAP fitted to the same silicon (KERNELPOT_PEERS).
NbMoTaW
    Novelty of training structures and of unseen quaternary cells.
cost
    Novelty beside energy and forces, and standard deviations of all forces, of 512 silicon atoms.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import accuracy
import numpy as np
from own_process import in_own_process

from kernelpot.uncertainty.recalibration import TERMS

FORCE_CASES = ("Si", "Cu", "Mo", "ethanol", "3BPA")
SPARSE = {"n_environments": 240, "n_tangents": 16, "feature_tolerance": 1e-5}
"""Of molecules."""
N_TEST = 400
"""Structures of a test set that are looked at, at most: of molecular dynamics, every so many."""
N_LEFT_OUT = 100
"""Training structures that are predicted by all others, at most."""
N_ENSEMBLE = 8


def load(name):
    """Unfitted model, training structures, and those of the test."""
    from kernelpot import KernelPotential

    case = accuracy.SETS[name]
    train, test = accuracy.read(case, Path(os.environ["KERNELPOT_DATA"]), case["labels"])
    settings = dict(case["model"])
    if settings.get("basis") == "full":
        settings = dict(SPARSE)
    return KernelPotential(accuracy.descriptor(case), **settings), train, test


def thinned(images, n):
    """So many of them, evenly."""
    return [images[k] for k in np.unique(np.linspace(0, len(images) - 1, n).astype(int))]


def forces_of(model, images, *, calibrated):
    """Deviations of the force components."""
    from kernelpot.report_uncertainty import model_deviations

    found = model_deviations(model, images, calibrated=calibrated)
    return next(one for one in found if one.kind == "forces")


def row_of(deviations):
    """Figures of one set of force components."""
    from scipy.stats import spearmanr

    from kernelpot.report_uncertainty import uncertainty_table
    from kernelpot.uncertainty.metrics import auroc

    (row,) = uncertainty_table([deviations])
    # Ranks that normal errors with exactly these standard deviations would have.
    drawn = np.random.default_rng(0).normal(0.0, deviations.sigma)
    return {
        "spearman_if_true": float(spearmanr(np.abs(drawn), deviations.sigma)[0]),
        "auroc_if_true": auroc(drawn, deviations.sigma),
        "ece": row.ece,
        "cover_50": row.coverage_50,
        "cover_90": row.coverage_90,
        "cover_95": row.coverage_95,
        "cover_99": row.coverage_99,
        "nll": row.nll - np.log(1e3),  # of errors in eV/A
        "rms_z": row.rms_z,
        "sigma": row.sharpness,
        "rmse": row.rmse,
        "spearman": row.spearman,
        "auroc": row.auroc,
        "numbers": row.count,
    }


def show(name, row):
    print(
        f"  {name:<22} ECE {row['ece']:.3f}  50 % {100 * row['cover_50']:5.1f}  90 % "
        f"{100 * row['cover_90']:5.1f}  95 % {100 * row['cover_95']:5.1f}  99 % "
        f"{100 * row['cover_99']:5.1f}  NLL {row['nll']:6.2f}  z {row['rms_z']:4.2f}  Spearman "
        f"{row['spearman']:.3f} ({row['spearman_if_true']:.2f})  AUROC {row['auroc']:.3f} "
        f"({row['auroc_if_true']:.2f})",
        flush=True,
    )


def show_forces(name, found):
    n_train, n_held, n_new = found["n"]
    print(
        f"{name}: fitted to {n_train} ({found['fit_s']:.0f} s CPU), calibrated on {n_held}, "
        f"measured on {n_new} structures"
    )
    for kind, row in (found["rows"] | found.get("ensemble", {})).items():
        show(kind, row)
    if "ensemble_s" in found:
        print(f"  ensemble of {N_ENSEMBLE}: {found['ensemble_s']:.0f} s CPU more")
    scales = "; ".join(
        f"{symbol} {', '.join(f'{a:.2f}' for a in scale_t)}, {1e3 * floor:.1f}"
        for symbol, (*scale_t, floor) in found["scales"].items()
    )
    print(f"  scales of {', '.join(TERMS)}, floor (meV/A): {scales}", flush=True)


def run(name, queue):
    """Fit, calibrate, measure."""
    model, train, test = load(name)
    started = time.process_time()
    model.fit(train)
    fit_s = time.process_time() - started
    if name == "3BPA":
        groups = [a.info["group"] for a in test]
        held = [a for a, g in zip(test, groups, strict=True) if g == "300 K"]
        new = thinned([a for a, g in zip(test, groups, strict=True) if g == "600 K"], N_TEST // 2)
        held = thinned(held, N_TEST // 2)
    else:
        test = thinned(test, N_TEST)
        held, new = test[::2], test[1::2]
    rows, sets = {}, {}
    sets["posterior and noise"] = forces_of(model, new, calibrated=False)
    model.calibrate(thinned(train, N_LEFT_OUT), left_out=True)
    sets["left-out"] = forces_of(model, new, calibrated=True)
    model.calibrate(held)
    sets["held-out"] = forces_of(model, new, calibrated=True)
    rows = {kind: row_of(one) for kind, one in sets.items()}
    scales = {
        symbol or "all": (*one.scale_t, one.floor)
        for symbol, one in model.calibration_.kinds["forces"].items()
    }
    found = {"rows": rows, "fit_s": fit_s, "scales": scales, "n": [len(train), len(held), len(new)]}
    if name == "Si":
        found |= ensemble(train, held, new, fit_s)
    queue.put((found, sets))


def ensemble(train, held, new, fit_s):
    """Spread of refits to bootstrap samples, calibrated in the same way, and what it costs."""
    from kernelpot.report_uncertainty import Deviations
    from kernelpot.uncertainty.calibration_fit import Errors, recalibrate
    from kernelpot.uncertainty.recalibration import is_open

    rng = np.random.default_rng(0)
    started, forces = time.process_time(), []
    for _ in range(N_ENSEMBLE):
        model, *_ = load("Si")
        sample = [train[k] for k in rng.integers(0, len(train), len(train))]
        alone = [a for a in train if len(a) == 1]
        model.fit([*sample, *alone])
        forces.append([np.concatenate(model.predict(part).forces).ravel() for part in (held, new)])
    seconds = time.process_time() - started
    noise = model.noise_["forces"]
    parts = []
    for k, images in enumerate((held, new)):
        members = np.array([one[k] for one in forces])
        label = np.concatenate([a.get_forces().ravel() for a in images])
        error, spread = members.mean(axis=0) - label, members.std(axis=0, ddof=1)
        told, structure = (
            is_open(spread),
            np.repeat(np.arange(len(images)), [3 * len(a) for a in images]),
        )
        variance = spread[told][None, :] ** 2
        parts.append(Errors(error[told], variance, np.full(told.sum(), "Si"), structure[told]))
    scales = recalibrate(
        {"forces": parts[0]}, dict.fromkeys(("energy", "forces", "stress"), noise), "held-out"
    )
    scale = scales.scale_of("forces", 14)
    rows = {}
    for name, std, level in (
        ("ensemble and noise", np.sqrt(parts[1].variance_tr[0] + noise**2), None),
        ("ensemble, held-out", scale.std(parts[1].variance_tr), True),
    ):
        error = parts[1].error_r
        level = None if level is None else scale.level(np.abs(error) / std)
        group = np.full(len(error), "all")
        rows[name] = row_of(Deviations("forces", "meV/A", 1e3 * error, 1e3 * std, group, level))
    return {"ensemble": rows, "ensemble_s": seconds - fit_s}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=[*FORCE_CASES, "GAP", "NbMoTaW", "cost"])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plots", type=Path, help="folder for figures")
    args = parser.parse_args()
    if "KERNELPOT_DATA" not in os.environ:
        sys.exit("KERNELPOT_DATA must name the folder that holds the data sets")
    everything, sets = {}, {}
    for name in args.cases:
        if name in FORCE_CASES:
            found, of_case = in_own_process(run, name)
            sets |= {f"{name}, {kind}": one for kind, one in of_case.items()}
            show_forces(name, found)
        else:
            function, words = OTHERS[name]
            found = in_own_process(function)
            words = "absent: {absent}" if "absent" in found else words
            print(f"{name}: {words.format(**found)}", flush=True)
        everything[name] = found
    if args.plots is not None and sets:
        save_figures(sets, args.plots)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))


def novelty(queue):
    """Of training structures and of cells that hold all four elements.

    The species are independent here: a model that was told, or has learned, that they are alike
    finds little that is new in other combinations of them.
    """
    from kernelpot import Calculator, KernelPotential, Soap

    _, train, test = load("NbMoTaW")
    model = KernelPotential(
        Soap(cutoff=5.0, n_max=6, l_max=4), n_environments=120, n_tangents=1
    ).fit(train[::10])
    calc = Calculator(model)

    def means(images):
        return np.array([np.mean(calc.get_property("novelty", a.copy())) for a in images])

    new = [a for a in test if len(set(a.numbers)) == 4]
    seen_s, new_s = means(thinned(train, 1000)), means(thinned(new, 300))
    limit = float(np.quantile(seen_s, 0.99))
    queue.put(
        {
            "train_mean": float(seen_s.mean()),
            "train_99": limit,
            "new_mean": float(new_s.mean()),
            "new_least": float(new_s.min()),
            "above": float(np.mean(new_s > limit)),
            "n_new": len(new_s),
        }
    )


def gap_local_variance(queue):
    """Of a GAP with 1000 points on the training set of silicon, beside the model of the Si case."""
    import tempfile

    import gap
    from scipy.stats import spearmanr

    from kernelpot import Calculator
    from kernelpot.uncertainty.metrics import auroc

    peers = os.environ.get("KERNELPOT_PEERS")
    if peers is None:
        queue.put({"absent": "KERNELPOT_PEERS is not set"})
        return
    model, train, test = load("Si")
    with tempfile.TemporaryDirectory() as folder:
        gap.fit(gap.SETTINGS["Si"], train, folder, 16.0, total=False, measure="mae")
        found = gap.Predicted(folder).predict(test, variance=True)
    p = model.fit(train).predict(test, return_std=("forces", "energies"))
    # Calibrated by training structures alone: GAP has seen no others.
    model.calibrate(thinned(train, N_LEFT_OUT), left_out=True)
    calculator = Calculator(model)
    expected = [calculator.get_property("forces_error", atoms.copy()) for atoms in test]
    expected_n = np.linalg.norm(np.concatenate(expected), axis=1)
    label = np.concatenate([a.get_forces() for a in test])
    error_n = np.linalg.norm(np.concatenate(found.forces) - label, axis=1)
    ours_n = np.linalg.norm(np.concatenate(p.forces) - label, axis=1)
    sigma_n = np.linalg.norm(np.concatenate(p.forces_std), axis=1)
    local_n = np.concatenate(p.energies_std)
    # What nobody can know but by the test: how large the errors of each structure are.
    sizes = [len(a) for a in test]
    parts = np.split(ours_n, np.cumsum(sizes)[:-1])
    oracle_n = np.repeat([np.sqrt(np.mean(one**2)) for one in parts], sizes)
    queue.put(
        {
            "spearman": float(spearmanr(error_n, found.variance)[0]),
            "auroc": auroc(error_n, found.variance),
            "ours_spearman": float(spearmanr(ours_n, expected_n)[0]),
            "ours_auroc": auroc(ours_n, expected_n),
            "sigma_spearman": float(spearmanr(ours_n, sigma_n)[0]),
            "sigma_auroc": auroc(ours_n, sigma_n),
            "local_spearman": float(spearmanr(ours_n, local_n)[0]),
            "local_auroc": auroc(ours_n, local_n),
            "oracle_spearman": float(spearmanr(ours_n, oracle_n)[0]),
            "oracle_auroc": auroc(ours_n, oracle_n),
        }
    )


def cost(queue):
    """Of silicon with 300 environments and 8 tangents each, n_max = l_max = 8."""
    from ase.build import bulk

    from kernelpot import Calculator, KernelPotential, Soap, datasets
    from kernelpot._machine import n_threads
    from kernelpot.neighbours import find_pairs

    soap = Soap(cutoff=5.0, n_max=8, l_max=8)
    model = KernelPotential(soap, n_environments=300, n_tangents=8)
    predictor = model.fit(datasets.load_silicon("train")).predictor_
    atoms = bulk("Si", "diamond", a=5.47, cubic=True) * (4, 4, 4)
    atoms.rattle(0.1, seed=0)
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, predictor.cutoff)
    times = []
    for _ in range(30):
        pair = []
        for wanted in (False, True):
            started = time.perf_counter()
            predictor.evaluate(atoms.numbers, pairs, novelty=wanted)
            pair.append(1e6 * (time.perf_counter() - started) / len(atoms))
        times.append(pair)
    times = times[5:]
    calc, seconds = Calculator(model), []
    for k in range(6):
        atoms.rattle(0.01, seed=k)
        started = time.perf_counter()
        calc.get_property("forces_std", atoms)
        seconds.append(time.perf_counter() - started)
    queue.put(
        {
            "plain": median(a for a, _ in times),
            "novelty": median(b for _, b in times),
            "ratio": median(b / a for a, b in times),
            "std": median(seconds[1:]),
            "n_inducing": model.n_inducing_,
            "threads": n_threads(),
        }
    )


OTHERS = {
    "NbMoTaW": (
        novelty,
        "novelty of training cells, mean {train_mean:.4f}, 99th percentile {train_99:.4f}; of "
        "{n_new} quaternary cells, mean {new_mean:.4f}, least {new_least:.4f}, above that "
        "percentile {above:.0%}",
    ),
    "GAP": (
        gap_local_variance,
        "1000 points, the same silicon, local variance and norms of its errors: Spearman "
        "{spearman:.2f}, AUROC {auroc:.2f}; kernelpot, norms of its errors and of those expected "
        "{ours_spearman:.2f}, {ours_auroc:.2f}; of sigma {sigma_spearman:.2f}, {sigma_auroc:.2f}; "
        "sigma of the local energy {local_spearman:.2f}, "
        "{local_auroc:.2f}; an oracle that knows the root mean square error of each structure "
        "{oracle_spearman:.2f}, {oracle_auroc:.2f}",
    ),
    "cost": (
        cost,
        "512 atoms, energy, forces, stress {plain:.1f} us/atom, with novelty {novelty:.1f}: ratio "
        "{ratio:.3f}; standard deviations of all forces {std:.2f} s ({n_inducing} inducing "
        "variables, {threads} threads)",
    ),
}


def save_figures(sets, folder):
    """A reliability diagram and errors against sigma for each set."""
    from kernelpot.report_uncertainty import error_sigma_figure, reliability_figure

    folder.mkdir(parents=True, exist_ok=True)
    for name in FORCE_CASES:
        mine = {
            key.split(", ", 1)[1]: one for key, one in sets.items() if key.startswith(f"{name},")
        }
        if mine:
            title = f"{name}, force components"
            for kind, draw in (("reliability", reliability_figure), ("errors", error_sigma_figure)):
                draw(mine, title=title).savefig(folder / f"uncertainty_{kind}_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
