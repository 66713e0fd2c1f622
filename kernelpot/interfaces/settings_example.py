"""The settings file that ``kernelpot fit --example`` prints."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from kernelpot.interfaces.settings_schema import LAYOUT
from kernelpot.options import SETTLED

__all__ = ["example", "lines_of", "sum_of_descriptors"]

_GIVEN = {"train": "train.xyz"}

_SUM = (
    "# For a sum of Gaussian processes write [[descriptor]] instead of [descriptor], with each of",
    "# the descriptors under a [[descriptor]] of its own. Functions of distance alone:",
    "# [[descriptor]]",
)


def example() -> str:
    """A settings file with every key, its meaning and its default.

    Returns
    -------
    str
        TOML; keys without a default are commented out.
    """
    lines = ["# Settings of `kernelpot fit`: every key with its default."]
    sections = {"data": LAYOUT.sections["data"], "descriptor": LAYOUT.tables["descriptor"]["soap"]}
    for name, section in (sections | LAYOUT.sections).items():
        lines += ["", f"[{name}]", *lines_of(section, given=_GIVEN)]
        if name == "descriptor":
            lines += ["", *sum_of_descriptors()]
    return "\n".join(lines) + "\n"


def sum_of_descriptors() -> list[str]:
    """How sums are written.

    Returns
    -------
    list[str]
        Comments.
    """
    of_pairs = lines_of(LAYOUT.tables["descriptor"]["pairs"], without=SETTLED)
    return [*_SUM, *("# " + line for line in of_pairs)]


def lines_of(
    section: type[BaseModel],
    without: Collection[str] = (),
    given: Mapping[str, Any] | None = None,
) -> list[str]:
    """Keys of a section, each after a comment that says what it is.

    Parameters
    ----------
    section : type[BaseModel]
        The section.
    without : Collection[str]
        Keys that are left out.
    given : Mapping[str, Any] | None
        Values instead of the defaults, by key.

    Returns
    -------
    list[str]
        TOML; keys without a value are commented out.
    """
    given = given or {}
    lines = []
    for key, field in section.model_fields.items():
        if key in without:
            continue
        value = given.get(key, None if field.is_required() else field.default)
        line = f"# {key} =" if value is None else f"{key} = {_toml(value)}"
        lines += [f"# {field.description}", line]
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)
