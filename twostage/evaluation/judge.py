"""A classifier's word on what pictures of the pocket world show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from .embedders import pixel_batches


class Judge:
    """Reads class, colour, context and style off a picture; accuracy is the share it reads as asked for."""

    def __init__(self, source: str | Path, device: str = "cpu") -> None:
        self.processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForImageClassification.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        self.model = model.to(device).eval()
        self.groups: dict[str, list[str]] = {}
        for index in sorted(self.model.config.id2label):
            group, name = self.model.config.id2label[index].split(": ", 1)
            self.groups.setdefault(group, []).append(name)

    @torch.inference_mode()
    def read(self, images: Sequence[Image.Image]) -> dict[str, list[str]]:
        """For each group ("class", "colour", "context", "style") the name it reads in each picture."""
        seen: dict[str, list[str]] = {group: [] for group in self.groups}
        for pixels in pixel_batches(self.processor, images, self.model.device):
            logits = self.model(pixel_values=pixels).logits
            split = logits.split([len(names) for names in self.groups.values()], dim=1)
            for (group, names), part in zip(self.groups.items(), split, strict=True):
                seen[group] += [names[i] for i in part.argmax(dim=1).tolist()]
        return seen
