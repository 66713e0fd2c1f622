"""The sections of the settings file of ``kernelpot learn``: types, limits and words.

Defaults stand in one place, the signatures of the classes that the sections describe.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from kernelpot.active.explorers.biased import BiasedDynamics
from kernelpot.active.explorers.directions import UnsampledDirections
from kernelpot.active.explorers.dynamics import Dynamics
from kernelpot.active.explorers.paths import NudgedElasticBand, Relaxation
from kernelpot.active.explorers.static import Pool, RandomStructures, Rattle
from kernelpot.active.oracle_files import FileOracle
from kernelpot.active.scores import Law, energy_below
from kernelpot.active.settings import LearnerSettings
from kernelpot.interfaces.settings_errors import Layout
from kernelpot.interfaces.settings_schema import (
    LAYOUT,
    Count,
    Files,
    ModelSettings,
    Positive,
    PotentialSettings,
    Section,
    Table,
    WholeOrZero,
    section_of,
)

__all__ = [
    "EXPLORERS",
    "FROM_FILES",
    "LEARN_LAYOUT",
    "LearnFileSettings",
    "ObservableSettings",
    "RelevanceSettings",
    "StartSettings",
]

Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Strain = Annotated[float, Field(ge=0.0, le=0.5)]
UpTo = Annotated[float, Field(gt=0.0)]
Ramp = Annotated[list[Number], Field(min_length=2, max_length=2)]
PositiveRamp = Annotated[list[Positive], Field(min_length=2, max_length=2)]


def _defaults(cls: type) -> dict[str, Any]:
    """Of a class's signature; ``...`` where there is none."""
    return {
        name: ... if p.default is inspect.Parameter.empty else p.default
        for name, p in inspect.signature(cls).parameters.items()
    }


