"""Does a picture show the subject? Mean cosine with photos of it: DINO and CLIP-I of DreamBooth (arXiv 2208.12242).

    score = mean over generated g and photos r of f(g) . f(r)

-1..1, higher is better. "seen" has the photos trained on as r, "unseen" those held out: only the second cannot be had
by copying. DINO and DINOv2 tell subjects of a class apart; CLIP-I, trained on captions, less so.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from twostage.evaluation.figures import Figure, by_prompt
from twostage.evaluation.material import Material, SetName

TITLES = {"dino": "DINO", "dinov2": "DINOv2", "clip": "CLIP-I"}


def identity(generated: Tensor, references: Tensor) -> float:
    """Mean pairwise cosine of generated pictures (N, D) and reference photos (M, D); -1..1, higher is better.

    Both of length 1, as the embedders give them.
    """
    return float((generated @ references.T).mean())


def gap_closed(score: float, untouched: float, real: float) -> float:
    """How much of the way from the untouched model to real photos a score has gone: 0..1, higher is better."""
    return (score - untouched) / (real - untouched)


def _figure(material: Material, role: str, photos: SetName) -> Figure:
    shots = material.get("subject")
    scores = (material.embedded(role, "subject") @ material.embedded(role, photos).T).mean(dim=1)
    whose = "held-out photos" if photos == "unseen" else "training photos"
    return Figure(
        f"{'clip_i' if role == 'clip' else role}_{photos}",
        f"{TITLES[role]}, {whose}",
        by_prompt(scores.tolist(), shots.places),
        -1,
        1,
        "higher",
        shots.prompts,
    )


FIGURES = {
    "dino_seen": partial(_figure, role="dino", photos="seen"),
    "dino_unseen": partial(_figure, role="dino", photos="unseen"),
    "dinov2_seen": partial(_figure, role="dinov2", photos="seen"),
    "dinov2_unseen": partial(_figure, role="dinov2", photos="unseen"),
    "clip_i_seen": partial(_figure, role="clip", photos="seen"),
    "clip_i_unseen": partial(_figure, role="clip", photos="unseen"),
}
