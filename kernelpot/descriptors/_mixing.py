"""Species that are alike: channels into which several species are summed, each with its weight.

Densities rho_z of the species become rho_k = sum_z U_kz rho_z. The kernel then sees the species
through the similarity U^T U: unlike species are no longer orthogonal, and what was learned of one
says something of the other (De, Bartok, Csanyi and Ceriotti, Phys. Chem. Chem. Phys. 18, 13754
(2016); Willatt, Musil and Ceriotti, ibid. 20, 29661 (2018)). Fewer channels than species make the
power spectrum shorter. As neighbours add linearly to the coefficients, all of it is done in the
radial functions: c_klm,n = sum_z U_kz c_zlm,n is one expansion with functions of each species.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, as_float
from kernelpot.descriptors._species import by_species, is_real

__all__ = ["channels_of", "mix_tables", "radial_mixing"]

SpeciesMixing = float | Mapping[str | int, Sequence[float]]


def channels_of(mixing: SpeciesMixing, species: tuple[int, ...]) -> Float:
    """Weight of every species in every channel.

    Parameters
    ----------
    mixing : SpeciesMixing
        Similarity of any two species, from 0 to 1; or by species its weights in all channels.
    species : tuple[int, ...]
        Atomic numbers, ascending.

    Returns
    -------
    Float
        U_kz, shape (n_channels, n_species).

    Raises
    ------
    ValueError
        If it is neither, or does not speak of all species.
    """
    if is_real(mixing):
        if not 0.0 <= mixing <= 1.0:
            raise ValueError(
                "Soap: species_mixing as one number is the similarity of any two species, from 0 "
                f"(unlike) to 1 (the same); got {mixing!r}"
            )
        n = len(species)
        similarity_zz = np.full((n, n), float(mixing)) + (1.0 - mixing) * np.eye(n)
        value_k, vectors_zk = np.linalg.eigh(similarity_zz)
        kept = value_k > 1e-12
        return (np.sqrt(value_k[kept]) * vectors_zk[:, kept]).T[::-1]
    if not isinstance(mixing, Mapping):
        raise ValueError(
            "Soap: species_mixing must be a number from 0 to 1, or a dict with the weights of each "
            f"species in all channels; got {mixing!r}"
        )
    given = by_species("Soap", "species_mixing", mixing, species)
    for z, weights in given.items():
        if (
            isinstance(weights, str)
            or not isinstance(weights, Sequence)
            or len(weights) == 0
            or not all(is_real(w) and math.isfinite(w) for w in weights)
        ):
            raise ValueError(
                f"Soap: the weights of {chemical_symbols[z]} in species_mixing must be a list of "
                f"numbers, one for each channel; got {weights!r}"
            )
    if len({len(weights) for weights in given.values()}) > 1:
        counts = ", ".join(f"{chemical_symbols[z]} {len(w)}" for z, w in given.items())
        raise ValueError(
            f"Soap: species_mixing needs as many weights for every species; got {counts}"
        )
    return as_float([given[z] for z in species]).T


def radial_mixing(channels_kz: Float, n_max: int, l_max: int) -> Float:
    """The same for every radial function and degree.

    Parameters
    ----------
    channels_kz : Float
        Weight of every species in every channel.
    n_max : int
        Number of radial functions of each channel.
    l_max : int
        Highest degree.

    Returns
    -------
    Float
        Functions of each species as combinations of the basis, shape
        (l_max + 1, n_channels * n_max, n_species, n_max).
    """
    n_channels, n_species = channels_kz.shape
    one_azn = np.einsum("kz,mn->kmzn", channels_kz, np.eye(n_max))
    one_azn = one_azn.reshape(n_channels * n_max, n_species, n_max)
    return np.repeat(one_azn[None], l_max + 1, axis=0)


def mix_tables(values_kdj: Float, mixing_lazn: Float, n_pad: int, padded: int) -> Float:
    """Radial tables of all species.

    Parameters
    ----------
    values_kdj : Float
        Table of the basis: shape (n_nodes, 3, (l_max + 1) * n_pad).
    mixing_lazn : Float
        Functions of each species as combinations of the basis.
    n_pad : int
        Length to which n is padded in that table.
    padded : int
        Length to which it is to be.

    Returns
    -------
    Float
        Shape (n_species, n_nodes, 3, (l_max + 1) * padded).
    """
    n_degrees, n_mixed, n_species, n_max = mixing_lazn.shape
    values_kdln = values_kdj.reshape(*values_kdj.shape[:2], n_degrees, n_pad)[..., :n_max]
    out_zkdla = np.zeros((n_species, *values_kdln.shape[:3], padded))
    out_zkdla[..., :n_mixed] = np.einsum("kdln,lazn->zkdla", values_kdln, mixing_lazn)
    return out_zkdla.reshape(n_species, *values_kdj.shape[:2], -1)
