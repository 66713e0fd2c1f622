"""One program's steps, timed in its own environment: what peers.py runs.

    python benchmarks/peers_worker.py PROGRAM MODEL STEPS.npz

Answers every line on stdin, ``{"steps": n}``, with the seconds that n steps took. The first line
says what a step is, or why the program is absent.
"""

import json
import os
import sys
import time

import numpy as np


def kernelpot(model, atoms):
    """Energy, forces and stress of the calculator, its neighbours kept over a skin."""
    from kernelpot import Calculator, load

    name, _, precision = model.partition(":")
    fitted = load(name)
    atoms.calc = Calculator(fitted, single_precision=precision == "single")

    def step():
        atoms.get_stress()
        return atoms.get_potential_energy()

    return step, f"energy, forces, stress; {fitted.n_environments_} environments"


def quippy(model, atoms):
    """Energy, forces and virial of a GAP."""
    from quippy.potential import Potential

    potential = Potential(param_filename=model)

    def step():
        # Without a copy unchanged arguments would give the last results.
        potential.calculate(atoms.copy(), ["energy", "forces", "stress"])
        return potential.results["energy"]

    return step, "energy, forces, stress; 1000 sparse points"


def featomic(model, atoms):
    """SOAP and its derivatives alone: no kernel, no forces."""
    from featomic import SoapPowerSpectrum

    calculator = SoapPowerSpectrum(
        cutoff={"radius": 5.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
        density={"type": "Gaussian", "width": 0.5},
        basis={
            "type": "TensorProduct",
            "max_angular": 8,
            "radial": {"type": "Gto", "max_radial": 7},
        },
    )

    def step():
        found = calculator.compute(atoms, gradients=["positions"])
        return float(found.block(0).values.shape[0])

    return step, "features and their derivatives by positions alone, n 8, l 8"


def dscribe(model, atoms):
    """SOAP alone: it has no analytical derivatives."""
    from dscribe.descriptors import SOAP

    soap = SOAP(species=["Si"], r_cut=5.0, n_max=8, l_max=8, sigma=0.5, periodic=True)
    return lambda: float(soap.create(atoms)[0, 0]), "features alone, n 8, l 8"


def flare(model, atoms):
    """Energy, forces and stress of a sparse GP on B2, fitted here."""
    from flare.bffs.sgp._C_flare import B2, NormalizedDotProduct, SparseGP, Structure

    n_sparse, cutoff = 500, 5.0
    descriptor = B2("chebyshev", "quadratic", [0.0, cutoff], [], [1, 8, 6])
    kernel = NormalizedDotProduct(2.0, 2)
    process = SparseGP([kernel], 0.1, 0.1, 0.1)
    with np.load(model, allow_pickle=True) as data:
        rows = list(zip(*(data[k] for k in ("cell", "positions", "energy", "forces")), strict=True))
    left = n_sparse
    for s in np.random.default_rng(0).permutation(len(rows)):
        cell, positions, energy, forces = rows[s]
        one = Structure(
            cell.astype(float), [0] * len(positions), positions.astype(float), cutoff, [descriptor]
        )
        one.energy = np.array([[float(energy)]])
        one.forces = forces.astype(float).reshape(-1)
        process.add_training_structure(one)
        chosen = list(range(min(10, len(positions), left)))
        process.add_specific_environments(one, chosen)
        left -= len(chosen)
        if left == 0:
            break
    process.update_matrices_QR()

    def step():
        one = Structure(atoms.cell[:], [0] * len(atoms), atoms.positions, cutoff, [descriptor])
        process.predict_mean(one)
        return float(np.ravel(one.mean_efs)[0])

    step.kernel = kernel  # the process has its address only
    return step, f"energy, forces, stress; B2, n 8, l 6, {n_sparse - left} environments"


def main():
    program, model, data = sys.argv[1:]
    # What programs print themselves, Fortran too, must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**record):
        answers.write(json.dumps(record) + "\n")
        answers.flush()

    with np.load(data) as steps:
        from ase import Atoms

        positions = steps["positions"]
        atoms = Atoms(steps["numbers"], positions[0], cell=steps["cell"], pbc=True)
    try:
        make = {f.__name__: f for f in (kernelpot, quippy, featomic, dscribe, flare)}[program]
        step, what = make(model, atoms)
    except ImportError as error:
        answer(absent=str(error))
        return
    answer(what=what)
    for line in sys.stdin:
        n_steps = json.loads(line)["steps"]
        started = time.perf_counter()
        for k in range(n_steps):
            atoms.positions = positions[k % len(positions)]
            energy = step()
        answer(seconds=time.perf_counter() - started, energy=energy)


if __name__ == "__main__":
    main()
