"""Tensors that wait on the host, beside the card, until they are needed on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twostage.recipe import Memory


def saves_nothing(memory: Memory, device: torch.device) -> str:
    """What to tell where the recipe has something wait on the host, and trains on the host itself; else ""."""
    given = [name for name in ("optimizer_state", "activations") if getattr(memory, name) == "host"]
    given += ["streamed"] if memory.streamed else []
    if device.type != "cpu" or not given:
        return ""
    return f"memory.{given[0]} is for a GPU: there is none here, and on the host nothing is saved by waiting there"


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host, with the same strides; never the tensor itself, though it may be on the CPU.

    Args:
        tensor: dense. From a GPU, the copy is in pinned memory and may still be under way: the GPU's own stream waits
            for it, and who reads it on the CPU synchronises first.
    """
    kept: Tensor = TO_HOST(tensor.detach())
    return kept


def to_card(kept: Tensor, device: torch.device) -> Tensor:
    """A copy of what `to_host` gave, on the card; never `kept` itself. On a GPU it comes in its stream's own time."""
    return torch.empty_strided(kept.size(), kept.stride(), dtype=kept.dtype, device=device).copy_(
        kept, non_blocking=True
    )


def empty_on_host(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, card: torch.device) -> Tensor:
    """Room on the host for what is needed on `card`, without values; in pinned memory, where that is a GPU."""
    room: Tensor = EMPTY_ON_HOST(size, stride, dtype, card.type == "cuda")
    return room


def wait_for_copies(card: torch.device) -> None:
    """Return once nothing is under way between host and card, so that what waits on the host can be read there."""
    if card.type == "cuda":
        torch.cuda.synchronize(card)


# Operations of their own, so that a simulation can tell what is on the host from what is on the card.
@torch.library.custom_op("twostage::to_host", mutates_args=())
def _to_host(tensor: Tensor) -> Tensor:
    pinned = tensor.device.type == "cuda"
    kept = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu", pin_memory=pinned)
    return kept.copy_(tensor, non_blocking=pinned)


@_to_host.register_fake
def _(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")


@torch.library.custom_op("twostage::empty_on_host", mutates_args=())
def _empty_on_host(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, pinned: bool) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cpu", pin_memory=pinned)


@_empty_on_host.register_fake
def _(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, pinned: bool) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


TO_HOST, EMPTY_ON_HOST = torch.ops.twostage.to_host.default, torch.ops.twostage.empty_on_host.default
