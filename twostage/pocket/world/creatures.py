"""How the live classes and the stuffed animal are drawn, facing us, sitting at (0, 0).

The ground is y = 0 and heights are negative; about 35 units tall.
"""

from __future__ import annotations

from .marks import INK, Anchors, Look, eye, surface
from .pen import RGB, WHITE, Pen, mix
from .shapes import blob, box, curve, oval, polygon, ribbon

_PINK: RGB = (246, 150, 160)


def _mouth(pen: Pen, y: float, width: float) -> None:
    """A small smiling double curve below a nose at height y."""
    for side in (-1, 1):
        path = curve((0, y), (side * width * 0.55, y + 1.5), (side * width, y + 0.6))
        pen.fill(ribbon(path, 0.75), INK)


def dog(pen: Pen, look: Look) -> Anchors:
    """Floppy ears, long muzzle, tongue, collar. a: ears, b: head width, c: body width."""
    head, ear, body = 9.4 + 1.2 * look.b, 11.5 + 2.6 * look.a, 9.6 + 1.5 * look.c
    pen.solid(ribbon(curve((body - 3, -4), (body + 4, -6.5), (body + 6.5, -14)), 4.2, 2.4), look.main)
    trunk = blob(
        (0, -20), (body * 0.62, -17), (body, -7), (body * 0.9, -0.6), (0, 0),
        (-body * 0.9, -0.6), (-body, -7), (-body * 0.62, -17),
    )  # fmt: skip
    surface(pen, trunk, look=look, emblem=(0, -8.2))
    for side in (-1, 1):
        pen.solid(oval(side * (body - 3.0), -1.5, 4.4, 2.6), look.pale, 0.3)
    pen.fill(ribbon(curve((-6.6, -17.2), (0, -15.4), (6.6, -17.2)), 2.6), look.accent)
    surface(pen, oval(0, -25.2, head, 9.2), look=look, pattern=False)
    for side in (-1, 1):
        x = side * (head - 1.6)
        flap = blob(
            (x - side * 2.4, -32), (x + side * 2.6, -31.6), (x + side * 5, -31 + ear * 0.6),
            (x + side * 3.2, -32 + ear), (x + side * 0.2, -31 + ear * 0.75),
        )  # fmt: skip
        pen.solid(flap, look.deep)
        eye(pen, side * 4.1, -26.6, 1.45)
    pen.fill(blob((-1.7, -19), (1.7, -19), (1.5, -14.9), (0, -14.2), (-1.5, -14.9)), (238, 92, 112))
    pen.solid(oval(0, -20.8, 5.2, 3.9), look.pale, 0.22, 0.0)
    pen.fill(oval(0, -23, 2.3, 1.6), INK)
    _mouth(pen, -21.2, 2.8)
    return Anchors(-33.4, 8.2, -26.6, 4.3, 3.0, -16.4, 6.6)


def cat(pen: Pen, look: Look) -> Anchors:
    """Pointed ears, slit eyes, whiskers, raised tail. a: ears, b: head width, c: body width."""
    head, ear, body = 9.8 + 1.2 * look.b, 9.5 + 2.4 * look.a, 8.2 + 1.4 * look.c
    tail = curve((body - 3, -3), (body + 5.5, -3.5), (body + 8, -11), (body + 5, -17), (body + 8, -22))
    pen.solid(ribbon(tail, 3.8, 3.2), look.main)
    pen.fill(oval(body + 7.8, -21.6, 1.9, 2.2, 20), look.second)
    trunk = blob(
        (0, -20), (body * 0.6, -16.5), (body, -6.5), (body * 0.94, -0.5), (0, 0),
        (-body * 0.94, -0.5), (-body, -6.5), (-body * 0.6, -16.5),
    )  # fmt: skip
    surface(pen, trunk, look=look, emblem=(0, -8.0))
    for side in (-1, 1):
        pen.solid(oval(side * (body - 3.4), -1.4, 3.6, 2.3), look.pale, 0.3)
        x = side * (head - 4.6)
        outer = polygon((x - side * 4.4, -30), (x + side * 3.6, -30.4 - ear), (x + side * 4.4, -25))
        pen.solid(outer, look.main)
        inner = polygon((x - side * 1.6, -30.6), (x + side * 2.7, -28.4 - ear), (x + side * 3.0, -27))
        pen.fill(inner, _PINK)
    surface(pen, blob(
        (0, -32.4), (head * 0.75, -30.4), (head, -24.6), (head * 0.62, -18.2), (0, -16.8),
        (-head * 0.62, -18.2), (-head, -24.6), (-head * 0.75, -30.4),
    ), look=look, pattern=False)  # fmt: skip
    iris: RGB = (250, 214, 66) if sum(look.main) < 420 else (86, 186, 96)
    for side in (-1, 1):
        pen.fill(oval(side * 4.3, -25.4, 2.7, 2.4, side * 14), mix(INK, look.main, 0.1))
        pen.fill(oval(side * 4.3, -25.4, 2.1, 1.9, side * 14), iris)
        pen.fill(oval(side * 4.3, -25.4, 0.75, 1.8), INK)
        pen.fill(oval(side * 2.3, -20.3, 2.9, 2.2), look.pale)
        for rise in (-1.6, 1.0):
            whisker = curve((side * 4.5, -20.4 + rise * 0.4), (side * 12.6, -20.8 + rise * 1.6))
            pen.fill(ribbon(whisker, 0.8, 0.5), WHITE if sum(look.main) < 420 else (90, 80, 90))
    pen.fill(polygon((-1.7, -22.9), (1.7, -22.9), (0, -20.9)), (238, 96, 120))
    _mouth(pen, -20.9, 2.2)
    return Anchors(-31.6, 7.2, -25.4, 4.5, 3.0, -16.4, 6.2)


