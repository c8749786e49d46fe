"""A whole pipeline folder: `DiffusionPipeline.from_pretrained(FOLDER)` alone draws the subject by its token."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from twostage.export import Options, Source, Written
from twostage.export.shared.files import cast, reads_tokens
from twostage.method.sampling import text_of
from twostage.subject.tokens import written_out

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY = "a whole pipeline folder, the token in its vocabulary"
OPTIONS = ("dtype",)


def check(source: Source, options: Options) -> None:
    """Every run can be a pipeline folder."""


def write(source: Source, options: Options, folder: Path) -> Written:
    """The pipeline in diffusers' layout, tokens in tokenizer and text encoder."""
    stored = copy.deepcopy(source.pipeline)
    family = source.base.family
    for name in family.models:
        model = getattr(stored, name)
        for key, value in model.state_dict().items():
            cast(value, f"{name}.{key}", options)
    stored.to(getattr(torch, options.precision)).save_pretrained(folder, safe_serialization=True)
    for name in family.text:
        config = folder / name / "config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        # transformers would compute in the precision of the file, diffusers in float32, and the two not fit together.
        config.write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    # Stock pipelines that can be given tokens write out those of several vectors; the others take what they are told.
    prompt = source.prompt if reads_tokens(source) else written_out(text_of(source.pipeline), source.prompt)
    left_out = "".join(f", {name}=None" for name in _left_out(source))
    told = "".join(f", {name}={value}" for name, value in family.call_arguments.items())
    asked = f"and prompt {prompt!r}{told}"
    return Written([f'load it with: {family.pipeline}.from_pretrained("{{folder}}"{left_out}), {asked}'])


def load(source: Source, options: Options, folder: Path) -> DiffusionPipeline:
    """The folder as its users load it."""
    family = source.base.family
    loaded: DiffusionPipeline = family.kind.from_pretrained(
        folder, local_files_only=True, **dict.fromkeys(_left_out(source))
    )
    return loaded


def _left_out(source: Source) -> list[str]:
    """Components that the base does not have, and stock diffusers wants to be told so."""
    optional = source.base.family.kind._optional_components
    return [name for name, part in source.pipeline.components.items() if part is None and name not in optional]
