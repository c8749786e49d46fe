"""Rectified flow: its levels, and the loss that diffusers' training script makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)

from twostage.display import Display
from twostage.errors import UserError
from twostage.flow import DENSITIES, FlowMatching
from twostage.method.loss import denoising_loss, denoising_question, min_snr_weight
from twostage.recipe import Recipe, Stage2
from twostage.run import train

# What the script calls the densities, and what it draws levels for with them.
SCHEMES = {"logit_normal": "logit_normal", "mode": "mode", "uniform": "none"}


@pytest.fixture
def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_loss_is_that_of_diffusers_own_script(
    scheduler: FlowMatchEulerDiscreteScheduler, preconditioned: bool
) -> None:
    """As in examples/dreambooth/train_dreambooth_sd3.py, with and without --precondition_outputs."""
    generator = torch.Generator().manual_seed(0)
    latents, noise, answer = (torch.randn(4, 16, 8, 8, generator=generator) for _ in range(3))
    indices = torch.tensor([0, 3, 500, 999])
    sigmas = scheduler.sigmas[indices].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    prediction, target = (answer * -sigmas + noisy, latents) if preconditioned else (answer, noise - latents)
    weighting = compute_loss_weighting_for_sd3(weighting_scheme="logit_normal", sigmas=sigmas)
    theirs = (weighting * (prediction - target) ** 2).reshape(4, -1).mean(1)

    flow = FlowMatching(scheduler)
    asked = denoising_question(flow, latents, noise, 999 - indices)
    assert torch.equal(asked.timesteps, scheduler.timesteps[indices])
    torch.testing.assert_close(asked.noisy, noisy, rtol=0, atol=1e-6)
    told = "latents" if preconditioned else "velocity"
    ours = denoising_loss(lambda *_: answer, flow, asked, flow_weighting=told)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
def test_levels_come_as_often_as_in_diffusers(scheduler: FlowMatchEulerDiscreteScheduler, density: str) -> None:
    flow, rng = FlowMatching(scheduler).drawn(density), np.random.default_rng(0)
    ours = np.sort([999 - flow.draw_level(rng) for _ in range(20_000)])
    drawn = compute_density_for_timestep_sampling(
        SCHEMES[density], 20_000, 0.0, 1.0, 1.29, generator=torch.Generator().manual_seed(0)
    )
    theirs = np.sort((drawn * 1000).long().clamp_max(999).numpy())
    assert ours[0] >= 0 and ours[-1] <= 999
    # The largest distance of the two distributions; by chance it is below 0.02 in all but one of a thousand.
    places = np.arange(1000)
    distance = np.abs(np.searchsorted(ours, places, "right") - np.searchsorted(theirs, places, "right")).max() / 20_000
    assert distance < 0.02
    other = np.sort([999 - FlowMatching(scheduler, "uniform").draw_level(rng) for _ in range(20_000)])
    apart = np.abs(np.searchsorted(ours, places, "right") - np.searchsorted(other, places, "right")).max() / 20_000
    assert (apart > 0.05) == (density != "uniform")


def test_min_snr_of_a_flow_is_that_of_its_latents(scheduler: FlowMatchEulerDiscreteScheduler) -> None:
    """x_0 = x_s - s velocity: an error of the velocity is s times as large in the latents."""
    flow = FlowMatching(scheduler)
    timesteps = flow.told(torch.tensor([0, 100, 500, 998, 999]))
    level = timesteps.double() / 1000
    wanted = level.square() * ((1 - level) / level).square().clamp_max(5.0)
    wanted[-1] = 1.0  # Where there is no signal; see `min_snr_weight`.
    torch.testing.assert_close(min_snr_weight(flow, timesteps, 5.0).double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("option", [{"flow_weighting": "latents"}, {"flow_levels": "mode"}])
def test_options_of_a_flow_are_refused_where_none_was_learned(
    tiny_recipe: Recipe, tmp_path: Path, option: dict[str, str]
) -> None:
    (name,) = option
    assert tiny_recipe.stage2
    recipe = tiny_recipe.model_copy(update={"stage2": tiny_recipe.stage2.model_copy(update=option)})
    with pytest.raises(UserError, match=rf"stage2\.{name} = '\w+' would do nothing: [^\n]*'epsilon'; leave it out$"):
        train(recipe, tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


def test_two_weightings_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="snr_gamma = 5 weighs noise levels, and so does flow_weighting = 'latents'"):
        Stage2(steps=1, learning_rate=1e-3, snr_gamma=5.0, flow_weighting="latents")