def owl(pen: Pen, look: Look) -> Anchors:
    """Egg without a neck, great eyes, beak, tufts, wings. a: tufts, b: body width, c: eyes."""
    wide, tuft, disc = 12.2 + 1.5 * look.b, 5.4 + 2.2 * look.a, 5.6 + 0.9 * look.c
    beak: RGB = (252, 176, 38) if look.main[2] > 90 or look.main[0] < 190 else (94, 74, 66)
    for side in (-1, 1):
        for toe in (-2.2, 0, 2.2):
            pen.fill(oval(side * 4.8 + toe, -0.3, 1.25, 1.8), beak)
        pen.solid(polygon(
            (side * 2.5, -31.5), (side * (wide - 1.2), -32 - tuft), (side * (wide - 1.6), -25)
        ), look.main)  # fmt: skip
    egg = blob(
        (0, -33.6), (wide * 0.72, -31), (wide * 0.92, -23), (wide, -11), (wide * 0.66, -2),
        (0, -0.6), (-wide * 0.66, -2), (-wide, -11), (-wide * 0.92, -23), (-wide * 0.72, -31),
    )  # fmt: skip
    # The pattern lies on the belly alone: the face would drown in it.
    surface(pen, egg, look=look, pattern=False)
    belly = blob(
        (0, -19.4), (wide * 0.6, -17.5), (wide * 0.74, -9), (wide * 0.5, -2.6), (0, -1.2),
        (-wide * 0.5, -2.6), (-wide * 0.74, -9), (-wide * 0.6, -17.5),
    )  # fmt: skip
    surface(pen, belly, look=look, emblem=(0, -9.4), dark=0.2)
    for side in (-1, 1):
        wing = blob(
            (side * (wide * 0.86), -20.5), (side * (wide + 2.4), -11), (side * (wide - 0.6), -2.6),
            (side * wide * 0.66, -8),
        )  # fmt: skip
        pen.solid(wing, look.deep)
        pen.fill(oval(side * 5.1, -25, disc + 0.2, disc + 0.2), look.pale)
        pen.fill(oval(side * 5.1, -25, disc - 1.6, disc - 1.6), (255, 250, 236))
        pen.fill(oval(side * 4.7, -25, 2.9, 2.9), INK)
        pen.fill(oval(side * 4.7 - 0.9, -26, 1.0, 1.0), WHITE)
    pen.solid(polygon((-2.2, -22.8), (2.2, -22.8), (0, -17.6)), beak, 0.3)
    return Anchors(-31.8, 8.4, -25, 5.2, 4.0, -18.2, 10.2)


