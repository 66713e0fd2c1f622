"""Active learning against oracles that take milliseconds to seconds: how few labels are enough.

    python benchmarks/active_learning.py [CASE ...] [--seeds N] [--folder FOLDER] [--json FILE]

Needs tblite, and GPAW for the case "dft" (`pip install 'kernelpot[tblite,gpaw]'`). Runs stay in the
folder, with what was found of each (`CASE_SEED_LABELS.json`): they are resumed where they are
there, and what is done is not done again. `--first 3 --seeds 2`: seeds 3 and 4. Medians over seeds.

ethanol
    GFN2-xTB, 300 to 800 K. Labels that are needed for a mean absolute error of the forces of 20
    (and of 40) meV/A on frames of the oracle's own dynamics at 300, 550 and 800 K: those that the
    loop acquires from one molecule, random frames of the oracle's own dynamics (a ramp from 300 to
    800 K), and frames of it that are farthest from one another. The same model is fitted to each
    number of labels, in the full basis; numbers between are interpolated.
silicon
    GFN1-xTB, 64 atoms, from one perfect crystal to the melt: afterwards ten runs of 20 ps at 2000 K
    with the last model, from other seeds, none of which may explode.
dft
    GPAW, PBE, eight atoms of silicon: lattice constant and bulk modulus against GPAW's own.
barrier
    GFN2-xTB, proton transfer in malonaldehyde by nudged elastic band, against the oracle's own.
overhead
    Eight atoms of silicon to 120 labels: seconds that a label takes beside oracle and exploration,
    by the clock, as a part of the 3 s that the oracle takes for one (as GPAW does; it is GFN1-xTB,
    computed again and again until they are over), by number of labels. Beside them the seconds of
    fits to all labels and of hyperparameters, which pass while the oracle works: "hidden". Alone on
    a machine of two cores.
cycles
    The same with an oracle that takes 0.3 s, to 500 labels: how long a cycle of the loop is.

Of each run also: how many of the forces of acquired structures were within the 90 % intervals that
the model had for them before it learned them, and what the loop took beside oracle and exploration.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.eos import EquationOfState
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from kernelpot import Calculator, KernelPotential, Soap
from kernelpot.active.explorers.barriers import band_of
from kernelpot.active.explorers.dynamics import Dynamics
from kernelpot.active.explorers.paths import NudgedElasticBand
from kernelpot.active.explorers.static import Rattle
from kernelpot.active.history import History
from kernelpot.active.journal import read_entries
from kernelpot.active.learner import ActiveLearner
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.triggers import Watch
from kernelpot.active.unphysical import Closest, Limits, temperature_limit
from kernelpot.data import structures_from_atoms
from kernelpot.gp.inducing import select

TARGETS = (40.0, 20.0)
"""Mean absolute errors of forces, meV/A."""
COUNTS = (15, 30, 45, 60, 80, 100, 130, 160)
"""Labels at which models of ethanol are compared."""
LABEL_SECONDS = 3.0
"""What GPAW takes for eight atoms of silicon, and the oracle of the case "overhead"."""
ETHANOL = {"cutoff": 5.0, "n_max": 6, "l_max": 5}


def gfn2():
    """Tight binding of molecules, 1 ms."""
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


def gfn1():
    """And of silicon."""
    from tblite.ase import TBLite

    return TBLite(method="GFN1-xTB", verbosity=0)


def busy(least):
    """GFN1-xTB that keeps a core busy for so many seconds, as density functional theory would."""
    calculator = gfn1()

    def label(atoms):
        started = time.perf_counter()
        atoms.calc = calculator
        while True:
            found = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(),
            }
            calculator.reset()
            if time.perf_counter() - started > least:
                return found

    return label


def pbe():
    """Density functional theory of eight atoms of silicon, about 3 s."""
    from gpaw import GPAW, PW

    return GPAW(
        mode=PW(300), xc="PBE", kpts={"size": (2, 2, 2), "gamma": True}, txt=None, symmetry="off",
        occupations={"name": "fermi-dirac", "width": 0.05},
    )  # fmt: skip


def learn(name, seed, folder, model, oracle, start, explorers, **settings):
    """A run, or what is left of it; its model, its labels, and how it went."""
    learner = ActiveLearner(
        model, oracle, start, explorers, folder / f"{name}_{seed}",
        settings=LearnerSettings(random_state=seed, **settings),
    )  # fmt: skip
    started = time.perf_counter()
    outcome = learner.run()
    seconds = time.perf_counter() - started
    history = History(read_entries(outcome.folder))
    surprises = [
        one for mine in history.rounds if mine.learned for one in mine.learned["surprises"]
    ]
    labelling = sum(label.seconds for label in history.labels)
    exploring = sum(one["seconds"] for r in history.rounds for one in r.explored.values())
    beside = max(history.seconds - labelling - exploring, 0.0) / max(len(history.labels), 1)
    found = {
        "labels": len(history.labels),
        "failed": outcome.n_failed,
        "inside": float(np.mean([one["inside"] for one in surprises])),
        "beside_s": beside,
        "label_s": labelling / max(len(history.labels), 1),
        "seconds": seconds,
        "why": outcome.why,
    }
    images = [label.atoms for label in history.labels if label.atoms is not None]
    return outcome.model, images, found


# ------------------------------------------------------------------------------------ ethanol


def own_dynamics(oracle, temperatures, n_steps, every, seed):
    """Frames of the oracle's own dynamics, with labels."""
    rng = np.random.default_rng(seed)
    atoms = molecule("CH3CH2OH")
    atoms.calc = oracle()
    thermalize_momenta(atoms, temperatures[0], rng=rng)
    Stationary(atoms)
    ZeroRotation(atoms)
    moving = Bussi(
        atoms, 0.5 * units.fs, temperature_K=temperatures[0], taut=100 * units.fs, rng=rng
    )
    frames = []
    for step in range(n_steps):
        part = step / n_steps
        kelvin = (1.0 - part) * temperatures[0] + part * temperatures[1]
        moving.target_kinetic_energy = 0.5 * kelvin * units.kB * moving.ndof
        moving.run(1)
        if (step + 1) % every == 0:
            frame = atoms.copy()
            frame.set_momenta(None)
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
            frames.append(frame)
    return frames


