"""Stable Diffusion XL as `twostage.families` would see it, as far as a rehearsal asks: it is known by size alone.

What conditions the U-Net beside the prompt's states (pooled text, sizes and crop) is there with its shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from twostage.families import stable_diffusion
from twostage.families.stable_diffusion import encode_images, resolution

__all__ = ["PIPELINE", "encode_images", "encode_text", "outline", "predict", "resolution"]

PIPELINE = "StableDiffusionXLPipeline"


class _Encoders(nn.Module):
    """Both text encoders, which read the same ids from one table as wide as both of theirs."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        configs = [CLIPTextConfig.from_pretrained(folder / name) for name in ("text_encoder", "text_encoder_2")]
        self.first, self.second = CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])
        widths = [config.hidden_size for config in configs]
        self.table = nn.Embedding(configs[0].vocab_size, sum(widths))
        for encoder, columns in ((self.first, slice(widths[0])), (self.second, slice(widths[0], None))):
            encoder.set_input_embeddings(_Columns(self.table, columns))

    @property
    def device(self) -> torch.device:
        return self.table.weight.device

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        """As in transformers."""
        for encoder in (self.first, self.second):
            encoder.gradient_checkpointing_enable(options)

    def forward(self, ids: Tensor) -> Tensor:
        """States of the last layer but one of each, (B, tokens, D)."""
        return torch.cat(
            [net(ids, output_hidden_states=True).hidden_states[-2] for net in (self.first, self.second)], -1
        )


class _Columns(nn.Module):
    def __init__(self, table: nn.Embedding, columns: slice) -> None:
        super().__init__()
        self._table, self._columns = (table,), columns  # In a tuple, so that it is counted once.

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self._table[0](ids)
        return rows[..., self._columns]


def outline(folder: Path, name: str) -> Any:
    """As in the families."""
    if name != "text_encoder":
        return stable_diffusion.outline(folder, name)
    with torch.device("meta"):
        return _Encoders(folder)


def encode_text(tokenizer: Any, text_encoder: Any, prompts: list[str]) -> Tensor:
    """As in the families."""
    states: Tensor = text_encoder(tokenizer(prompts).input_ids.to(text_encoder.device))
    return states


def predict(unet: Any, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """As in the families."""
    rows, sizes = len(noisy), 6 * unet.config.addition_time_embed_dim
    pooled = torch.zeros(rows, unet.config.projection_class_embeddings_input_dim - sizes)
    added = {"text_embeds": pooled.to(states), "time_ids": torch.zeros(rows, 6, device=states.device)}
    output: Tensor = unet(noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)[0]
    return output
