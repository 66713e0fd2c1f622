"""Small pictures of structures as SVG: atoms as circles, the nearest in front."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors

from kernelpot.conventions import Float, as_float

__all__ = ["element_legend", "picture"]

_SIZE = 120
_MOST = 160
"""Atoms that are drawn, those in front."""
_BOND = 1.2
"""Atoms nearer than so many times the sum of their covalent radii have a line between them."""
_EDGES = [(a, b) for a in range(8) for b in range(8) if a < b and (a ^ b).bit_count() == 1]


def picture(atoms: Atoms) -> str:
    """A structure, seen along its thinnest direction; crystals obliquely, with their cell.

    Parameters
    ----------
    atoms : Atoms
        Any structure; of a large one the atoms in front are drawn.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    title = f"<title>{atoms.get_chemical_formula()}</title>"
    opening = f'<svg viewBox="0 0 {_SIZE} {_SIZE}" role="img">{title}'
    if not len(atoms) or not np.isfinite(atoms.positions).all():
        return opening + "</svg>"
    periodic = bool(atoms.pbc.any())
    turn_cc = _oblique() if periodic else _flat(atoms.positions)
    shown_nc = atoms.positions @ turn_cc
    corners_kc = _corners(atoms.cell.array) @ turn_cc if periodic else np.zeros((0, 3))
    radius_n = (0.75 if periodic else 0.55) * covalent_radii[atoms.numbers]
    # What is in the picture decides its scale: atoms with their radii, and the cell.
    low_c = np.min([*(shown_nc - radius_n[:, None]), *corners_kc], axis=0)
    high_c = np.max([*(shown_nc + radius_n[:, None]), *corners_kc], axis=0)
    scale = 0.94 * _SIZE / max(float((high_c - low_c)[:2].max()), 1e-3)
    middle_c = 0.5 * (low_c + high_c)

    def place(points_nc: Float) -> Float:
        xy_nc = (points_nc - middle_c)[:, :2] * [scale, -scale]
        return xy_nc + 0.5 * _SIZE

    order = np.argsort(shown_nc[:, 2], kind="stable")[-_MOST:]
    parts = [opening]
    if periodic:
        parts.append(_lines(place(corners_kc), _EDGES, "#999", 1.0))
    else:
        # The radii have a factor for the picture; bonds are of the whole ones.
        near = _bonds(atoms.positions[order], covalent_radii[atoms.numbers[order]])
        parts.append(_lines(place(shown_nc[order]), near, "#666", max(0.12 * scale, 1.0)))
    for k, (x, y) in zip(order, place(shown_nc[order]), strict=True):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius_n[k] * scale:.1f}" '
            f'fill="{_colour(atoms.numbers[k])}" stroke="#444" stroke-width=".6"/>'
        )
    return "".join(parts) + "</svg>"


def element_legend(numbers: Iterable[int]) -> str:
    """The colours of elements.

    Parameters
    ----------
    numbers : Iterable[int]
        Atomic numbers.

    Returns
    -------
    str
        HTML.
    """
    return " ".join(
        f'<span class="element"><i style="background:{_colour(z)}"></i>{chemical_symbols[z]}</span>'
        for z in sorted(set(numbers))
    )


def _colour(number: int) -> str:
    red, green, blue = (round(255 * part) for part in jmol_colors[number])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _flat(positions_nc: Float) -> Float:
    """Rotation that shows the two longest directions; heavy ends do not flip from one to another.

    The sign of each direction is that of the third moment, so that alike structures look alike.
    """
    centred_nc = positions_nc - positions_nc.mean(axis=0)
    _, _, axes_kc = np.linalg.svd(centred_nc, full_matrices=True)
    along_nk = centred_nc @ axes_kc.T
    axes_kc[np.sum(along_nk**3, axis=0) < 0.0] *= -1.0
    if np.linalg.det(axes_kc) < 0.0:
        axes_kc[2] *= -1.0
    return axes_kc.T


def _oblique() -> Float:
    """Turned by 12 degrees about the vertical, and tipped by as many towards the viewer."""
    c, s = np.cos(np.radians(12.0)), np.sin(np.radians(12.0))
    about_y = as_float([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    about_x = as_float([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    return (about_x @ about_y).T


def _corners(cell_cc: Float) -> Float:
    bits_kc = as_float([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)])
    return bits_kc @ cell_cc


def _bonds(positions_nc: Float, radius_n: Float) -> list[tuple[int, int]]:
    apart_nn = np.linalg.norm(positions_nc[:, None] - positions_nc, axis=2)
    near_nn = apart_nn < _BOND * (radius_n[:, None] + radius_n)
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(near_nn, 1))]


def _lines(xy_nc: Float, pairs: list[tuple[int, int]], colour: str, width: float) -> str:
    if not pairs:
        return ""
    path = "".join(
        f"M{xy_nc[a, 0]:.1f} {xy_nc[a, 1]:.1f}L{xy_nc[b, 0]:.1f} {xy_nc[b, 1]:.1f}"
        for a, b in pairs
    )
    return f'<path d="{path}" stroke="{colour}" stroke-width="{width:.1f}" fill="none"/>'
