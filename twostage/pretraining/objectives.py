"""What each pocket net learns from: one pure function per net, with its random draws as arguments."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPModel, ResNetForImageClassification, ViTModel

from .dataset import LABELS

TEMPERATURE = 0.1
EMBEDDING_NORM = 0.4


def vae_loss(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Squared and absolute error, the same on edges (small emblems are edges), and a KL of weight 5e-6.

    And half-size latents have to decode to the half-size picture (EQ-VAE, arXiv 2502.09509): latents that shrink as
    pictures do hold less detail that looks like noise to the U-Net, which then learns shapes sooner.

    Args:
        pixels: (B, 3, 64, 64) in [-1, 1].
        noise: (B, C, 16, 16), standard normal, for the posterior sample.
    """
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.mean + posterior.std * noise
    error = vae.decode(latents).sample - pixels
    coarse = vae.decode(F.avg_pool2d(latents, 2)).sample - F.avg_pool2d(pixels, 2)
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    fine = error.square().mean() + 0.1 * error.abs().mean() + 0.1 * edges
    return fine + 0.5 * (coarse.square().mean() + 0.1 * coarse.abs().mean()) + 5e-6 * posterior.kl().mean()


def draw_timesteps(count: int, generator: torch.Generator, train_timesteps: int = 1000) -> Tensor:
    """Timesteps (count,) in [0, train_timesteps): logit-normal, four in five, around where shapes are decided.

    The rest are uniform (arXiv 2403.03206 compares such densities). One from each of `count` equally likely strata,
    in random order, so that the loss of a batch does not depend on how many easy timesteps it happened to draw.
    """
    strata = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    peaked = torch.sigmoid(0.2 + torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)))
    uniform = torch.rand(count, generator=generator) < 0.2
    return (torch.where(uniform, strata, peaked) * train_timesteps).long()


def multiscale_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of (B, C, 16, 16), and of the same averaged over 2x2 and 4x4, each as heavy for white residuals.

    The minimum is the same conditional mean. But most of the error at full scale is detail that no prompt tells, and
    what prompts do tell, class and colour, is coarse, and weighs more this way (as in arXiv 2301.11093).
    """
    losses = [
        size * size * F.mse_loss(F.avg_pool2d(prediction, size), F.avg_pool2d(target, size)) for size in (1, 2, 4)
    ]
    return torch.stack(losses).mean()


def contrastive_loss(first: Tensor, second: Tensor, temperature: Tensor | float = TEMPERATURE) -> Tensor:
    """InfoNCE both ways: row i of `first` (B, D) belongs to row i of `second` and to no other."""
    logits = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def vit_loss(vit: ViTModel, first: Tensor, second: Tensor) -> Tensor:
    """Two photos of one subject (B, 3, 64, 64 each) embed alike, and unlike every other subject's."""
    embedded = vit(torch.cat([first, second])).last_hidden_state[:, 0]
    return contrastive_loss(*embedded.chunk(2))


def clip_loss(clip: CLIPModel, pixels: Tensor, input_ids: Tensor) -> Tensor:
    """CLIP's own loss on pictures (B, 3, 64, 64) and their captions (B, 77)."""
    output = clip(input_ids=input_ids, pixel_values=pixels)
    return contrastive_loss(output.image_embeds, output.text_embeds, 1 / clip.logit_scale.exp().clamp(max=100))


def judge_loss(judge: ResNetForImageClassification, pixels: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the groups of LABELS; label -1 counts for nothing."""
    groups = judge(pixels).logits.split([len(names) for names in LABELS.values()], dim=1)
    return torch.stack(
        [F.cross_entropy(logits, labels[:, i], ignore_index=-1) for i, logits in enumerate(groups)]
    ).sum()


def reading_loss(logits: Tensor, said: Tensor, ended: Tensor) -> Tensor:
    """How badly the states after a caption's end tell what it said.

    Args:
        logits: (B, 77, P), for each of P phrases whether the caption held it.
        said: (B, P), 1 where it did.
        ended: (B, 77), true from the end of the caption on; these states count.
    """
    error = F.binary_cross_entropy_with_logits(logits, said[:, None].expand_as(logits), reduction="none").sum(-1)
    return (error * ended).sum() / ended.sum()


def blurred_and_noisy(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures (B, 3, H, W) blurred to half their detail, all of them with noise of up to 0.15.

    Generated pictures have both, and neither changes what a picture shows.
    """
    blurred = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    chosen, strength = torch.rand((2, len(pixels), 1, 1, 1), generator=generator).to(pixels)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels)
    return torch.where(chosen < 0.5, blurred, pixels) + 0.15 * strength * noise


@torch.no_grad()
def hold_embedding_norms(table: Tensor) -> None:
    """Keep token embeddings (V, D) within 5% of norm 0.4, where those of CLIP-L lie: rare and common words alike."""
    norms = table.norm(dim=1, keepdim=True)
    table.mul_(norms.clamp(0.95 * EMBEDDING_NORM, 1.05 * EMBEDDING_NORM) / norms)