_LEARN = {
    "tolerance": (Positive, "expected error of a force below which no label is wanted, eV/A"),
    "stress_tolerance": (
        Positive | None,
        "the same of a stress, GPa; without it stresses do not count",
    ),
    "multiple": (Positive, "a young model wants labels from so many times its errors on"),
    "threshold": (
        Literal["errors", "history"],
        "what it follows: present errors, or those left after learning, as in VASP",
    ),
    "upper": (
        Annotated[float, Field(ge=1.0, allow_inf_nan=False)],
        "explorers end at so many times the threshold, and above a fifth of a typical force",
    ),
    "objective": (
        Literal["largest", "mean"],
        "what labels lower: uncertainties wherever they are, or the mean over explorations",
    ),
    "batch": (Count, "labels of a round at most"),
    "n_candidates": (Count, "candidates of a round that are looked at closely"),
    "n_typical": (Count, 'structures over which the variance is taken, with objective = "mean"'),
    "n_initial": (Count, "displaced copies of each start that are labelled at first"),
    "displacement": (Positive, "standard deviation of their displacements, A"),
    "strain": (Strain, "largest strain of their cells"),
    "window": (
        Annotated[int, Field(ge=4)],
        "structures whose errors, from before they were learned, say how wide intervals are",
    ),
    "n_looked": (Count, "expected errors of an exploration that criteria are judged by"),
    "n_parallel": (Count, "labels at once"),
    "threads": (Count, "of each label"),
    "time_limit": (Positive | None, "seconds for one label, after which it has failed"),
    "most_labels": (Count, "labels after which the run ends, those that failed among them"),
    "most_seconds": (UpTo, "time after which it ends, all parts of it together"),
    "plateau_rounds": (
        Annotated[int, Field(ge=4)],
        "rounds over which uncertainty must have ceased to change",
    ),
    "plateau": (Positive, "by which part it may change over them"),
    "coverage": (
        Share,
        "share of the environments of a final long run that the model must be sure of",
    ),
    "final_steps": (WholeOrZero, "how many explorations long the final run is; 0: no such run"),
    "random_state": (WholeOrZero, "seed: the same gives the same run"),
}
_STEPS = (Count, "most steps")
_SPACING = (Count, "steps within which only the most uncertain candidate is kept")
_FRAMES = (Count, "frames that are kept: between this and twice as many")
_RELAXED_TO = (Positive, "largest force at the end, eV/A")
_INDEX = (str, "which frames of the files, as in ASE: ':' all, '-1' the last")
_DYNAMICS = {
    "temperature": (Positive | PositiveRamp, "K; two for a ramp: [300, 800]"),
    "pressure": (Number | Ramp | None, "GPa; two for a ramp; without it the cell stays"),
    "n_steps": (Count, "how many"),
    "timestep": (Positive | None, "fs; else that of the lightest atoms"),
    "thermostat_time": (Positive, "relaxation time of the thermostat, fs"),
    "barostat_time": (Positive, "relaxation time of the volume, fs"),
    "bulk_modulus": (Positive, "of the substance, roughly, GPa: how fast the volume follows"),
    "n_frames": _FRAMES,
    "spacing": _SPACING,
}
_EXPLORERS: dict[str, tuple[type, dict[str, tuple[Any, str]]]] = {
    "dynamics": (Dynamics, _DYNAMICS),
    "biased": (
        BiasedDynamics,
        {
            **_DYNAMICS,
            "strength": (Positive, "mean biasing force over the mean force: 0.1 gentle, 1 drives"),
            "sigma": (Literal["posterior", "novelty"], "what is climbed: posterior, novelty"),
        },
    ),
    "relaxation": (
        Relaxation,
        {
            "fmax": _RELAXED_TO,
            "n_steps": _STEPS,
            "cell": (bool, "whether the cell relaxes, too"),
            "pressure": (Number, "on the cell, GPa"),
            "optimizer": (Literal["bfgs", "fire"], "bfgs or fire"),
            "spacing": _SPACING,
            "n_frames": _FRAMES,
        },
    ),
    "band": (
        NudgedElasticBand,
        {
            "final": (
                str,
                "the other end: a file, its atoms in the order of the start",
            ),
            "n_images": (Count, "between the ends"),
            "fmax": (Positive, "largest force on the band at the end, eV/A"),
            "n_steps": (Count, "most steps of the band"),
            "spring": (Positive, "constant of the springs, eV/A^2"),
            "tolerance": (Positive, "standard deviation of the barrier that is good enough, eV"),
            "n_wanted": (Count, "candidates that are made where it is not"),
            "relax_ends": (bool, "whether both ends are relaxed first"),
        },
    ),
    "rattle": (
        Rattle,
        {
            "displacement": (NotNegative, "standard deviation of the displacements, A"),
            "strain": (Strain, "largest strain of periodic cells"),
            "n": (Count, "structures that are made of each given one"),
            "structures": (Files | None, "files of what is displaced; else the start"),
            "index": _INDEX,
        },
    ),
    "random": (
        RandomStructures,
        {
            "symbols": (str | None, "formula, such as Si8; else the atoms of the start"),
            "volume": (
                Positive | PositiveRamp | None,
                "of an atom, A^3; two for a range; else about that of the start",
            ),
            "distance": (Positive, "least distance of atoms, in sums of covalent radii"),
            "n": (Count, "structures that are made"),
            "n_steps": (WholeOrZero, "steps of the relaxation of each"),
            "periodic": (bool | None, "cells or clusters; else what the start is"),
        },
    ),
    "pool": (
        Pool,
        {
            "structures": (Files, "files of structures to choose from; labels do not count"),
            "index": _INDEX,
            "n_most": (Count, "most candidates that are made of them"),
            "title": (str, "what to call them"),
        },
    ),
    "directions": (
        UnsampledDirections,
        {
            "n_directions": (Count, "paths, the least sampled direction first"),
            "n_steps": (Count, "most steps of each"),
            "step": (Positive, "largest displacement of an atom in a step, A"),
            "energy": (Positive, "most that the energy may rise by, eV per atom"),
            "least_singular_value": (Share, "of the Jacobian: displacements below are left out"),
            "spacing": _SPACING,
        },
    ),
}
EXPLORERS = {kind: cls for kind, (cls, _) in _EXPLORERS.items()}
"""Classes by the kind of [[explore]]."""
FROM_FILES = ("structures", "final")
"""Keys of explorers that name files of structures."""

