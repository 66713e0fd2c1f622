"""Figures of a run as SVG, in milliseconds and without a library: they are drawn every round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from kernelpot.active.standing import Acquired, Turn
from kernelpot.conventions import Float, as_float
from kernelpot.report_figures import COLOURS

__all__ = ["calibration_chart", "learning_chart", "parity_chart", "time_chart"]

_WIDTH, _HEIGHT = 560, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 58, 46
_BLUE, _RED, _GREEN = COLOURS[0], COLOURS[1], COLOURS[2]
_RUNNING = 40
"""Structures over which the share inside intervals is averaged."""
_NAMED = 200
"""The last points, whose numbers are shown under the mouse."""
_LEAST = 1e-9
"""Smallest number on a logarithmic axis, and the inverse of the largest: others are at its end."""
_FEW = 8
"""Bars for which there is room at least, so that the first is no wall."""
_MOST_ROUNDS = 80
"""Points of lines and bars at most: of more rounds each is the mean of several."""


class _Axis(NamedTuple):
    low: float
    high: float
    log: bool
    first: float  # where low is, in the picture
    last: float
    whole: bool = False  # counts have no ticks between them

    def places(self, values: Sequence[float] | Float) -> Float:
        """Where values are in the picture, not farther out than its frame."""
        value_k, low, high = as_float(values), self.low, self.high
        if self.log:
            value_k, low, high = np.log(value_k), math.log(low), math.log(high)
        part_k = np.clip((value_k - low) / (high - low), 0.0, 1.0)
        return self.first + part_k * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round numbers: 1, 2 and 5 times powers of ten, of logarithms of a wide range only 1."""
        if not self.log:
            rough = (self.high - self.low) / 5.0
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= 0.999 * rough)
            step = max(step, 1.0) if self.whole else step
            first = math.ceil(self.low / step - 1e-6)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-6) + 1)]
        least, most = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        wide = most - least
        steps = (1.0, 2.0, 5.0) if wide <= 3 else (1.0,)
        every = max(1, wide // 6)
        found = [m * 10.0**k for k in range(least, most + 1, every) for m in steps]
        return [one for one in found if 0.999 * self.low <= one <= 1.001 * self.high]


def learning_chart(turns: Sequence[Turn], acquired: Sequence[Acquired]) -> str:
    """Errors of new labels before they are learned, over the number of labels that were known.

    Parameters
    ----------
    turns : Sequence[Turn]
        Rounds.
    acquired : Sequence[Acquired]
        Structures; each has a dot.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    title = "Learning curve: new labels before they are learned"
    series = {
        "true": [one.error for one in turns],
        "expected": [one.expected for one in turns],
        "expected on explorations": [one.sigma for one in turns],
        "threshold": [one.threshold for one in turns],
    }
    dots = [(one.n_known, one.error) for one in acquired if _positive(one.error)]
    y = _log_axis([*(v for of in series.values() for v in of), *(d[1] for d in dots)], False)
    if y is None:
        return _empty(title, "errors are known from the second round on")
    known = [one.n_known for one in turns]
    x = _Axis(0.0, 1.05 * max(*known, 1), False, _LEFT, _WIDTH - _RIGHT, whole=True)
    parts = [_frame(x, y, "labels that the model knew", "force error (eV/A)")]
    parts.append(_dots(x, y, dots, _RED, 4.0, 0.45))
    styles = ((_RED, 2.4, ""), (_BLUE, 2.4, ""), (_GREEN, 1.6, ""), ("#333", 1.4, "6 4"))
    spans = _spans(len(turns))
    middles = [_mean(known[a:b]) for a, b in spans]
    for values, (colour, width, dash) in zip(series.values(), styles, strict=True):
        means = [_mean(values[a:b]) for a, b in spans]
        parts.append(_line(x, y, middles, means, colour, width, dash))
    names = zip(series, (style[0] for style in styles), strict=True)
    return _svg(title, parts, list(names))


def parity_chart(acquired: Sequence[Acquired]) -> str:
    """True against expected error of each structure before it was learned, logarithmic.

    Parameters
    ----------
    acquired : Sequence[Acquired]
        Structures; those of the last round stand out.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    title = "Expected and true error of each structure"
    known = [one for one in acquired if _positive(one.error) and _positive(one.expected)]
    both = [value for one in known for value in (one.expected, one.error)]
    x, y = _log_axis(both, True), _log_axis(both, False)
    if x is None or y is None:
        return _empty(title, "no structure has been predicted and labelled yet")
    parts = [_frame(x, y, "expected error (eV/A)", "true error (eV/A)")]
    for factor, dash in ((1.0, ""), (2.0, "4 4"), (0.5, "4 4")):
        low, high = x.low * max(1.0, 1.0 / factor), x.high / max(1.0, factor)
        ends = [low, high]
        parts.append(_line(x, y, ends, [factor * one for one in ends], "#888", 1.2, dash))
    last = known[-1].round
    plain = [(one.expected, one.error) for one in known[:-_NAMED]]
    parts.append(_dots(x, y, plain, _BLUE, 5.0, 0.45))
    for one in known[-_NAMED:]:
        px, py = x.places([one.expected])[0], y.places([one.error])[0]
        colour, opacity = (_RED, 0.95) if one.round == last else (_BLUE, 0.5)
        name = f"label {one.number}: expected {one.expected:.3g}, true {one.error:.3g} eV/A"
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.4" fill="{colour}" opacity="{opacity}">'
            f"<title>{name}</title></circle>"
        )
    names = [("last round", _RED), ("earlier ones", _BLUE), ("equal; factor of two", "#888")]
    return _svg(title, parts, names)


