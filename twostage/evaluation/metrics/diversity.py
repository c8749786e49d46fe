"""Do pictures of one prompt differ? 1 - mean cosine over their pairs, in DINO's space.

0..2, higher is better: a model that has learned its photos by heart draws one picture again and again. A counterpart
of DreamBooth's DIV (arXiv 2208.12242; see diversity_lpips.py) that needs no weights besides DINO's. Read
it beside identity: pictures of nothing in particular differ most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twostage.evaluation.figures import Figure, LeftOut, of_prompts
from twostage.evaluation.material import Material


def diversity(pictures: Tensor) -> float:
    """1 - mean cosine of all pairs of at least two pictures (N, D) of length 1; 0..2."""
    first, second = torch.triu_indices(len(pictures), len(pictures), offset=1)
    return max(float(1 - (pictures[first] * pictures[second]).sum(dim=1).mean()), 0.0)


def _figure(material: Material) -> Figure:
    shots, embedded = material.get("subject"), material.embedded("dino", "subject")
    groups = of_prompts(shots.places)
    if min(map(len, groups)) < 2:
        raise LeftOut("one picture a prompt has nothing to differ from; draw two (--images-per-prompt 2)")
    values = tuple(diversity(embedded[torch.from_numpy(group)]) for group in groups)
    return Figure("diversity", "Diversity (DINO)", values, 0, 2, "higher", shots.prompts)


FIGURES = {"diversity": _figure}
