"""Label structures: by any ASE calculator or function, several at once, or by files for a queue.

Every label is computed in a process of its own, which is kept for the next one: so that one that
hangs is ended, and one that crashes takes nobody along. Whatever happens to a label, it is recorded
with its reason and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from typing import Any

import cloudpickle
from ase import Atoms

from kernelpot.active.oracle_child import describe
from kernelpot.active.oracle_files import FileOracle
from kernelpot.active.oracle_pool import compute_label, end_processes
from kernelpot.active.oracle_results import bare, failed
from kernelpot.active.records import Label

__all__ = ["FileOracle", "Label", "end_processes", "label_all"]


def label_all(
    oracle: Any,
    structures: Sequence[Atoms],
    *,
    executor: Executor | None = None,
    n_parallel: int = 1,
    time_limit: float | None = None,
    threads: int = 1,
    tell: Callable[[int, Label], None] | None = None,
) -> list[Label]:
    """Label structures, several at once.

    Parameters
    ----------
    oracle : Any
        An ASE calculator; a function of a structure, which returns a structure with a calculator
        or a dict of "energy" (eV), "forces" (eV/angstrom) and, where periodic, "stress"
        (eV/angstrom^3, tension positive); a function without arguments that makes one of these,
        such as ``lambda: TBLite(method="GFN2-xTB")`` or a class; or a `FileOracle`. Functions may
        be defined anywhere, since they are sent by value. A calculator labels every structure
        afresh, whatever it has labelled before.
    structures : Sequence[Atoms]
        Constraints do not count.
    executor : Executor | None
        Where to: any of ``concurrent.futures``, Dask (``client.get_executor()``), mpi4py or
        executorlib. None: `n_parallel` processes of this machine. A `FileOracle` needs none.
    n_parallel : int
        Labels at once, without an executor.
    time_limit : float | None
        Seconds for one label; then its process is ended and the label has failed.
    threads : int
        For BLAS and OpenMP of each label.
    tell : Callable[[int, Label], None] | None
        Called with place and label as each is finished, in this thread.

    Returns
    -------
    list[Label]
        In the order of the structures; a label that failed says why.

    Raises
    ------
    TypeError
        If this is no oracle, or cannot be sent to a process.
    ValueError
        If a number is not positive.
    """
    for name, value in (("n_parallel", n_parallel), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} is {value}; at least 1 is needed.")
    if time_limit is not None and not time_limit > 0.0:
        raise ValueError(f"time_limit is {time_limit}; give seconds above 0, or None for no limit.")
    tell = tell or _tell_nobody
    if isinstance(oracle, FileOracle):
        return oracle.label_all(structures, time_limit=time_limit, tell=tell)
    pickled = _pickled(oracle)
    if executor is not None:
        return _by(executor, pickled, threads, structures, time_limit, tell)
    with ThreadPoolExecutor(n_parallel) as own:
        return _by(own, pickled, threads, structures, time_limit, tell)


def _by(
    executor: Executor,
    oracle: bytes,
    threads: int,
    structures: Sequence[Atoms],
    time_limit: float | None,
    tell: Callable[[int, Label], None],
) -> list[Label]:
    labels: dict[int, Label] = {}
    place_of: dict[Future[Label], int] = {}

    def record(place: int, label: Label) -> None:
        labels[place] = label
        tell(place, label)

    try:
        for place, atoms in enumerate(structures):
            try:
                future = executor.submit(compute_label, oracle, threads, bare(atoms), time_limit)
            except Exception as error:  # a pool that is broken
                record(place, failed(f"the executor took no label: {describe(error)}", 0.0))
            else:
                place_of[future] = place
        for future in as_completed(place_of):
            record(place_of[future], _result(future))
    except BaseException:
        # Ctrl-C, or an error of `tell`. Executors do not end what runs; its process is ended here
        # where it is ours, and elsewhere by its time limit.
        for future in place_of:
            future.cancel()
        end_processes()
        raise
    return [labels[place] for place in range(len(structures))]


def _result(future: Future[Label]) -> Label:
    try:
        return future.result()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # CancelledError; a worker that died
        return failed(f"the executor lost the label: {describe(error)}", 0.0)


def _pickled(oracle: Any) -> bytes:
    if not (callable(oracle) or hasattr(oracle, "get_potential_energy")):
        raise TypeError(
            f"An oracle is an ASE calculator, a function or a FileOracle; {type(oracle).__name__} "
            "is none of these."
        )
    try:
        return cloudpickle.dumps(oracle)
    except Exception as error:  # every library refuses in its own way
        raise TypeError(
            f"The oracle cannot be sent to a process of its own ({type(error).__name__}: {error}). "
            "Give a function that makes it there, such as lambda: TBLite(method='GFN2-xTB'), or a "
            "calculator that has not calculated yet."
        ) from error


def _tell_nobody(place: int, label: Label) -> None:
    """Whom nobody listens to."""
