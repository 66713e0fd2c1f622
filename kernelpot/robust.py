"""Fits that trust labels less which all other labels contradict.

After a fit, each structure is predicted by all others (`leave_out`): a flexible model fits its
outliers, so that its own residuals hide them. Labels far off get the weight that they have under a
Student distribution,

    w = (nu + 1) / (nu + z^2),      nu = 4, z the distance in sigmas,

and the fit is done again, on the same features and inducing variables.

Lange, Little and Taylor, J. Am. Stat. Assoc. 84, 881 (1989).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kernelpot import training
from kernelpot.conventions import Progress
from kernelpot.data import Structure
from kernelpot.doubts import Doubt, Residuals, doubted, join_residuals, residuals_of
from kernelpot.fitted import Fitted
from kernelpot.leave_out import leave_one_out
from kernelpot.options import Options
from kernelpot.terms.composition import isolated_atoms
from kernelpot.training_data import Data, say_nothing

__all__ = ["fit_robustly"]

log = logging.getLogger("kernelpot")

_PASSES = 3


def fit_robustly(
    data: Data, options: Options, progress: Progress | None = None
) -> tuple[Fitted, tuple[Doubt, ...] | None]:
    """Fit, and where that is wanted fit again with less weight for labels in doubt.

    Parameters
    ----------
    data : Data
        Checked structures, at least one with labels.
    options : Options
        Settings.
    progress : Progress | None
        Called with a stage's name, what is done and the total.

    Returns
    -------
    tuple[Fitted, tuple[Doubt, ...] | None]
        The last fit, and the labels that count less in it; None where nothing was doubted because
        it was not asked for.
    """
    plan = training.prepare(data, options, progress)
    fitted = training.learn(plan, data, options, progress)
    if options.robust is None:
        return fitted, None
    tell = progress or say_nothing
    judged = [one for s, one in enumerate(data.outlines) if s not in plan.isolated]
    doubts: tuple[Doubt, ...] = ()
    for _ in range(_PASSES):
        # The posterior is all that is needed of the statistics, which are as large.
        needed = fitted._replace(triangles={})
        residuals = data.each("leave one out", _left_out, needed, doubts, tell=tell)
        found = doubted(
            judged, join_residuals(residuals), options.robust, options.learned, weigh=True
        )
        settled = _labels(found) == _labels(doubts)
        if settled:
            break
        doubts = found
        log.info("%d labels are in doubt; the fit is done again", len(doubts))
        fitted = training.learn(plan, data, options, progress, doubts)
    return fitted, doubts


def _left_out(
    structures: Sequence[Structure], fitted: Fitted, doubts: Sequence[Doubt], tell: Progress
) -> list[Residuals]:
    """How far labels are from what all others say; isolated atoms, which say it alone, are not."""
    cutoff = max(component.descriptor.cutoff for component in fitted.components)
    isolated = isolated_atoms(structures, cutoff)
    judged = [one for s, one in enumerate(structures) if s not in isolated]
    return residuals_of(judged, leave_one_out(fitted, judged, doubts, tell))


def _labels(doubts: Sequence[Doubt]) -> set[tuple[str, str]]:
    return {(doubt.key, doubt.kind) for doubt in doubts}
