"""Several labels at once by executors of all kinds; processes end when they should."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from ase.calculators.emt import EMT

from kernelpot.active.oracle import end_processes, label_all
from tests.active_oracles import assert_labelled, behaves, coppers, pids, slow

ROOT = Path(__file__).parent.parent
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at processes in /proc")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.prefix, "bin")))
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIEXEC is None,
    reason="needs pip install mpi4py mpich",
)
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")


@pytest.fixture(scope="module", autouse=True)
def no_processes_left():
    yield
    end_processes()


@pytest.fixture
def cells():
    return coppers()


def alive(pid):
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=30.0):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


def test_several_at_once(cells):
    label_all(slow, cells[:4], n_parallel=4)
    start = time.time()
    labels = label_all(slow, cells, n_parallel=4)
    assert len(pids(labels)) == 4
    assert time.time() - start < 3.0  # 4 s one after another


def test_a_hanging_label_holds_up_nobody(cells):
    cells[0].info["trouble"] = "hangs"
    order = []
    labels = label_all(
        behaves, cells, n_parallel=2, time_limit=6.0,
        tell=lambda place, label: order.append(place),
    )  # fmt: skip
    assert "time limit" in labels[0].reason
    assert order[-1] == 0
    for label, atoms in zip(labels[1:], cells[1:], strict=True):
        assert_labelled(label, atoms, EMT())


def check_executor(executor, cells, n_processes):
    """Right labels and failures by any executor."""
    cells[2].info["trouble"] = cells[5].info["trouble"] = "segfault"
    told = {}
    labels = label_all(behaves, cells, executor=executor, time_limit=60.0, tell=told.__setitem__)
    for k, (label, atoms) in enumerate(zip(labels, cells, strict=True)):
        assert told[k] is label
        if k in (2, 5):
            assert "SIGSEGV" in label.reason
        else:
            assert_labelled(label, atoms, EMT())
    cells[2].info["trouble"] = "hangs"
    labels = label_all(behaves, cells[:4], executor=executor, time_limit=2.0)
    assert ["time limit" in label.reason for label in labels] == [False, False, True, False]
    first = pids(label_all(slow, cells, executor=executor))
    assert 1 <= len(first) <= n_processes
    again = pids(label_all(slow, cells, executor=executor))
    assert len(first | again) <= n_processes, "processes are kept"


@pytest.mark.slow
def test_threads_of_the_user(cells):
    with ThreadPoolExecutor(3) as executor:
        check_executor(executor, cells, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_process_pool(method, cells):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not known here")
    # A process that this one has already, which a fork inherits, is used by this one alone.
    end_processes()
    mine = pids(label_all(slow, cells[:1]))
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        check_executor(executor, cells, 2)
        assert not mine & pids(label_all(slow, cells, executor=executor))
    assert mine == pids(label_all(slow, cells[:1]))


@pytest.mark.slow
def test_dask(cells):
    distributed = pytest.importorskip("distributed", reason="needs pip install 'kernelpot[dask]'")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):  # fmt: skip
        check_executor(executor, cells, 2)


@pytest.mark.slow
def test_executorlib(cells):
    reason = "needs pip install executorlib"
    executorlib = pytest.importorskip("executorlib", reason=reason)
    with executorlib.SingleNodeExecutor(max_workers=2, block_allocation=True) as executor:
        check_executor(executor, cells, 2)


@pytest.mark.slow
@needs_mpi
def test_mpi4py(tmp_path):
    """One process that gives, two that take."""
    script = tmp_path / "labels.py"
    script.write_text("""
from mpi4py.futures import MPIPoolExecutor
from tests.active_oracles import coppers
from tests.test_active_oracle_processes import check_executor

if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        check_executor(executor, coppers(), 2)
    print("all labels are right")
""")
    words = [MPIEXEC, "-n", "3", sys.executable, "-m", "mpi4py.futures", str(script)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "all labels are right\n"), done.stderr


def test_a_pool_that_breaks_loses_labels_but_not_the_loop(cells):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(os.getpid).result()
        for process in list(executor._processes.values()):
            process.kill()
        wait_until(lambda: executor._broken)
        labels = label_all(EMT(), cells[:2], executor=executor)
    assert all("the executor took no label: BrokenProcessPool" in one.reason for one in labels)


def test_an_executor_that_was_shut_down(cells):
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    (label,) = label_all(EMT(), cells[:1], executor=executor)
    assert "cannot schedule new futures" in label.reason


def test_an_error_of_the_listener_ends_the_processes(cells):
    def full(place, label):
        raise OSError("No space left on device")

    for atoms in cells[1:]:
        atoms.info["trouble"] = "hangs"
    start = time.time()
    with pytest.raises(OSError, match="No space left"):
        label_all(behaves, cells, n_parallel=2, tell=full)
    assert time.time() - start < 60.0


# The end of processes.

STARTS_A_PROGRAM = """
import os, signal, subprocess, sys, time
from ase.build import bulk
from kernelpot.active.oracle import label_all

name = sys.argv[1]
# What a shell has started in the background ignores it, and so would this.
signal.signal(signal.SIGINT, signal.default_int_handler)

def hangs(atoms):
    program = subprocess.Popen(["sleep", "600"])
    with open(name, "a") as file:
        print(os.getpid(), program.pid, file=file)
    time.sleep(600)

label_all(hangs, [bulk("Cu")] * 2, n_parallel=2)
"""


@needs_posix
@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_parent(how, tmp_path):
    script, file = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(STARTS_A_PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(file)], env=environment, stderr=subprocess.PIPE
    )
    with parent:
        wait_until(lambda: file.exists() and len(file.read_text().split()) == 4, 60.0)
        found = [int(pid) for pid in file.read_text().split()]
        assert all(map(alive, found))
        parent.send_signal(how)
        try:
            errors = parent.communicate(timeout=30.0)[1].decode()
        finally:
            parent.kill()  # else leaving the block would wait for it
    assert ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
    # The oracle's processes, and what they have started.
    wait_until(lambda: not any(map(alive, found)))


@needs_posix
@needs_proc
def test_a_time_limit_ends_what_the_oracle_has_started(cells, tmp_path):
    file = tmp_path / "pid"

    def hangs(atoms):
        with open(file, "w") as out:
            out.write(str(subprocess.Popen(["sleep", "600"]).pid))
        time.sleep(600)

    (label,) = label_all(hangs, cells[:1], time_limit=2.0)
    assert "time limit" in label.reason
    wait_until(lambda: not alive(int(file.read_text())), 5.0)


@needs_posix
@needs_proc
def test_a_calculator_that_never_lets_python_run_ends_too(cells):
    def holds_the_lock(atoms):
        ctypes.PyDLL(None).sleep(600)  # as Fortran that does not release the interpreter's lock

    start = time.time()
    (label,) = label_all(holds_the_lock, cells[:1], time_limit=1.0)
    assert "time limit" in label.reason
    assert time.time() - start < 30.0
