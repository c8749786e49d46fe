"""What is on a subject: pattern, emblem, stripes, gloss, and what a live one wears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .pen import RGB, WHITE, Pen, mix
from .shapes import XY, Points, blob, box, cross, curve, heart, moon, oval, polygon, ribbon, star

INK: RGB = (34, 28, 44)
EMBLEM = 5.7  # half width of an emblem, in units: more than 9 px across at the smallest scale
Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """What a class needs to draw a subject; a, b, c: its proportions, each -1..1."""

    main: RGB
    second: RGB
    accent: RGB
    pattern: str
    emblem: str
    striped: bool
    shiny: bool
    a: float
    b: float
    c: float

    @property
    def deep(self) -> RGB:
        """The main colour one step darker (lighter when nearly black already)."""
        return mix(self.main, WHITE, 0.2) if sum(self.main) < 200 else mix(self.main, INK, 0.3)

    @property
    def pale(self) -> RGB:
        """The main colour, much lighter."""
        return mix(self.main, (255, 250, 240), 0.68)


@dataclass(frozen=True)
class Anchors:
    """Where a live subject wears things, in its units.

    top, top_width: where a hat sits. eyes, apart, eye: height of the eyes, half the distance
    between them, radius of a lens. neck, neck_width: height and half width of the neck.
    """

    top: float
    top_width: float
    eyes: float
    apart: float
    eye: float
    neck: float
    neck_width: float


def _dots(pen: Pen, bounds: Bounds, look: Look) -> None:
    x0, y0, x1, y1 = bounds
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    for row in range(-4, 5):
        for column in range(-4, 5):
            x, y = cx + (column + row % 2 / 2) * 8.4, cy + row * 6.6
            if x0 - 3 < x < x1 + 3 and y0 - 3 < y < y1 + 3:
                pen.fill(oval(x, y, 2.5, 2.5), look.second)


def _checks(pen: Pen, bounds: Bounds, look: Look) -> None:
    # A belt of squares, not an all-over chequerboard: the main colour must stay the larger part.
    x0, y0, x1, y1 = bounds
    cx, cy, side = (x0 + x1) / 2, (y0 + y1) / 2 + 1, 5.0
    for row in range(-1, 1):
        for column in range(-5, 5):
            if (row + column) % 2:
                x, y = cx + column * side, cy + row * side
                pen.fill(box(x, y, x + side, y + side), look.second)


def _band(pen: Pen, bounds: Bounds, look: Look) -> None:
    x0, y0, x1, y1 = bounds
    cy, half = (y0 + y1) / 2 + 1, 0.15 * (y1 - y0)
    pen.fill(box(x0 - 9, cy - half, x1 + 9, cy + half), look.second)


def _patches(pen: Pen, bounds: Bounds, look: Look) -> None:
    x0, y0, x1, y1 = bounds
    w, h = x1 - x0, y1 - y0
    wobble = look.a * 0.06
    for fx, fy, r in ((0.1, 0.2, 0.27), (0.9, 0.46 + wobble, 0.25), (0.2 + wobble, 0.92, 0.26)):
        x, y, k = x0 + w * fx, y0 + h * fy, r * min((w + h) / 2, 1.35 * h)
        points: list[XY] = [
            (x - k, y), (x - 0.5 * k, y - 0.8 * k), (x + 0.5 * k, y - 0.9 * k),
            (x + k, y - 0.1 * k),
            (x + 0.6 * k, y + 0.8 * k), (x - 0.5 * k, y + 0.9 * k),
        ]  # fmt: skip
        pen.fill(blob(*points), look.second)


def _chevrons(pen: Pen, bounds: Bounds, look: Look) -> None:
    x0, y0, x1, y1 = bounds
    cx, w, step = (x0 + x1) / 2, (x1 - x0) / 2 + 4, max((y1 - y0) * 0.42, 7.5)
    for row in range(3):
        y = y0 - 1.5 + row * step
        drop = w * 0.55
        points = [(cx - w, y - drop / 2), (cx, y + drop / 2), (cx + w, y - drop / 2)]
        lower = [(x, y + 3.3) for x, y in reversed(points)]
        pen.fill(polygon(*points, *lower), look.second)


def _stripes(pen: Pen, bounds: Bounds, look: Look) -> None:
    x0, y0, x1, y1 = bounds
    cx = (x0 + x1) / 2
    for column in range(-5, 6):
        x = cx + column * 6.6
        pen.fill(box(x - 1.4, y0 - 9, x + 1.4, y1 + 9), look.second)


_PATTERNS: dict[str, Callable[[Pen, Bounds, Look], None]] = {
    "dots": _dots,
    "checks": _checks,
    "band": _band,
    "patches": _patches,
    "chevrons": _chevrons,
}


def _emblem(pen: Pen, at: XY, look: Look) -> None:
    """The emblem in the accent colour, rimmed with the main one to stand out from any pattern."""
    x, y = at
    if look.emblem == "none":
        return
    for r, colour in ((EMBLEM + 1.5, look.main), (EMBLEM, look.accent)):
        if look.emblem == "star":
            pen.fill(star(x, y, r * 1.12, inner=0.5), colour)
        elif look.emblem == "heart":
            pen.fill(heart(x, y, r), colour)
        elif look.emblem == "cross":
            pen.fill(cross(x, y, r), colour)
        elif look.emblem == "triangle":
            pen.fill(star(x, y + r * 0.2, r * 1.15, 3, 0.5), colour)
        elif look.emblem == "moon":
            pen.fill(moon(x, y, r), colour)
        elif look.emblem == "diamond":
            pen.fill(
                polygon((x, y - r * 1.1), (x + r * 0.9, y), (x, y + r * 1.1), (x - r * 0.9, y)),
                colour,
            )
        else:
            pen.fill(oval(x, y, r, r), colour)
    if look.emblem == "ring":
        pen.fill(oval(x, y, EMBLEM * 0.48, EMBLEM * 0.48), look.main)


def surface(
    pen: Pen,
    *outlines: Points,
    look: Look,
    emblem: XY | None = None,
    pattern: bool = True,
    dark: float = 0.33,
) -> None:
    """A part in the main colour, with the subject's pattern and emblem, shaded over all of it."""
    found = pen.mask(*outlines)
    if found is None:
        return
    mask, where = found
    layer = pen.layer(where, look.main)
    together = np.concatenate(outlines)
    (x0, y0), (x1, y1) = together.min(axis=0), together.max(axis=0)
    bounds = (float(x0), float(y0), float(x1), float(y1))
    if look.striped:
        _stripes(layer, bounds, look)
    elif pattern and look.pattern in _PATTERNS:
        _PATTERNS[look.pattern](layer, bounds, look)
    if emblem is not None:
        _emblem(layer, emblem, look)
    layer.shade(look.main, dark + 0.12 * look.shiny, 0.34 if look.shiny else 0.18)
    if look.shiny:
        w, h = bounds[2] - bounds[0], bounds[3] - bounds[1]
        x, y = bounds[0] + w * 0.27, bounds[1] + h * 0.24
        layer.fill(oval(x, y, max(w * 0.11, 1.5), max(h * 0.17, 1.6), 28), WHITE)
        layer.fill(oval(x - w * 0.04, y + h * 0.3, 1.1, 1.5, 10), WHITE)
        glint = polygon((x1 - w * 0.2, y0), (x1 - w * 0.08, y0), (x1 - w * 0.4, y1), (x1 - w * 0.52, y1))
        layer.fill(glint, WHITE, 0.42)
    pen.image.paste(layer.image, where, mask)


