"""The verbs, end to end: a run leaves what it promises, resumes exactly, and stock diffusers reads its results."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from tests.watching import Watcher, assert_same_bits, ctrl_c, metrics, results, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Checkpoints, Data, Recipe, Sample, Token
from twostage.recipe_file import load_recipe
from twostage.run import generate, load_pipeline, train

# What a run leaves


def test_the_run_folder_holds_what_it_promises(finished: Path, photos: Path, tiny_base: Path) -> None:
    facts = json.loads((finished / "run.json").read_text())
    assert facts["finished"] is True
    assert facts["peak_memory_bytes"] > 1e6
    assert {"load", "encode_photos", "stage1", "encode_prompts", "stage2"} <= facts["seconds"].keys()
    assert facts["base"]["name"] == str(tiny_base)
    assert [photo["name"] for photo in facts["photos"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert facts["versions"]["torch"] == torch.__version__
    assert [(m["stage"], m["step"]) for m in metrics(finished)] == [(s, k) for s in (1, 2) for k in range(1, 7)]
    assert metrics(finished)[0].keys() == {"stage", "step", "loss", "lr", "grad_norm"}
    checkpoints = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert checkpoints == ["stage1-000006", "stage2-000004"]
    samples = sorted(path.name for path in (finished / "samples").iterdir() if path.is_dir())
    assert samples == ["stage1-000004", "stage1-000006", "stage2-000004", "stage2-000006"]
    assert len(list((finished / "samples" / "stage2-000006").glob("*.png"))) == 4
    assert Image.open(finished / "samples" / "stage2-000006.png").size == (32, 32)
    assert not list(finished.rglob(".writing-*"))


def test_nothing_but_safetensors_holds_weights(finished: Path) -> None:
    suffixes = {path.suffix for path in finished.rglob("*") if path.is_file()}
    assert suffixes == {".toml", ".json", ".jsonl", ".safetensors", ".png", ".md"}


def test_the_written_recipe_reproduces_the_run(finished: Path, tmp_path: Path) -> None:
    assert_same_bits(train(load_recipe(str(finished / "recipe.toml")), tmp_path / "again", display=Display()), finished)


def test_a_run_is_silent_but_for_its_display(
    tiny_recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_recipe, tmp_path / "run", display=Display())
    generate(run, "a {}", count=1, num_inference_steps=2)
    assert capfd.readouterr() == ("", "")


def test_samples_show_the_weights_in_training(finished: Path) -> None:
    last = np.asarray(Image.open(finished / "samples" / "stage2-000006" / "prompt1-1.png"), dtype=int)
    earlier = np.asarray(Image.open(finished / "samples" / "stage1-000006" / "prompt1-1.png"), dtype=int)
    final = np.asarray(generate(finished, "a photo of a {}", count=2, num_inference_steps=2)[0], dtype=int)
    assert abs(last - final).max() <= 1  # Drawn in another batch.
    assert abs(last - earlier).max() > 1


@pytest.mark.parametrize("absent", ["stage1", "stage2"])
def test_a_recipe_of_one_stage_runs_that_stage(tiny_recipe: Recipe, tmp_path: Path, absent: str) -> None:
    token = Token(placeholder="sks") if absent == "stage1" else Token()
    run = train(without(tiny_recipe, token=token, **{absent: None}), tmp_path / "run", display=Display())
    assert (run / "embedding").exists() == (absent == "stage2")
    assert (run / "unet").exists() == (absent == "stage1")
    assert generate(run, "a photo of a {}", count=1, num_inference_steps=1)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_prediction_types_train(tiny_recipe: Recipe, tmp_path: Path, kind: str) -> None:
    base = Path(shutil.copytree(tiny_recipe.base, tmp_path / "base"))
    stock = StableDiffusionPipeline.from_pretrained(
        base, scheduler=DDIMScheduler(prediction_type=kind, steps_offset=1, clip_sample=False)
    )
    stock.save_pretrained(base)
    run = train(without(tiny_recipe, base=str(base)), tmp_path / "run", display=Display())
    losses = [m["loss"] for m in metrics(run)]
    assert len(losses) == 12
    assert all(np.isfinite(losses))


def test_half_precision_trains_and_saves_float32(tiny_recipe: Recipe, tmp_path: Path) -> None:
    run = train(without(tiny_recipe, mixed_precision="bf16"), tmp_path / "run", display=Display())
    assert {tensor.dtype for tensor in results(run).values()} == {torch.float32}


def test_half_precision_rounds_nothing_that_stage_2_starts_from(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """What a hardly moved U-Net holds is the base's weights, not their bfloat16 roundings."""
    assert tiny_recipe.stage2
    still = tiny_recipe.stage2.model_copy(update={"learning_rate": 1e-6, "steps": 1})
    run = train(without(tiny_recipe, mixed_precision="bf16", stage2=still), tmp_path / "run", display=Display())
    base = load_file(Path(tiny_recipe.base) / "unet" / "diffusion_pytorch_model.safetensors")
    tuned = results(run)
    assert all(torch.allclose(tuned[name], tensor, atol=2e-6, rtol=0) for name, tensor in base.items())


