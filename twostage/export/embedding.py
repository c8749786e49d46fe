"""The learned token alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twostage.errors import UserError
from twostage.export import Options, Source, Written
from twostage.export.shared.files import (
    embedding_calls,
    embedding_usage,
    load_embeddings,
    save_embeddings,
    without_tokens,
)
from twostage.method.sampling import assemble

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY = "the learned token alone"
OPTIONS = ("naming",)


def check(source: Source, options: Options) -> None:
    """Refuse a run that learned no token.

    Raises:
        UserError: it did not.
    """
    if not source.embeddings:
        raise UserError(
            f"run {source.name} learned no token: its recipe has no [stage1]; export what it tuned with "
            "--to diffusers, a1111, comfyui or lora"
        )


def write(source: Source, options: Options, folder: Path) -> Written:
    """A file for each token."""
    usage = []
    for name, file in save_embeddings(source, options, folder).items():
        usage += [embedding_usage(source, name, file.name)]
        usage += embedding_calls(source, options, name, f"{{folder}}/{file.name}")
    return Written(usage)


def load(source: Source, options: Options, folder: Path) -> DiffusionPipeline:
    """The run's other components, and the token from its file."""
    encoders = {name: without_tokens(source, name) for name in source.base.family.text}
    denoiser = source.base.family.denoiser
    pipeline = assemble(source.base, **{denoiser: getattr(source.pipeline, denoiser)}, **encoders)
    load_embeddings(pipeline, source, options, folder)
    return pipeline
