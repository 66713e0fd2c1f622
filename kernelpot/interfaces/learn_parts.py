"""What the settings of ``kernelpot learn`` name: structures, explorers and the oracle."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ase.build
from ase import Atoms

from kernelpot.active.explorers.protocol import Explorer
from kernelpot.active.oracle_files import FileOracle
from kernelpot.active.scores import Law, Relevance, energy_below, low_energy
from kernelpot.active.task import Observable
from kernelpot.data import read_images
from kernelpot.dynamics import bare_copy, parse_supercell
from kernelpot.interfaces.learn_schema import (
    EXPLORERS,
    FROM_FILES,
    ObservableSettings,
    RelevanceSettings,
    StartSettings,
)
from kernelpot.interfaces.settings import SettingsError
from kernelpot.interfaces.settings_errors import place_of

__all__ = [
    "make_explorers",
    "make_laws",
    "make_observable",
    "make_oracle",
    "make_relevance",
    "make_start",
]


def make_start(settings: StartSettings) -> tuple[list[Atoms], list[Atoms]]:
    """Structures that a run begins with.

    Parameters
    ----------
    settings : StartSettings
        The section.

    Returns
    -------
    tuple[list[Atoms], list[Atoms]]
        Where explorations begin, and structures with labels.

    Raises
    ------
    SettingsError
        If it is not said how the start is built or where it is, or both are.
    """
    if (settings.structure is None) == (settings.structures is None):
        raise SettingsError(
            "[start] needs either structures, files, or structure, a table that says what is built"
        )
    if settings.structure is None:
        start = [bare_copy(atoms) for atoms in _read(settings.structures, settings.index)]
    else:
        start = [_built(settings.structure)]
    return start, _read(settings.labelled or [], ":")


def _built(wanted: Any) -> Atoms:
    place = "[start] structure"
    if (wanted.crystal is None) == (wanted.molecule is None):
        raise SettingsError(f"{place} needs either crystal or molecule")
    try:
        if wanted.molecule is not None:
            atoms = ase.build.molecule(wanted.molecule)
        else:
            atoms = ase.build.bulk(
                wanted.crystal, wanted.crystalstructure, a=wanted.a, c=wanted.c, cubic=wanted.cubic
            )
        return atoms.repeat(parse_supercell(wanted.supercell)) if wanted.supercell else atoms
    except KeyError:
        raise SettingsError(
            f"{place}: ASE does not know {wanted.molecule or wanted.crystal!r}; molecules are those"
            " of ase.collections.g2, others come from files: structures"
        ) from None
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise SettingsError(f"{place}: {error}") from error


def make_explorers(tables: list[Any]) -> list[Explorer]:
    """The explorers of a run.

    Parameters
    ----------
    tables : list[Any]
        Of their settings.

    Returns
    -------
    list[Explorer]
        In their order.

    Raises
    ------
    SettingsError
        If settings cannot be used together.
    """
    explorers = []
    for number, table in enumerate(tables):
        values = table.model_dump(exclude={"kind", "index"})
        index = getattr(table, "index", "-1")
        for key, value in values.items():
            if key in FROM_FILES:
                found = () if value is None else tuple(map(bare_copy, _read(value, index)))
                values[key] = found[-1] if key == "final" else found
            elif isinstance(value, list):
                values[key] = tuple(value)
        try:
            explorers.append(EXPLORERS[table.kind](**values))
        except ValueError as error:
            raise SettingsError(f"{place_of(number, tables, 'explore')} {error}") from error
    return explorers


def make_oracle(table: Any) -> Any:
    """The oracle of a run; calculators are made in the processes that use them.

    Parameters
    ----------
    table : Any
        Of its settings.

    Returns
    -------
    Any
        As `kernelpot.active.oracle.label_all` takes it.

    Raises
    ------
    SettingsError
        If the class or function is not where the settings say.
    """
    values = table.model_dump(exclude={"kind"})
    if table.kind == "files":
        return FileOracle(**values)
    if table.kind == "python":
        return _function(values["function"])
    parameters = {**values, **values.get("parameters", {})}
    parameters = {k: v for k, v in parameters.items() if k != "parameters" and v is not None}
    if table.kind == "emt":
        return _maker("ase.calculators.emt", "EMT", {})
    if table.kind == "ase":
        module, _, name = values["calculator"].rpartition(".")
        _check_class(module, name, values["calculator"])
        return _maker(module, name, values["parameters"])
    _check_installed(table.kind)
    if table.kind == "tblite":
        return _maker("tblite.ase", "TBLite", {"verbosity": 0, **parameters})
    # GPAW knows None for "write nothing"; its own default is standard output.
    return _maker("gpaw", "GPAW", {"txt": None, **parameters})


def _maker(module: str, name: str, parameters: dict[str, Any]) -> Callable[[], Any]:
    """A function without arguments that makes a calculator.

    It is nested so that it is sent by value: its process need not import this library.
    """

    def make() -> Any:
        from importlib import import_module

        return getattr(import_module(module), name)(**parameters)

    return make


def _check_installed(library: str) -> None:
    if find_spec(library) is None:
        raise ImportError(
            f'[oracle] kind = "{library}" needs {library}, which is not installed:'
            f" pip install 'kernelpot[{library}]'"
        )


def _check_class(module: str, name: str, given: str) -> None:
    place = "[oracle] calculator"
    if not module:
        raise SettingsError(f'{place}: {given!r} was given; allowed: "module.Class"')
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise ImportError(f"{place}: {module} cannot be imported: {error}") from error
    if not callable(found):
        raise SettingsError(f"{place}: there is no class {name} in {module}")


def _function(given: str) -> Callable[[], Any]:
    """What labels; it is loaded here, too, so that its faults are known at once."""
    place = "[oracle] function"
    load = _loader(
        place,
        given,
        "a function of a structure, of a function that makes a calculator, or of a calculator",
    )
    found = load()
    if not (callable(found) or hasattr(found, "get_potential_energy")):
        raise SettingsError(
            f"{place}: {given} is neither a function nor a calculator, but {type(found).__name__}"
        )
    return load


def make_observable(settings: ObservableSettings | None) -> Observable | None:
    """What is to converge.

    Parameters
    ----------
    settings : ObservableSettings | None
        The section, where there is one.

    Returns
    -------
    Observable | None
        Of the frames of an exploration.

    Raises
    ------
    SettingsError
        If there is no such function where the settings say.
    """
    return None if settings is None else _loaded("[observable] function", settings.function)


def make_relevance(settings: RelevanceSettings | None) -> Relevance | None:
    """What structures are worth beside what their labels tell.

    Parameters
    ----------
    settings : RelevanceSettings | None
        The section, where there is one.

    Returns
    -------
    Relevance | None
        Of atoms.

    Raises
    ------
    SettingsError
        If there is no such function where the settings say.
    """
    if settings is None or settings.function == "low_energy":
        return low_energy if settings else None
    return _loaded("[relevance] function", settings.function)


def make_laws(tables: list[Any]) -> list[Law]:
    """What is known of the true potential.

    Parameters
    ----------
    tables : list[Any]
        Of their settings.

    Returns
    -------
    list[Law]
        In their order.

    Raises
    ------
    SettingsError
        If there is no such function where the settings say.
    """
    laws = []
    for number, table in enumerate(tables):
        if table.kind == "energy_below":
            name, violation = f"energy below {table.minimum:g} eV/atom", energy_below(table.minimum)
        else:
            name = table.function
            violation = _loaded(f"{place_of(number, tables, 'law')} function", table.function)
        laws.append(Law(name, violation, table.tolerance, table.weight))
    return laws


def _loaded(place: str, given: str) -> Callable[..., Any]:
    """A function that is called here."""
    found = _loader(place, given, "a function")()
    if not callable(found):
        raise SettingsError(f"{place}: {given} is no function, but {type(found).__name__}")
    return found


def _loader(place: str, given: str, wanted: str) -> Callable[[], Any]:
    """Runs a file and gives what it defines; sent by value, so that no process needs this module.

    It is checked that the file is there and defines it.
    """
    file, _, name = given.rpartition(":")
    if not file or not name:
        raise SettingsError(
            f'{place}: {given!r} was given; allowed: "file.py:name", the name of {wanted}'
        )
    path = Path(file).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{place}: there is no file {file}")

    def load() -> Any:
        beside = str(path.parent)
        if beside not in sys.path:  # it may import files beside it
            sys.path.insert(0, beside)
        return runpy.run_path(str(path)).get(name)

    try:
        found = load()
    except Exception as error:  # whatever is wrong with the user's file
        raise SettingsError(f"{place}: {file} fails, {type(error).__name__}: {error}") from error
    if found is None:
        raise SettingsError(f"{place}: {file} defines no {name}")
    return load


def _read(paths: str | list[str], index: str) -> list[Atoms]:
    paths = [paths] if isinstance(paths, str) else paths
    return [atoms for path in paths for atoms in read_images(path, index)]
