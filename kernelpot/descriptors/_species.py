"""Species as people name them: chemical symbols or atomic numbers, in any order."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from ase.data import atomic_numbers, chemical_symbols

__all__ = ["ascending", "atomic_number", "by_species", "is_real"]


def atomic_number(who: str, key: str | int) -> int:
    """Atomic number of a species.

    Parameters
    ----------
    who : str
        Whom an error speaks for.
    key : str | int
        Chemical symbol or atomic number.

    Returns
    -------
    int
        The atomic number.

    Raises
    ------
    ValueError
        If there is no such element.
    """
    if isinstance(key, str) and key in atomic_numbers:
        return atomic_numbers[key]
    if isinstance(key, numbers.Integral) and 0 < key < len(chemical_symbols):
        return int(key)
    raise ValueError(f"{who}: {key!r} is neither a chemical symbol nor an atomic number")


def ascending(who: str, species: Iterable[int | str]) -> tuple[int, ...]:
    """Distinct atomic numbers in ascending order.

    Parameters
    ----------
    who : str
        Whom an error speaks for.
    species : Iterable[int | str]
        Chemical symbols or atomic numbers.

    Returns
    -------
    tuple[int, ...]
        At least one number.

    Raises
    ------
    ValueError
        If there are none, or one is no element.
    """
    numbers_z = tuple(sorted({atomic_number(who, key) for key in species}))
    if not numbers_z:
        raise ValueError(f"{who}: no species; give the atomic numbers of the elements: (1, 6)")
    return numbers_z


def by_species(
    who: str, parameter: str, given: Mapping[str | int, Any], species: tuple[int, ...]
) -> dict[int, Any]:
    """A parameter that has an entry for every species.

    Parameters
    ----------
    who : str
        Whom an error speaks for.
    parameter : str
        Its name.
    given : Mapping[str | int, Any]
        By chemical symbol or atomic number; there may be more than needed.
    species : tuple[int, ...]
        Atomic numbers that must be there.

    Returns
    -------
    dict[int, Any]
        All entries, by atomic number.

    Raises
    ------
    ValueError
        If a species has no entry, or there is no such element.
    """
    found = {atomic_number(who, key): value for key, value in given.items()}
    missing = [chemical_symbols[z] for z in species if z not in found]
    if missing:
        raise ValueError(
            f"{who}: {parameter} has no entry for {', '.join(missing)}; it names "
            f"{', '.join(chemical_symbols[z] for z in found)}"
        )
    return found


def is_real(value: Any) -> bool:
    """Whether a parameter is a real number, and not a truth value.

    Parameters
    ----------
    value : Any
        What the user gave.

    Returns
    -------
    bool
        Also true of NumPy's numbers, and of infinity.
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
