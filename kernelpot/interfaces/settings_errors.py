"""Faults of settings in words: the key and its place, what was given, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

__all__ = ["Layout", "as_tables", "explain", "place_of"]

_LENGTHS = {
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
}
"""Words for what pydantic says of lists, by its name of the fault."""

Fields = Mapping[str, type[BaseModel]]


class Layout(NamedTuple):
    """What a settings file may hold."""

    sections: Fields  # by name, in the order of the file, without those of kinds
    tables: Mapping[str, Fields]  # sections that are lists of tables: by name, then by kind
    needed: Mapping[str, str]  # at least, of sections that must be there

    @property
    def names(self) -> list[str]:
        """Of all sections; those of kinds, which may borrow keys from others, last."""
        return [*self.sections, *self.tables]

    def known(self, name: str) -> set[str]:
        """Keys of a section, or of its tables of any kind.

        Parameters
        ----------
        name : str
            Of the section.

        Returns
        -------
        set[str]
            Their names.
        """
        models = self.tables[name].values() if name in self.tables else [self.sections[name]]
        return {key for model in models for key in model.model_fields}

    def homes(self, key: str) -> list[str]:
        """Sections that have a key.

        Parameters
        ----------
        key : str
            Its name.

        Returns
        -------
        list[str]
            Names of sections.
        """
        return [name for name in self.names if key in self.known(name)]


def place_of(index: int, tables: Any, name: str = "descriptor") -> str:
    """How errors name a table of a section of kinds.

    Parameters
    ----------
    index : int
        Which one.
    tables : Any
        All of them, in a list.
    name : str
        Of the section.

    Returns
    -------
    str
        In square brackets; numbered from 1 where there are several.
    """
    return f"[{name}]" if len(tables) == 1 else f"[{name} {index + 1}]"


def as_tables(raw: Mapping[str, Any], defaults: Mapping[str, str | None]) -> dict[str, Any]:
    """Sections of kinds as lists of tables, each with its kind.

    Parameters
    ----------
    raw : Mapping[str, Any]
        Sections by name.
    defaults : Mapping[str, str | None]
        Names of sections of kinds, and the kind of a table that does not say it.

    Returns
    -------
    dict[str, Any]
        All sections; what is neither a table nor a list of tables stays as it is.

    Raises
    ------
    ValueError
        If a list is empty.
    """
    found = dict(raw)
    for name in defaults.keys() & raw.keys():
        tables = [raw[name]] if isinstance(raw[name], Mapping) else raw[name]
        if isinstance(tables, list):
            if not tables:
                raise ValueError(f"{name}: an empty list was given; allowed: one table or more")
            kind = {"kind": defaults[name]} if defaults[name] is not None else {}
            tables = [{**kind, **one} if isinstance(one, Mapping) else one for one in tables]
        found[name] = tables
    return found


def explain(error: ValidationError, raw: Mapping[str, Any], layout: Layout) -> list[str]:
    """One line per faulty key; pydantic reports each branch of a union by itself.

    Parameters
    ----------
    error : ValidationError
        What pydantic found.
    raw : Mapping[str, Any]
        What was checked: sections by name, those of kinds as lists of tables.
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
        # A key of a table is at (its section, which one, its kind, key).
        depth = 4 if loc[0] in layout.tables else 2
        faults.setdefault(loc[:depth], []).append({**fault, "within": loc[depth:]})
    return [_explain(loc, found, raw, layout) for loc, found in faults.items()]


def _explain(loc: tuple[Any, ...], found: list[Any], raw: Mapping[str, Any], layout: Layout) -> str:
    name, fault = str(loc[0]), found[0]["type"]
    if len(loc) == 1:
        return _explain_section(name, fault, raw, layout)
    if name not in layout.tables:
        section = layout.sections[name]
        return _explain_key(f"[{name}]", str(loc[1]), section, raw[name], found, layout)
    tables, index, of_kind = raw[name], loc[1], layout.tables[name]
    place, table = place_of(index, tables, name), tables[index]
    if len(loc) > 3:
        return _explain_key(place, str(loc[3]), of_kind[loc[2]], table, found, layout)
    if not isinstance(table, Mapping):
        return f"{name}: {table!r} was given; allowed: a section {place} with keys"
    kinds = " or ".join(map(repr, of_kind))
    if "kind" not in table:
        return f"{place} kind: missing; allowed: {kinds}"
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
    if found[0]["type"] == "extra_forbidden" and not found[0]["within"]:
        return f"{place} {key}: there is no such key; {_nearest_key(section, key, layout)}"
    if found[0]["type"] == "missing":
        return f"{place} {key}: missing ({known[key].description})"
    allowed = " or ".join(dict.fromkeys(_allowed(fault) for fault in found))
    return f"{place} {key}: {given[key]!r} was given; allowed: {allowed} ({known[key].description})"


def _explain_section(name: str, fault: str, raw: Mapping[str, Any], layout: Layout) -> str:
    names = layout.names
    if name in names:
        if fault == "missing":
            return f"[{name}] is missing; needed is at least {layout.needed[name]}"
        return f"{name}: {raw[name]!r} was given; allowed: a section [{name}] with keys"
    homes = layout.homes(name)
    if homes:
        return f"{name} stands outside of its section: put it under [{homes[0]}]"
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"the nearest is [{near[0]}]" if near else f"there are {', '.join(sorted(names))}"
    return f"[{name}]: there is no such section; {hint}"


def _nearest_key(section: type[BaseModel], key: str, layout: Layout) -> str:
    for of_kind in layout.tables.values():
        kinds = [kind for kind, other in of_kind.items() if key in other.model_fields]
        if kinds and section in of_kind.values():
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
    if fault["type"] in _LENGTHS:
        words = _LENGTHS[fault["type"]].format(**fault["ctx"])
    words = words.replace("Extra inputs are not permitted", "there is no such key")
    return f"{within}: {words}" if within else words


def _is_type_name(part: str) -> bool:
    """Whether pydantic put the name of a branch of a union into the place of a key."""
    return part.removeprefix("constrained-") in {"float", "int", "str"} or "[" in part
