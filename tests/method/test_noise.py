"""Offset noise: addressed like every draw, and right in mean and spread."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.method.test_examples import make_examples
from twostage.families import load_base
from twostage.method.noise import OffsetNoise


def test_noise_gets_one_offset_for_each_sample_and_channel_and_nothing_else_changes() -> None:
    plain, noisy = make_examples(), OffsetNoise(make_examples(), 0.1, 0)
    before, after = plain.batch(1, 3, range(4), 4), noisy.batch(1, 3, range(4), 4)
    offsets = after.noise - before.noise
    spread = offsets.flatten(2)
    torch.testing.assert_close(spread, spread[..., :1].expand_as(spread), atol=1e-6, rtol=0)
    assert len(set((spread[..., 0] * 1e4).round().flatten().tolist())) == 16
    assert torch.equal(before.latents, after.latents)
    assert torch.equal(before.timesteps, after.timesteps)
    assert before.prompts == after.prompts
    assert after.noise.dtype == torch.float32


def test_offsets_are_normal_and_as_large_as_asked_for() -> None:
    plain, noisy = make_examples(), OffsetNoise(make_examples(), 0.1, 0)
    offsets = torch.cat(
        [noisy.batch(1, k, range(8), 8).noise - plain.batch(1, k, range(8), 8).noise for k in range(100)]
    )[..., 0, 0]
    assert abs(offsets.mean()) < 0.01
    assert 0.09 < offsets.std() < 0.11


def test_offsets_are_drawn_by_address() -> None:
    noisy = OffsetNoise(make_examples(), 0.1, 0)
    whole = noisy.batch(2, 7, range(4), 4)
    halves = [OffsetNoise(make_examples(), 0.1, 0).batch(2, 7, rows, 4) for rows in (range(2), range(2, 4))]
    assert torch.equal(torch.cat([half.noise for half in halves]), whole.noise)
    assert not torch.equal(OffsetNoise(make_examples(), 0.1, 1).batch(2, 7, range(4), 4).noise, whole.noise)


def test_the_denoiser_is_asked_for_the_offset_too(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    batch = OffsetNoise(make_examples(), 0.5, 0).batch(1, 0, range(2), 2)
    assert torch.equal(batch.question(base.noise_scheduler).target, batch.noise)
