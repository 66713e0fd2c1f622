"""SOAP for a fixed list of species: tables made once, then compiled code on blocks of centres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot.conventions import Float, Int, System, as_float, as_int
from kernelpot.descriptors import _soap_dscribe, _soap_gradients, _soap_numba, radial
from kernelpot.descriptors import basis as radial_basis
from kernelpot.descriptors._harmonics import harmonics
from kernelpot.descriptors.radial import Scaling, Smoothing

__all__ = ["BoundSoap", "State"]


class State(NamedTuple):
    """What ``features`` computed and ``vjp`` takes."""

    hoods: _soap_numba.Neighbourhoods
    c_bi: Float  # density coefficients of each centre: channel, lm, n
    x_bq: Float
    norm_b: Float


class BoundSoap:
    """SOAP unit vectors and their derivatives; made by ``Soap.bind``.

    Parameters
    ----------
    species : tuple[int, ...]
        Atomic numbers, ascending.
    cutoff : float
        Cutoff of the radial basis, angstrom.
    n_max : int
        Number of radial functions.
    l_max : int
        Highest degree.
    sigma : float
        Width of an atom's Gaussian, angstrom.
    basis : str
        "gto" or "polynomial".
    smoothing : Smoothing | None
        What ends the neighbourhood.
    scaling : Scaling | None
        Further weight by distance.
    w0 : float | None
        Weight of the central atom; the weight at r = 0 where None.
    compression : str
        "off", "crossover", "mu1nu1" or "mu2".
    weight_z : Sequence[float]
        Weight of each species.

    Attributes
    ----------
    species : tuple[int, ...]
        Atomic numbers, ascending; ``System.species_n`` indexes this.
    cutoff : float
        Radius of the pair list, angstrom.
    n_features : int
        Length of a feature vector.
    """

    def __init__(
        self,
        *,
        species: tuple[int, ...],
        cutoff: float,
        n_max: int,
        l_max: int,
        sigma: float,
        basis: str,
        smoothing: Smoothing | None,
        scaling: Scaling | None,
        w0: float | None,
        compression: str,
        weight_z: Sequence[float],
    ):
        # dscribe counts neighbours until their Gaussians have decayed to 1e-3 at the cutoff.
        padded = cutoff + sigma * np.sqrt(-2.0 * np.log(1e-3))
        self.species = species
        self.cutoff = float(padded if smoothing is None else smoothing.reach(cutoff, padded))
        self._weight_arguments = (smoothing, scaling, cutoff)
        self._weight_z = as_float(weight_z)
        if w0 is None:
            w0 = self._weights(np.zeros(1))[0][0]

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

        n_pad = -(-n_max // 4) * 4
        table = radial_basis.tabulate(functions, self.cutoff, n_pad)
        channel_z, n_channels, blocks, sizes = _layout(compression, len(species), n_max, l_max)
        # A real spherical harmonic of degree 0 is 1 / sqrt(4 pi).
        self_n = table.values[0, 0, :n_pad] * (w0 / np.sqrt(4.0 * np.pi))
        self._plan = _soap_numba.Plan(
            n_max=n_max,
            n_pad=n_pad,
            l_max=l_max,
            table=table.values.ravel(),
            row=(l_max + 1) * n_pad,
            n_nodes=len(table.values),
            inverse_step=1.0 / table.step,
            prefactor_l=np.pi * np.sqrt(8.0 / (2.0 * np.arange(l_max + 1) + 1.0)),
            channel_z=as_int(channel_z),
            n_channels=n_channels,
            has_sum=compression == "mu1nu1",
            left_k=as_int([left for left, _ in blocks]),
            right_k=as_int([right for _, right in blocks]),
            first_k=as_int(np.concatenate([[0], np.cumsum(sizes)])),
            self_zn=as_float(self._weight_z[:, None] * self_n),
        )
        self._harmonics = harmonics(l_max)
        self.n_features = int(self._plan.first_k[-1])

    def _weights(self, r_p: Float) -> tuple[Float, Float]:
        smoothing, scaling, cutoff = self._weight_arguments
        return radial.weight_and_derivative(smoothing, scaling, r_p, cutoff, self.cutoff)

    def _neighbourhoods(self, system: System, centres_b: Int) -> _soap_numba.Neighbourhoods:
        pairs = system.pairs
        start_b, offset_b, p_p, r_p = _soap_numba.gather(pairs.first_n, pairs.r_p, centres_b)
        w_p, dw_p = self._weights(r_p)
        if np.any(self._weight_z != 1.0):
            weight_p = self._weight_z[system.species_n[pairs.j_p[p_p]]]
            w_p, dw_p = w_p * weight_p, dw_p * weight_p
        return _soap_numba.Neighbourhoods(start_b, offset_b, r_p, w_p, dw_p)

    def features(self, system: System, centres_b: Int) -> tuple[Float, State]:
        """Unit feature vectors, and a state that ``vjp`` takes.

        Parameters
        ----------
        system : System
            Species and pairs of a structure; pairs beyond the cutoff count for nothing.
        centres_b : Int
            Atoms to describe.

        Returns
        -------
        tuple[Float, State]
            x_bq (n_centres, n_features): p / abs(p), zero where p is zero. It is part of the
            state: copy it before changing it.
        """
        centres_b = as_int(centres_b)
        hoods = self._neighbourhoods(system, centres_b)
        plan = self._plan
        n_coefficients = plan.n_channels * (plan.l_max + 1) ** 2 * plan.n_pad
        c_bi = np.empty((len(centres_b), n_coefficients))
        x_bq = np.empty((len(centres_b), self.n_features))
        norm_b = np.empty(len(centres_b))
        pairs = system.pairs
        _soap_numba.features(
            plan,
            self._harmonics,
            system.species_n,
            pairs.j_p,
            pairs.D_pc,
            centres_b,
            hoods,
            c_bi,
            x_bq,
            norm_b,
        )
        return x_bq, State(hoods, c_bi, x_bq, norm_b)

    def power_spectrum(self, system: System, centres_b: Int) -> Float:
        """Power spectra, not normalised.

        Parameters
        ----------
        system : System
            Species and pairs of a structure.
        centres_b : Int
            Atoms to describe.

        Returns
        -------
        Float
            Shape (n_centres, n_features), in dscribe's order and units.
        """
        x_bq, state = self.features(system, centres_b)
        return x_bq * state.norm_b[:, None]

    def vjp(self, system: System, centres_b: Int, state: State, g_bq: Float, out_pc: Float) -> None:
        """Write ``sum_q g_bq dx_bq/dD_pc`` into the rows that are pairs of the centres.

        Parameters
        ----------
        system : System
            As given to ``features``.
        centres_b : Int
            As given to ``features``.
        state : State
            What ``features`` returned for them.
        g_bq : Float
            Derivative of something by the features, (n_centres, n_features).
        out_pc : Float
            Shape (n_pairs, 3), of all pairs of the system; rows of other centres are not touched.
        """
        pairs = system.pairs
        _soap_gradients.vjp(
            self._plan,
            self._harmonics,
            system.species_n,
            pairs.j_p,
            pairs.D_pc,
            *state,
            as_float(g_bq),
            out_pc,
        )

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
        x_bq, state = self.features(system, centres_b)
        J_pcq = np.empty((int(state.hoods.offset_b[-1]), 3, self.n_features))
        pairs = system.pairs
        _soap_gradients.jacobian(
            self._plan, self._harmonics, system.species_n, pairs.j_p, pairs.D_pc, *state, J_pcq
        )
        return x_bq, J_pcq


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
