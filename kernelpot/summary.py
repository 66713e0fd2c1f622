"""What a model says of its training: counts, errors, times, versions."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Float, LabelSet, Progress
from kernelpot.data import Noise, Structure, data_hash
from kernelpot.doubts import Doubt, LabelErrors, doubted, log_doubts
from kernelpot.fitted import Fitted
from kernelpot.options import Options
from kernelpot.selection import system_of

__all__ = ["noise_in_use", "r_squared", "summarise"]


Evaluate = Callable[[Structure], tuple[float, Float, Float, Float]]
"""Gives energy, forces, stress and local energies of a structure."""

_SOME = 40
"""Structures in which neighbours are counted."""
_DOUBTED = 6.0
"""Sigmas from the fit beyond which labels are worth a word."""


def summarise(
    structures: Sequence[Structure],
    evaluate: Evaluate,
    fitted: Fitted,
    options: Options,
    doubts: Sequence[Doubt] | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The entries of ``training_summary_``.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    evaluate : Evaluate
        The fitted model.
    fitted : Fitted
        The fit.
    options : Options
        Settings.
    doubts : Sequence[Doubt] | None
        Labels that count less; None for those that are far from the fit.
    progress : Progress | None
        Told of the stage "training errors".

    Returns
    -------
    dict[str, Any]
        JSON-ready; errors are those on the structures given.
    """
    started = time.perf_counter()
    errors = _errors(structures, evaluate, fitted, progress)
    if doubts is None and not fitted.triangles:
        doubts = ()  # with a label for each inducing variable the fit passes through all of them
    elif doubts is None:
        doubts = doubted(structures, errors, _DOUBTED, options.learned, weigh=False)
        log_doubts(doubts)
    n_atoms_s = np.array([s.n_atoms for s in structures])
    labelled = {
        "energy": errors.energy / n_atoms_s,
        "forces": np.concatenate([forces_nc.ravel() for forces_nc in errors.forces]),
        "stress": errors.stress.ravel(),
    }
    labelled = {kind: values[np.isfinite(values)] for kind, values in labelled.items()}
    return {
        "n_structures": len(structures),
        "n_atoms": int(n_atoms_s.sum()),
        "n_labels": {kind: len(values) for kind, values in labelled.items()},
        "mae": {k: float(np.mean(np.abs(v))) for k, v in labelled.items() if len(v)},
        "rmse": {k: float(np.sqrt(np.mean(v**2))) for k, v in labelled.items() if len(v)},
        "doubts": [doubt._asdict() for doubt in doubts],
        **_surroundings(structures, fitted),
        "data_hash": data_hash(structures),
        "seconds": {**fitted.seconds, "training errors": time.perf_counter() - started},
        "versions": {
            "python": platform.python_version(),
            **{p: _version(p) for p in ("kernelpot", "numpy", "scipy", "numba", "dscribe")},
        },
    }


def _surroundings(structures: Sequence[Structure], fitted: Fitted) -> dict[str, Any]:
    """Neighbours of an atom within the cutoff of each process, and its volume, in some structures.

    What predictions cost depends on them.
    """
    step = -(-len(structures) // _SOME)
    some = structures[::step]
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


def _version(package: str) -> str | None:
    """Installed version; None for a package that runs from a folder, as a checkout may."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _errors(
    structures: Sequence[Structure],
    evaluate: Evaluate,
    fitted: Fitted,
    progress: Progress | None,
) -> LabelErrors:
    """Errors of the fit on the scale of each label's own source, expected to be the noise."""
    rows: list[tuple[Any, ...]] = []
    for k, s in enumerate(structures):
        energy, forces_nc, stress_v, _ = evaluate(s)
        if progress is not None:
            progress("training errors", k + 1, len(structures))
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
