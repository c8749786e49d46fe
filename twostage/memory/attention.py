"""How the U-Net attends: by torch's own kernels, or by those of xformers where they are right here.

A kernel of xformers is taken only where it agrees with attention written out, forward and backward, on this device.
Both ways add scores up in float32 and never write them out. So those of a base that overflow float16, as Stable
Diffusion 2.1's do (`upcast_attention` in its configuration), need no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import (
    ADDED_KV_ATTENTION_PROCESSORS,
    CROSS_ATTENTION_PROCESSORS,
    Attention,
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersJointAttnProcessor,
)
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.errors import UserError

# Length of what attends, and of what it attends to where that is a prompt.
_TOKENS, _STATES = 256, 77
# Largest relative difference, in the L2 norm, that rounding explains; TF32 does that of float32.
ROUNDING = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class _JointWrittenOut(JointAttnProcessor2_0):
    """Of this kind, diffusers has none that asks no kernel."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kernels = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = _attention  # type: ignore[assignment]
        try:
            return super().__call__(*args, **kwargs)
        finally:
            F.scaled_dot_product_attention = kernels


def _attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return scores.softmax(dim=-1).to(value.dtype) @ value


# Of each kind of attention, which classes of diffusers compute it; by torch's own kernels; and written out.
_KINDS = (
    (CROSS_ATTENTION_PROCESSORS, AttnProcessor2_0, AttnProcessor),
    # To a picture's own places and to a prompt at once, as in DeepFloyd IF.
    (ADDED_KV_ATTENTION_PROCESSORS, AttnAddedKVProcessor2_0, AttnAddedKVProcessor),
    # Of both to both, as in Stable Diffusion 3.
    ((JointAttnProcessor2_0, XFormersJointAttnProcessor), JointAttnProcessor2_0, _JointWrittenOut),
)


def choose_attention(
    outline: Callable[[], Any], wanted: str, device: torch.device, dtype: torch.dtype
) -> tuple[str, str]:
    """Decide between "sdpa" and "xformers", before a weight is loaded.

    Args:
        outline: makes the U-Net's modules on the meta device.
        wanted: "auto", "sdpa" or "xformers".
        device: it will train on.
        dtype: attention is computed in.

    Returns:
        The choice, and what to tell about it: one line, empty where there is nothing to tell.

    Raises:
        UserError: "xformers" is wanted and cannot be had here; why.
    """
    if wanted == "sdpa" or wanted == "auto" and device.type != "cuda":
        return "sdpa", ""
    unet = outline()
    reason = _fault(unet, device, dtype)
    if reason is None:
        return "xformers", ""
    if wanted == "xformers":
        raise UserError(f"memory.attention = 'xformers' cannot be had here: {reason}; use auto or sdpa")
    return "sdpa", f"attention is torch's own (sdpa): {reason}"


def check_sdpa(outline: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> None:
    """Make sure that torch's own attention is right on a device, forward and backward, where it was chosen.

    Args:
        outline: makes the U-Net's modules on the meta device.
        device: it will train on.
        dtype: attention is computed in.

    Raises:
        UserError: it is not; training with it would teach nothing, or noise.
    """
    unet = outline()
    set_attention(unet, "sdpa")
    difference = largest_difference(unet, device, dtype)
    if difference > ROUNDING[dtype]:
        raise UserError(
            f"torch's own attention is wrong on this {device.type} device (off by {difference:.0%} of attention "
            "written out, in its output or gradients); update its driver or torch (`twostage doctor` tries each "
            "kernel), or train with memory.attention = 'xformers'"
        )


def set_attention(unet: Any, choice: str) -> None:
    """Have a U-Net attend as `choose_attention` has decided."""
    if choice == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    else:
        # diffusers' own way back, set_default_attn_processor, would write the attention matrix out.
        for layer in unet.modules():
            for kind, own, _ in _KINDS:
                if isinstance(layer, Attention) and isinstance(layer.processor, kind):
                    layer.set_processor(own())


def largest_difference(unet: Any, device: torch.device, dtype: torch.dtype) -> float:
    """How far the attention of a U-Net's modules, as they are set, is from attention written out.

    Args:
        unet: on the meta device; one layer of each width of a head gets random weights on `device`.
        device: where it is tried.
        dtype: autocast to, unless float32.

    Returns:
        Largest relative L2 difference of outputs, and of the gradients of inputs and prompt states; infinite where
        something is not finite.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        differences = [difference for layer in _layers(unet) for difference in _differences(layer, device, dtype)]
    return max((value if math.isfinite(value) else math.inf for value in differences), default=0.0)


def _fault(unet: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why xformers cannot be used for the U-Net, if it cannot."""
    try:
        unet.enable_xformers_memory_efficient_attention()
        difference = largest_difference(unet, device, dtype)
    except ModuleNotFoundError:
        return "xformers is not installed"
    except (ValueError, RuntimeError, NotImplementedError, ImportError, AttributeError) as error:
        # No GPU, no kernel for it, or one that was built for another torch.
        return f"xformers has no kernel that runs here ({' '.join(str(error).split())[:120]})"
    if difference > ROUNDING[dtype]:
        return f"the kernel of xformers is wrong here (off by {difference:.0%} of attention written out)"
    return None


def _layers(unet: nn.Module) -> Iterator[Attention]:
    """One for each width of a head, to itself and to a prompt: kernels differ in the widths they have."""
    seen, known = set(), tuple(one for kind, *_ in _KINDS for one in kind)
    for module in unet.modules():
        if isinstance(module, Attention) and isinstance(module.processor, known):
            kind = module.inner_dim // module.heads, module.is_cross_attention, module.added_kv_proj_dim is None
            if kind not in seen:
                seen.add(kind)
                yield module


def _differences(layer: Attention, device: torch.device, dtype: torch.dtype) -> list[float]:
    layer = layer.to_empty(device=device)
    for module in layer.modules():
        if isinstance(module, (nn.Linear, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
        else:  # diffusers' own norms.
            for scale in module.parameters(recurse=False):
                nn.init.ones_(scale)
    added, processor = layer.added_kv_proj_dim is not None, layer.processor
    flat = isinstance(processor, ADDED_KV_ATTENTION_PROCESSORS)
    places = (layer.query_dim, _TOKENS) if flat else (_TOKENS, layer.query_dim)
    shown = [torch.randn(2, *places, device=device, requires_grad=True)]
    if layer.is_cross_attention or added:
        width = layer.added_kv_proj_dim if added else layer.cross_attention_dim
        shown.append(torch.randn(2, _STATES, width, device=device, requires_grad=True))
    weight = torch.randn(2, *places, device=device)
    tried = _answers(layer, shown, weight, dtype)
    layer.set_processor(next(written for kind, _, written in _KINDS if isinstance(processor, kind))())
    right = _answers(layer, shown, weight, dtype)
    layer.set_processor(processor)
    return [
        float((one.float() - other.float()).norm() / other.float().norm())
        for one, other in zip(tried, right, strict=True)
    ]


def _answers(layer: Attention, shown: list[Tensor], weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output, and gradients of what was shown."""
    with torch.autocast(weight.device.type, dtype, enabled=dtype != torch.float32):
        found = layer(shown[0], encoder_hidden_states=shown[1] if len(shown) > 1 else None)
    output = found[0] if isinstance(found, tuple) else found  # The prompt's part is of the same kernel.
    gradients = torch.autograd.grad((output.float() * weight).sum(), shown, materialize_grads=True)
    return [output.detach(), *gradients]