_PARAMETERS = (Table, "others of its parameters")
_ORACLES: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, str]]]] = {
    "emt": ({}, {}),
    "tblite": (
        {
            "method": "GFN2-xTB", "accuracy": 1.0, "charge": None, "multiplicity": None,
            "parameters": {},
        },
        {
            "method": (
                Literal["GFN2-xTB", "GFN1-xTB", "IPEA1-xTB"],
                "GFN2-xTB, GFN1-xTB, IPEA1-xTB",
            ),
            "accuracy": (Positive, "of the numbers, the smaller the better"),
            "charge": (int | None, "of the whole; else that of the structure"),
            "multiplicity": (Count | None, "of the spins"),
            "parameters": _PARAMETERS,
        },
    ),
    "gpaw": (
        {"mode": ..., "xc": "PBE", "kpts": None, "parameters": {}},
        {
            "mode": (str | Table, 'such as plane waves, { name = "pw", ecut = 400 }'),
            "xc": (str, "exchange and correlation"),
            "kpts": (
                Annotated[list[Count], Field(min_length=3, max_length=3)] | Table | None,
                "such as [2, 2, 2], or { density = 3.0, gamma = true }; else the Gamma point",
            ),
            "parameters": _PARAMETERS,
        },
    ),
    "ase": (
        {"calculator": ..., "parameters": {}},
        {
            "calculator": (str, 'module and class, such as "ase.calculators.lj.LennardJones"'),
            "parameters": (Table, "of its construction"),
        },
    ),
    "python": (
        {"function": ...},
        {
            "function": (
                str,
                'file and name, "file.py:name", of a function of a structure or one that makes'
                " a calculator",
            ),
        },
    ),
    "files": (
        _defaults(FileOracle),
        {
            "folder": (str, "numbered folders of the structures are made in this one"),
            "input": (str, "name of the file to write; ASE knows its format by the name"),
            "output": (str, "name of the file that is waited for; ASE must be able to read it"),
            "settle": (NotNegative, "seconds for which a file has not changed when it is complete"),
            "poll": (Positive, "seconds between two looks"),
        },
    ),
}  # fmt: skip
_TOLERATED = {"tolerance": ..., "weight": _defaults(Law)["weight"]}
_OF_ALL_LAWS = {
    "tolerance": (Positive, "violation, in its unit, that adds half of the weight to a score"),
    "weight": (NotNegative, "1: as much as the information of the candidate that tells most"),
}
_LAWS: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, str]]]] = {
    "energy_below": (
        _defaults(energy_below),
        {"minimum": (Number, "no structure has a lower energy, eV/atom")},
    ),
    "python": (
        {"function": ...},
        {
            "function": (
                str,
                'file and name, "file.py:name", of a function of atoms, with the calculator of the'
                " model: by how much they violate the law",
            ),
        },
    ),
}


def _table(
    kind: str, defaults: Mapping[str, Any], fields: Mapping[str, Any], words: str
) -> type[BaseModel]:
    name = f"{kind.capitalize()}Table"
    return section_of(name, {"kind": kind, **defaults}, {"kind": (Literal[kind], words), **fields})


def _explorer_table(kind: str) -> type[BaseModel]:
    cls, fields = _EXPLORERS[kind]
    defaults = {key: None if value == () else value for key, value in _defaults(cls).items()}
    words = "what explores: " + ", ".join(_EXPLORERS)
    return _table(kind, {"index": ":", **defaults}, fields, words)


def _oracle_table(kind: str) -> type[BaseModel]:
    defaults, fields = _ORACLES[kind]
    return _table(kind, defaults, fields, "what labels: " + ", ".join(_ORACLES))


