"""What of a fitted model goes into its file, and back: settings as header, numbers as arrays."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from kernelpot import training
from kernelpot.conventions import Float, Settings, as_int
from kernelpot.descriptors import Soap
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.solvers import Triangle
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.training import Fitted

__all__ = ["State", "pack", "unpack"]

_UNITS = {"energy": "eV", "length": "angstrom", "stress": "eV/angstrom^3"}


class State(NamedTuple):
    """A fitted model without the estimator around it."""

    parameters: dict[str, Any]  # of the estimator, less descriptor and progress
    descriptor: Soap
    fitted: Fitted
    summary: dict[str, Any]


def pack(state: State) -> tuple[Settings, dict[str, np.ndarray]]:
    """Header and arrays of a model file.

    Parameters
    ----------
    state : State
        A fitted model.

    Returns
    -------
    tuple[Settings, dict[str, np.ndarray]]
        JSON-ready settings, and arrays by name.
    """
    fitted = state.fitted
    species = fitted.descriptor.species
    arrays: dict[str, np.ndarray] = {"weights_m": fitted.weights_m}
    for z, group in zip(species, fitted.inducing, strict=True):
        arrays[f"inducing/{z}/Z_mq"] = group.Z_mq
        arrays[f"inducing/{z}/first_e"] = group.first_e
    for kind, triangle in fitted.triangles.items():
        arrays[f"triangles/{kind}"] = triangle.R[_upper(*triangle.R.shape)]
    header = {
        "parameters": state.parameters,
        "descriptor": state.descriptor.to_settings(),
        "species": list(species),
        "units": _UNITS,
        "zeta": fitted.zeta,
        "delta": fitted.delta,
        "baseline": fitted.baseline.to_settings(),
        "log_evidence": fitted.log_evidence,
        "n_environments": sum(len(group.first_e) - 1 for group in fitted.inducing),
        "n_inducing": len(fitted.weights_m),
        "rows": {
            kind: {
                "n": triangle.n_rows,
                "log_noise": triangle.log_noise,
                "n_reduced": len(triangle.R),
            }
            for kind, triangle in fitted.triangles.items()
        },
        "seconds": fitted.seconds,
        "training": state.summary,
    }
    return header, arrays


def unpack(header: Settings, arrays: dict[str, np.ndarray]) -> State:
    """The model of a file's content; the posterior's covariance is solved when it is asked for.

    Parameters
    ----------
    header : Settings
        As ``pack`` made it.
    arrays : dict[str, np.ndarray]
        As ``pack`` made them.

    Returns
    -------
    State
        The fitted model.

    Raises
    ------
    KeyError, TypeError, ValueError, IndexError
        If something is missing or does not fit together.
    """
    descriptor = Soap.from_settings(header["descriptor"])
    species = tuple(header["species"])
    inducing = tuple(
        Inducing(arrays[f"inducing/{z}/Z_mq"], as_int(arrays[f"inducing/{z}/first_e"]))
        for z in species
    )
    weights_m = arrays["weights_m"]
    n_columns = len(weights_m) + 1
    triangles = {}
    for kind, rows in header["rows"].items():
        R = np.zeros((rows["n_reduced"], n_columns))
        R[_upper(*R.shape)] = arrays[f"triangles/{kind}"]
        triangles[kind] = Triangle(R, rows["n"], rows["log_noise"])
    zeta, delta = int(header["zeta"]), float(header["delta"])
    fitted = Fitted(
        descriptor=descriptor.bind(species),
        zeta=zeta,
        baseline=CompositionBaseline.from_settings(header["baseline"]),
        inducing=inducing,
        triangles=triangles,
        delta=delta,
        weights_m=weights_m,
        log_evidence=header["log_evidence"],
        posterior=functools.partial(training.solve, inducing, triangles, zeta, delta),
        seconds=header["seconds"],
    )
    return State(header["parameters"], descriptor, fitted, header["training"])


def _upper(n_rows: int, n_columns: int) -> tuple[Float, Float]:
    """Indices of the upper triangle of an array that may have fewer rows than columns."""
    return np.triu_indices(n_rows, 0, n_columns)
