"""What is of another family than the base is refused in one line, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from typer.testing import CliRunner

from benchmarks.random_bases import stable_diffusion_xl
from cli.main import app
from twostage.errors import UserError
from twostage.evaluating import open_pipeline
from twostage.families import known_families
from twostage.recipe_evaluation import Foreign
from twostage.run import load_pipeline
from twostage.subject.token_files import save_embedding


def refused(*arguments: object) -> str:
    """The one line that the command answers with."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and len(line) < 500
    return line


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run, and write nothing."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


def test_the_refiner_is_refused_for_the_base_model(photos: Path, tmp_path: Path, empty: Path) -> None:
    sizes = stable_diffusion_xl.SIZES["tiny"]
    stable_diffusion_xl.write_pipeline(tmp_path / "refiner", sizes, refiner=True)
    line = refused("train", "two-stage", photos, "--class", "bag", "--base", tmp_path / "refiner")
    assert "refiner" in line and "base model" in line
    assert not list(empty.iterdir())


@pytest.mark.parametrize(("side", "why"), [(33, "multiple of 8"), (4104, "at most 4096")])
def test_a_resolution_that_it_cannot_take_is_refused(
    xl_folder: Path, photos: Path, empty: Path, side: int, why: str
) -> None:
    line = refused("train", "two-stage", photos, "--class", "bag", "--base", xl_folder, "--data.resolution", side)
    assert str(side) in line and why in line
    assert not list(empty.iterdir())


@pytest.fixture(scope="module")
def sd15_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "rare.safetensors"
    save_embedding(file, "<rare>", torch.zeros(1, 16))  # As wide as the first text encoder's.
    return file


def test_a_token_of_another_family_is_refused(
    xl_folder: Path, tiny_base: Path, xl_run: Path, sd15_token: Path, empty: Path
) -> None:
    options = ("--class-noun", "bag", "--output", empty / "out")
    line = refused("evaluate", "--pipeline", xl_folder, "--embedding", sd15_token, *options)
    assert "one text encoder" in line and "clip_g and clip_l" in line
    own = xl_run / "embedding" / "rare.safetensors"
    line = refused("evaluate", "--pipeline", tiny_base, "--embedding", own, *options)
    assert "clip_g" in line and "another family" in line
    assert not list(empty.iterdir())


def test_a_run_is_no_parent_on_another_family(tiny_base: Path, photos: Path, xl_run: Path, empty: Path) -> None:
    line = refused("train", "two-stage", photos, "--class", "backpack", "--base", tiny_base, "--from", xl_run)
    assert str(tiny_base) in line and str(xl_run) in line
    assert not list(empty.iterdir())


def test_a_run_whose_token_is_another_familys_draws_nothing(xl_run: Path, sd15_token: Path, tmp_path: Path) -> None:
    run = shutil.copytree(xl_run, tmp_path / "run")
    save_embedding(run / "embedding" / "rare.safetensors", "<rare>", torch.zeros(2, 16))
    with pytest.raises(UserError, match="another family"):
        load_pipeline(run)


def lora(pipeline: DiffusionPipeline, file: Path, *parts: str) -> Path:
    """A LoRA of some nets as diffusers writes it, of random numbers."""
    layers = {}
    for part in parts:
        targets = ["to_q", "to_k"] if part == "unet" else ["q_proj", "k_proj"]
        net = getattr(pipeline, part)
        net.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=targets))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(net)
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **layers)
    return file


@pytest.mark.parametrize("parts", [("unet",), ("text_encoder_2",), ("text_encoder", "text_encoder_2")])
def test_a_lora_of_another_family_is_refused(xl_folder: Path, tiny_base: Path, tmp_path: Path, parts: Any) -> None:
    """Stock diffusers leaves out what finds no place, and says nothing."""
    file = lora(StableDiffusionXLPipeline.from_pretrained(xl_folder), tmp_path / "xl.safetensors", *parts)
    assert open_pipeline(Foreign(pipeline=str(xl_folder), lora=file, token="sks")).load(1)
    with pytest.raises(UserError, match="does not fit the pipeline, a StableDiffusionPipeline: .* the same family"):
        open_pipeline(Foreign(pipeline=str(tiny_base), lora=file, token="sks")).load(1)
    if parts == ("unet",):
        other = lora(StableDiffusionPipeline.from_pretrained(tiny_base), tmp_path / "sd.safetensors", *parts)
        with pytest.raises(UserError, match="does not fit the pipeline, a StableDiffusionXLPipeline: "):
            open_pipeline(Foreign(pipeline=str(xl_folder), lora=other, token="sks")).load(1)


def test_a_kind_that_no_family_reads_is_told_those_that_are_known(photos: Path, tmp_path: Path, empty: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    line = refused("train", "two-stage", photos, "--class", "bag", "--base", tmp_path / "base")
    assert "FluxPipeline" in line
    assert all(f"{family.title} ({pipeline})" in line for pipeline, family in known_families().items())
    assert not list(empty.iterdir())
