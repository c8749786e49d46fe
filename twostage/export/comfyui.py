"""One checkpoint in the original layout, the token beside it: what ComfyUI loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twostage.export import Options, Source, Written
from twostage.export.shared.files import (
    EMBEDDINGS,
    load_checkpoint,
    load_embeddings,
    save_checkpoint,
    save_embeddings,
    single_file_call,
    unknown_shapes,
)

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SUMMARY = "one checkpoint file for ComfyUI, the token beside it"
OPTIONS = ("dtype",)


def check(source: Source, options: Options) -> None:
    """Every run can be a checkpoint; a base with unknown layers is refused when it is written."""


def write(source: Source, options: Options, folder: Path) -> Written:
    """The checkpoint, and embeddings/ with a file for each token."""
    checkpoint = save_checkpoint(source, options, folder)
    usage = [f"{checkpoint.name}: to models/checkpoints/"]
    for name, file in save_embeddings(source, options, folder / EMBEDDINGS).items():
        usage += [f"{EMBEDDINGS}/{file.name}: to models/embeddings/; write embedding:{file.stem} for {name}"]
    scheduler = source.base.noise_scheduler.config
    if scheduler.prediction_type == "v_prediction" or scheduler.rescale_betas_zero_snr:
        # It guesses Stable Diffusion 2's from the weights, and takes every 1 to predict noise.
        usage += [
            f"put a ModelSamplingDiscrete node behind it: sampling {_SAMPLING[scheduler.prediction_type]}, "
            f"zsnr {str(bool(scheduler.rescale_betas_zero_snr)).lower()}"
        ]
    usage += [f"with diffusers: {single_file_call(source, f'{{folder}}/{checkpoint.name}')}"]
    return Written(usage + unknown_shapes(source, "ComfyUI"))


_SAMPLING = {"epsilon": "eps", "v_prediction": "v_prediction", "sample": "x0"}


def load(source: Source, options: Options, folder: Path) -> StableDiffusionPipeline:
    """The checkpoint and the tokens, by stock diffusers."""
    pipeline = load_checkpoint(source, folder)
    load_embeddings(pipeline, source, options, folder / EMBEDDINGS)
    return pipeline
