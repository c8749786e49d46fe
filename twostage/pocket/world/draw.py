"""Putting a picture together: surroundings, shadow, subject, what it wears, style."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from . import creatures, styles, things
from .marks import Anchors, Look, sparkles, wear
from .pen import SHADE, Pen
from .places import FRONTS, PLACES
from .scenes import Scene
from .shapes import curve, oval, ribbon
from .subjects import Subject, recoloured

# class: how it is drawn, its size (1 = as drawn), half the width of its foot in units.
_CLASSES: dict[str, tuple[Callable[[Pen, Look], Anchors | None], float, float]] = {
    "backpack": (things.backpack, 1.02, 16.0),
    "sneaker": (things.sneaker, 1.0, 21.0),
    "vase": (things.vase, 1.0, 11.0),
    "teapot": (things.teapot, 1.04, 14.0),
    "clock": (things.clock, 1.02, 14.5),
    "toy car": (things.toy_car, 1.1, 21.0),
    "toy robot": (things.toy_robot, 1.05, 13.0),
    "stuffed animal": (creatures.stuffed_animal, 1.04, 16.0),
    "dog": (creatures.dog, 1.08, 13.5),
    "cat": (creatures.cat, 1.0, 13.0),
    "owl": (creatures.owl, 1.04, 13.5),
    "rabbit": (creatures.rabbit, 0.93, 14.5),
}
_WATER = "floating on top of water"
_PAPER = (196, 200, 210)  # under a sketch: dark enough for a white subject to have an edge
_SINK = 3.5  # how deep a floating subject lies, in units


def look_of(subject: Subject, scene: Scene) -> Look:
    """What of a subject, in a scene, decides how it is drawn."""
    if scene.colour is not None:
        subject = recoloured(subject, scene.colour)
    return Look(
        subject.main,
        subject.second,
        subject.accent,
        subject.pattern,
        subject.emblem,
        scene.property == "striped",
        scene.property == "shiny",
        *subject.shape,
    )


def _pose(scene: Scene, size: float, mirrored: bool = False) -> npt.NDArray[np.float64]:
    """The (2, 3) transform from a subject's units to the picture's; mirrored: as in water."""
    k = scene.scale * size
    c, s = math.cos(math.radians(scene.angle)), math.sin(math.radians(scene.angle))
    flip = -1.0 if scene.flip else 1.0
    turn = np.array([[c * flip, -s], [s * flip, c]]) * k
    # Turned about a point above the ground, so that a tilt does not swing the subject sideways.
    pivot = np.array([0.0, -12.0])
    shift = np.array([32.0 + 5.0 * scene.x, 54.0 + 2.5 * scene.y]) + pivot * k - turn @ pivot
    if mirrored:
        turn = np.diag([1.0, -0.8]) @ turn
        ground = 54.0 + 2.5 * scene.y - _SINK
        shift = np.array([shift[0], ground - 0.8 * (shift[1] - ground)])
    return np.column_stack([turn, shift])


def _afloat(pen: Pen, scene: Scene, paint: Callable[[Pen], object], size: float, foot: float) -> None:
    """Draw the subject in water: reflection, subject, water over its foot, ripples."""
    still = pen.image.copy()
    mirrored = Pen(pen.image.copy(), pen.scale, _pose(scene, size, mirrored=True))
    paint(mirrored)
    pen.image.paste(Image.blend(still, mirrored.image, 0.45))
    surface = pen.image.copy()
    paint(Pen(pen.image, pen.scale, _pose(scene, size)))
    x, y = 32.0 + 5.0 * scene.x, 54.0 + 2.5 * scene.y - _SINK
    wide = foot * scene.scale * size
    line = int(y * pen.scale)
    pen.image.paste(surface.crop((0, line, *surface.size)), (0, line))
    for grow, alpha in ((1.12, 0.85), (1.5, 0.5)):
        for bend in (2.6, -1.4) if grow > 1.2 else (2.2,):
            path = curve((x - wide * grow, y), (x, y + bend * grow), (x + wide * grow, y))
            pen.fill(ribbon(path, 1.1), (236, 250, 255), alpha)


def _grounded(pen: Pen, scene: Scene, paint: Callable[[Pen], object], size: float, foot: float) -> None:
    """Draw the subject on the ground: a wide soft shadow, a tight dark one, the subject."""
    x, y = 32.0 + 5.0 * scene.x, 54.0 + 2.5 * scene.y
    wide = foot * scene.scale * size
    pen.spot(x + 3.0, y + 0.3, wide * 1.3, 4.6, SHADE, 0.42)
    pen.fill(oval(x + 0.6, y - 0.2, wide * 0.96, 1.9), SHADE, 0.38)
    paint(Pen(pen.image, pen.scale, _pose(scene, size)))


def draw(subject: Subject, scene: Scene, size: int = 64) -> Image.Image:
    """The picture of `subject` in `scene`: RGB, (size, size). The same arguments draw the same."""
    # Four pixels to one of the result: enough to smooth every edge.
    side = 4 * max(size, 64)
    pen = Pen(Image.new("RGB", (side, side)), side / 64)
    rng = np.random.default_rng(scene.seed)
    PLACES[scene.context](pen, rng)
    if scene.style == "sketch":
        # The hand that sketches barely hints at the surroundings.
        pale = Image.new("RGB", (side, side), _PAPER)
        pen.image.paste(Image.blend(pen.image, pale, 0.5))
    look = look_of(subject, scene)
    how, scaled, foot = _CLASSES[subject.class_name]

    def paint(on: Pen) -> None:
        anchors = how(on, look)
        if scene.accessory is not None and anchors is not None:
            wear(on, scene.accessory, anchors)
        if look.shiny:
            sparkles(on)

    stand = _afloat if scene.context == _WATER else _grounded
    stand(pen, scene, paint, scaled, foot)
    if scene.context in FRONTS and scene.style != "sketch":
        FRONTS[scene.context](pen, rng)
    if scene.style == "sketch":
        return styles.sketch(pen.image, size)
    if scene.style == "painting":
        return styles.painting(pen.image, size)
    # A triangle filter, softer than a box: what is crisper than this, a small VAE cannot keep.
    image = pen.image.resize((size, size), Image.Resampling.BILINEAR)
    return image.point([min(int(v * scene.light), 255) for v in range(256)] * 3)
