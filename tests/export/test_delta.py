"""A delta: what changed, and with the right base the run again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.watching import without
from twostage.display import Display
from twostage.errors import UserError
from twostage.export import Options
from twostage.recipe import Recipe, Sample
from twostage.run import generate, train


def draw(run: Path) -> bytes:
    return generate(run, "a {}", count=1, num_inference_steps=2, display=Display())[0].tobytes()


def test_a_delta_in_float32_is_the_run_bit_for_bit(finished: Path, export: Any) -> None:
    exported = export(finished, "delta", Options(dtype="float32"))
    (file,) = exported.files
    assert draw(exported.folder / file) == draw(finished)
    # A delta is a run to every verb.
    again = export(exported.folder / file, "diffusers", Options(dtype="float32"), name="again")
    ours = load_file(finished / "unet" / "diffusion_pytorch_model.safetensors")
    theirs = load_file(again.folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(theirs[name].equal(value) for name, value in ours.items())


def test_a_delta_holds_nothing_that_did_not_change(finished: Path, lora_run: Path, export: Any) -> None:
    exported = export(finished, "delta")
    stored = load_file(exported.folder / "finished.safetensors")
    assert {name.split(".")[0] for name in stored} == {"unet", "embedding"}
    adapter = export(lora_run, "delta", name="adapter")
    stored = load_file(adapter.folder / "lora.safetensors")
    assert {name.split(".")[0] for name in stored} == {"adapter", "embedding"}
    assert draw(adapter.folder / "lora.safetensors")


def test_a_delta_holds_what_a_trained_text_encoder_changed_and_no_token_table(
    tiny_recipe: Recipe, tmp_path: Path, export: Any
) -> None:
    assert tiny_recipe.stage2
    stage2 = tiny_recipe.stage2.model_copy(update={"train_text_encoder": True, "steps": 2})
    recipe = without(tiny_recipe, stage2=stage2, sample=Sample(per_prompt=0))
    run = train(recipe, tmp_path / "run", display=Display())
    exported = export(run, "delta", Options(dtype="float32"))
    stored = load_file(exported.folder / "run.safetensors")
    assert any(name.startswith("text_encoder.") for name in stored)
    assert not any("token_embedding" in name for name in stored)
    assert draw(exported.folder / "run.safetensors") == draw(run)


@pytest.fixture
def moved(tiny_recipe: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and its base that may be changed."""
    base = Path(shutil.copytree(tiny_recipe.base, tmp_path / "base"))
    recipe = without(tiny_recipe, base=str(base), stage2=None, sample=Sample(per_prompt=0))
    return train(recipe, tmp_path / "run", display=Display()), base


def test_another_base_is_refused_by_name_and_hash(moved: tuple[Path, Path], tmp_path: Path, export: Any) -> None:
    run, base = moved
    exported = export(run, "delta")
    (base / "unet" / "notes.txt").write_text("another one now")
    with pytest.raises(UserError, match=r"is a delta to base .*of sha256 \w{12}, and base .*here is \w{12}") as error:
        draw(exported.folder / "run.safetensors")
    assert str(error.value).count(str(base)) == 2
    with pytest.raises(UserError, match="was trained on base"):
        export(run, "embedding", name="late")


def test_a_file_that_is_no_delta_is_told(finished: Path, tmp_path: Path) -> None:
    for name, content in (("x.safetensors", b"x"), ("y.txt", b"hello " * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="is no delta of a run"):
            draw(tmp_path / name)
    with pytest.raises(UserError, match="is no delta of a run"):
        draw(finished / "embedding" / "rare.safetensors")
