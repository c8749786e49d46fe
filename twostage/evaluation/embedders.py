"""Pictures and prompts to vectors, by any ViT or CLIP that transformers loads from a folder or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel
from transformers.utils import cached_file

from twostage.weights import PICKLES, check_folder, conversion

BATCH = 64
# What is read of a model beside its weights and vocabulary.
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
)


def pixel_batches(processor: Any, images: Sequence[Image.Image], device: Any) -> Iterator[Tensor]:
    """The pictures as the model of `processor` sees them, (at most 64, 3, H, W) a batch, on `device`."""
    for start in range(0, len(images), BATCH):
        pixels = processor(images=list(images[start : start + BATCH]), return_tensors="pt").pixel_values
        yield pixels.to(device)


class ViTEmbedder:
    """A self-supervised ViT: DINO (`facebook/dino-vits16`), DINOv2, or the pocket one.

    Its class token tells one subject from another of its class.

    Args:
        source: a folder in transformers' layout, or a hub id; weights are read from safetensors only.
        device: that it runs on.
        local_files_only: of a hub id, take what was downloaded before, and ask nobody.

    Attributes:
        made_up: names of tensors that the weights lack: the pooler's, which nothing here reads.

    Raises:
        ValueError: the weights lack others, or it is no ViT, or its settings name code; see `weights.check_folder`.
    """

    def __init__(self, source: str | Path, device: str = "cpu", *, local_files_only: bool = False) -> None:
        _check(source, local_files_only)
        self.processor = AutoImageProcessor.from_pretrained(
            source, local_files_only=local_files_only, trust_remote_code=False
        )
        self.model, self.made_up = _load(AutoModel, source, local_files_only)
        if self.model.main_input_name != "pixel_values" or not hasattr(self.model.config, "patch_size"):
            raise ValueError(f"{type(self.model).__name__} is no ViT")
        self.model.to(device).eval()

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Class tokens, (N, D) float32 on the CPU, of length 1."""
        return torch.cat([state[:, 0] for state in self._states(images)])

    @torch.inference_mode()
    def patches(self, images: Sequence[Image.Image]) -> Tensor:
        """Patch tokens, row by row of the picture, (N, P, D) float32 on the CPU, of length 1."""
        # Registers (arXiv 2309.16588) stand between the class token and the patches.
        first = 1 + getattr(self.model.config, "num_register_tokens", 0)
        return torch.cat([state[:, first:] for state in self._states(images)])

    def foreground(self, masks: Sequence[Image.Image]) -> Tensor:
        """Which patches a mask ("L", white counts) covers by half or more, (N, P) bool.

        Masks go through what pictures go through, so a patch and its place in the mask are the same.
        """
        size = self.model.config.patch_size
        shown = [mask.convert("RGB") for mask in masks]
        pixels = self.processor(images=shown, return_tensors="pt", do_normalize=False).pixel_values
        return torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), size).flatten(1) >= 0.5

    def _states(self, images: Sequence[Image.Image]) -> Iterator[Tensor]:
        for pixels in pixel_batches(self.processor, images, self.model.device):
            states = self.model(pixel_values=pixels).last_hidden_state
            yield torch.nn.functional.normalize(states, dim=-1).cpu()


class CLIPEmbedder:
    """CLIP's image and text towers: how well a picture fits a prompt.

    Args, Attributes:
        As of `ViTEmbedder`; CLIP has no tensors to make up.

    Raises:
        ValueError: the weights lack tensors, or it is no CLIP.
    """

    def __init__(self, source: str | Path, device: str = "cpu", *, local_files_only: bool = False) -> None:
        _check(source, local_files_only)
        self.processor = AutoImageProcessor.from_pretrained(
            source, local_files_only=local_files_only, trust_remote_code=False
        )
        self.tokenizer = AutoTokenizer.from_pretrained(
            source, local_files_only=local_files_only, trust_remote_code=False
        )
        self.model, self.made_up = _load(CLIPModel, source, local_files_only)
        self.model.to(device).eval()

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
        return collected(map(self._read, range(0, len(prompts), BATCH), repeat(prompts)), len(prompts))

    def _read(self, start: int, prompts: Sequence[str]) -> Tensor:
        some = list(prompts[start : start + BATCH])
        ids = self.tokenizer(some, padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled = self.model.text_model(input_ids=ids.to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(self.model.text_projection(pooled), dim=-1).cpu()


def collected(parts: Iterable[Tensor], count: int) -> Tensor:
    """What `torch.cat` of parts (n, D) gives, `count` rows in all, in a place of its own from the first part on.

    A list of small tensors that stay, each behind what it was computed by, leaves a process holes in place of memory.
    """
    whole, filled = torch.empty(0), 0
    for part in parts:
        if not filled:
            whole = torch.empty(count, *part.shape[1:], dtype=part.dtype)
        whole[filled : filled + len(part)] = part
        filled += len(part)
    assert filled == count
    return whole


def _check(source: str | Path, local_files_only: bool) -> None:
    """Look at a model's settings before the libraries do; of a hub id, at what they say there.

    Raises:
        UserError: they name code, another model or a file elsewhere.
    """
    folder = Path(source)
    if not folder.is_dir():
        found = [
            cached_file(
                str(source),
                name,
                local_files_only=local_files_only,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for name in _SETTINGS
        ]
        folder = next((Path(path).parent for path in found if path), folder)
    if not folder.is_dir():
        return
    check_folder(folder, code=True)
    pickled = next((path for path in sorted(folder.iterdir()) if path.suffix in PICKLES), None)
    if pickled and not any(folder.glob("*.safetensors")):
        raise ValueError(f"{pickled.name}: {conversion(pickled, 'model.safetensors')}")


def _load(kind: Any, source: str | Path, local_files_only: bool) -> tuple[Any, frozenset[str]]:
    model, told = kind.from_pretrained(
        source,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=local_files_only,
        output_loading_info=True,
    )
    # transformers fills what the weights lack with random numbers, and only warns; DINO's come without a pooler.
    lacking = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if lacking:
        raise ValueError(f"the weights are not those of a {type(model).__name__}: {lacking[0]} is missing")
    return model, frozenset(told["missing_keys"])
