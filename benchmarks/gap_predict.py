"""Energies, forces and stresses of a GAP, computed in the peers' environment (peers.txt).

    $KERNELPOT_PEERS/python benchmarks/gap_predict.py gap.xml images.xyz out.npz [--variance]

Written are ``energy`` (n_images), ``forces`` (all atoms one after the other, 3) and ``stress``
(n_images, 6; NaN for what is not periodic) in eV, eV/A and eV/A^3; with ``--variance`` also the
``variance`` of the local energies (all atoms), eV^2.
"""

import sys

import ase.io
import numpy as np
from quippy.potential import Potential


def main():
    model, images, out, *flags = sys.argv[1:]
    potential = Potential(param_filename=model)
    energy, forces, stress, variance = [], [], [], []
    for atoms in ase.io.read(images, ":"):
        atoms.calc = potential
        if "--variance" in flags:  # first: another call for unchanged atoms gives the old results
            potential.calculate(atoms, ["energy", "forces"], calc_args="local_gap_variance")
            variance.append(potential.extra_results["atoms"]["local_gap_variance"].copy())
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stress.append(atoms.get_stress() if atoms.pbc.all() else np.full(6, np.nan))
    more = {"variance": np.concatenate(variance)} if variance else {}
    np.savez(out, energy=energy, forces=np.concatenate(forces), stress=stress, **more)


if __name__ == "__main__":
    main()
