"""Cholesky factorisation of a large symmetric matrix in half of its memory.

The lower triangle is kept as panels, each a block of columns from the diagonal down, and factorised
in place by products of panels: right-looking, at the speed of matrix products. LAPACK's packed
format (pftrf) does the same in one array; with OpenBLAS 0.3 on two threads it ends the process
with a segmentation fault at 40,000 rows, and its count of elements overflows at 65,000.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import blas, lapack

from kernelpot.conventions import Float, Int

__all__ = ["Packed", "memory_of"]

_WIDTH = 1024
"""Columns of a panel: wide enough for products at full speed, narrow enough that the upper halves
of the blocks on the diagonal do not count."""


def memory_of(n: float) -> float:
    """Memory of a matrix of this order.

    Parameters
    ----------
    n : float
        The order.

    Returns
    -------
    float
        Bytes: half of the matrix, and the upper halves of the blocks on its diagonal.
    """
    return 4.0 * n * (n + min(n, _WIDTH))


class Packed:
    """The lower triangle of a symmetric matrix.

    Parameters
    ----------
    n : int
        Order of the matrix.
    width : int
        Columns of a panel.
    """

    def __init__(self, n: int, width: int = _WIDTH):
        self.n = n
        self._width = width
        self._first = list(range(0, n, width))
        # Row-major: a row of a panel is written at once, and its transpose is what BLAS reads.
        self._panels = [np.zeros((n - first, min(width, n - first))) for first in self._first]

    def set_rows(self, first: int, rows: Float) -> None:
        """Write rows of the lower triangle.

        Parameters
        ----------
        first : int
            Index of the first of them.
        rows : Float
            Shape (number of rows, first + number of rows) at least; what lies above the diagonal
            does not count.
        """
        last = first + len(rows)
        for start, panel in zip(self._first, self._panels, strict=True):
            if start >= last:
                break
            skipped = max(start - first, 0)
            end = min(start + panel.shape[1], rows.shape[1])
            panel[first + skipped - start : last - start, : end - start] = rows[skipped:, start:end]

    def part(self, rows_r: Int) -> Packed:
        """The matrix of some of its rows and the same columns.

        Parameters
        ----------
        rows_r : Int
            Indices, ascending.

        Returns
        -------
        Packed
            A copy of them.
        """
        found = Packed(len(rows_r), self._width)
        for start, panel in zip(self._first, self._panels, strict=True):
            low, high = np.searchsorted(rows_r, (start, start + panel.shape[1]))
            if low == high:
                continue
            block = panel[np.ix_(rows_r[low:] - start, rows_r[low:high] - start)]
            # These columns may lie in several panels of the part.
            for first, into in zip(found._first, found._panels, strict=True):
                left, right = max(low, first), min(high, first + into.shape[1])
                if left < right:
                    into[left - first :, left - first : right - first] = block[
                        left - low :, left - low : right - low
                    ]
        return found

    def lower(self) -> Float:
        """The lower triangle, densely.

        Returns
        -------
        Float
            Shape (n, n); what lies above the diagonal is of no meaning.
        """
        lower = np.zeros((self.n, self.n))
        for start, panel in zip(self._first, self._panels, strict=True):
            lower[start:, start : start + panel.shape[1]] = panel
        return lower

    def add_to_diagonal(self, values: Float) -> None:
        """Add to the diagonal.

        Parameters
        ----------
        values : Float
            Shape (n,).
        """
        for start, panel in zip(self._first, self._panels, strict=True):
            width = panel.shape[1]
            panel[np.arange(width), np.arange(width)] += values[start : start + width]

    def diagonal(self) -> Float:
        """The diagonal.

        Returns
        -------
        Float
            Shape (n,).
        """
        return np.concatenate([np.diagonal(panel) for panel in self._panels] or [np.zeros(0)])

    def factorise(self, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Replace the matrix by its Cholesky factor.

        Parameters
        ----------
        tell : Callable[[int, int], None]
            Told of the products of panels done, and of all of them.

        Raises
        ------
        ValueError
            If it is not positive definite.
        """
        n_panels = len(self._panels)
        total = n_panels * (n_panels + 1) // 2
        for j, (start, panel) in enumerate(zip(self._first, self._panels, strict=True)):
            width = panel.shape[1]
            # What is lower in rows is upper in columns: A^T = U^T U, so L = U^T.
            upper, info = lapack.dpotrf(panel[:width].T, lower=0, clean=0, overwrite_a=1)
            if info != 0:
                raise ValueError(
                    f"the covariance of the labels is singular to rounding (row {start + info}): "
                    "give a larger sigma_forces or sigma_energy, or leave out structures that "
                    "stand there twice"
                )
            panel[:width] = upper.T
            below = panel[width:]
            if len(below):
                # L_below L_jj^T = A_below
                below[:] = blas.dtrsm(1.0, upper, below.T, lower=0, trans_a=1, overwrite_b=1).T
            for k in range(j + 1, n_panels):
                left = panel[self._first[k] - start :]
                right = left[: self._panels[k].shape[1]]
                target = self._panels[k].T
                updated = blas.dgemm(
                    -1.0, right.T, left.T, beta=1.0, c=target, trans_a=1, overwrite_c=1
                )
                if not np.shares_memory(updated, target):
                    target[:] = updated
            tell(total - (n_panels - 1 - j) * (n_panels - j) // 2, total)

    def solve(self, y_r: Float) -> Float:
        """Solve with the matrix, once it is factorised.

        Parameters
        ----------
        y_r : Float
            Right-hand side, shape (n,).

        Returns
        -------
        Float
            Shape (n,).
        """
        x_r = np.array(y_r, dtype=float)
        parts = list(zip(self._first, self._panels, strict=True))
        for start, panel in parts:
            width = panel.shape[1]
            here = slice(start, start + width)
            x_r[here] = lapack.dtrtrs(panel[:width].T, x_r[here], lower=0, trans=1)[0]
            x_r[start + width :] -= panel[width:] @ x_r[here]
        for start, panel in reversed(parts):
            width = panel.shape[1]
            here = slice(start, start + width)
            x_r[here] -= panel[width:].T @ x_r[start + width :]
            x_r[here] = lapack.dtrtrs(panel[:width].T, x_r[here], lower=0)[0]
        return x_r

    def inverse(self) -> Float:
        """The inverse of the matrix, once it is factorised; for orders of some thousand.

        Returns
        -------
        Float
            Its lower triangle, shape (n, n); what is above the diagonal means nothing.
        """
        upper, _ = lapack.dpotri(self.lower().T, lower=0, overwrite_c=1)
        return upper.T
