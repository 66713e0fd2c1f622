"""Whether a run that is taken up again is the one that was begun."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kernelpot.active.journal import JournalError
from kernelpot.potential import KernelPotential

__all__ = ["check_same", "in_words", "model_in_words"]


def in_words(value: Any) -> str:
    """Its repr, without what differs from process to process.

    Parameters
    ----------
    value : Any
        A setting.

    Returns
    -------
    str
        Without addresses in memory.
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def model_in_words(model: KernelPotential) -> dict[str, str]:
    """Parameters on which the numbers of a model depend.

    Parameters
    ----------
    model : KernelPotential
        Fitted or not.

    Returns
    -------
    dict[str, str]
        By name.
    """
    parameters = model.get_params(deep=False)
    del parameters["progress"]
    return {name: in_words(value) for name, value in parameters.items()}


def check_same(
    folder: Path,
    before: dict[str, Any],
    now: dict[str, Any],
    may_change: Collection[str] = (),
) -> None:
    """Refuse other settings than those with which a run was begun.

    Parameters
    ----------
    folder : Path
        Of the run.
    before : dict[str, Any]
        From its journal.
    now : dict[str, Any]
        JSON-ready.
    may_change : Collection[str]
        Names of settings that may be others.

    Raises
    ------
    JournalError
        With the first that differs.
    """
    for name, value in now.items():
        # As text, since NaN is not equal to itself and JSON knows no tuples.
        was, is_now = json.dumps(before.get(name)), json.dumps(value)
        if name in may_change or was == is_now:
            continue
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            check_same(folder, before[name], value)
        raise JournalError(
            f"The run in {folder} has another {name}: {was[:200]}, now {is_now[:200]}. Resume it"
            " with its own settings, or begin another run in another folder."
        )
