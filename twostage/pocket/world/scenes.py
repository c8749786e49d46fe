"""Scenes: where a subject is, what it wears and how the picture is made; and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from .subjects import Subject

CONTEXTS: tuple[str, ...] = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
    "floating on top of water",
    "on top of green grass with sunflowers around it",
)
PROPERTIES: tuple[str, ...] = ("shiny", "striped")
ACCESSORIES: tuple[str, ...] = (
    "wearing a red hat", "wearing a rainbow scarf", "wearing pink glasses",
)  # fmt: skip
STYLES: tuple[str, ...] = ("photo", "painting", "sketch")

# Openers that say "photo" and nothing else, as in the templates of Textual Inversion.
_OPENERS: tuple[str, ...] = (
    "a close-up photo of a", "a cropped photo of the", "a bright photo of the", "the photo of a",
    "a good photo of the", "a photo of one", "a photo of my", "a photo of the cool",
    "a photo of a nice",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One view of a subject.

    context: one of CONTEXTS, None for a plain studio. colour: overrides the main colour.
    property, accessory, style: of PROPERTIES, ACCESSORIES (live subjects), STYLES.
    x, y: offset, -1..1. scale: 0.85..1.15. angle: degrees, about +-12. light: 0.85..1.12.
    seed: fixes every random detail of the surroundings.
    """

    context: str | None = None
    colour: str | None = None
    property: str | None = None
    accessory: str | None = None
    style: str = "photo"
    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    angle: float = 0.0
    flip: bool = False
    light: float = 1.0
    seed: int = 0


def sample_scene(
    rng: np.random.Generator,
    live: bool,
    *,
    context: str | None | EllipsisType = ...,
    style: str | None | EllipsisType = ...,
    plain: bool = False,
) -> Scene:
    """A random scene for a subject that is `live` or not.

    context: fixed when given, None meaning the studio; else a context 9 times in 10.
    style: fixed when given (None counts as not given). plain: an ordinary photo, without
    property, accessory or style.
    """
    # Every draw is made whatever was given, so that fixing one thing leaves the rest alone.
    where = CONTEXTS[int(rng.integers(len(CONTEXTS)))] if rng.random() < 0.9 else None
    how = STYLES[int(np.searchsorted((0.86, 0.93), rng.random(), side="right"))]
    luck = rng.random()
    prop = "shiny" if luck < 0.12 else "striped" if luck < 0.24 else None
    worn = ACCESSORIES[int(rng.integers(len(ACCESSORIES)))] if rng.random() < 0.3 else None
    x, y = (float(v) for v in rng.uniform(-1, 1, 2))
    scale, light = float(rng.uniform(0.85, 1.15)), float(rng.uniform(0.85, 1.12))
    angle = float(np.clip(rng.normal(0, 5), -12, 12))
    if not isinstance(style, EllipsisType) and style is not None:
        how = style
    return Scene(
        context=where if isinstance(context, EllipsisType) else context,
        property=None if plain else prop,
        accessory=worn if live and not plain else None,
        style="photo" if plain else how,
        x=x,
        y=y,
        scale=scale,
        angle=angle,
        flip=bool(rng.random() < 0.5),
        light=light,
        seed=int(rng.integers(2**31)),
    )


def _sentence(opener: str, words: list[str | None]) -> str:
    """Join opener and words, turning a final "a" into "an" before a vowel."""
    rest = " ".join(word for word in words if word)
    if opener.split()[-1] == "a" and rest[:1].lower() in "aeiou":
        opener += "n"
    return f"{opener} {rest}"


def caption(subject: Subject, scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the picture, with the omissions and openers of a human captioner.

    Property, accessory and style are always named; the colour often (never of a sketch, where
    it cannot be seen) and the context nearly always.
    """
    luck, pick = rng.random(), int(rng.integers(len(_OPENERS)))
    says_colour, says_context = rng.random() < 0.65, rng.random() < 0.92
    if scene.style != "photo":
        opener = f"a {scene.style} of a"
    elif luck < 0.55:
        opener = "a photo of a"
    else:
        opener = "a" if luck < 0.85 else _OPENERS[pick]
    colour = scene.colour if scene.colour is not None else subject.colour
    if scene.style == "sketch" or not says_colour:
        colour = ""
    context = scene.context if says_context else None
    return _sentence(opener, [scene.property, colour, subject.class_name, scene.accessory, context])


def prompt(
    class_name: str,
    *,
    colour: str | None = None,
    property: str | None = None,
    accessory: str | None = None,
    context: str | None = None,
    style: str = "photo",
    token: str | None = None,
) -> str:
    """The canonical caption: "a photo of a shiny red <token> backpack in the jungle"."""
    return _sentence(f"a {style} of a", [property, colour, token, class_name, accessory, context])
