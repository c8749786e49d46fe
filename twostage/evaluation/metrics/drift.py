"""What has become of everything else? 1 - cosine of what base and result draw of the same prompt and noise (DINO).

0..2, lower is better; 0 is a picture that training did not change. `drift_class` is of the bare class and
`drift_unrelated` of prompts that have nothing to do with the subject. Pairs of one seed show small changes that sets of
pictures hide. There is a value for each picture: the class has one prompt alone, whose noise is what varies.
"""

from __future__ import annotations

from functools import partial

from twostage.evaluation.figures import Figure
from twostage.evaluation.material import Material, SetName


def _figure(material: Material, name: SetName, base: SetName, title: str) -> Figure:
    shots = material.get(name)
    after, before = material.embedded("dino", name), material.embedded("dino", base)
    assert shots.places == material.get(base).places, "the base draws the same prompts"
    values = (1 - (after * before).sum(dim=1)).clamp(min=0).tolist()
    return Figure(f"drift_{name}", title, tuple(values), 0, 2, "lower", shots.prompt_of_each)


FIGURES = {
    "drift_class": partial(_figure, name="class", base="base_class", title="Drift of the class"),
    "drift_unrelated": partial(_figure, name="unrelated", base="base_unrelated", title="Drift of unrelated prompts"),
}
