"""Memory of a fit: the budget as people write it, and the sizes of what may be done in pieces."""

from __future__ import annotations

import math
import numbers
import re
from typing import NamedTuple

__all__ = ["Room", "in_words", "parse_memory"]

_UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS |= {"KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40}


class Room(NamedTuple):
    """What a fit may take for the parts of its work that can be done in smaller pieces."""

    block: float = 2.0**27  # bytes: derivatives of some centres, their products
    n_buffer: int = 2048  # label rows that are collected before they are reduced
    candidates: float = 2.0**29  # bytes: features of the candidates for inducing environments

    def smaller(self) -> Room | None:
        """Half of everything.

        Returns
        -------
        Room | None
            None where smaller pieces would no longer be worked on at full speed.
        """
        if self.n_buffer <= _LEAST.n_buffer:
            return None
        return Room(self.block / 2.0, self.n_buffer // 2, self.candidates / 2.0)


_LEAST = Room(2.0**23, 128, 2.0**25)
"""With a buffer of 128 rows the QR factorisation is slower by a third than with 2048; with fewer
candidates the choice of environments suffers."""


def parse_memory(given: float | str | None) -> float | None:
    """Bytes of a budget.

    Parameters
    ----------
    given : float | str | None
        Bytes, or a number with its unit: "2GB", "1500 MB", "1.5 GiB".

    Returns
    -------
    float | None
        Bytes; None for None.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if given is None:
        return None
    value = math.nan
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        value = float(given)
    elif isinstance(given, str):
        found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-z]*)\s*", given, re.IGNORECASE)
        unit = (found.group(2).upper() or "B") if found else ""
        if unit in _UNITS:
            try:
                value = float(found.group(1)) * _UNITS[unit]
            except ValueError:
                value = math.nan
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(
            "memory must be a number of bytes, or a number with a unit such as '2GB', '500MB' or "
            f"'1.5GiB'; got {given!r}"
        )
    if value < 1e7:
        raise ValueError(
            f"memory={given!r} are {in_words(value)}, in which not even Python runs; give a unit, "
            "such as '2GB'"
        )
    return value


def in_words(n_bytes: float) -> str:
    """Bytes in a unit that suits them.

    Parameters
    ----------
    n_bytes : float
        How many.

    Returns
    -------
    str
        Such as "1.25 GB" or "340 MB".
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"
