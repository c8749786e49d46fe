"""A LoRA: the run's own, or one extracted from whatever the run changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from twostage.errors import UserError
from twostage.export import Options, Source, Written
from twostage.export.shared.files import (
    EMBEDDINGS,
    cast,
    embedding_calls,
    embedding_usage,
    load_embeddings,
    main_file,
    save,
    save_embeddings,
)
from twostage.export.shared.layouts import LAYOUTS, layout_of
from twostage.export.shared.lora_names import diffusers_names, kohya_names
from twostage.export.shared.low_rank import changes, factorise, measure_loss
from twostage.export.shared.original import is_open_clip
from twostage.reading import read_json

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY = "a LoRA, the run's own or one of --rank extracted from it, the token beside it"
OPTIONS = ("dtype", "naming", "rank")

# Of a change of weights, what rounding its factors to bfloat16 may take.
_ROUNDING = 0.02


def check(source: Source, options: Options) -> None:
    """Refuse a run that no LoRA can be made of.

    Raises:
        UserError: it changed no weights, needs a rank or got a useless one, its adapter is no LoRA, or other programs
            have no names for the base's layers.
    """
    if options.naming != "diffusers":
        layout_of(source.base.family)
    if source.recipe.stage2 is None:
        raise UserError(f"run {source.name} tuned no weights: its recipe has no [stage2]; use --to embedding")
    if options.rank is not None and options.rank < 1:
        raise UserError(f"--rank {options.rank}: must be at least 1; 4 to 128 are usual")
    if options.rank is None and not source.adapters:
        raise UserError(
            f"run {source.name} tuned whole weights, which are no LoRA: give the --rank of one to extract from them, "
            "such as --rank 32, or export them as they are with --to a1111, comfyui or diffusers"
        )
    for folder in source.adapters.values() if options.rank is None else ():
        kind = _kind(_config(folder))
        # diffusers reads DoRA's magnitudes under its own names and in the U-Net alone; elsewhere it drops them.
        is_alone = kind == "dora" and set(source.adapters) == {source.base.family.denoiser}
        if kind != "lora" and not (is_alone and options.naming == "diffusers"):
            way = "choose --naming diffusers, " if is_alone else ""
            raise UserError(
                f"run {source.name} trained an adapter of kind {kind}, which cannot be such a LoRA file: {way}give the "
                "--rank of a LoRA to extract from it, or export it merged with --to a1111, comfyui or diffusers"
            )
    denoiser = source.base.family.denoiser
    largest = max(min(weight.flatten(1).shape) for weight in _weights(getattr(source.pipeline, denoiser)))
    if options.rank is not None and options.rank > largest:
        raise UserError(
            f"--rank {options.rank}: the {denoiser}'s largest layer has full rank at {largest}; 4 to 128 are usual"
        )


def write(source: Source, options: Options, folder: Path) -> Written:
    """The LoRA, and embeddings/ with a file for each token."""
    tensors: dict[str, Tensor] = {}
    for name in source.trainable:
        found = _stored(source, name) if options.rank is None else _extracted(source, name, options.rank)
        if options.naming == "diffusers":
            tensors |= diffusers_names(name, found)
        else:
            tensors |= kohya_names(layout_of(source.base.family), name, getattr(source.pipeline, name), found)
    if not tensors:
        raise UserError(f"run {source.name} changed no linear layer and no convolution: there is nothing for a LoRA")
    rank = next(len(value) for name, value in tensors.items() if name.endswith((".lora_down.weight", ".lora_A.weight")))
    file = main_file(source, folder)
    stored = {name: cast(value, name, options) for name, value in tensors.items()}
    save(stored, file, **({} if options.naming == "diffusers" else _metadata(source, rank)))
    comfyui = "; for ComfyUI to models/loras/" if source.base.family.pipeline in LAYOUTS else ""
    a1111 = "" if options.naming == "diffusers" else ", for A1111 to models/Lora/"
    calls: list[str] = []
    usage = [f"{file.name}: rank {rank}{comfyui}{a1111}"]
    for name, embedding in save_embeddings(source, options, folder / EMBEDDINGS).items():
        usage += [embedding_usage(source, name, f"{EMBEDDINGS}/{embedding.name}")]
        calls += embedding_calls(source, options, name, f"{{folder}}/{EMBEDDINGS}/{embedding.name}")
    usage += [f'with diffusers: pipe.load_lora_weights("{{folder}}/{file.name}")', *calls]
    return Written(usage, exact=options.rank is None, judge=partial(_judge, source, options))


def _metadata(source: Source, rank: int) -> dict[str, str]:
    """What A1111 offers a LoRA by, with the models of its version alone."""
    version = layout_of(source.base.family).metadata or {"ss_v2": str(is_open_clip(source.pipeline.text_encoder))}
    return {"ss_network_dim": str(rank), "ss_network_alpha": str(rank), **version}


def load(source: Source, options: Options, folder: Path) -> DiffusionPipeline:
    """The base with the LoRA merged into it and the tokens, by stock diffusers."""
    pipeline = source.base.pipeline()
    pipeline.load_lora_weights(str(main_file(source, folder)))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    load_embeddings(pipeline, source, options, folder / EMBEDDINGS)
    return pipeline


def _stored(source: Source, component: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Factors of the run's own LoRA by module, its scale multiplied in: readers differ in where they look for it."""
    if component not in source.adapters:
        return
    folder = source.adapters[component]
    config = _config(folder)
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    state = load_file(folder / "adapter_model.safetensors")
    for name, down in state.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        factors = {"down": down, "up": state[f"{module}.lora_B.weight"] * scale}
        if f"{module}.lora_magnitude_vector" in state:
            factors["magnitude"] = state[f"{module}.lora_magnitude_vector"]
        yield module.removeprefix("base_model.model."), factors


def _extracted(source: Source, component: str, rank: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Factors of the LoRA nearest to what changed in a component, by module."""
    for module, change in changes(getattr(source.pipeline, component), source.base.component(component)):
        down, up = factorise(change, rank)
        yield module, {"down": down, "up": up}


def _judge(source: Source, options: Options, loaded: Any) -> list[str]:
    """What of the run the LoRA has lost, measured on what stock diffusers made of the file.

    Raises:
        UserError: it should have lost nothing, and has.
    """
    lines = []
    for component in source.trainable:
        before = source.base.component(component)
        loss = measure_loss(getattr(source.pipeline, component), before, getattr(loaded, component))
        if not loss.layer:
            continue
        if options.rank is None and loss.overall > _ROUNDING:
            raise UserError(
                f"loaded again by diffusers, the LoRA lacks {loss.overall:.1%} of what the run changed in the "
                f"{component}; nothing was kept. Export the run merged, with --to a1111, comfyui or diffusers"
            )
        lines.append(
            f"{component}: the LoRA lacks {loss.overall:.1%} of the change of weights (relative Frobenius norm; "
            f"{loss.outside:.1%} in biases and norms, which no LoRA has); the worst layer, {loss.layer}, lacks "
            f"{loss.worst:.1%}"
        )
    return lines if options.rank is not None else []


def _weights(net: Any) -> Iterator[Tensor]:
    for module in net.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            yield module.weight


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / "adapter_config.json")
        if not isinstance(config, dict) or "peft_type" not in config:
            raise ValueError("it describes no adapter")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / 'adapter_config.json'}: {error}; train the adapter anew") from error
    return config


def _kind(config: dict[str, Any]) -> str:
    return "dora" if config.get("use_dora") else str(config["peft_type"]).lower()
