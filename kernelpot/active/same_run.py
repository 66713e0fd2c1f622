"""Whether a run that is taken up again is the one that was begun."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ase import Atoms

from kernelpot.active.journal import JournalError
from kernelpot.active.structure_json import structure_from_json, structure_hash
from kernelpot.potential import KernelPotential

__all__ = ["check_same", "in_words", "model_in_words"]


def in_words(value: Any) -> str:
    """Its repr, without what differs from process to process, and with all of structures.

    Parameters
    ----------
    value : Any
        A setting.

    Returns
    -------
    str
        Without addresses in memory; structures by their hashes.
    """
    if isinstance(value, Atoms):
        return f"Atoms({value.symbols}, {structure_hash(value)})"
    if isinstance(value, tuple) and any(isinstance(one, Atoms) for one in value):
        return f"({', '.join(map(in_words, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [one.name for one in dataclasses.fields(value) if one.repr]
        inner = ", ".join(f"{name}={in_words(getattr(value, name))}" for name in fields)
        return f"{type(value).__qualname__}({inner})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def model_in_words(model: KernelPotential) -> dict[str, str]:
    """Parameters on which the numbers of a model depend.

    Parameters
    ----------
    model : KernelPotential
        Fitted or not.

    Returns
    -------
    dict[str, str]
        By name.
    """
    parameters = model.get_params(deep=False)
    del parameters["progress"]
    return {name: in_words(value) for name, value in parameters.items()}


def check_same(
    folder: Path,
    before: dict[str, Any],
    now: dict[str, Any],
    may_change: Collection[str] = (),
) -> None:
    """Refuse other settings than those with which a run was begun.

    Parameters
    ----------
    folder : Path
        Of the run.
    before : dict[str, Any]
        From its journal.
    now : dict[str, Any]
        JSON-ready.
    may_change : Collection[str]
        Names of settings that may be others.

    Raises
    ------
    JournalError
        With the first that differs.
    """
    for name, value in now.items():
        # What the journal has not at all came with a later version.
        if name in may_change or name not in before:
            continue
        # As text, since NaN is not equal to itself and JSON knows no tuples.
        if json.dumps(before[name]) == json.dumps(value):
            continue
        place, was, is_now = _first_difference(name, before[name], value)
        raise JournalError(
            f"The run in {folder} has another {place}: {was}, now {is_now}. Resume it with its own"
            " settings, or begin another run in another folder."
        )


def _first_difference(name: str, was: Any, now: Any) -> tuple[str, str, str]:
    """Where two settings differ first, and how, for people."""
    if isinstance(was, dict) and isinstance(now, dict):
        if "arrays" in was and "arrays" in now:
            before, after = _structure(was), _structure(now)
            return name, before, f"{after} with other momenta" if before == after else after
        for key in now:
            if json.dumps(was.get(key)) != json.dumps(now[key]):
                return _first_difference(f"{key} of the {name}", was.get(key), now[key])
    if isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            return name, f"{len(was)} of them", str(len(now))
        for k, (one, other) in enumerate(zip(was, now, strict=True)):
            if json.dumps(one) != json.dumps(other):
                return _first_difference(f"{name} {k + 1}", one, other)
    return name, *_apart(str(was), str(now))


def _structure(record: dict[str, Any]) -> str:
    atoms = structure_from_json(record)
    return f"{atoms.get_chemical_formula()} ({structure_hash(atoms)})"


def _apart(was: str, now: str) -> tuple[str, str]:
    """Long texts from where they begin to differ."""
    same = next((k for k, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), 0)
    first = max(same - 30, 0) if max(len(was), len(now)) > 120 else 0
    dots = "..." * bool(first)
    return dots + was[first : first + 120], dots + now[first : first + 120]
