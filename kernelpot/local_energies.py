"""Energies of blocks of centres from their features, and what these are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelpot._machine import n_threads, side_by_side
from kernelpot.collapsed import Collapsed, collapse
from kernelpot.conventions import Float, Int, System
from kernelpot.descriptors.projected import projection_pays
from kernelpot.descriptors.protocol import BoundDescriptor
from kernelpot.novelty import KnownEnvironments
from kernelpot.rows import Component, centre_blocks

__all__ = ["Beside", "Block", "LocalEnergies", "add_component", "blocks_of"]

_BLOCK = 256
"""Centres per pass: large enough for BLAS-3, small enough for the second-level cache."""

_BLOCK_BESIDE = 64
"""The same where more than one number is kept for each centre and inducing variable."""


class LocalEnergies(NamedTuple):
    """Energies of centres and their derivatives by the vectors to their neighbours."""

    energies_n: Float  # eV, baseline included
    gradient_pc: Float  # dE/dD of each pair as it stands in the list, eV/angstrom
    novelty_n: Float  # 0 to 1: see `novelty`; NaN where the model has none, or unasked


Beside = Callable[[int, int, System, Int, Float, Any], None]
"""Called with what was computed of some centres: places of the component and of its inducing
variables, species and pairs within the component's cutoff, centres, features, and the state that
the descriptor's adjoint takes. Threads call it beside one another."""


class Block(NamedTuple):
    """What centres of one block are compared with."""

    descriptor: BoundDescriptor
    collapsed: Collapsed


def blocks_of(components: Sequence[Component], weights_m: Float) -> list[list[Block]]:
    """What predictions compare centres with.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    weights_m : Float
        Weights of all inducing variables: by component, species after species.

    Returns
    -------
    list[list[Block]]
        Of each component and block of inducing variables.
    """
    groups = [(group, c.zeta) for c in components for group in c.inducing]
    edges = np.cumsum([len(group.Z_mq) for group, _ in groups])[:-1]
    weights = np.split(weights_m, edges)
    rest = (collapse(g, w, zeta) for (g, zeta), w in zip(groups, weights, strict=True))
    return [
        [
            _on_cheaper_axes(c.descriptor, one, z)
            for z, one in enumerate(itertools.islice(rest, len(c.inducing)))
        ]
        for c in components
    ]


def _on_cheaper_axes(bound: BoundDescriptor, collapsed: Collapsed, z: int) -> Block:
    """Descriptor and weights with which a prediction costs least.

    Fewer axes save memory and time of a fit; where there are few environments, a prediction is
    cheaper with all features, and weights that contain the axes: energies are the same.
    """
    whole = getattr(bound, "unprojected", None)
    n_environments = len(collapsed.alpha_e)
    if whole is None or projection_pays(whole.n_features, bound.n_features, n_environments):
        return Block(bound, collapsed)
    return Block(whole, collapsed._replace(V_jq=bound.lift(collapsed.V_jq, z)))


def add_component(
    component: Component,
    blocks: Sequence[Block],
    known_z: Sequence[KnownEnvironments] | None,
    system: System,
    energies_n: Float,
    novelty_n: Float,
    beside: Callable[[int, System, Int, Float, Any], None] | None,
) -> Float:
    """Add one component's local energies, and its novelty if asked for.

    Parameters
    ----------
    component : Component
        Which one.
    blocks : Sequence[Block]
        What its centres are compared with.
    known_z : Sequence[KnownEnvironments] | None
        Its inducing environments; None where novelty is not wanted, or the kernel is linear.
    system : System
        Species, and pairs within its cutoff.
    energies_n : Float
        To which energies are added, eV.
    novelty_n : Float
        To which novelty is added.
    beside : Callable[[int, System, Int, Float, Any], None] | None
        As `Beside`, of this component.

    Returns
    -------
    Float
        dE/dD of the pairs, eV/angstrom.
    """
    gradient_pc = np.zeros((len(system.pairs.i_p), 3))
    species_n = system.species_n[: system.pairs.n_centres]

    def add(block: tuple[int, Int]) -> None:
        z, centres_b = block
        descriptor, collapsed = blocks[z]
        if len(collapsed.alpha_e):
            x_bq, state = descriptor.features(system, centres_b)
            found = collapsed.energies(x_bq, component.zeta, values=known_z is not None)
            energies_n[centres_b] += found.energies_b
            descriptor.vjp(system, centres_b, state, found.g_bq, gradient_pc)
            if known_z is not None:
                novelty_n[centres_b] += known_z[z].novelty(found.values_be)
            if beside is not None:
                beside(z, system, centres_b, x_bq, state)
        elif known_z is not None:
            novelty_n[centres_b] += known_z[z].share

    # A block for each thread at least: a small structure is divided, too.
    most = _BLOCK if beside is None else _BLOCK_BESIDE
    size = min(most, -(-len(species_n) // n_threads()))
    side_by_side(add, centre_blocks(component, species_n, max(size, 1)))
    return gradient_pc
