"""What a fitted potential can learn further: labels as they come, without a fit to all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ase import Atoms
from sklearn.utils.validation import check_is_fitted

import kernelpot.training as training
from kernelpot._machine import one_blas_thread
from kernelpot.fitted import with_scores
from kernelpot.fitted_potential import FittedPotential
from kernelpot.growth import MOST, learn_more
from kernelpot.jackknife import folded
from kernelpot.options import Options
from kernelpot.schedule import Schedule
from kernelpot.streaming import Surprise, tune
from kernelpot.summary import summarise
from kernelpot.training_data import InProcess, say_nothing

__all__ = ["StreamedPotential"]


class StreamedPotential(FittedPotential):
    """Base class of `KernelPotential`, which has the parameters and `fit`."""

    progress: Any
    fit: Any
    _options: Callable[[], Options]  # the parameters, checked

    def partial_fit(
        self,
        images: Iterable[Atoms],
        y: None = None,
        *,
        grow: bool | int = False,
        tune: bool = True,
    ) -> StreamedPotential:
        """Add labelled structures, keeping the baseline: no refit.

        Without ``grow`` inducing variables and hyperparameters stay as they are, and the result is
        to rounding that of one fit with these. With it the model gets inducing environments and
        tangents of its own for what is new, axes for features that it had left out, and noise
        levels and amplitudes anew where labels are not as expected or there are a quarter more
        (``schedule_.tunings``; ``schedule_.advice.refit`` says why a `fit` to all structures would
        be due). The time does not depend on how many labels there are already.

        Parameters
        ----------
        images : Iterable[Atoms]
            New structures, of species that the model knows.
        y : None
            Not used.
        grow : bool | int
            Whether inducing variables are added: at most so many environments, where True means
            four for each structure; where nothing is new there are none.
        tune : bool
            Whether noise levels and amplitudes are found anew where that is due; False to do so
            later, by `tune`. Without ``grow`` they never are.

        Returns
        -------
        StreamedPotential
            Itself; fitted anew where it was not fitted before.

        Raises
        ------
        ValueError
            If a structure is not valid; the model then stays as it was.
        """
        if not hasattr(self, "fitted_"):
            return self.fit(images)
        if not isinstance(grow, bool) and (grow != int(grow) or grow < 0):
            raise ValueError(
                f"grow must be True, False, or how many environments to add; got {grow!r}"
            )
        structures = self._structures(images, labels="required")
        options = self._options()
        tell = self.progress or say_nothing
        earlier, schedule = self.training_summary_, self.schedule_
        with one_blas_thread():
            if grow:
                most = MOST * len(structures) if grow is True else int(grow)
                fitted, schedule = learn_more(
                    self.fitted_, structures, options, schedule, most, tell, tuning=tune
                )
            else:
                fitted = training.update(self.fitted_, structures, self.progress)
                schedule = schedule.after([Surprise(0, 0.0)] * len(structures))
            summary, scores_mj = summarise(InProcess(structures), fitted, options, None, tell)
            if fitted.scores_mj is not None:
                # Those of the earlier structures are of the residuals that they had.
                fitted = with_scores(fitted, folded([fitted.scores_mj, scores_mj]))
        self._adopt(fitted)
        summary["n_structures"] += earlier["n_structures"]
        summary["n_labels"] = {
            kind: n + earlier["n_labels"][kind] for kind, n in summary["n_labels"].items()
        }
        summary["doubts"] = [*earlier.get("doubts", ()), *summary["doubts"]]
        summary["data_hash"] = [*np.atleast_1d(earlier["data_hash"]).tolist(), summary["data_hash"]]
        summary["schedule"] = schedule.to_settings()
        self.training_summary_ = summary
        return self

    def tune(self) -> StreamedPotential:
        """Find noise levels and amplitudes anew, by the evidence of all labels: no refit.

        Takes as long however many labels there are. ``calibration_`` is forgotten, as by a fit.

        Returns
        -------
        StreamedPotential
            Itself.

        Raises
        ------
        NotFittedError
            If it is not fitted.
        ValueError
            If the model has no posterior (``basis="full"``).
        """
        check_is_fitted(self, "fitted_")
        self.fitted_.posterior()  # says so where there is none
        schedule = self.schedule_
        with one_blas_thread():
            fitted = tune(self.fitted_, self._options())
            fitted = with_scores(fitted, fitted.scores_mj)
        self._adopt(fitted)
        self.training_summary_ = {
            **self.training_summary_,
            "schedule": schedule.tuned(schedule.advice.tune or "asked for").to_settings(),
        }
        return self

    @property
    def schedule_(self) -> Schedule:
        """How many structures were learned when, when hyperparameters were found anew and why."""
        n_structures = self.training_summary_["n_structures"]
        since_fit = self.training_summary_.get("schedule")
        if since_fit is None:
            return Schedule(n_structures, n_structures, n_structures)
        return Schedule.from_settings(since_fit)