def rabbit(pen: Pen, look: Look) -> Anchors:
    """Tall ears, cheeks, teeth, big feet. a: ear length, b: head width, c: body width."""
    head, ear, body = 9.4 + 1.6 * look.b, 8.8 + 2.0 * look.a, 9.6 + 1.7 * look.c
    for side in (-1, 1):
        x, y = side * 4.4, -27.5 - ear * 0.86
        pen.solid(oval(x + side * 0.9, y, 3.5, ear, side * 9), look.main)
        pen.fill(oval(x + side * 0.9, y + 0.6, 1.8, ear - 2.6, side * 9), _PINK)
    pen.solid(oval(body + 0.6, -5.4, 3.8, 3.8), (252, 248, 244), 0.25)
    trunk = oval(0, -8.8, body, 9.4)
    surface(pen, trunk, look=look, emblem=(0, -9.0))
    for side in (-1, 1):
        pen.solid(oval(side * 6.8, -1.7, 5.2, 2.7, side * -6), look.main, 0.3)
        pen.fill(oval(side * 8.2, -1.5, 2.4, 1.5), look.pale)
    surface(pen, blob(
        (0, -31), (head * 0.8, -28.4), (head + 0.4, -21.6), (head * 0.7, -16.2), (0, -15),
        (-head * 0.7, -16.2), (-head - 0.4, -21.6), (-head * 0.8, -28.4),
    ), look=look, pattern=False)  # fmt: skip
    for side in (-1, 1):
        eye(pen, side * 4.4, -24.4, 1.6)
        pen.fill(oval(side * 6.3, -20.2, 1.9, 1.3), mix(_PINK, look.main, 0.25))
        pen.fill(oval(side * 1.9, -19.6, 2.5, 2.0), look.pale)
    pen.fill(box(-1.5, -18.6, 1.5, -15.6, 0.6), WHITE)
    pen.fill(box(-0.2, -18.4, 0.2, -15.8), (190, 180, 190))
    pen.fill(blob((-1.6, -22), (1.6, -22), (0, -20.2)), (236, 100, 128))
    _mouth(pen, -20.3, 2.0)
    return Anchors(-29.8, 6.6, -24.4, 4.5, 3.0, -15.4, 7.6)


def stuffed_animal(pen: Pen, look: Look) -> None:
    """A sitting teddy bear: seams, button eyes, soles. a: ears, b: head width, c: belly width."""
    head, ear, body = 10.2 + 1.2 * look.b, 4.3 + 1.0 * look.a, 9.4 + 1.5 * look.c
    thread = mix(look.deep, INK, 0.35) if sum(look.main) > 200 else (170, 165, 175)
    for side in (-1, 1):
        x = side * (head - 2.6)
        pen.solid(oval(x, -32.2, ear, ear), look.main)
        pen.fill(oval(x, -31.8, ear - 1.9, ear - 1.9), look.second)
    for side in (-1, 1):
        pen.solid(oval(side * (body + 1.6), -12.6, 3.6, 6.4, side * -34), look.main)
    surface(pen, oval(0, -9.6, body, 10), look=look, emblem=(0, -9.8))
    if look.emblem == "none":
        for i in range(4):
            pen.fill(box(-0.5, -15.6 + i * 3.2, 0.5, -13.8 + i * 3.2), thread)
    for side in (-1, 1):
        x = side * (body + 0.2)
        pen.solid(oval(x, -3.6, 5.0, 4.6), look.main)
        pen.fill(oval(x + side * 0.3, -3.4, 3.1, 2.9), look.second)
    surface(pen, oval(0, -25, head, 8.9), look=look, pattern=False)
    for i in range(3):  # the seam over the forehead says "sewn"
        pen.fill(box(-0.5, -33.4 + i * 2.1, 0.5, -32.2 + i * 2.1), thread)
    pen.solid(oval(0, -21.4, 5.2, 4.1), mix(look.pale, (250, 236, 210), 0.5), 0.22, 0.0)
    pen.fill(blob((-2, -23.8), (2, -23.8), (0, -21.2)), INK)
    pen.fill(box(-0.4, -21.6, 0.4, -19.4), INK)
    _mouth(pen, -19.6, 1.9)
    for side in (-1, 1):
        x = side * 4.9
        pen.fill(oval(x, -26.6, 2.3, 2.3), (250, 246, 236))
        pen.fill(oval(x, -26.6, 1.9, 1.9), (50, 42, 56))
        pen.fill(box(x - 1.0, -26.95, x + 1.0, -26.25), (220, 214, 222))
        pen.fill(box(x - 0.35, -27.6, x + 0.35, -25.6), (220, 214, 222))
