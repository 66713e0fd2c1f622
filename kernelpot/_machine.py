"""What the machine offers: its cores, how BLAS and this library share them, and its memory.

Compiled loops of this library run on one thread each. Work that divides is divided above them, into
blocks of centres or structures, and given to threads that each call BLAS for themselves: so nothing
waits for anything between, and results are those of one thread.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

__all__ = [
    "ahead",
    "beside",
    "n_threads",
    "one_blas_thread",
    "one_thread",
    "physical_memory",
    "resident_memory",
    "share_threads",
    "side_by_side",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()
"""Whether this thread is one of the pool's: what it divides further it does itself."""


_processes = 1
"""How many processes share the cores (`share_threads`)."""


def n_threads() -> int:
    """Threads that this library uses.

    Returns
    -------
    int
        NUMBA_NUM_THREADS, or this process's share of the cores that it may run on.
    """
    wanted = os.environ.get("NUMBA_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    has_affinity = hasattr(os, "sched_getaffinity")
    n_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, n_cores // _processes)


def share_threads(n_processes: int) -> None:
    """Divide the cores among processes of one machine.

    Parameters
    ----------
    n_processes : int
        How many run side by side. Where NUMBA_NUM_THREADS says how many threads each is to have,
        nothing changes.
    """
    global _processes
    _processes = max(1, n_processes)


@functools.cache
def _controller() -> ThreadpoolController:
    # Looking the libraries up takes milliseconds; setting their threads, 20 us.
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager:
    """Keep BLAS to one thread, where products are short or several threads call it.

    After a product the threads of OpenBLAS wait by spinning, on cores that other work needs.

    Returns
    -------
    AbstractContextManager
        Restores the number of threads at its end.
    """
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    def start() -> None:
        _here.in_pool = True

    return ThreadPoolExecutor(size, "kernelpot", initializer=start)


if hasattr(os, "register_at_fork"):
    # A forked process has the pool's record, not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _alone() -> bool:
    """Whether the calling thread has no others to help it."""
    return getattr(_here, "in_pool", False) or n_threads() == 1


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    """Call it as the pool's threads do: what it divides, it does itself."""
    before = getattr(_here, "in_pool", False)
    _here.in_pool = True
    try:
        return function(item)
    finally:
        _here.in_pool = before


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call a function with every item, by all threads, BLAS on one thread in each.

    Parameters
    ----------
    function : Callable[[Item], Result]
        Spends its time where the interpreter lock is free: in compiled loops and in BLAS. What
        calls write to the same place has to lie apart.
    items : Sequence[Item]
        Its arguments.

    Returns
    -------
    list[Result]
        In the order of the items.
    """
    if getattr(_here, "in_pool", False):  # BLAS is kept to one thread already
        return [function(item) for item in items]
    with one_blas_thread():
        if len(items) < 2:  # it may divide its own work
            return [function(item) for item in items]
        return beside(function, items)()


def beside(function: Callable[[Item], Result], items: Sequence[Item]) -> Callable[[], list[Result]]:
    """Begin to call a function with every item, while the calling thread does something else.

    Parameters
    ----------
    function : Callable[[Item], Result]
        As for `side_by_side`; BLAS has to be kept to one thread (`one_blas_thread`).
    items : Sequence[Item]
        Its arguments.

    Returns
    -------
    Callable[[], list[Result]]
        Does what no other thread has begun, waits for the rest, and gives the results in the order
        of the items.
    """
    if _alone():
        return lambda: [function(item) for item in items]
    results: list[Any] = [None] * len(items)
    left = deque(range(len(items)))

    def work() -> None:
        while True:
            try:
                k = left.popleft()
            except IndexError:
                return
            results[k] = _call(function, items[k])

    pool, n_helpers = _pool(n_threads() - 1), min(n_threads() - 1, len(items))
    helpers = [pool.submit(work) for _ in range(n_helpers)]

    def wait() -> list[Result]:
        try:
            work()
        finally:
            left.clear()
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
        return results

    return wait


def ahead(
    function: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[float], most: float
) -> Iterator[Result]:
    """Call a function with every item, ahead of the one who takes the results.

    Parameters
    ----------
    function : Callable[[Item], Result]
        As for `side_by_side`.
    items : Sequence[Item]
        Its arguments.
    sizes : Sequence[float]
        Of the results.
    most : float
        Nothing is begun while results of this size wait or are on their way.

    Yields
    ------
    Result
        In the order of the items. BLAS is kept to one thread meanwhile.
    """
    with one_blas_thread():
        if _alone():
            yield from map(function, items)
            return
        pool, waiting, total = _pool(n_threads() - 1), deque[_Ahead](), 0.0
        try:
            for item, size in zip(items, sizes, strict=True):
                while total >= most:
                    total -= waiting[0].size
                    yield _taken(function, waiting)
                waiting.append(_Ahead(item, size, pool.submit(_call, function, item)))
                total += size
            while waiting:
                yield _taken(function, waiting)
        finally:
            # What runs ends before BLAS has its threads again.
            running = [one.future for one in waiting if not one.future.cancel()]
            futures_wait(running)


@dataclass(frozen=True)
class _Ahead:
    """A call that another thread makes, if it comes to it."""

    item: Any
    size: float
    future: Future[Any]


def _taken(function: Callable[[Item], Result], waiting: deque[_Ahead]) -> Result:
    """The result of the first call; until it is there, the calling thread makes the others."""
    first = waiting.popleft()
    if first.future.cancel():
        return _call(function, first.item)
    for k, other in enumerate(waiting):
        if first.future.done():
            break
        if other.future.cancel():
            done: Future[Any] = Future()
            done.set_result(_call(function, other.item))
            waiting[k] = replace(other, future=done)
    return first.future.result()


class _Crowd:
    """Threads of this process that want one thread of BLAS each, whose number holds for all."""

    lock = threading.Lock()
    size = 0
    limit: AbstractContextManager | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep BLAS and divided work to the calling thread, also where several threads ask for that.

    Yields
    ------
    None
        Nothing; when the last one leaves, the numbers of threads are what they were.
    """
    with _Crowd.lock:
        _Crowd.size += 1
        if _Crowd.size == 1:
            _Crowd.limit = one_blas_thread()
    before = getattr(_here, "in_pool", False)
    _here.in_pool = True
    try:
        yield
    finally:
        _here.in_pool = before
        with _Crowd.lock:
            _Crowd.size -= 1
            if _Crowd.size == 0:
                _Crowd.limit.restore_original_limits()


def physical_memory() -> float:
    """Memory of this machine.

    Returns
    -------
    float
        Bytes; 16 GB where the system does not say.
    """
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 16e9
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


def resident_memory() -> float:
    """Memory that this process has now.

    Returns
    -------
    float
        Bytes; where the system does not say, the most it has had, or else 0.3 GB: what Python
        takes with the libraries of this one.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0.3e9
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
