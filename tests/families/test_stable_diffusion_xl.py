"""Stable Diffusion XL: what its two text encoders and its U-Net are told is what stock diffusers tells them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image

from benchmarks.random_bases import stable_diffusion_xl
from twostage.display import Display
from twostage.families import Base, load_base
from twostage.method.class_samples import Making
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import encode_photos
from twostage.method.prior import find_class_images, prepare_prior
from twostage.recipe import Data, Prior, Token
from twostage.subject.photos import find_photos
from twostage.subject.tokens import Placeholders, add_placeholder

BASES = {"sdxl": lambda folder: stable_diffusion_xl.write_pipeline(folder, stable_diffusion_xl.SIZES["tiny"])}
CPU = torch.device("cpu")
SIDE = 32


@pytest.fixture
def base(xl_folder: Path) -> Base:
    return load_base(str(xl_folder))


# Prompts


def test_states_of_prompts_are_those_of_stock_diffusers(base: Base) -> None:
    prompts = ["a photo of a red backpack", "snow"]
    stock = StableDiffusionXLPipeline.from_pretrained(base.folder)
    states, negative, pooled, negative_pooled = stock.encode_prompt(prompts, device=CPU)
    ours, nothing = base.encode_text(prompts), base.encode_text([""]).repeated(2)
    assert torch.equal(ours["states"], states) and torch.equal(ours["pooled"], pooled)
    assert not negative.any()
    assert torch.equal(nothing["states"], negative) and torch.equal(nothing["pooled"], negative_pooled)


def test_the_empty_prompt_is_encoded_where_the_pipeline_says_so(base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(base.folder, tmp_path / "base")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    _, negative, _, pooled = stock.encode_prompt("snow", device=CPU)
    nothing = load_base(str(folder)).encode_text([""])
    assert negative.any() and torch.equal(nothing["states"], negative) and torch.equal(nothing["pooled"], pooled)


def test_the_state_of_a_whole_prompt_is_that_of_its_end_whatever_tokens_were_added(base: Base) -> None:
    """The published configuration would have it end at the token: what follows would not be told."""
    assert json.loads((base.folder / "text_encoder_2" / "config.json").read_text())["eos_token_id"] == 2
    for name, encoder in base.text.encoders.items():
        add_placeholder(base.text.tokenizers[name], encoder, Token())
    snow, beach = base.encode_text(["a <rare> in the snow", "a <rare> on the beach"])["pooled"]
    assert not torch.equal(snow, beach)


# Pictures


def told(examples: Any, size: tuple[int, int] | None = None) -> set[tuple[int, ...]]:
    """All that samples tell of their photos; those of one size of latents."""
    batches = [examples.batch(2, step, range(2), 2) for step in range(8)]
    if size:
        batches = [batch for batch in batches if tuple(batch.latents.shape[-2:]) == size]
    return {tuple(int(number) for number in row) for batch in batches for row in batch.given["time_ids"]}


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        # As compute_time_ids of diffusers' train_text_to_image_sdxl.py, whose Resize has the shorter side be 32:
        # height and width of the photo, top and left of the cut, height and width of what is left.
        ((40, 32), "crop", (32, 40, 0, 4, 32, 32)),
        ((300, 450), "crop", (450, 300, 8, 0, 32, 32)),
        ((1024, 768), "crop", (768, 1024, 0, 5, 32, 32)),
        ((16, 16), "crop", (16, 16, 0, 0, 32, 32)),
        ((300, 450), "pad", (450, 300, 0, 0, 32, 32)),
        # In a bucket, which is 26 wide and 38 high, nearly nothing is cut.
        ((300, 450), "bucket", (450, 300, 0, 0, 38, 26)),
    ],
)
def test_the_unet_is_told_the_photos_size_its_cut_and_what_is_left(
    base: Base, tmp_path: Path, size: tuple[int, int], fit: Any, expected: tuple[int, ...]
) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "photo.png")
    data = Data(photos=tmp_path, fit=fit, flip=True)
    examples = encode_photos(base, find_photos(tmp_path), data, "red backpack", 0, CPU)
    assert told(examples) == {expected}


def test_a_photo_that_lies_on_its_side_is_told_as_it_is_seen(base: Base, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (450, 300), "teal").save(tmp_path / "photo.jpg", exif=exif)
    examples = encode_photos(base, find_photos(tmp_path), Data(photos=tmp_path), "red backpack", 0, CPU)
    assert told(examples) == {(450, 300, 8, 0, 32, 32)}


def test_each_photo_of_a_batch_is_told_for_itself(base: Base, tmp_path: Path) -> None:
    for name, size in {"a": (40, 32), "b": (32, 48), "c": (64, 48)}.items():
        Image.new("RGB", size, "teal").save(tmp_path / f"{name}.png")
    examples = encode_photos(base, find_photos(tmp_path), Data(photos=tmp_path), "red backpack", 0, CPU)
    assert told(examples) == {(32, 40, 0, 4, 32, 32), (48, 32, 8, 0, 32, 32), (48, 64, 0, 5, 32, 32)}


@pytest.mark.parametrize("source", ["images", "predictions"])
def test_prior_samples_are_told_their_own_sizes(base: Base, tmp_path: Path, source: Any) -> None:
    """The user's as photos are; those of the base's own, which are squares, as stock diffusers tells of squares."""
    Image.new("RGB", (48, 36), "gold").save(tmp_path / "own.png")
    options = Prior(
        source=source,
        num_class_images=2,
        num_inference_steps=2,
        states_per_path=1,
        class_images=tmp_path if source == "images" else None,
    )
    making = Making(options, "a photo of a backpack", base, Data(), 0, Accelerator(), Display())
    samples = prepare_prior(making, find_class_images(options))
    questions = [samples.batch(2, step, range(2), 2).question(base.noise_scheduler) for step in range(2)]
    found = {tuple(int(number) for number in row) for asked in questions for row in asked.given["time_ids"]}
    own = {(36, 48, 0, 5, 32, 32)} if source == "images" else set()
    assert found == {(32, 32, 0, 0, 32, 32)} | own


def test_the_loss_is_stock_diffusers_unets(base: Base, photos: Path) -> None:
    """Written out with stock pieces, on what the samples are."""
    examples = encode_photos(base, find_photos(photos), Data(), "red backpack", 0, CPU)
    batch = examples.batch(2, 3, range(2), 2)
    prompts = list(dict.fromkeys(batch.prompts))
    with torch.no_grad():
        loss = DenoiserLearner(base, EncodedText(encode_prompts(base, prompts, str, CPU)))(batch)
    stock = StableDiffusionXLPipeline.from_pretrained(base.folder)
    states, _, pooled, _ = stock.encode_prompt(batch.prompts, device=CPU, do_classifier_free_guidance=False)
    noisy = base.noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    sizes = torch.tensor([[32.0, 40, 0, 4, 32, 32]] * 2)
    added = {"text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        output = stock.unet(noisy, batch.timesteps, states, added_cond_kwargs=added).sample
    torch.testing.assert_close(loss, (output - batch.noise).pow(2).mean((1, 2, 3)), atol=1e-6, rtol=1e-5)


# Rows


def learner_of(base: Base) -> EmbeddingLearner:
    added = {}
    for name, encoder in base.text.encoders.items():
        added[name] = Placeholders((add_placeholder(base.text.tokenizers[name], encoder, Token(initializer="red")),))
    return EmbeddingLearner(base, added)


def test_stage_1_learns_a_row_in_each_table_and_nothing_else(base: Base, photos: Path) -> None:
    examples = encode_photos(base, find_photos(photos), Data(), "<rare> backpack", 0, CPU)
    learner = learner_of(base)
    assert [tuple(parameter.shape) for parameter in learner.parameters()] == [(1, 16), (1, 24)]
    learner(examples.batch(1, 0, range(2), 2)).mean().backward()
    assert all(rows.grad is not None and rows.grad.abs().max() > 0 for rows in learner.every_row.values())
    nets = [*base.text.encoders.values(), base.denoiser]
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())


# The VAE


def test_the_vae_works_in_float32_whatever_is_around_it(base: Base) -> None:
    """The published one's activations overflow float16."""
    pixels, latents = torch.rand(1, 3, SIDE, SIDE) * 2 - 1, torch.randn(1, 4, 16, 16)
    stock = AutoencoderKL.from_pretrained(base.folder / "vae")
    with torch.no_grad():
        mean = stock.encode(pixels).latent_dist.mean * stock.config.scaling_factor
        picture = stock.decode(latents / stock.config.scaling_factor).sample
        with torch.autocast("cpu", torch.bfloat16):
            assert stock.encode(pixels).latent_dist.mean.dtype == torch.bfloat16
            ours = base.family.encode_images(base.vae, pixels)[0]
            drawn = base.family.decode(base.vae, latents.bfloat16())
    assert torch.equal(ours, mean)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, picture, atol=0.05, rtol=0.05)  # Of latents that were rounded.
