"""Naive twins of `kernelpot.gp`: loops and dense algebra."""

import numpy as np


def covariance(a, b, zeta):
    """Covariance of two inducing variables (x, tau), tau None for an environment."""
    (x, tau), (y, sigma) = a, b
    X = x @ y
    if tau is None and sigma is None:
        return X**zeta
    first = zeta * X ** (zeta - 1)
    if tau is None:
        return first * (x @ sigma)
    if sigma is None:
        return first * (tau @ y)
    second = zeta * (zeta - 1) * X ** max(zeta - 2, 0)
    return first * (tau @ sigma) + second * (tau @ y) * (sigma @ x)


def variables(inducing):
    """List of (x, tau) of an `Inducing` record."""
    out = []
    for e in range(len(inducing.first_e) - 1):
        x = inducing.Z_mq[inducing.first_e[e]]
        out.append((x, None))
        for m in range(inducing.first_e[e] + 1, inducing.first_e[e + 1]):
            out.append((x, inducing.Z_mq[m]))
    return out


def K_mm(inducing, zeta):
    everything = variables(inducing)
    return np.array([[covariance(a, b, zeta) for b in everything] for a in everything])


def K_bm(x_bq, inducing, zeta):
    everything = variables(inducing)
    return np.array([[covariance((x, None), b, zeta) for b in everything] for x in x_bq])


def conditional_variance(candidates, chosen, zeta):
    """Prior variance of each of a list of (x, tau), given the values of those in another."""
    variance = np.array([covariance(a, a, zeta) for a in candidates])
    if not chosen:
        return variance
    C = np.array([[covariance(a, b, zeta) for b in chosen] for a in chosen])
    K = np.array([[covariance(a, b, zeta) for b in chosen] for a in candidates])
    return variance - np.sum(K * np.linalg.solve(C, K.T).T, axis=1)


def gaussian_process(Q_rr, y_r, sigma_r):
    """Weights C^-1 y, and log density of y ~ N(0, C), C = Q + noise."""
    C_rr = Q_rr + np.diag(sigma_r**2)
    alpha_r = np.linalg.solve(C_rr, y_r)
    log_evidence = -0.5 * (
        y_r @ alpha_r + np.linalg.slogdet(C_rr)[1] + len(y_r) * np.log(2 * np.pi)
    )
    return C_rr, alpha_r, log_evidence


def dtc(K_mm, K_rm, y_r, sigma_r, delta, K_sm, K_ss):
    """Mean and variance at test rows s, and log evidence, by dense algebra (DTC)."""
    inverse_mm = np.linalg.pinv(K_mm, rcond=1e-12, hermitian=True)
    Q_rr = delta**2 * K_rm @ inverse_mm @ K_rm.T
    Q_sr = delta**2 * K_sm @ inverse_mm @ K_rm.T
    C_rr, alpha_r, log_evidence = gaussian_process(Q_rr, y_r, sigma_r)
    # DTC keeps the prior variance at the test points: k_ss - q_ss is added to the posterior's.
    variance = delta**2 * K_ss - np.diag(Q_sr @ np.linalg.solve(C_rr, Q_sr.T))
    return Q_sr @ alpha_r, variance, log_evidence


def novelty(x, inducing, zeta):
    """Variance of the value at x given those at the environments alone; 1 is that of no data."""
    known = [(y, None) for y, tau in variables(inducing) if tau is None]
    K = np.array([[covariance(a, b, zeta) for b in known] for a in known])
    k = np.array([covariance((x, None), b, zeta) for b in known])
    return 1.0 - k @ np.linalg.solve(K, k)


def functional_covariance(one, other, zeta):
    """Covariance of two linear functionals, lists of (factor, block, x, tau): values, and
    derivatives along tau, of environments that know of each other within a block."""
    return sum(
        a * b * covariance((x, tau), (y, sigma), zeta)
        for a, block, x, tau in one
        for b, theirs, y, sigma in other
        if block == theirs
    )


def exact(K_rr, K_sr, K_ss, y_r, sigma_r):
    """Mean and covariance at test rows s of the exact Gaussian process."""
    C_rr = K_rr + np.diag(sigma_r**2)
    solved_rs = np.linalg.solve(C_rr, K_sr.T)
    return y_r @ solved_rs, K_ss - K_sr @ solved_rs


def interpolated(A_rm, K_mm, K_mn):
    """Columns of new variables by those that are there, with the least weights."""
    return A_rm @ np.linalg.pinv(K_mm, rcond=1e-13, hermitian=True) @ K_mn


def evidence_bound(Q_rr, K_rr, y_r, sigma_r):
    """Titsias' lower bound of the log density of y ~ N(0, K + noise)."""
    log_evidence = gaussian_process(Q_rr, y_r, sigma_r)[2]
    return log_evidence - 0.5 * np.sum((np.diag(K_rr) - np.diag(Q_rr)) / sigma_r**2)


def chi_squared(y_r, mean_r, C_rr):
    """Of labels whose predictive covariance is C."""
    return (y_r - mean_r) @ np.linalg.solve(C_rr, y_r - mean_r)
