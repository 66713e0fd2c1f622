"""The loop: explore, notice, choose, label, learn, know when to stop.

Round after round: explorers move structures with the present model while a watch looks on; what it
is unsure of becomes a candidate; of these a batch is chosen that tells most together; the oracle
labels it; the model learns it; criteria are judged. Round 0 labels the starts and displaced copies
of them.

Every step is in the journal before the next begins, and follows from the seed and the steps before,
so that a run which was killed goes on where it was and comes to the same end; the labels of a
journal alone give its model (`replay`).
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from kernelpot.active.acquisition import Beside, pick_by_covariance, pick_by_factors
from kernelpot.active.blocking import block_average
from kernelpot.active.costs import fit_label_cost
from kernelpot.active.explorers.protocol import Explorer
from kernelpot.active.explorers.static import Rattle
from kernelpot.active.history import Round, history_of
from kernelpot.active.journal import Journal, JournalError, read_entries
from kernelpot.active.knowledge import Knowledge, Learned
from kernelpot.active.oracle import label_all
from kernelpot.active.records import Candidate, Exploration, Label
from kernelpot.active.scores import Law, violation_score, violations
from kernelpot.active.settings import LearnerSettings
from kernelpot.active.stopping import (
    Criterion,
    Decision,
    combine,
    coverage,
    label_budget,
    observable_converged,
    plateau,
    time_budget,
)
from kernelpot.active.structure_json import label_to_json, structure_to_json
from kernelpot.active.thresholds import Band, band_above, force_tolerance
from kernelpot.active.triggers import Watch
from kernelpot.active.unphysical import Limits, temperature_limit
from kernelpot.calculator import Calculator
from kernelpot.conventions import Float, System
from kernelpot.neighbours import find_pairs
from kernelpot.potential import KernelPotential
from kernelpot.variances import open_factors

__all__ = ["ActiveLearner", "Outcome", "Tell", "replay"]

log = logging.getLogger("kernelpot")

Tell = Callable[[str, dict[str, Any]], None]
"""Called with the kind of each entry of the journal and its content, as it is written."""
Observable = Callable[[list[Atoms]], Any]
"""Of the frames of an exploration: a series, one value or array for each frame."""

_DENSE = 1200
"""Numbers of candidates up to which their joint covariance is computed with what the inducing
variables do not see; beyond, which takes the square, only what the data leave open counts."""
_LEAST_NOISE = 1e-3
"""eV/angstrom: labels of an oracle have none, but a fit to them does."""
_STD_EVERY = 20
"""Steps of an exploration from one look at the expected errors to the next."""
_SIMPLE = frozenset({"barrier", "given", "end"})
"""Reasons for which a candidate stays one whatever its expected error."""


class Outcome(NamedTuple):
    """How a run ended."""

    model: KernelPotential
    n_labels: int  # that the model has learned
    n_failed: int
    why: str  # the run ended
    criteria: tuple[Criterion, ...]
    folder: Path


class ActiveLearner:
    """Active learning from a few structures to a potential, unattended.

    Parameters
    ----------
    model : KernelPotential
        Its parameters are used; it is not changed.
    oracle : Any
        Gives labels: an ASE calculator, a function, a `FileOracle` (`label_all`).
    start : Sequence[Atoms]
        Where explorations begin; they need no labels.
    explorers : Sequence[Explorer]
        Each explores once in every round.
    folder : str | PathLike[str]
        Of the run: its journal, ``model.kpot`` and ``labels.xyz``.
    settings : LearnerSettings
        How to choose, label and stop.
    images : Sequence[Atoms]
        Labelled structures to begin with.
    observable : Observable | None
        That is to converge; with ``observable_tolerance`` of the settings.
    laws : Sequence[Law]
        What is known of the true potential: violations add to the scores of candidates.
    executor : Executor | None
        Where labels are computed; None for processes of this machine.
    tell : Tell | None
        Told of all that happens.

    Raises
    ------
    ValueError
        If there is nothing to start from, or no explorer.
    """

    def __init__(
        self,
        model: KernelPotential,
        oracle: Any,
        start: Sequence[Atoms],
        explorers: Sequence[Explorer],
        folder: str | PathLike[str],
        *,
        settings: LearnerSettings | None = None,
        images: Sequence[Atoms] = (),
        observable: Observable | None = None,
        laws: Sequence[Law] = (),
        executor: Executor | None = None,
        tell: Tell | None = None,
    ):
        self.settings = settings or LearnerSettings()
        self.start = [start] if isinstance(start, Atoms) else list(start)
        self.explorers = list(explorers)
        if not self.start or not self.explorers:
            raise ValueError("active learning needs a start, at least one structure, and explorers")
        if observable is not None and self.settings.observable_tolerance is None:
            raise ValueError("an observable needs observable_tolerance in the settings: its unit")
        self.model, self.oracle, self.folder = model, oracle, Path(folder)
        self.images, self.observable, self.laws = list(images), observable, list(laws)
        self.executor, self.tell = executor, tell

    def run(self, resume: bool | None = None) -> Outcome:
        """Run to the end, or go on with what the folder holds.

        Parameters
        ----------
        resume : bool | None
            True: there must be a run in the folder; False: there must be none; None: whichever.

        Returns
        -------
        Outcome
            With the model of all labels.

        Raises
        ------
        JournalError
            If the folder's run is another one, or is not as ``resume`` says.
        """
        with Journal(self.folder, create=None if resume is None else not resume) as journal:
            return _Run(self, journal).to_the_end()


def replay(folder: str | PathLike[str], model: KernelPotential) -> KernelPotential:
    """The model that a run has come to, from the labels in its journal alone.

    Parameters
    ----------
    folder : str | PathLike[str]
        Of the run.
    model : KernelPotential
        With the parameters of the run's.

    Returns
    -------
    KernelPotential
        The same to the bit, on the same machine with the same libraries.

    Raises
    ------
    JournalError
        If there is no run, or nothing was learned in it.
    """
    history = history_of(read_entries(folder))
    if history.settings is None:
        raise JournalError(f"There is no run in {folder} yet.")
    knowledge = Knowledge(model, history.settings["window"])
    for one in history.rounds:
        if one.learned is not None:
            knowledge.learn(one.good)
    if not knowledge.fitted:
        raise JournalError(f"The run in {folder} has learned nothing yet.")
    return knowledge.model


class _Run:
    """A run at work."""

    def __init__(self, learner: ActiveLearner, journal: Journal):
        self.learner, self.journal = learner, journal
        self.settings = learner.settings
        self.history = history_of(journal.entries())
        self.knowledge = Knowledge(learner.model, self.settings.window)
        self._check_settings()

    def to_the_end(self) -> Outcome:
        number = 0
        while True:
            past = self.history.rounds[number] if number < len(self.history.rounds) else _NEW
            decision = self._round(number, past)
            if decision.stop:
                break
            number += 1
        if not self.history.ended:
            self._write("ended", {"why": decision.why})
        rounds = self.history.rounds
        failed = sum(label.atoms is None for one in rounds for label in one.labels.values())
        return Outcome(
            self.knowledge.model,
            len(self.knowledge.images),
            failed,
            decision.why,
            decision.criteria,
            self.learner.folder,
        )

    # ------------------------------------------------------------------------------ a round

    def _round(self, number: int, past: Round) -> Decision:
        """What is in the journal already is not done again."""
        started = time.perf_counter()
        if past.picked is None:
            if self.knowledge.fitted:
                picked = self._explored(number)
            else:
                picked = self._initial()
            self._write(
                "picked", {"round": number, "structures": [_pick_json(*one) for one in picked]}
            )
            past = self.history.rounds[number]
        self._label(number, past)
        past = self.history.rounds[number]
        good = [*self.learner.images, *past.good] if number == 0 else past.good
        learned = self.knowledge.learn(good)
        if not self.knowledge.fitted:
            raise RuntimeError(
                "no label of the first round succeeded, so that there is nothing to learn; the"
                f" first one failed with: {past.labels[0].reason}"
            )
        fingerprint = self.knowledge.fingerprint()
        if past.learned is None:
            self._write("learned", {"round": number, **_learned_json(learned, fingerprint)})
            self._save()
        elif past.learned["fingerprint"] != fingerprint:
            log.warning(
                "the labels of round %d give another model than they did when they were learned:"
                " libraries or the machine have changed. The run goes on with the new one",
                number,
            )
        past = self.history.rounds[number]
        if past.judged is None:
            decision = self._judge(number, time.perf_counter() - started)
            criteria = [one._asdict() for one in decision.criteria]
            seconds = time.perf_counter() - started
            judged = {"stop": decision.stop, "why": decision.why, "criteria": criteria}
            self._write("judged", {"round": number, **judged, "seconds": seconds})
            return decision
        judged = past.judged
        criteria = tuple(Criterion(**one) for one in judged["criteria"])
        # A larger budget than that of the run before lets it go on.
        if judged["stop"] and self.history.ended and number == len(self.history.rounds) - 1:
            return self._judge(number, 0.0)
        return Decision(False, "", criteria)

    def _initial(self) -> list[tuple[Candidate, float]]:
        """The starts, and displaced copies of them."""
        rng = np.random.default_rng([self.settings.random_state, 0])
        maker = Rattle(displacement=self.settings.displacement, strain=self.settings.strain)
        found = []
        for atoms in self.learner.start:
            found.append(Candidate(_bare(atoms), "start", 0, "given", np.nan))
            for _ in range(self.settings.n_initial):
                made = maker.rattled(atoms, rng)
                found.append(Candidate(_bare(made), maker.name, 0, "given", np.nan))
        return [(one, np.nan) for one in found[: self.settings.most_labels]]

    def _explored(self, number: int) -> list[tuple[Candidate, float]]:
        calculator = Calculator(self.knowledge.model)
        threshold = self._threshold()
        candidates: list[Candidate] = []
        for e, explorer in enumerate(self.learner.explorers):
            started = time.perf_counter()
            found = explorer.explore(
                calculator,
                self._from(number, e),
                self._watch(explorer, threshold),
                np.random.default_rng([self.settings.random_state, number, e]),
            )
            candidates += found.candidates
            entry = self._exploration_json(found, calculator)
            self._write(
                "explored",
                {"round": number, "explorer": e, "name": explorer.name, "threshold": threshold,
                 "seconds": time.perf_counter() - started, **entry},
            )  # fmt: skip
        return self._choose(candidates, calculator, threshold)

    def _threshold(self) -> float:
        """Expected error of a force from which on a structure is a candidate, eV/angstrom."""
        return force_tolerance(
            self.settings.tolerance,
            errors=self.knowledge.recent_errors,
            multiple=self.settings.multiple,
            floor=self.knowledge.least_error,
        )

    def _from(self, number: int, e: int) -> Atoms:
        """Where an explorer begins: where it came to in the last round, or at a start."""
        rounds = self.history.rounds
        before = rounds[number - 1].explored.get(e) if number - 1 < len(rounds) else None
        last = None if before is None else before["last"]
        starts = self.learner.start
        # Every other time from a start: what has gone astray does not stay there.
        if last is None or number % 2 == 0 or not before["n_steps"] > 1:
            return copy.deepcopy(starts[number % len(starts)])
        from kernelpot.active.structure_json import structure_from_json

        return structure_from_json(last)

    def _watch(self, explorer: Explorer, threshold: float) -> Watch:
        model = self.knowledge.model
        band = band_above(threshold, self.settings.upper)
        novelty = Band()
        if model.predictor_.has_novelty:
            novelty = band_above(self.knowledge.novelty_map.threshold(threshold, np.inf), 4.0)
        temperature = np.inf
        if hasattr(explorer, "temperature"):
            hottest = float(np.max(explorer.temperature))
            least = min(len(atoms) for atoms in self.learner.start)
            temperature = temperature_limit(hottest, least)
        limits = Limits(closest=self.knowledge.closest, temperature=temperature)
        return Watch(novelty=novelty, error=band, limits=limits, std_every=_STD_EVERY, std_gap=5)

    def _exploration_json(self, found: Exploration, calculator: Calculator) -> dict[str, Any]:
        """Of its frames the numbers by which it is judged, not the frames."""
        frames = _spread(found.frames, self.settings.n_looked)
        errors = [_expected(calculator, one) for one in frames]
        series = None
        if self.learner.observable is not None and len(found.frames) > 1:
            mean = block_average(self.learner.observable(found.frames), warn=False)
            series = {
                "mean": np.asarray(mean.mean).tolist(),
                "standard_error": np.asarray(mean.standard_error).tolist(),
                "settled": bool(np.all(mean.settled)),
            }
        return {
            "n_steps": found.n_steps,
            "finished": found.finished,
            "note": found.note,
            "last": None if found.last is None else structure_to_json(found.last),
            "n_candidates": len(found.candidates),
            "sigma": [float(one.max()) for one in errors if one is not None],
            "observable": series,
        }

    # --------------------------------------------------------------------------- the choice

    def _choose(
        self, candidates: list[Candidate], calculator: Calculator, threshold: float
    ) -> list[tuple[Candidate, float]]:
        """A batch of candidates, and what each tells beyond those before it, nats."""
        most = min(self.settings.batch, self.settings.most_labels - self.history.n_labels)
        looked = []
        for one in _largest(candidates, self.settings.n_candidates):
            error_n = _expected(calculator, one.atoms)
            if error_n is None:
                continue
            score = float(error_n.max()) / threshold
            if score > 1.0 or one.reason in _SIMPLE or one.reason == "too close":
                looked.append(one if one.reason in _SIMPLE else one._replace(score=score))
        if not looked or most < 1:
            return []
        model = self.knowledge.model
        images = [one.atoms for one in looked]
        noise = max(model.reference_noise_["forces"], _LEAST_NOISE)
        beside = self._beside(images, calculator)
        if 3 * sum(map(len, images)) <= _DENSE:
            joint = model.predict(images, return_cov="forces").cov
            picked = pick_by_covariance(joint.matrix, joint.structure_r, noise, most, beside=beside)
        else:
            factors = [_force_factors(model, atoms) for atoms in images]
            picked = pick_by_factors(factors, noise, most, beside=beside)
        return [
            (looked[k], float(told))
            for k, told in zip(picked.picks, picked.information, strict=True)
        ]

    def _beside(self, images: list[Atoms], calculator: Calculator) -> Beside:
        """Costs of labels, and laws that candidates violate."""
        labels = [label for one in self.history.rounds for label in one.labels.values()]
        done = [label for label in labels if label.atoms is not None]
        cost = fit_label_cost([len(x.atoms) for x in done], [x.seconds for x in done])
        found = Beside(cost_s=cost.predict([len(atoms) for atoms in images]))
        if not self.learner.laws:
            return found
        with_calculator = [atoms.copy() for atoms in images]
        for atoms in with_calculator:
            atoms.calc = copy.copy(calculator)
        laws = self.learner.laws
        violation_s = violation_score(
            violations(laws, with_calculator),
            [law.tolerance for law in laws],
            [law.weight for law in laws],
        )
        return found._replace(violation_s=violation_s)

    # --------------------------------------------------------------------------- labels

    def _label(self, number: int, past: Round) -> None:
        """Label what has no label yet; each is in the journal as soon as it is there."""
        missing = [k for k in range(len(past.picked or [])) if k not in past.labels]
        if not missing:
            return
        structures = past.structures

        def record(place: int, label: Label) -> None:
            mine = {"round": number, "place": missing[place]}
            self._write("label", {**mine, **label_to_json(label)})

        label_all(
            self.learner.oracle,
            [structures[k] for k in missing],
            executor=self.learner.executor,
            n_parallel=self.settings.n_parallel,
            time_limit=self.settings.time_limit,
            threads=self.settings.threads,
            tell=record,
        )

    # --------------------------------------------------------------------------- the end

    def _judge(self, number: int, seconds: float) -> Decision:
        settings, rounds = self.settings, self.history.rounds
        explored = [one for one in rounds[: number + 1] if one.explored]
        sigma = [[s for found in one.explored.values() for s in found["sigma"]] for one in explored]
        criteria = [
            plateau(
                [one for one in sigma if one],
                rounds=settings.plateau_rounds,
                tolerance=settings.plateau,
            )
        ]
        if self.learner.observable is not None:
            criteria += self._observables(explored)
        budgets = [
            label_budget(self.history.n_labels, settings.most_labels),
            time_budget(self.history.seconds + seconds, settings.most_seconds),
        ]
        if settings.final_steps and explored:
            final = rounds[number].final
            if final is None and all(one.met for one in criteria):
                final = self._final(number)
            scores = [] if final is None else [np.array(one) for one in final["scores"]]
            criteria.append(coverage(scores, share=settings.coverage))
        return combine(criteria, budgets)

    def _observables(self, explored: list[Round]) -> list[Criterion]:
        """Of each explorer that moves."""
        found = []
        for e, explorer in enumerate(self.learner.explorers):
            means = [one.explored[e]["observable"] for one in explored if e in one.explored]
            estimates = [_Mean(**one) for one in means if one is not None]
            if estimates:
                name = (
                    f"observable, {explorer.name}"
                    if len(self.learner.explorers) > 1
                    else "observable"
                )
                found.append(
                    observable_converged(estimates, self.settings.observable_tolerance, name=name)
                )
        return found

    def _final(self, number: int) -> dict[str, Any]:
        """Long runs that nothing but unphysical states ends: who is inside what is certain?"""
        calculator = Calculator(self.knowledge.model)
        threshold = self._threshold()
        scores = []
        for e, explorer in enumerate(self.learner.explorers):
            if not hasattr(explorer, "n_steps"):
                continue
            n_steps = self.settings.final_steps * explorer.n_steps
            longer = dataclasses.replace(explorer, n_steps=n_steps)
            watch = self._watch(explorer, threshold)
            watch = Watch(limits=watch.limits)
            rng = np.random.default_rng([self.settings.random_state, number, e, 1])
            found = longer.explore(calculator, self._from(0, e), watch, rng)
            errors = [_expected(calculator, one) for one in found.frames]
            # A run that comes to an unphysical state was not inside.
            rows = [one / threshold for one in errors if one is not None]
            if not found.finished:
                rows.append(np.full(len(self.learner.start[0]), np.inf))
            if rows:
                scores.append([np.minimum(one, 1e3).tolist() for one in rows])
        final = {"round": number, "threshold": threshold, "scores": scores}
        self._write("final", final)
        return final

    # --------------------------------------------------------------------------- the journal

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        """Append an entry, and take note of it."""
        self.journal.append(kind, content)
        self.history = history_of(self.journal.entries())
        if self.learner.tell is not None:
            self.learner.tell(kind, content)

    def _check_settings(self) -> None:
        """The settings of a run hold to its end; what ends it may change."""
        mine = {
            **self.settings.to_json(),
            "explorers": [repr(one) for one in self.learner.explorers],
            "model": repr(self.learner.model),
        }
        before = self.history.settings
        if before is None:
            self._write("settings", mine)
            return
        may_change = {
            "most_labels", "most_seconds", "n_parallel", "threads", "time_limit", "plateau_rounds",
            "plateau", "coverage", "final_steps", "observable_tolerance", "tolerance",
        }  # fmt: skip
        changed = [k for k in mine if k not in may_change and mine[k] != before.get(k)]
        if changed:
            name = changed[0]
            raise JournalError(
                f"The run in {self.learner.folder} has another {name}: {before.get(name)!r}, now "
                f"{mine[name]!r}. Resume it with its own settings, or begin another run in another "
                "folder."
            )

    def _save(self) -> None:
        """The model and the labels, for people and other programs."""
        path = self.learner.folder / "model.kpot"
        self.knowledge.model.save(path)
        self.journal.write_labels()


class _Mean(NamedTuple):
    """An observable as the journal has it."""

    mean: Any
    standard_error: Any
    settled: bool


_NEW = Round({}, None, {}, None, None, None)


def _bare(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.set_constraint()
    return atoms


def _pick_json(candidate: Candidate, told: float) -> dict[str, Any]:
    return {
        "structure": structure_to_json(candidate.atoms),
        "origin": candidate.origin,
        "step": candidate.step,
        "reason": candidate.reason,
        "score": candidate.score,
        "information": told,
    }


def _learned_json(learned: Learned, fingerprint: str) -> dict[str, Any]:
    surprises = [one._asdict() for one in learned.surprises]
    return {**learned._asdict(), "surprises": surprises, "fingerprint": fingerprint}


def _spread(frames: list[Atoms], n: int) -> list[Atoms]:
    """So many of them, evenly."""
    places = np.unique(np.linspace(0, len(frames) - 1, min(n, len(frames))).astype(int))
    return [frames[k] for k in places] if frames else []


def _largest(candidates: list[Candidate], n: int) -> list[Candidate]:
    """Those of the largest scores, in the order met; unknown scores count as large."""
    score = np.nan_to_num([one.score for one in candidates], nan=np.inf)
    chosen = np.sort(np.argsort(-score, kind="stable")[:n])
    return [candidates[k] for k in chosen]


def _expected(calculator: Calculator, atoms: Atoms) -> Float | None:
    """Expected error of the force on each atom, root mean square of a component, eV/angstrom."""
    try:
        error_nc = calculator.get_property("forces_error", atoms.copy())
    except ValueError:  # of a structure that is none
        return None
    return np.sqrt(np.mean(error_nc**2, axis=1))


def _force_factors(model: KernelPotential, atoms: Atoms) -> Float:
    predictor = model.predictor_
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc.tolist(), predictor.cutoff)
    system = System(predictor.species_of(atoms.numbers), pairs)
    return open_factors(predictor.process, system, ["forces"])
