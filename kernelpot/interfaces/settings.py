"""The settings file of ``kernelpot fit``: TOML, checked, with errors that name the key.

Defaults stand in one place, the signatures of the classes that the sections describe; here are
only the types, the limits and the words.
"""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from kernelpot.data import LabelKeys
from kernelpot.descriptors.soap import BASES as RADIAL_BASES
from kernelpot.descriptors.soap import COMPRESSIONS, ENGINES, Soap
from kernelpot.gp.inducing import SELECTORS
from kernelpot.options import BASES
from kernelpot.potential import KernelPotential

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "FitSettings",
    "SettingsError",
    "check_settings",
    "combine",
    "example",
    "make_model",
    "read_toml",
]


class SettingsError(ValueError):
    """Settings that cannot be used; one line per fault."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
WholeOrZero = Annotated[int, Field(ge=0)]
Sigma = Positive | dict[str, Positive]
Files = str | list[str]
Table = dict[str, Any]
Part = Table | Literal["none"]
"""TOML has no null: "none" switches a part off."""

_DESCRIPTOR = {
    "cutoff": (Positive, "radius of an environment, A"),
    "n_max": (Count, "radial functions"),
    "l_max": (WholeOrZero, "highest angular momentum"),
    "sigma": (Positive, "width of an atom's density, A"),
    "basis": (Literal[RADIAL_BASES], "radial basis: " + ", ".join(RADIAL_BASES)),
    "smoothing": (Part, "how the environment ends at the cutoff: a table, or none"),
    "scaling": (Part, "how the weight of a neighbour falls with its distance: a table, or none"),
    "weighting": (Table | None, "dscribe's table instead of smoothing and scaling"),
    "compression": (Literal[COMPRESSIONS], "as in dscribe: " + ", ".join(COMPRESSIONS)),
    "species_weights": (
        Table | None,
        "weight of each species' density, such as { H = 0.5, C = 1 }",
    ),
    "engine": (Literal[ENGINES], "what computes: " + ", ".join(ENGINES)),
}
_MODEL = {
    "basis": (Literal[BASES], "sparse, or full: every label a basis function (small molecules)"),
    "zeta": (Count, "exponent of the kernel; 2 to 6"),
    "delta": (Positive | None, "prior deviation of a local energy, eV; else by the evidence"),
    "n_environments": (
        Count | dict[str, Count],
        "inducing environments: set accuracy and cost; a table gives one number per species",
    ),
    "n_tangents": (WholeOrZero, "tangents of each: set accuracy; cost only in the fit"),
    "feature_tolerance": (
        Annotated[float, Field(ge=0.0, lt=1.0)],
        "share of the features' second moment that may be left out; 0 keeps all",
    ),
    "tangent_threshold": (Positive, "tangents weaker than this part of the strongest are left out"),
    "selector": (
        Literal[tuple(SELECTORS)],
        "how inducing environments are chosen: " + ", ".join(SELECTORS),
    ),
    "sigma_energy": (
        Sigma | None,
        "noise, eV/atom; else by the evidence; a table gives one per info['source']",
    ),
    "sigma_forces": (Sigma | None, "noise, eV/A; likewise"),
    "sigma_stress": (Sigma | None, "noise, eV/A^3; likewise"),
    "force_priority": (
        Annotated[float, Field(ge=1.0, allow_inf_nan=False)],
        "multiplies the weight of forces on top of their noise",
    ),
    "core_repulsion": (bool, "whether cores repel where the data have no distances"),
    "random_state": (int | None, "seed of random choices"),
}
_KEYS = tuple(f"{kind}_key" for kind in LabelKeys._fields)
_ELSEWHERE = ("descriptor", "progress", *_KEYS)
"""Parameters of KernelPotential that stand in other sections, or in none."""


def _section(
    name: str, defaults: Mapping[str, Any], fields: Mapping[str, tuple[Any, str]]
) -> type[BaseModel]:
    described = {
        key: (annotation, Field(default=defaults[key], description=words))
        for key, (annotation, words) in fields.items()
    }
    return create_model(name, __base__=_Section, **described)


DescriptorSettings = _section("DescriptorSettings", Soap().to_settings(), _DESCRIPTOR)
ModelSettings = _section(
    "ModelSettings",
    {name: p.default for name, p in inspect.signature(KernelPotential).parameters.items()},
    _MODEL,
)


class DataSettings(_Section):
    """Where the structures are, and where in them the labels."""

    train: Files = Field(description="files of labelled structures, anything that ASE reads")
    test: Files | None = Field(default=None, description="the same, to test the model on")
    index: str = Field(default=":", description="which frames: ':' all, '::10' every tenth")
    energy_key: str | None = Field(
        default=None, description="name of the energy (eV) if ASE does not know it"
    )
    forces_key: str | None = Field(default=None, description="name of the forces (eV/A)")
    stress_key: str | None = Field(default=None, description="name of the stress (eV/A^3)")
    virial_key: str | None = Field(default=None, description="or name of the virial (eV)")


class OutputSettings(_Section):
    """What is written."""

    model: str = Field(default="model.kpot", description="file of the fitted model")
    force: bool = Field(default=False, description="overwrite that file")
    plots: str | None = Field(default=None, description="folder for a parity figure of the test")


class FitSettings(_Section):
    """All sections of a settings file."""

    data: DataSettings
    descriptor: DescriptorSettings = Field(default_factory=DescriptorSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)


_SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSettings,
    "descriptor": DescriptorSettings,
    "model": ModelSettings,
    "output": OutputSettings,
}


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
    try:
        settings = FitSettings.model_validate(dict(raw))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error, raw))) from None
    _make_descriptor(settings)
    return settings


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
        There is no source, or it is not TOML.
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
        if values and isinstance(below, Mapping):
            raw[section] = {**below, **values}
    return raw


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
    keys = {key: getattr(settings.data, key) for key in _KEYS}
    return KernelPotential(
        _make_descriptor(settings), **settings.model.model_dump(), **keys, progress=progress
    )


def example() -> str:
    """A settings file with every key, its meaning and its default.

    Returns
    -------
    str
        TOML; keys without a default are commented out.
    """
    lines = ["# Settings of `kernelpot fit`: every key with its default."]
    for name, section in _SECTIONS.items():
        lines += ["", f"[{name}]"]
        for key, field in section.model_fields.items():
            default = "train.xyz" if field.is_required() else field.default
            value = f"# {key} =" if default is None else f"{key} = {_toml(default)}"
            lines += [f"# {field.description}", value]
    return "\n".join(lines) + "\n"


def _make_descriptor(settings: FitSettings) -> Soap:
    given = settings.descriptor.model_dump()
    given |= {key: None for key in ("smoothing", "scaling") if given[key] == "none"}
    try:
        descriptor = Soap.from_settings(given)
        descriptor.validate()
    except (ValueError, TypeError) as error:
        raise SettingsError(f"[descriptor] {error}") from error
    return descriptor


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _explain(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One line per faulty key; pydantic reports each branch of a union by itself."""
    faults: dict[tuple[str, ...], list[Any]] = {}
    for fault in error.errors(include_url=False):
        faults.setdefault(tuple(str(part) for part in fault["loc"][:2]), []).append(fault)
    return [_explain_key(loc, found, raw) for loc, found in faults.items()]


