"""A run as a page for the browser: one file that needs nothing else, ``run.html`` in its folder.

The loop writes it anew after every round; `page_of` makes it from the journal at any time.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from html import escape
from os import PathLike
from pathlib import Path

from kernelpot.active.charts import calibration_chart, learning_chart, parity_chart, time_chart
from kernelpot.active.history import History
from kernelpot.active.journal import read_entries
from kernelpot.active.pictures import element_legend, picture
from kernelpot.active.standing import Acquired, Standing, duration, number, percent, standing
from kernelpot.active.stopping import Criterion
from kernelpot.active.structure_json import structure_from_json
from kernelpot.whole_files import replacing

__all__ = ["PAGE", "html_of", "page_of", "write_page"]

PAGE = "run.html"
"""Its name in the folder of the run."""

_REFRESH = 10
"""Seconds after which a page of a run that has not ended loads itself again."""
_PICTURES = 48
_ROWS = 200
"""Structures in the gallery, and rows of the tables: the last ones."""


def page_of(folder: str | PathLike[str]) -> Path:
    """Write the page of a run from its journal, also while another process writes that.

    Parameters
    ----------
    folder : str | PathLike[str]
        Of the run.

    Returns
    -------
    Path
        Of the page, ``run.html`` in the folder.

    Raises
    ------
    JournalError
        If there is no run, or its journal is damaged.
    """
    return write_page(folder, History(read_entries(folder)))


def write_page(folder: str | PathLike[str], history: History) -> Path:
    """Write the page of a run whose history is at hand, whole or not at all.

    Parameters
    ----------
    folder : str | PathLike[str]
        Of the run.
    history : History
        As far as it has come.

    Returns
    -------
    Path
        Of the page.
    """
    path = Path(folder) / PAGE
    text = html_of(path.resolve().parent.name, history)
    with replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))
    return path


def html_of(name: str, history: History) -> str:
    """The page of a run.

    Parameters
    ----------
    name : str
        Of the run, for people.
    history : History
        As far as it has come.

    Returns
    -------
    str
        HTML, with all that it needs in it; it grows by some tens of bytes for each label.
    """
    now = standing(history)
    refresh = "" if now.ended else f'<meta http-equiv="refresh" content="{_REFRESH}">'
    charts = (
        learning_chart(now.turns, now.acquired),
        parity_chart(now.acquired),
        calibration_chart(now.acquired),
        time_chart(now.turns),
    )
    figures = "".join(f"<figure>{one}</figure>" for one in charts)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{refresh}
<meta name="viewport" content="width=device-width">
<title>{escape(name)}: {now.n_labels} labels, {escape(now.doing)}</title>
<style>{_STYLE}</style></head><body>
{_headline(name, now)}
{_criteria(now.criteria)}
<section class="charts">{figures}</section>
{_gallery(now.acquired)}
{_structures(now.acquired)}
{_rounds(now)}
<footer>From the journal of the run by kernelpot. Errors of structures are root mean squares of
force components, before the structure was learned.</footer>
</body></html>
"""


def _headline(name: str, now: Standing) -> str:
    # A run that was killed looks like one that goes on: only the time of its last entry tells.
    state, badge = ("ended", "done") if now.ended else ("not ended", "open")
    failed = f", {now.n_failed} failed" if now.n_failed else ""
    part = 100.0 * now.n_labels / now.most_labels if now.most_labels else 0.0
    n_rounds = len(now.turns)
    share = f" ({100.0 * now.labelling / now.seconds:.0f} % for labels)" if now.seconds else ""
    facts = [
        (
            "labels",
            f"{now.n_labels} of {now.most_labels}",
            f"in {n_rounds} round{'' if n_rounds == 1 else 's'}{failed}",
        ),
        ("error of new labels", number(now.last("error")), "eV/A, before they were learned"),
        ("expected of them", number(now.last("expected")), "eV/A"),
        ("inside 90 % intervals", percent(now.inside), "of the last 40 structures"),
        ("expected on explorations", number(now.last("sigma")), "eV/A, median of the largest"),
        ("threshold", number(now.last("threshold")), "eV/A; above it a label is wanted"),
        ("time", duration(now.seconds), f"at work{share}"),
    ]
    cards = "".join(
        f"<div><span>{escape(title)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>"
        for title, value, note in facts
    )
    what = f"Ended: {now.ended}" if now.ended else f"Round {max(n_rounds - 1, 0)}: {now.doing}"
    return (
        f'<header><h1>{escape(name)} <em class="{badge}">{state}</em></h1>'
        f'<p class="what">{escape(what)}</p>'
        f'<div class="bar"><i style="width:{min(part, 100.0):.1f}%"></i></div>'
        f'<div class="facts">{cards}</div>'
        f"<p>Begun {_clock(now.begun)}; last entry of the journal {_clock(now.latest)}.</p>"
        "</header>"
    )


def _criteria(criteria: Sequence[Criterion]) -> str:
    if not criteria:
        return ""
    rows = "".join(
        f'<tr><td class="mark {"met" if one.met else "open"}">{"✓" if one.met else "·"}</td>'
        f"<td>{escape(one.name)}</td><td>{escape(one.text)}</td></tr>"
        for one in criteria
    )
    return f'<section><h2>When to stop</h2><table class="criteria">{rows}</table></section>'


