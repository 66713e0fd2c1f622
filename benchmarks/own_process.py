"""A function in a process of its own, so that its peak memory can be stated."""

import multiprocessing
import resource
from pathlib import Path


def in_own_process(function, *arguments):
    """What a function puts into the queue that it gets as its last argument.

    Raises
    ------
    SystemExit
        If the process ends without that, for want of memory perhaps.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=function, args=(*arguments, queue))
    worker.start()
    while worker.is_alive() and queue.empty():
        worker.join(0.2)
    if queue.empty():
        words = " ".join(str(argument) for argument in arguments)
        raise SystemExit(f"{function.__name__} {words} ended with exit code {worker.exitcode}")
    found = queue.get()
    worker.join()
    return found


def peak_memory():
    """Largest resident memory of this process so far, bytes.

    Not ru_maxrss where Linux says more: that begins with what the parent had.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