def test_encoders_leave_memory_once_their_work_is_cached(tiny_recipe: Recipe, tmp_path: Path) -> None:
    def alive() -> set[type]:
        gc.collect()
        return {type(thing) for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Module)}

    seen: dict[str, set[type]] = {}
    for stage in ("stage 1", "stage 2"):
        watcher = Watcher((stage, 2), lambda stage=stage: seen.update({stage: alive()}))  # type: ignore[misc]
        train(tiny_recipe, tmp_path / stage, display=watcher)
    assert {CLIPTextModel, UNet2DConditionModel} <= seen["stage 1"]
    assert AutoencoderKL not in seen["stage 1"]
    assert UNet2DConditionModel in seen["stage 2"]
    assert not {AutoencoderKL, CLIPTextModel} & seen["stage 2"]


# Stock diffusers reads it


def stock_pipeline(base: Path, run: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base, unet=UNet2DConditionModel.from_pretrained(run / "unet"))
    pipeline.load_textual_inversion(run / "embedding" / "rare.safetensors", token="<rare>")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_stock_diffusers_draws_the_same_pictures_from_the_same_seeds(finished: Path, tiny_base: Path) -> None:
    prompt = "a photo of a <rare> backpack on the beach"
    ours = generate(finished, prompt, count=3, seed=7, num_inference_steps=4, guidance_scale=5.0)
    stock = stock_pipeline(tiny_base, finished)
    generators = [torch.Generator("cpu").manual_seed(7 + index) for index in range(3)]
    theirs = stock([prompt] * 3, generator=generators, num_inference_steps=4, guidance_scale=5.0).images
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in theirs]


def test_a_picture_does_not_depend_on_those_drawn_beside_it(finished: Path, tiny_base: Path) -> None:
    prompts = ["a photo of a <rare> backpack", "a dog"]
    beside = generate(finished, prompts, count=5, seed=3, num_inference_steps=2)
    generator = torch.Generator("cpu").manual_seed(3 + 4)
    alone = stock_pipeline(tiny_base, finished)(prompts[1], generator=generator, num_inference_steps=2).images[0]
    assert abs(np.asarray(beside[9], dtype=int) - np.asarray(alone, dtype=int)).max() <= 1


def test_braces_in_a_prompt_stand_for_token_and_class(finished: Path) -> None:
    braces, spelled = generate(finished, ["a {} in snow", "a <rare> backpack in snow"], count=1, num_inference_steps=1)
    assert braces.tobytes() == spelled.tobytes()


def test_a_prompt_that_cannot_show_the_subject_is_remarked_on(finished: Path) -> None:
    watcher = Watcher()
    prompts = ["a {} in snow", "a <rare> backpack", "a dog", "a {} " + "very " * 2000]
    generate(finished, prompts, count=1, num_inference_steps=1, display=watcher)
    first, second = watcher.said
    assert "'a dog' has neither {} nor <rare>" in first
    assert "its end is not read" in second
    assert len(second) < 200


def test_the_loaded_pipeline_is_the_stock_class_with_all_vectors(finished: Path) -> None:
    pipeline = load_pipeline(finished)
    assert type(pipeline) is StableDiffusionPipeline
    assert pipeline.maybe_convert_prompt("a <rare> dog", pipeline.tokenizer) == "a <rare> <rare>_1 dog"


# Bad input: one line, and nothing written


