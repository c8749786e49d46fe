"""Addressed randomness: a step's draws depend on its address alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from twostage.families import load_base
from twostage.method.examples import Batch, Examples, Posterior, encode_photos
from twostage.recipe import Data
from twostage.subject.photos import find_photos, load_photo


def make_examples(photos: int = 4, *, seed: int = 0, views: int = 1) -> Examples:
    means = torch.arange(photos * 1.0).view(-1, 1, 1, 1).expand(-1, 4, 3, 3)
    posteriors = tuple(Posterior(means + 100 * view, torch.zeros(photos, 4, 3, 3)) for view in range(views))

    def prompt(index: int, rng: np.random.Generator) -> str:
        return f"{index} {rng.integers(1000)}"

    return Examples(posteriors, prompt, 1000, seed)


def same(one: Batch, other: Batch) -> bool:
    tensors = all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("latents", "noise", "timesteps"))
    return tensors and one.prompts == other.prompts


def test_a_step_can_be_drawn_again_without_those_before_it() -> None:
    first, second = make_examples(), make_examples()
    batches = [first.batch(1, step, range(4), 4) for step in range(5)]
    assert same(second.batch(1, 4, range(4), 4), batches[4])


def test_draws_take_nothing_from_torchs_or_numpys_global_generators() -> None:
    torch.manual_seed(1)
    expected = make_examples().batch(1, 0, range(2), 2)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert same(make_examples().batch(1, 0, range(2), 2), expected)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_two_halves_of_a_step_are_the_whole() -> None:
    """What two processes, or two accumulated batches, draw is what one large batch draws."""
    examples = make_examples()
    whole = examples.batch(2, 7, range(4), 4)
    left, right = examples.batch(2, 7, range(2), 4), examples.batch(2, 7, range(2, 4), 4)
    assert torch.equal(torch.cat([left.noise, right.noise]), whole.noise)
    assert torch.equal(torch.cat([left.latents, right.latents]), whole.latents)
    assert left.prompts + right.prompts == whole.prompts


def test_seed_stage_step_and_row_all_change_the_draw() -> None:
    noises = [
        make_examples(seed=seed).batch(stage, step, range(row, row + 1), 8).noise
        for seed, stage, step, row in [(0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    ]
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 5


def test_a_seed_of_63_bits_is_a_seed() -> None:
    make_examples(seed=2**63 - 1).batch(1, 10_000, range(1), 1)


def test_every_photo_is_shown_equally_often() -> None:
    examples = make_examples(photos=4)
    shown = Counter()
    for step in range(6):
        shown.update(int(latent.mean()) for latent in examples.batch(1, step, range(2), 2).latents)
    assert shown == {0: 3, 1: 3, 2: 3, 3: 3}


def test_mirrored_views_are_drawn_about_half_the_time() -> None:
    examples = make_examples(views=2)
    mirrored = sum(int(examples.batch(1, step, range(1), 1).latents.mean() >= 100) for step in range(200))
    assert 70 < mirrored < 130


def test_the_photos_posterior_is_the_stock_vaes(tiny_base: Path, photos: Path) -> None:
    """Mean and spread are cached, in the U-Net's scale; flips go through the VAE, not through the latents."""
    base, found = load_base(str(tiny_base)), find_photos(photos)
    examples = encode_photos(base, found, Data(flip=True), "<rare> backpack", 0, torch.device("cpu"))

    pixels = load_photo(found[2], base.resolution, "crop").unsqueeze(0)
    for view, picture in zip(examples.views, (pixels, pixels.flip(-1)), strict=True):
        with torch.no_grad():
            posterior = base.vae.encode(picture).latent_dist
        assert torch.equal(view.mean[2], posterior.mean[0] * base.vae.config.scaling_factor)
        assert torch.equal(view.std[2], posterior.std[0] * base.vae.config.scaling_factor)


def test_latents_are_sampled_anew_in_each_step(tiny_base: Path, photos: Path) -> None:
    examples = encode_photos(
        load_base(str(tiny_base)), find_photos(photos)[:1], Data(), "<rare> backpack", 0, torch.device("cpu")
    )
    assert not torch.equal(examples.batch(1, 0, range(1), 1).latents, examples.batch(1, 1, range(1), 1).latents)
