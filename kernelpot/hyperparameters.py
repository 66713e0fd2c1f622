"""Prior amplitudes and noise levels of a fit: by the errors on parts of the data left out."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kernelpot.conventions import LABEL_KINDS, Int, LabelSet, as_int
from kernelpot.gp.crossvalidation import fold_errors, minimise
from kernelpot.gp.evidence import DELTA_RANGE, Gram, gram, maximise, no_gram
from kernelpot.gp.triangles import Triangle
from kernelpot.gp.whitening import Whitening
from kernelpot.options import NOISE_RANGE, Options
from kernelpot.rows import Component

__all__ = [
    "COARSE",
    "IMPORTANCE",
    "choose_hyperparameters",
    "leave_out_errors",
    "most_probable",
]

log = logging.getLogger("kernelpot")

COARSE = 1500
"""Inducing variables with which they are found: of the independent ones the most telling."""
IMPORTANCE = {"energy": 1.0, "forces": 1.0, "stress": 0.3}
"""How much a per cent of error of each kind of label counts in that search."""


def choose_hyperparameters(
    triangles: Mapping[LabelSet, Triangle],
    grams: Sequence[Mapping[LabelSet, Gram]],
    n_folds_w: Sequence[int],
    whitening: Whitening,
    components: Sequence[Component],
    options: Options,
    wide: Sequence[float] = (),
) -> tuple[tuple[float, ...], dict[LabelSet, float]]:
    """Amplitudes and noise factors: those given, and those that leave-out errors choose.

    With too few structures for folds the amplitudes are those of the largest evidence, and the
    noise is as assumed.

    Parameters
    ----------
    triangles : Mapping[LabelSet, Triangle]
        Statistics of all rows of each set of labels.
    grams : Sequence[Mapping[LabelSet, Gram]]
        Products of all rows, and then of those of each fold; none where nothing is left out.
    n_folds_w : Sequence[int]
        Number of folds of each way of leaving out.
    whitening : Whitening
        Of the inducing variables that the products speak of.
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    options : Options
        Settings.
    wide : Sequence[float]
        Amplitudes of blocks in front of those of the components: fixed, and wide enough not to
        matter.

    Returns
    -------
    tuple[tuple[float, ...], dict[LabelSet, float]]
        Amplitude of each component, eV, and factor on the assumed noise of each set of labels.
    """
    delta_g = [one.delta for one in options.components]
    labels = list(triangles)
    learned = [label.kind in options.learned for label in labels]
    if None not in delta_g and not any(learned):
        return tuple(delta_g), dict.fromkeys(labels, 1.0)
    delta_g = [*wide, *delta_g]
    component_k = _component_k(components, whitening, wide)
    ranges = _noise_ranges(labels, learned, options)
    if grams:
        found = minimise(
            *_totals_and_folds(labels, grams, n_folds_w, whitening),
            component_k,
            delta_g,
            [None if free else 1.0 for free in learned],
            importance_wl=[_importance(triangles, way) for way in range(len(n_folds_w))],
            delta_range=DELTA_RANGE,
            noise_range=ranges,
            n_wide=len(wide),
        )
    else:
        found = maximise(
            [gram(triangle, whitening) for triangle in triangles.values()],
            component_k,
            delta_g,
            [1.0] * len(labels),
            noise_range=ranges,
        )
    found_g = found.delta_g[len(wide) :].tolist()
    noise = dict(zip(labels, found.noise_l.tolist(), strict=True))
    log.info(
        "delta %s eV; noise, as factors on what was assumed: %s",
        ", ".join(f"{delta:.3g}" for delta in found_g),
        ", ".join(
            f"{label.kind}{' of ' + label.source if label.source else ''} {factor:.3g}"
            for label, factor in noise.items()
        ),
    )
    return tuple(found_g), noise


def leave_out_errors(
    triangles: Mapping[LabelSet, Triangle],
    grams: Sequence[Mapping[LabelSet, Gram]],
    n_folds_w: Sequence[int],
    whitening: Whitening,
    components: Sequence[Component],
    delta_g: Sequence[float],
    noise: Mapping[LabelSet, float],
    wide: Sequence[float] = (),
) -> tuple[dict[str, float], dict[str, float]]:
    """Errors on structures and on systems left out, fold by fold, with chosen hyperparameters.

    Where the labels of a kind have noise levels of their own, structure by structure, their errors
    count in proportion to the inverse squares.

    Parameters
    ----------
    triangles : Mapping[LabelSet, Triangle]
        Statistics of all rows of each set of labels.
    grams : Sequence[Mapping[LabelSet, Gram]]
        Products of all rows, and then of those of each fold; none where nothing is left out.
    n_folds_w : Sequence[int]
        Number of folds of each way of leaving out.
    whitening : Whitening
        Of the inducing variables that the products speak of.
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    delta_g : Sequence[float]
        Amplitude of each, eV.
    noise : Mapping[LabelSet, float]
        Factor on the assumed noise of each set of labels.
    wide : Sequence[float]
        Amplitudes of blocks in front of those of the components.

    Returns
    -------
    tuple[dict[str, float], dict[str, float]]
        Root mean square error of each kind of label that is there, of structures and of systems:
        eV/atom, eV/angstrom, eV/angstrom^3. Empty where there are no such folds.
    """
    errors: list[dict[str, float]] = [{}, {}]
    labels = list(triangles)
    noise_l = np.array([noise[label] for label in labels])
    component_k = _component_k(components, whitening, wide)
    totals, ways = _totals_and_folds(labels, grams, n_folds_w, whitening) if grams else ([], [])
    for way, folds in enumerate(ways):
        found = fold_errors(totals, folds, component_k, np.array([*wide, *delta_g]), noise_l)
        squares, counts = dict.fromkeys(LABEL_KINDS, 0.0), dict.fromkeys(LABEL_KINDS, 0)
        for k, label in enumerate(labels):
            n_rows = sum(fold[k].n_rows for fold in folds)
            sigma = math.exp(triangles[label].log_noise / triangles[label].n_rows)
            squares[label.kind] += n_rows * float(found.mse_l[k]) * sigma**2
            counts[label.kind] += n_rows
        errors[way] = {kind: math.sqrt(squares[kind] / n) for kind, n in counts.items() if n}
    return errors[0], errors[1]


def most_probable(
    triangles: Mapping[LabelSet, Triangle],
    whitening: Whitening,
    components: Sequence[Component],
    options: Options,
    delta_g: Sequence[float],
    noise: Mapping[LabelSet, float],
    open_l: Mapping[LabelSet, Sequence[float]],
    wide: Sequence[float] = (),
) -> tuple[tuple[float, ...], dict[LabelSet, float]]:
    """Amplitudes and noise factors: those given, and those of the largest bound of the evidence.

    Needs no folds, so that statistics that were streamed are enough. (That of the evidence itself
    overrates labels which the inducing variables explain in part only: for silicon, crystal and
    then liquid, errors of forces rose from 225 to 341 meV/A, and fell to 196 by the bound.)

    Parameters
    ----------
    triangles : Mapping[LabelSet, Triangle]
        Statistics of all rows of each set of labels.
    whitening : Whitening
        Of the inducing variables that count.
    components : Sequence[Component]
        The Gaussian processes whose sum is the model.
    options : Options
        Settings.
    delta_g : Sequence[float]
        Amplitudes so far, eV: the search begins here.
    noise : Mapping[LabelSet, float]
        Noise factors so far.
    open_l : Mapping[LabelSet, Sequence[float]]
        What the inducing variables leave open of the rows of each set, by component: sums of
        variances, in units of delta^2 and of the assumed noise.
    wide : Sequence[float]
        Amplitudes of blocks in front of those of the components.

    Returns
    -------
    tuple[tuple[float, ...], dict[LabelSet, float]]
        Amplitude of each component, eV, and factor on the assumed noise of each set of labels.
    """
    labels = list(triangles)
    given_g = [one.delta for one in options.components]
    learned = [label.kind in options.learned for label in labels]
    if None not in given_g and not any(learned):
        return tuple(delta_g), dict(noise)
    noise_l = [noise[label] for label in labels]
    found = maximise(
        [gram(triangle, whitening) for triangle in triangles.values()],
        _component_k(components, whitening, wide),
        [*wide, *given_g],
        [None if free else factor for free, factor in zip(learned, noise_l, strict=True)],
        noise_range=_noise_ranges(labels, learned, options),
        start=([*wide, *delta_g], noise_l),
        open_lg=np.array([[*(0.0 for _ in wide), *open_l[label]] for label in labels]),
    )
    return tuple(found.delta_g[len(wide) :].tolist()), dict(
        zip(labels, found.noise_l.tolist(), strict=True)
    )


def _noise_ranges(
    labels: Sequence[LabelSet], learned: Sequence[bool], options: Options
) -> list[tuple[float, float]]:
    """Bounds of the factors, which are relative to what was assumed; those of noise are not."""
    return [
        tuple(limit / getattr(options.noise, label.kind) for limit in NOISE_RANGE[label.kind])
        if free
        else (1.0, 1.0)
        for label, free in zip(labels, learned, strict=True)
    ]


def _component_k(
    components: Sequence[Component], whitening: Whitening, wide: Sequence[float]
) -> Int:
    """Component that each whitened feature belongs to; wide blocks stand in front."""
    n_blocks_g = [1] * len(wide) + [len(one.inducing) for one in components]
    return as_int(whitening.spread(np.repeat(np.arange(len(n_blocks_g)), n_blocks_g)))


def _totals_and_folds(
    labels: Sequence[LabelSet],
    grams: Sequence[Mapping[LabelSet, Gram]],
    n_folds_w: Sequence[int],
    whitening: Whitening,
) -> tuple[list[Gram], list[list[list[Gram]]]]:
    """Products of all rows of each set of labels, and of those of each fold, way by way."""
    nothing = no_gram(whitening.n_whitened)
    totals, *folds = [[one.get(label, nothing) for label in labels] for one in grams]
    rest = iter(folds)
    return totals, [list(itertools.islice(rest, n)) for n in n_folds_w]


def _importance(triangles: Mapping[LabelSet, Triangle], way: int) -> list[float]:
    """Each kind of label counts as its importance, each source by its share of the rows.

    Of systems left out energies do not count where there are forces: that of an element whose
    crystal is left out is off by a constant that nothing else tells, and so large that for its sake
    those of known systems would be given up (NbMoTaW, all structures: 6.9 meV/atom instead of 1.7).
    """
    n_kind = dict.fromkeys(LABEL_KINDS, 0)
    for label, triangle in triangles.items():
        n_kind[label.kind] += triangle.n_rows
    importance = dict(IMPORTANCE)
    if way > 0 and n_kind["forces"]:
        importance["energy"] = 0.0
    return [
        importance[label.kind] * triangle.n_rows / n_kind[label.kind]
        for label, triangle in triangles.items()
    ]
