"""One checkpoint in the original layout, the token beside it: what ComfyUI loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twostage.export import Options, Source, Written
from twostage.export.shared.files import (
    EMBEDDINGS,
    embedding_calls,
    load_checkpoint,
    load_embeddings,
    prediction,
    save_checkpoint,
    save_embeddings,
    single_file_call,
    unknown_shapes,
)
from twostage.export.shared.layouts import layout_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY = "one checkpoint file for ComfyUI, the token beside it"
OPTIONS = ("dtype",)


def check(source: Source, options: Options) -> None:
    """Refuse a base that has no original layout; one with unknown layers is refused when it is written.

    Raises:
        UserError: it has none.
    """
    layout_of(source.base.family)


def write(source: Source, options: Options, folder: Path) -> Written:
    """The checkpoint, and embeddings/ with a file for each token."""
    checkpoint = save_checkpoint(source, options, folder)
    usage = [f"{checkpoint.name}: to models/checkpoints/"]
    calls: list[str] = []
    for name, file in save_embeddings(source, options, folder / EMBEDDINGS).items():
        usage += [f"{EMBEDDINGS}/{file.name}: to models/embeddings/; write embedding:{file.stem} for {name}"]
        calls += embedding_calls(source, options, name, f"{{folder}}/{EMBEDDINGS}/{file.name}")
    kind, ends_in_noise = prediction(source)
    is_told = layout_of(source.base.family).told_by_keys and kind == "v_prediction"
    if (kind == "v_prediction" or ends_in_noise) and not is_told:
        # It guesses Stable Diffusion 2's from the weights, and takes every 1 to predict noise.
        usage += [
            f"put a ModelSamplingDiscrete node behind it: sampling {_SAMPLING[kind]}, zsnr {str(ends_in_noise).lower()}"
        ]
    usage += [f"with diffusers: {single_file_call(source, f'{{folder}}/{checkpoint.name}')}", *calls]
    return Written(usage + unknown_shapes(source, "ComfyUI"))


_SAMPLING = {"epsilon": "eps", "v_prediction": "v_prediction", "sample": "x0"}


def load(source: Source, options: Options, folder: Path) -> DiffusionPipeline:
    """The checkpoint and the tokens, by stock diffusers."""
    pipeline = load_checkpoint(source, folder)
    load_embeddings(pipeline, source, options, folder / EMBEDDINGS)
    return pipeline
