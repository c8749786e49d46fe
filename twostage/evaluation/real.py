"""The row of real photos: what a perfect likeness scores, photos of the subject standing for pictures of it."""

from __future__ import annotations

from torch import Tensor

from twostage.evaluation.figures import Better, Figure, LeftOut
from twostage.evaluation.material import Material
from twostage.evaluation.metrics.copying import nearest
from twostage.evaluation.metrics.identity import TITLES


def real_row(material: Material) -> list[Figure]:
    """Identity of real photos, and how near a new one is to those trained on.

    With photos held out, each pair of a training and a held-out photo counts once, for "seen" and "unseen" alike, and
    held-out photos stand for pictures in `copying`. With none, pairs of different training photos stand for "seen"; the
    titles say so. Left out is what cannot be had: from a single photo there is nothing. Photos of one sitting resemble
    each other more than new ones would, so the row is a bound to read with care.
    """
    figures: list[Figure] = []
    for role, title in TITLES.items():
        try:
            seen = material.embedded(role, "seen")
        except LeftOut:
            continue
        name = "clip_i" if role == "clip" else role
        try:
            unseen = material.embedded(role, "unseen")
        except LeftOut:
            if len(seen) > 1:
                figures.append(_figure(f"{name}_seen", f"{title}, training photos with each other", _apart(seen)))
            continue
        score = float((seen @ unseen.T).mean())
        figures += [_figure(f"{name}_{which}", f"{title}, training with held-out photos", score) for which in _SETS]
        if role == "dino":
            value = float(nearest(unseen, seen).mean())
            figures.append(_figure("copying", "Nearest training photo of held-out ones (DINO)", value, "lower"))
    return figures


_SETS = ("seen", "unseen")


def _apart(photos: Tensor) -> float:
    """Mean cosine of different photos (N, D)."""
    cosines, count = photos @ photos.T, len(photos)
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))


def _figure(name: str, title: str, value: float, better: Better = "higher") -> Figure:
    return Figure(name, title, (value,), -1, 1, better)
