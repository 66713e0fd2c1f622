"""What makes a candidate worth its label: uncertainty, violated laws, and the weight of either.

All but `violations` are pure functions of arrays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike

from kernelpot.conventions import Float, as_float, as_int

log = logging.getLogger("kernelpot")

__all__ = [
    "Law",
    "Relevance",
    "energy_below",
    "exploration_share",
    "low_energy",
    "relevances",
    "sum_differs",
    "uncertainty",
    "violation_score",
    "violations",
]


class Law(NamedTuple):
    """Something that is known of the true potential without asking it."""

    name: str
    violation: Callable[[Atoms], ArrayLike]  # 0 where it holds; of an array the largest counts
    tolerance: float  # in its unit: a violation by so much adds half of the weight
    weight: float = 1.0  # 1 is as much as the most informative candidate's information


Relevance = Callable[[Atoms], float]
"""Of a structure with the model's calculator: what it is worth to the user, larger is better."""


def energy_below(minimum: float) -> Callable[[Atoms], float]:
    """The law that no structure is below a reference bound.

    Parameters
    ----------
    minimum : float
        eV/atom: the ground state of that composition, or a bound that is known.

    Returns
    -------
    Callable[[Atoms], float]
        By how much the energy of atoms with a calculator is below it, eV/atom; 0 above.
    """

    def violation(atoms: Atoms) -> float:
        return max(minimum - atoms.get_potential_energy() / len(atoms), 0.0)

    return violation


def low_energy(atoms: Atoms) -> float:
    """What a structure is worth where low energies count, as in searches for structures.

    Parameters
    ----------
    atoms : Atoms
        With a calculator.

    Returns
    -------
    float
        Its energy per atom, negative, eV: it compares structures of one composition.
    """
    return -atoms.get_potential_energy() / len(atoms)


def sum_differs(name: str, total: float = 0.0) -> Callable[[Atoms], float]:
    """The law that a number of all atoms has a known sum: charges, say.

    Parameters
    ----------
    name : str
        Of the property that the calculator gives, or of an array of the atoms: "charges".
    total : float
        The sum, in its unit.

    Returns
    -------
    Callable[[Atoms], float]
        By how much the sum differs, in its unit.
    """

    def violation(atoms: Atoms) -> float:
        values = atoms.arrays.get(name)
        if values is None:
            values = atoms.calc.get_property(name, atoms)
        return abs(float(np.sum(values)) - total)

    return violation


def violations(laws: Sequence[Law], images: Sequence[Atoms]) -> Float:
    """By how much structures violate laws.

    Parameters
    ----------
    laws : Sequence[Law]
        What is known.
    images : Sequence[Atoms]
        Candidates, with what the laws ask for: a calculator, arrays.

    Returns
    -------
    Float
        Shape (n_candidates, n_laws), for `violation_score`; NaN where a law could not be evaluated,
        which counts as a full violation. A warning tells of laws that never could be.

    Raises
    ------
    ValueError
        If a law fails otherwise than with numbers.
    """
    found_sk = np.full((len(images), len(laws)), np.nan)
    reason_k: dict[int, str] = {}
    for s, atoms in enumerate(images):
        for k, law in enumerate(laws):
            try:
                found_sk[s, k] = np.max(np.abs(as_float(law.violation(atoms))), initial=0.0)
            except (ValueError, ArithmeticError) as error:
                # A structure that a calculator refuses has no number, and nobody to ask.
                reason_k[k] = f"{type(error).__name__}: {error}"
            except Exception as error:
                raise ValueError(
                    f"the law {law.name} failed ({type(error).__name__}: {error})"
                ) from error
    for k, reason in reason_k.items():
        if np.isnan(found_sk[:, k]).all():
            log.warning("the law %s could be evaluated for no candidate (%s)", laws[k].name, reason)
    return found_sk


def relevances(relevance: Relevance, images: Sequence[Atoms]) -> Float:
    """What structures are worth to the user.

    Parameters
    ----------
    relevance : Relevance
        Larger is better.
    images : Sequence[Atoms]
        Candidates, with what it asks for: a calculator, arrays.

    Returns
    -------
    Float
        One per candidate, finite: as little as that of the least where there is no number. A
        warning tells of one that could be evaluated for none.

    Raises
    ------
    ValueError
        If it fails otherwise than with numbers, or gives something else.
    """
    found_s = np.full(len(images), np.nan)
    reason = ""
    for s, atoms in enumerate(images):
        try:
            value = relevance(atoms)
        except (ValueError, ArithmeticError) as error:
            # A structure that a calculator refuses has no number, and nobody to ask.
            reason = f"{type(error).__name__}: {error}"
            continue
        except Exception as error:
            raise ValueError(f"the relevance failed ({type(error).__name__}: {error})") from error
        try:
            found_s[s] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the relevance must be one number, but is {value!r}") from error
    known_s = np.isfinite(found_s)
    if reason and not known_s.any():
        log.warning("the relevance could be evaluated for no candidate (%s)", reason)
    least = found_s[known_s].min() if known_s.any() else 0.0
    return np.where(known_s, found_s, least)