def farthest(images, n):
    """So many structures, each as far from those before as can be, by their mean features."""
    bound = Soap(**ETHANOL).bind(tuple(sorted(set(images[0].numbers.tolist()))))
    from kernelpot.selection import system_of

    rows = []
    for one in structures_from_atoms(images):
        system = system_of(bound, one)
        x_nq, _ = bound.features(system, np.arange(one.n_atoms))
        # Atom by atom: the molecule is always the same.
        rows.append(x_nq.ravel() / np.sqrt(one.n_atoms))
    return [images[k] for k in select(np.array(rows), n, "fps", np.random.default_rng(0))]


def mae_of(images, test):
    """Of the forces, meV/A, by a fit to these labels in the full basis."""
    model = KernelPotential(Soap(**ETHANOL), basis="full").fit(images)
    error = np.concatenate(model.predict(test).forces)
    error -= np.concatenate([a.get_forces() for a in test])
    return 1e3 * float(np.abs(error).mean())


def needed(maes, target):
    """Labels for an error, between the numbers that were tried; infinite where none is enough."""
    counts = sorted(maes)
    for few, many in itertools.pairwise(counts):
        if maes[many] <= target <= maes[few]:
            part = np.log(maes[few] / target) / np.log(maes[few] / maes[many])
            return float(few * (many / few) ** part)
    return counts[0] if maes[counts[0]] <= target else np.inf


