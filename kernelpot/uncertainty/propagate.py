"""From samples of a potential to samples of what is computed with it.

Either every sample runs its own calculation (`propagate`), or one trajectory of the mean potential
is weighted for each (`reweight`).

Source of the second: Imbalzano, Zhuang, Kapil, Rossi, Engel, Grasselli and Ceriotti, J. Chem. Phys.
154, 074102 (2021).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol

import numpy as np
from ase import Atoms
from ase.units import kB
from numpy.typing import ArrayLike

from kernelpot.calculator import Calculator
from kernelpot.conventions import Float
from kernelpot.uncertainty.samples import Committee, Sample

__all__ = ["Failure", "Propagated", "Reweighted", "propagate", "reweight"]

Observable = Callable[[Atoms], ArrayLike]
"""Of atoms with a calculator."""


class Model(Protocol):
    """A fitted model, `KernelPotential`."""

    def sample(self, n: int, random_state: int | np.random.Generator | None = None) -> Committee:
        """Draw from the posterior."""


class Failure(NamedTuple):
    """A sample for which there is no value."""

    sample: int
    reason: str


class Propagated(NamedTuple):
    """An observable by the samples of a potential."""

    of_mean: Float  # by the potential of the mean weights
    mean: Float  # over samples
    std: Float  # over samples; NaN for a single one
    values: Float  # (n_samples less failures, ...)
    failures: tuple[Failure, ...]


class Reweighted(NamedTuple):
    """Averages over one trajectory by the samples of a potential."""

    of_mean: Float  # average over the trajectory as it is
    values: Float  # (n_samples, ...) by full weights; NaN where too few frames count
    std: Float  # of these
    first_order: Float  # (n_samples, ...), to first order in the difference of energies
    first_order_std: Float
    n_effective: Float  # (n_samples,): frames that count in the full average


def propagate(
    observable: Observable,
    source: Model | Committee,
    atoms: Atoms,
    n: int = 32,
    random_state: int | np.random.Generator | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Propagated:
    """What the uncertainty of a potential means for an observable.

    Every sample computes it on its own, with its own relaxation or dynamics where the observable
    has one.

    Parameters
    ----------
    observable : Observable
        Called with a copy of the atoms that has a calculator; returns a number or an array, of the
        same shape for every sample.
    source : Model | Committee
        A fitted model, from which samples are drawn, or a committee.
    atoms : Atoms
        Where the observable begins.
    n : int
        Samples to draw from a model; a committee has its own.
    random_state : int | np.random.Generator | None
        For repeatable samples of a model.
    executor : Executor | None
        Runs samples beside one another; the observable has to be a function that it can send,
        for processes one that stands in a module. None for one after the other.
    progress : Callable[[int, int], None] | None
        Called with the numbers of finished and of all calculations.

    Returns
    -------
    Propagated
        Mean and standard deviation over samples, their values, and failures: samples for which the
        observable raised an error or is not finite do not count.

    Raises
    ------
    RuntimeError
        If the observable fails for the potential of the mean weights, or for all samples.
    ValueError
        If samples give arrays of different shapes.
    """
    committee = source if isinstance(source, Committee) else source.sample(n, random_state)
    samples = [committee.mean, *committee]
    found: list[Float | str] = []
    started = (
        [executor.submit(_run, observable, one, atoms) for one in samples] if executor else None
    )
    for k, one in enumerate(samples):
        found.append(_run(observable, one, atoms) if started is None else started[k].result())
        if progress is not None:
            progress(k + 1, len(samples))
        if k == 0 and isinstance(found[0], str):
            for later in started or ():
                later.cancel()
            raise RuntimeError(
                f"the observable fails for the potential of the mean weights: {found[0]}. Try it "
                "with Calculator(model) first"
            )
    failures = tuple(Failure(k, one) for k, one in enumerate(found[1:]) if isinstance(one, str))
    values = [one for one in found[1:] if not isinstance(one, str)]
    if not values:
        raise RuntimeError(
            f"the observable fails for all {len(failures)} samples; for the first: "
            f"{failures[0].reason}"
        )
    shapes = sorted({one.shape for one in values})
    if len(shapes) > 1:
        raise ValueError(
            f"the observable has arrays of different shapes, {shapes}: of samples that are compared"
            " every number needs a place of its own; return averages, or a histogram"
        )
    values_s = np.array(values)
    return Propagated(found[0], values_s.mean(axis=0), _std(values_s), values_s, failures)


def _run(observable: Observable, sample: Sample, atoms: Atoms) -> Float | str:
    """A value, or why there is none."""
    mine = atoms.copy()
    mine.calc = Calculator(sample)
    try:
        value = np.asarray(observable(mine), dtype=float)
    except Exception as error:  # whatever a user's function raises: one sample, not all, has failed
        return f"{type(error).__name__}: {error}"
    return value if np.isfinite(value).all() else f"not finite: {value.tolist()}"


def reweight(
    values: ArrayLike,
    source: Model | Committee,
    images: Iterable[Atoms],
    temperature: float,
    n: int = 32,
    random_state: int | np.random.Generator | None = None,
    min_effective: float = 20.0,
) -> Reweighted:
    """Averages that each sample would have, from one trajectory of the mean potential.

    A frame counts by exp(-(E_s - E) / kT) for sample s. Where energies differ by much more than kT
    a few frames are all that counts; then only the first order, <A> - <(A - <A>) (E_s - E)> / kT,
    says something.

    Parameters
    ----------
    values : ArrayLike
        The observable at each frame, shape (n_frames, ...).
    source : Model | Committee
        A fitted model, from which samples are drawn, or a committee of it.
    images : Iterable[Atoms]
        Frames of the mean potential at constant volume and temperature.
    temperature : float
        Of the trajectory, kelvin.
    n : int
        Samples to draw from a model; a committee has its own.
    random_state : int | np.random.Generator | None
        For repeatable samples of a model.
    min_effective : float
        Frames that have to count, (sum of weights)^2 / (sum of squared weights), for a full
        average to be given. Frames that are alike count as if they were not: leave out steps.

    Returns
    -------
    Reweighted
        Averages by sample and their standard deviations; full ones are NaN, and not in the
        standard deviation, for samples with too few frames that count.

    Raises
    ------
    ValueError
        If there are fewer than two frames, not as many values, or the temperature is not positive.
    """
    values_t = np.asarray(values, dtype=float)
    images = list(images)
    if len(images) < 2 or len(values_t) != len(images):
        raise ValueError(
            f"reweighting needs a value for every frame, and two frames at least; got "
            f"{len(values_t)} values and {len(images)} frames"
        )
    if not temperature > 0.0:
        raise ValueError(f"the temperature has to be positive (kelvin), not {temperature!r}")
    committee = source if isinstance(source, Committee) else source.sample(n, random_state)
    beta_E_st = committee.energy_deviations(images) / (kB * temperature)
    beta_E_st -= beta_E_st.mean(axis=1, keepdims=True)
    weights_st = np.exp(beta_E_st.min(axis=1, keepdims=True) - beta_E_st)
    weights_st /= weights_st.sum(axis=1, keepdims=True)
    n_effective = 1.0 / np.sum(weights_st**2, axis=1)
    of_mean = values_t.mean(axis=0)
    full = np.tensordot(weights_st, values_t, axes=1)
    few = n_effective < min_effective
    full[few] = np.nan
    if few.any():
        warnings.warn(
            f"{few.sum()} of {len(few)} samples have fewer than {min_effective:g} frames that "
            f"count (the least {n_effective.min():.1f} of {len(images)}): their energies differ "
            "from the mean's by more than kT. Their full averages are NaN; use first_order, more "
            "frames, a smaller cell, or propagate, which runs each sample on its own",
            stacklevel=2,
        )
    first = of_mean - np.tensordot(beta_E_st, values_t - of_mean, axes=1) / len(images)
    return Reweighted(of_mean, full, _std(full[~few]), first, _std(first), n_effective)


def _std(values_s: Float) -> Any:
    """Standard deviation over samples; NaN where there are fewer than two."""
    if len(values_s) < 2:
        return np.full(values_s.shape[1:], np.nan)[()]
    return values_s.std(axis=0, ddof=1)
