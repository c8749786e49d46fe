"""Files that several formats write, and the stock pipelines that read them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from twostage.errors import UserError
from twostage.export import Options, Source
from twostage.export.shared.layouts import layout_of
from twostage.export.shared.original import original_checkpoint
from twostage.subject.tokens import embedding_file_name

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# A folder of its own, as in A1111 and ComfyUI: a token may be called like the run.
EMBEDDINGS = "embeddings"
# kohya's key, and with it the key most files have. A1111 and ComfyUI read any file of one tensor, whatever its key.
_KOHYA_KEY = "emb_params"


def main_file(source: Source, folder: Path) -> Path:
    """The file with the weights."""
    return folder / f"{source.name}.safetensors"


def save(tensors: dict[str, Tensor], file: Path, **metadata: str) -> None:
    """Write tensors.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt", **metadata})


def cast(value: Tensor, name: str, options: Options) -> Tensor:
    """On the CPU, in the precision that was asked for; integers stay what they are.

    Raises:
        UserError: a number is too large for it.
    """
    if not value.is_floating_point():
        return value.cpu().contiguous()
    stored = value.detach().to("cpu", getattr(torch, options.precision)).contiguous()
    if not stored.isfinite().all():
        raise UserError(
            f"{name} reaches {value.abs().max():.3g}, which {options.precision} cannot hold; choose --dtype bfloat16"
        )
    return stored


# Embeddings


def save_embeddings(source: Source, options: Options, folder: Path) -> dict[str, Path]:
    """One float32 file a token, of one tensor (num_vectors, D); returned by token."""
    files = {name: folder / embedding_file_name(name) for name in source.embeddings}
    for name, file in files.items():
        key = name if options.naming == "diffusers" else _KOHYA_KEY
        save({key: source.embeddings[name].detach().cpu().float().contiguous()}, file)
    return files


def load_embeddings(pipeline: StableDiffusionPipeline, source: Source, options: Options, folder: Path) -> None:
    """Put the tokens into a stock pipeline, as its users do."""
    for name in source.embeddings:
        file = str(folder / embedding_file_name(name))
        pipeline.load_textual_inversion(file, token=None if options.naming == "diffusers" else name)


def without_tokens(source: Source) -> Any:
    """The run's text encoder on the CPU, with the base's own vocabulary: 49,408 rows for Stable Diffusion.

    With more of them, neither A1111 nor ComfyUI loads a checkpoint.
    """
    pipeline = source.pipeline
    encoder = copy.deepcopy(pipeline.text_encoder).cpu()
    if source.embeddings:
        encoder.resize_token_embeddings(len(pipeline.tokenizer) - sum(map(len, source.embeddings.values())))
    return encoder


def embedding_usage(name: str, file: str) -> str:
    """Where the file of a token goes, and what then stands for it in prompts: its name is the file's."""
    stem = Path(file).stem
    return (
        f"{file}: {name}; A1111 wants it in embeddings/ and {stem} in prompts, ComfyUI in models/embeddings/ and "
        f"embedding:{stem} in prompts"
    )


# The single file


def save_checkpoint(source: Source, options: Options, folder: Path) -> Path:
    """The checkpoint in the original layout."""
    file = main_file(source, folder)
    pipeline = source.pipeline
    layout = layout_of(source.base.family)
    encoders = {layout.places[name]: without_tokens(source) for name in ("text_encoder",)}
    tensors = original_checkpoint(pipeline.unet, pipeline.vae, encoders)
    save({name: cast(value, name, options) for name, value in tensors.items()}, file)
    return file


def load_checkpoint(source: Source, folder: Path) -> StableDiffusionPipeline:
    """The checkpoint, read by stock diffusers; nothing is downloaded."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_single_file(
        str(main_file(source, folder)),
        config=str(source.base.folder),
        local_files_only=True,
        torch_dtype=torch.float32,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
    )


def single_file_call(source: Source, file: str) -> str:
    """How stock diffusers loads the checkpoint."""
    base = source.base
    config = base.folder if base.source == "pocket" else base.source
    return f'StableDiffusionPipeline.from_single_file("{file}", config="{config}")'


def unknown_shapes(source: Source, program: str) -> list[str]:
    """A note where a program will not know what to make of the checkpoint."""
    layout = layout_of(source.base.family)
    if layout.is_published(source.pipeline.unet):
        return []
    return [f"note: {program} knows the shapes of {layout.published}; those of this base it cannot load"]
