"""The original layout of Stable Diffusion 1, 2 and XL: one checkpoint with the names that ComfyUI and A1111 read.

diffusers renamed every layer; its wheel holds the way there only (`convert_ldm_unet_checkpoint` and its like), which
the tests hold this way back against. Layers outside the blocks are read from diffusers' own table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from torch import Tensor

from twostage.errors import UserError

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OUTSIDE: dict[str, str] = {
    **DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"],
    **DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"],
}
# Width of OpenCLIP ViT-H, the text encoder of Stable Diffusion 2, by which A1111 tells it from that of 1.
_OPEN_CLIP_WIDTH = 1024
# What OpenCLIP's training keeps it at or below, and ends at. Drawing has no use for it, so diffusers dropped it.
_LOGIT_SCALE = math.log(100)


def original_checkpoint(unet: Any, vae: Any, text_encoders: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a pipeline under their original names.

    Args:
        unet, vae: stock models.
        text_encoders: stock models with the base's own vocabulary, by what stands before their names in a checkpoint.

    Raises:
        UserError: a layer that Stable Diffusion 1, 2 and XL do not have.
    """
    tensors: dict[str, Tensor] = {}
    tensors.update((f"model.diffusion_model.{name}", value) for name, value in _unet(unet))
    tensors.update((f"first_stage_model.{name}", value) for name, value in _vae(vae))
    for place, text_encoder in text_encoders.items():
        tensors.update((f"{place}.{name}", value) for name, value in _text_encoder(text_encoder))
    return tensors


def is_open_clip(text_encoder: Any) -> bool:
    """Whether a text encoder is OpenCLIP's, which has another layout: that of Stable Diffusion 2, or XL's second."""
    return hasattr(text_encoder, "text_projection") or bool(text_encoder.config.hidden_size == _OPEN_CLIP_WIDTH)


def original_unet_names(unet: Any) -> dict[str, str]:
    """Of every tensor of a U-Net, by its name in diffusers.

    Raises:
        UserError: a layer that Stable Diffusion 1, 2 and XL do not have.
    """
    state = unet.state_dict()
    attended = {name.split(".")[1] for name in state if name.startswith("up_blocks") and ".attentions." in name}
    names = {}
    for name in state:
        try:
            names[name] = _unet_name(name, unet.config.layers_per_block + 1, attended)
        except (KeyError, ValueError) as error:
            raise _no_name("U-Net", name) from error
    return names


def _unet(unet: Any) -> Iterator[tuple[str, Tensor]]:
    names = original_unet_names(unet)
    for name, value in unet.state_dict().items():
        yield names[name], value


def _unet_name(name: str, per_level: int, attended: Iterable[str]) -> str:
    """Original blocks are counted through all levels, each level's resampling being one more (down) or none (up)."""
    match name.split("."):
        case ["down_blocks", level, "resnets", index, layer, leaf]:
            return f"input_blocks.{int(level) * per_level + int(index) + 1}.0.{_RESNET[layer]}.{leaf}"
        case ["down_blocks", level, "attentions", index, *rest]:
            return f"input_blocks.{int(level) * per_level + int(index) + 1}.1.{'.'.join(rest)}"
        case ["down_blocks", level, "downsamplers", "0", "conv", leaf]:
            return f"input_blocks.{(int(level) + 1) * per_level}.0.op.{leaf}"
        case ["mid_block", "resnets", index, layer, leaf]:
            return f"middle_block.{2 * int(index)}.{_RESNET[layer]}.{leaf}"
        case ["mid_block", "attentions", index, *rest]:
            return f"middle_block.{2 * int(index) + 1}.{'.'.join(rest)}"
        case ["up_blocks", level, "resnets", index, layer, leaf]:
            return f"output_blocks.{int(level) * per_level + int(index)}.0.{_RESNET[layer]}.{leaf}"
        case ["up_blocks", level, "attentions", index, *rest]:
            return f"output_blocks.{int(level) * per_level + int(index)}.1.{'.'.join(rest)}"
        case ["up_blocks", level, "upsamplers", "0", "conv", leaf]:
            # The last module of its block: after the resnet, and after the attention where there is one.
            return f"output_blocks.{(int(level) + 1) * per_level - 1}.{2 if level in attended else 1}.conv.{leaf}"
    return _OUTSIDE[name]


