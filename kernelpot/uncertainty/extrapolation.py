"""Whether environments are within what a model was trained on: four measures on one scale.

They know nothing of labels, noise or weights: they compare unit vectors x of environments, or
distances of atoms, with those of the training structures. Each has a limit, and 1 on the common
scale is that limit, whatever the measure:

mahalanobis
    sqrt((x - m) C^-1 (x - m)) with mean m and covariance C of the training environments, to which a
    small multiple of the unit matrix is added.
grade
    The extrapolation grade of moment tensor potentials and of ACE: the largest coefficient with
    which x is a combination of an active set of training environments (D-optimality).
distance
    sqrt(2 - 2 x . x') to the nearest training environment.
contact
    How much nearer than ever in training two atoms of these species are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, Int, System, as_int
from kernelpot.data import DataError, Structure
from kernelpot.descriptors.protocol import BoundDescriptor, is_linear, n_blocks
from kernelpot.fitted import Fitted
from kernelpot.reduction import samples
from kernelpot.rows import Component, centre_blocks
from kernelpot.selection import system_of
from kernelpot.uncertainty.reach import FEATURE_MEASURES, Reach, reach_of

__all__ = ["MEASURES", "Extrapolation", "Verdicts"]

MEASURES = (*FEATURE_MEASURES, "contact")
"""In the order of the columns of `Verdicts.ratio_nk`."""

_ROUNDING = 1e-6
_CENTRES = 512
"""Whose features are there at once."""
_MEMORY = 2.0**28
"""Bytes that all samples, and the axes of their covariances, may take."""


class Verdicts(NamedTuple):
    """How far the environments of a structure are from those of the training."""

    mahalanobis_n: Float  # standard deviations
    grade_n: Float  # 1 at most within the active set; codes retrain above 2, and stop at 10
    distance_n: Float  # of unit vectors, 0 to sqrt(2)
    ratio_nk: Float  # (n_atoms, 4): `MEASURES` over their limits; 1 is the limit
    reason_n: tuple[str, ...]  # what is above its limit, and by how much; "" for interpolation

    @property
    def extrapolates_n(self) -> np.ndarray:
        """Whether any measure is above its limit.

        Returns
        -------
        np.ndarray
            Shape (n_atoms,), bool.
        """
        return np.array([bool(reason) for reason in self.reason_n], dtype=bool)


class Extrapolation:
    """Measures of extrapolation of a fitted potential; made by `Extrapolation.of`.

    Parameters
    ----------
    component : Component
        The Gaussian process whose features are compared.
    place : int
        Which one of the model's.
    blocks : Sequence[Reach]
        By block of centres.
    shortest_zz : Float
        Shortest distance of two species in training, angstrom; infinite where no two of them were
        within the cutoff.
    """

    def __init__(
        self, component: Component, place: int, blocks: Sequence[Reach], shortest_zz: Float
    ):
        self._component = component
        self._place = place
        self._blocks = tuple(blocks)
        self._shortest_zz = shortest_zz

    @classmethod
    def of(
        cls,
        fitted: Fitted,
        structures: Sequence[Structure],
        *,
        n_sample: int = 2000,
        random_state: int | None = 0,
    ) -> Extrapolation:
        """Measures by the training structures.

        Parameters
        ----------
        fitted : Fitted
            A fit, ``model.fitted_``. Of a sum of processes, the first that has environments.
        structures : Sequence[Structure]
            Those it was fitted to, from `structures_from_atoms`.
        n_sample : int
            Environments of each block of centres (of a species, or of all where they are shared)
            that others are compared with, at most; fewer where they would take more than 256 MiB.
            Of training environments that are not among them a few per cent are called
            extrapolation, by little (silicon of mlearn, 13,000 environments: 3.3 per cent with
            1000, 1.6 with 2000, 0.9 with 4000). Shortest distances are those of all structures.
        random_state : int | None
            Seed of the choice of environments.

        Returns
        -------
        Extrapolation
            Equal for equal seeds.

        Raises
        ------
        ValueError
            If the model is linear, or ``n_sample`` is below 2.
        DataError
            If a species of the model is missing in the structures, or it does not know one.
        """
        if n_sample < 2:
            raise ValueError(f"n_sample must be 2 or more; got {n_sample!r}")
        place = _first_with_environments(fitted)
        bound = fitted.components[place].descriptor
        blocks = n_blocks(bound)
        n_sample = min(n_sample, int(_MEMORY / (16.0 * bound.n_features * blocks)))
        share = max(1, n_sample * blocks // len(bound.species))
        place_z = samples(structures, bound.species, random_state, share)
        empty = [z for z, mine in zip(bound.species, place_z, strict=True) if not len(mine)]
        if empty:
            raise DataError(
                f"there is no {', '.join(chemical_symbols[z] for z in empty)} in the structures, "
                "which the model knows: give those that it was fitted to"
            )
        x_zq, shortest_zz = _pass_over(structures, bound, place_z)
        if blocks == 1:
            x_zq = [np.concatenate(x_zq)]
        found = [reach_of(x_eq) for x_eq in x_zq]
        return cls(fitted.components[place], place, found, shortest_zz)

    @property
    def limits(self) -> dict[str, dict[str, float]]:
        """The limit of each measure of features, by block of centres.

        Returns
        -------
        dict[str, dict[str, float]]
            By chemical symbol, or "all" where species share one block; then by measure.
        """
        names = [chemical_symbols[z] for z in self._component.descriptor.species]
        if len(self._blocks) != len(names):
            names = ["all"]
        return {
            name: dict(zip(MEASURES, block.limits.tolist(), strict=False))
            for name, block in zip(names, self._blocks, strict=True)
        }

    def of_structure(self, structure: Structure) -> Verdicts:
        """How far its environments are from those of the training.

        Parameters
        ----------
        structure : Structure
            Of species that the model knows; labels are not looked at.

        Returns
        -------
        Verdicts
            Atom by atom.

        Raises
        ------
        DataError
            If a species is not known.
        """
        bound = self._component.descriptor
        system = system_of(bound, structure)
        found_nk = np.empty((structure.n_atoms, 3))
        limit_nk = np.empty_like(found_nk)
        for z, centres_b in centre_blocks(self._component, system.species_n, _CENTRES):
            x_bq, _ = bound.features(system, centres_b)
            found_nk[centres_b] = self._blocks[z].measures(x_bq)
            limit_nk[centres_b] = self._blocks[z].limits
        worst_n, contact_n = self._contacts(system)
        ratio_nk = np.column_stack([found_nk / limit_nk, contact_n])
        reasons = tuple(
            self._reason(system, n, ratio_nk[n], found_nk[n], limit_nk[n], worst_n[n])
            for n in range(structure.n_atoms)
        )
        return Verdicts(*found_nk.T, ratio_nk, reasons)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything but the descriptor, which is the model's.

        Returns
        -------
        dict[str, np.ndarray]
            By names that a model file takes.
        """
        arrays = {"component": np.array(self._place), "shortest_zz": self._shortest_zz}
        for z, block in enumerate(self._blocks):
            arrays |= {f"{z}/{name}": np.asarray(value) for name, value in block._asdict().items()}
        return arrays

    @classmethod
    def from_arrays(cls, fitted: Fitted, arrays: Mapping[str, np.ndarray]) -> Extrapolation:
        """The same again.

        Parameters
        ----------
        fitted : Fitted
            The fit that it was made for.
        arrays : Mapping[str, np.ndarray]
            From ``to_arrays``.

        Returns
        -------
        Extrapolation
            With the same measures to the last digit.

        Raises
        ------
        ValueError
            If the arrays are those of another model.
        """
        place = int(arrays["component"])
        component = fitted.components[place] if place < len(fitted.components) else None
        blocks = []
        while f"{len(blocks)}/ridge" in arrays:
            fields = {name: arrays[f"{len(blocks)}/{name}"] for name in Reach._fields}
            blocks.append(Reach(**{**fields, "ridge": float(fields["ridge"])}))
        if (
            component is None
            or len(blocks) != n_blocks(component.descriptor)
            or any(len(one.mean_q) != component.descriptor.n_features for one in blocks)
        ):
            raise ValueError(
                "these arrays are of another model: its features or species are others. Make them "
                "anew with Extrapolation.of"
            )
        return cls(component, place, blocks, np.asarray(arrays["shortest_zz"]))

    def _contacts(self, system: System) -> tuple[Int, Float]:
        """Of each centre the pair that is nearest for its species, and by what factor."""
        pairs, species_n = system.pairs, system.species_n
        shortest_p = self._shortest_zz[species_n[pairs.i_p], species_n[pairs.j_p]]
        factor_p = shortest_p / pairs.r_p
        worst_n, contact_n = np.full(len(species_n), -1, dtype=np.intp), np.zeros(len(species_n))
        order = np.lexsort((factor_p, pairs.i_p))  # centre by centre, the worst pair last
        centres_b = np.flatnonzero(np.diff(pairs.first_n))
        worst_n[centres_b] = order[pairs.first_n[centres_b + 1] - 1]
        contact_n[centres_b] = factor_p[worst_n[centres_b]]
        return worst_n, contact_n

    def _reason(
        self, system: System, n: int, ratio_k: Float, found_k: Float, limit_k: Float, worst: int
    ) -> str:
        """Which measures of an atom are above their limits, the largest first."""
        parts = []
        for k in np.argsort(-ratio_k, kind="stable"):
            if not ratio_k[k] > 1.0 + _ROUNDING:
                break
            if MEASURES[k] == "contact":
                parts.append(self._contact_in_words(system, n, worst))
            else:
                excess = ratio_k[k] - 1.0
                by = f"by {100 * excess:.2g} %" if excess < 1.0 else f"{ratio_k[k]:.3g} times"
                parts.append(f"{MEASURES[k]} {found_k[k]:.4g} above {limit_k[k]:.4g} ({by})")
        return "; ".join(parts)

    def _contact_in_words(self, system: System, n: int, worst: int) -> str:
        pairs, bound = system.pairs, self._component.descriptor
        ends = (system.species_n[n], system.species_n[pairs.j_p[worst]])
        name = "-".join(chemical_symbols[bound.species[z]] for z in ends)
        shortest = self._shortest_zz[ends]
        if not math.isfinite(shortest):
            within = f"none within {bound.cutoff:.3g} A in training"
        else:
            within = f"shortest in training {shortest:.3f} A"
        return f"{name} {pairs.r_p[worst]:.3f} A apart, {within}"


