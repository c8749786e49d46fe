"""Embedders say what stock transformers say of the same pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    ViTModel,
)

from twostage.evaluation.embedders import BATCH, CLIPEmbedder, ViTEmbedder
from twostage.pocket import pocket_folder

KINDS = {"vit": ViTModel, "dinov2": Dinov2Model, "registers": Dinov2WithRegistersModel}


def direct(kind: Any, folder: Path, pictures: list[Image.Image]) -> torch.Tensor:
    pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    with torch.inference_mode():
        return kind.from_pretrained(folder).eval()(**pixels).last_hidden_state


@pytest.mark.parametrize("name", KINDS)
def test_class_and_patch_tokens_are_those_of_the_stock_model(
    name: str, random_encoders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    folder = random_encoders[name]
    states = torch.nn.functional.normalize(direct(KINDS[name], folder, pictures), dim=-1)
    ours = ViTEmbedder(folder)
    torch.testing.assert_close(ours.images(pictures), states[:, 0])
    first = 4 if name == "registers" else 1
    assert ours.patches(pictures).shape == (len(pictures), 16, 24)
    torch.testing.assert_close(ours.patches(pictures), states[:, first:])


def test_clip_scores_are_those_of_the_stock_model(
    random_encoders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    folder = random_encoders["clip"]
    model, texts = CLIPModel.from_pretrained(folder).eval(), ["a photo of a dog in the snow", "a backpack"]
    pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**pixels, **tokens).logits_per_image / model.logit_scale.exp()
    ours = CLIPEmbedder(folder)
    torch.testing.assert_close(ours.images(pictures) @ ours.texts(texts).T, expected)


def test_weights_that_lack_tensors_are_refused(random_encoders: dict[str, Path], tmp_path: Path) -> None:
    """transformers would fill them with random numbers, and only warn."""
    folder = shutil.copytree(random_encoders["vit"], tmp_path / "vit")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layernorm\.weight is missing"):
        ViTEmbedder(folder)


def test_a_mask_covers_the_patches_it_is_white_on(random_encoders: dict[str, Path]) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 16))
    covered = ViTEmbedder(random_encoders["vit"]).foreground([mask])[0].reshape(4, 4)
    assert covered.tolist() == [[True, True, False, False]] + [[False] * 4] * 3


def test_thousands_of_prompts_are_read_some_at_a_time() -> None:
    encoder = CLIPEmbedder(pocket_folder("clip"))
    together: list[int] = []
    encoder.model.text_model.register_forward_pre_hook(
        lambda model, positional, named: together.append(len(named["input_ids"])), with_kwargs=True
    )
    prompts = [f"a dog number {number}" for number in range(BATCH + 9)]
    found = encoder.texts(prompts)
    assert together == [BATCH, 9]
    assert torch.allclose(found[[0, -1]], encoder.texts([prompts[0], prompts[-1]]), atol=1e-5)
