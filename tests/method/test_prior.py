"""Prior preservation: the loss is the paper's, and what it holds to comes from the untouched base."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.random_sd15 import SIZES, write_pipeline
from twostage.display import Display, Update
from twostage.errors import UserError
from twostage.families import load_base
from twostage.method.class_images import _DRAWING
from twostage.method.class_samples import ClassSamples, Making, address, torch_seed
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.examples import encode_photos
from twostage.method.photo_predictions import prepare_photo_predictions
from twostage.method.prior import Preserving, check_prior, class_prompt, find_class_images, prepare_prior
from twostage.recipe import Data, Prior
from twostage.subject.captions import all_prompts
from twostage.subject.photos import find_photos

# The head of a PNG of 2^31 by 2^31 pixels.
TOO_LARGE = bytes.fromhex("89504e470d0a1a0a0000000d494844527fffffff7fffffff08020000009bab9c31")
PROMPT = "a photo of a backpack"
CPU = torch.device("cpu")


class Counting(Display):
    """Remembers what was said, and how much of what was made."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.made: dict[str, int] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        def update(done: int, **numbers: float) -> None:
            self.made[label] = done

        yield update


@pytest.fixture
def make(tiny_base: Path, photos: Path) -> Callable[..., tuple[ClassSamples, Counting]]:
    """Class samples of the tiny base, and what their making showed."""

    def make(base: Path = tiny_base, seed: int = 0, **options: Any) -> tuple[ClassSamples, Counting]:
        settings = {"preserve": True, "num_class_images": 4, "num_inference_steps": 4, "states_per_path": 2, **options}
        prior, display = Prior(**settings), Counting()
        making = Making(prior, PROMPT, load_base(str(base)), Data(), seed, Accelerator(), display)
        if prior.source == "photos":
            examples = encode_photos(making.base, find_photos(photos), Data(), "red backpack", seed, CPU)
            return prepare_photo_predictions(making, examples, [PROMPT] * len(examples.views[0].mean)), display
        return prepare_prior(making, find_class_images(prior)), display

    return make


