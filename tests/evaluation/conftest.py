"""Encoders for the tests of evaluation: one whose vectors can be told by eye, and stock ones of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from twostage.evaluation.material import Material, Shots
from twostage.pocket import pocket_folder, world

DREAMBOOTH = Path(__file__).resolve().parents[3] / "shared" / "dreambooth" / "dataset"
WORDS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


class Colours:
    """Sees the mean colour, as a vector of length 1; reads the first name of a colour."""

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        means = [torch.from_numpy(np.asarray(image, dtype=np.float32)).mean(dim=(0, 1)) for image in images]
        return torch.nn.functional.normalize(torch.stack(means), dim=1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([next(WORDS[w] for w in text.split() if w in WORDS) for text in prompts]).float()


@pytest.fixture
def drawn() -> Callable[..., Shots]:
    """Plain pictures of the colours named, those of one prompt together: (("red", "blue"), ("green",))."""

    def make(*groups: Sequence[str], plain: Sequence[str] = ()) -> Shots:
        images = [Image.new("RGB", (8, 8), name) for group in groups for name in group]
        places = tuple(place for place, group in enumerate(groups) for _ in group)
        prompts = tuple(f"{'red' if place == 0 else 'blue'} <rare> {place}" for place in range(len(groups)))
        return Shots(images, prompts, places, plain=tuple(plain))

    return make


@pytest.fixture
def taken() -> Callable[..., Shots]:
    """Plain photos of the colours named."""

    def make(*names: str) -> Shots:
        return Shots([Image.new("RGB", (8, 8), name) for name in names], masks=[None] * len(names))

    return make


@pytest.fixture
def material() -> Callable[..., Material]:
    """Material of the sets given, with the encoder of colours in every role."""

    def make(**sets: Shots) -> Material:
        return Material(sets, dict.fromkeys(("dino", "dinov2", "clip"), Colours()))

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Real photos of two subjects where the data set is at hand, else photos of the pocket world."""
    files = sorted(path for name in ("backpack", "dog") for path in (DREAMBOOTH / name).glob("*.jpg"))[:8]
    if files:
        return [Image.open(path).convert("RGB") for path in files]
    drawn = []
    for index in range(8):
        rng = np.random.default_rng(index)
        subject = world.sample_subject(rng)
        drawn.append(world.draw(subject, world.sample_scene(rng, subject.class_name in world.LIVE)))
    return drawn


@pytest.fixture(scope="session")
def random_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with stock models of random weights: "vit", "dinov2", "registers", "clip"."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    tower = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    models = {
        # DINO's own weights come without a pooler.
        "vit": ViTModel(ViTConfig(**size, intermediate_size=48), add_pooling_layer=False),
        "dinov2": Dinov2Model(Dinov2Config(**size)),
        "registers": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**size, num_register_tokens=3)),
        "clip": CLIPModel(
            CLIPConfig(
                text_config={**tower, "vocab_size": 2915, "eos_token_id": 2914, "bos_token_id": 2913},
                vision_config={**tower, "image_size": 32, "patch_size": 8},
                projection_dim=16,
            )
        ),
    }
    preprocessing = """{"image_processor_type": "ViTImageProcessor", "do_resize": true, "do_rescale": true,
        "do_normalize": true, "size": {"height": 32, "width": 32}, "resample": 3, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}"""
    for name, model in models.items():
        model.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(preprocessing, encoding="utf-8")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket_folder("clip") / file, root / "clip" / file)
    return {name: root / name for name in models}
