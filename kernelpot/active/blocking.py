"""Means of correlated series, and how well they are known: blocking.

Pairs of neighbours are averaged again and again. What is left is less correlated each time, and the
standard error that would hold for independent numbers grows until it does hold (Flyvbjerg and
Petersen, J. Chem. Phys. 91, 461 (1989)). The block length B is the shortest with

    B^3 > 2 n (se_B / se_1)^4

(Lee, Conduit, Nemec, Lopez Rios and Drummond, Phys. Rev. E 83, 066706 (2011), equation 28), where
the bias of short blocks is as small as the scatter of few long ones. Among a hundred numbers or so
there is no such length half of the time, correlated or not. Then the integrated autocorrelation
time is asked, summed up to five times itself: of a series of fifty times and more it is known well
enough (Sokal, in Functional Integration, NATO ASI B 361, 131 (1997)), and the error is the larger
one of both. A series that is shorter than this, too, is too short for its own correlations.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kernelpot.conventions import Float, Int

__all__ = ["BlockedMean", "SeriesWarning", "block_average"]

_LEAST_BLOCKS = 8
"""With fewer blocks the standard error is not known to a quarter."""
_WINDOW = 5.0
"""Autocorrelations are summed up to so many times their sum."""
_LEAST_TIMES = 50.0
"""So many times its autocorrelation time a series has to be, for this to be known."""


class SeriesWarning(UserWarning):
    """A series is too short to say how well its mean is known."""


class BlockedMean(NamedTuple):
    """Mean of a series, over its first axis; arrays have the shape of one observation."""

    mean: Float
    standard_error: Float  # NaN for a single observation
    block_length: Int  # of each component, in observations
    n_effective: Float  # as many independent observations say as much
    settled: bool  # False where the series is too short: then the standard error is a lower bound
    n: int


def block_average(series: ArrayLike, *, warn: bool = True) -> BlockedMean:
    """Mean and standard error of a correlated series.

    Parameters
    ----------
    series : ArrayLike
        Evenly spaced in time, shape (n, ...): each component is a series of its own.
    warn : bool
        Whether a warning says that the series is too short.

    Returns
    -------
    BlockedMean
        Where it is not settled, the largest standard error of all block lengths of which there
        are eight blocks or more (of all lengths in series shorter than that).

    Raises
    ------
    ValueError
        If there are no observations, or one is not finite.
    """
    x_nk = np.asarray(series, dtype=np.float64)
    if x_nk.ndim == 0 or len(x_nk) == 0:
        raise ValueError("a series needs at least one observation, along its first axis")
    if not np.isfinite(x_nk).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(x_nk))} numbers of the series are not finite: leave"
            " out frames for which there is no value"
        )
    shape, n = x_nk.shape[1:], len(x_nk)
    x_nk = x_nk.reshape(n, -1)
    # Of numbers far from zero, in the unit in which they differ: squares must not overflow.
    centre_k = x_nk.mean(axis=0) if n > 1 else x_nk[0]
    scale_k = np.abs(x_nk - centre_k).max(axis=0)
    # What differs by rounding alone does not differ.
    same_k = scale_k <= 8.0 * np.finfo(float).eps * np.abs(centre_k)
    blocks_nk = np.where(same_k, 0.0, (x_nk - centre_k) / np.where(same_k, 1.0, scale_k))
    time_k = _autocorrelation_time(blocks_nk)
    lengths, errors = [], []
    length = 1
    while len(blocks_nk) >= 2:
        lengths.append(length)
        errors.append(blocks_nk.std(axis=0, ddof=1) / np.sqrt(len(blocks_nk)))
        even = len(blocks_nk) // 2 * 2
        blocks_nk = 0.5 * (blocks_nk[0:even:2] + blocks_nk[1:even:2])
        length *= 2
    if not lengths:
        nothing_k = np.full(shape, np.nan)
        found = BlockedMean(
            centre_k.reshape(shape), nothing_k, np.ones(shape, np.intp), np.ones(shape), False, n
        )
    else:
        scale_k = np.where(same_k, 0.0, scale_k)
        found = _chosen(np.array(lengths), np.array(errors), time_k, centre_k, scale_k, n, shape)
    if warn and not found.settled:
        warnings.warn(
            f"a series of {n} observations is too short for its correlations: its standard error is"
            " a lower bound. Make it several times as long, or leave out the start",
            SeriesWarning,
            stacklevel=2,
        )
    return found


def _autocorrelation_time(x_nk: Float) -> Float:
    """Integrated, of each component, in observations: 1 of independent numbers and constants."""
    n = len(x_nk)
    centred_nk = x_nk - x_nk.mean(axis=0)
    # Padded, so that the end does not meet the beginning.
    square_fk = np.abs(np.fft.rfft(centred_nk, 2 * n, axis=0)) ** 2
    covariance_nk = np.fft.irfft(square_fk, 2 * n, axis=0)[:n]
    variance_k = np.where(covariance_nk[0] > 0.0, covariance_nk[0], 1.0)
    time_nk = 2.0 * np.cumsum(covariance_nk / variance_k, axis=0) - 1.0
    beyond_nk = np.arange(n)[:, None] >= _WINDOW * time_nk
    window_k = np.where(beyond_nk.any(axis=0), beyond_nk.argmax(axis=0), n - 1)
    return np.maximum(time_nk[window_k, np.arange(x_nk.shape[1])], 1.0)


def _chosen(
    length_b: Int,
    error_bk: Float,
    time_k: Float,
    centre_k: Float,
    scale_k: Float,
    n: int,
    shape: tuple[int, ...],
) -> BlockedMean:
    ratio_bk = error_bk / np.where(error_bk[0] > 0.0, error_bk[0], 1.0)
    enough_b = n // length_b >= _LEAST_BLOCKS
    long_enough_bk = (length_b[:, None] ** 3 > 2.0 * n * ratio_bk**4) & enough_b[:, None]
    # What never changes is known, however few times it was seen: there is nothing to average.
    constant_k = scale_k == 0.0
    settled_k = long_enough_bk.any(axis=0) | constant_k
    first_k = np.argmax(long_enough_bk, axis=0)
    usable_b = enough_b if enough_b.any() else np.ones_like(enough_b)
    largest_k = np.argmax(np.where(usable_b[:, None], ratio_bk, -1.0), axis=0)
    chosen_k = np.where(constant_k, 0, np.where(settled_k, first_k, largest_k))
    each = np.arange(len(chosen_k))
    # The errors of independent numbers are the least that is believed.
    ratio_k = np.maximum(ratio_bk[chosen_k, each], 1.0)
    by_time_k = ~settled_k & (n >= _LEAST_TIMES * time_k)
    ratio_k = np.where(by_time_k, np.maximum(ratio_k, np.sqrt(time_k)), ratio_k)
    settled_k |= by_time_k
    return BlockedMean(
        centre_k.reshape(shape),
        (ratio_k * error_bk[0] * scale_k).reshape(shape),
        length_b[chosen_k].reshape(shape),
        (n / ratio_k**2).reshape(shape),
        bool(settled_k.all()),
        n,
    )
