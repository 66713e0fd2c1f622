"""Posterior variances of energies, forces and stresses (DTC); covariances are in `covariances`.

For any linear functional of the process, applied to k on both sides,

    var = k** - k*_m K_mm^-1 k_m* + phi R^-1 R^-T phi^T

with the functional's prior variance first (`prior_variances`), and its row of whitened covariances
phi as in the fit (`rows`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from kernelpot._machine import one_blas_thread
from kernelpot.conventions import (
    OBSERVABLES,
    Float,
    System,
    VarianceTerms,
)
from kernelpot.gp.solvers import Posterior
from kernelpot.prior_variances import prior_variances
from kernelpot.rows import Component, structure_rows

__all__ = ["Process", "check_kinds", "inducing_rows", "open_factors", "variance_terms"]


class Process(NamedTuple):
    """A fitted sum of Gaussian processes."""

    components: tuple[Component, ...]
    delta_g: tuple[float, ...]  # prior amplitudes, eV
    posterior: Posterior


def check_kinds(given: bool | str | Collection[str], name: str) -> tuple[str, ...]:
    """Kinds of predicted numbers that are asked for.

    Parameters
    ----------
    given : bool | str | Collection[str]
        Whether all, or which.
    name : str
        Of the parameter.

    Returns
    -------
    tuple[str, ...]
        Empty where nothing is asked for.

    Raises
    ------
    ValueError
        If a kind is unknown.
    """
    if isinstance(given, (bool, np.bool_)):
        return OBSERVABLES if given else ()
    kinds = (given,) if isinstance(given, str) else tuple(given)
    unknown = [kind for kind in kinds if kind not in OBSERVABLES]
    if unknown:
        raise ValueError(
            f"{name} does not know {unknown[0]!r}: give True for all, or some of "
            f"{', '.join(OBSERVABLES)}"
        )
    return tuple(dict.fromkeys(kinds))


def variance_terms(
    process: Process,
    system: System,
    volume: float,
    kinds: Collection[str],
    *,
    jackknife: bool = False,
) -> dict[str, VarianceTerms]:
    """What makes the observables of one structure uncertain.

    Parameters
    ----------
    process : Process
        A fit.
    system : System
        Species and pairs of the structure.
    volume : float
        Of its cell, angstrom^3; NaN where it is not periodic in three directions.
    kinds : Collection[str]
        Of `OBSERVABLES`.
    jackknife : bool
        Whether their jackknife is wanted.

    Returns
    -------
    dict[str, VarianceTerms]
        By kind, in the shapes of `Prediction`: (1,), (n_atoms,), (n_atoms, 3), (6,).
    """
    kinds = [kind for kind in OBSERVABLES if kind in kinds]
    if not kinds:
        return {}
    # From the first to the last: threads of BLAS that have just worked keep their core for a while.
    with one_blas_thread():
        prior = prior_variances(process.components, process.delta_g, system, kinds)
        prior_r = np.concatenate([prior[kind] for kind in kinds])
        K_rm = inducing_rows(process.components, system, kinds)
        terms = process.posterior.variance_terms(prior_r, K_rm, jackknife=jackknife)
    ends = np.cumsum([len(prior[kind]) for kind in kinds])[:-1]
    parts = zip(*(np.split(term_r, ends) for term_r in terms), strict=True)
    found = {kind: VarianceTerms(*of_kind) for kind, of_kind in zip(kinds, parts, strict=True)}
    if "forces" in found:
        found["forces"] = VarianceTerms(*(term_r.reshape(-1, 3) for term_r in found["forces"]))
    if "stress" in found:
        found["stress"] = found["stress"].scaled(1.0 / volume)
    return found


def open_factors(process: Process, system: System, kinds: Collection[str]) -> Float:
    """Rows whose products are what the data leave open of covariances, in the inducing span.

    Parameters
    ----------
    process : Process
        A fit.
    system : System
        Species and pairs of a structure.
    kinds : Collection[str]
        Of `OBSERVABLES`; "stress" stands for the derivatives of the energy by strain.

    Returns
    -------
    Float
        Shape (n_numbers, n_whitened), kind after kind: of several structures together they give
        joint covariances without the square of their numbers.
    """
    kinds = [kind for kind in OBSERVABLES if kind in kinds]
    return process.posterior.parts(inducing_rows(process.components, system, kinds))[1]


def inducing_rows(components: Sequence[Component], system: System, kinds: Sequence[str]) -> Float:
    """Covariances of a structure's numbers with the inducing variables.

    Parameters
    ----------
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    system : System
        Species and pairs of the structure.
    kinds : Sequence[str]
        Of `OBSERVABLES`; "stress" stands for the derivatives of the energy by strain.

    Returns
    -------
    Float
        One kind after the other, shape (n_numbers, n_inducing), in units of delta^2.
    """
    rows = structure_rows(
        components,
        system,
        gradients="forces" in kinds or "stress" in kinds,
        local="energies" in kinds,
    )
    by_kind = {
        "energy": rows.energy_m[None, :],
        "forces": rows.forces_rm,
        "stress": rows.strain_vm,
        "energies": rows.energies_nm,
    }
    parts = [by_kind[kind] for kind in kinds]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.zeros((0, len(rows.energy_m))), *parts])
