"""Settings of a run of active learning."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ase import units

__all__ = ["LearnerSettings"]


@dataclasses.dataclass(frozen=True)
class LearnerSettings:
    """How a run chooses, labels, learns, and when it stops.

    Parameters
    ----------
    tolerance : float
        Expected error of a force (root mean square of a component) below which no label is wanted,
        eV/angstrom.
    stress_tolerance : float | None
        The same of a stress, GPa, for lattice and elastic constants and dynamics under pressure,
        where the oracle gives stresses: a structure whose stress is unsure is wanted, too. None:
        forces alone count.
    multiple : float
        A model that has just begun takes structures for candidates from so many times its present
        errors on, so that it comes away from its first structures. Each round that finds nothing
        halves it.
    threshold : str
        What the threshold follows, once there are labels: "errors", the present errors, by
        `multiple`; or "history", the mean of the errors that are still expected of the last ten
        structures right after they were learned, as in VASP. It is never below the tolerance.
    upper : float
        Explorers end where the expected error is so many times the threshold, and more than a fifth
        of a typical force of the labels.
    objective : str
        What labels are to lower, once something is unsure: "largest", uncertainties wherever they
        are, for what must not fail anywhere; or "mean", the mean variance of the forces on what
        explorations visit, for averages over dynamics.
    batch : int
        Labels of a round at most.
    n_candidates : int
        Candidates of a round that are looked at closely, those of the largest scores.
    n_typical : int
        Structures over which the mean variance is taken, with ``objective="mean"``, of those that
        the explorations of the last rounds went through.
    n_initial : int
        Displaced copies of each start that are labelled before the first fit.
    displacement : float
        Standard deviation of their displacements, angstrom.
    strain : float
        Largest strain of their cells.
    window : int
        Structures whose errors, from before they were learned, say how wide intervals are.
    n_looked : int
        Expected errors of an exploration that the criteria are judged by.
    n_parallel : int
        Labels at once, without an executor.
    threads : int
        For BLAS and OpenMP of each label.
    time_limit : float | None
        Seconds for one label, after which it has failed.
    most_labels : int
        Labels, those that failed among them, after which the run ends.
    most_seconds : float
        Time after which it ends, the parts of a run that was resumed together.
    plateau_rounds : int
        Rounds over which uncertainty must have ceased to change.
    plateau : float
        By which part it may change over them.
    coverage : float
        Share of the environments of a final long run that are to be inside what the model is sure
        of.
    final_steps : int
        How many times as long as an exploration the final run is; 0 for no such run.
    observable_tolerance : float | None
        By how much the user's observable may differ between the last rounds.
    random_state : int
        Seed: the same gives the same run.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    tolerance: float = 0.1
    stress_tolerance: float | None = None
    multiple: float = 1.5
    threshold: Literal["errors", "history"] = "errors"
    upper: float = 2.0
    objective: Literal["largest", "mean"] = "largest"
    batch: int = 4
    n_candidates: int = 12
    n_typical: int = 60
    n_initial: int = 4
    displacement: float = 0.08
    strain: float = 0.02
    window: int = 40
    n_looked: int = 10
    n_parallel: int = 1
    threads: int = 1
    time_limit: float | None = None
    most_labels: int = 500
    most_seconds: float = math.inf
    plateau_rounds: int = 6
    plateau: float = 0.1
    coverage: float = 0.999
    final_steps: int = 4
    observable_tolerance: float | None = None
    random_state: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        for name in ("tolerance", "multiple", "displacement", "most_seconds", "plateau"):
            value = getattr(self, name)
            if not value > 0.0:
                raise ValueError(f"{name} must be above zero, but is {value!r}")
        if self.stress_tolerance is not None and not self.stress_tolerance > 0.0:
            raise ValueError(
                f"stress_tolerance must be above zero (GPa), or none: {self.stress_tolerance!r}"
            )
        if not self.upper >= 1.0:
            raise ValueError(f"upper is a multiple of the threshold, at least 1: {self.upper!r}")
        if self.objective not in ("largest", "mean"):
            raise ValueError(f'objective must be "largest" or "mean", but is {self.objective!r}')
        if self.threshold not in ("errors", "history"):
            raise ValueError(f'threshold must be "errors" or "history", but is {self.threshold!r}')
        if not 0.0 <= self.strain <= 0.5:
            raise ValueError(
                f"strain must be between 0 and 0.5 (0.02: two per cent): {self.strain!r}"
            )
        if not 0.0 < self.coverage < 1.0:
            raise ValueError(f"coverage is a share, between 0 and 1 (0.999): {self.coverage!r}")
        least = {"n_initial": 1, "final_steps": 0, "plateau_rounds": 4, "window": 4}
        for name in (
            "batch", "n_candidates", "n_typical", "n_initial", "window", "n_looked", "n_parallel",
            "threads", "most_labels", "plateau_rounds", "final_steps",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least.get(name, 1):
                raise ValueError(
                    f"{name} must be a whole number of at least {least.get(name, 1)}, but is "
                    f"{value!r}"
                )
        if self.time_limit is not None and not self.time_limit > 0.0:
            raise ValueError(f"time_limit must be above zero (s), or none: {self.time_limit!r}")

    @property
    def area(self) -> float:
        """Errors of stresses count as those of forces on such an area, angstrom^2; 0 for none."""
        if self.stress_tolerance is None:
            return 0.0
        return self.tolerance / (self.stress_tolerance * units.GPa)
