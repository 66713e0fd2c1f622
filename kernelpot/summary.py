"""What a model says of its training: counts, errors, times, versions."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Float, LabelSet, Progress
from kernelpot.data import Noise, Structure
from kernelpot.data_outlines import joined_hash
from kernelpot.doubts import (
    Doubt,
    LabelErrors,
    Residuals,
    doubted,
    join_residuals,
    log_doubts,
    residuals_of,
    reweighted,
)
from kernelpot.fitted import Fitted, no_posterior
from kernelpot.jackknife import folded, scores_of
from kernelpot.options import Options
from kernelpot.prediction import predictor_of
from kernelpot.selection import system_of
from kernelpot.structure_prediction import evaluate_structure
from kernelpot.training_data import Data

__all__ = ["noise_in_use", "r_squared", "summarise"]


_SOME = 40
"""Structures in which neighbours are counted."""
_DOUBTED = 6.0
"""Sigmas from the fit beyond which labels are worth a word."""


def summarise(
    data: Data,
    fitted: Fitted,
    options: Options,
    doubts: Sequence[Doubt] | None,
    tell: Progress,
) -> tuple[dict[str, Any], Float | None]:
    """The entries of ``training_summary_``, and the scores of the structures.

    Parameters
    ----------
    data : Data
        The training structures.
    fitted : Fitted
        The fit.
    options : Options
        Settings.
    doubts : Sequence[Doubt] | None
        Labels that count less; None for those that are far from the fit.
    tell : Progress
        Told of the stages "training errors" and "jackknife".

    Returns
    -------
    tuple[dict[str, Any], Float | None]
        JSON-ready, errors are those on the structures given; and for `fitted.with_scores`, None of
        a fit that has no posterior.
    """
    started = time.perf_counter()
    # Nothing but the weights is needed of what may be gigabytes.
    needed = fitted._replace(triangles={}, posterior=no_posterior)
    sparse = bool(fitted.triangles)
    errors = data.each("training errors", _errors_of, needed, sparse, doubts or (), tell=tell)
    if doubts is None and not sparse:
        doubts = ()  # with a label for each inducing variable the fit passes through all of them
    elif doubts is None:
        residuals = join_residuals([one.residuals for one in errors])
        doubts = doubted(data.outlines, residuals, _DOUBTED, options.learned, weigh=False)
        log_doubts(doubts)
    n_k, absolute_k, squares_k = np.sum([one.sums for one in errors], axis=0)
    mae = {k: float(a / n) for k, n, a in zip(LABEL_KINDS, n_k, absolute_k, strict=True) if n}
    rmse = {
        k: float(np.sqrt(a / n)) for k, n, a in zip(LABEL_KINDS, n_k, squares_k, strict=True) if n
    }
    entries = {
        "n_structures": len(data.outlines),
        "n_atoms": sum(s.n_atoms for s in data.outlines),
        "n_labels": {kind: int(n) for kind, n in zip(LABEL_KINDS, n_k, strict=True)},
        "mae": mae,
        "rmse": rmse,
        "doubts": [doubt._asdict() for doubt in doubts],
        **_surroundings(data, fitted),
        "data_hash": joined_hash(s.key for s in data.outlines),
        "seconds": {**fitted.seconds, "training errors": time.perf_counter() - started},
        "versions": {
            "python": platform.python_version(),
            **{p: _version(p) for p in ("kernelpot", "numpy", "scipy", "numba", "dscribe")},
        },
    }
    return entries, folded([one.scores_mj for one in errors]) if sparse else None


def _surroundings(data: Data, fitted: Fitted) -> dict[str, Any]:
    """Neighbours of an atom within the cutoff of each process, and its volume, in some structures.

    What predictions cost depends on them.
    """
    n_structures = len(data.outlines)
    some = data.some(range(0, n_structures, -(-n_structures // _SOME)))
    bound_g = [component.descriptor for component in fitted.components]
    longest = max(bound_g, key=lambda bound: bound.cutoff)
    n_atoms = sum(s.n_atoms for s in some)
    r_p = np.concatenate([system_of(longest, s).pairs.r_p for s in some])
    periodic = [s for s in some if s.periodic]
    volume = sum(s.volume for s in periodic) / max(1, sum(s.n_atoms for s in periodic))
    return {
        "neighbours": [float(np.count_nonzero(r_p < b.cutoff)) / n_atoms for b in bound_g],
        "volume": volume if periodic else None,
    }


@functools.cache
def _version(package: str) -> str | None:
    """Installed version; None for a package that runs from a folder, as a checkout may.

    Kept, because reading it takes a tenth of the time of a `partial_fit` of one structure.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _BlockErrors(NamedTuple):
    """Errors of the fit on some structures."""

    residuals: list[Residuals]
    sums: Float  # number, absolute values, squares; by kind of label
    scores_mj: Float | None


