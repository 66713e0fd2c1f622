"""The only import of dscribe: it defines the radial basis, and computes values for comparison."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from kernelpot.conventions import Float, as_float

if TYPE_CHECKING:
    from ase import Atoms


def gto_basis(cutoff: float, n_max: int, l_max: int) -> tuple[Float, Float]:
    """Exponents and orthonormalisation of dscribe's Gaussian-type orbitals.

    Parameters
    ----------
    cutoff : float
        Cutoff, angstrom.
    n_max : int
        Number of radial functions.
    l_max : int
        Highest degree.

    Returns
    -------
    tuple[Float, Float]
        alpha (l_max + 1, n_max) in 1/angstrom^2, beta (l_max + 1, n_max, n_max).

    Raises
    ------
    ValueError
        If the overlap of so many functions has no real inverse square root.
    """
    with warnings.catch_warnings():
        # The inverse is ill-conditioned from n_max = 8 or so; it is part of the definition.
        warnings.simplefilter("ignore")
        try:
            alpha_ln, beta_lnk = _soap(cutoff).get_basis_gto(cutoff, n_max, l_max)
        except ValueError as error:
            raise _too_many(n_max, cutoff) from error
    return as_float(alpha_ln), as_float(beta_lnk)


def polynomial_basis(cutoff: float, n_max: int) -> tuple[Float, Float]:
    """Integration points of dscribe's polynomial basis and the basis functions there.

    Parameters
    ----------
    cutoff : float
        Cutoff, angstrom.
    n_max : int
        Number of radial functions.

    Returns
    -------
    tuple[Float, Float]
        Points (100,) in angstrom, functions (n_max, 100).

    Raises
    ------
    ValueError
        If the overlap of so many functions has no real inverse square root.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            nodes_x, basis_nx = _soap(cutoff).get_basis_poly(cutoff, n_max)
        except ValueError as error:
            raise _too_many(n_max, cutoff) from error
    return as_float(nodes_x), as_float(basis_nx)


def create(atoms: Atoms, species: tuple[int, ...], **settings: Any) -> Float:
    """Power spectra of all atoms by dscribe.

    Parameters
    ----------
    atoms : Atoms
        The structure.
    species : tuple[int, ...]
        Atomic numbers.
    **settings : Any
        Keywords of ``dscribe.descriptors.SOAP``.

    Returns
    -------
    Float
        Shape (n_atoms, n_features).
    """
    from dscribe.descriptors import SOAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        soap = SOAP(species=list(species), periodic=bool(atoms.pbc.any()), **settings)
        return as_float(soap.create(atoms)).reshape(len(atoms), -1)


def _soap(cutoff: float) -> Any:
    # Imported here: dscribe takes most of a second to load, and only a bound descriptor needs it.
    from dscribe.descriptors import SOAP

    return SOAP(species=["H"], r_cut=cutoff, n_max=1, l_max=0, rbf="polynomial")


def _too_many(n_max: int, cutoff: float) -> ValueError:
    return ValueError(
        f"n_max={n_max} radial functions within {cutoff:g} A are too nearly dependent to be "
        "orthonormalised; lower n_max or raise cutoff"
    )
