"""Journals of runs as tests write them, and what a page must be."""

from __future__ import annotations

import datetime
import json
import math
import re
from html.parser import HTMLParser

from ase.build import bulk, molecule

from kernelpot.active.journal import Entry
from kernelpot.active.structure_json import structure_to_json

SCRIPT = "<script>alert('x')</script> & [red]\"quoted\"[/red]"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page, refused where a tag is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def check_page(text):
    """One file that loads nothing and runs nothing."""
    page = Page(text)
    assert "script" not in page.tags
    assert not {"src", "href", "onload"} & {name for name, _ in page.attributes}
    assert "url(" not in text
    assert not re.search(r'(?:cx|cy|r|x|y|width|height|d)="[^"]*(?:nan|inf)', text)
    return page


def refreshes(page):
    return ("http-equiv", "refresh") in page.attributes


def entries_of(contents, start=0.0, step=1.0):
    """Entries as they come from a file; a third number is the time."""
    made = []
    for k, (kind, content, *when) in enumerate(contents):
        seconds = when[0] if when else start + k * step
        stamp = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat()
        made.append(Entry(k, stamp, kind, json.loads(json.dumps(content))))
    return made


ETHANOL, COPPER = molecule("CH3CH2OH"), bulk("Cu", cubic=True)


def pick(atoms=ETHANOL, origin="dynamics at 600 K", reason="novelty", score=1.5, information=2.0):
    return {
        "structure": structure_to_json(atoms), "origin": origin, "step": 12, "reason": reason,
        "score": score, "information": information,
    }  # fmt: skip


def label(round_number, place, seconds=1.0, reason="", atoms=ETHANOL):
    structure = None if reason else structure_to_json(atoms)
    return {
        "round": round_number, "place": place, "structure": structure, "reason": reason,
        "seconds": seconds,
    }  # fmt: skip


def explored(round_number, explorer=0, name="dynamics", **more):
    return {
        "round": round_number, "explorer": explorer, "name": name, "threshold": 0.2,
        "seconds": 3.0, "n_steps": 100, "finished": True, "note": name, "last": None,
        "n_candidates": 5, "sigma": [0.1, 0.3, 0.2], "observable": None,
    } | more  # fmt: skip


def surprise(error, expected, inside):
    return {
        "error": error, "expected": expected, "inside": inside, "energy_error": 0.0,
        "energy_expected": 0.0,
    }  # fmt: skip


def learned(round_number, surprises=(), why="2 new", how="update"):
    return {
        "round": round_number, "how": how, "why": why, "surprises": list(surprises),
        "seconds": 0.5, "fingerprint": "0", "doubted": [], "maintained": "", "maintenance": 0.0,
    }  # fmt: skip


def judged(round_number, stop=False, seconds=10.0, text="not yet", value=math.nan):
    one = {"name": "plateau", "met": stop, "value": value, "target": 0.1, "text": text}
    return {
        "round": round_number, "stop": stop, "why": text, "criteria": [one], "seconds": seconds,
    }  # fmt: skip


def run_settings(most_labels=10, explorers=("a",), given=()):
    images = [structure_to_json(atoms) for atoms in given]
    return {"most_labels": most_labels, "explorers": list(explorers), "given": images}


def two_rounds():
    return [
        ("settings", run_settings(given=[ETHANOL]), 0.0),
        ("picked", {"round": 0, "structures": [pick(), pick(), pick()]}, 0.0),
        # At once from 0 to 4 and from 1 to 5, and one from 6 to 7 that fails: six seconds.
        ("label", label(0, 1, 4.0), 4.0),
        ("label", label(0, 0, 4.0), 5.0),
        ("label", label(0, 2, 1.0, reason="SCF " + SCRIPT), 7.0),
        ("learned", learned(0, how="fit"), 8.0),
        ("judged", judged(0), 9.0),
        ("explored", explored(1), 12.0),
        ("picked", {"round": 1, "structures": [pick(), pick(reason=SCRIPT, origin=SCRIPT)]}, 13.0),
        ("label", label(1, 0, 2.0), 15.0),
        ("label", label(1, 1, 2.0), 17.0),
        ("learned", learned(1, [surprise(0.3, 0.2, 0.8), surprise(0.4, 0.3, 1.0)]), 18.0),
        ("judged", judged(1, True, text="enough " + SCRIPT, value=0.01), 19.0),
        ("ended", {"why": "enough " + SCRIPT}, 20.0),
    ]
