"""Neighbour pairs from vesin, and a Verlet list that keeps them over small moves."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from vesin import NeighborList

from kernelpot._jit import njit
from kernelpot.conventions import Float, Int, Pairs, as_float, as_int

__all__ = ["PairList", "find_pairs", "within"]


def find_pairs(
    positions_nc: ArrayLike, cell_cc: ArrayLike, pbc_c: ArrayLike, cutoff: float
) -> Pairs:
    """All pairs of atoms (and periodic images) nearer than a cutoff.

    Parameters
    ----------
    positions_nc : ArrayLike
        Shape (n_atoms, 3), angstrom; atoms may lie outside the cell.
    cell_cc : ArrayLike
        Shape (3, 3), cell vectors in rows, angstrom; those of non-periodic directions are
        not used and may be zero.
    pbc_c : ArrayLike
        Shape (3,), which directions are periodic.
    cutoff : float
        Radius, angstrom; may exceed the cell.

    Returns
    -------
    Pairs
        The full list, sorted by centre.
    """
    return PairList(cutoff, skin=0.0).update(positions_nc, cell_cc, pbc_c)


def within(pairs: Pairs, cutoff: float) -> tuple[Pairs, Int | None]:
    """The pairs of a list that are nearer than a shorter cutoff.

    Parameters
    ----------
    pairs : Pairs
        Sorted by centre.
    cutoff : float
        Radius, angstrom.

    Returns
    -------
    tuple[Pairs, Int | None]
        The shorter list, and the places of its pairs in the longer one; the list itself and None
        where nothing is left out.
    """
    near_p = pairs.r_p < cutoff
    if near_p.all():
        return pairs, None
    index_p = as_int(np.flatnonzero(near_p))
    first_n = as_int(np.concatenate([[0], np.cumsum(near_p)])[pairs.first_n])
    return (
        Pairs(
            pairs.i_p[index_p], pairs.j_p[index_p], pairs.D_pc[index_p], pairs.r_p[index_p], first_n
        ),
        index_p,
    )


_MAX_EXTENT = 1e4
"""Largest structure, angstrom."""


class PairList:
    """Neighbour pairs that are found anew only when atoms or cell have moved enough.

    Pairs within ``cutoff + skin`` are kept with their image shifts; ``update`` recomputes
    the vectors and drops what lies beyond the cutoff. The kept list stays valid while no pair
    outside it can have come within the cutoff: with the affine map F from the old to the
    new cell and the non-affine displacements u, as long as
    ``(cutoff + skin) (1 - |F - 1|) - 2 max |u| >= cutoff``.

    Parameters
    ----------
    cutoff : float
        Radius, angstrom.
    skin : float
        Additional radius, angstrom; 0 searches at every call.

    Attributes
    ----------
    n_builds : int
        How many times the neighbours were searched.

    Raises
    ------
    ValueError
        If the cutoff is not positive or the skin is negative.
    """

    def __init__(self, cutoff: float, skin: float = 0.5):
        if not (np.isfinite(cutoff) and cutoff > 0 and np.isfinite(skin) and skin >= 0):
            raise ValueError(f"cutoff must be > 0 and skin >= 0; got {cutoff!r} and {skin!r}")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.n_builds = 0
        self._kept: tuple[Int, Int, Float] | None = None
        self._reference: tuple[Float, Float, np.ndarray] | None = None

    def update(self, positions_nc: ArrayLike, cell_cc: ArrayLike, pbc_c: ArrayLike) -> Pairs:
        """Pairs of the given structure.

        Parameters
        ----------
        positions_nc : ArrayLike
            Shape (n_atoms, 3), angstrom.
        cell_cc : ArrayLike
            Shape (3, 3), cell vectors in rows, angstrom.
        pbc_c : ArrayLike
            Shape (3,), which directions are periodic.

        Returns
        -------
        Pairs
            The pairs within the cutoff, sorted by centre.

        Raises
        ------
        ValueError
            If the structure extends over more than 1e4 A, or is not finite.
        """
        positions_nc = as_float(positions_nc).reshape(-1, 3)
        pbc_c = np.broadcast_to(np.asarray(pbc_c, dtype=bool), (3,))
        # Non-periodic cell vectors play no part; zeros keep them out of the shifts.
        cell_cc = as_float(np.where(pbc_c[:, None], as_float(cell_cc), 0.0))
        if not self._still_valid(positions_nc, cell_cc, pbc_c):
            self._build(positions_nc, cell_cc, pbc_c)
        i_p, j_p, S_pc = self._kept
        return Pairs(*_within(positions_nc, cell_cc, i_p, j_p, S_pc, self.cutoff))

    def _build(self, positions_nc: Float, cell_cc: Float, pbc_c: np.ndarray) -> None:
        extent = max(np.ptp(positions_nc, axis=0).max(initial=0.0), np.abs(cell_cc).max())
        if not extent <= _MAX_EXTENT:
            # vesin ends the process when its grid of cells overflows.
            raise ValueError(
                f"the structure extends over {extent:.3g} A, more than {_MAX_EXTENT:g} A: an atom "
                "has flown away (try a shorter time step, or a nearer start), or a position is NaN"
            )
        search = NeighborList(cutoff=self.cutoff + self.skin, full_list=True, sorted=True)
        i_p, j_p, S_pc = search.compute(positions_nc, cell_cc, pbc_c, quantities="ijS")
        # vesin leaves the order within a centre open, and it may depend on its threads: sums
        # over neighbours are bitwise repeatable only in a fixed order.
        order = np.lexsort((S_pc[:, 2], S_pc[:, 1], S_pc[:, 0], j_p, i_p))
        self._kept = (as_int(i_p[order]), as_int(j_p[order]), as_float(S_pc[order]))
        self._reference = (positions_nc.copy(), cell_cc, pbc_c.copy())
        self.n_builds += 1

    def _still_valid(self, positions_nc: Float, cell_cc: Float, pbc_c: np.ndarray) -> bool:
        if self._reference is None or self.skin <= 0.0:
            return False
        old_nc, old_cc, old_pbc = self._reference
        if len(old_nc) != len(positions_nc) or np.any(old_pbc != pbc_c):
            return False
        strain = 0.0
        affine_nc = old_nc
        if np.any(old_cc != cell_cc):
            # pinv maps the periodic subspace and leaves the rest as it is.
            F_cd = np.eye(3) + np.linalg.pinv(old_cc) @ (cell_cc - old_cc)
            strain = np.linalg.norm(F_cd - np.eye(3), 2)
            affine_nc = old_nc @ F_cd
        moved = np.sqrt(np.max(np.sum((positions_nc - affine_nc) ** 2, axis=1), initial=0.0))
        return (self.cutoff + self.skin) * (1.0 - strain) - 2.0 * moved >= self.cutoff


@njit
def _within(positions_nc, cell_cc, i_p, j_p, S_pc, cutoff):
    """Vectors of the kept pairs, less those beyond the cutoff."""
    n_atoms = positions_nc.shape[0]
    n_kept = i_p.shape[0]
    i_out = np.empty(n_kept, np.intp)
    j_out = np.empty(n_kept, np.intp)
    D_out = np.empty((n_kept, 3))
    r_out = np.empty(n_kept)
    first_n = np.zeros(n_atoms + 1, np.intp)
    n_pairs = 0
    for p in range(n_kept):
        i = i_p[p]
        j = j_p[p]
        square = 0.0
        for c in range(3):
            d = positions_nc[j, c] - positions_nc[i, c]
            for k in range(3):
                d += S_pc[p, k] * cell_cc[k, c]
            D_out[n_pairs, c] = d
            square += d * d
        if square < cutoff * cutoff:
            i_out[n_pairs] = i
            j_out[n_pairs] = j
            r_out[n_pairs] = np.sqrt(square)
            n_pairs += 1
            first_n[i + 1] += 1
    for n in range(n_atoms):
        first_n[n + 1] += first_n[n]
    return i_out[:n_pairs], j_out[:n_pairs], D_out[:n_pairs], r_out[:n_pairs], first_n
