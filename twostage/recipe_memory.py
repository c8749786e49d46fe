"""The table of a recipe that says what is done to fit a small card."""

from __future__ import annotations

from typing import Literal

from twostage.recipe_sections import Section, option
from twostage.recipe_stages import Stage1, Stage2


class Memory(Section):
    """What is done with less memory than it could; by stage 2, but for what says that it is of both stages."""

    optimizer: Literal["adamw", "adamw8bit", "adamw4bit", "adafactor"] = option(
        "adamw",
        "Optimizer of stage 2. Its state takes 8 bytes a parameter (adamw), 2 or 1 where AdamW's moments are kept in 8 "
        "or 4 bits, next to none with adafactor: no momentum, second moments factored, each tensor's update clipped.",
        flags=("optimizer",),
    )
    weights: Literal["float32", "bfloat16"] = option(
        "float32",
        "How the U-Net is kept that stage 2 trains whole. bfloat16 takes half the memory for weights, gradients and "
        "activations; updates are then rounded stochastically. A text encoder that learns stays float32.",
    )
    step_in_backward: bool = option(
        False,
        "Make the optimizer's step within the backward pass, tensor by tensor, and free each gradient at once. Same "
        "result; rules out max_grad_norm and gradient_accumulation_steps.",
        flags=("fused-backward-pass",),
    )
    optimizer_state: Literal["card", "host"] = option(
        "card",
        "Where the state of stage 2's optimizer waits between steps. On the host, parts of it come to the GPU as they "
        "are needed and go back: the same bits, but for adamw with float32 weights, which then steps without torch's "
        "fused kernels and is rounded otherwise.",
    )
    clip_updates: bool = option(
        False,
        "AdamW: divide a tensor's step by how many times larger its gradient is than its second moments have seen, "
        "where it is (StableAdamW, arXiv 2304.13013): for max_grad_norm, which step_in_backward rules out. Adafactor "
        "always clips so.",
    )
    activations: Literal["card", "host"] = option(
        "card",
        "Where what the forward pass keeps for the backward pass waits, in both stages. On the host: the same result, "
        "and time for copying it there and back.",
    )
    frozen_base: Literal["full", "8bit", "4bit"] = option(
        "full",
        "How the weights of a frozen U-Net are kept, in stage 1 and under an adapter: in full, or in 8 bits, or its "
        "linear layers in 4, each made whole while its layer computes. What is learned belongs to the base in full. "
        "Stage 1's text encoder is then kept in 8 bits.",
    )
    streamed: float = option(
        0.0,
        "Share of the weights of the U-Net's blocks that waits on the host, and is on the GPU only while its block is "
        "used, in both stages and for pictures. The same result, and time for copying there and back.",
        ge=0,
        le=1,
    )
    attention: Literal["auto", "sdpa", "xformers"] = option(
        "auto",
        "Kernels of the U-Net's attention, in both stages: torch's own (sdpa), or those of xformers, where they agree "
        "with attention written out, forward and backward. Auto takes xformers on a GPU where it is installed and "
        "agrees, and says so where it is not.",
    )
    vae_tiling: bool = option(
        False,
        "Let the VAE decode pictures one after another, and work on tiles of those above 512 pixels, which overlap "
        "and are blended: that changes their latents and pixels a little.",
    )


# The others are stage 2's.
_OF_BOTH_STAGES = {"activations", "attention", "frozen_base", "streamed", "vae_tiling"}


def conflict(memory: Memory, stage2: Stage2 | None, mixed_precision: str) -> str | None:
    """Why options of [memory] do not go with the rest of a recipe, if they do not: one line.

    Args:
        memory: the table.
        stage2: the stage it is about.
        mixed_precision: of the recipe.
    """
    given = [
        name
        for name in Memory.model_fields
        if name not in _OF_BOTH_STAGES and getattr(memory, name) != getattr(Memory(), name)
    ]
    if not given:
        return _streaming_conflict(memory, stage2)
    if stage2 is None:
        return (
            f"memory.{given[0]} = {_shown(getattr(memory, given[0]))} would do nothing: it is for stage 2, and there "
            "is no [stage2]"
        )
    return (
        _weights_conflict(memory, stage2, mixed_precision)
        or _step_conflict(memory, stage2, mixed_precision)
        or _streaming_conflict(memory, stage2)
    )


def frozen_conflict(memory: Memory, stage1: Stage1 | None, stage2: Stage2 | None) -> str | None:
    """Why memory.frozen_base would do nothing, if it would not: one line."""
    if memory.frozen_base == "full" or stage1 or stage2 is None or stage2.train != "unet":
        return None
    return (
        f"memory.frozen_base = {memory.frozen_base!r} would do nothing: there is no [stage1], and stage2.train = "
        "'unet' trains the whole U-Net; leave it out, or train an adapter"
    )


def _weights_conflict(memory: Memory, stage2: Stage2, mixed_precision: str) -> str | None:
    if memory.weights == "float32":
        return None
    if stage2.train == "adapter":
        return (
            "memory.weights = 'bfloat16' is for a U-Net that trains whole, and stage2.train = 'adapter'; the frozen "
            "U-Net is bfloat16 with mixed_precision = 'bf16'"
        )
    if mixed_precision == "fp16":
        return "memory.weights = 'bfloat16' does not go with mixed_precision = 'fp16'; use 'bf16' or 'no'"
    if stage2.ema_decay:
        return (
            f"stage2.ema_decay = {stage2.ema_decay:g} averages in the weights' own precision, and in bfloat16 the "
            "average would stand still; use memory.weights = 'float32', or ema_decay = 0"
        )
    return None


def _step_conflict(memory: Memory, stage2: Stage2, mixed_precision: str) -> str | None:
    if memory.optimizer == "adafactor":
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            value = getattr(stage2, name)
            if value != Stage2.model_fields[name].default:
                return f"stage2.{name} = {value:g} would do nothing with memory.optimizer = 'adafactor'; leave it out"
        if memory.clip_updates:
            return (
                "memory.clip_updates = true is for AdamW, and memory.optimizer = 'adafactor' clips anyway; leave it out"
            )
    if not memory.step_in_backward:
        return None
    if stage2.gradient_accumulation_steps > 1:
        return (
            f"memory.step_in_backward frees each gradient at once, and stage2.gradient_accumulation_steps = "
            f"{stage2.gradient_accumulation_steps} adds them up; raise batch_size instead"
        )
    if stage2.max_grad_norm:
        return (
            f"memory.step_in_backward moves tensors before the whole gradient's norm is known, and "
            f"stage2.max_grad_norm = {stage2.max_grad_norm:g} clips it; set max_grad_norm = 0 (adafactor, and AdamW "
            "with memory.clip_updates, clip each tensor's update by itself)"
        )
    if mixed_precision == "fp16":
        return "memory.step_in_backward cannot skip a step that overflows, as mixed_precision = 'fp16' must; use 'bf16'"
    return None


def _streaming_conflict(memory: Memory, stage2: Stage2 | None) -> str | None:
    if not memory.streamed or stage2 is None or stage2.train != "unet":
        return None
    if not memory.step_in_backward:
        return (
            f"memory.streamed = {memory.streamed:g} moves weights while they are on the card, and without "
            "memory.step_in_backward the optimizer would come too late; add step_in_backward, or set streamed = 0"
        )
    if stage2.ema_decay:
        return (
            f"stage2.ema_decay = {stage2.ema_decay:g} averages weights that are not on the card with memory.streamed = "
            f"{memory.streamed:g}; set ema_decay = 0, or streamed = 0"
        )
    return None


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
