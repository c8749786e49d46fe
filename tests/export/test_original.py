"""Original names: those of the published checkpoints, and those from which diffusers' own converter comes back."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from twostage.errors import UserError
from twostage.export.shared.layouts import LAYOUTS
from twostage.export.shared.original import original_checkpoint

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
# Number, and sha256 of the sorted lines "name [shape]", of the tensors in the checkpoints that were published, after
# the lists in components/ of github.com/arenasys/stable-diffusion-webui-model-toolkit, commit e19dd46.
PUBLISHED = {
    "UNET-v1-SD": (UNET, 686, "0a32647aed4bb212446e9e375fac2dd5772d5be1c772a0b06f58610a786aea6c"),
    "VAE-v1-SD": (VAE, 248, "240432d78215782456548801f5ad9d65371e87418c0228981c16434327af7890"),
    "CLIP-v1-SD": (CLIP, 197, "9108aaedac707a081ee413323093355cb8dfac175a6057ecb4adcd570711ddac"),
    "UNET-v2-SD": (UNET, 686, "ddc5d94a25ab77b273c0f210b0417838ffbc0c7ab648e9dfce75cd056d7839ba"),
    "CLIP-v2-SD": (OPEN_CLIP, 294, "905cc8eaf7c1815eacd452cfdda8d8520727ca85b039723da7b19ff8614e5662"),
}


def stable_diffusion(version: int) -> tuple[Any, Any, Any]:
    """U-Net, VAE and text encoder in the published configuration, without a weight."""
    is_1 = version == 1
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768 if is_1 else 1024,
        intermediate_size=3072 if is_1 else 4096,
        num_hidden_layers=12 if is_1 else 23,
        num_attention_heads=12 if is_1 else 16,
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768 if is_1 else 1024,
            attention_head_dim=8 if is_1 else [5, 10, 20, 20],
            use_linear_projection=not is_1,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        return unet, vae, CLIPTextModel(text)


def pocket_shaped() -> tuple[Any, Any, Any]:
    """Three levels, one layer a block, no attention in the VAE or at the finest level."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=8,
            out_channels=8,
            block_out_channels=(32, 64, 96),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
        )
        vae = AutoencoderKL(
            latent_channels=8,
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            mid_block_add_attention=False,
        )
        text = CLIPTextConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        return unet, vae, CLIPTextModel(text)


def checkpoint_of(unet: Any, vae: Any, text_encoder: Any) -> dict[str, Tensor]:
    (place,) = LAYOUTS["StableDiffusionPipeline"].places.values()
    return original_checkpoint(unet, vae, {place: text_encoder})


def lines(checkpoint: dict[str, Tensor], prefix: str) -> set[str]:
    return {
        f"{name.removeprefix(prefix)} [{','.join(map(str, value.shape))}]"
        for name, value in checkpoint.items()
        if name.startswith(prefix)
    }


def assert_published(found: set[str], component: str) -> None:
    _, number, digest = PUBLISHED[component]
    assert len(found) == number
    assert hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() == digest


def test_names_and_shapes_are_those_of_a_stable_diffusion_1_checkpoint() -> None:
    checkpoint = checkpoint_of(*stable_diffusion(1))
    for component in ("UNET-v1-SD", "VAE-v1-SD", "CLIP-v1-SD"):
        assert_published(lines(checkpoint, PUBLISHED[component][0]), component)
    assert len(checkpoint) == 686 + 248 + 197


def test_names_and_shapes_are_those_of_a_stable_diffusion_2_checkpoint_but_for_what_it_never_uses() -> None:
    checkpoint = checkpoint_of(*stable_diffusion(2))
    assert_published(lines(checkpoint, UNET), "UNET-v2-SD")
    assert_published(lines(checkpoint, VAE), "VAE-v1-SD")
    unused = {"logit_scale []", "text_projection [1024,1024]"}
    first = {line for line in lines(checkpoint, OPEN_CLIP) if "resblocks.0." in line}
    unused |= {line.replace("resblocks.0.", "resblocks.23.") for line in first}
    assert_published(lines(checkpoint, OPEN_CLIP) | unused, "CLIP-v2-SD")


@pytest.mark.parametrize("shape", ["1", "2", "pocket"])
def test_diffusers_own_converter_gives_every_tensor_its_name_back(shape: str) -> None:
    unet, vae, text_encoder = pocket_shaped() if shape == "pocket" else stable_diffusion(int(shape))
    checkpoint = checkpoint_of(unet, vae, text_encoder)
    back = convert_ldm_unet_checkpoint(dict(checkpoint), unet.config)
    ours = unet.state_dict()
    assert back.keys() == ours.keys()
    assert all(
        back[name].data_ptr() == value.data_ptr() and back[name].shape == value.shape for name, value in ours.items()
    )
    back = convert_ldm_vae_checkpoint(dict(checkpoint), vae.config)
    ours = vae.state_dict()
    assert back.keys() == ours.keys()
    assert all(back[name].shape == value.shape for name, value in ours.items())
    if shape == "2":
        back = convert_open_clip_checkpoint(text_encoder, checkpoint)
    else:
        back = convert_ldm_clip_checkpoint(checkpoint)
        del back["text_model.embeddings.position_ids"]
    ours = {
        f"text_model.{name.removeprefix('text_model.')}": value for name, value in text_encoder.state_dict().items()
    }
    assert back.keys() == ours.keys()
    assert all(back[name].shape == value.shape for name, value in ours.items())


def test_query_key_and_value_of_stable_diffusion_2_come_back_in_their_places() -> None:
    text = CLIPTextConfig(
        vocab_size=9, hidden_size=1024, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    encoder = CLIPTextModel(text)
    unet, vae, _ = pocket_shaped()
    back = convert_open_clip_checkpoint(encoder, checkpoint_of(unet, vae, encoder))
    for name, value in encoder.state_dict().items():
        assert torch.equal(back[f"text_model.{name.removeprefix('text_model.')}"], value)


def test_a_layer_without_an_original_name_is_told() -> None:
    _, vae, text_encoder = pocket_shaped()
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            class_embed_type="timestep",
        )
    with pytest.raises(UserError, match=r"class_embedding.*--to diffusers"):
        checkpoint_of(unet, vae, text_encoder)
