"""Novelty: what of an environment's local energy the inducing environments cannot tell.

    novelty_i = 1 - k_ie K_ee^-1 k_ei,        k_ie = (x_i . x_e)^zeta

is the prior variance of the local energy that is left, in units of it, when the energies of all
inducing environments are known: 0 for one of them, 1 for an environment that has nothing in common
with any. It knows nothing of tangents, labels or noise. For a sum of processes it is the share of
the prior variance of all that are not linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg

from kernelpot.conventions import Float, Int, System
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.kernels import power_kernel
from kernelpot.gp.lapack import trmm
from kernelpot.gp.whitening import whiten_blocks
from kernelpot.neighbours import within
from kernelpot.rows import Component, centre_blocks, collect

__all__ = ["KnownEnvironments", "Novelty", "known_environments", "novelty_with_slopes"]

_BLOCK = 256
"""Environments at a time."""

_RANK_TOLERANCE = 3e-5
"""Environments that the others know to this share of the prior variance are left out: novelty is
exact to that, keeps its digits, and is a third cheaper for silicon."""


class Novelty(NamedTuple):
    """Novelty of one structure, and how it changes."""

    novelty_n: Float  # of each centre
    gradient_nc: Float  # of its weighted sum, by positions, 1/angstrom
    strain_cd: Float  # and by strain


class KnownEnvironments(NamedTuple):
    """The inducing environments of one block of centres, whitened."""

    x_kq: Float
    places_k: Int  # among all inducing environments of the block
    W_kk: Float  # inverse of the lower Cholesky factor of their prior covariance
    zeta: int
    share: float  # of the process in the prior variance of a local energy

    def novelty(self, values_be: Float) -> Float:
        """Share of the prior variance that is left, times that of the process.

        Parameters
        ----------
        values_be : Float
            Kernel of some environments with all inducing ones, (x_b . x_e)^zeta.

        Returns
        -------
        Float
            Shape (n_block,), from 0 to `share`.
        """
        phi_bk = np.take(values_be, self.places_k, axis=1)
        # With the inverse: a product is twice as fast as a solve.
        trmm(self.W_kk, phi_bk.T)
        return self.share * np.maximum(1.0 - np.einsum("bk,bk->b", phi_bk, phi_bk), 0.0)

    def slopes(self, x_bq: Float, weights_b: Float) -> tuple[Float, Float]:
        """The same, and its derivatives by the features.

        Parameters
        ----------
        x_bq : Float
            Features of some environments.
        weights_b : Float
            Factor of each environment's novelty.

        Returns
        -------
        tuple[Float, Float]
            Novelty without the weights, shape (n_block,); derivatives of the weighted sum, shape
            (n_block, n_features).
        """
        value_bk, first_bk, _ = power_kernel(x_bq @ self.x_kq.T, self.zeta)
        solved_bk = np.ascontiguousarray(value_bk)
        trmm(self.W_kk, solved_bk.T)
        left_b = np.maximum(1.0 - np.einsum("bk,bk->b", solved_bk, solved_bk), 0.0)
        trmm(self.W_kk, solved_bk.T, transposed=True)
        slope_bk = -2.0 * self.share * weights_b[:, None] * solved_bk * first_bk
        return self.share * left_b, slope_bk @ self.x_kq


def known_environments(
    components: Sequence[Component], delta_g: Sequence[float]
) -> list[list[KnownEnvironments] | None]:
    """Inducing environments of all blocks of centres.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    delta_g : Sequence[float]
        Their prior amplitudes, eV.

    Returns
    -------
    list[list[KnownEnvironments] | None]
        Of each component and block; None for linear kernels, which do not compare environments.
    """
    total = sum(delta**2 for one, delta in zip(components, delta_g, strict=True) if one.zeta > 1)
    return [
        [_known(group, one.zeta, delta**2 / total) for group in one.inducing]
        if one.zeta > 1
        else None
        for one, delta in zip(components, delta_g, strict=True)
    ]


def _known(group: Inducing, zeta: int, share: float) -> KnownEnvironments:
    x_eq = group.x_eq
    K_ee = power_kernel(x_eq @ x_eq.T, zeta)[0]
    (block,) = whiten_blocks([K_ee], _RANK_TOLERANCE).blocks
    W_kk = scipy.linalg.solve_triangular(block.L_kk, np.eye(len(block.L_kk)), lower=True)
    x_kq = np.ascontiguousarray(x_eq[block.pivots_k])
    return KnownEnvironments(x_kq, block.pivots_k, np.asfortranarray(W_kk), zeta, share)


def novelty_with_slopes(
    components: Sequence[Component],
    known: Sequence[list[KnownEnvironments] | None],
    system: System,
    weights_n: Float,
) -> Novelty:
    """Novelty of each centre, and the derivatives of its weighted sum.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    known : Sequence[list[KnownEnvironments] | None]
        Their inducing environments.
    system : System
        Species, and pairs within the longest cutoff.
    weights_n : Float
        Factor of each centre's novelty in the sum.

    Returns
    -------
    Novelty
        Derivatives by the positions of all atoms.
    """
    pairs, species_n = system.pairs, system.species_n
    novelty_n = np.zeros(pairs.n_centres)
    gradient_pc = np.zeros((len(pairs.i_p), 3))
    for component, known_z in zip(components, known, strict=True):
        if known_z is None:
            continue
        descriptor = component.descriptor
        near, index_p = within(pairs, descriptor.cutoff)
        seen, near_pc = System(species_n, near), np.zeros((len(near.i_p), 3))
        for z, centres_b in centre_blocks(component, species_n[: near.n_centres], _BLOCK):
            x_bq, state = descriptor.features(seen, centres_b)
            found_b, g_bq = known_z[z].slopes(x_bq, weights_n[centres_b])
            novelty_n[centres_b] += found_b
            descriptor.vjp(seen, centres_b, state, g_bq, near_pc)
        gradient_pc[slice(None) if index_p is None else index_p] += near_pc
    forces_nc, strain_ncd = collect(
        gradient_pc, pairs.i_p, pairs.j_p, pairs.D_pc, len(species_n), pairs.n_centres
    )
    return Novelty(novelty_n, -forces_nc, strain_ncd.sum(axis=0))