def calibration_chart(acquired: Sequence[Acquired]) -> str:
    """Share of forces within their 90 % intervals, before they were learned.

    Parameters
    ----------
    acquired : Sequence[Acquired]
        Structures; each has a dot, the line is the mean of the last forty.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    title = "Calibration before learning"
    known = [one for one in acquired if math.isfinite(one.inside)]
    if not known:
        return _empty(title, "no structure has been predicted and labelled yet")
    inside_k = 100.0 * as_float([one.inside for one in known])
    number_k = as_float([one.number for one in known])
    total_k = np.cumsum(inside_k)
    before_k = np.concatenate([np.zeros(min(_RUNNING, len(known))), total_k[:-_RUNNING]])
    mean_k = (total_k - before_k) / np.minimum(np.arange(len(known)) + 1, _RUNNING)
    low = max(0.0, 10.0 * math.floor((min(inside_k.min(), 80.0) - 1.0) / 10.0))
    x = _Axis(0.0, 1.05 * number_k[-1], False, _LEFT, _WIDTH - _RIGHT, whole=True)
    y = _Axis(low, 100.0, False, _HEIGHT - _BOTTOM, _TOP)
    upper, lower = y.places([95.0, 85.0])
    parts = [
        f'<rect x="{_LEFT}" y="{upper:.1f}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{lower - upper:.1f}" fill="{_GREEN}" opacity="0.15"/>',
        _frame(x, y, "structure", "forces within 90 % intervals (%)"),
        _dots(x, y, list(zip(number_k, inside_k, strict=True)), _BLUE, 5.0, 0.35),
    ]
    thin = np.unique(np.linspace(0, len(known) - 1, min(500, len(known))).astype(int))
    parts.append(_line(x, y, number_k[thin], mean_k[thin], _RED, 2.4, ""))
    names = [
        ("each structure", _BLUE), (f"mean of the last {_RUNNING}", _RED), ("85 to 95 %", _GREEN),
    ]  # fmt: skip
    return _svg(title, parts, names)


def time_chart(turns: Sequence[Turn]) -> str:
    """Seconds of each round: labels, and everything else.

    Parameters
    ----------
    turns : Sequence[Turn]
        Rounds.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    names = ("labelling", "exploring", "learning", "other")
    colours = (COLOURS[4], _GREEN, _BLUE, "#999")
    seconds_tk = as_float([[getattr(one, name) for name in names] for one in turns])
    if not seconds_tk.size or not seconds_tk.sum() > 0.0:
        return _empty("Time", "no round has been timed yet")
    spans = _spans(len(turns))
    mean_bk = as_float([seconds_tk[a:b].mean(axis=0) for a, b in spans])
    x = _Axis(-0.5, max(len(turns), _FEW) - 0.5, False, _LEFT, _WIDTH - _RIGHT, whole=True)
    y = _Axis(0.0, 1.05 * mean_bk.sum(axis=1).max(), False, _HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(x, y, "round", "seconds per round")]
    for (first, end), mean_k in zip(spans, mean_bk, strict=True):
        left, right = x.places([first - 0.4, end - 0.6])
        edges = y.places(np.concatenate([[0.0], np.cumsum(mean_k)]))
        for colour, lower, upper in zip(colours, edges[:-1], edges[1:], strict=True):
            if lower - upper > 0.05:
                parts.append(
                    f'<rect x="{left:.1f}" y="{upper:.1f}" width="{max(right - left, 0.5):.1f}" '
                    f'height="{lower - upper:.1f}" fill="{colour}"/>'
                )
    share_k = 100.0 * seconds_tk.sum(axis=0) / seconds_tk.sum()
    titles = [f"{name} {share:.0f} %" for name, share in zip(names, share_k, strict=True)]
    return _svg("Time", parts, list(zip(titles, colours, strict=True)))