def ethanol(seed, folder, most):
    """Labels that the loop needs, and others."""
    test = [
        frame
        for k, kelvin in enumerate((300.0, 550.0, 800.0))
        for frame in own_dynamics(gfn2, (kelvin, kelvin), 7000, 100, 1000 + 10 * seed + k)
    ]
    pool = own_dynamics(gfn2, (300.0, 800.0), 20_000, 10, seed)
    counts = [n for n in COUNTS if n <= most]
    model = KernelPotential(Soap(**ETHANOL), n_environments=200, n_tangents=16)
    _, images, found = learn(
        "ethanol", seed, folder, model, gfn2, molecule("CH3CH2OH"),
        [Dynamics(temperature=(300.0, 800.0), n_steps=2000)],
        tolerance=0.02, n_initial=3, strain=0.0, most_labels=most, final_steps=0,
        objective="mean", multiple=4.0, plateau_rounds=1000,  # to the last label
    )  # fmt: skip
    chosen = np.random.default_rng(seed).permutation(len(pool))
    sets = {
        "loop": images,
        "random": [pool[k] for k in chosen],
        "farthest": farthest(pool, counts[-1]),
    }
    curves = {name: {n: mae_of(of[:n], test) for n in counts} for name, of in sets.items()}
    found["mae"] = {name: {str(n): mae for n, mae in of.items()} for name, of in curves.items()}
    found["needed"] = {
        f"{target:g}": {name: needed(of, target) for name, of in curves.items()}
        for target in TARGETS
    }
    curve = "; ".join(
        f"{name} {', '.join(f'{mae:.0f}' for mae in of.values())}" for name, of in curves.items()
    )
    print(f"  MAE with {', '.join(map(str, counts))} labels: {curve}", flush=True)
    return found


# ------------------------------------------------------------------------------------ silicon


def silicon(seed, folder, most):
    """From a perfect crystal to the melt, and ten runs afterwards."""
    crystal = bulk("Si", cubic=True) * (2, 2, 2)
    model = KernelPotential(Soap(cutoff=5.0, n_max=8, l_max=5), n_environments=150, n_tangents=8)
    model, images, found = learn(
        "silicon", seed, folder, model, gfn1, crystal,
        [Dynamics(temperature=(300.0, 2500.0), n_steps=3000, timestep=1.0)],
        tolerance=0.2, n_initial=3, batch=4, most_labels=most, final_steps=0, plateau_rounds=4,
        n_candidates=12,
    )  # fmt: skip
    from kernelpot.terms.repulsion import closest_distances

    numbers = np.array([14])
    closest = Closest(numbers, closest_distances(structures_from_atoms(images), numbers, 5.0))
    exploded = 0
    for restart in range(10):
        limits = Limits(closest, near=0.7, temperature=temperature_limit(2000.0, 64))
        run = Dynamics(temperature=2000.0, n_steps=20_000, timestep=1.0, n_frames=20)
        watch = Watch(limits=limits)
        rng = np.random.default_rng([seed, restart])
        exploration = run.explore(Calculator(model, novelty=False), crystal, watch, rng)
        exploded += not exploration.finished
    print(f"  {exploded} of 10 runs of 20 ps at 2000 K exploded", flush=True)
    return found | {"exploded": exploded}


# ------------------------------------------------------------------------------------ dft


def equation_of_state(calculator):
    """Lattice constant (A) and bulk modulus (GPa) of the cubic cell of silicon."""
    volumes, energies = [], []
    for scale in np.linspace(0.97, 1.03, 7):
        atoms = bulk("Si", cubic=True, a=5.47 * scale)
        atoms.calc = calculator
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return volume ** (1.0 / 3.0), modulus / units.GPa


