"""How the denoiser computes: memory format, TF32, compiled blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from twostage.lack import lacks_memory
from twostage.memory.blocks import blocks_of
from twostage.recipe import Speed

# A single convolution each, and a size of its own.
_TOO_LITTLE = (Downsample2D, Upsample2D)
# Sizes of blocks that a denoiser has at most; Stable Diffusion 1.5 has 18, and torch gives up after 8.
_SIZES = 64


def set_precision(speed: Speed, device: torch.device) -> None:
    """Have a GPU multiply matrices of float32 as the recipe says, from now on in this process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if speed.tf32 else "highest")


def lay_out(denoiser: nn.Module, speed: Speed) -> None:
    """Have a denoiser's weights in the memory format that the recipe says; what passes through follows them."""
    if speed.channels_last:
        denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_blocks(denoiser: nn.Module, attempt: Callable[[], object], *, graphs: bool, fixed: bool) -> str:
    """Compile the blocks of a denoiser, if that can be done here.

    Args:
        denoiser: on its device, all its options set.
        attempt: uses it as training will, forward and backward, and keeps nothing: torch compiles at first use.
        graphs: replay as CUDA graphs.
        fixed: whether everything that passes through always has the same shape.

    Returns:
        What to tell: one line where it failed and the blocks are as they were, else "".

    Raises:
        RuntimeError: memory is short; blocks that were not compiled would need no less.
    """
    # Under another name before torch 2.6.
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, max(_SIZES, getattr(torch._dynamo.config, limit)))
    for block in _blocks(denoiser):
        block.compile(mode="reduce-overhead" if graphs else None, dynamic=False if fixed else None)
    marking = denoiser.register_forward_pre_hook(_begin_graphs) if graphs else None
    try:
        attempt()
    except RuntimeError as error:  # All that the compiler raises is one.
        if lacks_memory(error):
            raise
        if marking:
            marking.remove()
        for block in _blocks(denoiser):
            block._compiled_call_impl = None
        torch._dynamo.reset()
        reason = " ".join(str(error).split())[:120]
        return (
            f"going on without speed.compile: torch cannot compile the blocks here ({type(error).__name__}: {reason})"
        )
    return ""


@contextmanager
def interpreted(denoiser: nn.Module) -> Iterator[None]:
    """Within it, what was compiled is not used: for other shapes, few times, compiling anew would take longer."""
    compiled = [(block, block._compiled_call_impl) for block in _blocks(denoiser)]
    for block, _ in compiled:
        block._compiled_call_impl = None
    try:
        yield
    finally:
        for block, call in compiled:
            block._compiled_call_impl = call


def _blocks(denoiser: nn.Module) -> Iterator[nn.Module]:
    """What it computes in, but for little. Compiled one by one, since blocks of equal sizes share what was compiled."""
    return (block for block in blocks_of(denoiser) if not isinstance(block, _TOO_LITTLE))


def _begin_graphs(*_: Any) -> None:
    # What the graphs of the step before left in their memory may be written over.
    if torch.is_grad_enabled():
        torch.compiler.cudagraph_mark_step_begin()