def sparkles(pen: Pen) -> None:
    """Four-tipped glints over a shiny subject."""
    for x, y, r in ((-12.5, -28.0, 5.2), (12.5, -20.0, 4.2), (-9.0, -7.0, 3.6)):
        pen.spot(x, y, r * 1.1, r * 1.1, (255, 252, 214), 0.75)
        pen.fill(star(x, y, r, 4, 0.26), WHITE)


def eye(pen: Pen, x: float, y: float, r: float, colour: RGB = INK) -> None:
    """A round eye with a glint at the upper left, on a thin light rim so that it shows on black."""
    pen.fill(oval(x, y, r + 0.55, r + 0.55), mix(WHITE, colour, 0.1))
    pen.fill(oval(x, y, r, r), colour)
    pen.fill(oval(x - r * 0.3, y - r * 0.35, r * 0.38, r * 0.38), WHITE)


def wear(pen: Pen, accessory: str, at: Anchors) -> None:
    """Draw an accessory over a finished live subject."""
    if "hat" in accessory:
        _hat(pen, at)
    elif "scarf" in accessory:
        _scarf(pen, at)
    else:
        _glasses(pen, at)


def _hat(pen: Pen, at: Anchors) -> None:
    red: RGB = (222, 22, 36)
    y, w = at.top + 1.6, at.top_width
    crown = box(-w * 0.66, y - 9.6, w * 0.66, y, 3.6)
    pen.solid(crown, red)
    pen.fill(box(-w * 0.66, y - 3.6, w * 0.66, y - 1.2), (255, 244, 226))
    pen.solid(box(-w * 1.16, y - 1.6, w * 1.16, y + 1.5, 1.5), red, 0.3, 0.2)


def _scarf(pen: Pen, at: Anchors) -> None:
    rainbow: tuple[RGB, ...] = (
        (228, 38, 44), (250, 140, 30), (252, 218, 50), (60, 178, 74), (48, 112, 226),
        (146, 66, 200),
    )  # fmt: skip
    y, w = at.neck, at.neck_width + 0.8
    fall = polygon((2.4, y), (8.0, y), (9.2, y + 12.6), (3.2, y + 12.6))
    bars = [(box(0, y + 1.2 + 2 * i, 12, y + 3.4 + 2 * i), c) for i, c in enumerate(rainbow)]
    pen.clipped(fall, bars, rainbow[0])
    wrap = ribbon(curve((-w, y - 0.8), (0, y + 1.5), (w, y - 0.8)), 5.0)
    step = (2 * w + 5) / 6
    left = -w - 2.5
    bars = [(box(left + i * step, y - 6, left + (i + 1) * step, y + 6), c) for i, c in enumerate(rainbow)]
    pen.clipped(wrap, bars, rainbow[0])


def _glasses(pen: Pen, at: Anchors) -> None:
    pink: RGB = (255, 52, 150)
    r = max(at.eye, 3.2)
    apart = max(at.apart, r + 0.8)
    pen.fill(box(-apart, at.eyes - 0.8, apart, at.eyes + 0.7), pink)
    for side in (-1, 1):
        pen.fill(oval(side * apart, at.eyes, r + 1.5, r + 1.4), pink)
        pen.fill(oval(side * apart, at.eyes, r - 0.1, r - 0.2), (226, 240, 250))
        pen.fill(oval(side * apart, at.eyes + 0.2, r * 0.5, r * 0.5), INK)
        pen.fill(oval(side * apart - r * 0.35, at.eyes - r * 0.4, r * 0.28, r * 0.28), WHITE)
