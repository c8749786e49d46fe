"""Addressed randomness: a step's draws depend on its address alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twostage.errors import UserError
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


# Repeats and buckets


def make_buckets(shapes: list[tuple[int, int]], repeats: tuple[int, ...] = ()) -> Examples:
    """Photo i's latents are all i."""
    means = [torch.full((4, *shape), float(index)) for index, shape in enumerate(shapes)]
    view = Posterior(means, [torch.zeros_like(mean) for mean in means])
    return Examples((view,), lambda index, rng: str(index), 1000, 0, repeats=repeats)


def shown(examples: Examples, steps: int, rows: int) -> Counter[int]:
    batches = [examples.batch(1, step, range(rows), rows) for step in range(steps)]
    return Counter(int(latent.mean()) for batch in batches for latent in batch.latents)


def test_a_repeated_photo_is_shown_that_much_more_often() -> None:
    assert shown(make_buckets([(3, 3)] * 3, (1, 5, 2)), steps=8, rows=2) == {0: 2, 1: 10, 2: 4}


WIDE, HIGH, SQUARE = (2, 4), (4, 2), (3, 3)


def test_a_step_shows_one_bucket_and_every_photo_comes_equally_often() -> None:
    """Of a photo alone in its bucket there are whole steps, as many as it has a share of the photos."""
    examples = make_buckets([WIDE, HIGH, WIDE, SQUARE, WIDE])
    assert shown(examples, steps=15, rows=4) == dict.fromkeys(range(5), 12)
    repeated = make_buckets([WIDE, HIGH, WIDE], (1, 2, 3))
    assert shown(repeated, steps=12, rows=2) == {0: 4, 1: 8, 2: 12}


def test_buckets_come_in_another_order_each_round() -> None:
    examples = make_buckets([WIDE, HIGH, SQUARE])
    shapes = [tuple(examples.batch(1, step, range(1), 1).latents.shape[2:]) for step in range(30)]
    rounds = [tuple(shapes[start : start + 3]) for start in range(0, 30, 3)]
    assert all(set(one) == {WIDE, HIGH, SQUARE} for one in rounds)
    assert any(one != other for one, other in pairwise(rounds))


def test_two_halves_of_a_step_of_buckets_are_the_whole() -> None:
    """Processes and accumulated batches share the step's bucket, and its photos without showing one twice."""
    examples = make_buckets([WIDE, HIGH, WIDE, SQUARE])
    for step in range(8):
        whole = examples.batch(2, step, range(4), 4)
        halves = [examples.batch(2, step, rows, 4) for rows in (range(2), range(2, 4))]
        assert torch.equal(torch.cat([half.noise for half in halves]), whole.noise)
        assert torch.equal(torch.cat([half.latents for half in halves]), whole.latents)
        assert same(make_buckets([WIDE, HIGH, WIDE, SQUARE]).batch(2, step, range(4), 4), whole)


def test_photos_of_one_shape_are_drawn_as_if_there_were_no_buckets(tiny_base: Path, photos: Path) -> None:
    base, found = load_base(str(tiny_base)), find_photos(photos)[:1]
    batches = []
    for fit, size in (("crop", (16, 16)), ("bucket", (32, 32))):
        square = [replace(found[0], size=size)]
        examples = encode_photos(base, square, Data(fit=fit), "<rare> backpack", 0, torch.device("cpu"))
        batches.append(examples.batch(1, 3, range(2), 2))
    assert same(*batches)


def test_a_photo_goes_through_the_vae_in_its_bucket(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base))
    for name, size in (("a", (96, 32)), ("b", (32, 96)), ("c", (30, 30))):
        Image.effect_noise(size, 64).convert("RGB").save(tmp_path / f"{name}.png")
    found = find_photos(tmp_path)
    examples = encode_photos(base, found, Data(fit="bucket", resolution=32), "<rare> x", 0, torch.device("cpu"))
    wide, high, square = ([side * base.reduction for side in mean.shape[1:]] for mean in examples.views[0].mean)
    assert wide == high[::-1]
    assert wide[1] >= 2 * wide[0]
    assert square == [32, 32]
    with torch.no_grad():
        posterior = base.vae.encode(load_photo(found[0], (wide[1], wide[0]), "bucket").unsqueeze(0)).latent_dist
    assert torch.equal(examples.views[0].mean[0], posterior.mean[0] * base.vae.config.scaling_factor)


# Masks


def write_masked(folder: Path, mask: Image.Image) -> None:
    Image.effect_noise(mask.size, 64).convert("RGB").save(folder / "a.png")
    mask.save(folder / "a-masklabel.png")
    Image.effect_noise((32, 32), 64).convert("RGB").save(folder / "b.png")


def left_half(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def test_a_mask_becomes_the_weight_of_its_photo_and_is_mirrored_with_it(tiny_base: Path, tmp_path: Path) -> None:
    write_masked(tmp_path, left_half((32, 32)))
    base = load_base(str(tiny_base))
    data = Data(flip=True, unmasked_weight=0.25)
    examples = encode_photos(base, find_photos(tmp_path), data, "<rare> x", 0, torch.device("cpu"))
    upright, mirrored = (view.weight for view in examples.views)
    assert upright and mirrored
    side = 16 // base.reduction
    expected = torch.full((1, side, side), 0.25)
    expected[..., : side // 2] = 1
    torch.testing.assert_close(upright[0], expected)
    assert torch.equal(mirrored[0], upright[0].flip(-1))
    assert (upright[1] == 1).all()

    batch = examples.batch(2, 0, range(4), 4)
    assert batch.weight is not None
    assert batch.weight.shape == (4, 1, side, side)
    asked = batch.to(torch.device("cpu")).question(base.noise_scheduler)
    assert asked.weight is not None and torch.equal(asked.weight, batch.weight)


def test_without_masks_there_are_no_weights(tiny_base: Path, photos: Path) -> None:
    base, found = load_base(str(tiny_base)), find_photos(photos)
    examples = encode_photos(base, found, Data(), "<rare> x", 0, torch.device("cpu"))
    assert examples.batch(1, 0, range(2), 2).weight is None


def test_a_mask_that_leaves_nothing_to_learn_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    write_masked(tmp_path, Image.new("L", (32, 32)))
    base, found, cpu = load_base(str(tiny_base)), find_photos(tmp_path), torch.device("cpu")
    with pytest.raises(UserError, match=r"a-masklabel\.png is black"):
        encode_photos(base, found, Data(unmasked_weight=0), "<rare> x", 0, cpu)
    encode_photos(base, found, Data(), "<rare> x", 0, cpu)
