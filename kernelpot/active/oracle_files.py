"""An oracle that is somebody else: inputs are written to a folder, outputs picked up there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from kernelpot.active.oracle_child import describe, results_of
from kernelpot.active.oracle_results import bare, failed, label_from
from kernelpot.active.records import Label
from kernelpot.active.structure_json import structure_hash
from kernelpot.whole_files import sync_folder

__all__ = ["FileOracle"]

log = logging.getLogger("kernelpot")

_FAILED = "failed"
"""File by which a calculation says that there will be no output, and why."""


@dataclass(frozen=True)
class FileOracle:
    """Files for a queue: a numbered folder for each structure.

    Inputs stand in ``00000-<hash of the structure>`` and so on; such a folder appears complete (it
    is made as ``.unfinished``, which scripts should pass over).
    Whatever runs there, a script that submits jobs or a person, puts the output beside the input,
    or a file ``failed`` that says why there is none. What is there already is taken and what was
    written is not written again, so that this goes on where it was interrupted.

    Parameters
    ----------
    folder : str | os.PathLike[str]
        Is made if it is missing.
    input : str
        Name of the file to write; ASE knows its format by the name: "input.xyz", "POSCAR".
    output : str
        Name of the file to read, the last structure in it counts: "output.xyz", "vasprun.xml".
    write : Callable[[Path, Atoms], None] | None
        Writes instead all that a calculation needs to this folder.
    read : Callable[[Path], Any] | None
        Reads instead from this folder: a structure with a calculator, or a dict of "energy",
        "forces" and "stress"; None, or any error, while the output is not complete.
    settle : float
        Seconds for which a file has not changed when it counts as complete (not with `read`).
    poll : float
        Seconds between two looks.
    """

    folder: str | os.PathLike[str]
    input: str = "input.xyz"
    output: str = "output.xyz"
    write: Callable[[Path, Atoms], None] | None = None
    read: Callable[[Path], Any] | None = None
    settle: float = 2.0
    poll: float = 1.0

    def label_all(
        self,
        structures: Sequence[Atoms],
        *,
        time_limit: float | None,
        tell: Callable[[int, Label], None],
    ) -> list[Label]:
        """Write all inputs, wait for all outputs.

        Parameters
        ----------
        structures : Sequence[Atoms]
            The same structure has one folder, however often it is given.
        time_limit : float | None
            Seconds from now until an output that has not come has failed.
        tell : Callable[[int, Label], None]
            Called with place and label as each output comes.

        Returns
        -------
        list[Label]
            In the order of the structures.
        """
        start = time.time()
        labels: dict[int, Label] = {}
        waiting: dict[int, tuple[Path, Atoms]] = {}
        seen: dict[Path, str] = {}  # last trouble with each output
        for place, atoms in enumerate(structures):
            atoms = bare(atoms)
            try:
                waiting[place] = self._place(atoms), atoms
            except Exception as error:  # a writer of the user's may raise anything
                labels[place] = failed(f"the input was not written: {describe(error)}", 0.0)
                tell(place, labels[place])
        while waiting:
            for place, (folder, atoms) in list(waiting.items()):
                label = self._look(folder, atoms, seen)
                seconds = time.time() - start
                if label is None and time_limit is not None and seconds > time_limit:
                    why = seen.get(folder, "there is none")
                    label = failed(
                        f"no output in {folder} within the time limit of {time_limit:g} s: {why}",
                        seconds,
                    )
                if label is not None:
                    del waiting[place]
                    labels[place] = label
                    tell(place, label)
            if waiting:
                time.sleep(self.poll)
        return [labels[place] for place in range(len(structures))]

    def _place(self, atoms: Atoms) -> Path:
        """The folder of a structure, with its input."""
        root = Path(self.folder)
        root.mkdir(parents=True, exist_ok=True)
        name = structure_hash(atoms)
        numbers = []
        for path in root.iterdir():
            number, _, theirs = path.name.partition("-")
            if number.isdigit() and path.is_dir():
                if theirs == name:
                    return path
                numbers.append(int(number))
        target = root / f"{max(numbers, default=-1) + 1:05d}-{name}"
        # Written beside and renamed, so that no queue meets half an input.
        unfinished = root / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        if self.write is not None:
            self.write(unfinished, atoms)
        else:
            ase.io.write(str(unfinished / self.input), atoms)
        sync_folder(unfinished)
        os.replace(unfinished, target)
        sync_folder(root)
        return target

    def _look(self, folder: Path, atoms: Atoms, seen: dict[Path, str]) -> Label | None:
        """The label, if it is there."""
        seconds = _duration(folder)
        with contextlib.suppress(FileNotFoundError):
            reason = (folder / _FAILED).read_text(encoding="utf-8", errors="replace").strip()
            return failed(reason or f"the calculation in {folder} says that it failed", seconds)
        try:
            found = self._read(folder)
        except Exception as error:  # it may be half of an output; every reader fails in its own way
            trouble = describe(error)
            if seen.get(folder) != trouble:
                log.warning(
                    "The output in %s cannot be read yet (%s). If it is complete, write a file "
                    "%r there, with the reason, to give it up.", folder, trouble, _FAILED,
                )  # fmt: skip
            seen[folder] = trouble
            return None
        if found is None:
            return None
        try:
            results = results_of(found, bool(atoms.pbc.all()))
        except Exception as error:
            return failed(describe(error), seconds)
        return label_from(atoms, results, seconds)

    def _read(self, folder: Path) -> Any:
        if self.read is not None:
            return self.read(folder)
        path = folder / self.output
        if not path.exists() or time.time() - path.stat().st_mtime < self.settle:
            return None
        found = ase.io.read(str(path), index=-1, do_not_split_by_at_sign=True)
        if found.calc is None or found.calc.results.get("energy") is None:
            # Programs write as they go: the structure is there long before its energy.
            raise ValueError(f"there is no energy in {path.name}")
        return found


def _duration(folder: Path) -> float:
    """Seconds from the first file, the input, to the last."""
    times = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # calculations have files for a moment
            times.append(path.stat().st_mtime)
    return max(times, default=0.0) - min(times, default=0.0)