def _law_table(kind: str) -> type[BaseModel]:
    defaults, fields = _LAWS[kind]
    words = "what is known of the true potential: " + ", ".join(_LAWS)
    return _table(kind, {**defaults, **_TOLERATED}, {**fields, **_OF_ALL_LAWS}, words)


_EXPLORER_TABLES = {kind: _explorer_table(kind) for kind in _EXPLORERS}
_ORACLE_TABLES = {kind: _oracle_table(kind) for kind in _ORACLES}
_LAW_TABLES = {kind: _law_table(kind) for kind in _LAWS}


class BuiltStructure(Section):
    """A structure that ASE builds."""

    crystal: str | None = Field(default=None, description="symbol or formula")
    molecule: str | None = Field(default=None, description="name of ASE's collection")
    crystalstructure: str | None = Field(default=None, description="fcc, diamond, rocksalt, ...")
    a: Positive | None = Field(default=None, description="lattice constant, A")
    c: Positive | None = Field(default=None, description="the other, A")
    cubic: bool = Field(default=False, description="whether the cell is cubic")
    supercell: str | None = Field(default=None, description="repetitions, as in 2x2x2")


class StartSettings(Section):
    """Where explorations begin, and what is known already."""

    structure: BuiltStructure | None = Field(
        default=None,
        description='built: { crystal = "Si", a = 5.43, cubic = true, supercell = "2x2x2" }, or'
        ' { molecule = "CH3CH2OH" }',
    )
    structures: Files | None = Field(
        default=None, description="or files of structures, anything that ASE reads"
    )
    index: str = Field(default=":", description="which frames of them: ':' all, '-1' the last")
    labelled: Files | None = Field(
        default=None, description="files of structures with labels to begin with"
    )


class ObservableSettings(Section):
    """What is to converge before a run ends."""

    function: str = Field(
        description='file and name, "file.py:name", of a function of the frames of an exploration:'
        " one number or array for each",
    )
    tolerance: Positive = Field(
        description="by how much its mean may differ between the last rounds, in its unit"
    )


class RelevanceSettings(Section):
    """What structures are worth beside what their labels tell."""

    function: str = Field(
        description='"low_energy", or file and name, "file.py:name", of a function of atoms with'
        " the model's calculator: a number, larger for what is worth more",
    )


class RunSettings(Section):
    """What is written."""

    folder: str = Field(
        default="run", description="of the run: journal, labels.xyz, model.kpot, settings.toml"
    )


LearnSettings = section_of("LearnSettings", _defaults(LearnerSettings), _LEARN)


def _any_of(tables: Mapping[str, type[BaseModel]]) -> Any:
    union: Any = None
    for table in tables.values():
        union = table if union is None else union | table
    return Annotated[union, Field(discriminator="kind")]


class LearnFileSettings(PotentialSettings):
    """All sections of a settings file."""

    start: StartSettings
    oracle: Annotated[list[_any_of(_ORACLE_TABLES)], Field(min_length=1, max_length=1)]
    learn: LearnSettings = Field(default_factory=LearnSettings)
    explore: Annotated[list[_any_of(_EXPLORER_TABLES)], Field(min_length=1)]
    law: list[_any_of(_LAW_TABLES)] = Field(default_factory=list)
    relevance: RelevanceSettings | None = None
    observable: ObservableSettings | None = None
    output: RunSettings = Field(default_factory=RunSettings)


LEARN_LAYOUT = Layout(
    {
        "start": StartSettings,
        "learn": LearnSettings,
        "relevance": RelevanceSettings,
        "observable": ObservableSettings,
        "model": ModelSettings,
        "output": RunSettings,
    },
    {
        "oracle": _ORACLE_TABLES,
        "explore": _EXPLORER_TABLES,
        "law": _LAW_TABLES,
        **LAYOUT.tables,
    },
    {
        "start": "start.structures or start.structure",
        "oracle": 'oracle.kind, such as "tblite"',
        "explore": 'a table [[explore]] with kind = "dynamics"',
    },
)
