"""The process in which an oracle works: labels one structure after another, until its pipe closes.

It is run as a script, by path, and imports nothing of this library: so that it is there in a tenth
of a second, and again after it was killed. Standard input and output are the pipes; the oracle gets
others in their place, since many calculators print.
"""

from __future__ import annotations

import contextlib
import difflib
import faulthandler
import inspect
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties

__all__ = ["Labeller", "describe", "receive", "results_of", "send"]

_GRACE = 10.0
"""Seconds after the time limit at which the process ends itself, if nobody has ended it."""
_LONGEST = 300
"""Characters of a reason."""


def send(pipe: FileIO, message: Any) -> None:
    """Write a message to an unbuffered pipe.

    Parameters
    ----------
    pipe : FileIO
        Unbuffered, so that it has no lock that a fork could copy while it is held.
    message : Any
        To be pickled.
    """
    content = pickle.dumps(message)
    left = memoryview(len(content).to_bytes(8, "little") + content)
    while left:
        left = left[pipe.write(left) :]


def receive(pipe: FileIO) -> Any:
    """Read a message, waiting for it.

    Parameters
    ----------
    pipe : FileIO
        Where `send` wrote to the other end.

    Returns
    -------
    Any
        The message.

    Raises
    ------
    EOFError
        If the process at the other end is gone.
    """
    return pickle.loads(_read(pipe, int.from_bytes(_read(pipe, 8), "little")))


def _read(pipe: FileIO, n_bytes: int) -> bytes:
    content = bytearray()
    while len(content) < n_bytes:
        part = pipe.read(n_bytes - len(content))
        if not part:
            raise EOFError("the process at the other end is gone")
        content += part
    return bytes(content)


def describe(error: BaseException) -> str:
    """Say in a line what went wrong, and where.

    Parameters
    ----------
    error : BaseException
        As it was caught.

    Returns
    -------
    str
        Type, text, and the line of code that raised it.
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    frames = traceback.extract_tb(error.__traceback__)
    where = (
        f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    )
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def results_of(found: Any, periodic: bool) -> dict[str, Any]:
    """Labels in what an oracle has returned.

    Parameters
    ----------
    found : Any
        A structure with a calculator, or a mapping with "energy", "forces" and "stress".
    periodic : bool
        Whether there is a stress.

    Returns
    -------
    dict[str, Any]
        The same names; and "free_energy" where there is one, "numbers", "positions" and "cell"
        where a structure came.

    Raises
    ------
    TypeError
        If it is neither, or a structure without a calculator, or a name is misspelt.
    """
    if isinstance(found, Mapping):
        names = ("energy", "free_energy", "forces", "stress")
        for name in {"energy", "forces", "stress"} - found.keys():
            others = map(str, found.keys() - set(all_properties))
            near = difflib.get_close_matches(name, others, n=1)
            if near:
                raise TypeError(f"the oracle returned {near[0]!r}; did it mean {name!r}?")
        given = {name: found.get(name) for name in names if periodic or name != "stress"}
        return {name: np.asarray(x) for name, x in given.items() if x is not None}
    if not isinstance(found, Atoms):
        raise TypeError(
            f"the oracle returned {type(found).__name__}, which is neither a structure with a "
            "calculator nor a dict with 'energy', 'forces' and 'stress'"
        )
    if found.calc is None:
        raise TypeError("the oracle returned a structure without a calculator")
    results = {"energy": found.get_potential_energy(apply_constraint=False)}
    ask = {"forces": found.get_forces} | ({"stress": found.get_stress} if periodic else {})
    for name, get in ask.items():
        with contextlib.suppress(NotImplementedError):  # no property of this calculator
            results[name] = get(apply_constraint=False)
    free = getattr(found.calc, "results", {}).get("free_energy")
    if free is not None:
        results["free_energy"] = free
    results |= {"numbers": found.numbers, "positions": found.positions, "cell": found.cell[:]}
    return {name: np.asarray(x) for name, x in results.items()}


class Labeller:
    """Labels by an oracle of any kind.

    No label depends on those before it, so that a run that was interrupted repeats: a calculator
    is reset, or made anew where it has no ``reset``. After an error everything is made anew.

    Parameters
    ----------
    oracle : Callable[[], Any]
        Gives the oracle as the user gave it: a calculator, a function of a structure, or a
        function without arguments that makes one of these.

    Raises
    ------
    TypeError
        If the oracle is something else.
    """

    def __init__(self, oracle: Callable[[], Any]):
        self._oracle = oracle
        self._ready: Any = _made(oracle())

    def __call__(self, atoms: Atoms) -> dict[str, Any]:
        """Results for a structure.

        Parameters
        ----------
        atoms : Atoms
            Bare; a calculator is attached to it.

        Returns
        -------
        dict[str, Any]
            As from `results_of`.
        """
        source = _made(self._oracle()) if self._ready is None else self._ready
        self._ready = None
        calculates = _is_calculator(source)
        if calculates:
            atoms.calc = source
        results = results_of(atoms if calculates else source(atoms), bool(atoms.pbc.all()))
        if calculates and hasattr(source, "reset"):
            source.reset()
        if not calculates or hasattr(source, "reset"):
            self._ready = source
        return results


def _made(oracle: Any) -> Any:
    """A calculator or function; what needs no argument makes one."""
    if _is_calculator(oracle):
        return oracle
    if not callable(oracle):
        raise TypeError(
            f"an oracle is a calculator, a function of a structure, or a function that makes one; "
            f"{type(oracle).__name__} is none of these"
        )
    try:
        inspect.signature(oracle).bind()
    except (TypeError, ValueError):  # it needs a structure, or does not say
        return oracle
    return _made(oracle())


def _is_calculator(oracle: Any) -> bool:
    return not isinstance(oracle, type) and hasattr(oracle, "get_potential_energy")


def _serve(requests: queue.Queue[Any], answers: FileIO) -> None:
    pickled = requests.get()
    try:
        label = Labeller(lambda: pickle.loads(pickled))
    except BaseException as error:
        send(answers, ("failed", describe(error), 0.0))
        return
    send(answers, ("ready", "", 0.0))
    while True:
        structure, time_limit = requests.get()
        if time_limit is not None:
            # A thread of C, which also ends a calculator that never lets Python run.
            faulthandler.dump_traceback_later(time_limit + _GRACE, exit=True, file=2)
        start = time.perf_counter()
        try:
            results = label(pickle.loads(structure))
        except BaseException as error:  # also sys.exit() in an oracle
            send(answers, ("failed", describe(error), time.perf_counter() - start))
        else:
            send(answers, ("results", results, time.perf_counter() - start))
        faulthandler.cancel_dump_traceback_later()


def _listen(pipe: FileIO, requests: queue.Queue[Any]) -> None:
    """Pass requests on; end everything when the process at the other end is gone."""
    try:
        while True:
            requests.put(receive(pipe))
    except BaseException:
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)  # with what the oracle has started
        os._exit(1)


def main() -> None:
    """Take the pipes and work."""
    requests, answers = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    waiting: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    _serve(waiting, answers)


if __name__ == "__main__":
    main()
