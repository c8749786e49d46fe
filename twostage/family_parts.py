"""What families and those who ask them hand each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextPart:
    """A text encoder of a pipeline.

    Attributes:
        tokenizer: the component that it reads with.
        kind, tokenizer_kind: classes of both.
        key: of its rows in files of learned tokens; empty where it is the pipeline's only one, whose rows go by the
            token's name.
        learns: whether stage 2 may train it.
        adapted: names of its modules that get an adapter then.
        pooled: whether it is a CLIP text encoder of which the denoiser is told the state of the whole prompt too.
    """

    tokenizer: str
    kind: Any
    tokenizer_kind: Any
    key: str = ""
    learns: bool = True
    adapted: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    pooled: bool = False


@dataclass(frozen=True)
class Text:
    """What reads prompts: tokenizers and text encoders by the component's name of the latter, in the family's order.

    Attributes:
        settings: of the pipeline, as its `model_index.json` has them; and, as "denoiser", the denoiser's configuration.
    """

    tokenizers: Mapping[str, Any]
    encoders: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """A picture as training sees it.

    Attributes:
        mean: of its latents, (C, h, w), scaled.
        size: width and height of the photo, in pixels.
        target: width and height of what it was scaled and cut to.
        corner: left and top of the cut, in pixels of the scaled photo.
    """

    mean: Tensor
    size: tuple[int, int]
    target: tuple[int, int]
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Drawing:
    """How a batch of pictures is drawn by a stock pipeline.

    Attributes:
        noise: to start from, (B, C, h, w).
        generators: one a picture, each a CPU generator that has drawn the noise.
        num_inference_steps, guidance_scale: as in diffusers.
        size: width and height, in pixels.
        small: what is to be enlarged, (B, 3, h, w) in [-1, 1]; None where nothing is.
    """

    noise: Tensor
    generators: list[torch.Generator]
    num_inference_steps: int
    guidance_scale: float
    size: tuple[int, int]
    small: Tensor | None = None


@dataclass(frozen=True)
class LowResolution:
    """What draws the small pictures that a pipeline enlarges; of prompts, it is told what that one is told.

    Attributes:
        load: reads its stock pipeline, which needs nothing that reads prompts.
        side: of the small pictures, in pixels.
        sha256: of what it is.
        untouched: its base's denoiser, where guidance steers away from that.
    """

    load: Callable[[], Any]
    side: int
    sha256: str = ""
    untouched: Any = None

    @cached_property
    def pipeline(self) -> Any:
        """Read when it is first asked for."""
        return self.load()


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """(prompts, tokens), filled up and cut off at what the text encoder reads."""
    ids: Tensor = tokenizer(
        list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def pool_at_end(encoder: Any, tokenizer: Any) -> None:
    """Have a CLIP text encoder give the state at a prompt's end for that of the whole prompt.

    The published configurations name another token as the end, and transformers then gives the state at the highest id:
    that of a token that was added, which has seen nothing of what comes after it.
    """
    encoder.config.eos_token_id = tokenizer.eos_token_id
    getattr(encoder, "text_model", encoder).eos_token_id = tokenizer.eos_token_id
