"""The contract between a descriptor and the rest of the library.

A descriptor is held by people as a set of parameters (`Soap`); ``bind`` fixes the species and
gives an object that computes. Features are unit vectors, so a kernel of them is a kernel of
directions. The other kind of descriptor is linear (`PairSplines`): it has an attribute ``linear``
that is true, features of any length, the kernel x . x' (zeta is 1) and no choice of environments,
because every feature is an inducing variable. Everything here works on blocks of
centres: the caller chooses which atoms, in which order, and how many at a time, and thereby bounds
the memory.

Environments of unlike centres are independent and have inducing variables of their own, species
by species, unless the descriptor has an attribute ``shared`` that is true (`SharedCentres`): then
there is one block of inducing variables, and the kernel of the features is that of all centres.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kernelpot.conventions import Float, Int, Settings, System


class BoundDescriptor(Protocol):
    """A descriptor for a fixed list of species."""

    species: tuple[int, ...]
    """Atomic numbers, ascending; ``System.species_n`` indexes this."""
    cutoff: float
    """Neighbours beyond this distance (angstrom) do not matter: the radius of the pair list."""
    n_features: int

    def features(self, system: System, centres_b: Int) -> tuple[Float, Any]:
        """Unit feature vectors x_bq of the given centres, and a state that ``vjp`` takes."""

    def vjp(self, system: System, centres_b: Int, state: Any, g_bq: Float, out_pc: Float) -> None:
        """Write sum_q g_bq dx_bq/dD_pc into the rows of ``out_pc`` that are pairs of the centres.

        ``out_pc`` has a row for every pair of the system; rows of other centres are not touched.
        """

    def jacobian(self, system: System, centres_b: Int) -> tuple[Float, Float]:
        """Return (x_bq, J_pcq): features, and dx_bq/dD_pc of the centres' pairs, concatenated."""


class Descriptor(Protocol):
    """Parameters of a descriptor, before the species are known."""

    cutoff: float

    def bind(self, species: tuple[int, ...]) -> BoundDescriptor:
        """Fix the species (atomic numbers)."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as scikit-learn asks for them."""

    def set_params(self, **params: Any) -> Descriptor:
        """Set parameters by name; returns self."""

    def to_settings(self) -> Settings:
        """JSON-ready settings from which ``from_settings`` makes an equal object."""


def is_linear(descriptor: Descriptor | BoundDescriptor) -> bool:
    """Whether every feature is an inducing variable of the linear kernel.

    Parameters
    ----------
    descriptor : Descriptor | BoundDescriptor
        Held by people or bound to species.

    Returns
    -------
    bool
        False where it says nothing of it.
    """
    return bool(getattr(descriptor, "linear", False))


def n_blocks(bound: BoundDescriptor) -> int:
    """Number of blocks of inducing variables.

    Parameters
    ----------
    bound : BoundDescriptor
        Bound to species.

    Returns
    -------
    int
        One for each species, or one for all where they are shared.
    """
    return 1 if getattr(bound, "shared", False) else len(bound.species)


def block_of(bound: BoundDescriptor, species_n: Int) -> Int:
    """Block of inducing variables of each atom's environment.

    Parameters
    ----------
    bound : BoundDescriptor
        Bound to species.
    species_n : Int
        Index of each atom's species.

    Returns
    -------
    Int
        The same, or zeros where all species share one block.
    """
    return np.zeros_like(species_n) if n_blocks(bound) == 1 else species_n


def single(bound: BoundDescriptor) -> BoundDescriptor:
    """The descriptor in single precision, where it can be.

    Parameters
    ----------
    bound : BoundDescriptor
        Bound to species. Its method ``in_single_precision``, if it has one, gives a descriptor with
        the same features in single precision.

    Returns
    -------
    BoundDescriptor
        The descriptor itself where it has no such method.
    """
    make = getattr(bound, "in_single_precision", None)
    return bound if make is None else make()


def widths(bound: BoundDescriptor) -> list[int]:
    """Numbers of features, from those that are computed first to those of the descriptor itself.

    Parameters
    ----------
    bound : BoundDescriptor
        One that may stand on another (its attribute ``inner``), and so on.

    Returns
    -------
    list[int]
        The descriptor's own number is the last.
    """
    inner = getattr(bound, "inner", None)
    return [*([] if inner is None else widths(inner)), bound.n_features]


def vjp_many(
    bound: BoundDescriptor, system: System, centres_b: Int, state: Any, g_bqs: np.ndarray
) -> np.ndarray:
    """The adjoint of many outputs at once, in single precision.

    Parameters
    ----------
    bound : BoundDescriptor
        Bound to species. Its method ``vjp_many``, if it has one, takes the other parameters;
        without one ``vjp`` is called for each output.
    system : System
        As given to ``features``.
    centres_b : Int
        As given to ``features``.
    state : Any
        What ``features`` returned for them.
    g_bqs : np.ndarray
        Derivatives of the outputs by the features, (n_centres, n_features, n_outputs).

    Returns
    -------
    np.ndarray
        sum_q g_bqs dx_bq/dD_pc of the pairs of the centres, one centre after the other: shape
        (n_pairs of the centres, 3, n_outputs), single precision.
    """
    many = getattr(bound, "vjp_many", None)
    if many is not None:
        return many(system, centres_b, state, g_bqs)
    first_n = system.pairs.first_n
    index_p = np.concatenate(
        [np.zeros(0, np.intp), *(np.arange(*first_n[b : b + 2]) for b in centres_b)]
    )
    all_pc = np.zeros((len(system.pairs.i_p), 3))
    out_pcs = np.empty((len(index_p), 3, g_bqs.shape[2]), np.float32)
    for s in range(g_bqs.shape[2]):
        g_bq = np.ascontiguousarray(g_bqs[:, :, s], dtype=np.float64)
        bound.vjp(system, centres_b, state, g_bq, all_pc)
        out_pcs[:, :, s] = all_pc[index_p]
    return out_pcs
