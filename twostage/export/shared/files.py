"""Files that several formats write, and the stock pipelines that read them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from twostage.errors import UserError
from twostage.export import Options, Source
from twostage.export.shared.layouts import LAYOUTS, layout_of
from twostage.export.shared.original import original_checkpoint
from twostage.family_parts import pool_at_end
from twostage.subject.token_files import embedding_file_name, keyed_rows
from twostage.subject.tokens import add_learned, embedding_table

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# A folder of its own, as in A1111 and ComfyUI: a token may be called like the run.
EMBEDDINGS = "embeddings"
# kohya's key, and with it the key most files have. A1111 and ComfyUI read any file of one tensor, whatever its key.
_KOHYA_KEY = "emb_params"
# Parts of a stock pipeline that a checkpoint does not hold and drawing does not need; a class leaves out others' names.
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


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
    """One float32 file a token, of a tensor (num_vectors, D) for each text encoder; returned by token.

    A base's only text encoder has its key by the naming; several have those that all programs know them by.
    """
    files = {name: folder / embedding_file_name(name) for name in source.embeddings}
    for name, file in files.items():
        alone = name if options.naming == "diffusers" else _KOHYA_KEY
        keyed = keyed_rows(source.base.family, source.embeddings[name])
        save({key or alone: rows.detach().cpu().float().contiguous() for key, rows in keyed.items()}, file)
    return files


def load_embeddings(pipeline: DiffusionPipeline, source: Source, options: Options, folder: Path) -> None:
    """Put the tokens into a stock pipeline, as its users do; not all of them have a way to."""
    parts = source.base.family.text
    for name in source.embeddings:
        file = folder / embedding_file_name(name)
        keyed = load_file(file)
        alone = name if options.naming == "diffusers" else _KOHYA_KEY
        if not reads_tokens(source):
            rows = {encoder: keyed[part.key or alone] for encoder, part in parts.items()}
            add_learned(source.base.family, pipeline, {name: rows})
        elif alone in keyed:
            pipeline.load_textual_inversion(str(file), token=None if options.naming == "diffusers" else name)
        else:
            for encoder, part in parts.items():
                net, tokenizer = getattr(pipeline, encoder), getattr(pipeline, part.tokenizer)
                pipeline.load_textual_inversion(keyed[part.key], token=name, text_encoder=net, tokenizer=tokenizer)
    for encoder in _pooled(source):
        pool_at_end(getattr(pipeline, encoder), getattr(pipeline, parts[encoder].tokenizer))


def embedding_calls(source: Source, options: Options, name: str, file: str) -> list[str]:
    """How stock diffusers loads the file of a token, a line each."""
    if not reads_tokens(source):
        return [f"diffusers' {source.base.family.pipeline} has no loader of tokens; the run's README.md says how"]
    parts = source.base.family.text
    if len(parts) == 1:
        token = "" if options.naming == "diffusers" else f', token="{name}"'
        return [f'with diffusers: pipe.load_textual_inversion("{file}"{token})']
    return [
        f'with diffusers, rows = safetensors.torch.load_file("{file}"), then',
        *(
            f'pipe.load_textual_inversion(rows["{part.key}"], token="{name}", text_encoder=pipe.{encoder}, '
            f"tokenizer=pipe.{part.tokenizer})"
            for encoder, part in parts.items()
        ),
        *(
            f"pipe.{encoder}.text_model.eos_token_id = pipe.{parts[encoder].tokenizer}.eos_token_id"
            for encoder in _pooled(source)
        ),
    ]


def _pooled(source: Source) -> list[str]:
    """Text encoders that would take the token for the end of the prompt, and stock diffusers lets them."""
    return [name for name, part in source.base.family.text.items() if part.pooled]


def reads_tokens(source: Source) -> bool:
    """Whether the stock pipeline has a way to be given tokens."""
    return hasattr(source.base.family.kind, "load_textual_inversion")


def without_tokens(source: Source, name: str) -> Any:
    """A text encoder of the run on the CPU, with the base's own vocabulary: 49,408 rows for Stable Diffusion.

    With more of them, neither A1111 nor ComfyUI loads a checkpoint.
    """
    encoder = copy.deepcopy(getattr(source.pipeline, name)).cpu()
    if not source.embeddings:
        return encoder
    rows = len(embedding_table(source.base.outline(name)))
    encoder.resize_token_embeddings(rows)
    tokenizer = getattr(source.pipeline, source.base.family.text[name].tokenizer)
    vocabulary = len(tokenizer) - sum(len(learned[name]) for learned in source.embeddings.values())
    if rows > vocabulary:  # The tokens took rows that no word has.
        with torch.no_grad():
            own = embedding_table(source.base.component(name))[vocabulary:]
            embedding_table(encoder)[vocabulary:] = own
    return encoder


def embedding_usage(source: Source, name: str, file: str) -> str:
    """Where the file of a token goes, and what then stands for it in prompts: its name is the file's."""
    if source.base.family.pipeline not in LAYOUTS:
        return f"{file}: {name}"
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
    encoders = {place: without_tokens(source, name) for name, place in layout.places.items()}
    tensors = original_checkpoint(pipeline.unet, pipeline.vae, encoders)
    kind, ends_in_noise = prediction(source)
    if layout.told_by_keys and kind == "v_prediction":
        tensors |= {name: torch.empty(0) for name in ("v_pred", *["ztsnr"] * ends_in_noise)}
    save({name: cast(value, name, options) for name, value in tensors.items()}, file)
    return file


def prediction(source: Source) -> tuple[str, bool]:
    """What the base predicts, and whether its last noise level has nothing of the picture."""
    scheduler = source.base.noise_scheduler.config
    return str(scheduler.prediction_type), bool(getattr(scheduler, "rescale_betas_zero_snr", False))


def load_checkpoint(source: Source, folder: Path) -> DiffusionPipeline:
    """The checkpoint, read by stock diffusers; nothing is downloaded."""
    loaded: DiffusionPipeline = source.base.family.kind.from_single_file(
        str(main_file(source, folder)),
        config=str(source.base.folder),
        local_files_only=True,
        torch_dtype=torch.float32,
        **dict.fromkeys(_UNUSED),
    )
    return loaded


def single_file_call(source: Source, file: str) -> str:
    """How stock diffusers loads the checkpoint."""
    base = source.base
    config = base.folder if base.source == "pocket" else base.source
    return f'{base.family.pipeline}.from_single_file("{file}", config="{config}")'


def unknown_shapes(source: Source, program: str) -> list[str]:
    """A note where a program will not know what to make of the checkpoint."""
    layout = layout_of(source.base.family)
    if layout.is_published(source.pipeline.unet):
        return []
    return [f"note: {program} knows the shapes of {layout.published}; those of this base it cannot load"]
