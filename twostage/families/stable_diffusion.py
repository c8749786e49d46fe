"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net, 4-channel latents."""

from __future__ import annotations

from transformers import CLIPTextModel, CLIPTokenizer

from twostage.family import Family
from twostage.family_parts import TextPart


class StableDiffusion(Family):
    """What it is that a base predicts, noise or velocity, its scheduler says."""

    pipeline = "StableDiffusionPipeline"
    title = "Stable Diffusion 1.x, 2.x"
    text = {"text_encoder": TextPart("tokenizer", CLIPTextModel, CLIPTokenizer)}


FAMILY = StableDiffusion()
