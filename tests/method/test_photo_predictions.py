"""A prior from the subject's own photos: the untouched base's predictions there, for the class alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from twostage.display import Display
from twostage.families import load_base
from twostage.method.class_samples import ClassSamples, Making
from twostage.method.examples import Examples, encode_photos
from twostage.method.photo_predictions import prepare_photo_predictions
from twostage.recipe import Data, Prior
from twostage.subject.photos import find_photos

PROMPT = "a photo of a backpack"
CPU = torch.device("cpu")
Make = Callable[..., ClassSamples]


@pytest.fixture
def make(tiny_base: Path, photos: Path) -> Make:
    """The prior of photos by the tiny base."""

    def make(folder: Path = photos, fit: str = "crop", **options: Any) -> ClassSamples:
        prior, base, data = Prior(preserve=True, source="photos", **options), load_base(str(tiny_base)), Data(fit=fit)
        making = Making(prior, "", base, data, 0, Accelerator(), Display())
        examples = encode_photos(base, find_photos(folder), data, "red backpack", 0, CPU)
        return prepare_photo_predictions(making, examples, [PROMPT] * len(examples.views[0].mean))

    return make


def test_they_are_what_the_untouched_base_says_of_the_class(tiny_base: Path, make: Make, cache: Path) -> None:
    """Stock pieces, asked for the class alone; no picture is drawn and nothing kept on disk."""
    samples = make(num_class_images=6, sample_batch_size=4)
    assert samples.prompts == [PROMPT]
    assert not list(cache.glob("class*")) + list(cache.glob("predictions*"))
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    encoder = CLIPTextModel.from_pretrained(tiny_base / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(tiny_base / "scheduler")
    asked = samples.batch(2, 0, range(6), 6).question(scheduler)
    assert len(asked.timesteps.unique()) > 3
    with torch.no_grad():
        states = encoder(tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids)[0]
        said = unet(asked.noisy, asked.timesteps, states.expand(6, -1, -1)).sample
    torch.testing.assert_close(asked.target, said, atol=1e-5, rtol=1e-4)


def test_what_is_held_to_are_noised_photos(tiny_base: Path, photos: Path, make: Make) -> None:
    """Of all of them, the least noised ones are each one photo's latents and the noise of their level."""
    asked = make(num_class_images=40).batch(2, 0, range(40), 40).asked
    view = encode_photos(load_base(str(tiny_base)), find_photos(photos), Data(), "", 0, CPU).views[0]
    signal = DDPMScheduler.from_pretrained(tiny_base / "scheduler").alphas_cumprod[asked.timesteps]
    nearest = set()
    for place in signal.argsort(descending=True)[:12]:
        level = signal[place]
        powers = [
            float(((asked.noisy[place] - level.sqrt() * mean).square() / (level * std**2 + 1 - level)).mean())
            for mean, std in zip(view.mean, view.std, strict=True)
        ]
        nearest.add(powers.index(min(powers)))
        assert 0.5 < min(powers) < 1.5
    assert len(nearest) > 1


def test_more_noised_photos_begin_with_the_same(make: Make) -> None:
    few, many = (make(num_class_images=count) for count in (3, 5))

    def shown(samples: ClassSamples, count: int) -> set[tuple[float, ...]]:
        return {tuple(row.flatten().tolist()) for row in samples.batch(2, 0, range(count), count).asked.noisy}

    assert shown(few, 3) < shown(many, 5)
    assert len(shown(many, 5)) == 5


def test_every_photo_has_its_turn_before_any_comes_again(make: Make) -> None:
    samples = make(num_class_images=8)
    shown = torch.cat([samples.batch(2, step, range(2), 2).asked.noisy for step in range(4)])
    assert len({tuple(row.flatten().tolist()) for row in shown}) == 8


def test_photos_in_buckets_are_held_to_in_their_own_shape(
    tiny_base: Path, photos: Path, make: Make, tmp_path: Path
) -> None:
    """That of the subject's samples in the same step; where too few were asked for, another is good enough."""
    both = Path(shutil.copytree(photos, tmp_path / "both"))
    Image.open(both / "0.png").rotate(90, expand=True).save(both / "turned.png")
    own: Examples = encode_photos(
        load_base(str(tiny_base)), find_photos(both), Data(fit="bucket"), "red backpack", 0, CPU
    )
    many, one = make(both, "bucket", num_class_images=20), make(both, "bucket", num_class_images=1)
    shapes = set()
    for step in range(10):
        shape = own.batch(2, step, range(3), 3).latents.shape
        assert many.batch(2, step, range(3), 3).asked.noisy.shape == shape
        assert one.batch(2, step, range(3), 3).asked.noisy.shape[0] == 3
        shapes.add(shape)
    assert len(shapes) == 2
