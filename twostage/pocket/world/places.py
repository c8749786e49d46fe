"""Surroundings: every context and the studio, each a function of a pen and a generator.

Pictures are 64 by 64 units; subjects stand near y = 54.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import nature
from .nature import Rng, hills, leaf, sky, vary
from .pen import RGB, WHITE, Pen, mix
from .shapes import XY, box, curve, oval, polygon, ribbon

Place = Callable[[Pen, Rng], None]

_STUDIO: tuple[RGB, ...] = (
    (226, 226, 230), (246, 234, 210), (206, 226, 244), (244, 220, 226), (214, 236, 218),
    (204, 204, 212),
)  # fmt: skip


def studio(pen: Pen, rng: Rng) -> None:
    """A seamless backdrop in a soft light tint."""
    tone = vary(rng, _STUDIO[int(rng.integers(len(_STUDIO)))], 7)
    horizon = float(rng.uniform(36, 43))
    pen.wash(0, horizon, mix(tone, (90, 90, 110), 0.12), mix(tone, WHITE, 0.25))
    pen.wash(horizon, 64, mix(tone, WHITE, 0.3), mix(tone, (90, 84, 100), 0.12))
    pen.spot(32 + float(rng.uniform(-14, 14)), 20, 34, 26, WHITE, 0.6)


def cobblestone(pen: Pen, rng: Rng) -> None:
    """A street of rounded stones between old house fronts."""
    pen.wash(0, 30, vary(rng, (176, 206, 228), 12), vary(rng, (232, 232, 226), 8))
    walls: tuple[RGB, ...] = (
        (206, 150, 106),
        (226, 196, 142),
        (182, 112, 92),
        (212, 184, 166),
        (168, 150, 130),
    )
    x = -float(rng.uniform(0, 8))
    while x < 64:
        w, top = float(rng.uniform(14, 20)), float(rng.uniform(1, 9))
        wall = vary(rng, walls[int(rng.integers(len(walls)))], 8)
        pen.fill(box(x, top, x + w, 33), wall)
        pen.fill(polygon((x - 1, top), (x + w / 2, top - 6), (x + w + 1, top)), vary(rng, (142, 74, 58)))
        pen.fill(box(x + w - 1.6, top, x + w, 33), mix(wall, (40, 24, 50), 0.22))
        for wx in (x + 2.6, x + w - 6.4):
            for wy in (top + 3, top + 12):
                pen.fill(box(wx, wy, wx + 3.6, wy + 5, 1.4), (82, 92, 112))
        x += w
    pen.fill(box(0, 31, 64, 64), (84, 80, 84))
    y, h, row = 31.6, 2.6, 0
    tone = vary(rng, (150, 142, 138), 12)
    while y < 64:
        w = h * 1.75
        start = 32 - np.ceil(32 / w) * w - (row % 2) * w / 2
        for i in range(int(66 / w) + 3):
            shade = float(rng.uniform(-0.16, 0.16))
            stone = mix(tone, WHITE, shade) if shade > 0 else mix(tone, (50, 44, 56), -shade)
            sx = float(start + i * w)
            pen.fill(box(sx + 0.35, y + 0.3, sx + w - 0.35, y + h - 0.3, h * 0.42), stone)
        y, h, row = y + h, h * 1.22, row + 1


def fabric(pen: Pen, rng: Rng) -> None:
    """Pink cloth in soft folds, hanging behind and lying under the subject."""
    base = vary(rng, (246, 140, 180), 10)
    pen.wash(0, 64, mix(base, (190, 50, 120), 0.22), mix(base, WHITE, 0.18))
    lean = float(rng.uniform(-10, 10))
    x = -12.0
    while x < 76:
        w = float(rng.uniform(7, 11))
        fold = curve((x, -2), (x + lean * 0.4, 18), (x + lean, 36), (x + lean * 2.2, 66))
        pen.fill(ribbon(fold, w * 0.5, w * 1.1), mix(base, WHITE, 0.3), 0.6)
        pen.fill(ribbon(fold + (w * 0.5, 0), w * 0.22, w * 0.5), mix(base, (176, 36, 108), 0.4), 0.55)
        x += w
    flat: list[XY] = [(-4, 46), (14, 42), (32, 45), (50, 42), (68, 46)]
    lift = float(rng.uniform(-2, 2))
    for i in range(3):
        y = lift + i * 7.5
        path = curve(*[(px, py + y + float(rng.uniform(-1.2, 1.2))) for px, py in flat])
        outline = np.concatenate([path, polygon((70, 70), (-6, 70))])
        pen.fill(outline - (0, 1.1), mix(base, WHITE, 0.5))
        pen.fill(outline, mix(base, WHITE, 0.1 + 0.1 * i))


def wooden(pen: Pen, rng: Rng) -> None:
    """A room: planks running towards us, a wall with a picture or a window."""
    walls: tuple[RGB, ...] = ((222, 214, 196), (186, 204, 196), (206, 196, 210), (230, 206, 180))
    wall = vary(rng, walls[int(rng.integers(len(walls)))], 8)
    pen.wash(0, 32, mix(wall, (70, 60, 70), 0.12), wall)
    x = float(rng.uniform(4, 40))
    if rng.random() < 0.5:
        pen.fill(box(x, 3, x + 19, 23), (250, 248, 240))
        for px in (x + 1.6, x + 10.2):
            pen.fill(box(px, 4.6, px + 7.2, 21.4), vary(rng, (166, 212, 240), 10))
            pen.fill(box(px, 15, px + 7.2, 21.4), (140, 190, 130))
    else:
        pen.fill(box(x, 6, x + 14, 21), (120, 78, 48))
        pen.fill(box(x + 1.6, 7.6, x + 12.4, 19.4), vary(rng, (244, 224, 180), 14))
        pen.fill(oval(x + 7, 13.5, 3.4, 3.4), vary(rng, (222, 120, 90), 24))
    wood = vary(rng, (184, 122, 68), 12)
    pen.fill(box(0, 31, 64, 34), mix(WHITE, wall, 0.25))
    pen.wash(34, 64, mix(wood, (60, 30, 20), 0.22), mix(wood, (255, 214, 150), 0.12))
    shift = float(rng.uniform(-0.5, 0.5))
    for i in range(-6, 7):
        # Board edges meet at a vanishing point high above the wall.
        top, low, nxt = 32 + (i + shift) * 7.6, 32 + (i + shift) * 13.0, 32 + (i + 1 + shift) * 13.0
        board = mix(wood, (84, 44, 24), float(rng.uniform(0.0, 0.3)))
        if i % 2:
            pen.fill(polygon((top, 34), (top + 7.6, 34), (nxt, 64), (low, 64)), board, 0.6)
        pen.fill(
            polygon((top - 0.4, 34), (top + 0.4, 34), (low + 0.7, 64), (low - 0.7, 64)),
            mix(wood, (50, 24, 14), 0.6),
        )
        y = float(rng.uniform(38, 62))
        t = (y - 34) / 30
        a, b = top + (low - top) * t, top + 7.6 + (nxt - top - 7.6) * t
        pen.fill(box(a, y, b, y + 0.9), mix(wood, (50, 24, 14), 0.5))


def city(pen: Pen, rng: Rng) -> None:
    """Two rows of towers with windows behind a paved square, by day or at dusk."""
    dusk = rng.random() < 0.4
    if dusk:
        pen.wash(0, 42, vary(rng, (112, 84, 152)), vary(rng, (252, 186, 140)))
    else:
        sky(pen, rng, (120, 180, 226), (226, 236, 240), 42, 1)
    lit: RGB = (255, 226, 130) if dusk else (206, 226, 238)
    for far, tone in ((True, (140, 140, 172)), (False, (76, 80, 112))):
        x = -float(rng.uniform(0, 6))
        while x < 64:
            w = float(rng.uniform(7, 12))
            top = float(rng.uniform(4, 16)) if far else float(rng.uniform(10, 30))
            wall = vary(rng, mix(tone, (236, 170, 150), 0.25 if dusk and far else 0.0), 10)
            pen.fill(box(x, top, x + w - 0.5, 44), wall)
            pen.fill(box(x + w * 0.72, top, x + w - 0.5, 44), mix(wall, (20, 16, 50), 0.2))
            if not far:
                wy = top + 2.2
                while wy < 40:
                    for wx in np.arange(x + 1.4, x + w - 2.6, 3.4):
                        if rng.random() < 0.62:
                            pen.fill(box(float(wx), wy, float(wx) + 1.9, wy + 2.2), lit)
                    wy += 4.2
            x += w + (1.2 if not far and rng.random() < 0.4 else 0.0)
    ground = vary(rng, (150, 148, 154), 8)
    pen.wash(43, 64, mix(ground, (60, 50, 80), 0.25), mix(ground, WHITE, 0.15))
    pen.fill(box(0, 43, 64, 44.6), (196, 194, 198))
    for i in range(-3, 4):
        pen.fill(
            polygon(
                (32 + i * 11 - 0.3, 44.6),
                (32 + i * 11 + 0.3, 44.6),
                (32 + i * 21 + 0.6, 64),
                (32 + i * 21 - 0.6, 64),
            ),
            mix(ground, (50, 44, 60), 0.32),
        )
    for y in (48.5, 55.5):
        pen.fill(box(0, y, 64, y + 0.9), mix(ground, (50, 44, 60), 0.3))


def blue_house(pen: Pen, rng: Rng) -> None:
    """A bright blue house with a red-brown roof, a white fence and a lawn with a path."""
    sky(pen, rng, (170, 216, 242), (240, 244, 238), 44, int(rng.integers(0, 3)))
    pen.fill(hills(rng, 36, 2), vary(rng, (112, 168, 104)))
    x, w, top = float(rng.uniform(3, 19)), float(rng.uniform(38, 42)), float(rng.uniform(15, 18))
    blue = vary(rng, (44, 116, 212), 12)
    pen.fill(box(x + w * 0.72, top - 13, x + w * 0.72 + 5, top), (150, 92, 84))
    pen.fill(box(x, top, x + w, 45), blue)
    for y in np.arange(top + 4, 44, 4.6):
        pen.fill(box(x, float(y), x + w, float(y) + 1.0), mix(blue, (16, 40, 120), 0.3))
    roof = vary(rng, (120, 66, 66), 12)
    pen.fill(
        polygon((x - 4, top + 1), (x + 6, top - 12), (x + w - 6, top - 12), (x + w + 4, top + 1)),
        roof,
    )
    pen.fill(box(x - 4, top, x + w + 4, top + 1.7), mix(roof, (30, 10, 20), 0.3))
    door = x + w * (0.42 if rng.random() < 0.5 else 0.5)
    pen.fill(box(door - 1, 28, door + 8, 45), WHITE)
    pen.fill(box(door + 0.4, 29.4, door + 6.6, 45), vary(rng, (190, 70, 60), 20))
    for wx in (x + 3.5, x + w - 11.5):
        pen.fill(box(wx - 1.1, top + 4.4, wx + 9.1, top + 15), WHITE)
        pen.fill(box(wx, top + 5.5, wx + 8, top + 13.9), (150, 196, 220))
        pen.fill(box(wx + 3.4, top + 5.5, wx + 4.6, top + 13.9), WHITE)
        pen.fill(box(wx, top + 9.2, wx + 8, top + 10.3), WHITE)
    for fx in np.arange(-1.0, 64, 4.6):
        pen.fill(
            polygon((fx, 46), (fx, 38.6), (fx + 1.3, 37), (fx + 2.6, 38.6), (fx + 2.6, 46)),
            (250, 250, 246),
        )
    pen.fill(box(0, 40.6, 64, 42.2), (250, 250, 246))
    lawn = vary(rng, (104, 178, 86))
    pen.wash(45, 64, lawn, mix(lawn, (40, 110, 60), 0.35))
    bend = float(rng.uniform(-8, 8))
    pen.fill(
        polygon((door, 45), (door + 7, 45), (door + 18 + bend, 64), (door - 9 + bend, 64)),
        vary(rng, (222, 206, 178)),
    )


def rug(pen: Pen, rng: Rng) -> None:
    """A purple rug with a border on the floor of an autumn forest."""
    pen.wash(0, 42, vary(rng, (122, 148, 88), 12), vary(rng, (206, 196, 118), 12))
    for count, tone, width in ((6, (112, 116, 74), 1.6), (5, (88, 62, 44), 2.8)):
        for x in np.linspace(2, 62, count) + rng.uniform(-4, 4, count):
            w = width * float(rng.uniform(0.8, 1.25))
            bark = vary(rng, tone, 8)
            pen.fill(polygon((x - w * 0.8, -1), (x + w * 0.8, -1), (x + w, 42), (x - w, 42)), bark)
            pen.fill(
                polygon((x + w * 0.2, -1), (x + w * 0.8, -1), (x + w, 42), (x + w * 0.2, 42)),
                mix(bark, (30, 14, 30), 0.28),
            )
    for _ in range(8):
        x, y, r = float(rng.uniform(-2, 66)), float(rng.uniform(-4, 7)), float(rng.uniform(5, 8))
        pen.fill(
            oval(x, y, r * 1.3, r),
            vary(rng, ((62, 112, 52), (92, 134, 56))[int(rng.integers(2))], 12),
        )
    floor = vary(rng, (138, 96, 56))
    pen.fill(hills(rng, 40, 1.2), floor)
    for _ in range(9):
        x, y = float(rng.uniform(0, 64)), float(rng.uniform(42, 63))
        leaf(
            pen,
            x,
            y,
            4.4,
            float(rng.uniform(0, 360)),
            vary(rng, ((222, 132, 44), (196, 82, 40))[int(rng.integers(2))], 12),
        )
    purple = vary(rng, (128, 56, 182), 10)
    cx, ry = 32 + float(rng.uniform(-2, 2)), float(rng.uniform(8.6, 9.8))
    pen.fill(oval(cx, 55, 30, ry), mix(purple, (30, 10, 60), 0.4))
    pen.fill(oval(cx, 54.2, 30, ry), mix(purple, WHITE, 0.55))
    pen.fill(oval(cx, 54.2, 28, ry - 1.3), purple)
    pen.fill(oval(cx, 54.2, 23.5, ry - 3), mix(purple, WHITE, 0.35))
    pen.fill(oval(cx, 54.2, 22, ry - 3.7), mix(purple, (60, 10, 110), 0.15))


def water(pen: Pen, rng: Rng) -> None:
    """Open water up to a hazy shore, with bands of light."""
    horizon = float(rng.uniform(11, 15))
    pen.wash(0, horizon + 1, vary(rng, (180, 222, 240), 10), vary(rng, (244, 244, 228), 8))
    pen.fill(hills(rng, horizon - 1.5, 1.6), vary(rng, (104, 150, 160), 10))
    deep = vary(rng, (22, 104, 168), 12)
    pen.wash(horizon, 64, mix(deep, (150, 220, 230), 0.5), deep)
    for i in range(16):
        y = horizon + 2 + (62 - horizon) * i / 16
        near = (y - horizon) / (64 - horizon)
        w, x = float(rng.uniform(5, 9)) * (0.6 + near), float(rng.uniform(-4, 62))
        path = curve((x - w, y), (x - w * 0.3, y - 0.8 * near), (x + w * 0.3, y + 0.5 * near), (x + w, y))
        tone = mix(deep, WHITE, 0.42) if i % 3 else mix(deep, (0, 20, 70), 0.35)
        pen.fill(ribbon(path, 0.7 + near * 0.9, 0.4 + near * 0.5), tone)


PLACES: dict[str | None, Place] = {
    None: studio,
    "in the jungle": nature.jungle,
    "in the snow": nature.snow,
    "on the beach": nature.beach,
    "on a cobblestone street": cobblestone,
    "on top of pink fabric": fabric,
    "on top of a wooden floor": wooden,
    "with a city in the background": city,
    "with a mountain in the background": nature.mountain,
    "with a blue house in the background": blue_house,
    "on top of a purple rug in a forest": rug,
    "floating on top of water": water,
    "on top of green grass with sunflowers around it": nature.sunflowers,
}
# What stands nearer to us than the subject does.
FRONTS: dict[str, Place] = {
    "in the jungle": nature.jungle_front,
    "in the snow": nature.snow_front,
    "on top of green grass with sunflowers around it": nature.sunflowers_front,
}
