"""What SOAP's compiled code needs to know of a descriptor, made once: tables, channels, blocks."""

from __future__ import annotations

import numpy as np

from kernelpot._machine import one_blas_thread
from kernelpot.conventions import Float, as_int
from kernelpot.descriptors import _soap_dscribe, _soap_numba
from kernelpot.descriptors import basis as radial_basis
from kernelpot.descriptors._mixing import mix_tables

__all__ = ["make_plan"]


def make_plan(
    *,
    n_species: int,
    cutoff: float,
    reach: float,
    n_max: int,
    l_max: int,
    sigma: float,
    basis: str,
    w0: float,
    compression: str,
    weight_z: Float,
    mixing: Float | None,
    dtype: type[np.floating],
) -> _soap_numba.Plan:
    """Tables of the radial functions, and where their products stand in the features.

    Parameters
    ----------
    n_species : int
        How many there are.
    cutoff : float
        Of the radial basis, angstrom.
    reach : float
        Distance up to which a neighbour counts, angstrom.
    n_max : int
        Number of radial functions.
    l_max : int
        Highest degree.
    sigma : float
        Width of an atom's Gaussian, angstrom.
    basis : str
        "gto" or "polynomial".
    w0 : float
        Weight of the central atom.
    compression : str
        "off", "crossover", "mu1nu1" or "mu2".
    weight_z : Float
        Weight of each species.
    mixing : Float | None
        Radial functions of each species as combinations of the basis (`BoundSoap`).
    dtype : type[np.floating]
        Precision of the tables.

    Returns
    -------
    _soap_numba.Plan
        The same to the bit on any number of threads: model files do not hold it.
    """
    row = 32 // np.dtype(dtype).itemsize  # a register: see ``_lanes``
    n_pad = -(-n_max // row) * row
    table = _radial_table(basis, cutoff, n_max, l_max, sigma, reach, n_pad)
    n_nodes, values_tkdj = len(table.values), table.values[None]
    group_z, n_channels, blocks, sizes = _layout(compression, n_species, n_max, l_max)
    channel_g = np.unique(group_z)
    scale_q = np.zeros(0)
    if mixing is not None:
        basis_pad, n_max = n_pad, mixing.shape[1]
        n_pad = -(-n_max // row) * row
        values_tkdj = mix_tables(table.values, mixing, basis_pad, n_pad)
        _, n_channels, blocks, sizes = _layout("mu2", 1, n_max, l_max)
        group_z, channel_g = np.arange(n_species), np.zeros(n_species)
        # Products of unlike functions stand there once and count twice: so the kernel depends
        # on the similarity of the species, not on the channels that it is written with.
        twice = 1 - np.eye(n_max)[np.triu_indices(n_max)]
        scale_q = np.tile(np.sqrt(1.0 + twice), l_max + 1)
    values_tkdj = np.ascontiguousarray(values_tkdj)
    n_tables, size = len(values_tkdj), values_tkdj[0].size
    # A real spherical harmonic of degree 0 is 1 / sqrt(4 pi).
    self_tn = values_tkdj[:, 0, 0, :n_pad] * (w0 / np.sqrt(4.0 * np.pi))
    return _soap_numba.Plan(
        n_max=n_max,
        n_pad=n_pad,
        l_max=l_max,
        table=values_tkdj.ravel().astype(dtype),
        row=(l_max + 1) * n_pad,
        n_nodes=n_nodes,
        inverse_step=1.0 / table.step,
        prefactor_l=(np.pi * np.sqrt(8.0 / (2.0 * np.arange(l_max + 1) + 1.0))).astype(dtype),
        scale_q=scale_q.astype(dtype),
        group_z=as_int(group_z),
        channel_g=as_int(channel_g),
        table_g=as_int(np.arange(len(channel_g)) * size if n_tables > 1 else 0 * channel_g),
        n_channels=n_channels,
        has_sum=compression == "mu1nu1",
        left_k=as_int([left for left, _ in blocks]),
        right_k=as_int([right for _, right in blocks]),
        first_k=as_int(np.concatenate([[0], np.cumsum(sizes)])),
        self_zn=(weight_z[:, None] * self_tn).astype(dtype),
    )


def _radial_table(
    basis: str, cutoff: float, n_max: int, l_max: int, sigma: float, reach: float, n_pad: int
) -> radial_basis.RadialTable:
    """Radial functions up to where a neighbour counts.

    Model files hold none of it, so it has to be the same on any number of threads.
    """
    with one_blas_thread():
        if basis == "gto":
            alpha_ln, beta_lnk = _soap_dscribe.gto_basis(cutoff, n_max, l_max)

            def functions(r_p: Float) -> Float:
                return radial_basis.gto_functions(alpha_ln, beta_lnk, sigma, r_p)
        else:
            nodes_x, basis_nx = _soap_dscribe.polynomial_basis(cutoff, n_max)

            def functions(r_p: Float) -> Float:
                return radial_basis.polynomial_functions(
                    nodes_x, basis_nx, cutoff, sigma, l_max, r_p
                )

        return radial_basis.tabulate(functions, reach, n_pad)


def _layout(
    compression: str, n_species: int, n_max: int, l_max: int
) -> tuple[list[int], int, list[tuple[int, int]], list[int]]:
    """Channel of each species, number of channels, blocks (left, right channel), their sizes."""
    channels = list(range(n_species))
    n_channels = n_species
    if compression == "off":
        blocks = [(z, y) for z in channels for y in range(z, n_species)]
    elif compression == "crossover":
        blocks = [(z, z) for z in channels]
    elif compression == "mu1nu1":
        blocks = [(z, n_species) for z in channels]
        n_channels += 1
    else:
        blocks, channels, n_channels = [(0, 0)], [0] * n_species, 1
    sizes = [
        (l_max + 1) * (n_max * (n_max + 1) // 2 if left == right else n_max * n_max)
        for left, right in blocks
    ]
    return channels, n_channels, blocks, sizes
