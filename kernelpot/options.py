"""The settings of a fit, checked: what people give to `KernelPotential`, made uniform."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernelpot.conventions import LABEL_KINDS, LabelSet
from kernelpot.data_records import Noise
from kernelpot.descriptors import Soap
from kernelpot.descriptors.protocol import Descriptor, is_linear
from kernelpot.gp.inducing import SELECTORS, Selector
from kernelpot.gp.kernels import check_zeta
from kernelpot.memory import Room, parse_memory

__all__ = [
    "BASES",
    "NOISE_RANGE",
    "ROBUST_THRESHOLD",
    "SETTLED",
    "ComponentOptions",
    "Options",
    "check_options",
    "effective_noise",
]


NOISE_RANGE = {"energy": (1e-6, 1.0), "forces": (1e-6, 10.0), "stress": (1e-7, 1.0)}
"""Bounds of learned noise (eV/atom, eV/angstrom, eV/angstrom^3): wider than labels can be."""
BASES = ("sparse", "full")
ROBUST_THRESHOLD = 6.0
"""Sigmas beyond which labels are doubted where nothing else is said."""
SETTLED = {"zeta": 1, "n_tangents": 0}
"""What a linear descriptor settles: its features are its inducing variables."""


class ComponentOptions(NamedTuple):
    """Settings of one Gaussian process of the sum."""

    descriptor: Descriptor
    zeta: int
    delta: float | None  # eV; None: to be found
    n_environments: int | dict[str, int]
    n_tangents: int


class Options(NamedTuple):
    """Settings of a fit."""

    components: tuple[ComponentOptions, ...]
    basis: str
    feature_tolerance: float
    tangent_threshold: float
    selector: str | Selector
    balance_groups: bool
    selection_sample: int
    noise: Noise  # assumed, of each kind of label
    learned: frozenset[str]  # kinds of labels whose noise the evidence finds
    force_priority: float
    core_repulsion: bool
    reference_source: str | None  # on whose scale energies are; None: of the most
    robust: float | None  # labels further from the others than this many sigmas count less
    random_state: int | None
    memory: float | None = None  # bytes that the process may have; None: what the machine has
    room: Room = Room()


def check_options(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> Options:
    """Settings of a fit from the parameters of the estimator.

    Parameters
    ----------
    parameters : Mapping[str, Any]
        Of `KernelPotential`, by name.
    defaults : Mapping[str, Any]
        What they are where nothing is given.

    Returns
    -------
    Options
        One entry per descriptor where there are several.

    Raises
    ------
    ValueError
        If a parameter is not valid; the message names it, what was given and what is allowed.
    """
    given = parameters["descriptor"]
    descriptors = list(given) if isinstance(given, (list, tuple)) else [given]
    if not descriptors:
        raise ValueError("descriptor is an empty list; give a Soap, or several in a list")
    descriptors = [Soap() if one is None else one for one in descriptors]
    shared = {
        name: _one_each(name, parameters[name], len(descriptors))
        for name in ("zeta", "delta", "n_environments", "n_tangents")
    }
    _settle_linear(descriptors, parameters, defaults, shared)
    components = tuple(
        _component(descriptor, *(values[c] for values in shared.values()))
        for c, descriptor in enumerate(descriptors)
    )
    basis = parameters["basis"]
    if basis not in BASES:
        raise ValueError(f"basis must be one of {', '.join(BASES)}; got {basis!r}")
    if basis == "full" and len(components) > 1:
        raise ValueError("basis='full' takes one descriptor; a sum of several is sparse")
    if basis == "full" and parameters["robust"] is not False:
        raise ValueError(
            "robust needs basis='sparse': with basis='full' there is no posterior by which labels "
            "could be doubted"
        )
    if basis == "full" and is_linear(descriptors[0]):
        raise ValueError("basis='full' is for kernels; a linear model has its features as basis")
    threshold = parameters["tangent_threshold"]
    if not (np.isfinite(threshold) and 0 <= threshold < 1):
        raise ValueError(
            f"tangent_threshold must be a fraction of at least 0 and below 1; got {threshold!r}"
        )
    tolerance = parameters["feature_tolerance"]
    if not (np.isfinite(tolerance) and 0 <= tolerance < 1):
        raise ValueError(
            f"feature_tolerance must be a share of at least 0 and below 1; got {tolerance!r}"
        )
    priority = parameters["force_priority"]
    if not (np.isfinite(priority) and priority >= 1.0):
        raise ValueError(
            "force_priority must be at least 1: it multiplies the weight of the forces on top of "
            f"what the noise levels give; got {priority!r}"
        )
    selector = parameters["selector"]
    if isinstance(selector, str) and selector not in SELECTORS:
        raise ValueError(f"selector {selector!r} is not one of {', '.join(SELECTORS)}")
    noise, learned = Noise(), set()
    for kind in LABEL_KINDS:
        sigma = parameters[f"sigma_{kind}"]
        if sigma is None:
            learned.add(kind)
        else:
            noise = noise._replace(**{kind: sigma})
    return Options(
        components,
        basis,
        float(tolerance),
        float(threshold),
        selector,
        bool(parameters["balance_groups"]),
        _whole("selection_sample", parameters["selection_sample"], 1),
        noise,
        frozenset(learned),
        float(priority),
        bool(parameters["core_repulsion"]),
        parameters["reference_source"],
        _threshold(parameters["robust"]),
        parameters["random_state"],
        parse_memory(parameters["memory"]),
    )


def effective_noise(
    noise: Mapping[LabelSet, float], force_priority: float
) -> dict[LabelSet, float]:
    """Noise factors that count in the fit: with the priority that forces are given.

    Parameters
    ----------
    noise : Mapping[LabelSet, float]
        Factors on the assumed standard deviations.
    force_priority : float
        Factor on the weight of forces.

    Returns
    -------
    dict[LabelSet, float]
        Factors by which rows are divided.
    """
    return {
        label: factor / math.sqrt(force_priority) if label.kind == "forces" else factor
        for label, factor in noise.items()
    }


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or value != int(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}")
    return int(value)


def _threshold(robust: bool | float) -> float | None:
    """Number of sigmas beyond which labels are doubted; None where none are."""
    if isinstance(robust, (bool, np.bool_)):
        return ROBUST_THRESHOLD if robust else None
    if not (np.isfinite(robust) and robust >= 2.0):
        raise ValueError(
            "robust must be False, True, or a threshold of at least 2 sigma, beyond which labels "
            f"count less (True means {ROBUST_THRESHOLD:g}); got {robust!r}"
        )
    return float(robust)


def _one_each(name: str, value: Any, n_descriptors: int) -> list[Any]:
    """One value per descriptor: the same for all, or a list of as many."""
    if not isinstance(value, (list, tuple)):
        return [value] * n_descriptors
    if len(value) != n_descriptors:
        raise ValueError(
            f"{name} is a list of {len(value)} values for {n_descriptors} descriptor(s); give one "
            "value for all, or one for each"
        )
    return list(value)


def _settle_linear(
    descriptors: Sequence[Descriptor],
    parameters: Mapping[str, Any],
    defaults: Mapping[str, Any],
    shared: dict[str, list[Any]],
) -> None:
    """Fill in what linear descriptors settle: a value for them alone must not say otherwise."""
    linear_g = [is_linear(descriptor) for descriptor in descriptors]
    for c in np.flatnonzero(linear_g):
        for name, settled in SETTLED.items():
            given, listed = shared[name][c], isinstance(parameters[name], (list, tuple))
            # A single value speaks of those that are not linear, if there are any.
            explicit = listed or (all(linear_g) and given != defaults[name])
            if explicit and given not in (settled, None):
                raise ValueError(
                    f"{name} must be {settled} for {type(descriptors[c]).__name__}, which is "
                    f"linear in its features; got {given!r}"
                )
            shared[name][c] = settled
        shared["n_environments"][c] = 1  # of no use: its features are the inducing variables


def _component(
    descriptor: Descriptor, zeta: Any, delta: Any, n_environments: Any, n_tangents: Any
) -> ComponentOptions:
    if delta is not None and not (np.isfinite(delta) and delta > 0):
        raise ValueError(
            "delta must be None or positive: it is the prior's standard deviation in eV; "
            f"got {delta!r}"
        )
    counts = {"n_tangents": (n_tangents, 0)}
    if isinstance(n_environments, dict):
        counts |= {f"n_environments[{k!r}]": (n, 1) for k, n in n_environments.items()}
    else:
        counts["n_environments"] = (n_environments, 1)
    for name, (value, least) in counts.items():
        _whole(name, value, least)
    zeta = check_zeta(zeta)
    if zeta < 2 and n_tangents:
        raise ValueError(
            "zeta must be at least 2 with tangents: the linear kernel (zeta=1) has all its "
            "tangents already. Set n_tangents=0, or zeta=4."
        )
    return ComponentOptions(
        descriptor,
        zeta,
        None if delta is None else float(delta),
        n_environments,
        int(n_tangents),
    )
