"""Where a run trains: device, precision and processes; and what they cannot do is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import accelerate
from accelerate.state import AcceleratorState, GradientState, PartialState

from twostage.errors import UserError
from twostage.machine import compute_capability, describe, has_fast_bfloat16
from twostage.recipe import Recipe
from twostage.run_folder import RunFolder


def start_accelerator(recipe: Recipe, folder: RunFolder) -> accelerate.Accelerator:
    """One accelerator per run: the library keeps its settings for the whole process unless told to forget them.

    Raises:
        UserError: the recipe wants what device or processes cannot do.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = accelerate.Accelerator(
        mixed_precision=recipe.mixed_precision,
        log_with=None if recipe.report_to == "none" else recipe.report_to,
        project_dir=folder.path,
    )
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed_precision fp16 needs a GPU; use bf16 or no")
    if recipe.memory.step_in_backward and accelerator.num_processes > 1:
        raise UserError(
            f"memory.step_in_backward moves tensors before the gradients of {accelerator.num_processes} processes are "
            "added up; train in one process, or without it"
        )
    if recipe.memory.streamed and accelerator.num_processes > 1:
        raise UserError(
            f"memory.streamed = {recipe.memory.streamed:g} keeps weights away that {accelerator.num_processes} "
            "processes would want to compare; train in one process, or with streamed = 0"
        )
    device = accelerator.device
    check_bfloat16(recipe, describe(device), compute_capability(device))
    return accelerator


def forget_accelerators() -> None:
    """Have the next accelerator find device and processes by itself, like no other that was made in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def accelerators_aside() -> Iterator[None]:
    """Within it, no accelerator has been made; afterwards those from before work as if none had been made in it."""
    # Instances of a class share one dict, which the next one finds again.
    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(kept) for kept in shared]
    forget_accelerators()
    try:
        yield
    finally:
        forget_accelerators()
        for state, kept in zip(shared, before, strict=True):
            state.update(kept)


def check_bfloat16(recipe: Recipe, card: str, capability: tuple[int, int] | None) -> None:
    """Refuse bfloat16 to a card that is slow at it.

    Args:
        recipe: of the run.
        card: its name.
        capability: see `has_fast_bfloat16`.

    Raises:
        UserError: naming the options, the card, and what to use instead.
    """
    asked = {
        "mixed_precision = 'bf16'": recipe.mixed_precision == "bf16",
        "memory.weights = 'bfloat16'": recipe.memory.weights == "bfloat16",
    }
    wanted = " and ".join(name for name, is_asked in asked.items() if is_asked)
    if wanted and not has_fast_bfloat16(capability):
        raise UserError(
            f"{wanted}: {card} has no fast bfloat16; use mixed_precision = 'fp16' and memory.weights = 'float32', and "
            "to save memory memory.optimizer = 'adamw8bit' and gradient_checkpointing"
        )
