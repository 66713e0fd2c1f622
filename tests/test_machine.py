"""Threads: what they compute does not depend on their number, and they end as they began."""

import os
import threading
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose
from threadpoolctl import threadpool_info, threadpool_limits

from kernelpot import KernelPotential, _machine
from tests.conftest import alloy


@pytest.fixture
def with_threads(monkeypatch):
    def set_number(n):
        monkeypatch.setenv("NUMBA_NUM_THREADS", str(n))

    return set_number


def blas_threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_results_come_in_order_and_from_several_threads(with_threads):
    with_threads(3)
    met = threading.Barrier(3, timeout=20)  # broken unless three run at once

    def work(k):
        met.wait()
        return k, threading.get_ident()

    found = _machine.side_by_side(work, range(3))
    assert [k for k, _ in found] == [0, 1, 2]
    assert len({thread for _, thread in found}) == 3


def test_blas_has_one_thread_inside_and_as_many_as_before_afterwards(with_threads):
    with_threads(2)
    before = blas_threads()
    inside = _machine.side_by_side(lambda _: blas_threads(), range(4))
    assert all(set(one) == {1} for one in inside)
    assert blas_threads() == before


def test_divided_work_may_divide_again(with_threads):
    with_threads(2)

    def outer(k):
        return sum(_machine.side_by_side(lambda i: i * k, range(5)))

    assert _machine.side_by_side(outer, range(8)) == [10 * k for k in range(8)]


def test_an_error_comes_out(with_threads):
    with_threads(2)

    def work(k):
        if k == 3:
            raise ValueError("the third")
        time.sleep(0.001)
        return k

    before = blas_threads()
    with pytest.raises(ValueError, match="the third"):
        _machine.side_by_side(work, range(6))
    assert blas_threads() == before
    assert _machine.side_by_side(work, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_work_goes_on_beside_the_calling_thread(n, with_threads):
    with_threads(n)
    begun = threading.Event()

    def work(k):
        begun.set()
        return 2 * k

    wait = _machine.beside(work, range(7))
    assert n == 1 or begun.wait(20)
    assert wait() == list(range(0, 14, 2))

    def fail(k):
        raise ValueError("the first")

    wait = _machine.beside(fail, range(50))
    with pytest.raises(ValueError, match="the first"):
        wait()
    assert _machine.beside(work, [])() == []


@pytest.mark.parametrize("n", [1, 2, 4])
def test_results_come_ahead_in_order_and_no_more_than_there_is_room_for(n, with_threads):
    with_threads(n)
    lock, begun, taken = threading.Lock(), [], []

    def work(k):
        with lock:
            # What waits or is on its way; the caller has taken the others. The last may exceed it.
            assert sum(sizes[j] for j in begun[len(taken) :]) < 6 + max(sizes)
            begun.append(k)
        time.sleep(0.001 * (k % 3))
        return k

    sizes = [1 + k % 4 for k in range(40)]
    for found in _machine.ahead(work, range(40), sizes, 6):
        assert set(blas_threads()) == {1}
        taken.append(found)
    assert taken == list(range(40))
    assert sorted(begun) == taken
    assert list(_machine.ahead(work, [], [], 6)) == []


def test_nothing_more_is_computed_for_one_who_has_left(with_threads):
    with_threads(2)
    begun, before = [], blas_threads()
    results = _machine.ahead(lambda k: begun.append(k), range(1000), [1] * 1000, 4)
    next(results)
    results.close()
    assert len(begun) <= 5
    assert blas_threads() == before

    def fail(k):
        if k == 9:
            raise ValueError("the tenth")

    with pytest.raises(ValueError, match="the tenth"):
        list(_machine.ahead(fail, range(1000), [1] * 1000, 4))
    assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(with_threads):
    """A pool outlives a fork as a record without threads: work given to it never ended."""
    with_threads(2)
    assert _machine.side_by_side(abs, range(4)) == [0, 1, 2, 3]
    child = os.fork()
    if child == 0:
        os._exit(0 if _machine.side_by_side(abs, range(4)) == [0, 1, 2, 3] else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("given", ["", "none", "0", "-2"])
def test_number_of_threads_without_a_usable_wish(given, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", given)
    assert 1 <= _machine.n_threads() <= (os.cpu_count() or 1)


def test_processes_share_the_cores(monkeypatch, with_threads):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(_machine, "_processes", 1)
    cores = _machine.n_threads()
    _machine.share_threads(2)
    assert _machine.n_threads() == max(1, cores // 2)
    _machine.share_threads(1000)
    assert _machine.n_threads() == 1
    with_threads(3)
    assert _machine.n_threads() == 3


def test_a_prediction_does_not_depend_on_the_number_of_threads(with_threads, emt_images, emt_soap):
    found = []
    large = alloy(np.random.default_rng(3)) * (3, 3, 2)
    for n in (1, 2, 3):
        with_threads(n)
        model = KernelPotential(emt_soap, n_environments=10, n_tangents=4).fit(emt_images[:12])
        several, one = model.predict(emt_images[12:20]), model.predict([large])
        found.append((several.energy, one.forces[0], one.stress))  # eV, eV/A, eV/A^3
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_allclose(b, a, rtol=0.0, atol=1e-12 * np.abs(a).max())


def test_a_fit_is_the_same_to_the_bit_on_any_number_of_threads(with_threads, emt_images, emt_soap):
    found = []
    # Enough inducing variables that BLAS would divide what it is given, and that panels follow.
    settings = {"n_environments": 40, "n_tangents": 8}
    for n in (1, 2, 3):
        with_threads(n)
        with threadpool_limits(n, user_api="blas"):
            model = KernelPotential(emt_soap, **settings).fit(emt_images[:20])
            found.append(model.partial_fit(emt_images[20:24]).fitted_.weights_m)
    assert len(found[0]) > 300
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
