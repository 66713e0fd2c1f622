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
from kernelpot.doubts import Doubt, doubted, reweighted
from kernelpot.fitted import Fitted
from kernelpot.leave_out import leave_one_out
from kernelpot.options import Options

__all__ = ["fit_robustly"]

log = logging.getLogger("kernelpot")

_PASSES = 3


def fit_robustly(
    structures: Sequence[Structure], options: Options, progress: Progress | None = None
) -> tuple[Fitted, tuple[Doubt, ...] | None]:
    """Fit, and where that is wanted fit again with less weight for labels in doubt.

    Parameters
    ----------
    structures : Sequence[Structure]
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
    plan = training.prepare(structures, options, progress)
    fitted = training.learn(plan, structures, options, progress)
    if options.robust is None:
        return fitted, None
    judged = [s for s in range(len(structures)) if s not in plan.isolated]
    doubts: tuple[Doubt, ...] = ()
    for _ in range(_PASSES):
        some = [structures[s] for s in judged]
        errors = leave_one_out(fitted, some, doubts, progress)
        found = doubted(some, errors, options.robust, options.learned, weigh=True)
        settled = _labels(found) == _labels(doubts)
        if settled:
            break
        doubts = found
        log.info("%d labels are in doubt; the fit is done again", len(doubts))
        fitted = training.learn(plan, reweighted(structures, doubts), options, progress)
    return fitted, doubts


def _labels(doubts: Sequence[Doubt]) -> set[tuple[str, str]]:
    return {(doubt.key, doubt.kind) for doubt in doubts}