def uncertainty(variance_r: ArrayLike, structure_r: ArrayLike, of: str = "largest") -> Float:
    """Uncertainty of each candidate, for picking by maximum variance.

    Parameters
    ----------
    variance_r : ArrayLike
        Posterior variances of the candidates' numbers.
    structure_r : ArrayLike
        Candidate of each, from 0.
    of : str
        "largest" for the standard deviation of its least certain number, "mean" for the root mean
        square of all.

    Returns
    -------
    Float
        One per candidate, in the unit of the numbers; 0 for one without numbers.

    Raises
    ------
    ValueError
        If shapes differ, a variance is negative or not finite, or the word is another.
    """
    variance_r, structure_r = as_float(variance_r).ravel(), as_int(structure_r).ravel()
    if of not in ("largest", "mean"):
        raise ValueError(f'of must be "largest" or "mean", not {of!r}')
    if variance_r.shape != structure_r.shape or np.any(structure_r < 0):
        raise ValueError("each variance needs the place of its candidate, from 0")
    if not (np.isfinite(variance_r) & (variance_r >= 0.0)).all():
        raise ValueError("variances must be finite and not negative")
    n_candidates = int(structure_r.max(initial=-1)) + 1
    found_s = np.zeros(n_candidates)
    if of == "largest":
        np.maximum.at(found_s, structure_r, variance_r)
        return np.sqrt(found_s)
    count_s = np.maximum(np.bincount(structure_r, minlength=n_candidates), 1)
    np.add.at(found_s, structure_r, variance_r)
    return np.sqrt(found_s / count_s)


def exploration_share(variance_r: ArrayLike, noise: float) -> float:
    """How much exploring is worth against using what is known: the weight of information.

        gamma = mean(sigma^2) / (mean(sigma^2) + noise^2)

    Near 1 while the model knows less than a label would tell; it falls towards 0 as what is left to
    learn sinks below the noise, and then the user's objective decides.

    Parameters
    ----------
    variance_r : ArrayLike
        Posterior variances, sigma^2, of all candidates' numbers.
    noise : float
        Standard deviation of the noise of the labels, in the unit of the numbers.

    Returns
    -------
    float
        From 0 to 1; 1 without candidates.

    Raises
    ------
    ValueError
        If a variance is negative or not finite, or the noise is not positive.
    """
    variance_r = as_float(variance_r).ravel()
    if not (noise > 0.0 and math.isfinite(noise)):
        raise ValueError(f"noise must be positive, not {noise!r}")
    if not (np.isfinite(variance_r) & (variance_r >= 0.0)).all():
        raise ValueError("variances must be finite and not negative")
    if not len(variance_r):
        return 1.0
    # Divided by the noise first, so that no square overflows.
    with np.errstate(over="ignore"):
        ratio = float(np.mean(variance_r / noise / noise))
    return ratio / (ratio + 1.0) if math.isfinite(ratio) else 1.0


def violation_score(
    violation_sk: ArrayLike, tolerance_k: ArrayLike, weight_k: ArrayLike | None = None
) -> Float:
    """What violations of known laws add to the scores of candidates.

    A model that breaks a law which the true potential obeys is wrong there, whatever it says of
    its uncertainty. A law adds weight * v / (v + tolerance): half of its weight where it is
    violated by the tolerance, and never more than all of it.

    Parameters
    ----------
    violation_sk : ArrayLike
        By how much each candidate violates each law, in the law's unit, shape (n_candidates,
        n_laws); of either sign. One that is not finite counts as a full violation.
    tolerance_k : ArrayLike
        Of each law, in its unit, positive.
    weight_k : ArrayLike | None
        Of each law; 1 is as much as the most informative candidate's information. None for 1.

    Returns
    -------
    Float
        Shape (n_candidates,), for `Beside`.

    Raises
    ------
    ValueError
        If shapes do not fit, or a tolerance or weight is out of range.
    """
    violation_sk = np.abs(np.atleast_2d(as_float(violation_sk)))
    tolerance_k = np.atleast_1d(as_float(tolerance_k))
    weight_k = np.ones_like(tolerance_k) if weight_k is None else np.atleast_1d(as_float(weight_k))
    if violation_sk.shape[1:] != tolerance_k.shape or weight_k.shape != tolerance_k.shape:
        raise ValueError(
            f"violations of shape {violation_sk.shape} need as many tolerances and weights as"
            f" columns; got {tolerance_k.shape} and {weight_k.shape}"
        )
    if not (np.all(tolerance_k > 0.0) and np.all(weight_k >= 0.0) and np.isfinite(weight_k).all()):
        raise ValueError("tolerances must be positive, and weights finite and not negative")
    # In this form what is infinite, or becomes so, counts fully.
    share_sk = 1.0 - tolerance_k / (violation_sk + tolerance_k)
    return np.where(np.isnan(share_sk), 1.0, share_sk) @ weight_k
