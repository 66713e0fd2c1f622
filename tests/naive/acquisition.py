"""Naive twin of `kernelpot.active.acquisition`: every determinant of every set from scratch."""

import numpy as np


def information(C_rr, noise_r, rows):
    """log det(1 + N^-1 C) / 2 of the numbers in a list of rows."""
    C = C_rr[np.ix_(rows, rows)] / np.outer(noise_r[rows], noise_r[rows])
    return 0.5 * np.linalg.slogdet(np.eye(len(rows)) + C)[1]


def rows_of(structure_r, candidates):
    return [r for s in candidates for r in range(len(structure_r)) if structure_r[r] == s]


def likeness(C_rr, noise_r, a, b):
    """Root of Escoufier's coefficient of the numbers in two lists of rows."""

    def norm(first, second):
        total = 0.0
        for r in first:
            for q in second:
                total += (C_rr[r, q] / noise_r[r] / noise_r[q]) ** 2
        return np.sqrt(total)

    scale = np.sqrt(norm(a, a) * norm(b, b))
    return norm(a, b) / scale if scale > 0 else 0.0


def pick(
    C_rr, structure_r, noise_r, n, *, given=(), least=0.1, alike=0.95, budget=np.inf,
    gamma=1.0, relevance=None, violation=None, cost=None,
):  # fmt: skip
    """Picks, and what each tells beyond those before it."""
    n_candidates = max(structure_r) + 1 if len(structure_r) else 0
    everyone = range(n_candidates)
    alone = [information(C_rr, noise_r, rows_of(structure_r, [s])) for s in everyone]
    rank = [0.0] * n_candidates
    if relevance is not None:
        for s in everyone:
            below = sum(relevance[t] < relevance[s] for t in everyone)
            ties = sum(relevance[t] == relevance[s] for t in everyone) - 1
            rank[s] = (below + 0.5 * ties) / max(n_candidates - 1, 1)
    known, picks, told = list(given), [], []
    while len(picks) < n:
        base = information(C_rr, noise_r, rows_of(structure_r, known)) if known else 0.0
        best = None
        for s in everyone:
            mine = rows_of(structure_r, [s])
            if s in known or any(
                likeness(C_rr, noise_r, mine, rows_of(structure_r, [t])) >= alike for t in known
            ):
                continue
            gain = information(C_rr, noise_r, rows_of(structure_r, [*known, s])) - base
            if gain < least or (cost is not None and cost[s] > budget):
                continue
            score = gamma * gain / max(alone) + (1.0 - gamma) * rank[s]
            score += violation[s] if violation is not None else 0.0
            score /= cost[s] if cost is not None else 1.0
            if best is None or score > best[0]:
                best = (score, s, gain)
        if best is None:
            break
        _, s, gain = best
        picks.append(s)
        told.append(gain)
        known.append(s)
        budget -= cost[s] if cost is not None else 0.0
    return picks, told


def pick_for_mean(C_rr, structure_r, target_s, noise_r, n, beside):
    """Greedily, by the variance of the targets that is left once a structure has labels, too."""
    n_structures = int(structure_r[-1]) + 1
    of = [np.flatnonzero(structure_r == s) for s in range(n_structures)]
    mean = np.array([np.mean(np.diag(C_rr)[rows]) for rows in of])
    most = 4.0 * np.median(mean[target_s])
    counted = np.where(mean > 0.0, np.minimum(mean, most) / np.maximum(mean, 1e-300), 0.0)

    def left(known):
        rows = np.concatenate([of[s] for s in known]) if known else np.zeros(0, int)
        K = C_rr[np.ix_(rows, rows)] + np.diag(noise_r[rows] ** 2)
        rest = np.diag(C_rr - C_rr[:, rows] @ np.linalg.solve(K, C_rr[rows]))
        return sum(counted[t] * np.mean(rest[of[t]]) for t in np.flatnonzero(target_s))

    begin, known, picks = left([]), [], []
    for _ in range(min(n, n_structures)):
        scores = {}
        for s in set(range(n_structures)) - set(known):
            score = (left(known) - left([*known, s])) / begin
            score += 0.0 if beside.violation_s is None else beside.violation_s[s]
            scores[s] = score / (1.0 if beside.cost_s is None else beside.cost_s[s])
        best = max(scores, key=scores.get)
        known.append(best)
        picks.append((best, scores[best]))
    return picks
