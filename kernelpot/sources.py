"""Offsets between sources of labels: for all but one an energy per atom of each species.

Calculations of two kinds (functionals, codes, settings) differ in the zero of energy, for each
species by another amount. Energies are learned on the scale of one source, the reference; those
of another source are explained by the same Gaussian process and a shift for each atom,

    E = sum_i (eps_i + shift of Z_i in this source),      shift ~ N(start, 10 eV)

with one column for each source and species in the rows of energies. Forces and stresses do not
notice, and predictions leave the shifts out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Float, Int, Settings, as_float, as_int
from kernelpot.data import Structure
from kernelpot.data_checks import DataError
from kernelpot.data_records import Outlined
from kernelpot.terms.composition import CompositionBaseline, energies_per_atom, least_squares

__all__ = ["SHIFT_PRIOR", "SourceShifts", "choose_reference", "start_shifts"]

log = logging.getLogger("kernelpot")

SHIFT_PRIOR = 10.0
"""Prior standard deviation of a shift, eV per atom: beyond any difference in binding energy. What
zeros of energy differ by is in the start."""


class SourceShifts(NamedTuple):
    """Energy per atom of each species by which sources differ from the reference."""

    reference: str
    sources: tuple[str, ...]  # all others with energies
    species: tuple[int, ...]
    start_lz: Float  # eV, by source and species: where the prior has its mean
    learned_lz: Float  # eV, what the fit adds

    @property
    def n_columns(self) -> int:
        """Shifts to be learned."""
        return len(self.sources) * len(self.species)

    def counts(self, source: str, numbers_n: Int) -> Float:
        """Row of a total energy: atoms of each species, in the columns of their source.

        Parameters
        ----------
        source : str
            Of the label.
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        Float
            Shape (n_columns,); zero for the reference and for sources that are not known.
        """
        counts_lz = np.zeros((len(self.sources), len(self.species)))
        if source in self.sources:
            counts_lz[self.sources.index(source)] = [np.sum(numbers_n == z) for z in self.species]
        return counts_lz.ravel()

    def start_of(self, source: str, numbers_n: Int) -> float:
        """What is taken off a total energy before the rest of the shift is learned.

        Parameters
        ----------
        source : str
            Of the label.
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        float
            eV.
        """
        return float(self.counts(source, numbers_n) @ self.start_lz.ravel())

    def energy_of(self, source: str, numbers_n: Int) -> float:
        """Energy of a structure in a source less that in the reference.

        Parameters
        ----------
        source : str
            Of the label; one that is not known is taken for the reference.
        numbers_n : Int
            Atomic numbers.

        Returns
        -------
        float
            eV.
        """
        return float(self.counts(source, numbers_n) @ (self.start_lz + self.learned_lz).ravel())

    def to_reference(self, structures: Sequence[Structure]) -> list[Structure]:
        """Structures with their energies on the scale of the reference.

        Parameters
        ----------
        structures : Sequence[Structure]
            Of any sources.

        Returns
        -------
        list[Structure]
            In the same order.
        """
        return [
            dataclasses.replace(s, energy=s.energy - self.energy_of(s.source, s.numbers_n))
            if s.source in self.sources
            else s
            for s in structures
        ]

    def with_learned(self, values_k: Float) -> SourceShifts:
        """The same with what a fit found for its columns.

        Parameters
        ----------
        values_k : Float
            Shape (n_columns,), eV.

        Returns
        -------
        SourceShifts
            Complete.
        """
        return self._replace(learned_lz=values_k.reshape(self.start_lz.shape).copy())

    def check(self, structures: Sequence[Structure]) -> None:
        """Refuse energies of a source whose zero of energy the fit has not learned.

        Parameters
        ----------
        structures : Sequence[Structure]
            New ones.

        Raises
        ------
        DataError
            If there is one; forces and stresses may be of any source.
        """
        known = (self.reference, *self.sources)
        for s in structures:
            if s.source not in known and np.isfinite(s.energy):
                raise DataError(
                    f"{s.name} has an energy of the source {s.source!r}, but the model was fitted "
                    f"to energies of {_named(known)}: the shift between their zeros of energy is "
                    "not known. Fit anew with all structures; or, if its energies are on the scale "
                    f"of the reference, say so by atoms.info['source'] = {self.reference!r}."
                )

    def by_symbol(self) -> dict[str, dict[str, float]]:
        """Shifts by source and chemical symbol.

        Returns
        -------
        dict[str, dict[str, float]]
            eV per atom.
        """
        symbols = [chemical_symbols[z] for z in self.species]
        total_lz = (self.start_lz + self.learned_lz).tolist()
        return {
            source: dict(zip(symbols, shift_z, strict=True))
            for source, shift_z in zip(self.sources, total_lz, strict=True)
        }

    def to_settings(self) -> Settings:
        """JSON-ready settings from which `from_settings` makes equal shifts.

        Returns
        -------
        Settings
            The fields by name.
        """
        return {
            "reference": self.reference,
            "sources": list(self.sources),
            "species": [int(z) for z in self.species],
            "start": self.start_lz.tolist(),
            "learned": self.learned_lz.tolist(),
        }

    @classmethod
    def from_settings(cls, settings: Settings) -> SourceShifts:
        """Make the shifts that `to_settings` described.

        Parameters
        ----------
        settings : Settings
            The fields by name.

        Returns
        -------
        SourceShifts
            Equal to those described.
        """
        sources, species = tuple(settings["sources"]), tuple(settings["species"])
        shape = (len(sources), len(species))
        values = (as_float(settings[name]).reshape(shape) for name in ("start", "learned"))
        return cls(settings["reference"], sources, species, *values)


def choose_reference(structures: Sequence[Outlined], wanted: str | None) -> str:
    """The source on whose scale energies are predicted: the one that is named, or the largest.

    Parameters
    ----------
    structures : Sequence[Outlined]
        The training structures.
    wanted : str | None
        Name of a source; None for the one with most energies.

    Returns
    -------
    str
        Its name.

    Raises
    ------
    DataError
        If no structure is of the source that is named, or none of them has an energy.
    """
    labelled = [s for s in structures if np.isfinite(s.energy)] or structures
    counts = Counter(s.source for s in labelled)
    if wanted is None:
        return counts.most_common(1)[0][0]
    if wanted not in counts:
        every = sorted({s.source for s in structures})
        what = "has no energies" if wanted in every else "is the source of no structure"
        raise DataError(
            f"reference_source {wanted!r} {what}; structures with energies have "
            f"info['source'] = {_named(sorted(counts))}."
        )
    return wanted


def start_shifts(
    structures: Sequence[Outlined],
    baseline: CompositionBaseline,
    reference: str,
) -> SourceShifts:
    """Where the shifts of the other sources are expected: what the baseline leaves, on average.

    Parameters
    ----------
    structures : Sequence[Outlined]
        The training structures.
    baseline : CompositionBaseline
        Of the reference.
    reference : str
        Name of the reference.

    Returns
    -------
    SourceShifts
        With nothing learned yet; empty where there is but one source with energies.
    """
    labelled = [s for s in structures if np.isfinite(s.energy) and s.source != reference]
    sources = tuple(sorted({s.source for s in labelled}))
    species, energies_z = as_int(baseline.numbers), as_float(baseline.energies)
    start_lz = np.zeros((len(sources), len(species)))
    for k, source in enumerate(sources):
        mine = [s for s in labelled if s.source == source]
        start_lz[k] = least_squares(mine, species, energies_per_atom(mine, species, energies_z))
    return SourceShifts(reference, sources, baseline.numbers, start_lz, np.zeros_like(start_lz))


def _named(sources: Sequence[str]) -> str:
    return ", ".join(map(repr, sources))
