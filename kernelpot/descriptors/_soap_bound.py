"""SOAP for a fixed list of species: tables made once, then compiled code on blocks of centres."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._lanes import LANES
from kernelpot.conventions import Float, Int, System, as_float, as_int
from kernelpot.descriptors import (
    _soap_adjoints,
    _soap_gradients,
    _soap_numba,
    radial,
)
from kernelpot.descriptors._harmonics import harmonics
from kernelpot.descriptors._mixing import radial_mixing
from kernelpot.descriptors._soap_plan import make_plan
from kernelpot.descriptors._spline import rows_and_slopes
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
    mixing : Float | None
        Radial functions of each species that its density is expanded in instead, as combinations
        of the basis: shape (l_max + 1, n_mixed, n_species, n_max). All species are then summed into
        one set of coefficients, and ``compression`` does not count.
    n_contracted : int | None
        To how many functions a fit is to contract (`contracted`).
    centre_similarity : float | None
        How alike a fit is to take unlike centres (`shared_centres`).
    dtype : type[np.floating]
        Precision of tables, coefficients and features.

    Attributes
    ----------
    species : tuple[int, ...]
        Atomic numbers, ascending; ``System.species_n`` indexes this.
    cutoff : float
        Radius of the pair list, angstrom.
    n_features : int
        Length of a feature vector.
    mixing : Float | None
        As given.
    n_contracted : int | None
        As given.
    centre_similarity : float | None
        As given.
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
        mixing: Float | None = None,
        n_contracted: int | None = None,
        centre_similarity: float | None = None,
        dtype: type[np.floating] = np.float64,
    ):
        self._settings = {
            "species": species, "cutoff": cutoff, "n_max": n_max, "l_max": l_max, "sigma": sigma,
            "basis": basis, "smoothing": smoothing, "scaling": scaling, "w0": w0,
            "compression": compression, "weight_z": weight_z, "n_contracted": n_contracted,
            "centre_similarity": centre_similarity,
        }  # fmt: skip
        self.mixing = mixing
        self.n_contracted = n_contracted
        self.centre_similarity = centre_similarity
        # dscribe counts neighbours until their Gaussians have decayed to 1e-3 at the cutoff.
        padded = cutoff + sigma * np.sqrt(-2.0 * np.log(1e-3))
        self.species = species
        self.cutoff = float(padded if smoothing is None else smoothing.reach(cutoff, padded))
        self._weight_arguments = (smoothing, scaling, cutoff)
        self._weight_z = as_float(weight_z)
        if w0 is None:
            w0 = self._weights(np.zeros(1))[0][0]

        self._plan = make_plan(
            n_species=len(species),
            cutoff=cutoff,
            reach=self.cutoff,
            n_max=n_max,
            l_max=l_max,
            sigma=sigma,
            basis=basis,
            w0=w0,
            compression=compression,
            weight_z=self._weight_z,
            mixing=mixing,
            dtype=dtype,
        )
        self._harmonics = harmonics(l_max, dtype)
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

    @property
    def resolution(self) -> tuple[int, int]:
        """Radial functions of all channels together, and the highest degree of the harmonics."""
        return self._plan.n_max, self._plan.l_max

    @property
    def functions(self) -> Float:
        """Radial functions of each species as combinations of the basis, shape
        (l_max + 1, n, n_species, n_max); n counts those of all channels."""
        if self.mixing is not None:
            return self.mixing
        channels_kz = np.eye(len(self.species))
        return radial_mixing(channels_kz, self._settings["n_max"], self._settings["l_max"])

    def mixed(self, mixing: Float) -> BoundSoap:
        """The same with other radial functions of each species.

        Parameters
        ----------
        mixing : Float
            Combinations of the basis, shape (l_max + 1, n_mixed, n_species, n_max).

        Returns
        -------
        BoundSoap
            Another descriptor.
        """
        return BoundSoap(**self._settings, mixing=as_float(mixing))

    def in_single_precision(self) -> BoundSoap:
        """The same with everything but distances in single precision: features, and ``vjp``.

        Returns
        -------
        BoundSoap
            Another descriptor, twice as fast.
        """
        return BoundSoap(**self._settings, mixing=self.mixing, dtype=np.float32)

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
        dtype = plan.table.dtype
        c_bi = np.empty((len(centres_b), n_coefficients), dtype)
        x = np.empty(len(centres_b) * self.n_features + LANES, dtype)
        x_bq = x[:-LANES].reshape(len(centres_b), self.n_features)
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
            x,
            norm_b,
        )
        return x_bq, State(hoods, c_bi, x_bq, norm_b)

    def density_moments(self, system: System, centres_b: Int) -> tuple[Float, Float]:
        """Second moments of the density coefficients and of their derivatives.

        Both are sums over centres and over m, the derivatives by all neighbours' positions.

        Parameters
        ----------
        system : System
            Species and pairs of a structure.
        centres_b : Int
            Atoms whose densities count.

        Returns
        -------
        tuple[Float, Float]
            Of coefficients and of derivatives, each of shape (l_max + 1, n, n), where n counts the
            radial functions of all channels.
        """
        centres_b = as_int(centres_b)
        plan, l_max, pairs = self._plan, self._plan.l_max, system.pairs
        _, state = self.features(system, centres_b)
        shape = (len(centres_b), plan.n_channels, (l_max + 1) ** 2, plan.n_pad)
        c_bmkn = state.c_bi.reshape(shape)[..., : plan.n_max].transpose(0, 2, 1, 3)
        c_bma = c_bmkn.reshape(len(centres_b), (l_max + 1) ** 2, -1)

        hoods = state.hoods
        _, _, p_p, _ = _soap_numba.gather(pairs.first_n, pairs.r_p, centres_b)
        group_p = plan.group_z[system.species_n[pairs.j_p[p_p]]]
        f_pj, df_pj = rows_and_slopes(plan, plan.table_g[group_p], *hoods[2:])
        f_pln, df_pln = (
            a.reshape(len(p_p), l_max + 1, plan.n_pad)[..., : plan.n_max] for a in (f_pj, df_pj)
        )
        moments = np.zeros((2, l_max + 1, c_bma.shape[2], c_bma.shape[2]))
        for ell in range(l_max + 1):
            c_ra = c_bma[:, ell**2 : (ell + 1) ** 2].reshape(-1, c_bma.shape[2])
            moments[0, ell] = c_ra.T @ c_ra
            # The table holds f / r^l: the coefficient is f(r) Y_lm, its gradient f' along r and
            # sqrt(l (l + 1)) f / r across.
            r_p = hoods.r_p[:, None]
            across_pn = r_p ** (ell - 1) * f_pln[:, ell]
            along_pn = r_p**ell * df_pln[:, ell] + ell * across_pn
            for channel in range(plan.n_channels):
                mine = plan.channel_g[group_p] == channel
                block = slice(channel * plan.n_max, (channel + 1) * plan.n_max)
                moments[1, ell, block, block] = along_pn[mine].T @ along_pn[mine]
                moments[1, ell, block, block] += (
                    ell * (ell + 1) * across_pn[mine].T @ across_pn[mine]
                )
        return moments[0], moments[1]

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
            np.ascontiguousarray(g_bq, self._plan.table.dtype),
            out_pc,
        )

    def vjp_many(
        self, system: System, centres_b: Int, state: State, g_bqs: np.ndarray
    ) -> np.ndarray:
        """``vjp`` of many outputs at once, in single precision.

        Parameters
        ----------
        system : System
            As given to ``features``.
        centres_b : Int
            As given to ``features``.
        state : State
            What ``features`` returned for them.
        g_bqs : np.ndarray
            Derivatives of the outputs by the features, (n_centres, n_features, n_outputs).

        Returns
        -------
        np.ndarray
            Of the pairs of the centres, one centre after the other, shape
            (n_pairs of the centres, 3, n_outputs), single precision.
        """
        single = self._single
        n_b, _, n_outputs = g_bqs.shape
        n_s = -(-n_outputs // _soap_adjoints.OUTPUTS) * _soap_adjoints.OUTPUTS
        g_bqs = np.ascontiguousarray(g_bqs, np.float32)
        if n_s > n_outputs:
            g_bqs = np.pad(g_bqs, ((0, 0), (0, 0), (0, n_s - n_outputs)))
        # Rows of coefficients are as long as registers ask for, and these hold more numbers now.
        c_bin = state.c_bi.reshape(n_b, -1, self._plan.n_pad)
        c_bi = np.zeros((n_b, c_bin.shape[1], single._plan.n_pad), np.float32)
        c_bi[..., : self._plan.n_pad] = c_bin
        out = np.empty(int(state.hoods.offset_b[-1]) * 3 * n_s, np.float32)
        _soap_adjoints.vjp_many(
            single._plan,
            single._harmonics,
            system.species_n,
            system.pairs.j_p,
            system.pairs.D_pc,
            state.hoods,
            c_bi.reshape(n_b, -1),
            state.x_bq.astype(np.float32),
            state.norm_b,
            g_bqs.reshape(n_b, -1),
            out,
        )
        return out.reshape(-1, 3, n_s)[..., :n_outputs]

    @functools.cached_property
    def _single(self) -> BoundSoap:
        """Tables in single precision."""
        return self if self._plan.table.dtype == np.float32 else self.in_single_precision()

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
