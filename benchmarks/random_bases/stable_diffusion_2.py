"""Write a Stable Diffusion 2.1 pipeline with random weights.

    python -m benchmarks.random_bases.stable_diffusion_2 FOLDER [--seed 0] [--dtype float32] [--size sd21]

An OpenCLIP text encoder, and a U-Net that predicts the velocity at 768 pixels, or the noise at 512 (sd21-base).
Configuration: stabilityai/stable-diffusion-2-1 and -2-1-base.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler, PNDMScheduler, UNet2DConditionModel

from benchmarks.random_bases.parts import (
    AutoencoderSize,
    ClipSize,
    command_line,
    make_autoencoder,
    make_clip,
    make_clip_tokenizer,
    save,
)
from twostage.quiet import quiet

with quiet():  # Its import warns of image processors that are not used here.
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Size:
    """The numbers in which a small pipeline differs from Stable Diffusion 2.1, and what its U-Net predicts."""

    prediction_type: str = "v_prediction"
    text: ClipSize = ClipSize(width=1024, layers=23, heads=16, projection=512)
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_layers: int = 2
    unet_heads: tuple[int, ...] = (5, 10, 20, 20)
    unet_groups: int = 32
    upcast_attention: bool = True
    sample_size: int = 96
    vae: AutoencoderSize = AutoencoderSize(side=768)


TINY = Size(
    text=ClipSize(width=16, layers=2, heads=2, projection=8, vocabulary=1024),
    unet_channels=(8, 16),
    unet_layers=1,
    unet_heads=(1, 2),
    unet_groups=4,
    sample_size=8,
    vae=AutoencoderSize(side=16, channels=(8, 8), layers=1, groups=4),
)
SIZES = {
    "sd21": Size(),
    "sd21-base": Size(prediction_type="epsilon", upcast_attention=False, sample_size=64, vae=AutoencoderSize(side=512)),
    "tiny": TINY,
    "tiny-base": replace(TINY, prediction_type="epsilon", upcast_attention=False),
}


def write_pipeline(folder: Path, size: Size, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """Write the pipeline to `folder`, weights drawn from `seed`."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        vae=make_autoencoder(size.vae, scaling_factor=0.18215),
        text_encoder=make_clip(size.text),
        tokenizer=make_clip_tokenizer(size.text.vocabulary, pad="!"),
        unet=make_unet(size),
        scheduler=_scheduler(size.prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save(pipeline, folder, dtype)


def make_unet(size: Size) -> UNet2DConditionModel:
    depth = len(size.unet_channels)
    return UNet2DConditionModel(
        sample_size=size.sample_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=size.unet_channels,
        layers_per_block=size.unet_layers,
        down_block_types=("CrossAttnDownBlock2D",) * (depth - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (depth - 1),
        cross_attention_dim=size.text.width,
        attention_head_dim=size.unet_heads,  # diffusers' name for the number of heads
        use_linear_projection=True,
        upcast_attention=size.upcast_attention,
        norm_num_groups=size.unet_groups,
    )


def _scheduler(prediction_type: str) -> DDIMScheduler | PNDMScheduler:
    published = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    if prediction_type == "v_prediction":
        return DDIMScheduler(**published, clip_sample=False)
    return PNDMScheduler(**published, skip_prk_steps=True)


if __name__ == "__main__":
    command_line(__doc__, SIZES, write_pipeline)
