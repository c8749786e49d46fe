"""Does a picture show the subject, whatever is around it? Concept preservation of MaSC (arXiv 2605.22469) on DINO.

    score = mean over patches p of the subject in photo r of (max over patches q of picture g of f(p) . f(q))

over the held-out photos that have a foreground mask. -1..1, higher is better. The background of the photos counts for
nothing, and the subject may stand anywhere in the picture. MaSC itself reads SigLIP2; figures do not compare.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from twostage.evaluation.figures import Figure, LeftOut, by_prompt
from twostage.evaluation.material import Material, PatchEncoder

# Pictures whose patches are in memory together.
_BATCH = 64


def preservation(generated: Tensor, subject: Tensor) -> Tensor:
    """Score of each picture.

    Args:
        generated: patches of the pictures, (N, P, D) of length 1.
        subject: patches of the subject in one photo, (F, D) of length 1.

    Returns:
        (N,), -1..1.
    """
    return (generated @ subject.T).amax(dim=1).mean(dim=1)


def _figure(material: Material) -> Figure:
    shots, photos = material.get("subject"), material.get("unseen")
    encoder = cast(PatchEncoder, material.encoder("dino"))
    covered = {i: encoder.foreground([mask])[0] for i, mask in enumerate(photos.masks) if mask is not None}
    if not covered:
        raise LeftOut("no held-out photo has a foreground mask: put a-masklabel.png, white on the subject, by a.jpg")
    subjects = [encoder.patches([photos.images[i]])[0][inside] for i, inside in covered.items() if inside.any()]
    if not subjects:
        raise LeftOut("no mask of a held-out photo covers half a patch; make the subject white in it")
    scores: list[float] = []
    for start in range(0, len(shots.images), _BATCH):
        drawn = encoder.patches(shots.images[start : start + _BATCH])
        scores += torch.stack([preservation(drawn, subject) for subject in subjects]).mean(dim=0).tolist()
    title = "DINO of the subject's patches, held-out photos"
    return Figure("masked_dino_unseen", title, by_prompt(scores, shots.places), -1, 1, "higher", shots.prompts)


FIGURES = {"masked_dino_unseen": _figure}
