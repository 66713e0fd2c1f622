"""What a label will cost: a power of the number of atoms, from the seconds of labels so far."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike

from kernelpot.conventions import Float, as_float

__all__ = ["LabelCost", "fit_label_cost"]

_POWER, _POWER_WIDTH = 2.0, 0.5
"""Tight binding and DFT of tens to hundreds of atoms are between the first and the third power."""
_LEAST_POWER, _MOST_POWER = 1.0, 3.0
_LEAST_SPREAD = 0.1
"""Of the logarithms of seconds: no machine repeats its times better than that."""


class LabelCost(NamedTuple):
    """Seconds of a label: scale * n_atoms^power."""

    scale: float  # s
    power: float
    spread: float  # mean deviation of the logarithms of seconds
    n_labels: int  # that it was fitted to

    def predict(self, n_atoms: ArrayLike) -> Float:
        """Seconds that labels will take.

        Parameters
        ----------
        n_atoms : ArrayLike
            Numbers of atoms.

        Returns
        -------
        Float
            Of the same shape. Without labels so far only their ratios mean anything.
        """
        return self.scale * np.asarray(n_atoms, dtype=np.float64) ** self.power


def fit_label_cost(n_atoms: ArrayLike, seconds: ArrayLike) -> LabelCost:
    """Fit the cost of labels to those there are.

    Least absolute deviations of logarithms, with a normal prior of 2 +- 0.5 on the power, which is
    held between 1 and 3: with few labels, or with all of one size, the prior decides, and a label
    that took a hundred times its time moves nothing.

    Parameters
    ----------
    n_atoms : ArrayLike
        Of each label so far.
    seconds : ArrayLike
        That each took; labels that failed say nothing and are to be left out.

    Returns
    -------
    LabelCost
        Its scale is a second per atom squared where there are no labels.

    Raises
    ------
    ValueError
        If there are not as many numbers of atoms as of seconds, or one is not positive and finite.

    Notes
    -----
    The sum that is least is convex in the power, the median being the best scale for each: there is
    one minimum.
    """
    n_atoms, seconds = as_float(n_atoms).ravel(), as_float(seconds).ravel()
    if n_atoms.shape != seconds.shape:
        raise ValueError(f"{len(n_atoms)} numbers of atoms with {len(seconds)} of seconds")
    if not np.all((n_atoms >= 1.0) & (seconds > 0.0) & np.isfinite(n_atoms * seconds)):
        raise ValueError("labels must have at least one atom and have taken some seconds, not NaN")
    if not len(n_atoms):
        return LabelCost(1.0, _POWER, _LEAST_SPREAD, 0)
    log_n, log_t = np.log(n_atoms), np.log(seconds)

    def rest(power: float) -> tuple[float, Float]:
        off = log_t - power * log_n
        middle = float(np.median(off))
        return middle, np.abs(off - middle)

    power = _POWER
    for _ in range(3):
        spread = max(float(np.mean(rest(power)[1])), _LEAST_SPREAD)

        def loss(p: float, spread: float = spread) -> float:
            return float(rest(p)[1].sum()) / spread + 0.5 * ((p - _POWER) / _POWER_WIDTH) ** 2

        power = float(
            scipy.optimize.minimize_scalar(
                loss, bounds=(_LEAST_POWER, _MOST_POWER), method="bounded"
            ).x
        )
    middle, deviation = rest(power)
    spread = max(float(deviation.mean()), _LEAST_SPREAD)
    return LabelCost(math.exp(middle), power, spread, len(log_n))
