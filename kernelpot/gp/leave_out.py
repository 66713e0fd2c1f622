"""What a fit would say of a block of its rows had it not seen them, without fitting again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.linalg import lapack

from kernelpot.conventions import Float
from kernelpot.gp.solvers import Posterior, cholesky

__all__ = ["LeftOutBlock", "leave_block_out"]


class LeftOutBlock(NamedTuple):
    """A block of rows by the posterior of all others, in units of the noise."""

    residual_r: Float  # label less prediction
    covariance_rr: Float  # of these: what the others leave open, and the block's own noise, 1
    open_rk: Float  # Phi R^-1, of the posterior of all rows


def leave_block_out(Phi_rk: Float, y_r: Float, posterior: Posterior) -> LeftOutBlock:
    """Residuals of a block of rows by the posterior of all other rows, and their covariance.

    With the residuals e = y - Phi w of the posterior of all rows and H = Phi S Phi^T of its
    covariance S, the posterior without the block has residuals (I - H)^-1 e, and their covariance
    is (I - H)^-1: what the others leave open, and the noise of the block itself, which is 1.

    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 5.4.2, for
    blocks and in the space of the weights.

    Parameters
    ----------
    Phi_rk : Float
        Rows of the block in whitened features, divided by their noise, as the posterior has seen
        them.
    y_r : Float
        Their labels, likewise divided.
    posterior : Posterior
        Of all rows, those of the block among them.

    Returns
    -------
    LeftOutBlock
        Of these rows.

    Raises
    ------
    ValueError
        If the posterior cannot have seen these rows.
    """
    if len(y_r) == 0:
        return LeftOutBlock(np.zeros(0), np.zeros((0, 0)), np.zeros((0, Phi_rk.shape[1])))
    inside_kr = scipy.linalg.solve_triangular(
        posterior.R_kk, Phi_rk.T, trans="T", check_finite=False
    )
    rest_rr = np.eye(len(y_r)) - inside_kr.T @ inside_kr
    # A block that alone decides some direction leaves nothing of it but rounding.
    try:
        L_rr = cholesky(rest_rr)
    except ValueError:
        raise ValueError(
            "these rows say more than the posterior knows: they are not among those that it was "
            "made of, or their noise or their weight was another one"
        ) from None
    covariance_rr = lapack.dpotri(L_rr, lower=1)[0]
    covariance_rr = np.tril(covariance_rr) + np.tril(covariance_rr, -1).T
    residual_r = covariance_rr @ (y_r - Phi_rk @ posterior.w_k)
    return LeftOutBlock(residual_r, covariance_rr, inside_kr.T)
