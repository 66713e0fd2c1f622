"""Interatomic potentials from a few hundred DFT calculations: sparse Gaussian processes on SOAP
power spectra, with environments and tangents as inducing variables, and their uncertainty."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernelpot import datasets
    from kernelpot.active.learner import ActiveLearner
    from kernelpot.calculator import Calculator
    from kernelpot.data import read_images
    from kernelpot.descriptors import PairSplines, ShiftedCosine, SmoothBump, Soap, Willatt
    from kernelpot.gp.regressor import SparseGPRegressor
    from kernelpot.potential import KernelPotential, load

__all__ = [
    "ActiveLearner",
    "Calculator",
    "KernelPotential",
    "PairSplines",
    "ShiftedCosine",
    "SmoothBump",
    "Soap",
    "SparseGPRegressor",
    "Willatt",
    "datasets",
    "load",
    "read_images",
]

_HOMES = {
    "ActiveLearner": "kernelpot.active.learner",
    "Calculator": "kernelpot.calculator",
    "KernelPotential": "kernelpot.potential",
    "PairSplines": "kernelpot.descriptors",
    "ShiftedCosine": "kernelpot.descriptors",
    "SmoothBump": "kernelpot.descriptors",
    "Soap": "kernelpot.descriptors",
    "SparseGPRegressor": "kernelpot.gp.regressor",
    "Willatt": "kernelpot.descriptors",
    "load": "kernelpot.potential",
    "read_images": "kernelpot.data",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line answers ``--help`` at once."""
    if name == "datasets":
        return import_module("kernelpot.datasets")
    if name not in _HOMES:
        raise AttributeError(f"module 'kernelpot' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Names that tab completion offers."""
    return sorted({*globals(), *__all__})
