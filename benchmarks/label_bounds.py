"""What labels of ethanol can do at best: how far below random frames any choice of frames comes.

    python benchmarks/label_bounds.py [--seed N] [--most N]

The exact process (all labels in the basis) with amplitude and noise found from 140 frames of the
oracle's own dynamics (GFN2-xTB, a ramp from 300 to 800 K) has a covariance between any two labels,
whatever these are: so batches can be compared without computing them. 399 frames of its dynamics at
300, 550 and 800 K are divided: every seventh is a target, whose forces are predicted, and the rest
are candidates. For some numbers of labelled frames, the root mean square of the posterior standard
deviations of the targets' forces, and the mean absolute error of the forces, meV/A:

random, ramp
    frames of the ramp, at random (median of five drawings);
random, all
    candidates, at random;
determinant
    candidates, greedily by the logarithm of the determinant of what they leave open;
mean
    candidates, greedily by the mean variance of the targets: which no run can know, since it has
    neither the oracle's frames nor, at its beginning, amplitude and noise;
eigenvalues
    so many linear measurements of any kind as these frames have labels, the best there are for the
    targets: a bound for all of them.

Needs tblite (`pip install 'kernelpot[tblite]'`), 4 GiB and ten minutes.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.linalg
from active_learning import ETHANOL, gfn2, own_dynamics

from kernelpot import KernelPotential, Soap
from kernelpot.active.batches import whitened
from kernelpot.conventions import LABEL_KINDS, LabelSet
from kernelpot.data import structures_from_atoms
from kernelpot.environments import chunks_of
from kernelpot.gp.packed import Packed
from kernelpot.label_covariance import fill
from kernelpot.options import effective_noise
from kernelpot.training_data import say_nothing

COUNTS = (15, 25, 35, 46, 70, 100)
"""Labelled frames."""
N_RAMP = 140
N_DRAWINGS = 5


class Process:
    """Covariance of the labels of frames with one composition, values, and noise."""

    def __init__(self, frames, n_known):
        model = KernelPotential(Soap(**ETHANOL), basis="full").fit(frames[:n_known])
        fitted = model.fitted_
        structures = structures_from_atoms(frames)
        labels = [LabelSet(kind, "") for kind in LABEL_KINDS]
        bound = fitted.components[0].descriptor
        chunks = chunks_of(
            structures, bound, fitted.baseline, fitted.repulsion, labels, say_nothing
        )
        of_structure = np.concatenate([one.members for one in chunks])
        if not np.array_equal(of_structure, np.arange(len(frames))):
            raise ValueError("the frames are not of one composition")
        self.y_r = np.concatenate([y for one in chunks for y in one.y])
        self.width = len(self.y_r) // len(frames)  # of a frame: its energy, then its forces
        noise = effective_noise(fitted.noise, fitted.force_priority)
        sigma = [s for one in chunks for s in one.sigma]
        kind = [k for one in chunks for k in one.label_sets]
        factor_l = np.array([noise.get(label, 1.0) for label in labels])
        self.sigma_r = np.concatenate(sigma) * factor_l[np.concatenate(kind)]
        K = Packed(len(self.y_r))
        fill(K, chunks, fitted.components[0].zeta, say_nothing)
        lower_rr = K.lower()
        self.K_rr = fitted.delta_g[0] ** 2 * (np.tril(lower_rr) + np.tril(lower_rr, -1).T)

    def rows(self, frames):
        """Places of the labels of frames."""
        return (np.asarray(frames)[:, None] * self.width + np.arange(self.width)).ravel()

    def forces(self, frames):
        """And of their forces."""
        return (np.asarray(frames)[:, None] * self.width + np.arange(1, self.width)).ravel()

    def judge(self, chosen, targets):
        """Root mean square of standard deviations, and mean absolute error; meV/A."""
        r, t = self.rows(chosen), self.forces(targets)
        C_rr = self.K_rr[np.ix_(r, r)] + np.diag(self.sigma_r[r] ** 2)
        L_rr = scipy.linalg.cholesky(C_rr, lower=True)
        W_rt = scipy.linalg.solve_triangular(L_rr, self.K_rr[np.ix_(r, t)], lower=True)
        z_r = scipy.linalg.solve_triangular(L_rr, self.y_r[r], lower=True)
        variance_t = np.diag(self.K_rr)[t] - np.sum(W_rt**2, axis=0)
        error_t = W_rt.T @ z_r - self.y_r[t]
        return 1e3 * np.sqrt(max(variance_t.mean(), 0.0)), 1e3 * np.abs(error_t).mean()

    def greedy(self, candidates, targets, n, score):
        """Frames one by one, each the best after those before it."""
        r = self.rows(candidates)
        everything = np.concatenate([r, self.forces(targets)])
        C = self.K_rr[np.ix_(everything, everything)].copy()
        noise_r = self.sigma_r[r]
        open_c, picks = np.ones(len(candidates), dtype=bool), []
        for _ in range(n):
            scores = np.full(len(candidates), -np.inf)
            for c in np.flatnonzero(open_c).tolist():
                mine = slice(c * self.width, (c + 1) * self.width)
                noisy = C[mine, mine] + np.diag(noise_r[mine] ** 2)
                scores[c] = score(C, mine, len(r), noisy, noise_r[mine])
            best = int(np.argmax(scores))
            mine = slice(best * self.width, (best + 1) * self.width)
            noisy = C[mine, mine] + np.diag(noise_r[mine] ** 2)
            W = scipy.linalg.solve_triangular(
                scipy.linalg.cholesky(noisy, lower=True), C[mine], lower=True
            )
            C -= W.T @ W
            open_c[best] = False
            picks.append(int(candidates[best]))
        return picks


def told_of_targets(C, mine, n_r, noisy, noise_b):
    """Variance of the targets that a frame's labels take away."""
    return float(np.sum(whitened(noisy, C[mine, n_r:]) ** 2))


