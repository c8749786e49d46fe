"""The denoising loss, as a pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from twostage.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Question:
    """What the denoiser is asked, and what it should put out.

    Attributes:
        noisy: (B, C, h, w), scaled.
        timesteps: (B,) int64 in [0, num_train_timesteps).
        target: (B, C, h, w).
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor


def denoising_question(noise_scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Question:
    """Latents on their way to noise, and what the denoiser should put out for them.

    Args:
        noise_scheduler: gives the noise levels and what the denoiser predicts.
        latents: (B, C, h, w), scaled.
        noise: (B, C, h, w), standard normal.
        timesteps: (B,) in [0, num_train_timesteps).
    """
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    return Question(noisy, timesteps, denoising_target(noise_scheduler, latents, noise, timesteps))


def denoising_loss(
    predict: Predict,
    noise_scheduler: DDPMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    prior: Question | None = None,
    prior_weight: float = 1.0,
) -> Tensor:
    """Mean squared error of the denoiser's output, per sample (arXiv 2006.11239, eq. 14, for any prediction type).

    With a prior, that of prior sample i, times its weight, is added to that of sample i (arXiv 2208.12242, eq. 2).

    Args:
        predict: noisy latents and timesteps -> the denoiser's output, shaped like the latents. Asked once: with a
            prior, for B samples and then their B prior samples.
        noise_scheduler, latents, noise, timesteps: as in `denoising_question`.
        prior: B prior samples.
        prior_weight: lambda.

    Returns:
        (B,) float32.
    """
    asked = denoising_question(noise_scheduler, latents, noise, timesteps)
    if prior is None:
        return _squared_error(predict, asked)
    assert len(prior.noisy) == len(latents), "prior samples pair with samples"
    both = Question(
        torch.cat([asked.noisy, prior.noisy]),
        torch.cat([asked.timesteps, prior.timesteps]),
        torch.cat([asked.target, prior.target]),
    )
    own, kept = _squared_error(predict, both).chunk(2)
    return own + prior_weight * kept


def _squared_error(predict: Predict, asked: Question) -> Tensor:
    error = predict(asked.noisy, asked.timesteps).float() - asked.target.float()
    return error.square().flatten(1).mean(1)


def denoising_target(noise_scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should put out: the noise, the velocity (arXiv 2202.00512), or the latents themselves."""
    kind = noise_scheduler.config.prediction_type
    assert kind in PREDICTION_TYPES, kind
    if kind == "epsilon":
        return noise
    return noise_scheduler.get_velocity(latents, noise, timesteps) if kind == "v_prediction" else latents


def check_prediction_type(noise_scheduler: DDPMScheduler) -> None:
    """Refuse a base whose denoiser predicts something else.

    Raises:
        UserError: naming what it predicts.
    """
    kind = noise_scheduler.config.prediction_type
    if kind not in PREDICTION_TYPES:
        raise UserError(f"the base's scheduler predicts {kind!r}; known are {', '.join(PREDICTION_TYPES)}")
