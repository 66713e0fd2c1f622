"""Descriptors of atomic environments: unit vectors and their derivatives."""

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
    "DscribeExp",
    "DscribePoly",
    "DscribePow",
    "ShiftedCosine",
    "SmoothBump",
    "Soap",
    "Willatt",
]
