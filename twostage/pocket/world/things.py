"""How the classes without a face of their own are drawn, standing at (0, 0).

The ground is y = 0 and heights are negative; about 35 units tall, or 40 wide.
"""

from __future__ import annotations

from .marks import INK, Look, surface
from .pen import RGB, WHITE, Pen, mix
from .shapes import blob, box, curve, oval, polygon, ribbon

_METAL: RGB = (196, 200, 210)
_RUBBER: RGB = (48, 46, 56)


def backpack(pen: Pen, look: Look) -> None:
    """Straps, handle, front pocket. a: width, b: height, c: size of the pocket."""
    w, h, pocket = 12.6 + 1.5 * look.a, 31.5 + 2.2 * look.b, 10.5 + 1.6 * look.c
    strap = mix(look.second, INK, 0.12)
    pen.solid(ribbon(curve((-3.6, -h + 1), (-3.4, -h - 3.6), (3.4, -h - 3.6), (3.6, -h + 1)), 2.2), strap)
    for side in (-1, 1):
        path = curve((side * (w - 4), -h + 4), (side * (w + 3.0), -h * 0.62), (side * (w + 1.2), -6))
        pen.solid(ribbon(path, 3.4, 2.6), strap)
        pen.solid(box(side * w - 2.6, -12.5, side * w + 2.6, -1.2, 2.4), look.deep)
    body = blob(
        (-w * 0.52, -h), (w * 0.52, -h), (w * 0.94, -h + 6), (w, -12), (w * 0.97, -2),
        (w * 0.75, 0),
        (-w * 0.75, 0), (-w * 0.97, -2), (-w, -12), (-w * 0.94, -h + 6),
    )  # fmt: skip
    surface(pen, body, look=look, emblem=(0, -pocket - 9.2))
    pen.fill(box(-w + 3.4, -pocket - 1.4, w - 3.4, -1.4, 3.2), look.deep)
    pen.solid(box(-w + 3.4, -pocket - 0.4, w - 3.4, -1.4, 3.2), look.main, 0.3)
    pen.fill(box(-w + 4.6, -pocket + 1.8, w - 4.6, -pocket + 3.2, 0.7), look.second)
    pen.fill(box(3.2, -pocket + 1.6, 5.0, -pocket + 6.0, 0.8), look.accent)


def sneaker(pen: Pen, look: Look) -> None:
    """High shoe from the side. a: height of the ankle, b: length, c: thickness of the sole."""
    high, long, sole = 25.5 + 2.8 * look.a, 20.5 + 1.8 * look.b, 4.6 + 0.9 * look.c
    tongue = blob((-5, -high + 4), (-3.5, -high - 3.4), (1.5, -high - 3.2), (2.5, -high + 6))
    pen.solid(tongue, look.deep)
    upper = blob(
        (-16.6, -sole), (-17, -12), (-15.6, -high), (-11, -high + 0.6), (-4.2, -high + 1.2),
        (0.5, -17.4),
        (7.5, -13.4), (long - 3.4, -11.6), (long, -6.4), (long - 1, -sole + 1), (0, -sole + 1.4),
    )  # fmt: skip
    surface(pen, upper, look=look, emblem=(-9.4, -12.6))
    toe = blob(
        (long - 8.8, -sole),
        (long - 7.6, -9.6),
        (long - 3.0, -11.5),
        (long + 0.3, -6.6),
        (long, -sole),
    )
    pen.solid(toe, look.deep, 0.3)
    pen.fill(
        ribbon(curve((-16.2, -high + 1.3), (-10, -high + 1.9), (-4.6, -high + 2.0)), 2.0),
        look.second,
    )
    for i in range(3):
        x, y = -2.0 + i * 3.7, -high + 7.6 + i * (high - 18.5) / 2.2
        pen.fill(ribbon(curve((x - 3.0, y + 2.4), (x + 1.8, y - 1.2)), 1.7), WHITE)
    base = box(-18, -sole, long + 1.4, 0, 2.2)
    pen.solid(base, (250, 248, 242), 0.3)
    pen.fill(box(-17.6, -sole * 0.56, long + 1, -sole * 0.24), look.accent)