def _vae(vae: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in vae.state_dict().items():
        try:
            original = _vae_name(name, len(vae.config.block_out_channels))
        except (KeyError, ValueError) as error:
            raise _no_name("VAE", name) from error
        # The original's attention is made of 1x1 convolutions.
        is_linear = ".attn_1." in original and value.ndim == 2
        yield original, value[:, :, None, None] if is_linear else value


def _vae_name(name: str, levels: int) -> str:
    """The original counts the decoder's levels from the fine one."""
    match name.split("."):
        case [side, "mid_block", "resnets", index, layer, leaf]:
            return f"{side}.mid.block_{int(index) + 1}.{_shortcut(layer)}.{leaf}"
        case [side, "mid_block", "attentions", "0", *layers, leaf]:
            return f"{side}.mid.attn_1.{_VAE_ATTENTION['.'.join(layers)]}.{leaf}"
        case [side, "down_blocks", level, "resnets", index, layer, leaf]:
            return f"{side}.down.{level}.block.{index}.{_shortcut(layer)}.{leaf}"
        case [side, "down_blocks", level, "downsamplers", "0", "conv", leaf]:
            return f"{side}.down.{level}.downsample.conv.{leaf}"
        case [side, "up_blocks", level, "resnets", index, layer, leaf]:
            return f"{side}.up.{levels - 1 - int(level)}.block.{index}.{_shortcut(layer)}.{leaf}"
        case [side, "up_blocks", level, "upsamplers", "0", "conv", leaf]:
            return f"{side}.up.{levels - 1 - int(level)}.upsample.conv.{leaf}"
    outside: str = DIFFUSERS_TO_LDM_MAPPING["vae"][name]
    return outside


def _shortcut(layer: str) -> str:
    return "nin_shortcut" if layer == "conv_shortcut" else layer


def _text_encoder(text_encoder: Any) -> Iterator[tuple[str, Tensor]]:
    state = {file_name(name): value for name, value in text_encoder.state_dict().items()}
    if is_open_clip(text_encoder):
        yield from _open_clip(state)
        return
    for name, value in state.items():
        yield f"transformer.{name}", value
    # A buffer that transformers stopped saving; a checkpoint without it is not read by every program.
    positions = torch.arange(text_encoder.config.max_position_embeddings)[None]
    yield "transformer.text_model.embeddings.position_ids", positions


def file_name(name: str) -> str:
    """transformers 5.6 dropped a prefix from `CLIPTextModel` that all files keep."""
    return name if name.split(".")[0] in ("text_model", "text_projection") else f"text_model.{name}"


def _open_clip(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Query, key and value are one tensor. diffusers' bases of Stable Diffusion 2 lack the last layer, never used."""
    table = DIFFUSERS_TO_LDM_MAPPING["openclip"]
    for name, value in state.items():
        if name == "text_projection.weight":  # The original multiplies by it from the right.
            yield f"model.{table['layers'][name]}", value.T
            yield "model.logit_scale", value.new_tensor(_LOGIT_SCALE)
            continue
        if name in table["layers"]:
            yield f"model.{table['layers'][name]}", value
            continue
        original = name
        for theirs, ours in table["transformer"].items():
            original = original.replace(theirs, ours)
        part = next((part for part in ("q_proj", "k_proj", "v_proj") if f".{part}." in original), None)
        if part is None:
            yield f"model.transformer.{original}", value
        elif part == "q_proj":
            parts = [state[name.replace("q_proj", other)] for other in ("q_proj", "k_proj", "v_proj")]
            yield f"model.transformer.{original.replace('.q_proj.', '.in_proj_')}", torch.cat(parts)


def _no_name(model: str, name: str) -> UserError:
    return UserError(
        f"the base's {model} has {name}, which the original layout of Stable Diffusion has no name for; "
        "export it with --to diffusers"
    )
