"""The loss: pure, per sample, and right for every prediction type."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from twostage.errors import UserError
from twostage.method.loss import (
    Question,
    check_prediction_type,
    denoising_loss,
    denoising_question,
    min_snr_weight,
)

KINDS = ["epsilon", "v_prediction", "sample"]


def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 5, 5, generator=generator)
    return latents, noise, torch.tensor([0, 500, 999])


def ask(scheduler: DDPMScheduler, rows: slice = slice(None)) -> Question:
    return denoising_question(scheduler, *(drawn[rows] for drawn in draws()))


def echo(noisy: torch.Tensor, timesteps: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A denoiser that does not denoise."""
    return noisy


@pytest.mark.parametrize("kind", KINDS)
def test_a_denoiser_that_knows_the_answer_has_no_loss(kind: str) -> None:
    """The target is what turns back into latents and noise by the scheduler's own formulas."""
    scheduler = DDPMScheduler(prediction_type=kind)
    latents, noise, timesteps = draws()
    alpha = scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    answers = {"epsilon": noise, "sample": latents, "v_prediction": alpha * noise - sigma * latents}

    loss = denoising_loss(lambda noisy, t, given: answers[kind], scheduler, ask(scheduler))

    assert torch.allclose(loss, torch.zeros(3), atol=1e-10)


def test_one_value_per_sample_and_no_randomness_of_its_own() -> None:
    scheduler = DDPMScheduler()

    together, again = (denoising_loss(echo, scheduler, ask(scheduler)) for _ in range(2))
    alone = [denoising_loss(echo, scheduler, ask(scheduler, slice(i, i + 1))) for i in range(3)]

    assert together.shape == (3,)
    assert torch.equal(together, again)
    assert torch.allclose(together, torch.cat(alone))


def test_the_denoiser_sees_the_schedulers_noisy_latents() -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    latents, noise, timesteps = draws()
    seen = []

    denoising_loss(lambda noisy, t, given: seen.append(noisy) or noisy, scheduler, ask(scheduler))

    assert torch.equal(seen[0], scheduler.add_noise(latents, noise, timesteps))


def test_an_unknown_prediction_type_is_named() -> None:
    with pytest.raises(UserError, match="flow"):
        check_prediction_type(DDPMScheduler(prediction_type="flow"))


# Weights of places


def weighted(asked: Question, weight: torch.Tensor | None) -> Question:
    return Question(asked.noisy, asked.timesteps, asked.target, weight)


def test_a_place_counts_as_much_as_its_weight() -> None:
    scheduler = DDPMScheduler()
    asked = ask(scheduler)
    weight = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(1))

    loss = denoising_loss(echo, scheduler, weighted(asked, weight))

    expected = (((asked.noisy - asked.target) ** 2) * weight).mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected)
    full = denoising_loss(echo, scheduler, weighted(asked, torch.ones(3, 1, 5, 5)))
    assert torch.equal(full, denoising_loss(echo, scheduler, asked))


def test_what_does_not_count_gets_no_gradient() -> None:
    scheduler = DDPMScheduler()
    weight = torch.ones(3, 1, 5, 5)
    weight[..., 2:] = 0
    output = torch.zeros(3, 4, 5, 5, requires_grad=True)

    denoising_loss(lambda noisy, t, given: output, scheduler, weighted(ask(scheduler), weight)).sum().backward()

    assert output.grad is not None
    assert (output.grad[..., 2:] == 0).all()
    assert (output.grad[..., :2] != 0).all()


@pytest.mark.parametrize("which", ["neither", "first", "second"])
def test_samples_asked_together_lose_what_they_lose_apart(which: str) -> None:
    scheduler = DDPMScheduler()
    weight = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    first = weighted(ask(scheduler), weight if which == "first" else None)
    second = weighted(ask(scheduler), weight if which == "second" else None)

    together = denoising_loss(echo, scheduler, first.followed_by(second))

    apart = [denoising_loss(echo, scheduler, asked) for asked in (first, second)]
    torch.testing.assert_close(together, torch.cat(apart))


# Min-SNR


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_are_the_papers(kind: str, gamma: float) -> None:
    """min(SNR, gamma) for predicted latents; over SNR for the noise, over SNR + 1 for the velocity."""
    scheduler = DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.arange(1000)
    alphas = scheduler.alphas_cumprod.double()
    snr = alphas / (1 - alphas)
    torch.testing.assert_close(compute_snr(scheduler, timesteps).double(), snr, rtol=1e-3, atol=0)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(1000)}[kind]

    weight = min_snr_weight(scheduler, timesteps, gamma)

    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.double(), snr.clamp_max(gamma) / divisor, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_all_prediction_types_weigh_the_same_error_of_the_picture_alike(kind: str) -> None:
    """An error of the latents by d is one of the noise by d alpha / sigma, of the velocity by d / sigma."""
    scheduler = DDPMScheduler(prediction_type=kind)
    timesteps = torch.arange(10, 990, 7)
    alphas = scheduler.alphas_cumprod[timesteps]
    error = {"epsilon": alphas / (1 - alphas), "v_prediction": 1 / (1 - alphas), "sample": torch.ones(len(timesteps))}
    judge = min_snr_weight(DDPMScheduler(prediction_type="sample"), timesteps, 5)
    torch.testing.assert_close(min_snr_weight(scheduler, timesteps, 5) * error[kind], judge, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_has_a_weight_too(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
    scheduler.alphas_cumprod[0] = 1.0  # And no noise at all at the other end.
    timesteps = torch.arange(1000)
    assert compute_snr(scheduler, timesteps)[-1] == 0
    weight = min_snr_weight(scheduler, timesteps, 5)
    assert weight.isfinite().all()
    assert weight[-1] == 1
    assert (weight[1:] > 0).all()


def test_the_loss_is_weighted_by_it_per_sample() -> None:
    scheduler = DDPMScheduler()
    asked = ask(scheduler)
    weight = min_snr_weight(scheduler, asked.timesteps, 5)
    assert weight[0] < 1e-2
    assert weight[2] == 1
    torch.testing.assert_close(
        denoising_loss(echo, scheduler, asked, 5), denoising_loss(echo, scheduler, asked) * weight
    )
