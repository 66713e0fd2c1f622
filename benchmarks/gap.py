"""GAP models by ``gap_fit``, run as a subprocess in the peers' environment (see peers.txt).

A fit is estimated by gap_fit's own dry run before it starts and runs under a hard limit of its
address space; either raises `OverMemory`. The noise levels (``default_sigma``) decide a GAP's
accuracy, so they are tuned by cross-validation on the training structures: gap_fit writes its
linear system, which does not depend on them; every combination is solved from it, and the weights
of the best are written into gap_fit's model. (At equal noise levels they are gap_fit's own:
energies of whole structures agree to 1e-9 eV.)
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import scipy.linalg


class OverMemory(Exception):
    """The fit needs more memory than it may have."""


class Settings(NamedTuple):
    """A GAP but for its noise levels."""

    soap: str
    n_sparse: int  # per element
    two_body: str | None = None
    # Virials make gap_fit keep three times as many derivatives of descriptors: silicon, 54
    # structures, 2.5 GB instead of 0.9 GB. The published fits did without.
    virial: bool = False


class Noise(NamedTuple):
    """Noise levels: eV/atom (times the root of their number), eV/A, eV/atom; no virial: None."""

    energy: float
    forces: float
    virial: float | None


class Run(NamedTuple):
    """What a process took, children included."""

    seconds: float
    cpu_seconds: float
    peak_GB: float
    output: str


# Metals and silicon: Zuo et al., J. Phys. Chem. A 124, 731 (2020), supporting information.
_ZUO = "l_max=8 n_max=8 atom_sigma=0.5 zeta=4 cutoff_transition_width=0.5 delta=1.0"
# Molecules: the form usual for them, SOAP and pairs. Cross-validated force MAE of 50 structures of
# ethanol with 200 points per element, meV/A: 103; with a cutoff of 5 A 115 (and atom_sigma=0.3
# 118), and without pairs 143.
_MOLECULE = Settings(
    "l_max=6 n_max=8 atom_sigma=0.4 zeta=4 cutoff=4.0 cutoff_transition_width=1.0 delta=1.0",
    500,
    "cutoff=5.0 cutoff_transition_width=1.0 covariance_type=ard_se theta_uniform=1.0 delta=1.0 "
    "sparse_method=uniform n_sparse=20",
)
SETTINGS = {
    "Si": Settings(f"{_ZUO} cutoff=5.4", 1000),
    "Cu": Settings(f"{_ZUO} cutoff=4.1", 4000),
    "Mo": Settings(f"{_ZUO} cutoff=5.2", 2000),
    "ethanol": _MOLECULE,
    "aspirin": _MOLECULE,
    "3BPA": _MOLECULE,
    "NbMoTaW": Settings(f"{_ZUO} cutoff=5.2", 500),
}

ENERGY_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FORCES_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
VIRIAL_GRID = (None, 0.03, 0.1, 0.3)
# The kinds of rows in gap_fit's dump are told apart by their variances, so these are far apart.
_MARKS = Noise(1.0, 1e-3, 1e4)


def program(name):
    """Path of a program of the peers' environment."""
    if "KERNELPOT_PEERS" not in os.environ:
        raise SystemExit("KERNELPOT_PEERS must name the peers' bin folder; see peers.txt")
    path = Path(os.environ["KERNELPOT_PEERS"]).resolve() / name
    if not path.exists():
        raise SystemExit(f"there is no {path}; install the peers as peers.txt says")
    return str(path)


def run_limited(command, folder, limit_GB=None):
    """Run a command; `OverMemory` if it failed for want of memory."""

    def limit():
        if limit_GB is not None:
            resource.setrlimit(resource.RLIMIT_AS, (int(limit_GB * 1e9),) * 2)

    log = Path(folder) / "output.txt"
    started = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=limit,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found = Run(
        time.perf_counter() - started,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1e6,
        log.read_text(errors="replace"),
    )
    if process.returncode == 0:
        return found
    if re.search(r"allocat|out of memory|MemoryError", found.output, re.IGNORECASE):
        raise OverMemory(f"stopped at {limit_GB:g} GB of address space")
    raise RuntimeError(
        f"{Path(command[0]).name} ended with {process.returncode}: {found.output[-800:]}"
    )


