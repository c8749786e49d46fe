"""The table of a recipe that says how the U-Net computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from twostage.recipe_memory import Memory
from twostage.recipe_sections import Section, option
from twostage.recipe_stages import Stage


class Speed(Section):
    """How the U-Net computes: the same, but for rounding."""

    channels_last: bool = option(
        False,
        "Keep the weights of convolutions in the order that GPUs compute them in at half precision, in both stages and "
        "for samples. On a CPU it gains nothing.",
    )
    tf32: bool = option(
        False,
        "On GPUs that have it, multiply float32 matrices in TF32, with 10 bits of fraction; convolutions are computed "
        "so anyway.",
        flags=("allow-tf32",),
    )
    compile: Literal["no", "blocks", "graphs"] = option(
        "no",
        "Compile the U-Net's blocks with torch.compile, in training; samples are drawn without. Graphs: replay them as "
        "CUDA graphs too, on a GPU. Where it fails, training goes on without.",
    )


def speed_conflict(speed: Speed, memory: Memory, stages: Sequence[tuple[str, Stage]], fit: str) -> str | None:
    """Why options of [speed] do not go with the rest of a recipe, if they do not: one line.

    Args:
        speed: the table.
        memory: blocks whose weights come and go, or are no plain numbers, cannot be compiled.
        stages: name and options of those that the recipe has.
        fit: data.fit; buckets have each their own shape.
    """
    if speed.compile == "no":
        return None
    asked = f"speed.compile = {speed.compile!r}"
    if memory.streamed:
        return f"{asked} needs weights that stay where they are, and memory.streamed = {memory.streamed:g}; use one"
    if memory.frozen_base != "full":
        return f"{asked} compiles layers of plain weights, and memory.frozen_base = {memory.frozen_base!r}; use one"
    if memory.activations != "card":
        return f"{asked} keeps activations itself, and memory.activations = {memory.activations!r}; use one"
    return _graphs_conflict(memory, stages, fit) if speed.compile == "graphs" else None


def _graphs_conflict(memory: Memory, stages: Sequence[tuple[str, Stage]], fit: str) -> str | None:
    asked, instead = "speed.compile = 'graphs' replays one step as it was", "use 'blocks'"
    if fit == "bucket":
        return f"{asked}, and data.fit = 'bucket' gives steps several shapes; {instead}"
    if memory.step_in_backward:
        return f"{asked}, and memory.step_in_backward frees gradients within it; {instead}"
    for name, stage in stages:
        if stage.gradient_checkpointing:
            return f"{asked}, and {name}.gradient_checkpointing computes parts of it twice; {instead}"
        if stage.gradient_accumulation_steps > 1:
            return (
                f"{asked}, and {name}.gradient_accumulation_steps = {stage.gradient_accumulation_steps} keeps "
                f"gradients over several; {instead}"
            )
    return None
