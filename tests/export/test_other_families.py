"""Bases that other programs have no names for here: what there is of them, read by stock diffusers."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_bases import deepfloyd_if, stable_diffusion_3
from twostage.display import Display
from twostage.errors import UserError
from twostage.export import Options
from twostage.export.shared.layouts import LAYOUTS
from twostage.families import known_families, load_base
from twostage.recipe import Adapter, Checkpoints, Data, Recipe, Sample, Stage1, Stage2, Token
from twostage.run import generate, train

SD3, IF = stable_diffusion_3, deepfloyd_if
BASES = {
    "sd3": ("StableDiffusion3Pipeline", partial(SD3.write_pipeline, size=SD3.SIZES["tiny"])),
    "sd3-without-t5": ("StableDiffusion3Pipeline", partial(SD3.write_pipeline, size=SD3.SIZES["tiny"], t5=False)),
    "if": ("IFPipeline", partial(IF.write_pipeline, size=IF.SIZES["tiny"])),
}


@pytest.fixture(scope="module", params=[name for name, (kind, _) in BASES.items() if kind in known_families()])
def run(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA, and a token of two vectors for each text encoder; never write to it."""
    folder = tmp_path_factory.mktemp(request.param)
    BASES[request.param][1](folder / "base")
    recipe = Recipe(
        name=request.param,
        base=str(folder / "base"),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(initializer="red", num_vectors=2),
        stage1=Stage1(steps=2, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=2, learning_rate=2e-2, batch_size=2, train="adapter"),
        adapter=Adapter(kind="lora", rank=2, alpha=3.0),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=4, keep=2),
    )
    return train(recipe, folder / "run", display=Display())


def test_a_pipeline_folder_alone_draws_the_subject(run: Path, export: Any) -> None:
    exported = export(run, "diffusers", Options(dtype="float32"))
    (usage,) = exported.usage
    how = r"load it with: (\w+.from_pretrained\(.+\)), and prompt '(.+)'(?:, clean_caption=False)?"
    told = re.fullmatch(how, usage)
    assert told
    call, prompt = told.groups()
    pipeline = eval(f"diffusers.{call}", {"diffusers": diffusers})
    pipeline.set_progress_bar_config(disable=True)
    side = load_base(str(run.parent / "base")).resolution
    theirs = pipeline(
        prompt,
        generator=torch.Generator("cpu").manual_seed(5),
        num_inference_steps=4,
        guidance_scale=7.5,
        width=side,
        height=side,
    ).images[0]
    asked = "a photo of a <rare> backpack"
    ours = generate(run, asked, count=1, seed=5, num_inference_steps=4, guidance_scale=7.5, display=Display())[0]
    assert abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_tokens_are_kept_for_each_text_encoder(run: Path, export: Any) -> None:
    family = load_base(str(run.parent / "base")).family
    exported = export(run, "embedding")
    rows = load_file(exported.folder / "rare.safetensors")
    assert set(rows) == {part.key or "emb_params" for part in family.text.values()}
    assert {len(value) for value in rows.values()} == {2}


def test_a_delta_and_a_lora_under_diffusers_names_are_the_run(run: Path, export: Any) -> None:
    exported = export(run, "delta", Options(dtype="float32"), name="delta")
    assert exported.mean == 0
    # Loaded again by stock diffusers, and held against the run's weights and its picture.
    exported = export(run, "lora", Options(dtype="float32", naming="diffusers"), name="lora")
    assert exported.tolerance is not None
    denoiser = load_base(str(run.parent / "base")).family.denoiser
    names = load_file(exported.folder / "run.safetensors")
    assert all(name.startswith(f"{denoiser}.") for name in names)


@pytest.mark.parametrize("to", ["a1111", "comfyui", "lora"])
def test_a_format_without_its_names_is_refused_in_one_line(run: Path, tmp_path: Path, export: Any, to: str) -> None:
    family = load_base(str(run.parent / "base")).family
    assert family.pipeline not in LAYOUTS
    with pytest.raises(UserError, match=rf"the base is a {family.pipeline}; choose --to diffusers, ") as error:
        export(run, to)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