def drawn(cache: Path) -> list[Path]:
    """Files of class images and predictions; latents have no numbers."""
    return sorted(path for path in cache.rglob("0000*"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


# The loss


@pytest.mark.parametrize("source", ["images", "predictions", "photos"])
def test_the_loss_is_the_subjects_plus_lambda_times_the_priors(
    tiny_base: Path, photos: Path, make: Any, source: str
) -> None:
    """Written out with stock pieces: two denoising losses, sample by sample (arXiv 2208.12242, eq. 2)."""
    base, found = load_base(str(tiny_base)), find_photos(photos)
    examples = encode_photos(base, found, Data(), "red backpack", 0, CPU)
    samples = make(source=source)[0]
    batch = Preserving(examples, samples).batch(2, 3, range(2), 2)
    states = encode_prompts(base, [*all_prompts(found, Data(), "red backpack"), *samples.prompts], str, CPU)
    with torch.no_grad():
        loss = DenoiserLearner(base, EncodedText(states), prior_weight=0.3)(batch)

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    encoder = CLIPTextModel.from_pretrained(tiny_base / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(tiny_base / "scheduler")

    def error(noisy: torch.Tensor, timesteps: torch.Tensor, target: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        ids = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            output = unet(noisy, timesteps, encoder(ids)[0]).sample
        return (output - target).pow(2).mean((1, 2, 3))

    own = error(
        scheduler.add_noise(batch.latents, batch.noise, batch.timesteps), batch.timesteps, batch.noise, batch.prompts
    )
    prior = batch.prior
    assert prior
    if source == "images":
        noisy = scheduler.add_noise(prior.latents, prior.noise, prior.timesteps)
        held = error(noisy, prior.timesteps, prior.noise, [PROMPT] * 2)
    else:
        held = error(prior.asked.noisy, prior.asked.timesteps, prior.asked.target, [PROMPT] * 2)
        assert held.max() < 1e-4  # The base still says what it said, but for float16.
    torch.testing.assert_close(loss, own + 0.3 * held, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("source", ["images", "predictions", "photos"])
def test_the_priors_draws_are_addressed_and_leave_the_subjects_alone(
    tiny_base: Path, photos: Path, make: Any, source: str
) -> None:
    examples = encode_photos(load_base(str(tiny_base)), find_photos(photos), Data(), "red backpack", 0, CPU)
    both = Preserving(examples, make(source=source)[0])
    scheduler = load_base(str(tiny_base)).noise_scheduler
    whole = both.batch(2, 5, range(4), 4)
    alone = examples.batch(2, 5, range(4), 4)
    assert torch.equal(whole.noise, alone.noise)
    assert torch.equal(whole.latents, alone.latents)
    halves = [both.batch(2, 5, rows, 4).prior for rows in (range(2), range(2, 4))]
    for name in ("noisy", "timesteps", "target"):
        parts = [getattr(half.question(scheduler), name) for half in halves]
        assert torch.equal(torch.cat(parts), getattr(whole.prior.question(scheduler), name))
    assert not torch.equal(whole.prior.question(scheduler).target, alone.noise)


def test_photos_of_another_shape_than_the_priors_pictures_have_the_same_loss(
    tiny_base: Path, photos: Path, make: Any
) -> None:
    """Photos in buckets: both losses, each in a batch of its own."""
    base, found = load_base(str(tiny_base)), find_photos(photos)
    examples = encode_photos(base, found, Data(fit="bucket"), "red backpack", 0, CPU)
    samples = make()[0]
    batch = Preserving(examples, samples).batch(2, 3, range(2), 2)
    assert batch.prior
    assert batch.prior.latents.shape != batch.latents.shape
    states = encode_prompts(base, [*all_prompts(found, Data(), "red backpack"), *samples.prompts], str, CPU)
    with torch.no_grad():
        learner = DenoiserLearner(base, EncodedText(states), prior_weight=0.3)
        expected = learner(replace(batch, prior=None)) + 0.3 * learner(batch.prior)
        torch.testing.assert_close(learner(batch), expected)


# Class images


def test_class_images_are_what_stock_diffusers_draws(tiny_base: Path, make: Any, cache: Path) -> None:
    make(num_class_images=3)
    stock = StableDiffusionPipeline.from_pretrained(tiny_base)
    stock.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(torch_seed(address(_DRAWING, 0, index))) for index in range(3)]
    pictures = stock([PROMPT] * 3, generator=generators, num_inference_steps=4, guidance_scale=7.5).images
    assert [np.asarray(picture).tolist() for picture in pictures] == [pixels(path).tolist() for path in drawn(cache)]


@pytest.mark.parametrize(("source", "label"), [("images", "class images"), ("predictions", "class predictions")])
def test_what_the_cache_has_is_not_made_again(make: Any, cache: Path, source: str, label: str) -> None:
    first = make(source=source)[1]
    assert first.made[label] == 4
    before = {path: path.read_bytes() for path in drawn(cache)}
    assert label not in make(source=source)[1].made
    assert label not in make(source=source, num_class_images=3)[1].made
    more = make(source=source, num_class_images=6)[1]
    assert more.made[label] == 2
    assert {path: path.read_bytes() for path in drawn(cache) if path in before} == before
    assert len(drawn(cache)) == 6


@pytest.mark.parametrize("source", ["images", "predictions"])
@pytest.mark.parametrize("other", ["base", "seed", "guidance_scale"])
def test_the_cache_of_another_base_seed_or_sampler_is_not_used(
    make: Any, cache: Path, tmp_path: Path, source: str, other: str
) -> None:
    make(source=source, num_class_images=1)
    if other == "base":
        write_pipeline(tmp_path / "base", SIZES["tiny"], seed=1)
    change = {"base": tmp_path / "base", "seed": 1, "guidance_scale": 2.0}[other]
    assert sum(make(source=source, num_class_images=1, **{other: change})[1].made.values()) >= 1
    one, two = drawn(cache)
    assert one.read_bytes() != two.read_bytes()


def test_a_picture_does_not_depend_on_how_many_are_drawn_together(make: Any, cache: Path) -> None:
    make(sample_batch_size=4)
    together = [pixels(path) for path in drawn(cache)]
    shutil.rmtree(cache)
    make(num_class_images=2), make(sample_batch_size=1)
    for path, picture in zip(drawn(cache), together, strict=True):
        assert abs(pixels(path) - picture).max() <= 1


@pytest.mark.parametrize("source", ["images", "predictions"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-30],
        lambda data: data[:40] + b"x" + data[41:],
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: TOO_LARGE,
    ],
)
def test_a_broken_file_of_the_cache_is_made_again_to_the_bit(make: Any, cache: Path, source: str, damage: Any) -> None:
    """Alone, without those it had been made together with, it would be rounded in another way."""
    make(source=source)
    file = drawn(cache)[1]
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again = make(source=source)[1]
    assert next(iter(again.made.values())) == 1
    assert file.read_bytes() == whole


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("source", ["images", "predictions"])
def test_a_pipe_in_the_cache_is_not_waited_for(make: Any, cache: Path, source: str) -> None:
    make(source=source)
    pipes = [path for path in cache.rglob("*") if path.is_file()]
    for path in pipes:
        path.unlink()
        os.mkfifo(path)
    assert next(iter(make(source=source)[1].made.values())) == 4
    assert all(path.is_file() for path in drawn(cache))


def test_the_users_folder_is_used_and_never_written_to(make: Any, cache: Path, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "own"))
    (own / "1.txt").write_text("a green backpack")
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    samples, display = make(class_images=own, num_class_images=6)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    assert len(drawn(cache)) == 2
    assert any(str(own) in line and "draws the other 2" in line for line in display.said)
    assert samples.prompts == [PROMPT, "a green backpack"]
    shown = {prompt for step in range(6) for prompt in samples.batch(2, step, range(1), 1).prompts}
    assert shown == set(samples.prompts)
    shutil.rmtree(cache)
    assert not make(class_images=own, num_class_images=3)[1].said
    assert not drawn(cache)


def test_an_empty_folder_of_the_users_is_filled_up_in_the_cache(make: Any, cache: Path, tmp_path: Path) -> None:
    make(class_images=tmp_path)
    assert len(drawn(cache)) == 4
    assert not list(tmp_path.iterdir())


# Predictions


def test_kept_predictions_are_the_bases_own_along_a_stock_ddim_path(tiny_base: Path, make: Any, cache: Path) -> None:
    make(source="predictions", num_class_images=2, states_per_path=4, guidance_scale=3.0)
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    encoder = CLIPTextModel.from_pretrained(tiny_base / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    ids = tokenizer(["", PROMPT], padding="max_length", return_tensors="pt").input_ids
    scheduler = DDIMScheduler.from_config(
        DDPMScheduler.from_pretrained(tiny_base / "scheduler").config, clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(4)
    for path in drawn(cache):
        kept = load_file(path)
        assert kept["noisy"].dtype == kept["predictions"].dtype == torch.float16
        assert kept["timesteps"].diff().tolist() == [-250] * 3
        for state, timestep in enumerate(kept["timesteps"]):
            noisy = kept["noisy"][state : state + 1].float()
            with torch.no_grad():
                without, output = unet(noisy.repeat(2, 1, 1, 1), timestep, encoder(ids)[0]).sample.chunk(2)
            torch.testing.assert_close(kept["predictions"][state].float(), output[0], atol=5e-3, rtol=5e-3)
            stepped = scheduler.step(without + 3.0 * (output - without), timestep, noisy).prev_sample
            if state < 3:
                torch.testing.assert_close(kept["noisy"][state + 1].float(), stepped[0], atol=2e-2, rtol=1e-2)


def test_paths_pass_every_part_of_the_noise(make: Any, cache: Path) -> None:
    make(source="predictions", num_class_images=12, num_inference_steps=10, states_per_path=2, sample_batch_size=12)
    timesteps = torch.stack([load_file(path)["timesteps"] for path in drawn(cache)])
    assert timesteps.min() >= 0
    assert timesteps.max() < 1000
    assert (timesteps[:, 0] >= 500 - 100).all()
    assert (timesteps[:, 1] < 500).all()
    assert len(timesteps.unique()) > 12


def test_predictions_come_in_turn(make: Any) -> None:
    samples, display = make(source="predictions")
    assert any("4 paths of 2 predictions" in line for line in display.said)
    shown = [samples.batch(2, step, range(4), 4).asked.noisy for step in range(2)]
    assert len({tuple(row.flatten().tolist()) for row in torch.cat(shown)}) == 8


def test_a_file_that_vanishes_in_training_is_told_in_one_line(make: Any, cache: Path) -> None:
    samples = make(source="predictions")[0]
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="--resume") as error:
        samples.batch(2, 0, range(1), 1)
    assert "\n" not in str(error.value)


# What cannot work


def test_a_class_prompt_needs_its_class() -> None:
    assert class_prompt(Prior(), " stuffed  animal ") == "a photo of a stuffed animal"
    assert class_prompt(Prior(class_prompt="a dog"), "") == "a dog"
    with pytest.raises(UserError, match="--class backpack"):
        class_prompt(Prior(), " ")


@pytest.mark.parametrize(
    ("options", "token", "match"),
    [
        ({"source": "predictions", "num_inference_steps": 1000, "class_prompt": "a"}, "backpack", "has the token"),
        ({"num_inference_steps": 1000}, "sks", "num_inference_steps 1000"),
    ],
)
def test_what_the_base_cannot_do_is_refused_before_it_is_loaded(
    tiny_base: Path, options: dict[str, Any], token: str, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        check_prior(Prior(**options), PROMPT, [], load_base(str(tiny_base)), token)
