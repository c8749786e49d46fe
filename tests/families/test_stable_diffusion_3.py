"""Stable Diffusion 3: what its three text encoders and its transformer are told is what stock diffusers tells them."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from benchmarks.random_bases.stable_diffusion_3 import SIZES, write_pipeline
from twostage.errors import UserError
from twostage.families import Base, load_base
from twostage.method.adapter import find_targets
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import encode_photos
from twostage.method.predictions import _Way
from twostage.method.sampling import assemble, draw
from twostage.recipe import Data, Sample, Token
from twostage.subject.photos import find_photos
from twostage.subject.tokens import Placeholders, add_placeholder

BASES = {"sd3": partial(write_pipeline, size=SIZES["tiny"])}
CPU = torch.device("cpu")
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture
def base(sd3_folder: Path) -> Base:
    return load_base(str(sd3_folder))


@pytest.mark.parametrize("t5", [True, False])
def test_states_of_prompts_are_those_of_stock_diffusers(sd3_folder: Path, sd3_without_t5: Path, t5: bool) -> None:
    """Of a prompt that is longer than what CLIP reads, and one that is longer than what T5 does, too."""
    own = sd3_folder if t5 else sd3_without_t5
    prompts = ["a photo of a red backpack", "snow " * 120, "snow " * 300]
    base, stock = load_base(str(own)), StableDiffusion3Pipeline.from_pretrained(own, **({} if t5 else NO_T5))
    with torch.no_grad():
        states, negative, pooled, negative_pooled = stock.encode_prompt(prompts, None, None, device=CPU)
        ours, nothing = base.encode_text(prompts), base.encode_text([""]).repeated(3)
    assert ours["states"].shape == (3, 77 + 256, 32)
    assert ours["states"][:, 77:].any() == t5
    told = {"states": states, "pooled": pooled}, {"states": negative, "pooled": negative_pooled}
    for found, theirs in zip((ours, nothing), told, strict=True):
        for name, tensor in theirs.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)


def test_stage_1_learns_a_row_in_each_of_three_tables_and_nothing_else(base: Base, photos: Path) -> None:
    examples = encode_photos(base, find_photos(photos), Data(), "<rare> backpack", 0, CPU)
    added = {
        name: Placeholders((add_placeholder(base.text.tokenizers[name], encoder, Token(initializer="red")),))
        for name, encoder in base.text.encoders.items()
    }
    learner = EmbeddingLearner(base, added)
    assert [tuple(parameter.shape) for parameter in learner.parameters()] == [(1, 16), (1, 16), (1, 32)]
    learner(examples.batch(1, 0, range(2), 2)).mean().backward()
    assert all(rows.grad is not None and rows.grad.abs().max() > 0 for rows in learner.every_row.values())
    nets = [*base.text.encoders.values(), base.denoiser]
    assert all(parameter.grad is None for net in nets for parameter in net.parameters())


def test_t5_reads_a_token_that_was_added_and_the_words_around_it(base: Base) -> None:
    tokenizer, encoder = base.tokenizers["text_encoder_3"], base.component("text_encoder_3")
    plain = tokenizer("a photo of a backpack").input_ids
    placeholder = add_placeholder(tokenizer, encoder, Token(num_vectors=2))
    ids = tokenizer(placeholder.expand("a photo of a <rare> backpack")).input_ids
    assert [row for row in ids if row not in placeholder.token_ids] == plain
    assert [row for row in ids if row in placeholder.token_ids] == placeholder.token_ids


def test_latents_are_those_of_diffusers_script(base: Base) -> None:
    """Its VAE shifts what it scales."""
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    vae = StableDiffusion3Pipeline.from_pretrained(base.folder, transformer=None, **NO_T5).vae
    assert vae.config.shift_factor
    with torch.no_grad():
        mean = (vae.encode(pixels).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
        ours, deviation = base.family.encode_images(base.vae, pixels)
        torch.testing.assert_close(ours, mean)
        torch.testing.assert_close(deviation, vae.encode(pixels).latent_dist.std * vae.config.scaling_factor)
        decoded = vae.decode(mean / vae.config.scaling_factor + vae.config.shift_factor).sample
        torch.testing.assert_close(base.family.decode(base.vae, mean), decoded)


def test_the_loss_is_stock_diffusers_transformers(base: Base, photos: Path) -> None:
    """Written out with stock pieces, on what the samples are."""
    batch = encode_photos(base, find_photos(photos), Data(), "red backpack", 0, CPU).batch(2, 3, range(2), 2)
    with torch.no_grad():
        text = EncodedText(encode_prompts(base, list(dict.fromkeys(batch.prompts)), str, CPU))
        loss = DenoiserLearner(base, text)(batch)
        stock = StableDiffusion3Pipeline.from_pretrained(base.folder)
        states, _, pooled, _ = stock.encode_prompt(batch.prompts, None, None, device=CPU)
        indices = 999 - batch.timesteps  # The scheduler's levels go from the most noise to the least.
        sigmas = stock.scheduler.sigmas[indices].view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * batch.latents + sigmas * batch.noise
        output = stock.transformer(noisy, states, pooled, stock.scheduler.timesteps[indices]).sample
    torch.testing.assert_close(loss, (output - (batch.noise - batch.latents)).pow(2).mean((1, 2, 3)))


@pytest.mark.parametrize(("name", "value"), [("patch_size", "2"), ("pos_embed_max_size", None), ("patch_size", 0)])
def test_a_setting_of_another_kind_is_refused_in_one_line(
    sd3_folder: Path, tmp_path: Path, name: str, value: Any
) -> None:
    own = Path(shutil.copytree(sd3_folder, tmp_path / "base"))
    file = own / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {name: value}))
    with pytest.raises(UserError, match=name) as caught:
        load_base(str(own)).check_side(32)
    assert len(str(caught.value).splitlines()) == 1


def test_towards_the_class_alone_is_what_the_class_alone_draws(base: Base) -> None:
    """All that the transformer is told is told by name."""
    pipeline, seeds = assemble(base), [3, 4]
    both = [("a photo of a red backpack", "a photo of a backpack"), ("snow", "snow")]
    how = Sample(num_inference_steps=3, guidance_scale=4.0, class_guidance=1.0)
    guided, plain, apart = (
        np.stack([np.asarray(picture).astype(int) for picture in draw(pipeline, prompts, seeds, options, 32)])
        for prompts, options in (
            (both, how),
            ([kind for _, kind in both], how),
            (both, how.model_copy(update={"class_guidance": 0.0})),
        )
    )
    assert np.abs(guided - plain).max() <= 1
    assert np.abs(apart - plain)[0].max() > 1


def test_a_prior_goes_from_noise_to_picture_as_stock_diffusers_does(base: Base) -> None:
    """By its scheduler's steps, on the way's own levels."""
    way, generator = _Way(base.noise_scheduler, 5), torch.Generator().manual_seed(0)
    levels = torch.arange(999, 0, -200)
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(base.folder / "scheduler")
    stock.set_timesteps(sigmas=((levels + 1) / 1000).tolist())
    latents = theirs = torch.randn(1, 16, 4, 4, generator=generator)
    for level, timestep in zip(levels, stock.timesteps, strict=True):
        output = torch.randn(1, 16, 4, 4, generator=generator)
        torch.testing.assert_close(way.told(level.view(1)), timestep.view(1))
        latents = way.step(output, level.view(1), latents)
        theirs = stock.step(output, timestep, theirs).prev_sample
        torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["attention+ff", "all"])
def test_presets_of_an_adapter_are_what_they_say(base: Base, target: str) -> None:
    found = {re.sub(r"^transformer_blocks\.\d\.", "", name) for name in find_targets(base.denoiser, "lora", [target])}
    feed_forward = {"ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"}
    assert feed_forward <= found
    assert ("norm1.linear" in found) == (target == "all")