def refuse(recipe: Recipe, output: Path, match: str) -> None:
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as error:
        train(recipe, output, display=Display())
    assert "\n" not in str(error.value)
    assert sorted(output.parent.rglob("*")) == before


def test_an_output_that_is_taken_is_refused(tiny_recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    refuse(tiny_recipe, finished, "another run")
    (tmp_path / "file").write_text("x")
    refuse(tiny_recipe, tmp_path / "file", "is a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    refuse(tiny_recipe, tmp_path / "full", "not empty")


def test_an_empty_folder_is_a_fine_output(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(without(tiny_recipe, stage2=None), tmp_path, display=Display())


def test_mistakes_are_found_before_anything_is_written(tiny_recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "out" / "run"
    output.parent.mkdir()
    (tmp_path / "none").mkdir()
    refuse(without(tiny_recipe, data=Data(photos=tmp_path / "none", class_noun="x")), output, "no photos")
    refuse(without(tiny_recipe, data=Data(photos=None, class_noun="x")), output, "photos")
    refuse(without(tiny_recipe, token=Token(placeholder="dog")), output, "dog")
    refuse(without(tiny_recipe, base=str(tmp_path / "none")), output, "model_index.json")
    refuse(without(tiny_recipe, stage1=None, stage2=None), output, "neither")
    if importlib.util.find_spec("tensorboard") is None:
        refuse(without(tiny_recipe, report_to="tensorboard"), output, r"twostage\[track\]")
    if not torch.cuda.is_available():
        refuse(without(tiny_recipe, mixed_precision="fp16"), output, "fp16")


def test_steps_that_the_base_cannot_draw_in_are_refused_before_training(
    tiny_recipe: Recipe, finished: Path, tmp_path: Path
) -> None:
    refuse(without(tiny_recipe, sample=Sample(num_inference_steps=1000)), tmp_path / "run", "num_inference_steps 1000")
    with pytest.raises(UserError, match="PNDMScheduler cannot draw"):
        generate(finished, "a {}", num_inference_steps=1000)
    base = Path(shutil.copytree(tiny_recipe.base, tmp_path / "base"))
    PNDMScheduler(skip_prk_steps=False).save_pretrained(base / "scheduler")
    refuse(without(tiny_recipe, base=str(base)), tmp_path / "run", "num_inference_steps 2")


def test_a_caption_that_pushes_the_token_out_of_sight_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    assert tiny_recipe.data.photos
    data = tiny_recipe.data.model_copy(update={"caption": "very " * 100 + "{}"})
    refuse(without(tiny_recipe, data=data), tmp_path / "run", "fall off")


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "embedding" / "rare.safetensors").unlink(),
        lambda run: (run / "embedding" / "rare.safetensors").write_bytes(b"x"),
        lambda run: shutil.rmtree(run / "unet"),
        lambda run: (run / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99),
        lambda run: (run / "run.json").write_text("[]"),
    ],
)
def test_a_damaged_run_is_told_in_one_line(finished: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "samples")))
    damage(run)
    with pytest.raises(UserError) as error:
        load_pipeline(run)
    assert "\n" not in str(error.value)
    assert str(run) in str(error.value)


def test_a_place_that_cannot_be_written_is_named(tiny_recipe: Recipe) -> None:
    with pytest.raises(UserError, match="cannot write /proc/twostage"):
        train(tiny_recipe, Path("/proc/twostage"), display=Display())


def test_weights_that_run_away_stop_the_run_and_save_nothing_broken(tiny_recipe: Recipe, tmp_path: Path) -> None:
    assert tiny_recipe.stage2
    wild = tiny_recipe.stage2.model_copy(update={"learning_rate": 10.0, "steps": 500, "max_grad_norm": 0.0})
    recipe = without(tiny_recipe, stage2=wild, checkpoints=Checkpoints(every=1000))
    with pytest.raises(UserError, match=r"stage 2 broke at step \d+"):
        train(recipe, tmp_path / "run", display=Display())
    assert not (tmp_path / "run" / "unet").exists()
    for file in (tmp_path / "run").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def test_an_unfinished_run_cannot_draw_yet(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, tmp_path / "run", display=Watcher(("stage 1", 2), ctrl_c))
    with pytest.raises(UserError, match="not finished"):
        generate(tmp_path / "run", "a {}")
    with pytest.raises(UserError, match="no run"):
        generate(tmp_path, "a {}")
