"""SOAP power spectra: the parameters that people hold.

dscribe defines the descriptor: parameters, species order, feature layout, radial basis. Values
with dscribe's settings equal dscribe's; smooth cutoffs, radial scaling and all derivatives are
this library's. What computes is `BoundSoap`.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, System, as_int
from kernelpot.descriptors import _soap_dscribe
from kernelpot.descriptors._mixing import channels_of, radial_mixing
from kernelpot.descriptors._parameters import Parameters
from kernelpot.descriptors._soap_bound import BoundSoap
from kernelpot.descriptors._species import ascending, by_species, is_real
from kernelpot.descriptors.radial import (
    SCALINGS,
    SMOOTHINGS,
    Scaling,
    ShiftedCosine,
    Smoothing,
    Willatt,
    from_weighting,
)
from kernelpot.neighbours import find_pairs

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["COMPRESSIONS", "Soap"]

BASES = ("gto", "polynomial")
COMPRESSIONS = ("off", "crossover", "mu1nu1", "mu2")
ENGINES = ("auto", "numba", "dscribe")

_SMOOTHING = ShiftedCosine(width=1.0)
_SCALING = Willatt()


class Soap(Parameters):
    """Smooth overlap of atomic positions: the power spectrum of a neighbour density.

    ``p_i[z n, z' n', l] = pi sqrt(8/(2l+1)) sum_m c^z_nlm c^z'_n'lm`` with the density
    coefficients c of Gaussians of width sigma on the neighbours, each multiplied by a weight
    w(r); features are p / abs(p).

    Sources: Bartok, Kondor and Csanyi, Phys. Rev. B 87, 184115 (2013); Himanen et al., Comput.
    Phys. Commun. 247, 106949 (2020), whose code defines order and normalisation; Darby, Kermode
    and Csanyi, npj Comput. Mater. 8, 166 (2022) for the compressions.

    Nothing is checked on construction; ``validate`` and ``bind`` do.

    Parameters
    ----------
    cutoff : float
        Radius of the neighbourhood, angstrom; above 1 with the gto basis.
    n_max : int
        Number of radial functions.
    l_max : int
        Highest degree of the harmonics, 0 to 20.
    sigma : float
        Width of the Gaussian on each atom, angstrom.
    basis : str
        "gto" (Gaussian-type orbitals) or "polynomial", as in dscribe.
    smoothing : Smoothing | None
        How neighbours fade towards the cutoff. None is dscribe's unweighted density, which ends
        with a step at ``cutoff + sigma sqrt(-2 ln 1e-3)``: no forces without jumps from it.
    scaling : Scaling | None
        Further weight by distance; None is 1.
    weighting : dict[str, Any] | None
        dscribe's own dictionary (``function``: poly, pow or exp, with ``c d m r0``; ``w0``, the
        weight of the central atom) in the place of smoothing and scaling.
    compression : str
        "off", "crossover" (no products of unlike species), "mu1nu1" or "mu2".
    species_weights : dict[str | int, float] | None
        Weight of each species' density, by symbol or atomic number; None is 1 for all.
    species_mixing : float | dict[str | int, list[float]] | None
        How alike the species are. A number is the similarity of any two of them, from 0 (unlike,
        as None) to 1 (the same); a dict gives the weights of each species in every channel that
        densities are summed into. Fewer channels than species make a shorter power spectrum.
    n_contracted : int | None
        Radial functions of all channels are combined to this many for each degree, by the
        principal components of the density in the training structures, in every fit: shorter power
        spectra, for many species or many radial functions (Goscinski, Musil, Pozdnyakov, Nigam and
        Ceriotti, J. Chem. Phys. 155, 104106 (2021)). None keeps all, and so does ``create``, which
        has no training structures.
    centre_similarity : float | None
        How alike environments of unlike central atoms are whose surroundings are the same, from 0
        to 1: the fit's kernel is that of ``s x . x' + (1 - s) [z = z']``, with one set of inducing
        variables for all species, so that what is learned around one of them counts for the others.
        None: they are independent. (0 leaves nothing but a constant for each species: what counts
        is most of the way from there to 1, where the centre's species does not count.)
    engine : str
        "numba" or "auto": this library's code. "dscribe": values by dscribe, for comparison.
    """

    def __init__(
        self,
        *,
        cutoff: float = 5.0,
        n_max: int = 8,
        l_max: int = 6,
        sigma: float = 0.5,
        basis: str = "gto",
        smoothing: Smoothing | None = _SMOOTHING,
        scaling: Scaling | None = _SCALING,
        weighting: dict[str, Any] | None = None,
        compression: str = "off",
        species_weights: dict[str | int, float] | None = None,
        species_mixing: float | dict[str | int, list[float]] | None = None,
        n_contracted: int | None = None,
        centre_similarity: float | None = None,
        engine: str = "auto",
    ):
        self.cutoff = cutoff
        self.n_max = n_max
        self.l_max = l_max
        self.sigma = sigma
        self.basis = basis
        self.smoothing = smoothing
        self.scaling = scaling
        self.weighting = weighting
        self.compression = compression
        self.species_weights = species_weights
        self.species_mixing = species_mixing
        self.n_contracted = n_contracted
        self.centre_similarity = centre_similarity
        self.engine = engine

    def validate(self) -> None:
        """Check the parameters.

        Raises
        ------
        ValueError
            If one is out of its range or two contradict each other.
        """
        for name in ("cutoff", "sigma"):
            value = getattr(self, name)
            if not is_real(value) or not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"Soap: {name} must be a positive length in A, got {value!r}")
        limits = [("n_max", 1, 64), ("l_max", 0, 20)]
        if self.n_contracted is not None:
            limits.append(("n_contracted", 1, 64))
        for name, low, high in limits:
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not whole or not low <= value <= high:
                raise ValueError(
                    f"Soap: {name} must be a whole number from {low} to {high}, got {value!r}"
                )
        for name, known in (("basis", BASES), ("compression", COMPRESSIONS), ("engine", ENGINES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Soap: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("species_mixing", "n_contracted"):
            if getattr(self, name) is not None and self.compression != "off":
                raise ValueError(
                    f"Soap: {name} and compression={self.compression!r} both say how channels are "
                    "combined; give one of them"
                )
        alike = self.centre_similarity
        if alike is not None and not (is_real(alike) and 0.0 <= alike <= 1.0):
            raise ValueError(
                "Soap: centre_similarity must be a number from 0 (unlike) to 1 (the same), or None "
                f"for environments that are independent; got {alike!r}"
            )
        if self.basis == "gto" and self.cutoff <= 1.0:
            raise ValueError(
                f"Soap: the gto basis needs a cutoff above 1 A, got {self.cutoff:g}; raise it or "
                "take basis='polynomial'"
            )
        if self.weighting is not None and (self.smoothing, self.scaling) != (_SMOOTHING, _SCALING):
            raise ValueError(
                "Soap: weighting takes the place of smoothing and scaling; give either "
                f"weighting={self.weighting!r} or smoothing={self.smoothing!r}, "
                f"scaling={self.scaling!r}"
            )
        for name, known in (("smoothing", SMOOTHINGS), ("scaling", SCALINGS)):
            part = getattr(self, name)
            if part is not None and type(part) not in known.values():
                raise ValueError(
                    f"Soap: {name} must be None or one of {', '.join(known)}, got {part!r}"
                )
        for part in self._weights()[:2]:
            if part is not None:
                part.check(self.cutoff)

    def _weights(self) -> tuple[Smoothing | None, Scaling | None, float | None]:
        """Smoothing, scaling, and weight of the central atom where it is set by hand."""
        if self.weighting is None:
            return self.smoothing, self.scaling, None
        smoothing, w0 = from_weighting(self.weighting)
        return smoothing, None, w0

    def _species_weights(self, species: tuple[int, ...]) -> dict[int, float]:
        if self.species_weights is None:
            return dict.fromkeys(species, 1.0)
        given = by_species("Soap", "species_weights", self.species_weights, species)
        for z, value in given.items():
            if not is_real(value) or not (value >= 0.0 and math.isfinite(value)):
                raise ValueError(
                    f"Soap: the weight of {chemical_symbols[z]} must be a number from 0 on, "
                    f"got {value!r}"
                )
        return {z: float(given[z]) for z in species}

    def bind(self, species: Iterable[int | str]) -> BoundSoap:
        """Fix the species.

        Parameters
        ----------
        species : Iterable[int | str]
            Atomic numbers or symbols, in any order.

        Returns
        -------
        BoundSoap
            What computes features and their derivatives.

        Raises
        ------
        ValueError
            If the parameters are not valid, so many radial functions cannot be orthonormalised,
            or the engine has no derivatives.
        """
        self.validate()
        if self.engine == "dscribe":
            raise ValueError(
                "Soap: engine='dscribe' computes values only (Soap.create): dscribe has no "
                "analytical derivatives for periodic systems; take engine='auto'"
            )
        species = ascending("Soap", species)
        smoothing, scaling, w0 = self._weights()
        mixing = None
        if self.species_mixing is not None:
            channels_kz = channels_of(self.species_mixing, species)
            mixing = radial_mixing(channels_kz, int(self.n_max), int(self.l_max))
        return BoundSoap(
            species=species,
            cutoff=float(self.cutoff),
            n_max=int(self.n_max),
            l_max=int(self.l_max),
            sigma=float(self.sigma),
            basis=self.basis,
            smoothing=smoothing,
            scaling=scaling,
            w0=w0,
            compression=self.compression,
            weight_z=list(self._species_weights(species).values()),
            mixing=mixing,
            n_contracted=self.n_contracted,
            centre_similarity=self.centre_similarity,
        )

    def create(self, atoms: Atoms, species: Iterable[int | str] | None = None) -> Float:
        """Power spectra of all atoms of a structure, not normalised, by the chosen engine.

        Parameters
        ----------
        atoms : Atoms
            The structure; periodic as its ``pbc`` says.
        species : Iterable[int | str] | None
            Atomic numbers or symbols; those of the structure where None.

        Returns
        -------
        Float
            Shape (n_atoms, n_features), in dscribe's order.

        Raises
        ------
        ValueError
            If the parameters are not valid, the species do not cover the structure, or dscribe
            lacks what it is asked for.
        """
        self.validate()
        species = ascending("Soap", atoms.numbers if species is None else species)
        strange = sorted(set(atoms.numbers.tolist()) - set(species))
        if strange:
            raise ValueError(
                f"Soap: the structure has {', '.join(chemical_symbols[z] for z in strange)}, the "
                f"descriptor knows {', '.join(chemical_symbols[z] for z in species)}"
            )
        if self.engine == "dscribe" and self.species_mixing is not None:
            raise ValueError("Soap: dscribe does not mix species; take engine='numba'")
        if self.engine == "dscribe":
            return _soap_dscribe.create(atoms, species, **self._dscribe_settings(species))
        bound = self.bind(species)
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, bound.cutoff)
        system = System(as_int(np.searchsorted(species, atoms.numbers)), pairs)
        return bound.power_spectrum(system, np.arange(len(atoms)))

    def _dscribe_settings(self, species: tuple[int, ...]) -> dict[str, Any]:
        weighting = copy.deepcopy(self.weighting)
        if weighting is None and (self.smoothing is not None or self.scaling is not None):
            raise ValueError(
                f"Soap: dscribe has neither smoothing={self.smoothing!r} nor "
                f"scaling={self.scaling!r}; give weighting={{...}}, or set both to None for its "
                "unweighted density, or take engine='numba'"
            )
        if self.basis == "polynomial" and self.compression == "mu2" and self.species_weights:
            raise ValueError(
                "Soap: dscribe 2.1.2 mixes up the species weights of mu2 with the polynomial "
                "basis (its result depends on the order of the atoms); take engine='numba'"
            )
        weights = None if self.species_weights is None else self._species_weights(species)
        return {
            "r_cut": float(self.cutoff),
            "n_max": int(self.n_max),
            "l_max": int(self.l_max),
            "sigma": float(self.sigma),
            "rbf": self.basis,
            "weighting": weighting,
            "compression": {"mode": self.compression, "species_weighting": weights},
        }
