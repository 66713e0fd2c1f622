"""Naive twins of `kernelpot.terms.repulsion`: loops over atoms and images, own constants."""

import math

import numpy as np

# e^2 / (4 pi epsilon_0) in SI units (CODATA 2018), to eV angstrom
ELEMENTARY_CHARGE = 1.602176634e-19
VACUUM = 8.8541878128e-12
COULOMB = ELEMENTARY_CHARGE / (4 * math.pi * VACUUM) * 1e10


def zbl(z, other, r):
    a = 0.46850 / (z**0.23 + other**0.23)
    x = r / a
    phi = 0.18175 * math.exp(-3.19980 * x)
    phi += 0.50986 * math.exp(-0.94229 * x)
    phi += 0.28022 * math.exp(-0.40290 * x)
    phi += 0.02817 * math.exp(-0.20162 * x)
    return COULOMB * z * other / r * phi


def switch(r, inner, outer):
    if r <= inner:
        return 1.0
    if r >= outer:
        return 0.0
    t = (r - inner) / (outer - inner)
    falling = math.exp(-1 / (1 - t))
    return falling / (falling + math.exp(-1 / t))


def energies(numbers, positions, cell, pbc, radii, n_images=3):
    """Energy of each atom; ``radii`` has (inner, outer) by pair of atomic numbers."""
    ranges = [range(-n_images, n_images + 1) if periodic else range(1) for periodic in pbc]
    energy_n = np.zeros(len(numbers))
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            for a in ranges[0]:
                for b in ranges[1]:
                    for c in ranges[2]:
                        if i == j and (a, b, c) == (0, 0, 0):
                            continue
                        shift = a * cell[0] + b * cell[1] + c * cell[2]
                        r = math.dist(positions[i], positions[j] + shift)
                        inner, outer = radii[tuple(sorted((numbers[i], numbers[j])))]
                        energy = zbl(numbers[i], numbers[j], r) * switch(r, inner, outer)
                        energy_n[i] += 0.5 * energy
    return energy_n
