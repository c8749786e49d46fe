"""Surroundings in the open country, on a picture of 64 by 64 units; subjects stand near y = 54."""

from __future__ import annotations

import numpy as np

from .pen import RGB, WHITE, Pen, mix
from .shapes import XY, Points, blob, box, curve, oval, polygon, ribbon

Rng = np.random.Generator


def vary(rng: Rng, colour: RGB, amount: float = 9.0) -> RGB:
    """`colour` with each channel moved by up to `amount` of 255."""
    r, g, b = (int(v) for v in np.clip(np.asarray(colour) + rng.uniform(-amount, amount, 3), 0, 255))
    return r, g, b


def hills(rng: Rng, y: float, swing: float, count: int = 5) -> Points:
    """A rolling ridge around height y, closed below the picture."""
    path: list[XY] = [(-6 + i * 76 / count, y + float(rng.uniform(-swing, swing))) for i in range(count + 1)]
    return np.concatenate([curve(*path), polygon((70, 70), (-6, 70))])


def cloud(pen: Pen, x: float, y: float, r: float, colour: RGB = WHITE) -> None:
    """A flat-bottomed cloud about 4 r wide."""
    for dx, dy, k in ((-1.2, 0, 0.7), (0, -0.4, 1.0), (1.2, 0, 0.75)):
        pen.fill(oval(x + dx * r, y + dy * r, r * k, r * k * 0.8), colour)
    pen.fill(box(x - 1.9 * r, y, x + 1.95 * r, y + r * 0.6, r * 0.3), colour)


def sky(pen: Pen, rng: Rng, top: RGB, bottom: RGB, horizon: float, clouds: int) -> None:
    """A graded sky down to `horizon`, with that many clouds."""
    pen.wash(0, horizon + 1, vary(rng, top, 12), vary(rng, bottom, 8))
    for _ in range(clouds):
        x, y, r = rng.uniform(2, 62), rng.uniform(4, max(horizon * 0.5, 6)), rng.uniform(2.6, 4.4)
        cloud(pen, float(x), float(y), float(r), mix(WHITE, bottom, 0.1))


