"""How fast this machine is at what fits and predictions consist of, measured in a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from kernelpot.gp.covariances import K_mm
from kernelpot.gp.householder import absorb
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.triangles import RowReducer, empty_triangle

__all__ = ["Clock", "Rates", "best_of", "measure_rates", "product_rate"]

Clock = Callable[[], float]
"""Gives seconds: `time.perf_counter`, or `time.process_time` on a machine that does other work."""


class Rates(NamedTuple):
    """Floating-point operations per second of each kind of work, and seconds per number."""

    product: float  # of matrices: 2 n^3
    solve: float  # of a triangle with as many right-hand sides: n^3
    qr: float  # absorbing b rows into a triangle: 2 b n^2
    cholesky: float  # n^3 / 3
    pivoted: float  # the same with pivots
    eigen: float  # values and vectors, counted as 9 n^3
    stream: float  # bytes per second of what is read but once
    covariance: float  # seconds for a number of a prior covariance, less its product
    copy: float  # seconds for a number of a row that is collected


def best_of(function: Callable[[], object], clock: Clock, repeats: int = 3) -> float:
    """Least time of some calls.

    Parameters
    ----------
    function : Callable[[], object]
        What is timed.
    clock : Clock
        By which.
    repeats : int
        How many calls.

    Returns
    -------
    float
        Seconds.
    """
    best = math.inf
    for _ in range(repeats):
        started = clock()
        function()
        best = min(best, clock() - started)
    return max(best, 1e-9)


def product_rate(clock: Clock = time.perf_counter, n: int = 768) -> float:
    """Speed of a product of matrices of numbers of eight bytes.

    Parameters
    ----------
    clock : Clock
        By which it is measured.
    n : int
        Order of the matrices.

    Returns
    -------
    float
        Floating-point operations per second.
    """
    a, b = np.random.default_rng(0).standard_normal((2, n, n))
    return 2.0 * n**3 / best_of(lambda: a @ b, clock, 4)


def measure_rates(
    clock: Clock = time.perf_counter, n_columns: int = 1024, n_features: int = 512
) -> Rates:
    """Speeds of this machine with as many threads as are allowed.

    Parameters
    ----------
    clock : Clock
        By which they are measured.
    n_columns : int
        Columns of the problem; matrices are no larger, and no larger than what takes a second.
    n_features : int
        Features of the problem, likewise.

    Returns
    -------
    Rates
        Of matrices of that size.
    """
    rng = np.random.default_rng(0)
    n = int(np.clip(n_columns, 64, 1024))
    n_q = int(np.clip(n_features, 32, 400))
    a = rng.standard_normal((n, n))
    spd = a @ a.T / n + np.eye(n)
    lower = np.asfortranarray(np.linalg.cholesky(spd))
    triangle, rows = np.asfortranarray(np.triu(spd)), rng.standard_normal((512, n))
    moment = spd[:n_q, :n_q].copy() if n_q <= n else np.eye(n_q) + rng.random((n_q, n_q)) / n_q
    # More than caches hold.
    long = rng.standard_normal((4096, 1024))
    vector = rng.standard_normal(1024)
    some = min(n, 512) // 4 * 4  # environments with three tangents each
    each = Inducing(a[:some, :32], np.arange(0, some + 1, 4))
    sigma_r = np.ones(512)

    def collect() -> None:
        RowReducer(empty_triangle(n), 512).add(rows, sigma_r, sigma_r)

    return Rates(
        product=product_rate(clock),
        solve=n**3 / best_of(lambda: scipy.linalg.solve_triangular(lower, a, lower=True), clock),
        qr=2.0 * 512 * n**2
        / best_of(lambda: absorb(triangle.copy("F"), rows.copy(order="F")), clock, 2),
        cholesky=n**3 / 3.0 / best_of(lambda: lapack.dpotrf(spd, lower=1), clock),
        pivoted=n**3 / 3.0 / best_of(lambda: lapack.dpstrf(spd, tol=1e-12, lower=1), clock),
        eigen=9.0 * n_q**3 / best_of(lambda: scipy.linalg.eigh(moment), clock, 2),
        stream=long.nbytes / best_of(lambda: long @ vector, clock),
        covariance=best_of(lambda: K_mm(each, 4), clock) / len(each.Z_mq) ** 2,
        copy=best_of(collect, clock) / (512.0 * n),
    )  # fmt: skip
