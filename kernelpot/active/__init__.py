"""Active learning: explore with the model, label where it is unsure, learn, know when to stop."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelpot.active.explorers.biased import BiasedDynamics
    from kernelpot.active.explorers.directions import UnsampledDirections
    from kernelpot.active.explorers.dynamics import Dynamics
    from kernelpot.active.explorers.paths import NudgedElasticBand, Relaxation
    from kernelpot.active.explorers.protocol import Explorer
    from kernelpot.active.explorers.static import Pool, RandomStructures, Rattle
    from kernelpot.active.learner import ActiveLearner, Outcome, replay
    from kernelpot.active.on_the_fly import OnTheFlyCalculator
    from kernelpot.active.oracle import FileOracle, label_all
    from kernelpot.active.records import Candidate, Exploration, Label, Verdict
    from kernelpot.active.scores import Law, energy_below, low_energy, sum_differs
    from kernelpot.active.settings import LearnerSettings

__all__ = [
    "ActiveLearner",
    "BiasedDynamics",
    "Candidate",
    "Dynamics",
    "Exploration",
    "Explorer",
    "FileOracle",
    "Label",
    "Law",
    "LearnerSettings",
    "NudgedElasticBand",
    "OnTheFlyCalculator",
    "Outcome",
    "Pool",
    "RandomStructures",
    "Rattle",
    "Relaxation",
    "UnsampledDirections",
    "Verdict",
    "energy_below",
    "label_all",
    "low_energy",
    "replay",
    "sum_differs",
]

_HOMES = {
    "ActiveLearner": "learner",
    "BiasedDynamics": "explorers.biased",
    "Candidate": "records",
    "Dynamics": "explorers.dynamics",
    "Exploration": "records",
    "Explorer": "explorers.protocol",
    "FileOracle": "oracle",
    "Label": "records",
    "Law": "scores",
    "LearnerSettings": "settings",
    "NudgedElasticBand": "explorers.paths",
    "OnTheFlyCalculator": "on_the_fly",
    "Outcome": "learner",
    "Pool": "explorers.static",
    "RandomStructures": "explorers.static",
    "Rattle": "explorers.static",
    "Relaxation": "explorers.paths",
    "UnsampledDirections": "explorers.directions",
    "Verdict": "records",
    "energy_below": "scores",
    "label_all": "oracle",
    "low_energy": "scores",
    "replay": "learner",
    "sum_differs": "scores",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, as the package itself does."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kernelpot.active' has no attribute {name!r}")
    return getattr(import_module(f"kernelpot.active.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Names that tab completion offers."""
    return sorted({*globals(), *__all__})