def write_images(path, images):
    """Extended XYZ under key names that gap_fit is told; a virial is minus volume times stress."""
    import ase.io
    from ase.stress import voigt_6_to_full_3x3_stress

    out = []
    for atoms in images:
        copy = atoms.copy()
        results = atoms.calc.results
        copy.info = {"REF_energy": results["energy"]}
        for name in set(copy.arrays) - {"numbers", "positions"}:
            del copy.arrays[name]
        if "forces" in results:
            copy.arrays["REF_forces"] = results["forces"]
        if "stress" in results:
            virial = -atoms.get_volume() * voigt_6_to_full_3x3_stress(results["stress"])
            copy.info["REF_virial"] = virial.ravel()
        if not copy.pbc.any():
            # gap_fit wants a cell; this one lets no image come near.
            copy.cell = (np.ptp(copy.positions, axis=0).max() + 30.0) * np.eye(3)
            copy.center()
        out.append(copy)
    ase.io.write(path, out, format="extxyz")


def isolated(atoms):
    """Whether this is a single atom in vacuum."""
    return len(atoms) == 1 and not atoms.pbc.any()


def baseline(images):
    """gap_fit's arguments for the energies of the elements.

    One element: the mean. Several: isolated atoms where all are there, else least squares (of one
    composition: the solution of least norm).
    """
    elements = sorted({z for atoms in images for z in atoms.numbers})
    if len(elements) == 1:
        return ["e0_method=average"]
    known = {int(a.numbers[0]): a.get_potential_energy() for a in images if isolated(a)}
    if set(known) != set(elements):
        counts = np.array([[np.sum(a.numbers == z) for z in elements] for a in images])
        energies = np.array([a.get_potential_energy() for a in images])
        known = dict(zip(elements, np.linalg.lstsq(counts, energies, rcond=None)[0], strict=True))
    from ase.data import chemical_symbols

    values = ":".join(f"{chemical_symbols[z]}:{known[z]:.10f}" for z in elements)
    return [f"e0={{{values}}}"]


def gap_string(settings, images):
    """The descriptors; pairs only of elements that occur together, gap_fit fails on others."""
    terms = []
    if settings.two_body:
        pairs = set()
        for atoms in images:
            kinds = sorted(set(atoms.numbers.tolist()))
            both = itertools.combinations_with_replacement(kinds, 2)
            pairs |= {(i, j) for i, j in both if i != j or np.sum(atoms.numbers == i) > 1}
        terms += [
            f"distance_2b {settings.two_body} Z1={i} Z2={j} add_species=F" for i, j in sorted(pairs)
        ]
    terms.append(
        f"soap {settings.soap} covariance_type=dot_product sparse_method=cur_points "
        f"n_sparse={settings.n_sparse} add_species=T"
    )
    return "gap={" + " : ".join(terms) + "}"


def fit_command(settings, noise, images):
    """The command line that fits ``train.xyz`` into ``gap.xml``."""
    virial = 0.1 if noise.virial is None else noise.virial
    return [
        program("gap_fit"),
        "at_file=train.xyz",
        gap_string(settings, images),
        f"default_sigma={{{noise.energy:g} {noise.forces:g} {virial:g} 0}}",
        *baseline(images),
        "sparse_jitter=1e-8",
        "energy_parameter_name=REF_energy",
        "force_parameter_name=REF_forces",
        f"virial_parameter_name={'NONE' if noise.virial is None else 'REF_virial'}",
        "do_copy_at_file=F",
        "sparse_separate_file=F",
        "rnd_seed=1",
        "gp_file=gap.xml",
    ]


def run_fit(settings, noise, images, folder, limit_GB, extra=()):
    """Estimate, then fit; the run, with the number of rows checked (wrong keys fit nothing)."""
    write_images(Path(folder) / "train.xyz", images)
    command = [*fit_command(settings, noise, images), *extra]
    dry = run_limited([*command, "dryrun=T"], folder)
    value, unit = re.search(r"^PEAK\s+([\d.]+)\s*([KMG]?)B", dry.output, re.MULTILINE).groups()
    estimate = float(value) * {"": 1e-9, "K": 1e-6, "M": 1e-3, "G": 1.0}[unit]
    if estimate > limit_GB:
        raise OverMemory(f"estimated {estimate:.1f} GB")
    run = run_limited(command, folder, limit_GB)
    found = {k: int(n) for k, n in re.findall(r"target (\w+) .*found:\s*(\d+)", run.output)}
    wanted = {
        "energies": len(images),
        "forces": 3 * sum(len(a) for a in images if "forces" in a.calc.results),
    }
    for kind, count in wanted.items():
        if found.get(kind) != count:
            raise RuntimeError(f"gap_fit found {found.get(kind)} {kind}, written were {count}")
    return run


