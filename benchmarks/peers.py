"""Fit and prediction beside other programs: same data, one run, alternating rounds.

    OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 KERNELPOT_DATA=/path/to/data \\
        KERNELPOT_PEERS=/path/to/peers-venv/bin python benchmarks/peers.py [--sizes 64 512]

Every program runs in a process of its own that gets the same silicon: atoms move by 0.02 A from
step to step, and energy, forces and stress are computed with all that belongs to it, the search
for neighbours included. Rounds alternate between the programs; stated are medians, and the median
of the ratios within rounds. Programs that are not installed (peers.txt says how) are named as
absent. Models are fitted to the same training structures; their accuracy is another matter
(learning_curves.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accuracy
import gap
import numpy as np

WORKER = Path(__file__).with_name("peers_worker.py").resolve()
STEPS = 5  # per round
GAP = gap.Settings(
    "l_max=8 n_max=8 atom_sigma=0.5 zeta=4 cutoff=5.0 cutoff_transition_width=0.5 delta=1.0", 1000
)
NOISE = gap.Noise(1e-3, 0.1, None)
SOAP = {"cutoff": 5.0, "n_max": 8, "l_max": 8, "sigma": 0.5}


class Absent(Exception):
    """A program that is not there, and why."""


class Worker:
    """A program in a process of its own: a line of JSON in, a line of JSON out."""

    def __init__(self, name, python, arguments):
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [str(python), str(WORKER), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        answer = self._read()
        if "absent" in answer:
            raise Absent(answer["absent"])
        self.what = answer["what"]

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise Absent(self._log.read().strip().splitlines()[-1])
        return json.loads(line)

    def ask(self, **question):
        """Seconds and last energy of some steps."""
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.wait(60)


def fit_models(train, folder, limit_GB):
    """Models of this library and of GAP: what is fitted, seconds, peak memory; files in folder."""
    from kernelpot import KernelPotential, Soap

    fits = []

    def ours(words, path, soap, **settings):
        started = time.perf_counter()
        model = KernelPotential(Soap(**soap), **settings).fit(train)
        fits.append((words, time.perf_counter() - started))
        model.save(folder / path)
        return model

    # Compile before anything is timed.
    KernelPotential(Soap(**SOAP), n_environments=5, n_tangents=5).fit(train[:3])
    points = {"n_environments": GAP.n_sparse, "n_tangents": 0}
    ours("kernelpot, 1000 environments", "points.kpot", SOAP, **points)
    ours("kernelpot, 300 environments with 8 tangents", "model.kpot", SOAP,
         n_environments=300, n_tangents=8, feature_tolerance=0.0)  # fmt: skip
    ours("the same, features on their principal axes (default)", "reduced.kpot", SOAP,
         n_environments=300, n_tangents=8)  # fmt: skip
    try:
        gap.program("gap_fit")
        run = gap.run_fit(GAP, NOISE, train, folder, limit_GB)
        fits.append((f"gap_fit, {GAP.n_sparse} points", run.seconds))
    except SystemExit as reason:
        print(f"gap_fit: absent ({reason})")
    return fits


def structures(n_atoms, n_steps, path):
    """Rattled diamond whose atoms move a little from step to step."""
    from ase.build import bulk

    repeat = max(1, round((n_atoms / 8) ** (1 / 3)))
    atoms = bulk("Si", a=5.47, cubic=True) * (repeat, repeat, repeat)
    atoms.rattle(0.1, seed=1)
    moves = np.random.default_rng(0).uniform(-0.02, 0.02, (n_steps, len(atoms), 3))
    np.savez(path, numbers=atoms.numbers, cell=atoms.cell[:], positions=atoms.positions + moves)
    return len(atoms)


def workers(folder, data):
    """The programs that are there; those that are not are named."""
    ours = Path(sys.executable)
    peers = os.environ.get("KERNELPOT_PEERS")
    theirs = Path(peers) / "python" if peers else Path("KERNELPOT_PEERS is not set")
    wanted = (
        ("kernelpot", ours, ("kernelpot", folder / "model.kpot", data)),
        ("kernelpot, principal axes", ours, ("kernelpot", folder / "reduced.kpot", data)),
        ("the same, single precision", ours, ("kernelpot", f"{folder}/reduced.kpot:single", data)),
        ("quippy (GAP)", theirs, ("quippy", folder / "gap.xml", data)),
        ("FLARE", theirs, ("flare", folder / "train.npz", data)),
        ("featomic", theirs, ("featomic", "-", data)),
        ("dscribe", ours, ("dscribe", "-", data)),
    )
    found = []
    for name, python, arguments in wanted:
        try:
            if not python.exists():
                raise Absent(str(python))
            found.append(Worker(name, python, arguments))
        except Absent as reason:
            print(f"{name}: absent ({reason})", flush=True)
    return found


def write_training(train, path):
    """Positions, cells and labels for the programs that are fitted in their own process."""
    columns = {
        "positions": [a.positions for a in train],
        "cell": [a.cell[:] for a in train],
        "forces": [a.get_forces() for a in train],
        "energy": [a.get_potential_energy() for a in train],
    }
    arrays = {k: np.empty(len(train), dtype=object) for k in columns}
    for key, values in columns.items():
        for s, value in enumerate(values):
            arrays[key][s] = value
    np.savez(path, **arrays)


def compare(sizes, rounds, folder):
    """Time of a step by program and size; the ratio to this library's."""
    for size in sizes:
        n_atoms = structures(size, STEPS, folder / "steps.npz")
        there = workers(folder, folder / "steps.npz")
        times = {one.name: [] for one in there}
        for one in there:
            one.ask(steps=STEPS)  # not counted
        for _ in range(rounds):
            for one in there:
                times[one.name].append(one.ask(steps=STEPS)["seconds"] / STEPS / n_atoms)
        base = np.array(times["kernelpot"])
        print(f"\n{n_atoms} atoms: us/atom, median of {rounds} rounds; ratio to kernelpot")
        for one in there:
            values = np.array(times[one.name])
            print(
                f"  {one.name:26} {1e6 * np.median(values):9.1f} {np.median(values / base):9.2f}"
                f"   {one.what}",
                flush=True,
            )
            one.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gap-memory", type=float, default=8.0, help="GB that gap_fit may take")
    parser.add_argument("--folder", type=Path, help="where models are kept, to be used again")
    args = parser.parse_args()
    if "KERNELPOT_DATA" not in os.environ:
        sys.exit("KERNELPOT_DATA must name the folder that holds the data sets")
    case = accuracy.SETS["Si"]
    train, _ = accuracy.read(case, Path(os.environ["KERNELPOT_DATA"]), ("energy", "forces"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "reduced.kpot").exists():
            print(f"fits to {len(train)} structures of silicon, energies and forces")
            for words, seconds in fit_models(train, folder, args.gap_memory):
                print(f"  {words:55} {seconds:8.1f} s", flush=True)
            write_training(train, folder / "train.npz")
        compare(args.sizes, args.rounds, folder)


if __name__ == "__main__":
    main()
