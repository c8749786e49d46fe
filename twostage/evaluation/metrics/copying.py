"""Are the training photos given back? The nearest of them to each picture, in DINO's space.

    nearest(g) = max over training photos r of f(g) . f(r)

`copying` is its mean and `copying_p95` its 95th percentile over pictures; -1..1, lower is better, but a good likeness
is near its photos too: read them against the row of real photos, where held-out photos stand for pictures. Copies raise
the percentile first. `overfit_gap` is identity with training photos less that with held-out ones (identity.py); -2..2,
lower is better, around 0 what was learned is the subject and not its photos.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from twostage.evaluation.figures import Figure, by_prompt
from twostage.evaluation.material import Material


def nearest(pictures: Tensor, photos: Tensor) -> Tensor:
    """Cosine of each picture (N, D) with the nearest photo (M, D), (N,)."""
    return (pictures @ photos.T).amax(dim=1)


def _copying(material: Material) -> Figure:
    shots = material.get("subject")
    scores = nearest(material.embedded("dino", "subject"), material.embedded("dino", "seen"))
    values = by_prompt(scores.tolist(), shots.places)
    return Figure("copying", "Nearest training photo (DINO)", values, -1, 1, "lower", shots.prompts)


def _copying_p95(material: Material) -> Figure:
    scores = nearest(material.embedded("dino", "subject"), material.embedded("dino", "seen"))
    value = float(np.percentile(scores.numpy(), 95))
    return Figure("copying_p95", "Nearest training photo, 95th percentile", (value,), -1, 1, "lower")


def _overfit_gap(material: Material) -> Figure:
    shots, drawn = material.get("subject"), material.embedded("dino", "subject")
    seen, unseen = material.embedded("dino", "seen"), material.embedded("dino", "unseen")
    gaps = (drawn @ seen.T).mean(dim=1) - (drawn @ unseen.T).mean(dim=1)
    values = by_prompt(gaps.tolist(), shots.places)
    return Figure("overfit_gap", "DINO of training less held-out photos", values, -2, 2, "lower", shots.prompts)


FIGURES = {"copying": _copying, "copying_p95": _copying_p95, "overfit_gap": _overfit_gap}
