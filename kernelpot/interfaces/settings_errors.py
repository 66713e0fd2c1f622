"""Faults of settings in words: the key and its place, what was given, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

__all__ = ["Layout", "explain", "place_of"]

Fields = Mapping[str, type[BaseModel]]


class Layout(NamedTuple):
    """What a settings file may hold."""

    sections: Fields  # by name, in the order of the file, without those of descriptors
    kinds: Fields  # tables of descriptors, by their kind

    def known(self, name: str) -> set[str]:
        """Keys of a section, or of descriptors of any kind.

        Parameters
        ----------
        name : str
            Of the section.

        Returns
        -------
        set[str]
            Their names.
        """
        models = self.kinds.values() if name == "descriptor" else [self.sections[name]]
        return {key for model in models for key in model.model_fields}

    def homes(self, key: str) -> list[str]:
        """Sections that have a key; those of descriptors, which may borrow from others, last.

        Parameters
        ----------
        key : str
            Its name.

        Returns
        -------
        list[str]
            Names of sections.
        """
        return [name for name in (*self.sections, "descriptor") if key in self.known(name)]


def place_of(index: int, tables: Any) -> str:
    """How errors name a table of a descriptor.

    Parameters
    ----------
    index : int
        Which one.
    tables : Any
        All of them, in a list.

    Returns
    -------
    str
        In square brackets; numbered from 1 where there are several.
    """
    return "[descriptor]" if len(tables) == 1 else f"[descriptor {index + 1}]"


def explain(error: ValidationError, raw: Mapping[str, Any], layout: Layout) -> list[str]:
    """One line per faulty key; pydantic reports each branch of a union by itself.

    Parameters
    ----------
    error : ValidationError
        What pydantic found.
    raw : Mapping[str, Any]
        What was checked: sections by name, descriptors as a list of tables with their kinds.
    layout : Layout
        What there may be.

    Returns
    -------
    list[str]
        In the order in which they were found.
    """
    faults: dict[tuple[Any, ...], list[Any]] = {}
    for fault in error.errors(include_url=False):
        loc = fault["loc"]
        # A descriptor's key is at ("descriptor", which one, its kind, key).
        depth = 4 if loc[0] == "descriptor" else 2
        faults.setdefault(loc[:depth], []).append({**fault, "within": loc[depth:]})
    return [_explain(loc, found, raw, layout) for loc, found in faults.items()]


def _explain(loc: tuple[Any, ...], found: list[Any], raw: Mapping[str, Any], layout: Layout) -> str:
    name, fault = str(loc[0]), found[0]["type"]
    if len(loc) == 1:
        return _explain_section(name, fault, raw, layout)
    if name != "descriptor":
        section = layout.sections[name]
        return _explain_key(f"[{name}]", str(loc[1]), section, raw[name], found, layout)
    tables, index = raw[name], loc[1]
    place, table = place_of(index, tables), tables[index]
    if len(loc) > 3:
        return _explain_key(place, str(loc[3]), layout.kinds[loc[2]], table, found, layout)
    if not isinstance(table, Mapping):
        return f"{name}: {table!r} was given; allowed: a section {place} with keys"
    kinds = " or ".join(map(repr, layout.kinds))
    return f"{place} kind: {table['kind']!r} was given; allowed: {kinds}"


def _explain_key(
    place: str,
    key: str,
    section: type[BaseModel],
    given: Mapping[str, Any],
    found: list[Any],
    layout: Layout,
) -> str:
    known = section.model_fields
    if found[0]["type"] == "extra_forbidden":
        return f"{place} {key}: there is no such key; {_nearest_key(section, key, layout)}"
    if found[0]["type"] == "missing":
        return f"{place} {key}: missing; needed are {known[key].description}"
    allowed = " or ".join(dict.fromkeys(_allowed(fault) for fault in found))
    return f"{place} {key}: {given[key]!r} was given; allowed: {allowed} ({known[key].description})"


def _explain_section(name: str, fault: str, raw: Mapping[str, Any], layout: Layout) -> str:
    names = [*layout.sections, "descriptor"]
    if name in names:
        if fault == "missing":
            return f"[{name}] is missing; needed is at least {name}.train"
        return f"{name}: {raw[name]!r} was given; allowed: a section [{name}] with keys"
    homes = layout.homes(name)
    if homes:
        return f"{name} stands outside of its section: put it under [{homes[0]}]"
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"the nearest is [{near[0]}]" if near else f"there are {', '.join(sorted(names))}"
    return f"[{name}]: there is no such section; {hint}"


def _nearest_key(section: type[BaseModel], key: str, layout: Layout) -> str:
    if section in layout.kinds.values():
        kinds = [kind for kind, other in layout.kinds.items() if key in other.model_fields]
        if kinds:
            return f'it belongs to kind = "{kinds[0]}"'
    homes = layout.homes(key)
    if homes:
        return f"it belongs under [{homes[0]}]"
    known = list(section.model_fields)
    near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
    return f"the nearest is {near[0]}" if near else f"there are {', '.join(known)}"


def _allowed(fault: Mapping[str, Any]) -> str:
    within = ".".join(str(part) for part in fault["within"] if not _is_type_name(str(part)))
    words = str(fault["msg"]).removeprefix("Input should be ")
    return f"{within}: {words}" if within else words


def _is_type_name(part: str) -> bool:
    """Whether pydantic put the name of a branch of a union into the place of a key."""
    return part.removeprefix("constrained-") in {"float", "int", "str"} or "[" in part
