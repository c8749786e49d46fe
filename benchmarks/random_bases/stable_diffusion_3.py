"""Write a Stable Diffusion 3 pipeline with random weights.

    python -m benchmarks.random_bases.stable_diffusion_3 FOLDER [--seed 0] [--dtype float32] [--size sd3]

Three text encoders, a transformer, 16 latent channels and flow matching.
Configuration: stabilityai/stable-diffusion-3-medium-diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from benchmarks.random_bases.parts import (
    OPENAI_CLIP,
    TINY_CLIP,
    TINY_T5,
    AutoencoderSize,
    ClipSize,
    T5Size,
    command_line,
    make_autoencoder,
    make_clip,
    make_clip_tokenizer,
    make_t5,
    make_t5_tokenizer,
    save,
)
from twostage.quiet import quiet

with quiet():  # Its import warns of image processors that are not used here.
    from diffusers import StableDiffusion3Pipeline


@dataclass(frozen=True)
class Size:
    """The numbers in which a small pipeline differs from Stable Diffusion 3 Medium."""

    text: ClipSize = OPENAI_CLIP
    text_2: ClipSize = ClipSize(width=1280, layers=32, heads=20, projection=1280)
    text_3: T5Size = T5Size()
    layers: int = 24
    heads: int = 24
    head_width: int = 64
    positions: int = 192  # patches to a side of the largest picture
    sample_size: int = 128
    vae: AutoencoderSize = AutoencoderSize(side=1024)


SIZES = {
    "sd3": Size(),
    "tiny": Size(
        text=TINY_CLIP,
        text_2=ClipSize(width=16, layers=2, heads=2, projection=16, vocabulary=1024),
        text_3=TINY_T5,
        layers=2,
        heads=2,
        head_width=8,
        positions=24,
        sample_size=16,
        vae=AutoencoderSize(side=32, channels=(8, 8), layers=1, groups=4),
    ),
}


def write_pipeline(
    folder: Path, size: Size, *, seed: int = 0, dtype: torch.dtype = torch.float32, t5: bool = True
) -> None:
    """Write the pipeline to `folder`, weights drawn from `seed`; without `t5`, its index says that there is none."""
    torch.manual_seed(seed)
    pipeline = StableDiffusion3Pipeline(
        transformer=make_transformer(size),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=make_autoencoder(
            size.vae,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
            force_upcast=True,
        ),
        text_encoder=make_clip(size.text, projected=True),
        tokenizer=make_clip_tokenizer(size.text.vocabulary),
        text_encoder_2=make_clip(size.text_2, projected=True),
        tokenizer_2=make_clip_tokenizer(size.text_2.vocabulary, pad="!"),
        text_encoder_3=make_t5(size.text_3) if t5 else None,
        tokenizer_3=make_t5_tokenizer(size.text_3.vocabulary, max_length=512) if t5 else None,
    )
    save(pipeline, folder, dtype, **({"tokenizer_3": "T5TokenizerFast"} if t5 else {}))


def make_transformer(size: Size) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=size.sample_size,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        attention_head_dim=size.head_width,
        caption_projection_dim=size.heads * size.head_width,
        joint_attention_dim=size.text_3.width,
        pooled_projection_dim=size.text.projection + size.text_2.projection,
        pos_embed_max_size=size.positions,
    )


if __name__ == "__main__":
    command_line(__doc__, SIZES, write_pipeline)
