"""Another descriptor's features on fewer axes: a rotation that leaves out what hardly varies."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelpot.conventions import Float, Int, System
from kernelpot.descriptors.protocol import BoundDescriptor, single, vjp_many

__all__ = ["ProjectedDescriptor", "projection_pays"]


def projection_pays(n_features: int, n_kept: int, n_environments: float) -> bool:
    """Whether a prediction is cheaper on fewer axes.

    Products with the environments and their collapsed tangents, forth and back, take 8 operations
    for each feature and environment; those with the axes, 4 for each feature and axis.

    Parameters
    ----------
    n_features : int
        As they are computed.
    n_kept : int
        Axes.
    n_environments : float
        Inducing environments that an atom is compared with.

    Returns
    -------
    bool
        By the number of operations.
    """
    as_they_are = 8.0 * n_environments * n_features
    return 4.0 * n_features * n_kept + 8.0 * n_environments * n_kept < as_they_are


class _State(NamedTuple):
    inner: Any
    species_b: Int


class ProjectedDescriptor:
    """Features P x and their derivatives, with orthonormal rows P for each species of the centre.

    A product of two projected vectors differs from that of the whole ones by what both have
    outside of the kept axes; norms fall short of one by the square of it. Energies and forces
    stay exact derivatives of one another: this is a descriptor of its own.

    Parameters
    ----------
    inner : BoundDescriptor
        What computes the features.
    axes_z : Sequence[Float]
        For each species orthonormal rows, shape (number kept, n_features of ``inner``).

    Attributes
    ----------
    species : tuple[int, ...]
        Atomic numbers, ascending.
    cutoff : float
        Radius of the pair list, angstrom.
    n_features : int
        The largest number of kept axes; features of the other species end with zeros.
    centre_similarity : float | None
        As of ``inner``; with it the axes of all species have to be the same.
    """

    def __init__(self, inner: BoundDescriptor, axes_z: Sequence[Float]):
        self.inner = inner
        self.axes_z = tuple(np.ascontiguousarray(axes_kq) for axes_kq in axes_z)
        self.species = inner.species
        self.cutoff = inner.cutoff
        self.n_features = max(len(axes_kq) for axes_kq in self.axes_z)
        self.centre_similarity = getattr(inner, "centre_similarity", None)

    @property
    def unprojected(self) -> BoundDescriptor:
        """The descriptor of all features, with which vectors are compared after `lift`."""
        return self.inner

    def lift(self, V_jk: Float, z: int) -> Float:
        """Vectors whose products with all features are those of the given ones with the kept.

        Parameters
        ----------
        V_jk : Float
            Shape (n, n_features).
        z : int
            Species of the centres.

        Returns
        -------
        Float
            Shape (n, n_features of ``unprojected``).
        """
        axes_kq = self.axes_z[z]
        return V_jk[:, : len(axes_kq)] @ axes_kq

    def in_single_precision(self) -> ProjectedDescriptor:
        """The same in single precision, as far as the inner descriptor is.

        Returns
        -------
        ProjectedDescriptor
            Another descriptor.
        """
        inner = single(self.inner)
        if inner is self.inner:
            return self
        return ProjectedDescriptor(inner, [axes_kq.astype(np.float32) for axes_kq in self.axes_z])

    def features(self, system: System, centres_b: Int) -> tuple[Float, _State]:
        """Feature vectors, and a state that ``vjp`` takes.

        Parameters
        ----------
        system : System
            Species and pairs of a structure.
        centres_b : Int
            Atoms to describe.

        Returns
        -------
        tuple[Float, _State]
            x_bq, shape (n_centres, n_features).
        """
        inner_bq, state = self.inner.features(system, centres_b)
        species_b = system.species_n[centres_b]
        return self._project(inner_bq, species_b), _State(state, species_b)

    def _project(self, inner_bq: Float, species_b: Int) -> Float:
        out_bk = np.zeros((len(inner_bq), self.n_features), inner_bq.dtype)
        for z, mine in _by_species(species_b):
            axes_kq = self.axes_z[z]
            out_bk[mine, : len(axes_kq)] = inner_bq[mine] @ axes_kq.T
        return out_bk

    def vjp(
        self, system: System, centres_b: Int, state: _State, g_bq: Float, out_pc: Float
    ) -> None:
        """Write ``sum_q g_bq dx_bq/dD_pc`` into the rows that are pairs of the centres.

        Parameters
        ----------
        system : System
            As given to ``features``.
        centres_b : Int
            As given to ``features``.
        state : _State
            What ``features`` returned for them.
        g_bq : Float
            Derivative of something by the features, (n_centres, n_features).
        out_pc : Float
            Shape (n_pairs, 3), of all pairs of the system; rows of other centres are not touched.
        """
        g_bq = np.asarray(g_bq, self.axes_z[0].dtype)
        inner_bq = np.empty((len(g_bq), self.inner.n_features), g_bq.dtype)
        for z, mine in _by_species(state.species_b):
            axes_kq = self.axes_z[z]
            inner_bq[mine] = g_bq[mine, : len(axes_kq)] @ axes_kq
        self.inner.vjp(system, centres_b, state.inner, inner_bq, out_pc)

    def vjp_many(
        self, system: System, centres_b: Int, state: _State, g_bqs: np.ndarray
    ) -> np.ndarray:
        """``vjp`` of many outputs at once, in single precision.

        Parameters
        ----------
        system : System
            As given to ``features``.
        centres_b : Int
            As given to ``features``.
        state : _State
            What ``features`` returned for them.
        g_bqs : np.ndarray
            Derivatives of the outputs by the features, (n_centres, n_features, n_outputs).

        Returns
        -------
        np.ndarray
            Of the pairs of the centres, one centre after the other, shape
            (n_pairs of the centres, 3, n_outputs), single precision.
        """
        shape = (len(g_bqs), self.inner.n_features, g_bqs.shape[2])
        inner_bqs = np.empty(shape, np.float32)
        for z, mine in _by_species(state.species_b):
            axes_qk = self._single_axes_z[z].T
            inner_bqs[mine] = axes_qk @ g_bqs[mine, : axes_qk.shape[1]]
        return vjp_many(self.inner, system, centres_b, state.inner, inner_bqs)

    @functools.cached_property
    def _single_axes_z(self) -> list[np.ndarray]:
        return [axes_kq.astype(np.float32) for axes_kq in self.axes_z]

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
        inner_bq, inner_pcq = self.inner.jacobian(system, centres_b)
        species_b = system.species_n[centres_b]
        first_n = system.pairs.first_n
        species_p = np.repeat(species_b, first_n[centres_b + 1] - first_n[centres_b])
        J_pcq = self._project(inner_pcq.reshape(-1, self.inner.n_features), np.repeat(species_p, 3))
        return self._project(inner_bq, species_b), J_pcq.reshape(-1, 3, self.n_features)


def _by_species(species_b: Int) -> list[tuple[int, Any]]:
    """Species index and places of each species; the whole block at once where there is but one."""
    if len(species_b) == 0:
        return []
    if species_b.min() == species_b.max():
        return [(int(species_b[0]), slice(None))]
    return [(int(z), np.flatnonzero(species_b == z)) for z in np.unique(species_b)]
