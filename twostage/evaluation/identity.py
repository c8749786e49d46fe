"""Does a picture show the subject? DINO's protocol of the DreamBooth paper (arXiv 2208.12242, section 4.2)."""

from __future__ import annotations

from torch import Tensor


def identity(generated: Tensor, references: Tensor) -> float:
    """Mean pairwise cosine of generated pictures (N, D) and reference photos (M, D); -1..1, higher is better.

    Both of length 1, as the embedders give them. With references that were trained on the score is "seen", with
    others "unseen": only the second cannot be had by copying.
    """
    return float((generated @ references.T).mean())


def gap_closed(score: float, untouched: float, real: float) -> float:
    """How much of the way from the untouched model to real photos a score has gone: 0..1, higher is better."""
    return (score - untouched) / (real - untouched)
