"""Sums of smooth functions of distance: pair potentials as a linear model.

Cubic B-splines on equal intervals between 0 and the cutoff, C. de Boor, A Practical Guide to
Splines (1978), less the three that cross the cutoff, so that value, slope and curvature vanish
there. Which combinations of them are features is the prior's choice: see `PairSplines`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

import numpy as np
import scipy.linalg

from kernelpot._jit import njit
from kernelpot.conventions import Float, Int, System, as_float, as_int
from kernelpot.descriptors._parameters import Parameters
from kernelpot.descriptors._species import ascending

__all__ = ["BoundPairSplines", "PairSplines"]

_NUGGET = 1e-10
"""Added to the prior variance of the splines' coefficients: their covariance is singular to
rounding where they are much nearer to one another than the length scale."""
_CONSTANT = 10.0
"""Prior deviation of the energy of an atom without neighbours, as a multiple of that of a pair: an
atom in a solid has a dozen neighbours."""


class PairSplines(Parameters):
    """Pair potentials, as a term of a sum of Gaussian processes or alone.

    The local energy is a constant plus a sum over the neighbours of smooth functions of distance,
    one function for each species of the centre and of the neighbour:

        eps_i = c_{Z_i} + sum_j phi_{Z_i Z_j}(r_ij)

    The model is linear in its features (``zeta`` is 1, and every feature is an inducing variable),
    so that no environments need be chosen: it costs next to nothing, and few data suffice.
    Independent weights of unit variance mean that every phi is a Gaussian process with unit
    variance and a squared-exponential covariance in r, on the condition that value, slope and
    curvature are zero at the cutoff; ``delta`` is then the size of a pair energy.

    Nothing is checked on construction; ``validate`` and ``bind`` do.

    Parameters
    ----------
    cutoff : float
        Distance from which on pairs do not interact, angstrom.
    n_splines : int
        Cubic B-splines between 0 and the cutoff, at least 4.
    length_scale : float
        Correlation length of the prior, angstrom: over what distance a pair energy changes. At
        least the distance between two splines.
    """

    linear = True

    def __init__(self, *, cutoff: float = 5.0, n_splines: int = 48, length_scale: float = 0.5):
        self.cutoff = cutoff
        self.n_splines = n_splines
        self.length_scale = length_scale

    def validate(self) -> None:
        """Check the parameters.

        Raises
        ------
        ValueError
            If one is out of its range or two contradict each other.
        """
        for name in ("cutoff", "length_scale"):
            value = getattr(self, name)
            real = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not real or not (value > 0.0 and math.isfinite(value)):
                raise ValueError(
                    f"PairSplines: {name} must be a positive length in A, got {value!r}"
                )
        whole = isinstance(self.n_splines, numbers.Integral)
        if not whole or isinstance(self.n_splines, bool) or not 4 <= self.n_splines <= 1000:
            raise ValueError(
                f"PairSplines: n_splines must be a whole number from 4 to 1000, got "
                f"{self.n_splines!r}"
            )
        if self.length_scale < self.cutoff / self.n_splines:
            raise ValueError(
                f"PairSplines: {self.n_splines} splines up to {self.cutoff:g} A are "
                f"{self.cutoff / self.n_splines:.3g} A apart and cannot follow a length_scale of "
                f"{self.length_scale:g} A; take n_splines="
                f"{math.ceil(self.cutoff / self.length_scale)} or more"
            )

    def bind(self, species: Iterable[int | str]) -> BoundPairSplines:
        """Fix the species.

        Parameters
        ----------
        species : Iterable[int | str]
            Atomic numbers or symbols, in any order.

        Returns
        -------
        BoundPairSplines
            What computes features and their derivatives.

        Raises
        ------
        ValueError
            If the parameters are not valid.
        """
        self.validate()
        return BoundPairSplines(
            ascending("PairSplines", species),
            float(self.cutoff),
            int(self.n_splines),
            float(self.length_scale),
        )


class BoundPairSplines:
    """Sums of functions of distance for a fixed list of species; made by ``PairSplines.bind``.

    Parameters
    ----------
    species : tuple[int, ...]
        Atomic numbers, ascending.
    cutoff : float
        Where all functions end, angstrom.
    n_splines : int
        Cubic B-splines between 0 and the cutoff.
    length_scale : float
        Correlation length of the prior, angstrom.

    Attributes
    ----------
    n_features : int
        One constant, and for each species of the neighbours as many as there are splines.
    """

    linear = True

    def __init__(
        self, species: tuple[int, ...], cutoff: float, n_splines: int, length_scale: float
    ):
        self.species = species
        self.cutoff = cutoff
        self.root_kq = _prior_root(n_splines, cutoff / n_splines, length_scale)
        self.n_features = 1 + len(species) * n_splines
        self._inverse_step = n_splines / cutoff

    def features(self, system: System, centres_b: Int) -> tuple[Float, None]:
        """Feature vectors, and no state.

        Parameters
        ----------
        system : System
            Species and pairs of a structure; pairs beyond the cutoff count for nothing.
        centres_b : Int
            Atoms to describe.

        Returns
        -------
        tuple[Float, None]
            x_bq, shape (n_centres, n_features), not normalised; ``vjp`` needs nothing but the
            system.
        """
        centres_b = as_int(centres_b)
        sums_bzk = np.zeros((len(centres_b), len(self.species), len(self.root_kq)))
        _sums(self._inverse_step, *self._of(system), centres_b, sums_bzk)
        x_bq = np.empty((len(centres_b), self.n_features))
        x_bq[:, 0] = _CONSTANT
        x_bq[:, 1:] = (sums_bzk @ self.root_kq).reshape(len(centres_b), -1)
        return x_bq, None

    def vjp(self, system: System, centres_b: Int, state: None, g_bq: Float, out_pc: Float) -> None:
        """Write ``sum_q g_bq dx_bq/dD_pc`` into the rows that are pairs of the centres.

        Parameters
        ----------
        system : System
            As given to ``features``.
        centres_b : Int
            As given to ``features``.
        state : None
            Not used.
        g_bq : Float
            Derivative of something by the features, (n_centres, n_features).
        out_pc : Float
            Shape (n_pairs, 3), of all pairs of the system; rows of other centres are not touched.
        """
        g_bzq = as_float(g_bq)[:, 1:].reshape(-1, len(self.species), len(self.root_kq))
        g_bzk = g_bzq @ self.root_kq.T
        pairs = system.pairs
        _pull(self._inverse_step, *self._of(system), pairs.D_pc, as_int(centres_b), g_bzk, out_pc)

    def jacobian(self, system: System, centres_b: Int) -> tuple[Float, Float]:
        """Features and their derivatives by the vectors to the neighbours.

        Parameters
        ----------
        system : System
            Species and pairs of a structure.
        centres_b : Int
            Atoms to describe.

        Returns
        -------
        tuple[Float, Float]
            x_bq (n_centres, n_features) and J_pcq = dx_bq/dD_pc (n_pairs, 3, n_features) of the
            centres' pairs, one centre after the other, 1/angstrom.
        """
        x_bq, _ = self.features(system, centres_b)
        first_n = system.pairs.first_n
        centres_b = as_int(centres_b)
        n_pairs = int(np.sum(first_n[centres_b + 1] - first_n[centres_b]))
        J_pcq = np.zeros((n_pairs, 3, self.n_features))
        _slopes(
            self._inverse_step,
            *self._of(system),
            system.pairs.D_pc,
            centres_b,
            self.root_kq,
            J_pcq,
        )
        return x_bq, J_pcq

    @staticmethod
    def _of(system: System) -> tuple[Int, Int, Float, Int]:
        return system.species_n, system.pairs.j_p, system.pairs.r_p, system.pairs.first_n


def _prior_root(n_splines: int, step: float, length_scale: float) -> Float:
    """Cholesky factor of the prior covariance of the splines' coefficients.

    Those of all splines, the three that cross the cutoff included, have a squared-exponential
    covariance; the last three are zero, on which the others are conditioned. Eigenvectors would
    do as well, but they are not the same on every machine, and a model file holds none of this.
    """
    middle_k = step * np.arange(n_splines + 3)
    K_kk = np.exp(-0.5 * ((middle_k[:, None] - middle_k) / length_scale) ** 2)
    inner, crossing = slice(None, n_splines), slice(n_splines, None)
    crossing_kk = K_kk[crossing, crossing] + _NUGGET * np.eye(3)
    C_kk = K_kk[inner, inner] - K_kk[inner, crossing] @ scipy.linalg.solve(
        crossing_kk, K_kk[crossing, inner], assume_a="pos"
    )
    return scipy.linalg.cholesky(C_kk + _NUGGET * np.eye(n_splines), lower=True)


@njit
def _splines(u):
    """The four cubic B-splines that are not zero at u in [0, 1] of an interval."""
    v = 1.0 - u
    return (
        v * v * v / 6.0,
        (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0,
        (3.0 * v * v * v - 6.0 * v * v + 4.0) / 6.0,
        u * u * u / 6.0,
    )


@njit
def _spline_slopes(u):
    """Derivatives of ``_splines``."""
    v = 1.0 - u
    return (
        -0.5 * v * v,
        0.5 * (3.0 * u * u - 4.0 * u),
        -0.5 * (3.0 * v * v - 4.0 * v),
        0.5 * u * u,
    )


@njit
def _sums(inverse_step, species_n, j_p, r_p, first_n, centres_b, sums_bzk):
    """Add the splines of all neighbours of each centre."""
    n_splines = sums_bzk.shape[2]
    for b in range(centres_b.shape[0]):
        i = centres_b[b]
        for p in range(first_n[i], first_n[i + 1]):
            u = r_p[p] * inverse_step
            first = int(u)
            values = _splines(u - first)
            z = species_n[j_p[p]]
            for a in range(4):
                if first + a < n_splines:
                    sums_bzk[b, z, first + a] += values[a]


@njit
def _pull(inverse_step, species_n, j_p, r_p, first_n, D_pc, centres_b, g_bzk, out_pc):
    """Write the derivative of sum g sums by the vectors to the neighbours."""
    n_splines = g_bzk.shape[2]
    for b in range(centres_b.shape[0]):
        i = centres_b[b]
        for p in range(first_n[i], first_n[i + 1]):
            u = r_p[p] * inverse_step
            first = int(u)
            slopes = _spline_slopes(u - first)
            z = species_n[j_p[p]]
            slope = 0.0
            for a in range(4):
                if first + a < n_splines:
                    slope += slopes[a] * g_bzk[b, z, first + a]
            slope *= inverse_step / r_p[p]
            for c in range(3):
                out_pc[p, c] = slope * D_pc[p, c]


@njit
def _slopes(inverse_step, species_n, j_p, r_p, first_n, D_pc, centres_b, root_kq, J_pcq):
    """Write the derivatives of all features by the vectors to the neighbours."""
    n_splines = root_kq.shape[0]
    row = 0
    for b in range(centres_b.shape[0]):
        i = centres_b[b]
        for p in range(first_n[i], first_n[i + 1]):
            u = r_p[p] * inverse_step
            first = int(u)
            slopes = _spline_slopes(u - first)
            column = 1 + species_n[j_p[p]] * n_splines
            for q in range(n_splines):
                slope = 0.0
                for a in range(4):
                    if first + a < n_splines:
                        slope += slopes[a] * root_kq[first + a, q]
                slope *= inverse_step / r_p[p]
                for c in range(3):
                    J_pcq[row, c, column + q] = slope * D_pc[p, c]
            row += 1
