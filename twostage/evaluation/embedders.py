"""Pictures and prompts to vectors, by any ViT or CLIP that transformers loads from a folder or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

BATCH = 64


def pixel_batches(processor: Any, images: Sequence[Image.Image], device: Any) -> Iterator[Tensor]:
    """The pictures as the model of `processor` sees them, (at most 64, 3, H, W) a batch, on `device`."""
    for start in range(0, len(images), BATCH):
        pixels = processor(images=list(images[start : start + BATCH]), return_tensors="pt").pixel_values
        yield pixels.to(device)


class ViTEmbedder:
    """A self-supervised ViT's class token: DINO (`facebook/dino-vits16`), DINOv2, or the pocket one.

    Tells one subject from another of its class.
    """

    def __init__(self, source: str | Path, device: str = "cpu") -> None:
        self.processor = AutoImageProcessor.from_pretrained(source)
        self.model = AutoModel.from_pretrained(source, dtype=torch.float32).to(device).eval()

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) float32 on the CPU, of length 1."""
        parts = []
        for pixels in pixel_batches(self.processor, images, self.model.device):
            state = self.model(pixel_values=pixels).last_hidden_state[:, 0]
            parts.append(torch.nn.functional.normalize(state, dim=-1).cpu())
        return torch.cat(parts)


class CLIPEmbedder:
    """CLIP's image and text towers: how well a picture fits a prompt."""

    def __init__(self, source: str | Path, device: str = "cpu") -> None:
        self.processor = AutoImageProcessor.from_pretrained(source)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = CLIPModel.from_pretrained(source, dtype=torch.float32).to(device).eval()

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) float32 on the CPU, of length 1."""
        parts = []
        for pixels in pixel_batches(self.processor, images, self.model.device):
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            parts.append(torch.nn.functional.normalize(self.model.visual_projection(pooled), dim=-1).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(N, D) float32 on the CPU, of length 1."""
        ids = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled = self.model.text_model(input_ids=ids.to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(self.model.text_projection(pooled), dim=-1).cpu()