def vase(pen: Pen, look: Look) -> None:
    """Round vase with three flowers. a: width of the belly, b: height of it, c: neck."""
    belly, low, neck = 11.4 + 1.9 * look.a, 9.6 + 2.2 * look.b, 4.6 + 1.4 * look.c
    leaf: RGB = (58, 142, 72)
    for x, y, r in ((-6.8, -32.0, 3.4), (6.8, -31.4, 3.4), (0.2, -36.0, 3.9)):
        pen.fill(ribbon(curve((x * 0.2, -22), (x * 0.6, -27), (x, y)), 1.1), leaf)
        for dx, dy in ((0, -1), (0.95, -0.3), (0.6, 0.8), (-0.6, 0.8), (-0.95, -0.3)):
            pen.fill(oval(x + dx * r * 0.66, y + dy * r * 0.66, r * 0.56, r * 0.56), look.accent)
        pen.fill(oval(x, y, r * 0.46, r * 0.46), mix(look.second, WHITE, 0.25))
    for side in (-1, 1):
        pen.fill(oval(side * 4.6, -26, 3.6, 1.4, side * -38), leaf)
    body = blob(
        (-neck - 0.6, -25), (neck + 0.6, -25), (neck, -21), (belly * 0.86, -low - 5.5),
        (belly, -low),
        (belly * 0.78, -3), (6, 0), (-6, 0), (-belly * 0.78, -3), (-belly, -low),
        (-belly * 0.86, -low - 5.5), (-neck, -21),
    )  # fmt: skip
    surface(pen, body, look=look, emblem=(0, -low - 0.2), dark=0.42)
    pen.solid(box(-neck - 2.4, -26.4, neck + 2.4, -23.8, 1.3), look.deep)
    pen.solid(box(-6.6, -1.8, 6.6, 0.4, 1.0), look.deep)


def teapot(pen: Pen, look: Look) -> None:
    """Pot with lid, spout and handle. a: width, b: height, c: length of the spout."""
    w, h, spout = 12.2 + 1.4 * look.a, 21.5 + 2.4 * look.b, 8.4 + 2.7 * look.c
    grip = curve((-w + 2, -h + 3), (-w - 5.5, -h + 1.6), (-w - 8, -h * 0.56), (-w - 4.5, -5.6), (-w + 3, -5))
    pen.solid(ribbon(grip, 3.2), look.deep)
    snout = blob(
        (w - 4, -h * 0.62), (w + 1.6, -h * 0.56), (w + spout * 0.55, -h * 0.98),
        (w + spout, -h - 1.8),
        (w + spout + 2.2, -h + 0.8), (w + spout * 0.8, -h * 0.62), (w + 2, -5.0), (w - 5, -4),
    )  # fmt: skip
    pen.solid(snout, look.main)
    body = blob(
        (-w * 0.62, -h), (w * 0.62, -h), (w, -h * 0.56), (w * 0.7, -2.4), (0, -0.8),
        (-w * 0.7, -2.4),
        (-w, -h * 0.56),
    )  # fmt: skip
    surface(pen, body, look=look, emblem=(0, -h * 0.47), dark=0.42)
    pen.solid(box(-w * 0.52, -1.8, w * 0.52, 0.4, 1.1), look.deep)
    lid = blob(
        (-w * 0.66, -h + 0.4),
        (-w * 0.5, -h - 3.8),
        (0, -h - 6),
        (w * 0.5, -h - 3.8),
        (w * 0.66, -h + 0.4),
    )
    surface(pen, lid, look=look, pattern=False)
    pen.fill(box(-w * 0.72, -h - 0.6, w * 0.72, -h + 1.3, 0.9), look.deep)
    pen.solid(oval(0, -h - 7.4, 2.9, 2.7), look.accent)


def clock(pen: Pen, look: Look) -> None:
    """Arched alarm clock with two bells. a: width, b: height, c: size of the dial."""
    w, h, dial = 13.2 + 1.3 * look.a, 30.0 + 1.8 * look.b, 8.2 + 0.7 * look.c
    bell = look.deep
    for side in (-1, 1):
        pen.solid(oval(side * (w - 5), -1.0, 3.0, 2.0), look.deep)
        pen.fill(ribbon(curve((side * 6, -h + 3), (side * 8.6, -h - 2.4)), 1.6), _METAL)
        pen.solid(blob(
            (side * 3.4, -h - 0.8), (side * 5.2, -h - 6.2), (side * 10.2, -h - 4.8),
            (side * 12.8, -h + 1.4)
        ), bell)  # fmt: skip
    pen.fill(ribbon(curve((-2.6, -h - 5.2), (2.6, -h - 5.2)), 1.6), _METAL)
    pen.fill(box(-0.8, -h - 5, 0.8, -h + 1), _METAL)
    body = blob(
        (-w * 0.5, -h + 0.6), (0, -h - 0.6), (w * 0.5, -h + 0.6), (w * 0.92, -h + 6.5), (w, -14),
        (w, -2.6),
        (w * 0.8, -0.8), (-w * 0.8, -0.8), (-w, -2.6), (-w, -14), (-w * 0.92, -h + 6.5),
    )  # fmt: skip
    surface(pen, body, look=look, emblem=(0, -7.6))
    y = -h + dial + 2.4
    pen.fill(oval(0, y, dial + 1.2, dial + 1.2), look.deep)
    pen.fill(oval(0, y, dial, dial), (255, 251, 238))
    for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0)):
        pen.fill(oval(dx * (dial - 1.8), y + dy * (dial - 1.8), 0.85, 0.85), INK)
    pen.fill(ribbon(curve((0, y), (-3.0, y - 2.6)), 1.5), INK)
    pen.fill(ribbon(curve((0, y), (2.2, y - dial + 2.8)), 1.2), INK)
    pen.fill(oval(0, y, 1.2, 1.2), (222, 52, 56))


