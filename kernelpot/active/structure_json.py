"""Structures and labels as JSON, to the bit: arrays as base64 of their bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from kernelpot.active.records import Candidate, Label

__all__ = [
    "candidate_from_json",
    "candidate_to_json",
    "label_from_json",
    "label_to_json",
    "structure_from_json",
    "structure_hash",
    "structure_to_json",
]

_ARRAY = "base64"


def structure_to_json(atoms: Atoms) -> dict[str, Any]:
    """All of a structure that a run needs again.

    Parameters
    ----------
    atoms : Atoms
        With labels where its calculator is a SinglePointCalculator. Constraints and other
        calculators are left out, and what in ``info`` and ``arrays`` is neither numbers, texts,
        nor lists and dicts of these.

    Returns
    -------
    dict[str, Any]
        JSON types: "numbers", "positions" and the other arrays, "cell", "pbc", "info", "labels".
    """
    record = {
        "arrays": {
            name: _to_json(array)
            for name, array in atoms.arrays.items()
            if not array.dtype.hasobject
        },
        "cell": _to_json(atoms.cell[:]),
        "pbc": [bool(p) for p in atoms.pbc],
        "info": {
            name: _to_json(value)
            for name, value in atoms.info.items()
            if isinstance(name, str) and _storable(value)
        },
    }
    if np.any(atoms.get_celldisp()):
        record["celldisp"] = _to_json(atoms.get_celldisp())
    if isinstance(atoms.calc, SinglePointCalculator):
        record["labels"] = {k: _to_json(v) for k, v in atoms.calc.results.items() if _storable(v)}
    return record


def structure_from_json(record: dict[str, Any]) -> Atoms:
    """A structure from what `structure_to_json` made of it.

    Parameters
    ----------
    record : dict[str, Any]
        Also after a way through JSON.

    Returns
    -------
    Atoms
        The same to the bit.
    """
    arrays = {name: _from_json(array) for name, array in record["arrays"].items()}
    atoms = Atoms(
        numbers=arrays.pop("numbers"),
        positions=arrays.pop("positions"),
        cell=_from_json(record["cell"]),
        pbc=record["pbc"],
        celldisp=_from_json(record["celldisp"]) if "celldisp" in record else None,
        info={name: _from_json(value) for name, value in record["info"].items()},
    )
    for name, array in arrays.items():
        atoms.new_array(name, array)
    if "labels" in record:
        labels = {name: _from_json(value) for name, value in record["labels"].items()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def structure_hash(atoms: Atoms) -> str:
    """Of all that a label may depend on: a structure that has been labelled is known by it.

    Parameters
    ----------
    atoms : Atoms
        Momenta, constraints, calculator and labels do not count.

    Returns
    -------
    str
        Twelve hexadecimal digits.
    """
    still = atoms.copy()  # without its calculator
    still.arrays.pop("momenta", None)
    text = json.dumps(structure_to_json(still), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def candidate_to_json(candidate: Candidate, information: float) -> dict[str, Any]:
    """A candidate as JSON can hold it.

    Parameters
    ----------
    candidate : Candidate
        Of a round.
    information : float
        What it is expected to tell; NaN where nobody knows.

    Returns
    -------
    dict[str, Any]
        With its structure as `structure_to_json` makes it.
    """
    kept = {**candidate._asdict(), "information": information}
    return {"structure": structure_to_json(kept.pop("atoms")), **kept}


def candidate_from_json(record: dict[str, Any]) -> Candidate:
    """A candidate from what `candidate_to_json` made of it.

    Parameters
    ----------
    record : dict[str, Any]
        Also after a way through JSON; other keys do not count.

    Returns
    -------
    Candidate
        The same to the bit.
    """
    fields = {name: record[name] for name in Candidate._fields if name != "atoms"}
    return Candidate(structure_from_json(record["structure"]), **fields)


def label_to_json(label: Label) -> dict[str, Any]:
    """A label, or the reason why there is none.

    Parameters
    ----------
    label : Label
        As from the oracle.

    Returns
    -------
    dict[str, Any]
        JSON types: "structure" (None where it failed), "reason", "seconds".
    """
    structure = None if label.atoms is None else structure_to_json(label.atoms)
    return {"structure": structure, "reason": label.reason, "seconds": float(label.seconds)}


def label_from_json(record: dict[str, Any]) -> Label:
    """A label from what `label_to_json` made of it.

    Parameters
    ----------
    record : dict[str, Any]
        Also after a way through JSON; other keys do not count.

    Returns
    -------
    Label
        The same to the bit.
    """
    structure = record["structure"]
    atoms = None if structure is None else structure_from_json(structure)
    return Label(atoms, record["reason"], record["seconds"])


def _storable(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return not value.dtype.hasobject
    if isinstance(value, (list, tuple)):
        return all(map(_storable, value))
    if isinstance(value, dict):
        return (
            _ARRAY not in value
            and all(isinstance(k, str) for k in value)
            and all(map(_storable, value.values()))
        )
    return value is None or isinstance(value, (str, bool, int, float))


def _to_json(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
        return {"dtype": array.dtype.str, "shape": list(array.shape), _ARRAY: content}
    if isinstance(value, (list, tuple)):
        return [_to_json(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _to_json(entry) for key, entry in value.items()}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and _ARRAY in value:
        array = np.frombuffer(base64.b64decode(value[_ARRAY]), dtype=value["dtype"])
        array = array.reshape(value["shape"]).copy()
        return array if array.ndim else array[()]
    if isinstance(value, list):
        return [_from_json(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _from_json(entry) for key, entry in value.items()}
    return value
