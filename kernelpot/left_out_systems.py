"""Trials on systems that are left out whole: which similarity of species predicts the unknown."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import LABEL_KINDS, Float, Progress
from kernelpot.data import Structure
from kernelpot.descriptors import Soap
from kernelpot.folds import by_system
from kernelpot.prediction import evaluate_structure
from kernelpot.race import Race, Runner, Trial, balanced_order, climb, score
from kernelpot.similarity import SCATTER, Alike, Split, channels, learn_similarity, system_splits
from kernelpot.trials import HEATS, Make, quiet
from kernelpot.variations import Step, apply, variations

__all__ = ["choose_splits", "learn_species"]

log = logging.getLogger("kernelpot")

_ATOMS = 2500
"""Atoms of the structures of which systems are left out, for each part of the data."""
_MOST_PARTS = 4
"""Parts of the data with systems that are left out of each: what a trial scores depends on which
systems are left out together, so that one part tells less than two."""
_TRIALS = 25
"""How many trials there should be time for."""
_GROWTH = 1.6
"""How many times longer trials take than the first: those of a sum do."""
_FOR_SIMILARITY = 0.6
"""Share of the time for the similarity of the species."""
_FOR_STEPS = 0.8
"""Share of the time after which no number of the descriptor is changed."""
_LAST_ATOMS = 7500
"""Atoms of the structures of the last heat."""
_LEAST_GROWTH = 1.3
"""A last heat has at least so many times the structures."""
_LEAST_ERRORS = {"energy": 1e-3, "forces": 1e-3, "stress": 1e-5}
"""Lower errors count as these (eV/atom, eV/angstrom, eV/angstrom^3): forces that vanish by symmetry
say nothing, and their logarithm would say everything."""

_ALL_THE_SAME = {"species_mixing": 1.0, "centre_similarity": 1.0}
"""Parameters of a descriptor that tells no species apart."""


def choose_splits(
    structures: Sequence[Structure], random_state: int | None, n_atoms: float | None = None
) -> list[list[Split]]:
    """Parts of the structures, with systems that are left out in turn.

    Parameters
    ----------
    structures : Sequence[Structure]
        The training structures.
    random_state : int | None
        Seed.
    n_atoms : float | None
        Of each part; None for as many as the trials of similarities have.

    Returns
    -------
    list[list[Split]]
        For one part of the structures, and then for others; empty where there are too few species
        or systems.
    """
    rng = np.random.default_rng(random_state)
    order = balanced_order(structures, rng)
    parts = []
    while order and len(parts) < _MOST_PARTS:
        sizes = np.cumsum([structures[s].n_atoms for s in order])
        n_chosen = max(int(np.searchsorted(sizes, n_atoms or _ATOMS)), 25)
        parts.append(system_splits(structures, order[:n_chosen], rng))
        order = order[n_chosen:]
    full = [part for part in parts if part]
    return full if parts and parts[0] else []


def learn_species(
    found: Race,
    parts: Sequence[Sequence[Split]],
    make: Make,
    run: Runner,
    images: Sequence[Any],
    structures: Sequence[Structure],
    *,
    deadline: float,
    random_state: int | None,
    tell: Progress,
) -> tuple[Race, list[str]]:
    """The winner with what predicts systems left out best, and why.

    How alike the species are comes first. Then what the race changed has to prove itself: what is
    best for systems that are known may be bad for others. Then the numbers of the descriptor are
    changed by small steps. Whether there is a process that tells no species apart is decided in a
    last heat, with three times the structures: with few of them one process does as well.

    Parameters
    ----------
    found : Race
        A race of descriptors.
    parts : Sequence[Sequence[Split]]
        Systems that are left out in turn, of parts of the data: as many as time allows are used.
    make : Make
        Makes a model for a trial of parameters.
    run : Runner
        Fits settings to some of the structures.
    images : Sequence[Any]
        The training structures as the model's ``fit`` takes them.
    structures : Sequence[Structure]
        The same, as records.
    deadline : float
        ``time.perf_counter()`` after which nothing new is tried.
    random_state : int | None
        Seed of the choice of structures.
    tell : Progress
        Told of the stages "species" and "steps".

    Returns
    -------
    tuple[Race, list[str]]
        The race with these trials and their winner, and what was found in words; as it was, and no
        words, where no systems are left out, or there is no time.
    """
    winner = found.winner
    if not parts or time.perf_counter() > deadline:
        return found, []
    species = sorted({int(z) for s in structures for z in s.numbers_n})
    trials: dict[str, Trial] = {}
    splits = list(parts[0])
    [last_splits, *_] = choose_splits(structures, random_state, _LAST_ATOMS)

    def settings_of(alike: Alike) -> dict[str, Any]:
        soap = winner.settings["descriptor"].get_params(deep=False)
        soap["species_mixing"] = channels(alike.neighbours_zz, species)
        soap["centre_similarity"] = alike.centres
        return _one_and_two({**winner.settings, "descriptor": Soap(**soap)})[alike.common]

    def without_systems(
        settings: Mapping[str, Any], indices: Sequence[int] = (), heat: int = 0, last: bool = False
    ) -> Trial:
        settings = {**settings, **HEATS[int(last)]}
        left_out = last_splits if last else splits
        return _without_systems(make, settings, left_out, images, structures)._replace(
            settings=settings, us_per_atom=winner.us_per_atom
        )

    def judge(words: str, alike: Alike) -> float:
        trial = without_systems(settings_of(alike))
        trials[_key(alike)] = trial._replace(change=f"{words}; systems left out")
        return trial.score

    left = deadline - time.perf_counter()
    until, for_steps = (deadline - (1.0 - x) * left for x in (_FOR_SIMILARITY, _FOR_STEPS))
    if len(parts) > 1:
        took = without_systems(winner.settings).seconds
        n_parts = int(np.clip(left / (_TRIALS * _GROWTH * took), 1, len(parts)))
        splits = [split for part in parts[:n_parts] for split in part]
    start = winner.settings["descriptor"].species_mixing or 0.0
    alike = learn_similarity(species, judge, start=start, deadline=until, tell=tell)
    learned, tried = trials[_key(alike)], []
    for words, change in _alternatives(learned.settings, found.trials[0].settings):
        if time.perf_counter() > for_steps:
            break
        trial = without_systems(apply(learned.settings, change))
        tried.append(trial._replace(change=f"{learned.change}, {words}"))
    best = min((learned, *tried), key=lambda trial: trial.score)
    best, steps = climb(best, without_systems, (), for_steps, tell, least_gain=SCATTER)
    tried += steps
    more = sum(len(split.fit) for split in last_splits) / sum(len(split.fit) for split in parts[0])
    if alike.centres is not None and more > _LEAST_GROWTH and time.perf_counter() < deadline:
        change = best.change
        named = ("one process", "and what all have in common")
        heat = [
            without_systems(settings, last=True)._replace(change=f"{change}, {words}")
            for words, settings in zip(named, _one_and_two(best.settings), strict=True)
        ]
        tried += heat
        best = min(heat, key=lambda trial: trial.score)
        alike = alike._replace(common=best is heat[1])
        best = best._replace(change=change)
    # Times and errors of the race were those of other settings.
    settings = {k: v for k, v in best.settings.items() if k not in HEATS[0]}
    order = balanced_order(structures, np.random.default_rng(random_state))
    part = order[: winner.n_structures]
    change = (
        winner.change if best.change.endswith("left out") else f"{winner.change}; {best.change}"
    )
    again = [run(settings, part, heat)._replace(change=change) for heat in (0, 1)]
    raced = Race((*found.trials, *trials.values(), *tried, *again), again[-1], found.reason)
    return raced, [_in_words(alike, species)]


def _one_and_two(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """With one process, and with one that tells no species apart beside it."""
    one = _soap(settings)
    common = Soap(**{**one.get_params(deep=False), **_ALL_THE_SAME})
    return {**settings, "descriptor": one}, {**settings, "descriptor": [common, one]}


def _soap(settings: Mapping[str, Any]) -> Soap:
    """The descriptor that tells species apart: the last one of a sum."""
    descriptor = settings["descriptor"]
    return descriptor[-1] if isinstance(descriptor, list) else descriptor


def _alternatives(settings: Mapping[str, Any], first: Mapping[str, Any]) -> list[Step]:
    """Where the race changed something: what it began with, and what else it tried there."""
    found: list[Step] = []
    tried = dict(variations(first))
    for names in dict.fromkeys(tuple(sorted(change)) for change in tried.values()):
        now, before = ({n: _value(one, n) for n in names} for one in (settings, first))
        if now == before or names == ("species_mixing",):
            continue
        options = [(f"{', '.join(names)} as at the start", before), *tried.items()]
        found += [
            (words, change)
            for words, change in options
            if tuple(sorted(change)) == names and change != now
        ]
    return found


def _value(settings: Mapping[str, Any], name: str) -> Any:
    """Of a parameter of the model, or of its descriptor."""
    return settings[name] if name in settings else getattr(_soap(settings), name)


def _key(alike: Alike) -> str:
    return f"{alike.neighbours_zz.tolist()} {alike.centres} {alike.common}"


def _in_words(alike: Alike, species: Sequence[int]) -> str:
    names = [chemical_symbols[z] for z in species]
    pairs = ", ".join(
        f"{names[i]}-{names[j]} {alike.neighbours_zz[i, j]:.3g}"
        for i in range(len(species))
        for j in range(i)
    )
    words = f"species alike (1 is the same) by systems left out in turn: {pairs}"
    if alike.centres is not None:
        words += f"; unlike centres {alike.centres:g}"
    if alike.common:
        words += "; and a process that tells no species apart, for what all have in common"
    return words


def _without_systems(
    make: Make,
    settings: Mapping[str, Any],
    splits: Sequence[Split],
    images: Sequence[Any],
    structures: Sequence[Structure],
) -> Trial:
    """Errors on systems left out, each predicted by a model of the others.

    In the score, errors on left-out structures of the systems that are known count as much
    (`folds`): what predicts all systems as if they were one predicts the known ones worse.
    """
    started = time.perf_counter()
    evidence, n_inducing = 0.0, 0
    known: list[float] = []
    unknown: list[float] = []
    squares: dict[str, list[float]] = {}
    for split in splits:
        with quiet():
            model = make(settings).fit([images[s] for s in split.fit])
        known.append(score(model.leave_out_errors_, len(split.fit)))
        for members in by_system(structures, split.test).values():
            mean_squares = _mean_squares(model, [structures[s] for s in members])
            if mean_squares:  # labels of weight zero are none
                unknown.append(_log_error(mean_squares))
            for kind, square in mean_squares.items():
                squares.setdefault(kind, []).append(square)
        evidence, n_inducing = evidence + model.log_evidence_, model.n_inducing_
    trial = Trial(
        change="",
        settings={},
        n_structures=sum(len(split.fit) for split in splits) // len(splits),
        n_inducing=n_inducing,
        errors={kind: math.sqrt(np.mean(values)) for kind, values in squares.items()},
        score=0.5 * float(np.mean(known) + np.mean(unknown)),
        log_evidence=evidence,
        seconds=time.perf_counter() - started,
        us_per_atom=math.nan,
        stages={},
    )
    log.info("%s", {k: v for k, v in trial._asdict().items() if k != "settings"})
    return trial


def _log_error(squares: Mapping[str, float]) -> float:
    """Logarithm of the error on one system: of the forces, of the energies where there are none.

    All systems count alike, whether hot or cold. Energies do not where there are forces: that of a
    system left out is off by a constant that nothing tells.
    """
    kind = next(kind for kind in ("forces", "energy", "stress") if kind in squares)
    return math.log(max(math.sqrt(squares[kind]), _LEAST_ERRORS[kind]))


def _mean_squares(model: Any, structures: Sequence[Structure]) -> dict[str, float]:
    """Mean square error by kind of label: eV/atom, eV/angstrom, eV/angstrom^3."""
    found: dict[str, list[Float]] = {kind: [] for kind in LABEL_KINDS}
    for s in structures:
        energy, forces_nc, stress_v, _ = evaluate_structure(model.predictor_, s)
        found["energy"].append(np.array([(energy - s.energy) / s.n_atoms]))
        found["forces"].append((forces_nc - s.forces_nc).ravel())
        found["stress"].append(stress_v - s.stress_v)
    errors = {kind: np.concatenate(values) for kind, values in found.items()}
    return {
        kind: float(np.nanmean(values**2))
        for kind, values in errors.items()
        if np.isfinite(values).any()
    }
