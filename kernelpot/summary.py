"""What a model says of its training: counts, errors, times, versions."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Float
from kernelpot.data import Structure, data_hash

__all__ = ["summarise"]


def summarise(
    structures: Sequence[Structure],
    evaluate: Callable[[Structure], tuple[float, Float, Float, Float]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The entries of ``training_summary_``.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    evaluate : Callable[[Structure], tuple[float, Float, Float, Float]]
        Gives energy, forces, stress and local energies of a structure.
    seconds : Mapping[str, float]
        What each stage of the fit took.

    Returns
    -------
    dict[str, Any]
        JSON-ready; errors are those on the structures given.
    """
    started = time.perf_counter()
    errors: dict[str, list[Float]] = {kind: [] for kind in LABEL_KINDS}
    for structure in structures:
        energy, forces_nc, stress_v, _ = evaluate(structure)
        errors["energy"].append(np.array([energy - structure.energy]) / structure.n_atoms)
        errors["forces"].append((forces_nc - structure.forces_nc).ravel())
        errors["stress"].append(stress_v - structure.stress_v)
    labelled = {}
    for kind, parts in errors.items():
        values = np.concatenate(parts)
        labelled[kind] = values[np.isfinite(values)]
    return {
        "n_structures": len(structures),
        "n_atoms": sum(s.n_atoms for s in structures),
        "n_labels": {kind: len(values) for kind, values in labelled.items()},
        "mae": {k: float(np.mean(np.abs(v))) for k, v in labelled.items() if len(v)},
        "rmse": {k: float(np.sqrt(np.mean(v**2))) for k, v in labelled.items() if len(v)},
        "data_hash": data_hash(structures),
        "seconds": {**seconds, "training errors": time.perf_counter() - started},
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("kernelpot", "numpy", "scipy", "numba", "dscribe")},
        },
    }
