"""Pictures are those of stock diffusers, wherever the parts of the pipeline wait and however the VAE works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tests.watching import without
from twostage.display import Display
from twostage.families import load_base
from twostage.memory.storages import StorageTrace
from twostage.method.latents import encode_picture
from twostage.method.sampling import assemble, draw
from twostage.planning.rehearsal import rehearse
from twostage.recipe import Memory, Recipe, Sample
from twostage.run import train

PROMPTS, SEEDS = ["a photo", "snow", "a photo of a backpack"], [1, 2, 3]


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("halved", [False, True])
def test_pictures_are_those_of_the_stock_pipeline(tiny_base: Path, guidance: float, halved: bool) -> None:
    pipeline = assemble(load_base(str(tiny_base)))
    pipeline.unet.to(torch.bfloat16 if halved else torch.float32)
    configuration = dict(pipeline.config)
    with torch.autocast("cpu", torch.bfloat16, enabled=halved):
        ours = draw(pipeline, PROMPTS, SEEDS, Sample(num_inference_steps=3, guidance_scale=guidance), 16)
        theirs = pipeline(
            PROMPTS,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            num_inference_steps=3,
            guidance_scale=guidance,
            height=16,
            width=16,
        ).images
    assert np.array_equal(pixels(ours), pixels(theirs))
    assert dict(pipeline.config) == configuration


def test_a_vae_in_tiles_says_of_small_pictures_what_it_says_whole(tiny_base: Path) -> None:
    base, shown = load_base(str(tiny_base)), torch.rand(3, 16, 16) * 2 - 1
    whole = encode_picture(base, shown, torch.device("cpu"))
    base.vae_in_tiles = True
    tiled = encode_picture(base, shown, torch.device("cpu"))
    assert all(torch.equal(*pair) for pair in zip(whole, tiled, strict=True))
    pictures = [
        draw(assemble(found), PROMPTS, SEEDS, Sample(num_inference_steps=2), 16)
        for found in (base, load_base(str(tiny_base)))
    ]
    assert np.abs(pixels(pictures[0]) - pixels(pictures[1])).max() <= 1  # One by one they are rounded otherwise.


def test_tiles_are_those_of_diffusers_and_never_taken_for_a_whole_picture(tiny_base: Path) -> None:
    base, shown = load_base(str(tiny_base)), torch.rand(3, 32, 32) * 2 - 1
    whole, _ = encode_picture(base, shown, torch.device("cpu"))
    base.vae_in_tiles = True
    tiled, _ = encode_picture(base, shown, torch.device("cpu"))
    stock = AutoencoderKL.from_pretrained(tiny_base / "vae")
    stock.enable_tiling()
    with torch.no_grad():
        right = stock.encode(shown.unsqueeze(0)).latent_dist.mean[0] * stock.config.scaling_factor
    assert torch.equal(tiled, right)
    assert not torch.equal(tiled, whole)


def test_tiles_span_512_pixels_at_most() -> None:
    vae = load_base("pocket").vae
    assert vae.tile_sample_min_size == 64
    base = load_base("pocket")
    base.vae_in_tiles = True
    base.vae.tile_sample_min_size = 1024
    assert base.vae.tile_sample_min_size == 512
    assert base.vae.tile_latent_min_size == 512 // base.reduction


@torch.no_grad()
def test_tiles_and_one_picture_after_another_take_less_memory(tiny_base: Path) -> None:
    taken = {}
    for tiled in (False, True):
        base = load_base(str(tiny_base))
        base.vae_in_tiles = tiled
        vae, taken[tiled] = base.vae, []
        for shape in ((8, 4, 8, 8), (1, 4, 32, 32)):
            with StorageTrace() as trace:
                vae.decode(torch.zeros(shape))
            taken[tiled].append(trace.peak)
    assert all(less < 0.7 * more for less, more in zip(taken[True], taken[False], strict=True))


def test_a_run_with_a_vae_in_tiles_draws_and_its_plan_follows(tiny_recipe: Recipe, tmp_path: Path) -> None:
    data = tiny_recipe.data.model_copy(update={"resolution": 32})
    token = tiny_recipe.token.model_copy(update={"placeholder": "red"})
    whole = without(tiny_recipe, data=data, stage1=None, token=token)
    tiled = without(whole, memory=Memory(vae_tiling=True))
    encoding = [rehearse(recipe).phases[0].allocated for recipe in (whole, tiled)]
    assert encoding[1] < encoding[0]
    run = train(tiled, tmp_path / "run", display=Display())
    assert len(list((run / "samples").glob("*.png"))) == 2
