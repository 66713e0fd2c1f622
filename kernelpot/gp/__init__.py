"""Sparse Gaussian processes on arrays: this package runs without an atom in memory."""

from kernelpot.gp.regressor import SparseGPRegressor

__all__ = ["SparseGPRegressor"]
