"""The settings file of ``kernelpot learn``: read, checked with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernelpot.active.settings import LearnerSettings
from kernelpot.interfaces.learn_schema import LEARN_LAYOUT, LearnFileSettings
from kernelpot.interfaces.settings import SettingsError, build_model, read_toml, validated
from kernelpot.potential import KernelPotential

__all__ = ["check_learn_settings", "learner_settings", "read_learn_settings", "unfitted_model"]

_KINDS = {"descriptor": "soap", "oracle": None, "explore": None, "law": None}


def read_learn_settings(
    path: Path, given: Mapping[str, Mapping[str, Any]] | None = None
) -> LearnFileSettings:
    """Settings of a file with those of the command line on top.

    Parameters
    ----------
    path : Path
        TOML.
    given : Mapping[str, Mapping[str, Any]] | None
        By section and key; None where nothing was given.

    Returns
    -------
    LearnFileSettings
        Complete.

    Raises
    ------
    SettingsError
        If the file is not TOML; as `check_learn_settings` does.
    """
    try:
        raw = read_toml(path)
    except SettingsError as error:
        raise SettingsError(str(error).replace("kernelpot fit", "kernelpot learn")) from error
    for section, values in (given or {}).items():
        values = {key: value for key, value in values.items() if value is not None}
        below = raw.get(section, {})
        if values and isinstance(below, Mapping):
            raw[section] = {**below, **values}
    return check_learn_settings(raw)


def check_learn_settings(raw: Mapping[str, Any]) -> LearnFileSettings:
    """Check settings and fill in the defaults.

    Parameters
    ----------
    raw : Mapping[str, Any]
        Sections by name.

    Returns
    -------
    LearnFileSettings
        Complete.

    Raises
    ------
    SettingsError
        One line per fault: the key, what was given, what is allowed.
    """
    settings = validated(LearnFileSettings, raw, LEARN_LAYOUT, _KINDS)
    unfitted_model(settings)
    return settings


def unfitted_model(settings: LearnFileSettings) -> KernelPotential:
    """The model that settings describe.

    Parameters
    ----------
    settings : LearnFileSettings
        Checked.

    Returns
    -------
    KernelPotential
        Not yet fitted.
    """
    return build_model(settings)


def learner_settings(settings: LearnFileSettings) -> LearnerSettings:
    """How the run chooses, labels and stops.

    Parameters
    ----------
    settings : LearnFileSettings
        Checked.

    Returns
    -------
    LearnerSettings
        As the loop takes them.
    """
    values = settings.learn.model_dump()
    if settings.observable is not None:
        values["observable_tolerance"] = settings.observable.tolerance
    return LearnerSettings(**values)