def _spans(n: int) -> list[tuple[int, int]]:
    """First rounds, and those after the last, of as many parts as can be told apart."""
    each = math.ceil(n / _MOST_ROUNDS)
    return [(first, min(first + each, n)) for first in range(0, n, each)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(value / len(known) for value in known) if known else math.nan


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0.0


def _log_axis(values: Sequence[float], horizontal: bool) -> _Axis | None:
    known = [min(max(value, _LEAST), 1.0 / _LEAST) for value in values if _positive(value)]
    if not known:
        return None
    low, high = min(known) / 1.5, max(known) * 1.5
    ends = (_LEFT, _WIDTH - _RIGHT) if horizontal else (_HEIGHT - _BOTTOM, _TOP)
    return _Axis(low, high, True, *ends)


def _frame(x: _Axis, y: _Axis, x_title: str, y_title: str) -> str:
    parts = []
    for value in x.ticks():
        place = x.places([value])[0]
        parts.append(_grid(place, place, y.first, y.last))
        parts.append(_text(place, y.first + 17, f"{value:.4g}", "middle"))
    for value in y.ticks():
        place = y.places([value])[0]
        parts.append(_grid(x.first, x.last, place, place))
        parts.append(_text(x.first - 6, place + 4, f"{value:.4g}", "end"))
    middle = 0.5 * (y.first + y.last)
    parts.append(_text(0.5 * (x.first + x.last), y.first + 37, x_title, "middle"))
    parts.append(
        f'<text x="15" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 15 {middle:.1f})">{escape(y_title)}</text>'
    )
    return "".join(parts)


def _grid(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd" fill="none"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(
    x: _Axis,
    y: _Axis,
    values: Sequence[float] | Float,
    heights: Sequence[float] | Float,
    colour: str,
    width: float,
    dash: str,
) -> str:
    """Through the points that are known, with dots where these are few."""
    known = [
        (u, v)
        for u, v in zip(values, heights, strict=True)
        if math.isfinite(v) and (v > 0.0 or not y.log)
    ]
    if not known:
        return ""
    px, py = x.places([u for u, _ in known]), y.places([v for _, v in known])
    path = "L".join(f"{u:.1f} {v:.1f}" for u, v in zip(px, py, strict=True))
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    found = f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'
    # A single point is no line.
    return found + (_dots(x, y, known, colour, 6.0, 1.0) if len(known) == 1 else "")


def _dots(
    x: _Axis,
    y: _Axis,
    points: Sequence[tuple[float, float]],
    colour: str,
    size: float,
    opacity: float,
) -> str:
    """Many dots as one path of lines without length: ten bytes each."""
    if not points:
        return ""
    px, py = x.places([u for u, _ in points]), y.places([v for _, v in points])
    path = "".join(f"M{u:.0f} {v:.0f}h0" for u, v in zip(px, py, strict=True))
    return (
        f'<path d="{path}" stroke="{colour}" stroke-width="{size}" stroke-linecap="round" '
        f'opacity="{opacity}"/>'
    )


def _svg(title: str, parts: Sequence[str], names: Sequence[tuple[str, str]]) -> str:
    legend, left = [], float(_LEFT)
    for name, colour in names:
        legend.append(f'<rect x="{left:.0f}" y="33" width="12" height="12" fill="{colour}"/>')
        legend.append(_text(left + 16, 43.5, name, "start"))
        left += 30 + 6.3 * len(name)
    opening = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
    heading = f'<text x="{_LEFT}" y="19" class="title">{escape(title)}</text>'
    return opening + heading + "".join(legend) + "".join(parts) + "</svg>"


def _empty(title: str, why: str) -> str:
    return _svg(title, [_text(_WIDTH / 2, _HEIGHT / 2, why, "middle")], [])
