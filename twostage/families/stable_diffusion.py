"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net, 4-channel latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from twostage.errors import UserError
from twostage.quiet import quiet
from twostage.reading import read_json

with quiet():  # Its import warns of image processors that are not used here.
    from diffusers import StableDiffusionPipeline

PIPELINE = "StableDiffusionPipeline"
MODELS = ("text_encoder", "vae", "unet")
COMPONENTS = ("tokenizer", "scheduler", *MODELS)

_CLASSES: dict[str, Any] = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}
# Never loaded: they cost memory and training has no use for them.
_LEFT_OUT: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}

# Side of a base's pictures, in pixels.
_LARGEST = 1 << 14


def load(folder: Path, name: str) -> Any:
    """One component of the pipeline in `folder`: float32, frozen, in eval mode.

    Eval mode throughout: these nets have no dropout to lose, and a step's randomness stays in its addressed draws.
    """
    if name == "tokenizer":
        tokenizer = CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
        _check_length(tokenizer, folder / "text_encoder" / "config.json")
        return tokenizer
    model, info = _CLASSES[name].from_pretrained(
        folder / name, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if lacking := sorted(info["missing_keys"]):  # The libraries would draw them at random, or leave them out.
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(f"the weights lack {lacking[0]}{more}")
    return model.requires_grad_(False).eval()


def _check_length(tokenizer: CLIPTokenizer, config: Path) -> None:
    """Prompts are filled up to what it says is their length: without a word of that, to 10^30 tokens."""
    length, places = tokenizer.model_max_length, read_json(config).get("max_position_embeddings", 77)
    if not isinstance(length, int) or not 2 < length <= places:
        raise ValueError(f"model_max_length = {str(length)[:80]}, and the text encoder reads {places} tokens")


def outline(folder: Path, name: str) -> Any:
    """The net of a component with the names and shapes of its modules, and no weights: it is on the meta device."""
    with torch.device("meta"):
        if name == "text_encoder":
            return CLIPTextModel(CLIPTextConfig.from_pretrained(folder / name, local_files_only=True))
        return _CLASSES[name].from_config(_CLASSES[name].load_config(folder / name, local_files_only=True))


def resolution(folder: Path) -> tuple[int, int]:
    """Side of the base's pictures in pixels, and how many pixels a latent's side spans."""
    try:
        unet, vae = (read_json(folder / name / "config.json") for name in ("unet", "vae"))
        size, reduction = unet["sample_size"], 2 ** (len(vae["block_out_channels"]) - 1)
        side = (size if isinstance(size, int) else min(size)) * reduction
        if not isinstance(side, int) or not reduction <= side <= _LARGEST:
            raise ValueError(f"sample_size = {str(size)[:80]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read the configuration of the base in {folder}: {error!r}; get it anew") from error
    return side, reduction


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior of the latents.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].

    Returns:
        mean and standard deviation, each (B, 4, H/reduction, W/reduction), scaled as the U-Net sees them.
    """
    posterior = vae.encode(pixels).latent_dist
    scale = vae.config.scaling_factor
    return posterior.mean * scale, posterior.std * scale


def encode_text(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
    """Prompt states (len(prompts), tokens, D), as the stock pipeline computes them; tokens of several vectors must
    have been written out."""
    ids = tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    states: Tensor = text_encoder(ids.to(text_encoder.device))[0]
    return states


def predict(unet: Any, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """The U-Net's output (B, 4, h, w) for noisy latents (B, 4, h, w), timesteps (B,) and states (B, tokens, D)."""
    output: Tensor = unet(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0]
    return output


def build_pipeline(folder: Path, **components: Any) -> StableDiffusionPipeline:
    """The stock pipeline of `folder` in float32, with the given components in place of its own.

    The precision is named because transformers otherwise keeps that of the files: with weights stored as float16, text
    encoder and U-Net would not fit together.
    """
    return StableDiffusionPipeline.from_pretrained(
        folder,
        torch_dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        requires_safety_checker=False,
        **_LEFT_OUT,
        **components,
    )
