"""Latents of pictures: the VAE sees each picture once, and what it made of it is kept in the cache.

The latents are filed by the pixels themselves, as training sees them: whatever the pixels come of (the photo, its
crop or padding, its mirror image, the way pictures are read) is in the key, and another picture's are never taken for
them. Where the cache has all of a run's pictures, the VAE is not loaded.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from twostage.cache import Shelf
from twostage.errors import UserError
from twostage.families import Base


def encode_picture(base: Base, pixels: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Posterior of one picture's latents, from the cache or the VAE.

    One at a time: in a larger batch a picture's latents are rounded in another way.

    Args:
        base: its VAE is loaded when it is needed; releasing it is the caller's.
        pixels: (3, H, W) float32 in [-1, 1], on the CPU.
        device: where the VAE runs.

    Returns:
        mean and standard deviation, each (C, H/reduction, W/reduction) float32, scaled as the U-Net sees them, on the
        CPU; bit for bit the same whether or not they come from the cache.

    Raises:
        UserError: they are not finite; none such is kept.
    """
    if base.family.autoencoder is None:  # Nothing that would be worth keeping.
        mean, std = base.family.encode_images(None, pixels.unsqueeze(0))
        return mean[0], std[0]
    shelf = Shelf("latents", ".safetensors", _facts(base, base.family.autoencoder, device))
    key = hash_tensors(pixels)
    latents = _read(shelf.file(key))
    if latents is None:
        parts = base.family.encode_images(base.vae.to(device), pixels.unsqueeze(0).to(device))
        latents = {name: part[0].float().cpu().contiguous() for name, part in zip(("mean", "std"), parts, strict=True)}
        if not all(bool(part.isfinite().all()) for part in latents.values()):
            raise UserError(
                f"the VAE of {base.folder} makes of a picture latents that are infinite or NaN; its weights overflow "
                "or are damaged: get it anew, or put one that works in half precision in its place"
            )
        # All this saves is time: a run that could do without is not refused for a full or read-only disk.
        with suppress(UserError):
            shelf.put(key, save(latents, {"sha256": hash_tensors(*latents.values())}))
    return latents["mean"], latents["std"]


def _facts(base: Base, autoencoder: str, device: torch.device) -> dict[str, str]:
    """What the VAE's answers depend on to the last bit, but for the picture."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{device.type}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {
        "vae": base.hash_of(autoencoder) + (", in tiles" if base.vae_in_tiles else ""),
        "device": where,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None where it is not there, or not what was written."""
    if not os.path.isfile(path):  # What is none, as a pipe, might be waited for.
        return None
    try:
        with safe_open(path, framework="pt") as file:
            latents = {name: file.get_tensor(name) for name in ("mean", "std")}
            return latents if file.metadata()["sha256"] == hash_tensors(*latents.values()) else None
    except (OSError, SafetensorError, KeyError, TypeError):  # The last two: a whole file, but of something else.
        return None


def hash_tensors(*tensors: Tensor) -> str:
    """sha256 over shapes and values, in hex."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\0".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
