"""Write a Stable Diffusion XL pipeline with random weights.

    python -m benchmarks.random_bases.stable_diffusion_xl FOLDER [--seed 0] [--dtype float32] [--size sdxl]

Two text encoders, whose states are put side by side, and a U-Net that is also told the picture's size and crop.
Configuration: stabilityai/stable-diffusion-xl-base-1.0, and -refiner-1.0 for the refiner.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from benchmarks.random_bases.parts import (
    OPENAI_CLIP,
    TINY_CLIP,
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
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline


@dataclass(frozen=True)
class Size:
    """The numbers in which a small pipeline differs from Stable Diffusion XL."""

    text: ClipSize = OPENAI_CLIP
    text_2: ClipSize = ClipSize(width=1280, layers=32, heads=20, projection=1280)
    unet_channels: tuple[int, ...] = (320, 640, 1280)
    unet_layers: int = 2
    unet_heads: tuple[int, ...] = (5, 10, 20)
    unet_transformers: tuple[int, ...] = (1, 2, 10)
    unet_groups: int = 32
    size_width: int = 256  # of the embedding of one of the six numbers of size and crop
    sample_size: int = 128
    vae: AutoencoderSize = AutoencoderSize(side=1024)


SIZES = {
    "sdxl": Size(),
    "tiny": Size(
        text=TINY_CLIP,
        text_2=ClipSize(width=24, layers=2, heads=2, projection=24, vocabulary=1024),
        unet_channels=(8, 8, 16),
        unet_layers=1,
        unet_heads=(1, 1, 2),
        unet_transformers=(1, 1, 2),
        unet_groups=4,
        size_width=8,
        sample_size=16,
        vae=AutoencoderSize(side=32, channels=(8, 8), layers=1, groups=4),
    ),
}


def write_pipeline(
    folder: Path,
    size: Size,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    prediction_type: str = "epsilon",
    refiner: bool = False,
) -> None:
    """Write the pipeline to `folder`, weights drawn from `seed`; `refiner` leaves out the first text encoder and has
    the refiner's class and index."""
    torch.manual_seed(seed)
    shared = {
        "vae": make_autoencoder(size.vae, scaling_factor=0.13025, force_upcast=True),
        "text_encoder": None if refiner else make_clip(size.text),
        "tokenizer": None if refiner else make_clip_tokenizer(size.text.vocabulary),
        "text_encoder_2": make_clip(size.text_2, projected=True),
        "tokenizer_2": make_clip_tokenizer(size.text_2.vocabulary, pad="!"),
        "unet": make_unet(size, refiner=refiner),
        "scheduler": _scheduler(prediction_type),
        "add_watermarker": False,
    }
    if refiner:
        pipeline = StableDiffusionXLImg2ImgPipeline(
            **shared, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
        )
    else:
        pipeline = StableDiffusionXLPipeline(**shared, force_zeros_for_empty_prompt=True)
    save(pipeline, folder, dtype)


def make_unet(size: Size, *, refiner: bool = False) -> UNet2DConditionModel:
    """The U-Net; the refiner's reads one text encoder and is told five numbers, not six. Its widths are not the
    published ones."""
    depth = len(size.unet_channels)
    return UNet2DConditionModel(
        sample_size=size.sample_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=size.unet_channels,
        layers_per_block=size.unet_layers,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (depth - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (depth - 1) + ("UpBlock2D",),
        cross_attention_dim=size.text_2.width + (0 if refiner else size.text.width),
        transformer_layers_per_block=size.unet_transformers,
        attention_head_dim=size.unet_heads,  # diffusers' name for the number of heads
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=size.size_width,
        projection_class_embeddings_input_dim=size.text_2.projection + (5 if refiner else 6) * size.size_width,
        norm_num_groups=size.unet_groups,
    )


def _scheduler(prediction_type: str) -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        interpolation_type="linear",
        use_karras_sigmas=False,
        timestep_spacing="leading",
        steps_offset=1,
    )


if __name__ == "__main__":
    command_line(__doc__, SIZES, write_pipeline)
