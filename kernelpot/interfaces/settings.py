"""The settings file of ``kernelpot fit``: TOML, checked, with errors that name the key.

Defaults stand in one place, the signatures of the classes that the sections describe; here are
only the types, the limits and the words.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from kernelpot.data import LabelKeys
from kernelpot.descriptors.pairs import PairSplines
from kernelpot.descriptors.soap import BASES as RADIAL_BASES
from kernelpot.descriptors.soap import COMPRESSIONS, ENGINES, Soap
from kernelpot.gp.inducing import SELECTORS
from kernelpot.interfaces.settings_errors import Layout, explain, place_of
from kernelpot.options import BASES
from kernelpot.potential import KernelPotential

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "FitSettings",
    "SettingsError",
    "check_files",
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
_PAIRS = {
    "cutoff": (Positive, "distance from which on pairs do not interact, A"),
    "n_splines": (Count, "splines between 0 and the cutoff"),
    "length_scale": (Positive, "over what distance the energy of a pair changes, A"),
}
_MODEL = {
    "basis": (Literal[BASES], "sparse, or full: every label a basis function (small molecules)"),
    "zeta": (Count, "exponent of the kernel; 2 to 6, or 1 without tangents: a linear model"),
    "delta": (Positive | None, "prior deviation of a local energy, eV; else found by the fit"),
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
    "balance_groups": (bool, "whether each group of structures gets a share of the environments"),
    "sigma_energy": (
        Sigma | None,
        "noise, eV/atom; else found by the fit; a table gives one per info['source']",
    ),
    "sigma_forces": (Sigma | None, "noise, eV/A; likewise"),
    "sigma_stress": (Sigma | None, "noise, eV/A^3; likewise"),
    "force_priority": (
        Annotated[float, Field(ge=1.0, allow_inf_nan=False)],
        "multiplies the weight of forces on top of their noise",
    ),
    "core_repulsion": (bool, "whether cores repel where the data have no distances"),
    "reference_source": (
        str | None,
        "info['source'] on whose scale energies are; else that of the most energies",
    ),
    "robust": (
        bool | Annotated[float, Field(ge=2.0, allow_inf_nan=False)],
        "whether labels that all others contradict count less; a number of sigmas",
    ),
    "random_state": (int | None, "seed of random choices"),
}
_OWN = {
    key: (_MODEL[key][0] | None, f"{key} of this descriptor, where it differs from [model]")
    for key in ("zeta", "delta", "n_environments", "n_tangents")
}
_OWN_OF_PAIRS = {
    "zeta": (Literal[1] | None, "pairs are a linear model"),
    "delta": (_OWN["delta"][0], "prior deviation of the energy of a pair, eV, where it differs"),
    "n_tangents": (Literal[0] | None, "pairs are a linear model"),
}
_SETTLED = {"zeta": 1, "n_tangents": 0}
"""What `PairSplines` takes in the place of the values of [model]."""
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


def _table(kind: str, defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> type[BaseModel]:
    words = "soap, or pairs: functions of distance alone, as a term of a sum"
    return _section(
        f"{kind.capitalize()}Settings",
        {"kind": kind, **dict.fromkeys(_OWN), **defaults},
        {"kind": (Literal[kind], words), **fields},
    )


SoapSettings = _table("soap", Soap().to_settings(), _DESCRIPTOR | _OWN)
PairsSettings = _table("pairs", PairSplines().to_settings(), _PAIRS | _OWN_OF_PAIRS)
_DEFAULTS = {name: p.default for name, p in inspect.signature(KernelPotential).parameters.items()}
ModelSettings = _section(
    "ModelSettings",
    _DEFAULTS,
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
    descriptor: list[Annotated[SoapSettings | PairsSettings, Field(discriminator="kind")]] = Field(
        default_factory=lambda: [SoapSettings()], min_length=1
    )
    model: ModelSettings = Field(default_factory=ModelSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)


_SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "output": OutputSettings,
}
_LAYOUT = Layout(_SECTIONS, {"soap": SoapSettings, "pairs": PairsSettings})


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
    raw = dict(raw)
    tables = raw.get("descriptor", {})
    tables = [tables] if isinstance(tables, Mapping) else tables
    if isinstance(tables, list):
        if not tables:
            raise SettingsError("descriptor: an empty list was given; allowed: one table or more")
        tables = [{"kind": "soap", **t} if isinstance(t, Mapping) else t for t in tables]
    try:
        settings = FitSettings.model_validate(raw | {"descriptor": tables})
    except ValidationError as error:
        found = explain(error, raw | {"descriptor": tables}, _LAYOUT)
        raise SettingsError("\n".join(found)) from None
    _make_descriptors(settings)
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
    keys = {key: getattr(settings.data, key) for key in _KEYS}
    descriptors = _make_descriptors(settings)
    values = settings.model.model_dump()
    values |= {key: _of_each(key, settings.descriptor, values[key]) for key in _OWN}
    descriptor = descriptors if len(descriptors) > 1 else descriptors[0]
    return KernelPotential(descriptor, **values, **keys, progress=progress)


def _of_each(key: str, tables: list[Any], value: Any) -> Any:
    """A parameter of each descriptor: a single value where all are equal."""
    values = []
    for table in tables:
        own = getattr(table, key, None)
        common = _SETTLED.get(key, value) if table.kind == "pairs" else value
        values.append(common if own is None else own)
    return values if any(other != values[0] for other in values) else values[0]


_CHOSEN = ("basis", "zeta", "n_environments", "n_tangents")
"""Parameters of the model that an automatic fit chooses, besides the descriptor."""


def fit_automatically(
    settings: FitSettings,
    images: list[Any],
    progress: Callable[[str, int, int], None] | None,
    *,
    time_budget: float,
    cost: float | None,
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
    time_budget : float
        Seconds.
    cost : float | None
        Most that a prediction may cost, us/atom.

    Returns
    -------
    KernelPotential
        Fitted.

    Raises
    ------
    SettingsError
        A setting is given that is to be chosen.
    """
    model = make_model(settings, progress)
    given = [name for name in _CHOSEN if getattr(model, name) != _DEFAULTS[name]]
    untouched = Soap().to_settings()
    several = isinstance(model.descriptor, list)
    if several or model.descriptor.to_settings() != untouched:
        given.insert(0, "the descriptor")
    if given:
        raise SettingsError(
            f"--auto chooses {', '.join(given)}: leave these settings out, or fit without --auto"
        )
    parameters = model.get_params(deep=False)
    for name in ("descriptor", *_CHOSEN):
        del parameters[name]
    return KernelPotential.auto(images, time_budget=time_budget, cost=cost, **parameters)


