"""Does a picture show what was asked for? CLIP-T: mean cosine of a picture with its prompt (arXiv 2208.12242).

    score = mean over generated g of f_image(g) . f_text(prompt of g)

-1..1, higher is better; good pictures have about 0.3 with OpenAI's CLIP. The paper does not say whether the token
stays in the text: `clip_t` leaves it out ("a photo of a backpack on the beach"), so that every strategy is read by the
same words; `clip_t_token` has the prompt as the model got it, the token spelled in letters that say nothing to CLIP.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch

from twostage.evaluation.figures import Figure, LeftOut, by_prompt
from twostage.evaluation.material import Material, TextEncoder


def _figure(material: Material, with_token: bool) -> Figure:
    shots = material.get("subject")
    texts = shots.prompts if with_token else shots.plain
    if not texts:
        raise LeftOut("there is no text without the token; a class noun is needed (--class)")
    pictures = material.embedded("clip", "subject")
    read = cast(TextEncoder, material.encoder("clip")).texts(texts)
    if not torch.isfinite(read).all():
        raise LeftOut("the clip encoder sees no numbers in a prompt; get it anew")
    scores = (pictures * read[list(shots.places)]).sum(dim=1)
    name, title = ("clip_t_token", "with") if with_token else ("clip_t", "without")
    values = by_prompt(scores.tolist(), shots.places)
    return Figure(name, f"CLIP-T, text {title} the token", values, -1, 1, "higher", shots.prompts)


FIGURES = {"clip_t": partial(_figure, with_token=False), "clip_t_token": partial(_figure, with_token=True)}
