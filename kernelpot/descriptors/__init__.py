"""Descriptors of atomic environments: features and their derivatives."""

from kernelpot.descriptors.pairs import PairSplines
from kernelpot.descriptors.radial import (
    DscribeExp,
    DscribePoly,
    DscribePow,
    ShiftedCosine,
    SmoothBump,
    Willatt,
)
from kernelpot.descriptors.soap import Soap

__all__ = [
    "DESCRIPTORS",
    "DscribeExp",
    "DscribePoly",
    "DscribePow",
    "PairSplines",
    "ShiftedCosine",
    "SmoothBump",
    "Soap",
    "Willatt",
]

DESCRIPTORS: dict[str, type] = {cls.__name__: cls for cls in (Soap, PairSplines)}
"""Descriptors by the name under which a model file keeps them."""
