"""The settings file of ``kernelpot fit``: read, checked with errors that name the key, and made
into a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kernelpot.descriptors.pairs import PairSplines
from kernelpot.descriptors.soap import Soap
from kernelpot.interfaces.settings_errors import Layout, as_tables, explain, place_of
from kernelpot.interfaces.settings_example import example
from kernelpot.interfaces.settings_schema import (
    LABEL_KEYS,
    LAYOUT,
    OWN,
    FitSettings,
    PotentialSettings,
)
from kernelpot.options import SETTLED
from kernelpot.potential import KernelPotential

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "FitSettings",
    "SettingsError",
    "build_model",
    "check_files",
    "check_settings",
    "combine",
    "example",
    "fit_automatically",
    "make_model",
    "read_toml",
    "validated",
]


Sections = TypeVar("Sections", bound=BaseModel)


class SettingsError(ValueError):
    """Settings that cannot be used; one line per fault."""


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """Raw settings of a TOML file.

    Parameters
    ----------
    path : str | PathLike[str]
        The file.

    Returns
    -------
    dict[str, Any]
        Sections by name, not yet checked.

    Raises
    ------
    SettingsError
        The file is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} is not valid TOML: {error}. `kernelpot fit --example` prints a file that is"
        ) from error


def check_settings(raw: Mapping[str, Any]) -> FitSettings:
    """Check settings and fill in the defaults.

    Parameters
    ----------
    raw : Mapping[str, Any]
        Sections by name.

    Returns
    -------
    FitSettings
        Complete settings.

    Raises
    ------
    SettingsError
        One line per fault: the key, what was given, what is allowed.
    """
    settings = validated(FitSettings, raw, LAYOUT, {"descriptor": "soap"})
    _make_descriptors(settings.descriptor)
    return settings


def validated(
    sections: type[Sections],
    raw: Mapping[str, Any],
    layout: Layout,
    kinds: Mapping[str, str | None],
) -> Sections:
    """Check sections and fill in the defaults.

    Parameters
    ----------
    sections : type[Sections]
        All that there may be.
    raw : Mapping[str, Any]
        Sections by name.
    layout : Layout
        The same for errors.
    kinds : Mapping[str, str | None]
        Sections of kinds, and the kind of a table that does not say it.

    Returns
    -------
    Sections
        Complete.

    Raises
    ------
    SettingsError
        One line per fault: the key, what was given, what is allowed.
    """
    try:
        raw = as_tables(raw, kinds)
        return sections.model_validate(raw)
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error, raw, layout))) from None
    except ValueError as error:
        raise SettingsError(str(error)) from None


