"""Index letters, units, signs, and the records that cross the borders between rooms.

Index letters, the last part of an array's name, one per axis:

====== ===========================================
letter axis
====== ===========================================
``s``  structure
``n``  atom (as a centre or as a neighbour)
``p``  pair (centre, neighbour image)
``b``  centre within a block of centres
``c``  cartesian component (``d`` for a second one)
``v``  Voigt component xx yy zz yz xz xy
``q``  feature
``m``  inducing variable (``k`` after whitening)
``e``  inducing environment
``t``  inducing tangent
``r``  label row
``l``  set of labels: one kind from one source
``g``  Gaussian process of a sum
====== ===========================================

GP matrices are upper case (``K_mm``), vectors lower case; counts are ``n_atoms``, ``n_pairs``.

Units: eV, angstrom, elementary charge, atomic mass unit; forces eV/angstrom, stress
eV/angstrom^3. Signs: forces are minus the gradient of the energy; stress is the strain
derivative of the energy divided by the volume (tension positive), Voigt order
xx yy zz yz xz xy, as in ASE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
Int = NDArray[np.intp]

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Cartesian index pairs of the six Voigt components, in ASE's order."""

LABEL_KINDS = ("energy", "forces", "stress")
"""Kinds of labels, in the order of their rows."""

OBSERVABLES = ("energy", "forces", "stress", "energies")
"""Kinds of predicted numbers."""


class LabelSet(NamedTuple):
    """Labels of one kind from one source (``info["source"]``): they share a noise level."""

    kind: str
    source: str = ""


