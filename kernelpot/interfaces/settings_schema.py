"""The sections of the settings file of ``kernelpot fit``: types, limits and words.

Defaults stand in one place, the signatures of the classes that the sections describe.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from kernelpot.data import LabelKeys
from kernelpot.descriptors.pairs import PairSplines
from kernelpot.descriptors.soap import BASES as RADIAL_BASES
from kernelpot.descriptors.soap import COMPRESSIONS, ENGINES, Soap
from kernelpot.gp.inducing import SELECTORS
from kernelpot.interfaces.settings_errors import Layout
from kernelpot.options import BASES, SETTLED
from kernelpot.potential import KernelPotential

__all__ = [
    "LABEL_KEYS",
    "LAYOUT",
    "OWN",
    "Count",
    "DataSettings",
    "Files",
    "FitSettings",
    "ModelSettings",
    "OutputSettings",
    "PairsSettings",
    "Positive",
    "PotentialSettings",
    "Section",
    "SoapSettings",
    "Table",
    "WholeOrZero",
    "section_of",
]


class Section(BaseModel):
    """Keys that are not known are refused, and so are values of other types."""

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
    "species_mixing": (
        Annotated[float, Field(ge=0.0, le=1.0)] | Table | None,
        "how alike species are: similarity, 0 to 1; or weights in channels, { H = [1, 0.3], ... }",
    ),
    "n_contracted": (
        Count | None,
        "combine the radial functions of all species to this many, by the training structures",
    ),
    "centre_similarity": (
        Annotated[float, Field(ge=0.0, le=1.0)] | None,
        "how alike environments of unlike central atoms are, 0 to 1; none: independent",
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
    "selection_sample": (
        Count,
        "structures among which features and environments are chosen; labels count of all",
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
    "memory": (
        Positive | str | None,
        "what the process may take during a fit, such as '2GB'; else most of the machine's",
    ),
    "random_state": (int | None, "seed of random choices"),
}
OWN = ("zeta", "delta", "n_environments", "n_tangents")
"""Keys of [model] that a descriptor may have for itself."""
_OWN = {
    key: (_MODEL[key][0] | None, f"{key} of this descriptor, where it differs from [model]")
    for key in OWN
}
_OWN_OF_PAIRS = {
    "zeta": (Literal[SETTLED["zeta"]] | None, "pairs are a linear model"),
    "delta": (_OWN["delta"][0], "prior deviation of the energy of a pair, eV, where it differs"),
    "n_tangents": (Literal[SETTLED["n_tangents"]] | None, "pairs are a linear model"),
}
LABEL_KEYS = tuple(f"{kind}_key" for kind in LabelKeys._fields)
"""Keys of [data] that name labels."""


def section_of(
    name: str, defaults: Mapping[str, Any], fields: Mapping[str, tuple[Any, str]]
) -> type[BaseModel]:
    """A section with the defaults of the class that it describes.

    Parameters
    ----------
    name : str
        Of the model.
    defaults : Mapping[str, Any]
        By key; ``...`` where there is none and the key must be given.
    fields : Mapping[str, tuple[Any, str]]
        Type with its limits, and what it is in words, by key.

    Returns
    -------
    type[BaseModel]
        The section.
    """
    described = {
        key: (annotation, Field(default=defaults[key], description=words))
        for key, (annotation, words) in fields.items()
    }
    return create_model(name, __base__=Section, **described)


def _table(kind: str, defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> type[BaseModel]:
    words = "soap, or pairs: functions of distance alone, as a term of a sum"
    return section_of(
        f"{kind.capitalize()}Settings",
        {"kind": kind, **dict.fromkeys(_OWN), **defaults},
        {"kind": (Literal[kind], words), **fields},
    )


SoapSettings = _table("soap", Soap().to_settings(), _DESCRIPTOR | _OWN)
PairsSettings = _table("pairs", PairSplines().to_settings(), _PAIRS | _OWN_OF_PAIRS)
ModelSettings = section_of(
    "ModelSettings",
    {name: p.default for name, p in inspect.signature(KernelPotential).parameters.items()},
    _MODEL,
)


class DataSettings(Section):
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


class OutputSettings(Section):
    """What is written."""

    model: str = Field(default="model.kpot", description="file of the fitted model")
    force: bool = Field(default=False, description="overwrite that file")
    plots: str | None = Field(default=None, description="folder for a parity figure of the test")


class PotentialSettings(Section):
    """The sections that say what is fitted."""

    descriptor: list[Annotated[SoapSettings | PairsSettings, Field(discriminator="kind")]] = Field(
        default_factory=lambda: [SoapSettings()], min_length=1
    )
    model: ModelSettings = Field(default_factory=ModelSettings)


class FitSettings(PotentialSettings):
    """All sections of a settings file."""

    data: DataSettings
    output: OutputSettings = Field(default_factory=OutputSettings)


LAYOUT = Layout(
    {"data": DataSettings, "model": ModelSettings, "output": OutputSettings},
    {"descriptor": {"soap": SoapSettings, "pairs": PairsSettings}},
    {"data": "data.train"},
)
