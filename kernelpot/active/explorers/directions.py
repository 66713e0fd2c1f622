"""Directions in which the training environments hardly vary, followed as paths of the atoms.

Features of a structure, one environment after the other, change by J u where its atoms move by u.
Of all that the training environments say, C is the covariance of their features. The principal
components of the training descriptors within the reach of the atoms, the range of J, are v = J u
with

    J^T C J u = lambda J^T J u

and small lambda where training hardly varies. With J = U S V^T such a v is U w, and the atoms that
make it are u = V S^-1 w: the pseudo-inverse of J, applied to v. Singular values below a share of
the largest are left out, and rigid motions with them, because J of these is zero.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator

from kernelpot.active.explorers.barriers import band_of
from kernelpot.active.explorers.protocol import (
    Track,
    Watcher,
    check_at_least,
    check_positive,
    moving_copy,
    snapshot,
)
from kernelpot.active.records import Exploration
from kernelpot.calculator import Calculator
from kernelpot.conventions import Float, System, as_int
from kernelpot.environments import add_environments
from kernelpot.neighbours import find_pairs, within
from kernelpot.prediction import Predictor
from kernelpot.rows import centre_blocks

__all__ = ["Directions", "Growth", "UnsampledDirections", "growth_of", "unsampled_directions"]

_BLOCK = 16
"""Centres whose derivatives are there at once."""
_NO_CHANGE = 1e-12
"""Squared derivatives of the features (1/angstrom^2) below this are rounding: no atom of a crystal
with one atom in its cell changes them to first order."""


class Directions(NamedTuple):
    """Displacements that change the features least in the manner of the training environments."""

    displacements_knc: Float  # each of norm 1 over all atoms
    variance_k: Float  # training variance along each, over that along the mean direction, ascending


class Growth(NamedTuple):
    """How uncertainty, and the error where it is known, grow along a path."""

    distance: Float  # (n,), along the path: root of the summed squared displacements, angstrom
    forces_std: Float  # (n,), root mean square posterior standard deviation, eV/angstrom
    forces_error: Float  # (n,), root mean square, eV/angstrom; NaN without an oracle
    energy_std: Float  # (n,), of the difference from the first, eV per atom
    energy_error: Float  # (n,), of the same, absolute, eV per atom


def unsampled_directions(
    predictor: Predictor, atoms: Atoms, *, least_singular_value: float = 0.1
) -> Directions:
    """Directions in which atoms change their features as the training environments do not.

    The training environments are the inducing ones, which were chosen to cover all of them.

    Parameters
    ----------
    predictor : Predictor
        A fitted potential with kernels that are not all linear.
    atoms : Atoms
        The structure.
    least_singular_value : float
        Of the Jacobian of all features, in units of its largest: displacements that change
        features by less are left out.

    Returns
    -------
    Directions
        The least sampled first; none where no displacement changes the features to first order, by
        symmetry.

    Raises
    ------
    ValueError
        If all kernels are linear, or a species is not known.
    """
    if not predictor.has_novelty:
        raise ValueError(
            "unsampled directions compare environments with inducing ones, which a linear kernel"
            " does not do: fit with zeta of 2 or more"
        )
    squares_gg, spread_gg = _metrics(predictor, atoms)
    values, vectors = np.linalg.eigh(squares_gg)
    amplitude_2 = sum(delta**2 for delta in predictor.process.delta_g)
    kept = values > max(least_singular_value**2 * values[-1], _NO_CHANGE * amplitude_2)
    if not kept.any():
        return Directions(np.zeros((0, len(atoms), 3)), np.zeros(0))
    backwards_gk = vectors[:, kept] / np.sqrt(values[kept])  # V S^-1
    variance_k, w_kk = np.linalg.eigh(backwards_gk.T @ spread_gg @ backwards_gk)
    displacements_gk = backwards_gk @ w_kk
    displacements_gk /= np.linalg.norm(displacements_gk, axis=0)
    variance_k = np.maximum(variance_k, 0.0)
    return Directions(
        np.ascontiguousarray(displacements_gk.T).reshape(-1, len(atoms), 3),
        variance_k / variance_k.mean(),
    )


def _metrics(predictor: Predictor, atoms: Atoms) -> tuple[Float, Float]:
    """J^T J and J^T C J by the positions, summed over the processes by their prior variances."""
    process = predictor.process
    pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, predictor.cutoff)
    species_n = predictor.species_of(atoms.numbers)
    n_g = 3 * len(atoms)
    squares_gg, spread_gg = np.zeros((2, n_g, n_g))
    for component, delta in zip(process.components, process.delta_g, strict=True):
        if component.zeta == 1:
            continue
        bound = component.descriptor
        system = System(species_n, within(pairs, bound.cutoff)[0])
        deviations = [_deviations(group.x_eq) for group in component.inducing]
        for z, centres_b in centre_blocks(component, species_n, _BLOCK):
            J_gbq = np.zeros((n_g, len(centres_b), bound.n_features))
            x_bq = np.empty((len(centres_b), bound.n_features))
            add_environments(bound, system, as_int(centres_b), False, x_bq, J_gbq)
            flat_gx = J_gbq.reshape(n_g, -1)
            squares_gg += delta**2 * (flat_gx @ flat_gx.T)
            seen_gx = (J_gbq @ deviations[z].T).reshape(n_g, -1)
            spread_gg += delta**2 * (seen_gx @ seen_gx.T)
    return squares_gg, spread_gg


def _deviations(x_eq: Float) -> Float:
    """D with C = D^T D, the covariance of the features of some environments."""
    if not len(x_eq):
        return x_eq
    return (x_eq - x_eq.mean(axis=0)) / np.sqrt(len(x_eq))


def growth_of(
    calculator: Calculator, images: Sequence[Atoms], oracle: AseCalculator | None = None
) -> Growth:
    """How uncertainty, and the error where it can be known, grow along a path.

    Parameters
    ----------
    calculator : Calculator
        Of a model that keeps its posterior.
    images : Sequence[Atoms]
        From the start on.
    oracle : AseCalculator | None
        Gives true forces and energies.

    Returns
    -------
    Growth
        Standard deviations are epistemic and not calibrated.
    """
    band = band_of(calculator, images)
    n_atoms = len(images[0])
    std, errors, energies = [], [], []
    for atoms in band.images:
        forces_nc = _with(atoms, calculator).get_forces()
        std.append(_root_mean_square(calculator.get_property("forces_std", atoms)))
        if oracle is not None:
            truth = _with(atoms, oracle)
            errors.append(_root_mean_square(forces_nc - truth.get_forces()))
            energies.append(truth.get_potential_energy())
    unknown = np.full(len(images), np.nan)
    moved = [
        float(np.linalg.norm(b.positions - a.positions)) for a, b in itertools.pairwise(band.images)
    ]
    true_energies = np.array(energies) - energies[0] if energies else unknown
    return Growth(
        np.concatenate([[0.0], np.cumsum(moved)]),
        np.array(std),
        np.array(errors) if errors else unknown,
        band.energies_std / n_atoms,
        np.abs(band.energies - true_energies) / n_atoms,
    )


def _with(atoms: Atoms, calculator: AseCalculator) -> Atoms:
    probe = atoms.copy()
    probe.calc = calculator
    return probe


def _root_mean_square(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@dataclasses.dataclass(frozen=True)
class UnsampledDirections:
    """Paths along directions that training has hardly sampled.

    From the start along each of the least sampled directions (`unsampled_directions`), one sense of
    it at random; at every step the directions are found anew, and the one most like the last is
    followed. A path ends where the watch says stop, or where the model's energy has risen too high.

    Ethanol, a model of 40 frames: where its energy has risen by 1 eV, such paths (four, 0.33 to
    0.58 angstrom long) have a standard deviation of the energy of 2.3 meV/atom and a true error of
    5.3 meV/atom; displacements at random (six, 0.25 to 0.30 angstrom) 1.3 and 2.5. Errors of forces
    are alike, 0.18 and 0.19 eV/angstrom.

    Parameters
    ----------
    n_directions : int
        Paths, the least sampled direction first.
    n_steps : int
        Most steps of each.
    step : float
        Largest displacement of an atom in a step, angstrom.
    energy : float
        Most that the energy may rise by, eV per atom.
    least_singular_value : float
        As of `unsampled_directions`.
    spacing : int
        Steps within which only the most uncertain candidate is kept.
    oracle : AseCalculator | None
        Gives true forces, so that the error is reported beside the uncertainty: for looking at the
        method. None in active learning, where labels are the matter of others.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    n_directions: int = 4
    n_steps: int = 20
    step: float = 0.03
    energy: float = 0.3
    least_singular_value: float = 0.1
    spacing: int = 5
    oracle: AseCalculator | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        for name in ("n_directions", "n_steps", "spacing"):
            check_at_least(name, getattr(self, name), 1)
        check_positive("step", self.step, "angstrom")
        check_positive("energy", self.energy, "eV per atom")
        if not 0.0 < self.least_singular_value < 1.0:
            raise ValueError(
                "least_singular_value is a share of the largest, between 0 and 1; got"
                f" {self.least_singular_value!r}"
            )

    @property
    def name(self) -> str:
        """What it does in a few words, with its numbers."""
        return f"{self.n_directions} unsampled directions by {self.step:g} A"

    def explore(
        self, calculator: Calculator, start: Atoms, watch: Watcher, rng: np.random.Generator
    ) -> Exploration:
        """Follow the paths.

        Parameters
        ----------
        calculator : Calculator
            Of the model.
        start : Atoms
            From where each begins; atoms that are fixed stay.
        watch : Watcher
            Called at each step; ends a path where it says stop, and the next follows.
        rng : np.random.Generator
            Gives the sense of each direction.

        Returns
        -------
        Exploration
            The note says how forces' standard deviation grows along each path, and the error where
            there is an oracle. Its last structure is the start.

        Raises
        ------
        ValueError
            If all kernels of the model are linear, or it does not know a species.
        """
        atoms = moving_copy(start)
        atoms.calc = calculator
        atoms.get_potential_energy()  # an error of the start is one of whoever gave it
        found = unsampled_directions(
            calculator.predictor, atoms, least_singular_value=self.least_singular_value
        )
        track = Track(self.name, watch, spacing=self.spacing)
        said = []
        for k in range(min(self.n_directions, len(found.variance_k))):
            track.restart()
            sense = 1.0 if rng.random() < 0.5 else -1.0
            first_nc = sense * found.displacements_knc[k]
            images: list[Atoms] = []
            with track.explosions_caught():
                self._follow(moving_copy(start), calculator, first_nc, track, images)
            said.append(self._said(calculator, images, found.variance_k[k], track))
        words = "; ".join(said) or "none changes the features, by symmetry: rattle the start first"
        note = f"{self.name}: {words}"
        return track.exploration(note, ended="")._replace(last=moving_copy(start))

    def _follow(
        self,
        atoms: Atoms,
        calculator: Calculator,
        before_nc: Float,
        track: Track,
        images: list[Atoms],
    ) -> None:
        """One path, whose images are put into the list."""
        atoms.set_momenta(None)
        atoms.calc = calculator
        highest = atoms.get_potential_energy() + self.energy * len(atoms)
        for step in range(self.n_steps + 1):
            verdict = track.look(atoms)
            images.append(snapshot(atoms))
            if verdict.stop or step == self.n_steps:
                return
            if step:
                before_nc = self._next(calculator.predictor, atoms, before_nc)
            longest = np.linalg.norm(before_nc, axis=1).max()
            atoms.set_positions(atoms.positions + self.step / longest * before_nc)
            if atoms.get_potential_energy() > highest:
                track.ended = f"energy has risen by {self.energy:g} eV/atom"
                return

    def _next(self, predictor: Predictor, atoms: Atoms, before_nc: Float) -> Float:
        """The direction most like the last one among the least sampled half."""
        found = unsampled_directions(
            predictor, atoms, least_singular_value=self.least_singular_value
        )
        half = max(self.n_directions, len(found.variance_k) // 2)
        likeness_k = np.einsum("knc,nc->k", found.displacements_knc[:half], before_nc)
        k = int(np.abs(likeness_k).argmax())
        return np.copysign(1.0, likeness_k[k]) * found.displacements_knc[k]

    def _said(
        self, calculator: Calculator, images: list[Atoms], variance: float, track: Track
    ) -> str:
        words = f"variance {variance:.2g}"
        if len(images) > 1:
            growth = growth_of(calculator, images, self.oracle)
            words += (
                f", forces' std {growth.forces_std[0]:.3g} to {growth.forces_std[-1]:.3g} eV/A over"
                f" {growth.distance[-1]:.2g} A"
            )
            if self.oracle is not None:
                words += f", error {growth.forces_error[0]:.3g} to {growth.forces_error[-1]:.3g}"
        return f"{words} ({track.ended})" if track.ended else words
