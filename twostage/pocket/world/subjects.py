"""Subjects: one thing with one appearance that words cannot name."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np

RGB = tuple[int, int, int]

CLASSES: tuple[str, ...] = (
    "backpack", "sneaker", "vase", "teapot", "clock", "toy car", "toy robot", "stuffed animal",
    "dog", "cat", "owl", "rabbit",
)  # fmt: skip
LIVE: frozenset[str] = frozenset({"dog", "cat", "owl", "rabbit"})
COLOURS: dict[str, RGB] = {
    "red": (218, 38, 42),
    "orange": (254, 140, 22),
    "yellow": (250, 212, 44),
    "green": (52, 164, 66),
    "blue": (42, 100, 220),
    "purple": (132, 58, 188),
    "pink": (250, 150, 190),
    "brown": (116, 70, 38),
    "white": (240, 240, 236),
    "black": (40, 40, 46),
}
PATTERNS: tuple[str, ...] = ("solid", "dots", "checks", "band", "patches", "chevrons")
EMBLEMS: tuple[str, ...] = (
    "none", "star", "heart", "cross", "ring", "triangle", "moon", "diamond",
)  # fmt: skip

# Second and accent colours come from a wider palette than the ten that have names here.
_TRIM: tuple[RGB, ...] = (
    *COLOURS.values(),
    (40, 184, 190),  # teal
    (168, 214, 60),  # lime
    (250, 226, 178),  # cream
    (28, 48, 110),  # navy
    (250, 112, 96),  # coral
    (190, 160, 235),  # lilac
    (130, 206, 246),  # sky
)
_APART = 165.0  # how far trim must be from the main colour, as a distance in RGB


@dataclass(frozen=True)
class Subject:
    """One appearance.

    colour: name of the main colour, a key of COLOURS. main, second, accent: RGB, 0..255.
    pattern: one of PATTERNS. emblem: one of EMBLEMS. shape: three proportions, each -1..1,
    that each class reads in its own way (length of the ears, width of the body ...).
    """

    class_name: str
    colour: str
    main: RGB
    second: RGB
    accent: RGB
    pattern: str
    emblem: str
    shape: tuple[float, float, float]


def distance(a: RGB, b: RGB) -> float:
    """Euclidean distance of two colours in RGB, 0..441."""
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5)


def _jitter(rng: np.random.Generator, colour: RGB, amount: float = 1.0) -> RGB:
    """A neighbour of `colour` in HSV, near enough to keep its name."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    h = (h + rng.uniform(-0.014, 0.014) * amount) % 1.0
    # White and black lose their names by saturation sooner than the others do.
    span = 0.07 if s > 0.2 else 0.02
    s = float(np.clip(s + rng.uniform(-span, span) * amount, 0, 1))
    v = float(np.clip(v + rng.uniform(-0.05, 0.05) * amount, 0, 1))
    r, g, b = colorsys.hsv_to_rgb(h, s, v)
    return round(r * 255), round(g * 255), round(b * 255)


def _pick_apart(rng: np.random.Generator, others: list[tuple[RGB, float]]) -> RGB:
    """A trim colour at least so far from each of `others` (colour, distance)."""
    allowed = [c for c in _TRIM if all(distance(c, other) >= far for other, far in others)]
    return _jitter(rng, allowed[int(rng.integers(len(allowed)))])


def sample_subject(rng: np.random.Generator, class_name: str | None = None) -> Subject:
    """A random subject, of the class given or of a random one."""
    kind = class_name if class_name is not None else CLASSES[int(rng.integers(len(CLASSES)))]
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    main = _jitter(rng, COLOURS[colour])
    second = _pick_apart(rng, [(main, _APART)])
    accent = _pick_apart(rng, [(main, _APART), (second, 110.0)])
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    # A quarter bare, except that a solid subject keeps an emblem: something must be its own.
    bare = pattern != "solid" and rng.random() < 0.25
    emblem = "none" if bare else EMBLEMS[1 + int(rng.integers(len(EMBLEMS) - 1))]
    a, b, c = (float(v) for v in rng.uniform(-1, 1, 3))
    return Subject(kind, colour, main, second, accent, pattern, emblem, (a, b, c))


def recoloured(subject: Subject, colour: str) -> Subject:
    """The same subject in another main colour; trim too close to it gives way."""
    main = COLOURS[colour]
    spare = [subject.main, (250, 226, 178), (28, 48, 110), (40, 184, 190), (250, 112, 96)]
    trims: list[RGB] = []
    for trim in (subject.second, subject.accent):
        options = [trim, *spare]
        good = [c for c in options if distance(c, main) >= 130 and c not in trims]
        trims.append(good[0])
    return replace(subject, colour=colour, main=main, second=trims[0], accent=trims[1])
