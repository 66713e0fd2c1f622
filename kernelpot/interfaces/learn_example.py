"""The settings file that ``kernelpot learn --example`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelpot.interfaces.learn_schema import LEARN_LAYOUT
from kernelpot.interfaces.settings_example import lines_of, sum_of_descriptors

__all__ = ["learn_example"]

_COPPER = {
    "structure": {"crystal": "Cu", "a": 3.61, "cubic": True, "supercell": "2x2x2"},
}
_RAMP = {"temperature": [300.0, 900.0]}
_SOON = {"coverage": 0.99}
_GIVEN: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "oracle": {
        "gpaw": {"mode": {"name": "pw", "ecut": 400.0}, "kpts": {"density": 3.0, "gamma": True}},
        "ase": {"calculator": "ase.calculators.lj.LennardJones", "parameters": {"epsilon": 0.01}},
        "python": {"function": "oracle.py:label"},
        "files": {"folder": "queue"},
    },
    "explore": {"band": {"final": "final.xyz"}, "pool": {"structures": "pool.xyz"}},
    "law": {
        "energy_below": {"minimum": -4.0, "tolerance": 0.01},
        "python": {"function": "laws.py:violation", "tolerance": 0.1},
    },
}
"""Values for keys without defaults, by section and kind."""
_OBSERVABLE = {"function": "observables.py:pressure", "tolerance": 0.1}
_RELEVANCE = {"function": "low_energy"}


def learn_example() -> str:
    """A settings file with every key, its meaning and its default.

    Returns
    -------
    str
        TOML, of a run that needs nothing but ASE; what else there may be is commented out.
    """
    of = LEARN_LAYOUT.sections
    lines = [
        "# Settings of `kernelpot learn`: every key with its default, but for coverage (0.999,",
        "# which takes thousands of environments that know nothing of one another). As it stands,",
        "# it learns copper from ASE's EMT potential in minutes.",
        "", "[start]", *lines_of(of["start"], given=_COPPER),
        "", "# What computes the labels; other kinds are below, commented out.",
        "[oracle]", *lines_of(LEARN_LAYOUT.tables["oracle"]["emt"]),
        *_others("oracle", "emt", "[oracle]"),
        "", "[learn]", *lines_of(of["learn"], given=_SOON),
        "", "# What moves structures, as many tables as you like; each explores in every round.",
        "[[explore]]", *lines_of(LEARN_LAYOUT.tables["explore"]["dynamics"], given=_RAMP),
        *_others("explore", "dynamics", "[[explore]]"),
        "", "# What is known of the true potential: candidates that violate it are more worth a",
        "# label. As many tables as you like.",
        *_others("law", "", "[[law]]"),
        "", "# What structures are worth beside what their labels tell.",
        *_commented(["[relevance]", *lines_of(of["relevance"], given=_RELEVANCE)]),
        "", "# What must have converged, too, before the run ends.",
        *_commented(["[observable]", *lines_of(of["observable"], given=_OBSERVABLE)]),
        "", "[descriptor]", *lines_of(LEARN_LAYOUT.tables["descriptor"]["soap"]),
        "", *sum_of_descriptors(),
        "", "[model]", *lines_of(of["model"]),
        "", "[output]", *lines_of(of["output"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _others(name: str, but: str, heading: str) -> list[str]:
    """Tables of all kinds but one, as comments."""
    lines = []
    for other, table in LEARN_LAYOUT.tables[name].items():
        if other != but:
            block = [heading, *lines_of(table, given=_GIVEN[name].get(other))]
            # The words for the kind itself are the same for all.
            lines += ["", *_commented([block[0], *block[2:]])]
    return lines


def _commented(lines: list[str]) -> list[str]:
    return ["# " + line for line in lines]
