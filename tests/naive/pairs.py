"""Naive twin of `kernelpot.descriptors.pairs`: scipy's B-splines, loops, dense algebra."""

import numpy as np
from scipy.interpolate import BSpline


def splines(n_splines, cutoff):
    """The cubic B-splines on [-3 h, cutoff] that do not cross the cutoff."""
    h = cutoff / n_splines
    return [BSpline.basis_element(h * np.arange(k - 3, k + 2), False) for k in range(n_splines)]


def prior_covariance(n_splines, cutoff, length_scale):
    """Of the coefficients, by the precision matrix: conditioning drops its rows and columns."""
    h = cutoff / n_splines
    place = h * np.arange(n_splines + 3)
    K = np.exp(-((place[:, None] - place) ** 2) / (2 * length_scale**2))
    return np.linalg.inv(np.linalg.inv(K)[:n_splines, :n_splines])


def features(atoms_i, pairs_of_i, n_species, n_splines, cutoff, length_scale, constant):
    """Rows of features; ``pairs_of_i[i]`` lists (species of the neighbour, distance)."""
    basis = splines(n_splines, cutoff)
    L = np.linalg.cholesky(prior_covariance(n_splines, cutoff, length_scale))
    out = []
    for i in atoms_i:
        sums = np.zeros((n_species, n_splines))
        for z, r in pairs_of_i[i]:
            for k, spline in enumerate(basis):
                sums[z, k] += np.nan_to_num(float(spline(r)))
        out.append(np.concatenate([[constant], *(row @ L for row in sums)]))
    return np.array(out)
