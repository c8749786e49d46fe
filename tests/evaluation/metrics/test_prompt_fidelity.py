"""How well pictures fit their prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from twostage.evaluation.embedders import CLIPEmbedder
from twostage.evaluation.figures import LeftOut
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics.prompt_fidelity import FIGURES


def test_each_picture_is_read_by_its_own_prompt(material: Callable[..., Material], drawn: Callable[..., Shots]) -> None:
    given = material(subject=drawn(("red", "yellow"), ("red", "blue"), plain=("a red bag", "a green bag")))
    # With the token the prompts say red and blue.
    assert FIGURES["clip_t"](given).values == pytest.approx([(1 + 0.5**0.5) / 2, 0])
    assert FIGURES["clip_t_token"](given).values == pytest.approx([(1 + 0.5**0.5) / 2, 0.5])
    assert FIGURES["clip_t"](given).title == "CLIP-T, text without the token"


def test_without_a_class_noun_there_is_no_text_without_the_token(
    material: Callable[..., Material], drawn: Callable[..., Shots]
) -> None:
    with pytest.raises(LeftOut, match="--class"):
        FIGURES["clip_t"](material(subject=drawn(("red",))))


def test_it_is_what_stock_clip_computes(random_encoders: dict[str, Path], pictures: list[Image.Image]) -> None:
    folder, texts = random_encoders["clip"], ("a dog in the snow", "a dog on the beach")
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures[:4], return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
    with torch.inference_mode():
        cosines = model(**pixels, **tokens).logits_per_image / model.logit_scale.exp()
    expected = [float(cosines[:2, 0].mean()), float(cosines[2:, 1].mean())]
    sets = {"subject": Shots(pictures[:4], texts, (0, 0, 1, 1), plain=texts)}
    figure = FIGURES["clip_t"](Material(sets, {"clip": CLIPEmbedder(folder)}))
    assert figure.values == pytest.approx(expected, abs=1e-5)