MIN_DISTANCE = 0.1
"""Two atoms nearer than this (angstrom) are taken for a fault in the input."""


Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, what of it is done, and its total."""


class Pairs(NamedTuple):
    """Neighbour pairs of one structure, sorted by centre; periodic images are separate pairs.

    The pairs of centre ``n`` are ``first_n[n]:first_n[n + 1]``. The list is full: each pair
    stands in it from both sides. The centre itself is not among its neighbours, its periodic
    images are.

    Centres are the first atoms, as many as there are offsets less one. Atoms after them are
    neighbours alone, as the ghosts of a code that divides space among processes.
    """

    i_p: Int  # centre
    j_p: Int  # neighbour
    D_pc: Float  # vector from the centre to this image of the neighbour, angstrom
    r_p: Float  # its length, angstrom
    first_n: Int  # (n_centres + 1,) offsets

    @property
    def n_centres(self) -> int:
        """How many of the atoms are centres."""
        return len(self.first_n) - 1


class System(NamedTuple):
    """What a descriptor sees of one structure."""

    species_n: Int  # index of each atom's species in the descriptor's list of species
    pairs: Pairs


def as_float(values: ArrayLike) -> Float:
    """Cast to a C-contiguous float64 array.

    Parameters
    ----------
    values : ArrayLike
        Numbers of any real type.

    Returns
    -------
    Float
        The same numbers; the input itself where it already fits.
    """
    return np.ascontiguousarray(values, dtype=np.float64)


def as_int(values: ArrayLike) -> Int:
    """Cast to a C-contiguous array of the platform's index type.

    Parameters
    ----------
    values : ArrayLike
        Whole numbers.

    Returns
    -------
    Int
        The same numbers; the input itself where it already fits.
    """
    return np.ascontiguousarray(values, dtype=np.intp)


def voigt_from_tensor(tensor_cd: Float) -> Float:
    """Six Voigt components (xx yy zz yz xz xy) of a symmetric tensor.

    Parameters
    ----------
    tensor_cd : Float
        Shape (..., 3, 3); only the mean of the two off-diagonal entries is used.

    Returns
    -------
    Float
        Shape (..., 6).
    """
    return np.stack([0.5 * (tensor_cd[..., c, d] + tensor_cd[..., d, c]) for c, d in VOIGT], -1)


class VarianceTerms(NamedTuple):
    """What makes predicted numbers uncertain: variances, each in the shape of the numbers."""

    novelty: Float  # what the inducing variables do not see
    open: Float  # what the data leave open in their span
    jackknife: Float  # spread over fits to resampled structures; 0 where it is not known

    @property
    def std(self) -> Float:
        """Standard deviation of the posterior, of the first two."""
        return np.sqrt(self.novelty + self.open)

    def scaled(self, factor: float) -> VarianceTerms:
        """Of the numbers times a factor.

        Parameters
        ----------
        factor : float
            One over the number of atoms, say.

        Returns
        -------
        VarianceTerms
            Times its square.
        """
        return VarianceTerms(*(factor**2 * term for term in self))


class Covariance(NamedTuple):
    """Posterior covariances of predicted numbers: of any two of them.

    Structure by structure, and of each the kinds that were asked for, in the order given; stresses
    of structures that have none are left out.
    """

    matrix: Float  # (n, n); eV, eV/angstrom and eV/angstrom^3, times each other
    kind_r: NDArray[np.str_]  # "energy", "energies", "forces" or "stress", (n,)
    structure_r: Int  # place of the structure in the list, (n,)
    place_r: Int  # atom, 3 atom + component, or Voigt component; 0 for the energy, (n,)
    terms: VarianceTerms  # of each number, (n,): novelty and open are the diagonal

    def std(self, weights_r: ArrayLike) -> float:
        """Standard deviation of a weighted sum of the numbers.

        Parameters
        ----------
        weights_r : ArrayLike
            Shape (n,); (-1, 1) for the difference of two energies.

        Returns
        -------
        float
            In the units of the sum.
        """
        weights_r = as_float(weights_r)
        return float(np.sqrt(max(weights_r @ self.matrix @ weights_r, 0.0)))

    def between(self, structures: Sequence[int]) -> tuple[Float, Int]:
        """Covariances of some of the structures alone.

        Parameters
        ----------
        structures : Sequence[int]
            Their places, ascending.

        Returns
        -------
        tuple[Float, Int]
            The matrix, and the structure of each of its rows, counted from 0 among these.
        """
        mine_r = np.flatnonzero(np.isin(self.structure_r, structures))
        return (
            self.matrix[np.ix_(mine_r, mine_r)],
            as_int(np.searchsorted(structures, self.structure_r[mine_r])),
        )


class Interval(NamedTuple):
    """Half-widths about predictions, such that this share of labels is within them."""

    level: float
    energy: Float  # (n_structures,), eV
    forces: list[Float]  # one (n_atoms, 3) per structure, eV/angstrom
    stress: Float  # (n_structures, 6), eV/angstrom^3


class Prediction(NamedTuple):
    """What a model says of a list of structures; an entry is None where it was not asked for.

    Standard deviations are of what more data would tell; labels have their noise on top.
    """

    energy: Float  # (n_structures,), eV
    forces: list[Float]  # one (n_atoms, 3) per structure, eV/angstrom
    stress: Float  # (n_structures, 6), eV/angstrom^3, NaN where the cell is not 3D periodic
    energies: list[Float]  # one (n_atoms,) per structure, eV
    energy_std: Float | None = None  # as energy
    forces_std: list[Float] | None = None  # as forces
    stress_std: Float | None = None  # as stress
    energies_std: list[Float] | None = None  # as energies
    cov: Covariance | None = None
    interval: Interval | None = None


class SamplePrediction(NamedTuple):
    """What samples of a model's posterior say of a list of structures."""

    energy: Float  # (n_samples, n_structures), eV
    forces: list[Float]  # one (n_samples, n_atoms, 3) per structure, eV/angstrom
    stress: Float  # (n_samples, n_structures, 6), eV/angstrom^3, NaN where not 3D periodic
    energies: list[Float]  # one (n_samples, n_atoms) per structure, eV


Settings = dict[str, Any]
"""Parameters by name, as they stand in a model file's header: JSON types only."""
