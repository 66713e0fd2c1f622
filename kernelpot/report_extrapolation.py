"""Measures of extrapolation of labelled structures, side by side, and what they say of errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.conventions import Float
from kernelpot.data import LabelKeys, structures_from_atoms
from kernelpot.neighbours import find_pairs
from kernelpot.report_tables import short
from kernelpot.uncertainty.extrapolation import MEASURES, Extrapolation
from kernelpot.uncertainty.metrics import auroc, spearman

__all__ = ["ExtrapolationRow", "Farthest", "extrapolation_table"]

_WORDS = {
    "mahalanobis": "Mahalanobis",
    "grade": "grade (MTP, ACE)",
    "distance": "nearest",
    "contact": "contact",
}


class ExtrapolationRow(NamedTuple):
    """One measure over all atoms of some structures; on a scale where 1 is its limit."""

    measure: str
    median: float
    largest: float
    above: float  # share of the atoms above the limit
    spearman: float  # with the norms of the errors of the forces; NaN where there are none
    auroc: float  # for the tenth of largest such errors
    count: int

    @staticmethod
    def columns() -> tuple[tuple[str, str], ...]:
        """Headings of the cells and how these are aligned.

        Returns
        -------
        tuple[tuple[str, str], ...]
            Heading, and "left" or "right".
        """
        names = ("median", "largest", "above limit", "Spearman", "AUROC", "atoms")
        return (("measure, limit 1", "left"), *((name, "right") for name in names))

    def cells(self) -> list[str]:
        """What stands in the row.

        Returns
        -------
        list[str]
            One for each of `columns`.
        """
        ranks = ("-" if math.isnan(v) else f"{v:.2f}" for v in (self.spearman, self.auroc))
        above = "-" if math.isnan(self.above) else f"{100.0 * self.above:.1f} %"
        return [
            self.measure,
            short(self.median),
            short(self.largest),
            above,
            *ranks,
            str(self.count),
        ]


class Farthest(NamedTuple):
    """The atom that is farthest from the training data, and why."""

    structure: int
    atom: int
    reason: str


def extrapolation_table(
    model: Any, train: Sequence[Atoms], images: Sequence[Atoms], *, keys: LabelKeys | None = None
) -> tuple[list[ExtrapolationRow], list[Farthest]]:
    """How far structures are from those of the training, by all measures.

    Parameters
    ----------
    model : Any
        A fitted `KernelPotential`.
    train : Sequence[Atoms]
        What it was fitted to.
    images : Sequence[Atoms]
        Structures to look at; where they have forces, measures are compared with the errors.
    keys : LabelKeys | None
        Where the labels stand; None for the model's own keys.

    Returns
    -------
    tuple[list[ExtrapolationRow], list[Farthest]]
        A row for each measure and one for the novelty, which has no limit; and for every structure
        that has any, the atom farthest beyond a limit, the worst first.
    """
    if keys is None:
        keys = LabelKeys(model.energy_key, model.forces_key, model.stress_key, model.virial_key)
    measures = Extrapolation.of(model.fitted_, structures_from_atoms(train, keys, labels="ignore"))
    ratios, novelties, errors, far = [], [], [], []
    predictor = model.predictor_
    for s, one in enumerate(structures_from_atoms(images, keys, labels="optional")):
        verdicts = measures.of_structure(one)
        pairs = find_pairs(one.positions_nc, one.cell_cc, one.pbc_c, predictor.cutoff)
        found = predictor.evaluate(one.numbers_n, pairs, one.name, novelty=True)
        ratios.append(verdicts.ratio_nk)
        novelties.append(found.novelty_n)
        errors.append(np.linalg.norm(found.forces_nc - one.forces_nc, axis=1))
        worst = int(np.argmax(verdicts.ratio_nk.max(axis=1)))
        if verdicts.reason_n[worst]:
            size = float(verdicts.ratio_nk[worst].max())
            far.append((size, Farthest(s, worst, verdicts.reason_n[worst])))
    ratio_nk, error_n = np.concatenate(ratios), np.concatenate(errors)
    rows = [
        _row(_WORDS[name], ratio_nk[:, k], error_n, limit=1.0) for k, name in enumerate(MEASURES)
    ]
    novelty_n = np.concatenate(novelties)
    if predictor.has_novelty:
        rows.append(_row("novelty", novelty_n, error_n, limit=math.nan))
    return rows, [one for _, one in sorted(far, key=lambda pair: -pair[0])]


def _row(name: str, value_n: Float, error_n: Float, limit: float) -> ExtrapolationRow:
    known = np.isfinite(error_n)
    ranks = (math.nan, math.nan)
    if known.sum() > 1:
        ranks = spearman(error_n[known], value_n[known]), auroc(error_n[known], value_n[known])
    above = math.nan if math.isnan(limit) else float(np.mean(value_n > limit * (1.0 + 1e-6)))
    return ExtrapolationRow(
        name, float(np.median(value_n)), float(value_n.max()), above, *ranks, len(value_n)
    )