def determinant(C, mine, n_r, noisy, noise_b):
    """Logarithm of the determinant of a frame's labels, over that of their noise."""
    return float(np.linalg.slogdet(noisy)[1] - 2.0 * np.log(noise_b).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="labelled frames")
    args = parser.parse_args()
    counts = [n for n in COUNTS if n <= args.most]
    ramp = own_dynamics(gfn2, (300.0, 800.0), 20_000, 10, args.seed)
    rng = np.random.default_rng(args.seed)
    ramp = [ramp[k] for k in rng.permutation(len(ramp))[:N_RAMP]]
    steady = [
        frame
        for k, kelvin in enumerate((300.0, 550.0, 800.0))
        for frame in own_dynamics(gfn2, (kelvin, kelvin), 6650, 50, 1000 + 10 * args.seed + k)
    ]
    process = Process([*ramp, *steady], N_RAMP)
    steady = np.arange(N_RAMP, N_RAMP + len(steady))
    targets = steady[3::7]
    candidates = np.setdiff1d(steady, targets)
    print(
        f"ethanol, seed {args.seed}: {N_RAMP} frames of the ramp, {len(candidates)} candidates,"
        f" {len(targets)} targets of {process.width - 1} forces; noise of forces"
        f" {1e3 * process.sigma_r[1]:.2g} meV/A",
        flush=True,
    )
    n = counts[-1]
    orders = {
        "random, ramp": [rng.permutation(N_RAMP)[:n] for _ in range(N_DRAWINGS)],
        "random, all": [rng.permutation(candidates)[:n] for _ in range(N_DRAWINGS)],
        "determinant": [process.greedy(candidates, targets, n, determinant)],
        "mean": [process.greedy(candidates, targets, n, told_of_targets)],
    }
    found = {}
    for name, drawn in orders.items():
        for count in counts:
            judged = [process.judge(order[:count], targets) for order in drawn]
            found[name, count] = np.median(judged, axis=0)
    t = process.forces(targets)
    value_t = np.linalg.eigvalsh(process.K_rr[np.ix_(t, t)])[::-1]
    print("labels  " + "  ".join(f"{name:>16}" for name in orders) + "       eigenvalues")
    for count in counts:
        cells = [f"{found[name, count][0]:8.0f},{found[name, count][1]:7.0f}" for name in orders]
        left = max(float(value_t[count * process.width :].sum()), 0.0)
        bound = 1e3 * np.sqrt(left / len(t))
        print(f"{count:6d}  " + "  ".join(cells) + f"  {bound:16.1f}", flush=True)
    print("(sigma, mean absolute error; meV/A)")
    for name in ("random, ramp", "random, all"):
        sigmas = np.array([found[name, k][0] for k in counts])
        for count in counts:
            goal = found["mean", count][0]
            if goal >= sigmas[-1]:
                worth = np.exp(np.interp(-goal, -sigmas, np.log(counts)))
                print(f"mean, {count}: as {worth:.0f} of {name}; {count / worth:.2f}")


if __name__ == "__main__":
    main()
