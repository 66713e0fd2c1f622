"""What of a fitted model goes into its file, and back: settings as header, numbers as arrays."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from kernelpot.conventions import Float, LabelSet, Settings, as_int
from kernelpot.descriptors import DESCRIPTORS
from kernelpot.descriptors._soap_bound import BoundSoap
from kernelpot.descriptors.projected import ProjectedDescriptor
from kernelpot.descriptors.protocol import BoundDescriptor, Descriptor, n_blocks
from kernelpot.descriptors.shared import SharedCentres, shared_centres
from kernelpot.fitted import Fitted, OpenRows, Streamed, no_posterior, prior_widths, solve
from kernelpot.gp.inducing import Inducing
from kernelpot.gp.solvers import Posterior
from kernelpot.gp.triangles import Triangle
from kernelpot.gp.whitening import Whitening, WhiteningBlock
from kernelpot.rows import Component
from kernelpot.sources import SHIFT_PRIOR, SourceShifts
from kernelpot.terms.composition import CompositionBaseline
from kernelpot.terms.repulsion import CoreRepulsion
from kernelpot.uncertainty.recalibration import Recalibration

__all__ = ["State", "pack", "unpack"]

_ONE_SOURCE = {"reference": "", "sources": [], "species": [], "start": [], "learned": []}
"""Files of earlier versions say nothing of sources."""
_NONE = {"source": "none", "scales": []}
"""Nor of calibration."""
_SCORES = "calibration/"
_POSTERIOR = "posterior/"
_UNITS = {"energy": "eV", "length": "angstrom", "stress": "eV/angstrom^3"}


class State(NamedTuple):
    """A fitted model without the estimator around it."""

    parameters: dict[str, Any]  # of the estimator, less descriptor and progress
    descriptor: Descriptor | list[Descriptor]  # of the library's own
    fitted: Fitted
    summary: dict[str, Any]
    calibration: Recalibration


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
    several = isinstance(state.descriptor, list)
    descriptors = state.descriptor if several else [state.descriptor]
    species = fitted.components[0].descriptor.species
    arrays: dict[str, np.ndarray] = {"weights_m": fitted.weights_m}
    for g, component in enumerate(fitted.components):
        bound = component.descriptor
        for name, group in zip(_blocks(bound), component.inducing, strict=True):
            arrays[f"inducing/{g}/{name}/Z_mq"] = group.Z_mq
            arrays[f"inducing/{g}/{name}/first_e"] = group.first_e
        if isinstance(bound, SharedCentres):
            bound = bound.inner
        if isinstance(bound, ProjectedDescriptor):
            for z, axes_kq in zip(species, bound.axes_z, strict=True):
                arrays[f"axes/{g}/{z}"] = axes_kq
            bound = bound.inner
        if isinstance(bound, BoundSoap) and bound.n_contracted is not None:
            arrays[f"mixing/{g}"] = bound.mixing
    if fitted.scores_mj is not None:
        arrays["scores_mj"] = fitted.scores_mj
    rows = []
    for k, (label, triangle) in enumerate(fitted.triangles.items()):
        arrays[f"triangles/{k}"] = _upper(triangle.R)
        rows.append(
            {
                **label._asdict(),
                "n": triangle.n_rows,
                "log_noise": triangle.log_noise,
                "n_reduced": len(triangle.R),
                "noise": fitted.noise[label],
            }
        )
        if fitted.open_rows and label in fitted.open_rows:
            rows[-1]["open"] = list(fitted.open_rows[label])
    if isinstance(fitted.posterior, Streamed):
        arrays |= _posterior_arrays(fitted.posterior())
    header = {
        "parameters": state.parameters,
        "several_descriptors": several,
        "components": [
            {
                "kind": type(one).__name__,
                "descriptor": one.to_settings(),
                "zeta": component.zeta,
                "delta": delta,
            }
            for one, component, delta in zip(
                descriptors, fitted.components, fitted.delta_g, strict=True
            )
        ],
        "species": list(species),
        "units": _UNITS,
        "baseline": fitted.baseline.to_settings(),
        "repulsion": None if fitted.repulsion is None else fitted.repulsion.to_settings(),
        "shifts": fitted.shifts.to_settings(),
        "force_priority": fitted.force_priority,
        "log_evidence": fitted.log_evidence,
        "data_fit": fitted.data_fit,
        "leave_out_rmse": fitted.leave_out,
        "leave_systems_out_rmse": fitted.leave_systems_out,
        "n_environments": sum(component.n_environments for component in fitted.components),
        "n_inducing": len(fitted.weights_m),
        "rows": rows,
        "seconds": fitted.seconds,
        "training": state.summary,
        "calibration": state.calibration.to_settings(),
    }
    scores = state.calibration.to_arrays()
    arrays |= {f"{_SCORES}{name}": scores_r for name, scores_r in scores.items()}
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
    species = tuple(header["species"])
    descriptors = [
        DESCRIPTORS[one["kind"]].from_settings(one["descriptor"]) for one in header["components"]
    ]
    components = tuple(
        _component(g, descriptor, int(one["zeta"]), species, arrays)
        for g, (descriptor, one) in enumerate(zip(descriptors, header["components"], strict=True))
    )
    weights_m = arrays["weights_m"]
    shifts = SourceShifts.from_settings(header.get("shifts", _ONE_SOURCE))
    triangles, noise, open_rows = {}, {}, {}
    for k, rows in enumerate(header["rows"]):
        label = LabelSet(rows["kind"], rows["source"])
        shape = (rows["n_reduced"], shifts.n_columns + len(weights_m) + 1)
        R = _trapezoid(arrays[f"triangles/{k}"], *shape)
        triangles[label] = Triangle(R, rows["n"], rows["log_noise"])
        noise[label] = rows["noise"]
        if "open" in rows:
            n_rows, variance_g = rows["open"]
            open_rows[label] = OpenRows(n_rows, tuple(variance_g))
    repulsion = header["repulsion"]
    if repulsion is not None:
        repulsion = CoreRepulsion.from_settings(repulsion)
    fitted = Fitted(
        components=components,
        baseline=CompositionBaseline.from_settings(header["baseline"]),
        repulsion=repulsion,
        shifts=shifts,
        triangles=triangles,
        noise=noise,
        force_priority=header["force_priority"],
        delta_g=tuple(one["delta"] for one in header["components"]),
        weights_m=weights_m,
        log_evidence=header["log_evidence"],
        data_fit=header["data_fit"],
        leave_out=header["leave_out_rmse"],
        leave_systems_out=header.get("leave_systems_out_rmse", {}),
        posterior=no_posterior,
        seconds=header["seconds"],
        scores_mj=arrays.get("scores_mj"),
        open_rows=open_rows or None,
    )
    if triangles:
        fitted = fitted._replace(posterior=functools.partial(solve, fitted))
    if f"{_POSTERIOR}w_k" in arrays:
        posterior = _posterior(fitted, arrays)
        if fitted.scores_mj is not None:
            posterior = posterior.with_scores(fitted.scores_mj)
        fitted = fitted._replace(posterior=Streamed(posterior))
    descriptor = descriptors if header["several_descriptors"] else descriptors[0]
    scores = {name.removeprefix(_SCORES): array for name, array in arrays.items()}
    calibration = Recalibration.from_settings(header.get("calibration", _NONE), scores)
    return State(header["parameters"], descriptor, fitted, header["training"], calibration)


def _blocks(bound: BoundDescriptor) -> list[str]:
    """Names of the blocks of inducing variables: atomic numbers, or "all" where they share one."""
    return ["all"] if n_blocks(bound) < len(bound.species) else [str(z) for z in bound.species]


def _component(
    g: int,
    descriptor: Descriptor,
    zeta: int,
    species: tuple[int, ...],
    arrays: dict[str, np.ndarray],
) -> Component:
    axes_z = [arrays.get(f"axes/{g}/{z}") for z in species]
    bound = _bind(descriptor, species, arrays.get(f"mixing/{g}"), axes_z)
    inducing = tuple(
        Inducing(
            arrays[f"inducing/{g}/{name}/Z_mq"], as_int(arrays[f"inducing/{g}/{name}/first_e"])
        )
        for name in _blocks(bound)
    )
    return Component(bound, zeta, inducing)


def _bind(
    descriptor: Descriptor,
    species: tuple[int, ...],
    mixing: np.ndarray | None,
    axes_z: list[np.ndarray | None],
) -> BoundDescriptor:
    bound = descriptor.bind(species)
    bound = bound if mixing is None else bound.mixed(mixing)
    return shared_centres(bound if axes_z[0] is None else ProjectedDescriptor(bound, axes_z))


def _posterior_arrays(posterior: Posterior) -> dict[str, np.ndarray]:
    """A posterior that the statistics give to rounding only."""
    arrays = {
        f"{_POSTERIOR}w_k": posterior.w_k,
        f"{_POSTERIOR}R_kk": _upper(posterior.R_kk),
        f"{_POSTERIOR}evidence": np.array([posterior.data_fit, posterior.occam]),
    }
    for b, block in enumerate(posterior.whitening.blocks):
        arrays[f"{_POSTERIOR}{b}/pivots_k"] = block.pivots_k
        arrays[f"{_POSTERIOR}{b}/L_kk"] = _upper(block.L_kk.T)
    return arrays


def _posterior(fitted: Fitted, arrays: dict[str, np.ndarray]) -> Posterior:
    """The posterior of these arrays."""
    blocks, first = [], 0
    while f"{_POSTERIOR}{len(blocks)}/pivots_k" in arrays:
        name = f"{_POSTERIOR}{len(blocks)}"
        pivots_k = as_int(arrays[f"{name}/pivots_k"])
        n = len(pivots_k)
        L_kk = _trapezoid(arrays[f"{name}/L_kk"], n, n).T  # in Fortran order
        blocks.append(WhiteningBlock(pivots_k, slice(first, first + n), L_kk))
        first += n
    n_front = fitted.shifts.n_columns
    whitening = Whitening(tuple(blocks), n_front + len(fitted.weights_m), first)
    wide = [SHIFT_PRIOR] if n_front else []
    delta_k = whitening.spread(prior_widths(fitted.components, fitted.delta_g, wide))
    R_kk = np.asfortranarray(_trapezoid(arrays[f"{_POSTERIOR}R_kk"], first, first))
    evidence = arrays[f"{_POSTERIOR}evidence"].tolist()
    return Posterior(whitening, delta_k, R_kk, arrays[f"{_POSTERIOR}w_k"], *evidence)


def _upper(R: Float) -> Float:
    """Entries of an upper trapezoid, row by row."""
    return np.concatenate([np.zeros(0), *(row[k:] for k, row in enumerate(R))])


def _trapezoid(entries: Float, n_rows: int, n_columns: int) -> Float:
    """The upper trapezoid of these entries."""
    R = np.zeros((n_rows, n_columns))
    place = 0
    for k in range(n_rows):
        R[k, k:] = entries[place : place + n_columns - k]
        place += n_columns - k
    return R
