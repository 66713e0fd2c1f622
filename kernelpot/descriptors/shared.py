"""Environments of unlike centres that know of each other: the centre's species as a feature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kernelpot.conventions import Float, Int, System
from kernelpot.descriptors.protocol import BoundDescriptor, single, vjp_many

__all__ = ["SharedCentres", "shared_centres"]


class _State(NamedTuple):
    inner: Any


class SharedCentres:
    """Features ``(sqrt(s) x, sqrt(1 - s) e_z)`` with the unit vector e_z of the centre's species.

    Products of two environments are ``s x . x' + (1 - s) [z = z']``: one kernel for all centres, in
    which equal densities around unlike centres are alike by s. So all species have one block of
    inducing variables, and what is learned around one of them counts for the others. (Such a task
    kernel as a factor, the intrinsic model of coregionalisation of Bonilla, Chai and Williams,
    NIPS 20, 153 (2007), was worse for those centres that the data know well.)

    Parameters
    ----------
    inner : BoundDescriptor
        What describes the surroundings by unit vectors whose components mean the same for all
        species of the centre.
    similarity : float
        s, from 0 (the surroundings do not count) to 1 (the centre's species does not count).

    Attributes
    ----------
    species : tuple[int, ...]
        Atomic numbers, ascending.
    cutoff : float
        Radius of the pair list, angstrom.
    n_features : int
        Those of the surroundings and one for each species.
    """

    shared = True

    def __init__(self, inner: BoundDescriptor, similarity: float):
        self.inner = inner
        self.species = inner.species
        self.cutoff = inner.cutoff
        self.n_features = inner.n_features + len(inner.species)
        self._similarity = similarity
        self._root = math.sqrt(similarity)
        self._own = math.sqrt(1.0 - similarity)

    @property
    def unprojected(self) -> SharedCentres | None:
        """The same of all features, where the surroundings stand on fewer axes."""
        inner = getattr(self.inner, "unprojected", None)
        return None if inner is None else SharedCentres(inner, self._similarity)

    def lift(self, V_jk: Float, z: int) -> Float:
        """Vectors whose products with all features are those of the given ones with the kept.

        Parameters
        ----------
        V_jk : Float
            Shape (n, n_features).
        z : int
            Any species: their axes are the same.

        Returns
        -------
        Float
            Shape (n, n_features of ``unprojected``).
        """
        n_kept = self.inner.n_features
        return np.hstack([self.inner.lift(V_jk[:, :n_kept], z), V_jk[:, n_kept:]])

    def in_single_precision(self) -> SharedCentres:
        """The same in single precision, as far as the inner descriptor is.

        Returns
        -------
        SharedCentres
            Another descriptor.
        """
        return SharedCentres(single(self.inner), self._similarity)

    def features(self, system: System, centres_b: Int) -> tuple[Float, _State]:
        """Unit feature vectors, and a state that ``vjp`` takes.

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
        return self._with_species(inner_bq, system, centres_b), _State(state)

    def _with_species(self, inner_bq: Float, system: System, centres_b: Int) -> Float:
        x_bq = np.zeros((len(inner_bq), self.n_features), inner_bq.dtype)
        x_bq[:, : self.inner.n_features] = self._root * inner_bq
        own_b = self.inner.n_features + system.species_n[centres_b]
        x_bq[np.arange(len(x_bq)), own_b] = self._own
        return x_bq

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
        inner_bq = self._root * g_bq[:, : self.inner.n_features]
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
        inner_bqs = np.float32(self._root) * g_bqs[:, : self.inner.n_features]
        return vjp_many(self.inner, system, centres_b, state.inner, inner_bqs)

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
        J_pcq = np.zeros((len(inner_pcq), 3, self.n_features))
        J_pcq[:, :, : self.inner.n_features] = self._root * inner_pcq
        return self._with_species(inner_bq, system, centres_b), J_pcq


def shared_centres(bound: BoundDescriptor) -> BoundDescriptor:
    """The descriptor with the centre's species among its features, where it asks for it.

    Parameters
    ----------
    bound : BoundDescriptor
        The last step of what `Soap` asks for, after contraction and projection.

    Returns
    -------
    BoundDescriptor
        `SharedCentres`, or the one that was given where its ``centre_similarity`` is None or it has
        none.
    """
    similarity = getattr(bound, "centre_similarity", None)
    return bound if similarity is None else SharedCentres(bound, similarity)
