"""Variables in front of a model's own: learned together with it, and no part of its predictions."""

from __future__ import annotations

import numpy as np

from kernelpot.conventions import as_int
from kernelpot.gp.solvers import Posterior
from kernelpot.gp.whitening import Whitening, WhiteningBlock

__all__ = ["put_in_front", "without_front"]


def put_in_front(n_front: int, whitening: Whitening) -> Whitening:
    """Whitening of independent variables of unit variance and, behind them, of others.

    Parameters
    ----------
    n_front : int
        How many are put in front.
    whitening : Whitening
        Of the others.

    Returns
    -------
    Whitening
        With one block more, the first; the one given where nothing is put in front.
    """
    if n_front == 0:
        return whitening
    front = as_int(np.arange(n_front))
    blocks = [WhiteningBlock(front, slice(0, n_front), np.eye(n_front, order="F"))]
    for pivots_k, columns, L_kk in whitening.blocks:
        columns = slice(columns.start + n_front, columns.stop + n_front)
        blocks.append(WhiteningBlock(as_int(pivots_k + n_front), columns, L_kk))
    return Whitening(tuple(blocks), whitening.n_raw + n_front, whitening.n_whitened + n_front)


def without_front(posterior: Posterior, n_front: int) -> Posterior:
    """Marginal posterior of the variables behind: the trailing block of the factor.

    Parameters
    ----------
    posterior : Posterior
        Of all variables.
    n_front : int
        How many of them `put_in_front` put there.

    Returns
    -------
    Posterior
        Of the others; the one given where nothing stands in front.
    """
    if n_front == 0:
        return posterior
    blocks = []
    for pivots_k, columns, L_kk in posterior.whitening.blocks[1:]:
        columns = slice(columns.start - n_front, columns.stop - n_front)
        blocks.append(WhiteningBlock(as_int(pivots_k - n_front), columns, L_kk))
    n_raw, n_whitened = posterior.whitening.n_raw, posterior.whitening.n_whitened
    return posterior._replace(
        whitening=Whitening(tuple(blocks), n_raw - n_front, n_whitened - n_front),
        delta_k=posterior.delta_k[n_front:],
        R_kk=np.asfortranarray(posterior.R_kk[n_front:, n_front:]),
        w_k=posterior.w_k[n_front:],
        # Rows of predictions, solved with an upper factor, are zero there.
        scores_kj=None if posterior.scores_kj is None else posterior.scores_kj[n_front:],
    )
