"""Which similarity of species predicts the unknown: trials whose errors on systems count."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from kernelpot.conventions import Progress
from kernelpot.data import Structure
from kernelpot.descriptors import Soap
from kernelpot.folds import systems_of
from kernelpot.race import Race, Runner, Trial, balanced_order, climb
from kernelpot.similarity import SCATTER, Alike, channels, learn_similarity
from kernelpot.trials import HEATS
from kernelpot.variations import Step, apply, variations

__all__ = ["learn_species"]

_N_ATOMS = (1500.0, 8000.0)
"""Least and most atoms of the structures of a trial: what is best with few of them prefers species
more alike, and shorter ranges, than is best with many (NbMoTaW: 80 and 400 structures)."""
_TRIALS = 25
"""How many trials there should be time for."""
_GROWTH = 1.6
"""How many times longer trials take than those of the race: those of a sum do."""
_FOR_SIMILARITY = 0.6
"""Share of the time for the similarity of the species."""
_FOR_STEPS = 0.8
"""Share of the time after which no number of the descriptor is changed."""

_ALL_THE_SAME = {"species_mixing": 1.0, "centre_similarity": 1.0}
"""Parameters of a descriptor that tells no species apart."""


def learn_species(
    found: Race,
    run: Runner,
    structures: Sequence[Structure],
    *,
    deadline: float,
    random_state: int | None,
    tell: Progress,
) -> tuple[Race, list[str]]:
    """The winner with what predicts systems left out best, and why.

    How alike the species are comes first. Then what the race changed has to prove itself: what is
    best for species that are not alike may be bad for others. Then the numbers of the descriptor
    are changed by small steps.

    Parameters
    ----------
    found : Race
        A race of descriptors.
    run : Runner
        Fits settings to some of the structures.
    structures : Sequence[Structure]
        The training structures.
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
        words, where no systems can be left out, or there is no time.
    """
    winner = found.winner
    left = deadline - time.perf_counter()
    order = balanced_order(structures, np.random.default_rng(random_state))
    sizes = np.cumsum([structures[s].n_atoms for s in order])
    each = left / (_TRIALS * _GROWTH)
    n_atoms = np.clip(sizes[winner.n_structures - 1] * each / winner.seconds, *_N_ATOMS)
    part = order[: max(int(np.searchsorted(sizes, n_atoms)), 25)]
    if left < 0.0 or not systems_of(structures, part):
        return found, []
    species = sorted({int(z) for s in structures for z in s.numbers_n})
    until, for_steps = (deadline - (1.0 - x) * left for x in (_FOR_SIMILARITY, _FOR_STEPS))
    trials: dict[str, Trial] = {}

    def settings_of(alike: Alike) -> dict[str, Any]:
        soap = winner.settings["descriptor"].get_params(deep=False)
        soap["species_mixing"] = channels(alike.neighbours_zz, species)
        soap["centre_similarity"] = alike.centres
        one = Soap(**soap)
        both = [Soap(**{**soap, **_ALL_THE_SAME}), one]
        return {**winner.settings, "descriptor": both if alike.common else one}

    def judge(words: str, alike: Alike) -> float:
        trial = run(settings_of(alike), part, 0)
        trials[_key(alike)] = trial._replace(change=words)
        return trial.score

    start = winner.settings["descriptor"].species_mixing or 0.0
    alike = learn_similarity(species, judge, start=start, deadline=until, tell=tell)
    learned, tried = trials[_key(alike)], []
    for words, change in _alternatives(learned.settings, found.trials[0].settings):
        if time.perf_counter() > for_steps:
            break
        trial = run(apply(learned.settings, change), part, 0)
        tried.append(trial._replace(change=f"{learned.change}, {words}"))
    best = min((learned, *tried), key=lambda trial: trial.score)
    best, steps = climb(best, run, part, deadline, tell, heat=0, least_gain=SCATTER)
    # Times and errors of the race were those of other settings.
    settings = {k: v for k, v in best.settings.items() if k not in HEATS[0]}
    again = run(settings, order[: winner.n_structures], 1)
    again = again._replace(change=f"{winner.change}; {best.change}")
    others = [trial for trial in (*trials.values(), *tried, *steps) if trial is not best]
    raced = Race((*found.trials, *others, best, again), again, found.reason)
    return raced, [_in_words(alike, species)]


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