def _first_with_environments(fitted: Fitted) -> int:
    for place, component in enumerate(fitted.components):
        if not is_linear(component.descriptor):
            return place
    raise ValueError(
        "the model is linear in functions of pairs (PairSplines): it has no environments to "
        "compare with. Measures of extrapolation need a process on Soap, alone or in the sum"
    )


def _pass_over(
    structures: Sequence[Structure], bound: BoundDescriptor, place_z: Sequence[np.ndarray]
) -> tuple[list[Float], Float]:
    """Features of the chosen atoms, species by species; shortest distances of all."""
    n_species = len(bound.species)
    shortest_zz = np.full((n_species, n_species), np.inf)
    rows: list[list[Float]] = [[] for _ in range(n_species)]
    for s, structure in enumerate(structures):
        system = system_of(bound, structure)
        pairs, species_n = system.pairs, system.species_n
        np.minimum.at(shortest_zz, (species_n[pairs.i_p], species_n[pairs.j_p]), pairs.r_p)
        for z, place_n in enumerate(place_z):
            centres_b = as_int(place_n[place_n[:, 0] == s, 1])
            for first in range(0, len(centres_b), _CENTRES):
                rows[z].append(bound.features(system, centres_b[first : first + _CENTRES])[0])
    return [np.concatenate(of_species) for of_species in rows], shortest_zz