def _errors_of(
    structures: Sequence[Structure],
    fitted: Fitted,
    sparse: bool,
    doubts: Sequence[Doubt],
    tell: Progress,
) -> _BlockErrors:
    errors = _errors(structures, fitted, tell)
    scores_mj = None
    if sparse:
        scores_mj = scores_of(fitted, reweighted(structures, doubts), errors, tell)
    labelled = (
        errors.energy / np.array([s.n_atoms for s in structures]),
        np.concatenate([forces_nc.ravel() for forces_nc in errors.forces]),
        errors.stress.ravel(),
    )
    known = [values[np.isfinite(values)] for values in labelled]
    sums = [(len(v), float(np.abs(v).sum()), float(v @ v)) for v in known]
    return _BlockErrors(residuals_of(structures, errors), np.array(sums).T, scores_mj)


def _errors(structures: Sequence[Structure], fitted: Fitted, tell: Progress) -> LabelErrors:
    """Errors of the fit on the scale of each label's own source, expected to be the noise."""
    predictor = predictor_of(fitted)
    rows: list[tuple[Any, ...]] = []
    for k, s in enumerate(structures):
        energy, forces_nc, stress_v, _ = evaluate_structure(predictor, s)
        tell("training errors", k + 1, len(structures))
        energy += fitted.shifts.energy_of(s.source, s.numbers_n)
        noise = {k: fitted.noise.get(LabelSet(k, s.source), np.nan) for k in LABEL_KINDS}
        rows.append(
            (
                energy - s.energy,
                noise["energy"] * s.sigma_energy * s.n_atoms,
                forces_nc - s.forces_nc,
                np.full(s.forces_nc.shape, noise["forces"] * s.sigma_forces),
                stress_v - s.stress_v,
                np.full(6, noise["stress"] * s.sigma_stress),
            )
        )
    energy_s, energy_std_s, forces, forces_std, stress, stress_std = map(
        list, zip(*rows, strict=True)
    )
    return LabelErrors(
        np.array(energy_s), np.array(energy_std_s), forces, forces_std,
        np.array(stress), np.array(stress_std),
    )  # fmt: skip


def noise_in_use(
    kind: str, given: float | Mapping[str, float] | None, factors: Mapping[LabelSet, float]
) -> float | dict[str, float]:
    """Standard deviation of a kind of labels; by source where there are several.

    Parameters
    ----------
    kind : str
        Of the labels.
    given : float | Mapping[str, float] | None
        What was asked for; None where it was learned.
    factors : Mapping[LabelSet, float]
        On what was assumed.

    Returns
    -------
    float | dict[str, float]
        eV/atom, eV/angstrom or eV/angstrom^3.
    """
    assumed = getattr(Noise(), kind) if given is None else given
    if isinstance(assumed, Mapping):
        return dict(assumed)
    found = {label.source: a * assumed for label, a in factors.items() if label.kind == kind}
    return next(iter(found.values()), assumed) if len(found) < 2 else found


def r_squared(
    structures: Sequence[Structure], results: Sequence[tuple[float, Float, Float, Float]]
) -> float:
    """Coefficient of determination of the force components, or else of the energies per atom.

    Parameters
    ----------
    structures : Sequence[Structure]
        With labels.
    results : Sequence[tuple[float, Float, Float, Float]]
        Energy, forces, stress and local energies of each.

    Returns
    -------
    float
        1 is perfect, 0 as good as the mean label.
    """
    label = np.concatenate([s.forces_nc.ravel() for s in structures])
    guess = np.concatenate([r[1].ravel() for r in results])
    if not np.any(np.isfinite(label)):
        label = np.array([s.energy / s.n_atoms for s in structures])
        guess = np.array([r[0] / s.n_atoms for r, s in zip(results, structures, strict=True)])
    known = np.isfinite(label)
    spread = np.sum((label[known] - label[known].mean()) ** 2)
    residual = np.sum((label[known] - guess[known]) ** 2)
    if spread == 0.0:
        return 1.0 if residual == 0.0 else 0.0
    return float(1.0 - residual / spread)
