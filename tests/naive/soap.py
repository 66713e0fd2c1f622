"""SOAP power spectra by plain loops and numerical integrals; slow, short, and independent."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.special import gamma, ive, sph_harm_y

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(160)


def shifted_cosine(r, cutoff, width):
    if r <= cutoff - width:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (r - cutoff + width) / width)) if r < cutoff else 0.0


def smooth_bump(r, cutoff, width):
    t = (r - cutoff + width) / width
    if t <= 0.0:
        return 1.0
    if t >= 1.0:
        return 0.0
    inner, outer = math.exp(-1.0 / (1.0 - t)), math.exp(-1.0 / t)
    return inner / (inner + outer)


def willatt(r, radius, exponent):
    return 1.0 / (1.0 + (r / radius) ** exponent)


def gto_basis(cutoff, n_max, l_max):
    """Orthonormal g_nl(s) as functions of s."""
    a = np.linspace(1.0, cutoff, n_max)

    def function(n, ell):
        alpha = -np.log(1e-3 / a**ell) / a**2
        overlap = 0.5 * gamma(ell + 1.5) * (alpha[:, None] + alpha) ** (-ell - 1.5)
        beta = inverse_root(overlap)[n]
        return lambda s: sum(
            b * s**ell * np.exp(-c * s * s) for b, c in zip(beta, alpha, strict=True)
        )

    return [[function(n, ell) for n in range(n_max)] for ell in range(l_max + 1)]


def polynomial_basis(cutoff, n_max, l_max):
    """Orthonormal g_n(s), the same for every l."""
    k = np.arange(1, n_max + 1)
    total = k[:, None] + k
    overlap = 2.0 * cutoff ** (7 + total) / ((5 + total) * (6 + total) * (7 + total))
    beta = inverse_root(overlap)

    def function(n):
        return lambda s: sum(
            b * np.clip(cutoff - s, 0.0, None) ** (j + 2) for b, j in zip(beta[n], k, strict=True)
        )

    return [[function(n) for n in range(n_max)] for _ in range(l_max + 1)]


def inverse_root(matrix):
    w, v = np.linalg.eigh(matrix)
    return v @ np.diag(1.0 / np.sqrt(w)) @ v.T


def radial_integral(g, ell, r, sigma, end):
    """4 pi int s^2 g(s) exp(-eta (s^2 + r^2)) i_l(2 eta s r) ds from 0 to end."""
    eta = 0.5 / sigma**2
    s, w = 0.5 * end * (POINTS + 1.0), 0.5 * end * WEIGHTS
    r = max(r, 1e-9)  # i_0(x) of scipy is 0/0 at 0
    argument = 2.0 * eta * s * r
    bessel = np.sqrt(0.5 * np.pi / argument) * ive(ell + 0.5, argument)
    return 4.0 * np.pi * np.sum(w * s * s * g(s) * np.exp(-eta * (s - r) ** 2) * bessel)


def real_harmonic(ell, m, vector):
    x, y, z = vector
    theta, phi = math.atan2(math.hypot(x, y), z), math.atan2(y, x)
    value = sph_harm_y(ell, abs(m), theta, phi)
    if m == 0:
        return value.real
    return math.sqrt(2.0) * (value.real if m > 0 else value.imag)


def neighbours(positions, cell, pbc, centre, reach):
    """(atom, vector) of everything within reach, images included, the centre itself not."""
    spans = [0, 0, 0]
    if any(pbc):
        # Heights of the cell bound how many images can come within reach.
        full = np.array(cell, float)
        for k in range(3):
            if not pbc[k]:
                full[k] = 0.0
        inverse = np.linalg.pinv(full)
        extent = np.ptp(positions, axis=0)
        for k in range(3):
            if pbc[k]:
                height = 1.0 / np.linalg.norm(inverse[:, k])
                spans[k] = math.ceil((reach + np.linalg.norm(extent)) / height) + 1
    found = []
    for shift in itertools.product(*(range(-n, n + 1) for n in spans)):
        for j, position in enumerate(positions):
            vector = position + np.dot(shift, cell) - positions[centre]
            r = np.linalg.norm(vector)
            if r < reach and not (j == centre and r < 1e-9):
                found.append((j, vector))
    return found


def power_spectrum(
    *, positions, numbers, cell, pbc, species, cutoff, n_max, l_max, sigma, basis, weight, reach,
    compression="off", species_weights=None,
):  # fmt: skip
    """p_nq in dscribe's order, for a weight w(r) that ends at ``reach``."""
    c_nznlm = coefficients(
        positions=positions, numbers=numbers, cell=cell, pbc=pbc, species=species, cutoff=cutoff,
        n_max=n_max, l_max=l_max, sigma=sigma, basis=basis, weight=weight, reach=reach,
        species_weights=species_weights,
    )  # fmt: skip
    return np.array([products(c, compression) for c in c_nznlm])


def coefficients(
    *, positions, numbers, cell, pbc, species, cutoff, n_max, l_max, sigma, basis, weight, reach,
    species_weights=None,
):  # fmt: skip
    """c[species, n, l, m] of every centre."""
    make = gto_basis if basis == "gto" else polynomial_basis
    g = make(cutoff, n_max, l_max)
    # A Gaussian-type orbital has no end; by this distance all have decayed.
    end = cutoff if basis == "polynomial" else 3.0 * cutoff
    rows = []
    for centre in range(len(positions)):
        c = np.zeros((len(species), n_max, l_max + 1, 2 * l_max + 1))
        around = neighbours(positions, cell, pbc, centre, reach)
        for j, vector in [(centre, np.zeros(3)), *around]:
            r = np.linalg.norm(vector)
            z = list(species).index(numbers[j])
            factor = weight(r) * (1.0 if species_weights is None else species_weights[numbers[j]])
            for ell in range(l_max + 1 if r > 0.0 else 1):
                for n in range(n_max):
                    f = factor * radial_integral(g[ell][n], ell, r, sigma, end)
                    for m in range(-ell, ell + 1):
                        c[z, n, ell, ell + m] += f * real_harmonic(ell, m, vector)
        rows.append(c)
    return np.array(rows)


def mixed_products(c, channels):
    """All products of all channels k = sum_z U_kz c_z: those of unlike functions stand twice."""
    mixed = np.array([sum(u * one for u, one in zip(row, c, strict=True)) for row in channels])
    p = []
    for ell in range(c.shape[2]):
        factor = math.pi * math.sqrt(8.0 / (2 * ell + 1))
        p += [factor * np.dot(a[ell], b[ell]) for k in mixed for a in k for o in mixed for b in o]
    return p


def products(c, compression):
    n_species, n_max, n_l, _ = c.shape
    total = c.sum(axis=0)
    if compression == "off":
        blocks = [(c[z], c[y], z == y) for z in range(n_species) for y in range(z, n_species)]
    elif compression == "crossover":
        blocks = [(c[z], c[z], True) for z in range(n_species)]
    elif compression == "mu1nu1":
        blocks = [(c[z], total, False) for z in range(n_species)]
    else:
        blocks = [(total, total, True)]
    p = []
    for left, right, symmetric in blocks:
        for ell in range(n_l):
            for n in range(n_max):
                for o in range(n if symmetric else 0, n_max):
                    factor = math.pi * math.sqrt(8.0 / (2 * ell + 1))
                    p.append(factor * np.dot(left[n, ell], right[o, ell]))
    return p
