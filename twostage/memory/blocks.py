"""The blocks that a denoiser is made of: what is streamed and compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

# What a U-Net's weights are in, but for a thirtieth. What diffusers itself would not split are larger ones.
_OF_A_UNET = (ResnetBlock2D, BasicTransformerBlock, Downsample2D, Upsample2D)


def blocks_of(denoiser: Any) -> Iterator[nn.Module]:
    """Those of a U-Net, or, of other denoisers, what diffusers names as not to be split; none is in another."""
    named = getattr(denoiser, "_no_split_modules", None) or ()
    return _within(denoiser, () if isinstance(denoiser, UNet2DConditionModel) else tuple(named))


def _within(net: nn.Module, whole: tuple[str, ...]) -> Iterator[nn.Module]:
    for child in net.children():
        if isinstance(child, _OF_A_UNET) or type(child).__name__ in whole:
            yield child
        else:
            yield from _within(child, whole)
