"""Which candidates are labelled: a batch that tells most together, for its cost."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.active.acquisition import pick_by_covariance, pick_by_factors
from kernelpot.active.batches import Beside
from kernelpot.active.costs import fit_label_cost
from kernelpot.active.mean_variance import pick_for_mean
from kernelpot.active.records import NEW_SPECIES, Candidate
from kernelpot.active.scores import (
    Law,
    Relevance,
    exploration_share,
    relevances,
    violation_score,
    violations,
)
from kernelpot.calculator import Calculator
from kernelpot.conventions import Covariance, Float, System, VarianceTerms
from kernelpot.data import Structure, structures_from_atoms
from kernelpot.neighbours import find_pairs
from kernelpot.potential import KernelPotential
from kernelpot.structure_prediction import covariance_of
from kernelpot.variances import open_factors

__all__ = ["Wishes", "choose", "evenly", "expected_error"]

_DENSE = 1200
"""Numbers of candidates up to which their joint covariance is computed with what the inducing
variables do not see; beyond, since it takes the square, only what the data leave open counts."""
_MOST = 5000
"""Numbers of candidates and typical structures together, where their joint covariance is needed:
fewer structures are compared where they are large, since memory takes the square (1.2 GB)."""
_OF_NEW = 2
"""Structures of the same new species that are labelled at once: the first tells what they are."""
_LEAST_NOISE = 1e-3
"""eV/angstrom: labels of an oracle have none, but a fit to them does."""
_EXACT = frozenset({"forces_error", "stress_error"})
"""Reasons of a candidate whose score is the present model's expected error over the threshold."""
_FIRST = 1e6
"""Beside any other score."""
_ALWAYS = frozenset({"barrier", "given", "end", "too close", "energy", "volume", "fragments"})
"""Reasons for which a candidate stays one whatever its expected error."""


class Wishes(NamedTuple):
    """What counts beside what labels tell."""

    laws: Sequence[Law] = ()  # violations add to the scores
    relevance: Relevance | None = None
    area: float = 0.0  # angstrom^2: errors of stresses count as those of forces on it
    tolerance: float = 0.1  # eV/angstrom: the nearer uncertainties come to it, the more that counts


def evenly(n: int, n_wanted: int) -> list[int]:
    """Evenly spaced places in a sequence, its ends among them.

    Parameters
    ----------
    n : int
        Its length.
    n_wanted : int
        How many at most.

    Returns
    -------
    list[int]
        Ascending, none twice.
    """
    return np.unique(np.linspace(0, n - 1, min(n_wanted, n)).astype(int)).tolist()


def expected_error(calculator: Calculator, atoms: Atoms, area: float = 0.0) -> Float | None:
    """Expected error of the force on each atom, root mean square of a component.

    Where stresses count, it is that of the force of the stress on an area where that is more.

    Parameters
    ----------
    calculator : Calculator
        Of a calibrated model.
    atoms : Atoms
        Any structure.
    area : float
        Angstrom^2; 0 where forces alone count.

    Returns
    -------
    Float | None
        Shape (n_atoms,), eV/angstrom; None of atoms that are no structure any more.
    """
    atoms = atoms.copy()
    try:
        error_n = _rms(calculator.get_property("forces_error", atoms))
        if area > 0.0 and atoms.pbc.all():
            on_area = area * _rms(calculator.get_property("stress_error", atoms))
            error_n = np.maximum(error_n, on_area)
    except ValueError:
        return None
    return error_n


def _rms(values: Float) -> Float:
    """Root mean square over the last axis."""
    return np.sqrt(np.mean(values**2, axis=-1))


