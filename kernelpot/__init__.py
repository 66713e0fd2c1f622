"""Interatomic potentials from a few hundred DFT calculations: sparse Gaussian processes on SOAP
power spectra, with environments and tangents as inducing variables, and their uncertainty."""

from kernelpot import datasets
from kernelpot.data import read_images
from kernelpot.descriptors import ShiftedCosine, SmoothBump, Soap, Willatt
from kernelpot.gp.regressor import SparseGPRegressor
from kernelpot.interfaces.ase import Calculator
from kernelpot.potential import KernelPotential, load

__all__ = [
    "Calculator",
    "KernelPotential",
    "ShiftedCosine",
    "SmoothBump",
    "Soap",
    "SparseGPRegressor",
    "Willatt",
    "datasets",
    "load",
    "read_images",
]