def combine(
    source: str | PathLike[str] | None, given: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Settings of a file with those of the command line on top.

    Parameters
    ----------
    source : str | PathLike[str] | None
        A settings file (.toml), or else a file of structures to fit.
    given : Mapping[str, Mapping[str, Any]]
        By section and key; None where nothing was given.

    Returns
    -------
    dict[str, Any]
        Sections by name, not yet checked.

    Raises
    ------
    SettingsError
        There is no source, it is not TOML, or it has several descriptors and the command line
        does not say which it means.
    """
    if source is None:
        raise SettingsError(
            "name what to fit: `kernelpot fit train.xyz` or `kernelpot fit settings.toml`"
            " (`kernelpot fit --example` prints one)"
        )
    from_file = Path(source).suffix.lower() == ".toml"
    raw = read_toml(source) if from_file else {"data": {"train": str(source)}}
    for section, values in given.items():
        values = {key: value for key, value in values.items() if value is not None}
        below = raw.get(section, {})
        if section in ("descriptor", "model"):
            _refuse_ambiguous(section, values, raw.get("descriptor", {}))
        if section == "descriptor" and values and _is_single(below):
            below = below[0]
        if values and isinstance(below, Mapping):
            raw[section] = {**below, **values}
    return raw


def check_files(
    paths: Sequence[Path], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, FitSettings]:
    """Settings of several files with those of the command line on top.

    Parameters
    ----------
    paths : Sequence[Path]
        Settings files.
    given : Mapping[str, Mapping[str, Any]]
        By section and key; None where nothing was given.

    Returns
    -------
    dict[str, FitSettings]
        By the file's name, or its path where names do not tell the files apart.

    Raises
    ------
    SettingsError
        As `combine` and `check_settings` do, with the file.
    """
    short = len({path.stem for path in paths}) == len(set(paths))
    checked = {}
    for path in paths:
        try:
            checked[path.stem if short else str(path)] = check_settings(combine(path, given))
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from error
    return checked


def make_model(
    settings: FitSettings, progress: Callable[[str, int, int], None] | None = None
) -> KernelPotential:
    """The unfitted model that settings describe.

    Parameters
    ----------
    settings : FitSettings
        From `check_settings`.
    progress : Callable[[str, int, int], None] | None
        Handed to the model.

    Returns
    -------
    KernelPotential
        Not yet fitted.
    """
    keys = {key: getattr(settings.data, key) for key in LABEL_KEYS}
    return build_model(settings, **keys, progress=progress)


def build_model(settings: PotentialSettings, **others: Any) -> KernelPotential:
    """The unfitted model that the sections of descriptor and model describe.

    Parameters
    ----------
    settings : PotentialSettings
        With these sections.
    **others : Any
        Parameters of the model that are no settings of these.

    Returns
    -------
    KernelPotential
        Not yet fitted.
    """
    descriptors = _make_descriptors(settings.descriptor)
    values = settings.model.model_dump()
    values |= {key: _of_each(key, settings.descriptor, values[key]) for key in OWN}
    descriptor = descriptors if len(descriptors) > 1 else descriptors[0]
    return KernelPotential(descriptor, **values, **others)


def _of_each(key: str, tables: list[Any], value: Any) -> Any:
    """A parameter of each descriptor: a single value where all are equal."""
    values = []
    for table in tables:
        own = getattr(table, key, None)
        common = SETTLED.get(key, value) if table.kind == "pairs" else value
        values.append(common if own is None else own)
    return values if any(other != values[0] for other in values) else values[0]


_CHOSEN = ("basis", "zeta", "n_environments", "n_tangents")
"""Parameters of the model that an automatic fit chooses, besides the descriptor."""


def fit_automatically(
    settings: FitSettings,
    images: list[Any],
    progress: Callable[[str, int, int], None] | None,
    **budget: float,
) -> KernelPotential:
    """Fit with `KernelPotential.auto`; settings of what it chooses must be left alone.

    Parameters
    ----------
    settings : FitSettings
        From `check_settings`.
    images : list[Any]
        Labelled structures.
    progress : Callable[[str, int, int], None] | None
        Handed to the model.
    **budget : float
        ``time_budget`` and ``cost`` of `KernelPotential.auto`, where they are given.

    Returns
    -------
    KernelPotential
        Fitted.

    Raises
    ------
    SettingsError
        A setting is given that is to be chosen.
    """
    model, untouched = make_model(settings, progress), KernelPotential()
    given = [name for name in _CHOSEN if getattr(model, name) != getattr(untouched, name)]
    several = isinstance(model.descriptor, list)
    if several or model.descriptor.to_settings() != Soap().to_settings():
        given.insert(0, "the descriptor")
    if given:
        raise SettingsError(
            f"--auto chooses {', '.join(given)}: leave these settings out, or fit without --auto"
        )
    parameters = model.get_params(deep=False)
    for name in ("descriptor", *_CHOSEN):
        del parameters[name]
    return KernelPotential.auto(images, **budget, **parameters)


def _refuse_ambiguous(section: str, values: Mapping[str, Any], tables: Any) -> None:
    """Options that could mean any of several descriptors, or that a descriptor overrules."""
    tables = tables if isinstance(tables, list) else [tables]
    overruled = [key for key in values if any(isinstance(t, Mapping) and key in t for t in tables)]
    unclear = list(values) if section == "descriptor" and len(tables) > 1 else []
    for key in [*unclear, *(overruled if section == "model" else [])]:
        raise SettingsError(
            f"--{key.replace('_', '-')}: the settings file has it for each descriptor by itself; "
            "change it there"
        )


def _is_single(tables: Any) -> bool:
    return isinstance(tables, list) and len(tables) == 1


def _make_descriptors(tables: list[Any]) -> list[Soap | PairSplines]:
    descriptors = []
    for index, table in enumerate(tables):
        own = {"kind", *OWN}
        given = {key: value for key, value in table.model_dump().items() if key not in own}
        given |= {key: None for key, value in given.items() if value == "none"}
        cls = PairSplines if table.kind == "pairs" else Soap
        try:
            descriptors.append(cls.from_settings(given))
            descriptors[-1].validate()
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{place_of(index, tables)} {error}") from error
    return descriptors