def leaf(pen: Pen, x: float, y: float, length: float, turn: float, colour: RGB) -> None:
    """A broad leaf from (x, y) towards `turn` degrees, its lower half darker."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    rotate = np.array([[c, s], [-s, c]])
    w = length * 0.24
    upper = curve((0, 0), (length * 0.35, -w), (length * 0.75, -w * 0.7), (length, 0))
    for side, tone in ((1.0, colour), (-1.0, mix(colour, (0, 24, 20), 0.3))):
        pen.fill((upper * (1.0, side)) @ rotate + (x, y), tone)


def pine(pen: Pen, x: float, y: float, h: float, colour: RGB, snow: bool = False) -> None:
    """A fir of height h standing at (x, y)."""
    pen.fill(box(x - h * 0.05, y - h * 0.18, x + h * 0.05, y), (86, 62, 48))
    for i in range(3):
        top, low, w = y - h * (1 - i * 0.2), y - h * (0.52 - i * 0.2), h * (0.19 + i * 0.06)
        pen.fill(polygon((x, top), (x + w, low), (x - w, low)), mix(colour, (10, 20, 30), 0.1 * (2 - i)))
        if snow:
            mid = top + (low - top) * 0.55
            pen.fill(polygon((x, top), (x + w * 0.55, mid), (x, mid - 0.6), (x - w * 0.55, mid)), WHITE)


def jungle(pen: Pen, rng: Rng) -> None:
    """Deep green: trunks, vines and broad leaves around a lit clearing."""
    pen.wash(0, 64, vary(rng, (16, 66, 44)), vary(rng, (24, 74, 40)))
    pen.spot(32 + float(rng.uniform(-8, 8)), 22, 26, 26, vary(rng, (150, 196, 92), 14), 0.75)
    for x in rng.uniform(0, 64, 3):
        lean = float(rng.uniform(-5, 5))
        w = float(rng.uniform(2.2, 3.6))
        pen.fill(
            polygon((x + lean - w, 0), (x + lean + w, 0), (x + w, 50), (x - w, 50)),
            vary(rng, (58, 58, 40)),
        )
    for _ in range(2):
        x, dip = float(rng.uniform(4, 44)), float(rng.uniform(8, 20))
        vine = curve((x - 10, -2), (x + 2, dip), (x + 16, -2))
        pen.fill(ribbon(vine, 1.3), vary(rng, (44, 104, 44)))
    for i in range(11):
        side = i % 2
        x = float(rng.uniform(-6, 10)) if side else float(rng.uniform(54, 70))
        y = float(rng.uniform(-2, 48))
        turn = float(rng.uniform(-40, 50))
        tone = vary(rng, ((30, 112, 52), (52, 142, 60), (22, 92, 62))[i % 3], 12)
        leaf(pen, x, y, float(rng.uniform(16, 24)), turn if side else 180 - turn, tone)
    for x in (float(rng.uniform(8, 22)), float(rng.uniform(40, 56))):
        leaf(
            pen,
            x,
            -3,
            float(rng.uniform(14, 20)),
            float(rng.uniform(60, 120)),
            vary(rng, (62, 150, 62), 12),
        )
    floor = vary(rng, (78, 92, 40))
    pen.fill(hills(rng, 46, 1.6), floor)
    pen.spot(32, 56, 30, 8, mix(floor, (190, 196, 96), 0.5), 0.8)


def jungle_front(pen: Pen, rng: Rng) -> None:
    """Dark ferns in the lower corners, nearer than the subject."""
    for x, base in ((-2.0, -62.0), (66.0, -118.0)):
        for i in range(3):
            turn = base + (i - 1) * 30 + float(rng.uniform(-8, 8))
            leaf(pen, x, 68, float(rng.uniform(15, 20)), turn, vary(rng, (18, 84, 44), 10))


def snow(pen: Pen, rng: Rng) -> None:
    """White hills with snowy firs under a pale sky, flakes falling."""
    pen.wash(0, 40, vary(rng, (142, 176, 212), 12), vary(rng, (214, 228, 242), 6))
    pen.fill(hills(rng, 28, 4), vary(rng, (192, 210, 230), 6))
    for x in rng.uniform(0, 64, 5):
        pine(
            pen,
            float(x),
            float(rng.uniform(31, 36)),
            float(rng.uniform(11, 19)),
            vary(rng, (52, 100, 104)),
            True,
        )
    pen.fill(hills(rng, 35, 2.5), vary(rng, (224, 234, 246), 5))
    pen.fill(hills(rng, 43, 3), (246, 249, 254))
    pen.fill(hills(rng, 60, 2), (228, 236, 248))
    for _ in range(12):
        pen.fill(oval(float(rng.uniform(0, 64)), float(rng.uniform(0, 34)), 1.0, 1.0), WHITE)


def snow_front(pen: Pen, rng: Rng) -> None:
    """Large flakes in front of everything."""
    for _ in range(7):
        r = float(rng.uniform(1.1, 1.7))
        pen.fill(oval(float(rng.uniform(0, 64)), float(rng.uniform(0, 62)), r, r), WHITE, 0.92)


def beach(pen: Pen, rng: Rng) -> None:
    """Sun, sea with foam, golden sand, and a palm or a parasol to one side."""
    horizon = float(rng.uniform(24, 28))
    sky(pen, rng, (96, 190, 240), (214, 240, 250), horizon, int(rng.integers(0, 3)))
    sun = float(rng.uniform(8, 56))
    pen.spot(sun, 8, 9, 9, (255, 246, 190), 0.9)
    pen.fill(oval(sun, 8, 3.8, 3.8), (255, 236, 120))
    pen.wash(horizon, 44, vary(rng, (28, 130, 190)), vary(rng, (84, 208, 212)))
    for _ in range(5):
        x, y = float(rng.uniform(0, 58)), float(rng.uniform(horizon + 2, 36))
        pen.fill(box(x, y, x + float(rng.uniform(5, 9)), y + 0.9, 0.4), (160, 226, 236))
    shore = hills(rng, 40, 1.6, 4)
    pen.fill(shore - (0, 2.0), (250, 254, 255))
    pen.fill(shore, vary(rng, (226, 194, 136), 8))
    pen.fill(shore + (0, 2.2), vary(rng, (246, 218, 158), 6))
    side = -1.0 if rng.random() < 0.5 else 1.0
    x = 32 + side * float(rng.uniform(23, 28))
    if rng.random() < 0.55:
        trunk = curve((x, 47), (x - side * 1.5, 30), (x - side * 5, 14))
        pen.fill(ribbon(trunk, 3.0, 2.0), (150, 106, 66))
        for turn in (-170, -130, -60, -12, 30, 150):
            leaf(pen, x - side * 5, 14, 13, float(turn), vary(rng, (50, 150, 74)))
    else:
        pen.fill(box(x - 0.6, 24, x + 0.6, 47), (250, 246, 236))
        tone = vary(rng, (236, 74, 66), 20)
        pen.fill(blob((x - 12, 28), (x - 8, 20), (x, 16.5), (x + 8, 20), (x + 12, 28), (x, 26)), tone)
        pen.fill(blob((x - 4, 27), (x - 3, 20), (x, 16.5), (x + 3, 20), (x + 4, 27)), (255, 248, 236))
    for _ in range(3):
        cx, cy = float(rng.uniform(4, 60)), float(rng.uniform(56, 62))
        pen.fill(oval(cx, cy, 1.7, 1.2), vary(rng, (240, 140, 120), 16))


def mountain(pen: Pen, rng: Rng) -> None:
    """Great snow-capped peaks behind firs and an alpine meadow."""
    sky(pen, rng, (92, 152, 220), (226, 236, 246), 42, int(rng.integers(1, 3)))
    rock = vary(rng, (104, 104, 146), 12)
    peaks = [
        (float(rng.uniform(4, 20)), 14.0),
        (float(rng.uniform(44, 60)), 12.0),
        (float(rng.uniform(24, 40)), 5.0),
    ]
    for i, (x, top) in enumerate(peaks):
        top += float(rng.uniform(-2, 3))
        half = (44 - top) * 0.72
        tone = mix(rock, (200, 210, 232), 0.28 if i < 2 else 0.0)
        snow_y = top + (44 - top) * 0.34
        edge = half * 0.34
        pen.fill(polygon((x, top), (x + half, 44), (x - half, 44)), mix(tone, WHITE, 0.16))
        pen.fill(
            polygon((x, top), (x + half, 44), (x + half * 0.1, 44), (x - edge * 0.25, snow_y + 5)),
            mix(tone, (30, 24, 70), 0.18),
        )
        cap = polygon(
            (x, top),
            (x + edge, snow_y),
            (x + edge * 0.4, snow_y - 2),
            (x, snow_y + 2.4),
            (x - edge * 0.5, snow_y - 1.5),
            (x - edge, snow_y),
        )
        pen.fill(cap, WHITE)
        pen.fill(
            polygon((x, top), (x + edge, snow_y), (x + edge * 0.4, snow_y - 2), (x + 0.4, snow_y - 1)),
            (208, 218, 240),
        )
    pen.fill(hills(rng, 40, 2), vary(rng, (72, 112, 84)))
    for x in rng.uniform(0, 64, 6):
        pine(
            pen,
            float(x),
            float(rng.uniform(42, 45)),
            float(rng.uniform(7, 11)),
            vary(rng, (40, 92, 72)),
        )
    pen.fill(hills(rng, 44, 1.4), vary(rng, (138, 168, 82)))
    pen.fill(hills(rng, 56, 2), vary(rng, (112, 148, 74)))


def sunflower(pen: Pen, x: float, y: float, r: float, ground: float) -> None:
    """A sunflower with its head at (x, y), radius r, rooted at height `ground`."""
    pen.fill(ribbon(curve((x, ground), (x + 0.8, (y + ground) / 2), (x, y)), 1.3), (48, 122, 44))
    leaf(pen, x + 0.4, (y + ground) / 2 + 1, r * 1.3, -30, (66, 150, 56))
    for i in range(10):
        turn = i * 36.0
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        pen.fill(oval(x + c * r * 0.68, y + s * r * 0.68, r * 0.42, r * 0.24, turn), (255, 204, 30))
    pen.fill(oval(x, y, r * 0.5, r * 0.5), (104, 62, 30))
    pen.fill(oval(x - r * 0.1, y - r * 0.1, r * 0.26, r * 0.26), (142, 88, 42))


def sunflowers(pen: Pen, rng: Rng) -> None:
    """A bright green meadow with sunflowers to both sides."""
    horizon = float(rng.uniform(18, 23))
    sky(pen, rng, (128, 206, 246), (224, 246, 252), horizon + 6, int(rng.integers(0, 2)))
    pen.fill(hills(rng, horizon, 2), vary(rng, (128, 204, 92)))
    pen.fill(hills(rng, horizon + 9, 2), vary(rng, (96, 188, 72)))
    pen.fill(hills(rng, horizon + 22, 2), vary(rng, (74, 172, 60)))
    for i in range(6):
        x = float(rng.uniform(1, 20)) if i % 2 else float(rng.uniform(44, 63))
        y = float(rng.uniform(18, 30)) + i
        sunflower(pen, x, y, float(rng.uniform(4.4, 5.6)) + i * 0.25, y + 16)


def sunflowers_front(pen: Pen, rng: Rng) -> None:
    """Two sunflowers and some grass in the lower corners."""
    for x in (float(rng.uniform(3, 8)), float(rng.uniform(56, 61))):
        sunflower(pen, x, float(rng.uniform(49, 55)), float(rng.uniform(6, 7)), 68)
    for _ in range(8):
        x = float(rng.uniform(0, 64))
        tone = vary(rng, (56, 150, 48))
        pen.fill(polygon((x - 1.6, 65), (x + float(rng.uniform(-2, 2)), 58.5), (x + 1.6, 65)), tone)