def folds(images, n_folds, seed=1):
    """The fold of each structure; -1 for isolated atoms, which are never held out."""
    fold = np.full(len(images), -1)
    held = [s for s, atoms in enumerate(images) if not isolated(atoms)]
    fold[held] = np.random.default_rng(seed).permutation(len(held)) % n_folds
    return fold


class System(NamedTuple):
    """gap_fit's linear system: features whitened by a Cholesky factor L of K_mm + jitter."""

    phi_rm: np.ndarray  # K_rm L^-T
    y_r: np.ndarray
    sigma_r: np.ndarray  # where every noise level is 1: the root of the number of atoms, or 1
    kind_r: np.ndarray
    structure_r: np.ndarray
    factor_mm: np.ndarray


def read_system(folder, settings, images):
    """What gap_fit has dumped, with the kind and the structure of each row."""
    k_mm, k_rm, y_r, variance_r = (
        np.fromfile(folder / f"dump_{name}", sep=" ")
        for name in ("Kmm", "Kmn.0", "globalY.0", "lambda.0")
    )
    for path in folder.glob("dump_*"):
        path.unlink()
    n_inducing = round(len(k_mm) ** 0.5)
    factor = scipy.linalg.cholesky(k_mm.reshape(n_inducing, n_inducing), lower=True)
    k_rm = k_rm.reshape(-1, n_inducing)
    phi_rm = scipy.linalg.solve_triangular(factor, k_rm.T, lower=True).T
    kind_r = np.select([variance_r < 0.5, variance_r < 1e6], ["forces", "energy"], "virial")
    counts = {
        "energy": [1 for _ in images],
        "forces": [3 * len(a) * ("forces" in a.calc.results) for a in images],
        "virial": [6 * (settings.virial and "stress" in a.calc.results) for a in images],
    }
    structure_r = np.empty(len(y_r), dtype=int)
    sigma_r = np.sqrt(variance_r)
    for kind, count in counts.items():
        rows = kind_r == kind
        if np.sum(rows) != sum(count):
            raise RuntimeError(f"{np.sum(rows)} {kind} rows in the dump, not {sum(count)}")
        structure_r[rows] = np.repeat(np.arange(len(images)), count)
        sigma_r[rows] /= getattr(_MARKS, kind)
    return System(phi_rm, y_r, sigma_r, kind_r, structure_r, factor)


def cross_validate(system, settings, images, total, measure):
    """Errors (meV, meV/A) of all combinations of noise levels, every fifth held out once.

    The sparse points may come from held-out structures; their labels are not used.
    """
    fold_r = folds(images, 5)[system.structure_r]
    atoms_r = np.array([1 if total else len(a) for a in images])[system.structure_r]
    n_inducing = system.phi_rm.shape[1]
    grid = itertools.product(ENERGY_GRID, FORCES_GRID, VIRIAL_GRID if settings.virial else (None,))
    residuals = {Noise(*levels): {"energy": [], "forces": []} for levels in grid}
    for fold in range(5):
        grams = {}
        for kind in Noise._fields:
            rows = (fold_r != fold) & (system.kind_r == kind)
            phi = system.phi_rm[rows] / system.sigma_r[rows, None]
            grams[kind] = phi.T @ phi, phi.T @ (system.y_r[rows] / system.sigma_r[rows])
        for noise, found in residuals.items():
            a_mm, b_m = np.eye(n_inducing), np.zeros(n_inducing)
            for kind, sigma in noise._asdict().items():
                if sigma is not None:
                    a_mm += grams[kind][0] / sigma**2
                    b_m += grams[kind][1] / sigma**2
            weights = scipy.linalg.solve(a_mm, b_m, assume_a="pos")
            for kind, parts in found.items():
                rows = (fold_r == fold) & (system.kind_r == kind)
                residual = system.phi_rm[rows] @ weights - system.y_r[rows]
                parts.append(residual / atoms_r[rows] if kind == "energy" else residual)

    def error(parts):
        values = np.concatenate(parts)
        return 1e3 * float(
            np.mean(np.abs(values)) if measure == "mae" else np.mean(values**2) ** 0.5
        )

    return [(noise, error(r["energy"]), error(r["forces"])) for noise, r in residuals.items()]


