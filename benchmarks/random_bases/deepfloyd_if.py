"""Write a pipeline of DeepFloyd IF's stage I or II with random weights.

    python -m benchmarks.random_bases.deepfloyd_if FOLDER [--seed 0] [--dtype float32] [--size if-i-m]

A T5 encoder and a U-Net that works on pixels; it predicts the noise and its variance, in six channels. Stage II also
reads the small picture, noised and enlarged, and how much noise that got.
Configuration: DeepFloyd/IF-I-XL-v1.0 and IF-II-L-v1.0 as published. IF-I-M's widths are those that give its published
372 million weights. IF-II-M's configuration was not to be had: it is IF-II-L's at three fifths of its widths, which
gives 482 million weights where 450 are published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from benchmarks.random_bases.parts import TINY_T5, T5Size, command_line, make_t5, make_t5_tokenizer, save
from twostage.quiet import quiet

with quiet():  # Its import warns of image processors that are not used here.
    from diffusers import IFPipeline, IFSuperResolutionPipeline


@dataclass(frozen=True)
class Size:
    """The numbers in which one U-Net of IF differs from another, and the stage that it serves."""

    channels: tuple[int, ...]
    stage: int = 1
    text: T5Size = T5Size()
    layers: int | tuple[int, ...] = 3
    attention_blocks: int = 3  # from the coarsest on
    head_width: int = 64
    pooling_heads: int = 64
    groups: int = 32
    side: int = 64  # of a picture, in pixels


STAGE_TWO_LAYERS = (2, 2, 3, 5, 5)
SIZES = {
    "if-i-m": Size(channels=(192, 384, 576, 768)),
    "if-i-xl": Size(channels=(704, 1408, 2112, 2816)),
    "if-ii-m": Size(channels=(96, 192, 384, 576, 768), stage=2, layers=STAGE_TWO_LAYERS, attention_blocks=2, side=256),
    "if-ii-l": Size(
        channels=(160, 320, 640, 960, 1280), stage=2, layers=STAGE_TWO_LAYERS, attention_blocks=2, side=256
    ),
    # The last width is divided into 32 groups wherever it is read by attention.
    "tiny": Size(
        channels=(8, 8, 32),
        text=TINY_T5,
        layers=1,
        attention_blocks=2,
        head_width=8,
        pooling_heads=4,
        groups=4,
        side=16,
    ),
    "tiny-ii": Size(
        channels=(8, 8, 32),
        stage=2,
        text=TINY_T5,
        layers=(2, 1, 1),
        attention_blocks=1,
        head_width=8,
        pooling_heads=4,
        groups=4,
        side=32,
    ),
}


def write_pipeline(
    folder: Path, size: Size, *, seed: int = 0, dtype: torch.dtype = torch.float32, t5: bool = True
) -> None:
    """Write the pipeline of the size's stage to `folder`, weights drawn from `seed`; without `t5`, its index says that
    there is no text encoder."""
    torch.manual_seed(seed)
    shared = {
        "tokenizer": make_t5_tokenizer(size.text.vocabulary, max_length=77),
        "text_encoder": make_t5(size.text) if t5 else None,
        "unet": make_unet(size),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    if size.stage == 1:
        pipeline = IFPipeline(**shared, scheduler=_scheduler(largest=1.5))
    else:
        noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        pipeline = IFSuperResolutionPipeline(
            **shared, scheduler=_scheduler(largest=1.0), image_noising_scheduler=noising
        )
    save(pipeline, folder, dtype)


def make_unet(size: Size) -> UNet2DConditionModel:
    plain = len(size.channels) - size.attention_blocks
    return UNet2DConditionModel(
        sample_size=size.side,
        in_channels=3 * size.stage,
        out_channels=6,
        block_out_channels=size.channels,
        layers_per_block=size.layers,
        down_block_types=("ResnetDownsampleBlock2D",) * plain + ("SimpleCrossAttnDownBlock2D",) * size.attention_blocks,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * size.attention_blocks + ("ResnetUpsampleBlock2D",) * plain,
        encoder_hid_dim=size.text.width,
        encoder_hid_dim_type="text_proj",
        cross_attention_dim=size.channels[-1],
        cross_attention_norm="group_norm",
        attention_head_dim=size.head_width,
        addition_embed_type="text",
        addition_embed_type_num_heads=size.pooling_heads,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        norm_num_groups=size.groups,
        **(_of_stage_two(size) if size.stage == 2 else {}),
    )


def _of_stage_two(size: Size) -> dict[str, object]:
    return {
        "class_embed_type": "timestep",
        "time_embedding_dim": size.channels[-1],
        "time_embedding_act_fn": "gelu",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1 / 0.7071,
        "mid_block_scale_factor": 1 / 0.7071,
    }


def _scheduler(largest: float) -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        prediction_type="epsilon",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=largest,
    )


if __name__ == "__main__":
    command_line(__doc__, SIZES, write_pipeline)
