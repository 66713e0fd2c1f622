"""Work beside a wait, and what a learner does while its oracle works."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from kernelpot.active.knowledge import Knowledge
from kernelpot.active.meanwhile import Meanwhile, StoppedError
from tests.active_run import small_model


def test_both_are_done_at_its_end():
    threads = []

    def work(check):
        time.sleep(0.05)
        check()
        threads.append(threading.current_thread())

    with Meanwhile(work):
        assert not threads
    assert threads[0] is not threading.current_thread()


def test_an_error_of_the_work_is_raised_at_the_end():
    def work(check):
        raise MemoryError("for the matrix")

    seen = []

    def block():
        with Meanwhile(work):
            time.sleep(0.05)
            seen.append("the block went on")

    with pytest.raises(MemoryError, match="for the matrix"):
        block()
    assert seen


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_error_of_the_block_the_work_is_asked_to_stop(error):
    stopped = []

    def work(check):
        for _ in range(1000):
            time.sleep(0.005)
            try:
                check()
            except StoppedError:
                stopped.append(True)
                raise

    started = time.perf_counter()
    with pytest.raises(error), Meanwhile(work):
        raise error
    assert stopped
    assert time.perf_counter() - started < 2.0


# ---------------------------------------------------------------- what is known, kept in order


def test_maintenance_beside_the_oracle_gives_the_same_model(emt_images):
    beside, first = Knowledge(small_model()), Knowledge(small_model())
    batches = [emt_images[:2], emt_images[2:5], emt_images[5:8], emt_images[8:11]]
    said = []
    for new in batches:
        with Meanwhile(beside.maintain):
            time.sleep(0.01)
        one, other = beside.learn(new), first.learn(new)
        assert (one.how, one.why, one.maintained) == (other.how, other.why, other.maintained)
        assert one.surprises == other.surprises
        assert beside.fingerprint() == first.fingerprint()
        said.append(one.maintained)
    assert said[:2] == ["", ""]  # there was nothing to maintain, and too little was new
    assert said[2].startswith("fit to all, 5 structures, 2 at the last fit")
    # Nothing is done twice, and nothing without new labels.
    before = beside.fingerprint()
    assert beside.learn([]).how == "nothing"
    assert beside.fingerprint() == before


def test_maintenance_that_is_stopped_changes_nothing(emt_images):
    known = Knowledge(small_model())
    known.learn(emt_images[:2])
    known.learn(emt_images[2:5])
    before, model = known.fingerprint(), known.model
    assert model.schedule_.advice.refit

    def check():
        raise StoppedError

    with pytest.raises(StoppedError):
        known.maintain(check)
    assert known.model is model
    assert known.fingerprint() == before
    known.maintain()
    assert known.model is not model
    assert known.model.progress is None
    assert np.isfinite(known.recent_errors).all()