def _gallery(acquired: Sequence[Acquired]) -> str:
    last = list(reversed(acquired[-_PICTURES:]))
    if not last:
        return ""
    cards, numbers = [], set()
    for one in last:
        atoms = structure_from_json(one.pick["structure"])
        numbers |= set(atoms.numbers.tolist())
        failed = one.label is not None and one.label.atoms is None
        state = "to come" if one.label is None else "failed" if failed else ""
        state = "not believed" if one.doubted else state
        lines = [
            f"<b>{one.number}</b> {escape(str(one.pick['reason']))}"
            + (f' <em class="bad">{state}</em>' if state else ""),
            escape(str(one.pick["origin"])),
            f"score {number(one.pick['score'])}, {number(one.pick['information'])} nats",
        ]
        if math.isfinite(one.error):
            lines.append(f"error {number(one.error)} of {number(one.expected)} expected")
        cards.append(f"<figure>{picture(atoms)}<p>{'<br>'.join(lines)}</p></figure>")
    return (
        f"<section><h2>Structures acquired <small>the last {len(last)}, newest first</small></h2>"
        f'<p>{element_legend(numbers)}</p><div class="gallery">{"".join(cards)}</div></section>'
    )


def _structures(acquired: Sequence[Acquired]) -> str:
    rows = []
    for one in reversed(acquired[-_ROWS:]):
        label = one.label
        if label is None:
            result = "to come"
        else:
            result = f"failed: {label.reason}" if label.atoms is None else "learned"
            if label.atoms is not None and not math.isfinite(one.error):
                result = "labelled"
            result = f"not learned: {one.doubted}" if one.doubted else result
        rows.append(
            [
                str(one.number), str(one.round), str(one.pick["origin"]), str(one.pick["step"]),
                str(one.pick["reason"]), number(one.pick["score"]),
                number(one.pick["information"]), number(one.expected), number(one.error),
                percent(one.inside), "" if label is None else duration(label.seconds), result,
            ]
        )  # fmt: skip
    head = [
        "", "round", "origin", "step", "reason", "score", "information (nats)", "expected (eV/A)",
        "error (eV/A)", "inside 90 %", "label took", "label",
    ]  # fmt: skip
    return _table(f"Structures, the last {len(rows)}", head, rows)


def _rounds(now: Standing) -> str:
    rows = [
        [
            str(one.number), str(one.n_known), str(one.n_steps), str(one.n_candidates),
            str(one.n_good), str(one.n_failed), number(one.threshold), number(one.sigma),
            number(one.expected), number(one.error), percent(one.inside), one.learned,
            *(duration(s) for s in (one.exploring, one.labelling, one.learning, one.other)),
        ]
        for one in reversed(now.turns[-_ROWS:])
    ]  # fmt: skip
    head = [
        "", "labels before", "steps", "candidates", "new labels", "failed", "threshold (eV/A)",
        "on explorations (eV/A)", "expected (eV/A)", "error (eV/A)", "inside 90 %", "learned",
        "exploring", "labelling", "learning", "other",
    ]  # fmt: skip
    return _table(f"Rounds, the last {len(rows)}", head, rows)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    if not body:
        return ""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f'<section><h2>{escape(title)}</h2><div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _clock(timestamp: float) -> str:
    if not math.isfinite(timestamp):
        return "-"
    when = datetime.datetime.fromtimestamp(timestamp, datetime.timezone.utc)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:18px;color:#222}
h1{font-size:25px;margin:0}h2{font-size:18px;margin:26px 0 8px}h2 small{color:#777;font-weight:400}
em{font-style:normal}h1 em{font-size:14px;padding:3px 10px;border-radius:12px;color:#fff;
vertical-align:middle}h1 .open{background:#0072b2}.done{background:#009e73}
.what{font-size:16px;margin:6px 0 10px}.bar{height:8px;background:#e6e6e6;border-radius:4px}
.bar i{display:block;height:8px;background:#0072b2;border-radius:4px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(145px,1fr));gap:10px;margin:14px 0}
.facts div{border:1px solid #ddd;border-radius:8px;padding:8px 10px}
.facts span,.facts small{display:block;color:#666;font-size:12.5px}
.facts b{font-size:19px;white-space:nowrap}
header>p:last-child,footer{color:#777;font-size:13px}footer{margin-top:30px}
table{border-collapse:collapse;font-size:13.5px}td,th{padding:3px 9px;text-align:left;
border-bottom:1px solid #e6e6e6;vertical-align:top}th{color:#555;font-weight:600;position:sticky;
top:0;background:#fff}.criteria td{font-size:14.5px}.mark{font-weight:700;text-align:center;
width:22px;color:#fff}.met{background:#009e73}.open{background:#bbb}
.scroll{max-height:420px;overflow:auto;border:1px solid #ddd;border-radius:8px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:14px;
margin-top:22px}figure{margin:0;border:1px solid #ddd;border-radius:8px;padding:6px}
svg{display:block;width:100%;font:12.5px system-ui,sans-serif}svg .title{font-size:15px;
font-weight:600}.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));
gap:10px}.gallery p{font-size:12.5px;margin:4px 2px;color:#444}.gallery svg{height:130px}
.bad{color:#d55e00;font-weight:600}.element{margin-right:12px;font-size:13px}.element i{
display:inline-block;width:12px;height:12px;border-radius:6px;border:1px solid #444;
margin-right:4px;vertical-align:-1px}
"""
