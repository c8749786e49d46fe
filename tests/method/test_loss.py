"""The loss: pure, per sample, and right for every prediction type."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from twostage.errors import UserError
from twostage.method.loss import check_prediction_type, denoising_loss


def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 5, 5, generator=generator)
    return latents, noise, torch.tensor([0, 500, 999])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_denoiser_that_knows_the_answer_has_no_loss(kind: str) -> None:
    """The target is what turns back into latents and noise by the scheduler's own formulas."""
    scheduler = DDPMScheduler(prediction_type=kind)
    latents, noise, timesteps = draws()
    alpha = scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    answers = {"epsilon": noise, "sample": latents, "v_prediction": alpha * noise - sigma * latents}

    loss = denoising_loss(lambda noisy, t: answers[kind], scheduler, latents, noise, timesteps)

    assert torch.allclose(loss, torch.zeros(3), atol=1e-10)


def test_one_value_per_sample_and_no_randomness_of_its_own() -> None:
    scheduler = DDPMScheduler()
    latents, noise, timesteps = draws()

    together = denoising_loss(lambda noisy, t: noisy, scheduler, latents, noise, timesteps)
    again = denoising_loss(lambda noisy, t: noisy, scheduler, latents, noise, timesteps)
    alone = [denoising_loss(lambda x, t: x, scheduler, *(d[i : i + 1] for d in draws())) for i in range(3)]

    assert together.shape == (3,)
    assert torch.equal(together, again)
    assert torch.allclose(together, torch.cat(alone))


def test_the_denoiser_sees_the_schedulers_noisy_latents() -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    latents, noise, timesteps = draws()
    seen = []

    denoising_loss(lambda noisy, t: seen.append(noisy) or noisy, scheduler, latents, noise, timesteps)

    assert torch.equal(seen[0], scheduler.add_noise(latents, noise, timesteps))


def test_an_unknown_prediction_type_is_named() -> None:
    with pytest.raises(UserError, match="flow"):
        check_prediction_type(DDPMScheduler(prediction_type="flow"))