def _explain_key(loc: tuple[str, ...], found: list[Any], raw: Mapping[str, Any]) -> str:
    kind = found[0]["type"]
    if len(loc) == 1:
        return _explain_section(loc[0], kind, raw)
    section, key = loc
    known = _SECTIONS[section].model_fields
    if kind == "extra_forbidden":
        return f"[{section}] {key}: there is no such key; {_nearest_key(section, key)}"
    if kind == "missing":
        return f"[{section}] {key}: missing; needed are {known[key].description}"
    allowed = " or ".join(dict.fromkeys(_allowed(fault) for fault in found))
    return (
        f"[{section}] {key}: {raw[section][key]!r} was given; allowed: {allowed}"
        f" ({known[key].description})"
    )


def _explain_section(section: str, kind: str, raw: Mapping[str, Any]) -> str:
    if section in _SECTIONS:
        if kind == "missing":
            return f"[{section}] is missing; needed is at least {section}.train"
        return f"{section}: {raw[section]!r} was given; allowed: a section [{section}] with keys"
    homes = [name for name, model in _SECTIONS.items() if section in model.model_fields]
    if homes:
        return f"{section} stands outside of its section: put it under [{homes[0]}]"
    near = difflib.get_close_matches(section, _SECTIONS, n=1)
    hint = f"the nearest is [{near[0]}]" if near else f"there are {', '.join(_SECTIONS)}"
    return f"[{section}]: there is no such section; {hint}"


def _nearest_key(section: str, key: str) -> str:
    elsewhere = [name for name, model in _SECTIONS.items() if key in model.model_fields]
    if elsewhere:
        return f"it belongs under [{elsewhere[0]}]"
    known = list(_SECTIONS[section].model_fields)
    near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
    return f"the nearest is {near[0]}" if near else f"there are {', '.join(known)}"


def _allowed(fault: Mapping[str, Any]) -> str:
    within = ".".join(str(part) for part in fault["loc"][2:] if not _is_type_name(str(part)))
    words = str(fault["msg"]).removeprefix("Input should be ")
    return f"{within}: {words}" if within else words


def _is_type_name(part: str) -> bool:
    """Whether pydantic put the name of a branch of a union into the place of a key."""
    return part in {"float", "int", "str"} or "[" in part