def choose(
    candidates: Sequence[Candidate],
    model: KernelPotential,
    n: int,
    *,
    threshold: float,
    n_looked: int,
    wishes: Wishes | None = None,
    typical: Sequence[Candidate] = (),
    n_typical: int = 60,
) -> list[tuple[Candidate, float]]:
    """Choose what is labelled.

    Parameters
    ----------
    candidates : Sequence[Candidate]
        That explorers have met.
    model : KernelPotential
        Fitted, with a posterior.
    n : int
        How many at most.
    threshold : float
        Expected error of a force above which a label is wanted, eV/angstrom.
    n_looked : int
        Candidates that are compared, those of the largest scores.
    wishes : Wishes | None
        What counts beside what labels tell.
    typical : Sequence[Candidate]
        Structures whose mean variance labels are to lower; they may be chosen, too. Empty to
        choose the candidates that tell most.
    n_typical : int
        How many of them at most.

    Returns
    -------
    list[tuple[Candidate, float]]
        With their scores as they are now, and what each tells beyond those before it, nats.
    """
    strange = _of_new_species(candidates, model)[: max(n, 0)]
    if typical:
        largest = max(len(one.atoms) for one in (*candidates, *typical))
        most = max(_MOST // (3 * largest), 4)
        n_looked, n_typical = min(n_looked, most // 2), min(n_typical, most // 2)
    targets = [typical[k] for k in evenly(len(typical), n_typical)]
    return strange + _telling(
        candidates, model, n - len(strange), threshold, n_looked, wishes or Wishes(), targets
    )


def _of_new_species(
    candidates: Sequence[Candidate], model: KernelPotential
) -> list[tuple[Candidate, float]]:
    """Of which the model can say nothing, a few of each kind."""
    found: dict[frozenset[int], list[tuple[Candidate, float]]] = {}
    for one in candidates:
        new = frozenset(one.atoms.numbers.tolist()) - set(model.species_)
        if new and one.reason == NEW_SPECIES:
            found.setdefault(new, []).append((one, np.nan))
    return [one for mine in found.values() for one in mine[:_OF_NEW]]


def _telling(
    candidates: Sequence[Candidate],
    model: KernelPotential,
    n: int,
    threshold: float,
    n_looked: int,
    wishes: Wishes,
    typical: Sequence[Candidate],
) -> list[tuple[Candidate, float]]:
    """Of known species: those that tell most together."""
    known = set(model.species_)
    met = [one for one in candidates if known.issuperset(one.atoms.numbers.tolist())]
    met = _described(_looked_at(met, n_looked, wishes.area), model)
    if not met or n < 1:
        return []
    targets = _described(typical, model)
    joint = _joint([*met, *targets], model, wishes.area, needed=bool(targets))
    unsure = _unsure(met, joint, model, threshold, wishes.area)
    if not unsure:
        return []
    looked = [*unsure.values(), *(one for one, _ in targets)]
    beside = _beside([one.atoms for one in looked], Calculator(model), wishes)
    if wishes.area > 0.0 and not targets:
        beside = _most_unsure_first(beside, looked)
    if joint is None:
        found = [_factors(model, one.atoms, wishes.area) for one in looked]
        factors, is_stress_r = [rows for rows, _ in found], np.concatenate([k for _, k in found])
        variance_r = np.concatenate([np.sum(one_rk**2, axis=1) for one_rk in factors])
        beside = _weighed(beside, variance_r, wishes)
        noise_r = _noise(model, is_stress_r, wishes.area)
        picked = pick_by_factors(factors, noise_r, n, beside=beside)
    else:
        places = [*unsure, *range(len(met), len(met) + len(targets))]
        C_rr, structure_r = joint.between(places)
        is_stress_r = joint.kind_r[np.isin(joint.structure_r, places)] == "stress"
        scale_r = np.where(is_stress_r, wishes.area, 1.0)
        C_rr = C_rr * np.outer(scale_r, scale_r)
        noise_r = _noise(model, is_stress_r, wishes.area)
        if targets:
            is_target_s = np.arange(len(looked)) >= len(unsure)
            picked = pick_for_mean(C_rr, structure_r, is_target_s, noise_r, n, beside=beside)
        else:
            beside = _weighed(beside, np.maximum(np.diag(C_rr), 0.0), wishes)
            picked = pick_by_covariance(C_rr, structure_r, noise_r, n, beside=beside)
    told = zip(picked.picks, picked.information, strict=True)
    return [(looked[k], float(information)) for k, information in told]


def _noise(model: KernelPotential, is_stress_r: Float, area: float) -> Float:
    """Of labels of forces, and of those of stresses on the area, eV/angstrom."""
    noise = model.reference_noise_
    of_stress = area * noise["stress"] if area > 0.0 else 0.0
    return np.maximum(np.where(is_stress_r, of_stress, noise["forces"]), _LEAST_NOISE)


def _joint(
    described: Sequence[tuple[Candidate, Structure]],
    model: KernelPotential,
    area: float,
    *,
    needed: bool,
) -> Covariance | None:
    """One look for what is expected of each, and of any two together; None of too much."""
    structures = [structure for _, structure in described]
    if not needed and 3 * sum(one.n_atoms for one in structures) > _DENSE:
        return None
    kinds = ["forces", "stress"] if area > 0.0 else ["forces"]
    return covariance_of(model.predictor_, structures, kinds)


def _unsure(
    met: Sequence[tuple[Candidate, Structure]],
    joint: Covariance | None,
    model: KernelPotential,
    threshold: float,
    area: float,
) -> dict[int, Candidate]:
    """By their places those worth a label, with their scores as they are now."""
    calculator = Calculator(model)
    found = {}
    for k, (one, structure) in enumerate(met):
        if one.reason not in _EXACT:
            error_n = (
                expected_error(calculator, one.atoms, area)
                if joint is None
                else _expected(joint, k, structure, model, area)
            )
            if error_n is None:
                continue
            one = one._replace(score=float(error_n.max()) / threshold)
        if one.score > 1.0 or one.reason in _ALWAYS:
            found[k] = one
    return found


def _described(
    candidates: Sequence[Candidate], model: KernelPotential
) -> list[tuple[Candidate, Structure]]:
    """Without what is no structure any more, or of species that the model does not know."""
    found = []
    for one in candidates:
        if not set(model.species_).issuperset(one.atoms.numbers.tolist()):
            continue
        with contextlib.suppress(ValueError):
            found.append((one, structures_from_atoms([one.atoms], labels="ignore")[0]))
    return found


def _expected(
    joint: Covariance, k: int, structure: Structure, model: KernelPotential, area: float
) -> Float:
    """`expected_error` of one of several structures whose covariances are known."""

    def std(kind: str, *shape: int) -> Float:
        mine = (joint.structure_r == k) & (joint.kind_r == kind)
        terms = VarianceTerms(*(term_r[mine].reshape(shape) for term_r in joint.terms))
        return model.calibration_.std(kind, terms, structure.numbers_n)

    error_n = _rms(std("forces", -1, 3))
    if area > 0.0 and structure.periodic:
        error_n = np.maximum(error_n, area * _rms(std("stress", 6)))
    return error_n


def _looked_at(candidates: Sequence[Candidate], n: int, area: float) -> list[Candidate]:
    """Those of the largest scores, and where stresses count, so many of each explorer.

    In the order met. Novelty, by which many of the frames of dynamics are scored, knows nothing of
    stresses.
    """
    groups: dict[str, list[int]] = {}
    for k, one in enumerate(candidates):
        groups.setdefault(one.origin if area > 0.0 else "", []).append(k)
    ranked = [_ranked(places, candidates) for places in groups.values()]
    in_turn = [k for turn in itertools.zip_longest(*ranked) for k in turn if k is not None]
    return [candidates[k] for k in sorted(in_turn[:n])]


def _ranked(places: Sequence[int], candidates: Sequence[Candidate]) -> list[int]:
    """The largest scores first; unknown ones count as large."""
    score = np.nan_to_num([candidates[k].score for k in places], nan=np.inf, posinf=np.inf)
    return [places[k] for k in np.argsort(-score, kind="stable")]


def _most_unsure_first(beside: Beside, looked: Sequence[Candidate]) -> Beside:
    """Beside many forces the six stresses of a label hardly count in what it tells."""
    first = int(np.argmax([one.score for one in looked]))
    violation_s = np.zeros(len(looked)) if beside.violation_s is None else beside.violation_s
    return beside._replace(violation_s=violation_s + _FIRST * (np.arange(len(looked)) == first))


def _weighed(beside: Beside, variance_r: Float, wishes: Wishes) -> Beside:
    """With the weight of information against relevance.

    What is below the tolerance is as good as noise to the user, who has said so.
    """
    if beside.relevance_s is None:
        return beside
    return beside._replace(gamma=exploration_share(variance_r, wishes.tolerance))


def _beside(images: list[Atoms], calculator: Calculator, wishes: Wishes) -> Beside:
    """Costs of labels, laws that candidates violate, and what these are worth to the user."""
    # By the number of atoms alone: with the seconds that labels took, two runs of the same seed,
    # or one that was interrupted and one that was not, would not choose the same.
    cost = fit_label_cost((), ())
    found = Beside(cost_s=cost.predict([len(atoms) for atoms in images]))
    laws, relevance = wishes.laws, wishes.relevance
    with_calculator = [atoms.copy() for atoms in images]
    for atoms in with_calculator:
        atoms.calc = copy.copy(calculator)
    if relevance is not None:
        found = found._replace(relevance_s=relevances(relevance, with_calculator))
    if laws:
        tolerance, weight = [law.tolerance for law in laws], [law.weight for law in laws]
        violation_sk = violations(laws, with_calculator)
        found = found._replace(violation_s=violation_score(violation_sk, tolerance, weight))
    return found


def _factors(model: KernelPotential, atoms: Atoms, area: float) -> tuple[Float, Float]:
    """Low-rank factors of what is open of forces and stresses on the area; which are stresses."""
    predictor = model.predictor_
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, predictor.cutoff)
    system = System(predictor.species_of(atoms.numbers), pairs)
    with_stress = area > 0.0 and atoms.pbc.all()
    kinds = ["forces", "stress"] if with_stress else ["forces"]
    rows_rk = open_factors(predictor.process, system, kinds)
    is_stress_r = np.arange(len(rows_rk)) >= 3 * len(atoms)
    if with_stress:
        rows_rk[is_stress_r] *= area / atoms.get_volume()
    return rows_rk, is_stress_r
