"""A procedural toy world: subjects, scenes, their pictures and their captions.

Small enough to train a whole text-to-image model on, and exact enough to measure one: what is
in a picture is known, so whether a generated one shows it can be judged by a classifier.
"""

from .draw import draw
from .scenes import (
    ACCESSORIES,
    CONTEXTS,
    PROPERTIES,
    STYLES,
    Scene,
    caption,
    prompt,
    sample_scene,
)
from .subjects import (
    CLASSES,
    COLOURS,
    EMBLEMS,
    LIVE,
    PATTERNS,
    Subject,
    sample_subject,
)

__all__ = [
    "ACCESSORIES",
    "CLASSES",
    "COLOURS",
    "CONTEXTS",
    "EMBLEMS",
    "LIVE",
    "PATTERNS",
    "PROPERTIES",
    "STYLES",
    "Scene",
    "Subject",
    "caption",
    "draw",
    "prompt",
    "sample_scene",
    "sample_subject",
]
