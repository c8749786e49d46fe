"""Has the class become the subject? PRES of DreamBooth (arXiv 2208.12242): language drift.

    PRES = mean over pictures g of the bare class and photos r of the subject of f(g) . f(r)        (DINO)

-1..1, lower is better: "a photo of a backpack" should show any backpack. What the class has in common with the subject
is in it too, so `dpres` is PRES less that of the untouched base on the same seeds: -2..2, lower is better, 0 is no
drift. The photos are those trained on. There is a value for each picture, since there is one prompt alone.
"""

from __future__ import annotations

from torch import Tensor

from twostage.evaluation.figures import Figure
from twostage.evaluation.material import Material, SetName


def _scores(material: Material, name: SetName) -> Tensor:
    return (material.embedded("dino", name) @ material.embedded("dino", "seen").T).mean(dim=1)


def _pres(material: Material) -> Figure:
    shots, scores = material.get("class"), _scores(material, "class")
    values = tuple(scores.tolist())
    return Figure("pres", "PRES: class pictures like the subject", values, -1, 1, "lower", shots.prompt_of_each)


def _dpres(material: Material) -> Figure:
    shots, scores, before = material.get("class"), _scores(material, "class"), _scores(material, "base_class")
    values = tuple((scores - before).tolist())
    return Figure("dpres", "PRES less that of the base", values, -2, 2, "lower", shots.prompt_of_each)


FIGURES = {"pres": _pres, "dpres": _dpres}
