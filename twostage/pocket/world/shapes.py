"""Outlines: plain geometry as (n, 2) arrays of points, x to the right and y down.

Nothing here knows about colours or pictures; units are whatever the caller draws in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
XY = tuple[float, float]

_TURN = np.linspace(0.0, 2.0 * math.pi, 36, endpoint=False)
_CIRCLE: Points = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_STEPS = 6
_T = np.linspace(0.0, 1.0, _STEPS, endpoint=False)[:, None]


def polygon(*points: XY) -> Points:
    """Straight-sided outline through `points`."""
    return np.asarray(points, dtype=np.float64)


def oval(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """Ellipse at (cx, cy) with half axes rx, ry, turned by `turn` degrees clockwise."""
    points = _CIRCLE * (rx, ry)
    if turn:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        points = points @ np.array([[c, s], [-s, c]])
    return points + (cx, cy)


def box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Points:
    """Rectangle with corners rounded by radius r (clipped to half the shorter side)."""
    r = min(r, (x1 - x0) / 2, (y1 - y0) / 2)
    if r <= 0:
        return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    quarter = _CIRCLE[:10] * r
    flip_x, flip_y = np.array([-1.0, 1.0]), np.array([1.0, -1.0])
    return np.concatenate(
        [
            quarter + (x1 - r, y1 - r),
            (quarter * flip_x)[::-1] + (x0 + r, y1 - r),
            quarter * -1.0 + (x0 + r, y0 + r),
            (quarter * flip_y)[::-1] + (x1 - r, y0 + r),
        ]
    )


def _spline(p0: Points, p1: Points, p2: Points, p3: Points) -> Points:
    """Catmull-Rom pieces from p1 to p2, all pieces at once; returns (pieces * steps, 2)."""
    t = _T[None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.asarray(out.reshape(-1, 2))


def blob(*points: XY) -> Points:
    """Smooth closed outline through `points` (at least 3)."""
    p = np.asarray(points, dtype=np.float64)
    return _spline(np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0))


def curve(*points: XY) -> Points:
    """Smooth open path through `points` (at least 2)."""
    p = np.asarray(points, dtype=np.float64)
    padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    pieces = _spline(padded[:-3], padded[1:-2], padded[2:-1], padded[3:])
    return np.concatenate([pieces, p[-1:]])


def ribbon(path: Points, start: float, end: float | None = None) -> Points:
    """Outline of a stroke along `path`, `start` wide tapering to `end`, with round ends."""
    end = start if end is None else end
    half = np.linspace(start, end, len(path))[:, None] / 2
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1)
    turn = np.linspace(0.0, math.pi, 7)[:, None]
    tip = path[-1] + (side[-1] * np.cos(turn) + along[-1] * np.sin(turn)) * half[-1]
    tail = path[0] + (-side[0] * np.cos(turn) - along[0] * np.sin(turn)) * half[0]
    return np.concatenate([path + side * half, tip, (path - side * half)[::-1], tail])


def star(cx: float, cy: float, r: float, tips: int = 5, inner: float = 0.45) -> Points:
    """Star with `tips` tips of radius r; the notches sit at `inner` times r."""
    turn = np.arange(tips * 2) * math.pi / tips - math.pi / 2
    radius = np.where(np.arange(tips * 2) % 2 == 0, r, r * inner)
    return np.stack([cx + np.cos(turn) * radius, cy + np.sin(turn) * radius], axis=1)


def heart(cx: float, cy: float, r: float) -> Points:
    """Heart of half width r."""
    t = _TURN
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([cx + x * r / 16, cy + (y - 2) * r / 16], axis=1)


def moon(cx: float, cy: float, r: float) -> Points:
    """Crescent of outer radius r, open to the right."""
    a = np.linspace(math.radians(50), math.radians(310), 24)
    b = np.linspace(math.radians(292), math.radians(68), 20)
    outer = np.stack([np.cos(a), np.sin(a)], axis=1)
    inner = np.stack([0.36 + 0.76 * np.cos(b), 0.83 * np.sin(b)], axis=1)
    return np.concatenate([outer, inner]) * r + (cx + r * 0.15, cy)


def cross(cx: float, cy: float, r: float, arm: float = 0.38) -> Points:
    """Upright cross of half width r; `arm` is the half width of an arm as a part of r."""
    a = arm * r
    corner: Sequence[XY] = [
        (-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a),
        (a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a),
    ]  # fmt: skip
    return np.asarray(corner, dtype=np.float64) + (cx, cy)