def best_noise(table):
    """The combination whose energy and force error are both nearest to the least of each."""
    energy, forces = (np.array([row[k] for row in table]) for k in (1, 2))
    loss = np.maximum(energy / energy.min(), forces / forces.min())
    return Noise(*table[int(np.argmin(loss))][0])


def solve(system, noise):
    """Weights of the sparse points at these noise levels."""
    sigma_of = {kind: np.inf if s is None else s for kind, s in noise._asdict().items()}
    sigma_r = system.sigma_r * np.array([sigma_of[kind] for kind in system.kind_r])
    n_inducing = system.phi_rm.shape[1]
    a = np.vstack([system.phi_rm / sigma_r[:, None], np.eye(n_inducing)])
    b = np.concatenate([system.y_r / sigma_r, np.zeros(n_inducing)])
    q, r = scipy.linalg.qr(a, mode="economic", overwrite_a=True, check_finite=False)
    weights = scipy.linalg.solve_triangular(r, q.T @ b)
    return scipy.linalg.solve_triangular(system.factor_mm, weights, lower=True, trans=1)


def write_weights(path, alpha):
    """Replace the weights in gap_fit's model."""
    parts = re.split(r'(<sparseX i="\d+" alpha=")[^"]*', path.read_text())
    if len(parts) != 2 * len(alpha) + 1:
        raise RuntimeError(f"{len(alpha)} weights for the {len(parts) // 2} sparse points")
    values = [f"{value:.17E}" for value in alpha]
    pairs = zip(parts[1::2], values, parts[2::2], strict=True)
    path.write_text(parts[0] + "".join(part for pair in pairs for part in pair))


def fit(settings, images, folder, limit_GB, total, measure):
    """A tuned GAP in ``gap.xml``: the run, the seconds of the tuning in it, the noise, its table.

    Seconds of the run leave out the writing of the linear system, which no ordinary fit does.
    """
    folder = Path(folder)
    marks = _MARKS if settings.virial else _MARKS._replace(virial=None)
    run = run_fit(settings, marks, images, folder, limit_GB, ["linear_system_dump_file=dump"])
    timers = dict(re.findall(r"TIMER: (.*?)\s+done in\s+([\d.E+-]+) cpu secs", run.output))
    stages = ("gpFull_covarianceMatrix_sparse", "Build linear system", "Solve linear system")
    dump = float(timers["GP sparsify"]) - sum(float(timers[stage]) for stage in stages)
    run = run._replace(cpu_seconds=run.cpu_seconds - dump)
    started = time.process_time()
    system = read_system(folder, settings, images)
    table = cross_validate(system, settings, images, total, measure)
    noise = best_noise(table)
    write_weights(folder / "gap.xml", solve(system, noise))
    return run, time.process_time() - started, noise, table


class Predicted:
    """Predictions of a GAP in the form that accuracy.errors reads."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def predict(self, images, *, variance=False):
        """Energies, forces and stresses by the helper in the peers' environment.

        With ``variance`` also that of the local energies, of all atoms.
        """
        write_images(self.folder / "test.xyz", images)
        helper = str(Path(__file__).with_name("gap_predict.py").resolve())
        arguments = ["gap.xml", "test.xyz", "test.npz"] + ["--variance"] * variance
        self.run = run_limited([program("python"), helper, *arguments], self.folder)
        with np.load(self.folder / "test.npz") as found:
            ends = np.cumsum([len(atoms) for atoms in images])[:-1]
            return SimpleNamespace(
                energy=found["energy"],
                forces=np.split(found["forces"], ends),
                stress=found["stress"],
                variance=found["variance"] if variance else None,
            )
