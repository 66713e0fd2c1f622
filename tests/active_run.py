"""A small run of active learning, also in a process of its own that is to be killed."""

from __future__ import annotations

import time

from ase.build import bulk
from ase.calculators.emt import EMT

from kernelpot import KernelPotential, Soap
from kernelpot.active.explorers.dynamics import Dynamics
from kernelpot.active.learner import ActiveLearner, LearnerSettings


def small_model(**more):
    soap = Soap(cutoff=3.5, n_max=3, l_max=2, sigma=0.5)
    return KernelPotential(soap, n_environments=6, n_tangents=3, **more)


def copper_gold():
    atoms = bulk("Cu", a=3.75, cubic=True)
    atoms.numbers[0] = 79
    return atoms


def short_dynamics(**more):
    settings = {"temperature": (500, 2500), "n_steps": 20, "n_frames": 5, "spacing": 4} | more
    return Dynamics(**settings)


def small_settings(**more):
    settings = {
        "tolerance": 0.005, "multiple": 0.3, "batch": 2, "n_initial": 2, "n_candidates": 4,
        "n_looked": 3, "most_labels": 9, "final_steps": 0, "window": 8, "plateau": 1e-3,
    }  # fmt: skip
    return LearnerSettings(**(settings | more))


def name_of(atoms):
    """The same for the same structure alone."""
    return atoms.positions.tobytes().hex()


def main(folder, calls, begun):
    """Run, or go on: each call of the oracle is a line of the file ``calls``."""

    def oracle(atoms):
        # By itself: with a function of this module its process would import all of the package.
        with open(calls, "a") as file:
            file.write(atoms.positions.tobytes().hex() + "\n")
        time.sleep(0.05)
        atoms.calc = EMT()
        return atoms

    begun.set()
    ActiveLearner(
        small_model(), oracle, copper_gold(), [short_dynamics()], folder, settings=small_settings()
    ).run()
