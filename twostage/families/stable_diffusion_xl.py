"""Stable Diffusion XL (arXiv 2307.01952): two CLIP text encoders, sizes and crop among the denoiser's conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from twostage.family import Family
from twostage.family_parts import Shown, Text, TextPart, token_ids
from twostage.prompt_states import PromptStates


class StableDiffusionXL(Family):
    """The base model; the refiner is none that a subject is taught to."""

    pipeline = "StableDiffusionXLPipeline"
    title = "Stable Diffusion XL"
    text = {
        "text_encoder": TextPart("tokenizer", CLIPTextModel, CLIPTokenizer, "clip_l"),
        "text_encoder_2": TextPart("tokenizer_2", CLIPTextModelWithProjection, CLIPTokenizer, "clip_g", pooled=True),
    }
    refused = {
        "StableDiffusionXLImg2ImgPipeline": "as Stable Diffusion XL's refiner is, which only finishes what the base "
        "model has drawn, and is left as it is; give the base model"
    }

    def encode_text(self, text: Text, prompts: Sequence[str]) -> PromptStates:
        """The last states but one of both encoders, (B, tokens, D1 + D2), and the second's of the prompt, (B, D); zeros
        for the empty prompt where the pipeline says so."""
        states = []
        for name, encoder in text.encoders.items():
            output = encoder(token_ids(text.tokenizers[name], prompts).to(encoder.device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
        found = PromptStates(states=torch.cat(states, dim=-1), pooled=output[0])
        if not text.settings.get("force_zeros_for_empty_prompt", True) or all(prompts):
            return found
        said = torch.tensor([bool(prompt) for prompt in prompts], device=found.device)
        return found.each(lambda tensor: tensor * said.view(-1, *[1] * (tensor.ndim - 1)).to(tensor.dtype))

    def unread(self, name: str, component: Any) -> Sequence[nn.Module]:
        """Of the first text encoder, what comes after its last state but one."""
        if name != "text_encoder":
            return ()
        encoder = getattr(component, "text_model", component)  # Not there since transformers 5.
        return (encoder.encoder.layers[-1], encoder.final_layer_norm)

    def picture_conditions(self, shown: Shown, generator: torch.Generator) -> dict[str, Tensor]:
        """Size of the photo, corner of the cut and size of what training sees, each as height and width."""
        (width, height), (left, top), (across, down) = shown.size, shown.corner, shown.target
        return {"time_ids": torch.tensor([height, width, top, left, down, across], dtype=torch.float32)}

    def predict(
        self, denoiser: Any, noisy: Tensor, timesteps: Tensor, states: PromptStates, given: Mapping[str, Tensor]
    ) -> Tensor:
        """As in `Family`."""
        added = {"text_embeds": states["pooled"], "time_ids": given["time_ids"]}
        output: Tensor = denoiser(
            noisy, timesteps, encoder_hidden_states=states["states"], added_cond_kwargs=added, return_dict=False
        )[0]
        return output

    def prompt_inputs(self, states: PromptStates) -> dict[str, Any]:
        """As in `Family`."""
        return {
            "encoder_hidden_states": states["states"],
            "added_cond_kwargs": {"text_embeds": states["pooled"]},
        }

    def prompt_arguments(self, states: PromptStates, nothing: PromptStates | None) -> dict[str, Any]:
        """As in `Family`."""
        told = super().prompt_arguments(states, nothing)
        pooled = None if nothing is None else nothing["pooled"]
        return told | {"pooled_prompt_embeds": states["pooled"], "negative_pooled_prompt_embeds": pooled}

    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """In float32 whatever is around it, as `decode`: the published VAE's activations overflow float16."""
        with torch.autocast(pixels.device.type, enabled=False):
            return super().encode_images(vae, pixels.float())

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """In float32, as `encode_images`."""
        with torch.autocast(latents.device.type, enabled=False):
            return super().decode(vae, latents.float())

    def build_pipeline(self, folder: Path, **components: Any) -> Any:
        """Without the invisible watermark that diffusers adds where it can."""
        return super().build_pipeline(folder, **{"add_watermarker": False} | components)


FAMILY = StableDiffusionXL()