def dft(seed, folder, most):
    """Lattice constant and bulk modulus of silicon."""
    start = bulk("Si", cubic=True, a=5.43)
    model = KernelPotential(Soap(cutoff=5.0, n_max=8, l_max=5), n_environments=80, n_tangents=10)
    model, _, found = learn(
        "dft", seed, folder, model, pbe, start,
        [Rattle(displacement=0.02, strain=0.05, n=20),
         Dynamics(temperature=300.0, pressure=(5.0, -5.0), n_steps=1000)],
        tolerance=0.01, stress_tolerance=0.1, n_initial=4, displacement=0.03, strain=0.05, batch=4,
        most_labels=most, final_steps=0,
    )  # fmt: skip
    constant, modulus = equation_of_state(Calculator(model))
    reference = equation_of_state(pbe())
    found["lattice"] = 100.0 * (constant / reference[0] - 1.0)
    found["modulus"] = 100.0 * (modulus / reference[1] - 1.0)
    print(
        f"  a {constant:.4f} A, GPAW {reference[0]:.4f}: {found['lattice']:+.2f} %; B "
        f"{modulus:.1f} GPa, GPAW {reference[1]:.1f}: {found['modulus']:+.1f} %",
        flush=True,
    )
    return found


# ------------------------------------------------------------------------------------ barrier


def malonaldehyde():
    """Its two forms, planar, guessed: the oracle has not seen them."""
    positions = np.array(
        [[-1.28, -0.95, 0], [-1.20, 0.37, 0], [0, 1.05, 0], [1.21, 0.32, 0], [1.27, -0.92, 0],
         [-0.33, -1.27, 0], [-2.14, 0.93, 0], [0, 2.13, 0], [2.18, 0.87, 0]]
    )  # fmt: skip
    first = Atoms("OCCCOHHHH", positions)
    last = first.copy()
    # The mirror image, in which each atom takes the place of its partner.
    last.positions = (positions * [-1, 1, 1])[[4, 3, 2, 1, 0, 5, 8, 7, 6]]
    return first, last


def oracle_barrier(first, last):
    """By the oracle's own relaxations and band, and what they take."""
    calls, ends = 0, []
    for atoms in (first, last):
        atoms = atoms.copy()
        atoms.calc = gfn2()
        optimizer = BFGS(atoms, logfile=None)
        optimizer.run(fmax=0.02, steps=300)
        calls += optimizer.nsteps + 1
        ends.append(atoms)
    images = [ends[0], *(ends[0].copy() for _ in range(7)), ends[1]]
    for atoms in images[1:-1]:
        atoms.calc = gfn2()
    neb = NEB(images, climb=True, method="improvedtangent", remove_rotation_and_translation=True)
    neb.interpolate("idpp")
    optimizer = FIRE(neb, logfile=None)
    optimizer.run(fmax=0.03, steps=500)
    calls += 7 * (optimizer.nsteps + 1)
    energies = [atoms.get_potential_energy() for atoms in images]
    return max(energies) - energies[0], calls


def barrier(seed, folder, most):
    """Of the proton transfer."""
    first, last = malonaldehyde()
    model = KernelPotential(Soap(cutoff=5.0, n_max=6, l_max=5), n_environments=150, n_tangents=16)
    explorer = NudgedElasticBand(last, tolerance=0.005, fmax=0.05)
    model, _, found = learn(
        "barrier", seed, folder, model, gfn2, [first], [explorer],
        tolerance=0.05, n_initial=2, displacement=0.05, strain=0.0, batch=3, most_labels=most,
        final_steps=0,
    )  # fmt: skip
    path = explorer.explore(Calculator(model), first, Watch(), np.random.default_rng(0))
    band = band_of(Calculator(model), path.frames)
    reference, calls = oracle_barrier(first, last)
    found |= {"barrier": band.barrier, "barrier_std": band.barrier_std}
    found |= {"oracle": reference, "oracle_calls": calls}
    print(
        f"  barrier {1e3 * band.barrier:.1f} +- {1e3 * band.barrier_std:.1f} meV, oracle "
        f"{1e3 * reference:.1f} meV in {calls} calls",
        flush=True,
    )
    return found


# ------------------------------------------------------------------------------------ overhead


