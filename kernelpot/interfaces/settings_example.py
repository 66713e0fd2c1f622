"""The settings file that ``kernelpot fit --example`` prints."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from kernelpot.interfaces.settings_schema import LAYOUT
from kernelpot.options import SETTLED

__all__ = ["example"]

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
    sections = {"data": LAYOUT.sections["data"], "descriptor": LAYOUT.kinds["soap"]}
    for name, section in (sections | LAYOUT.sections).items():
        lines += ["", f"[{name}]", *_lines_of(section)]
        if name == "descriptor":
            of_pairs = _lines_of(LAYOUT.kinds["pairs"], without=SETTLED)
            lines += ["", *_SUM, *("# " + line for line in of_pairs)]
    return "\n".join(lines) + "\n"


def _lines_of(section: type[BaseModel], without: Collection[str] = ()) -> list[str]:
    lines = []
    for key, field in section.model_fields.items():
        if key in without:
            continue
        default = "train.xyz" if field.is_required() else field.default
        value = f"# {key} =" if default is None else f"{key} = {_toml(default)}"
        lines += [f"# {field.description}", value]
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)
