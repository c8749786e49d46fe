"""The denoising loss, as a pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor

from twostage.errors import UserError
from twostage.family import NoiseScheduler
from twostage.flow import FlowMatching
from twostage.recipe import Stage

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# Noisy latents, timesteps and what is given with the pictures -> the denoiser's output.
Predict = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Question:
    """What the denoiser is asked, what it should put out, and where that counts.

    Attributes:
        noisy: (B, C, h, w), scaled.
        timesteps: (B,), int64 in [0, num_train_timesteps); float32 and beyond 0 where it is a flow's.
        target: (B, C, h, w).
        weight: (B, 1, h, w), of each place's error; None where all count in full.
        given: what else the denoiser is told of the pictures; see `Family.picture_conditions`.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    weight: Tensor | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Question:
        """The same on a device."""
        return replace(
            self,
            noisy=self.noisy.to(device),
            timesteps=self.timesteps.to(device),
            target=self.target.to(device),
            weight=None if self.weight is None else self.weight.to(device),
            given={name: tensor.to(device) for name, tensor in self.given.items()},
        )

    def followed_by(self, other: Question) -> Question:
        """Both in one, this one's samples first; their latents are equally large."""
        weights = [
            one.noisy.new_ones(()).expand_as(one.noisy[:, :1]) if one.weight is None else one.weight
            for one in (self, other)
        ]
        return Question(
            torch.cat([self.noisy, other.noisy]),
            torch.cat([self.timesteps, other.timesteps]),
            torch.cat([self.target, other.target]),
            None if self.weight is other.weight is None else torch.cat(weights),
            {name: torch.cat([tensor, other.given[name]]) for name, tensor in self.given.items()},
        )


def denoising_question(noise_scheduler: NoiseScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Question:
    """Latents on their way to noise, and what the denoiser should put out for them.

    Args:
        noise_scheduler: gives the noise levels and what the denoiser predicts.
        latents: (B, C, h, w), scaled.
        noise: (B, C, h, w), standard normal.
        timesteps: (B,) int64 in [0, num_train_timesteps), the noise levels.
    """
    if isinstance(noise_scheduler, FlowMatching):
        timesteps = noise_scheduler.told(timesteps)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    return Question(noisy, timesteps, denoising_target(noise_scheduler, latents, noise, timesteps))


def denoising_loss(
    predict: Predict,
    noise_scheduler: NoiseScheduler,
    asked: Question,
    snr_gamma: float | None = None,
    flow_weighting: str = "velocity",
) -> Tensor:
    """Mean squared error of the denoiser's output, per sample (arXiv 2006.11239, eq. 14, for any prediction type).

    Args:
        predict: noisy latents, timesteps, given -> the denoiser's output, shaped like the latents.
        noise_scheduler: gives the noise levels and what the denoiser predicts.
        asked: B samples. The mean is over all places, so what a weight of 0 leaves out makes the loss smaller.
        snr_gamma: weigh samples by `min_snr_weight`.
        flow_weighting: of a flow, whether the error is the "velocity"'s, or that of the "latents" that follow from it,
            x_0 = x_s - s velocity.

    Returns:
        (B,) float32.
    """
    error = (predict(asked.noisy, asked.timesteps, asked.given).float() - asked.target.float()).square()
    if asked.weight is not None:
        error = error * asked.weight
    loss = error.flatten(1).mean(1)
    if flow_weighting == "latents":
        assert isinstance(noise_scheduler, FlowMatching), "refused where the base is known"
        loss = loss * noise_scheduler.level_of(asked.timesteps).flatten().square()
    return loss if snr_gamma is None else loss * min_snr_weight(noise_scheduler, asked.timesteps, snr_gamma)


def min_snr_weight(noise_scheduler: NoiseScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights of the loss (arXiv 2303.09556): min(SNR, gamma) in terms of predicted latents.

    That is min(SNR, gamma) / SNR for a prediction of the noise, min(SNR, gamma) / (SNR + 1) for the velocity, and
    min(SNR, gamma) s^2 for a flow's at the level s, whose SNR is ((1 - s) / s)^2. Where SNR is 0, on
    the last noise level of a base with zero terminal SNR, the weight is 1 for all: 0 / 0 for the noise, and a weight of
    0 would leave the level unlearned that drawing starts from.

    Args:
        noise_scheduler: gives the noise levels and what the denoiser predicts.
        timesteps: (B,), as a question has them.
        gamma: above 0; the paper's is 5.

    Returns:
        (B,) float32, in [0, 1] for noise and velocity, in (0, gamma] for latents.
    """
    if isinstance(noise_scheduler, FlowMatching):
        level = noise_scheduler.level_of(timesteps).flatten()
        snr = ((1 - level) / level).square()
    else:
        snr = compute_snr(noise_scheduler, timesteps).float()
    kind = noise_scheduler.config.prediction_type
    # Written so that an SNR of 0 or of infinity makes neither 0 / 0 nor inf / inf.
    if kind == "epsilon":
        weight = 1 / (snr / gamma).clamp_min(1)
    elif kind == "v_prediction":
        weight = torch.minimum(1 / (1 + 1 / snr), gamma / (snr + 1))
    elif isinstance(noise_scheduler, FlowMatching):
        weight = level.square() * snr.clamp_max(gamma)
    else:
        weight = snr.clamp_max(gamma)
    return torch.where(snr == 0, torch.ones_like(weight), weight)


def denoising_target(noise_scheduler: NoiseScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should put out: the noise, the velocity (arXiv 2202.00512), the latents themselves, or, of a
    flow, what leads from them to the noise (arXiv 2210.02747)."""
    kind = noise_scheduler.config.prediction_type
    if isinstance(noise_scheduler, FlowMatching):
        return noise - latents
    assert kind in PREDICTION_TYPES, kind
    if kind == "epsilon":
        return noise
    return noise_scheduler.get_velocity(latents, noise, timesteps) if kind == "v_prediction" else latents


def check_prediction_type(noise_scheduler: NoiseScheduler) -> None:
    """Refuse a base whose denoiser predicts something else.

    Raises:
        UserError: naming what it predicts.
    """
    kind = noise_scheduler.config.prediction_type
    if kind not in PREDICTION_TYPES and not isinstance(noise_scheduler, FlowMatching):
        raise UserError(f"the base's scheduler predicts {kind!r}; known are {', '.join(PREDICTION_TYPES)}")


def check_flow_options(noise_scheduler: NoiseScheduler, stage: int, options: Stage) -> None:
    """Refuse options of a flow's loss where the base has learned no flow.

    Raises:
        UserError: naming the option.
    """
    for name in ("flow_weighting", "flow_levels"):
        value = getattr(options, name)
        if value != type(options).model_fields[name].default and not isinstance(noise_scheduler, FlowMatching):
            raise UserError(
                f"stage{stage}.{name} = {value!r} would do nothing: the base has learned no flow, and its denoiser "
                f"predicts {noise_scheduler.config.prediction_type!r}; leave it out"
            )