def overhead(seed, folder, most, label_seconds=LABEL_SECONDS):
    """Seconds that a label takes beside oracle and exploration, from the first to the last."""
    model = KernelPotential(Soap(cutoff=5.0, n_max=8, l_max=5), n_environments=80, n_tangents=10)
    name = f"overhead_{label_seconds:g}s"
    _, _, found = learn(
        name, seed, folder, model, lambda: busy(label_seconds), bulk("Si", cubic=True),
        [Rattle(displacement=0.15, strain=0.05, n=20),
         Dynamics(temperature=(300.0, 3000.0), n_steps=500, timestep=1.0)],
        tolerance=0.005, batch=4, most_labels=most, final_steps=0, plateau_rounds=10_000,
    )  # fmt: skip
    entries = list(read_entries(folder / f"{name}_{seed}"))
    ends = [datetime.fromisoformat(one.time) for one in entries if one.kind == "judged"]
    rounds = History(entries).rounds
    n_labels, cycles = len(rounds[0].labels), []
    # By the clock, from the end of a round to that of the next: nothing is left out.
    for mine, (before, after) in zip(rounds[1:], itertools.pairwise(ends), strict=True):
        oracle = sum(label.seconds for label in mine.labels.values())
        exploring = sum(one["seconds"] for one in mine.explored.values())
        n_labels += len(mine.labels)
        seconds = (after - before).total_seconds() - oracle - exploring
        hidden = mine.learned["maintenance"]
        cycles.append((n_labels, len(mine.labels), seconds, exploring, hidden))
    found["cycles"] = cycles
    n_c, of_c, seconds_c, exploring_c, hidden_c = np.array(cycles).T
    edges = [n for n in (0, 50, 100, 200, 350, 500) if n < most] + [most]
    for few, many in itertools.pairwise(edges):
        here = (n_c > few) & (n_c <= many)
        each, hidden = (one_c[here].sum() / of_c[here].sum() for one_c in (seconds_c, hidden_c))
        cycle, exploration = np.median(seconds_c[here]), np.median(exploring_c[here])
        print(
            f"  labels {few + 1} to {many}: {each:.3f} s for each beside oracle and exploration,"
            f" {100 * each / LABEL_SECONDS:.1f} % of {LABEL_SECONDS:g} s ({hidden:.3f} s"
            f" hidden); medians of a cycle {cycle:.2f} s, exploration {exploration:.2f} s",
            flush=True,
        )
    return found


CASES = {
    "ethanol": (ethanol, 160),
    "silicon": (silicon, 80),
    "dft": (dft, 56),
    "barrier": (barrier, 28),
    "overhead": (overhead, 120),
    "cycles": (functools.partial(overhead, label_seconds=0.3), 500),
}
"""With the most labels of each."""


def found_of(name, case, most, seed, folder):
    """What a case finds with a seed, or found before in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{name}_{seed}_{most}.json"
    if kept.exists():
        one = json.loads(kept.read_text())
    else:
        one = case(seed, folder, most)
        kept.write_text(json.dumps(one, indent=1))
    print(
        f"{name}, seed {seed}: {one['labels']} labels of {1e3 * one['label_s']:.0f} ms, "
        f"{100 * one['inside']:.0f} % of the forces inside 90 %, beside labels and exploration "
        f"{one['beside_s']:.2f} s for each label; {one['seconds']:.0f} s; {one['why']}",
        flush=True,
    )
    return one


def medians(found):
    """In words, of everything that all seeds have as one number."""
    for key, value in found[0].items():
        if key == "needed":
            for target, each in value.items():
                words = ", ".join(
                    f"{kind} {median(one[key][target][kind] for one in found):.0f}" for kind in each
                )
                yield f"labels for {target} meV/A: {words}"
        elif isinstance(value, int | float):
            yield f"{key} {median(one[key] for one in found):.4g}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--labels", type=int, help="at most, in the place of a case's own number")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs are kept")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    everything = {}
    for name in args.cases:
        case, most = CASES[name]
        seeds = range(args.first, args.first + args.seeds)
        found = [found_of(name, case, args.labels or most, seed, args.folder) for seed in seeds]
        print(f"{name}, medians of {len(found)}: {', '.join(medians(found))}", flush=True)
        everything[name] = found
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