def example() -> str:
    """A settings file with every key, its meaning and its default.

    Returns
    -------
    str
        TOML; keys without a default are commented out.
    """
    lines = ["# Settings of `kernelpot fit`: every key with its default."]
    for name, section in {"data": DataSettings, "descriptor": SoapSettings, **_SECTIONS}.items():
        lines += ["", f"[{name}]", *_lines_of(section)]
        if name == "descriptor":
            lines += ["", *_SUM, *("# " + line for line in _lines_of(PairsSettings, _SETTLED))]
    return "\n".join(lines) + "\n"


_SUM = (
    "# For a sum of Gaussian processes write [[descriptor]] instead of [descriptor], with each of",
    "# the descriptors under a [[descriptor]] of its own. Functions of distance alone:",
    "# [[descriptor]]",
)


def _lines_of(section: type[BaseModel], without: Collection[str] = ()) -> list[str]:
    lines = []
    for key, field in section.model_fields.items():
        if key in without:
            continue
        default = "train.xyz" if field.is_required() else field.default
        value = f"# {key} =" if default is None else f"{key} = {_toml(default)}"
        lines += [f"# {field.description}", value]
    return lines


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


def _make_descriptors(settings: FitSettings) -> list[Soap | PairSplines]:
    descriptors = []
    for index, table in enumerate(settings.descriptor):
        own = {"kind", *_OWN}
        given = {key: value for key, value in table.model_dump().items() if key not in own}
        given |= {key: None for key, value in given.items() if value == "none"}
        cls = PairSplines if table.kind == "pairs" else Soap
        try:
            descriptors.append(cls.from_settings(given))
            descriptors[-1].validate()
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{place_of(index, settings.descriptor)} {error}") from error
    return descriptors


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)