def toy_car(pen: Pen, look: Look) -> None:
    """Stubby car from the side, with a key to wind it. a: cabin, b: length, c: wheels."""
    cabin, long, wheel = 24.5 + 1.8 * look.a, 19.2 + 1.4 * look.b, 5.3 + 0.6 * look.c
    key = -long * 0.62
    pen.fill(box(key - 0.8, -22, key + 0.8, -14), _METAL)
    for side in (-1, 1):
        pen.solid(oval(key + side * 2.3, -23.4, 2.5, 2.1), _METAL)
    roof = blob(
        (-11.5, -14), (-9.6, -cabin + 3), (-6.4, -cabin), (4, -cabin), (7.2, -cabin + 2.6),
        (11.8, -14),
        (9, -12), (-10, -12),
    )  # fmt: skip
    body = blob(
        (-long, -13.6), (-long + 3, -16.2), (-9, -16.6), (9, -16.4), (long - 3.2, -14.6),
        (long, -10.6),
        (long - 0.4, -4.4), (long - 2, -3.2), (-long + 2, -3.2), (-long - 0.2, -5),
    )  # fmt: skip
    surface(pen, roof, look=look, pattern=False)
    glass: RGB = (190, 228, 246)
    pen.fill(polygon((-9.2, -15.6), (-7.4, -cabin + 2.8), (-0.6, -cabin + 2.4), (-0.6, -15.6)), glass)
    pen.fill(polygon((1.2, -15.6), (1.2, -cabin + 2.4), (4.6, -cabin + 3), (9.2, -15.6)), glass)
    pen.fill(polygon((-6.6, -15.6), (-3.4, -cabin + 2.6), (-1.8, -cabin + 2.5), (-4.6, -15.6)), WHITE)
    surface(pen, body, look=look, emblem=(0, -9.8))
    pen.fill(oval(long - 1.8, -11.0, 1.8, 2.2), (255, 240, 160))
    pen.fill(box(-long - 0.2, -12.4, -long + 1.8, -9.2, 0.8), (232, 48, 48))
    pen.solid(box(-long - 1, -5.6, long + 1, -3.2, 1.2), _METAL, 0.25)
    for side in (-1, 1):
        x = side * long * 0.58
        pen.solid(oval(x, -wheel + 0.4, wheel, wheel), _RUBBER, 0.2)
        pen.fill(oval(x, -wheel + 0.4, wheel * 0.52, wheel * 0.52), look.accent)
        pen.fill(oval(x, -wheel + 0.4, wheel * 0.2, wheel * 0.2), WHITE)


def toy_robot(pen: Pen, look: Look) -> None:
    """Tin robot. a: width of the head, b: width of the trunk, c: length of the legs."""
    head, trunk, leg = 7.8 + 1.3 * look.a, 9.2 + 1.2 * look.b, 6.2 + 1.2 * look.c
    neck = -leg - 15.6
    top = neck - 11.4
    for side in (-1, 1):
        pen.solid(box(side * 4.8 - 2.4, -leg - 2, side * 4.8 + 2.4, -1.5, 0.8), _METAL)
        pen.solid(box(side * 5.2 - 4.2, -3.4, side * 5.2 + 4.2, 0.3, 1.6), look.deep)
        arm = curve(
            (side * (trunk - 1), neck + 3.4),
            (side * (trunk + 3.6), neck + 6.4),
            (side * (trunk + 4.2), neck + 11),
        )
        pen.solid(ribbon(arm, 3.6), _METAL)
        pen.solid(oval(side * (trunk + 4.3), neck + 12.4, 3.2, 3.2), look.main)
    pen.fill(box(-2.6, neck - 2.4, 2.6, neck + 1), (130, 134, 146))
    surface(pen, box(-trunk, neck, trunk, -leg, 2.2), look=look, emblem=(0, (neck - leg) / 2))
    pen.fill(box(-0.7, top - 3.6, 0.7, top + 1), _METAL)
    pen.solid(oval(0, top - 4.4, 2.2, 2.2), look.accent)
    for side in (-1, 1):
        pen.solid(
            box(side * (head + 0.8) - 1.4, top + 3, side * (head + 0.8) + 1.4, top + 7.4, 0.8),
            _METAL,
        )
    surface(pen, box(-head, top, head, neck - 1.2, 2.0), look=look, pattern=False)
    for side in (-1, 1):
        pen.fill(oval(side * 3.6, top + 4.0, 2.5, 2.5), (255, 250, 226))
        pen.fill(oval(side * 3.6, top + 4.1, 1.35, 1.35), INK)
    pen.fill(box(-3.6, top + 7.5, 3.6, top + 9.1, 0.8), look.deep)
    pen.fill(box(-2.6, top + 7.9, 2.6, top + 8.8, 0.4), look.accent)
