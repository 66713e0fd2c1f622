"""`SparseGPRegressor`: the sparse Gaussian process on plain arrays, as a scikit-learn estimator."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from kernelpot.conventions import Float, as_float
from kernelpot.gp.covariances import K_bm, K_mm
from kernelpot.gp.inducing import Selector, join, select
from kernelpot.gp.kernels import check_zeta
from kernelpot.gp.solvers import posterior
from kernelpot.gp.triangles import RowReducer, empty_triangle
from kernelpot.gp.whitening import whiten_blocks

_RANK_TOLERANCE = 1e-10
_BLOCK = 4096


class SparseGPRegressor(RegressorMixin, BaseEstimator):
    """Sparse Gaussian process with the kernel delta^2 (x . x')^zeta of unit vectors.

    Samples are given the constant feature ``bias`` and divided by their norm, so that the kernel
    is one of directions, as for power spectra. Time grows as n_samples n_inducing^2, memory as
    n_inducing^2.

    Parameters
    ----------
    n_inducing : int
        Inducing samples, chosen among the training samples.
    zeta : int
        Exponent of the kernel.
    delta : float | None
        Prior standard deviation of the target about its mean; None for that of the training
        targets.
    sigma : float | None
        Standard deviation of the noise; None for a tenth of ``delta``.
    bias : float
        Constant feature, in units of the root mean square norm of the samples; 0 makes the model
        blind to the length of a sample.
    selector : str | Selector
        "fps", "cur", "leverage", "uniform", "random", or a function.
    random_state : int | np.random.RandomState | None
        Seed of the choice.

    Attributes
    ----------
    log_evidence_ : float
        Logarithm of the marginal likelihood of the targets (DTC).
    inducing_indices_ : np.ndarray
        Training samples that were chosen.
    n_features_in_ : int
        Number of features seen in ``fit``.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = SparseGPRegressor(n_inducing=10, zeta=6).fit(X, X[:, 0] ** 3)
    >>> round(model.score(X, X[:, 0] ** 3), 2)
    1.0
    """

    def __init__(
        self,
        n_inducing: int = 100,
        *,
        zeta: int = 4,
        delta: float | None = None,
        sigma: float | None = None,
        bias: float = 1.0,
        selector: str | Selector = "fps",
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.n_inducing = n_inducing
        self.zeta = zeta
        self.delta = delta
        self.sigma = sigma
        self.bias = bias
        self.selector = selector
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> SparseGPRegressor:
        """Fit to samples and targets.

        Parameters
        ----------
        X : ArrayLike
            Shape (n_samples, n_features).
        y : ArrayLike
            Shape (n_samples,).

        Returns
        -------
        SparseGPRegressor
            Itself.

        Raises
        ------
        ValueError
            If shapes, values or parameters are not valid.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = as_float(column_or_1d(y, warn=True))
        zeta = check_zeta(self.zeta)
        if self.n_inducing != int(self.n_inducing) or self.n_inducing < 1:
            raise ValueError(f"n_inducing must be a whole number >= 1; got {self.n_inducing!r}")
        spread = float(np.std(y)) or 1.0
        delta = spread if self.delta is None else self.delta
        sigma = 0.1 * delta if self.sigma is None else self.sigma
        if delta <= 0 or sigma <= 0:
            raise ValueError(f"delta and sigma must be positive; got {delta!r} and {sigma!r}")
        seed = check_random_state(self.random_state).randint(2**31)
        self._scale = float(np.sqrt(np.mean(np.sum(X**2, axis=1)))) or 1.0
        x_nq = self._unit(X)
        rng = np.random.default_rng(seed)
        chosen = select(x_nq, int(self.n_inducing), self.selector, rng)
        nothing = np.zeros((0, x_nq.shape[1]))
        self._inducing = join(x_nq[chosen], [nothing] * len(chosen))
        self._mean = float(np.mean(y))
        reducer = RowReducer(empty_triangle(len(chosen)))
        for first in range(0, len(x_nq), _BLOCK):
            block = slice(first, first + _BLOCK)
            K_rm = K_bm(x_nq[block] @ self._inducing.Z_mq.T, self._inducing, zeta)
            y_r = y[block] - self._mean
            reducer.add(K_rm, y_r, np.full(len(y_r), float(sigma)))
        whitening = whiten_blocks([K_mm(self._inducing, zeta)], _RANK_TOLERANCE)
        self._posterior = posterior([reducer.finish()], whitening, [float(delta)])
        self._zeta = zeta
        self.inducing_indices_ = chosen
        self.log_evidence_ = self._posterior.log_evidence
        return self

    def _unit(self, X: Float) -> Float:
        """Samples with the constant feature, divided by their norm; zero stays zero."""
        extended = np.column_stack([X, np.full(len(X), self.bias * self._scale)])
        norm = np.linalg.norm(extended, axis=1, keepdims=True)
        return as_float(extended / np.where(norm > 0.0, norm, 1.0))

    def predict(
        self, X: ArrayLike, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Posterior mean, and standard deviation where asked for.

        Parameters
        ----------
        X : ArrayLike
            Shape (n_samples, n_features).
        return_std : bool
            Whether to return the standard deviation of the noise-free function too.

        Returns
        -------
        np.ndarray | tuple[np.ndarray, np.ndarray]
            Shape (n_samples,), or two such arrays.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        x_nq = self._unit(X)
        K_rm = K_bm(x_nq @ self._inducing.Z_mq.T, self._inducing, self._zeta)
        mean = K_rm @ self._posterior.weights() + self._mean
        if not return_std:
            return mean
        delta = self._posterior.delta_k[0]
        prior = delta**2 * np.sum(x_nq**2, axis=1) ** self._zeta
        return mean, np.sqrt(self._posterior.variance(prior, K_rm))
