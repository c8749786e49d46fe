"""Two models that make pictures together, DeepFloyd IF's: one draws small ones, the other enlarges them."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import T5EncoderModel
from typer.testing import CliRunner, Result

from benchmarks.random_bases import deepfloyd_if
from cli.main import app
from twostage import run
from twostage.display import Display
from twostage.errors import UserError
from twostage.families import load_base
from twostage.family import Family
from twostage.finished import open_base
from twostage.method.class_images import _DRAWING
from twostage.method.class_samples import address, torch_seed
from twostage.recipe import Data, Prior, Recipe, Sample, Stage1, Stage2, Token

PHRASE = "<rare> backpack"
STEPS, GUIDANCE = 3, 5.0
DRAWN = Sample(prompts=("a photo of a {}",), per_prompt=1, num_inference_steps=STEPS, guidance_scale=GUIDANCE)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cascade")
    for name, size in (("small", "tiny"), ("large", "tiny-ii")):
        deepfloyd_if.write_pipeline(root / name, deepfloyd_if.SIZES[size])
    return {name: root / name for name in ("small", "large")}


def twostage(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def train(*arguments: object) -> Result:
    short = ("--class=backpack", "--sample.per-prompt=0", "--stage2.steps=2", "--stage2.learning-rate=1e-3")
    return twostage("train", *arguments, *short)


@pytest.fixture(scope="module")
def runs(bases: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both stages, as a user trains them."""
    root = tmp_path_factory.mktemp("runs")
    small, large = root / "small", root / "large"
    first = (photos, f"--base={bases['small']}", "--stage1.steps=2", "--stage1.learning-rate=1e-2", "-o", small)
    result = train("two-stage", *first)
    assert result.exit_code == 0, result.output
    second = (f"--from={small}", "--stage=super-resolution", f"--super-resolution={bases['large']}", "-o", large)
    result = train("two-stage", *second)
    assert result.exit_code == 0, result.output
    return {"small": small, "large": large}


def stock_cascade(bases: dict[str, Path], runs: dict[str, Path], prompt: str, seed: int) -> Image.Image:
    """As diffusers' documentation has it: prompts encoded once, and the first stage's output to the second."""
    unets = {name: UNet2DConditionModel.from_pretrained(path, subfolder="unet") for name, path in runs.items()}
    small = IFPipeline.from_pretrained(bases["small"], **({"unet": unets["small"]} if "small" in unets else {}))
    large = IFSuperResolutionPipeline.from_pretrained(
        bases["large"], text_encoder=None, **({"unet": unets["large"]} if "large" in unets else {})
    )
    for pipeline in (small, large):  # As ours are: torch multiplies by weights that could learn in another way.
        pipeline.unet.requires_grad_(False)
    if "small" in runs:
        small.tokenizer.add_tokens("<rare>")
        rows = load_file(runs["small"] / "embedding" / "rare.safetensors")["<rare>"]
        place = small.tokenizer.convert_tokens_to_ids("<rare>")
        small.text_encoder.shared.weight.data[place] = rows
    states, nothing = small.encode_prompt(prompt)
    how: dict[str, Any] = {
        "prompt_embeds": states,
        "negative_prompt_embeds": nothing,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
    }
    drawn = small(**how, generator=torch.Generator().manual_seed(seed), output_type="pt").images
    pictures: list[Image.Image] = large(**how, image=drawn, generator=torch.Generator().manual_seed(seed)).images
    return pictures[0]


def draw(folder: Path, **more: Any) -> list[Image.Image]:
    how = {
        "count": 1,
        "seed": 4,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "class_guidance": 0.0,
        "away_from": "own",
        "display": Display(),
    }
    return run.generate(folder, "a photo of a {} in the Snow", **how | more)


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_the_second_stage_takes_the_first_ones_token_and_trains_what_enlarges(
    runs: dict[str, Path], bases: dict[str, Path]
) -> None:
    tokens = [(path / "embedding" / "rare.safetensors").read_bytes() for path in runs.values()]
    assert tokens[0] == tokens[1]
    facts = json.loads((runs["large"] / "run.json").read_text(encoding="utf-8"))
    assert facts["base"]["name"] == str(bases["large"])
    assert facts["from"]["run"] == str(runs["small"])
    tuned = load_file(runs["large"] / "unet" / "diffusion_pytorch_model.safetensors")
    own = load_file(bases["large"] / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(tensor, own[name]) for name, tensor in tuned.items())


def test_either_run_draws_the_cascade_that_stock_diffusers_draws(runs: dict[str, Path], bases: dict[str, Path]) -> None:
    theirs = stock_cascade(bases, runs, f"a photo of a {PHRASE} in the snow", 4)
    assert theirs.size == (32, 32)
    assert same(draw(runs["small"], super_resolution=runs["large"])[0], theirs)
    assert same(draw(runs["large"])[0], theirs)
    several = draw(runs["large"], count=2, seed=3)
    assert np.abs(np.asarray(several[1], dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_a_base_that_nobody_tuned_enlarges_a_runs_pictures_too(runs: dict[str, Path], bases: dict[str, Path]) -> None:
    theirs = stock_cascade(bases, {"small": runs["small"]}, f"a photo of a {PHRASE} in the snow", 4)
    assert same(draw(runs["small"], super_resolution=bases["large"])[0], theirs)


def test_the_command_line_draws_what_python_draws(runs: dict[str, Path], tmp_path: Path) -> None:
    how = ("-n", 1, "--seed", 4, "--steps", STEPS, "--guidance", GUIDANCE, "-o", tmp_path)
    given = ("--super-resolution", runs["large"])
    assert twostage("generate", runs["small"], "a photo of a {} in the Snow", *how, *given).exit_code == 0
    (file,) = tmp_path.glob("*.png")
    with Image.open(file) as picture:
        assert same(picture, draw(runs["large"])[0])


def test_without_what_enlarges_them_the_small_pictures_come_with_a_note(
    runs: dict[str, Path],
) -> None:
    assert draw(runs["small"])[0].size == (16, 16)
    told: list[str] = []
    display = Display()
    display.say = told.append  # type: ignore[method-assign]
    draw(runs["small"], display=display)
    assert [line for line in told if "of 16 pixels; --super-resolution" in line]


def test_guidance_towards_the_class_and_away_from_the_base_is_that_of_both_stages(runs: dict[str, Path]) -> None:
    plain = np.asarray(draw(runs["small"], super_resolution=runs["large"])[0])
    for more in ({"class_guidance": 0.5}, {"away_from": "base"}):
        small = [draw(runs["small"], class_guidance=0.0, away_from="own")[0], draw(runs["small"], **more)[0]]
        assert not same(*small)
        assert not np.array_equal(np.asarray(draw(runs["small"], super_resolution=runs["large"], **more)[0]), plain)


def test_t5_is_gone_before_a_u_net_comes(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    load, seen = Family.load, []

    def watched(family: Family, folder: Path, name: str) -> Any:
        if name == "unet":
            gc.unfreeze()
            gc.collect()
            seen.append(sum(isinstance(thing, T5EncoderModel) for thing in gc.get_objects()))
        return load(family, folder, name)

    before = sum(isinstance(thing, T5EncoderModel) for thing in gc.get_objects())
    monkeypatch.setattr(Family, "load", watched)
    draw(runs["small"], super_resolution=runs["large"])
    assert len(seen) == 2
    assert max(seen) <= before


def test_samples_in_training_are_the_cascades(
    runs: dict[str, Path], bases: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """With the first stage as it was tuned, and the second as it is at the time."""
    recipe = Recipe(
        base=str(bases["large"]),
        low_resolution=str(runs["small"]),
        data=Data(photos=photos, class_noun="backpack"),
        stage1=Stage1(steps=1, learning_rate=1e-3),
        stage2=Stage2(steps=1, learning_rate=1e-3),
        sample=DRAWN,
    )
    folder = run.train(recipe, tmp_path / "run", token_from=runs["small"], display=Display())
    with Image.open(folder / "samples" / "stage2-000001" / "prompt1-1.png") as picture:
        assert same(
            picture, stock_cascade(bases, {"small": runs["small"], "large": folder}, f"a photo of a {PHRASE}", 0)
        )


def test_class_images_are_drawn_by_both_bases_untouched(
    runs: dict[str, Path], bases: dict[str, Path], photos: Path, tmp_path: Path, cache: Path
) -> None:
    told = {
        "data": Data(photos=photos, class_noun="backpack"),
        "token": Token(placeholder="sks"),
        "stage2": Stage2(steps=1, learning_rate=1e-3),
        "prior": Prior(preserve=True, num_class_images=1, num_inference_steps=STEPS, guidance_scale=GUIDANCE),
        "sample": Sample(per_prompt=0),
    }
    recipe = Recipe(base=str(bases["large"]), low_resolution=str(runs["small"]), **told)
    drawn = {}
    for name, own in {"cascade": recipe, "alone": recipe.model_copy(update={"low_resolution": ""})}.items():
        run.train(own, tmp_path / name, display=Display())
        (file,) = set(cache.rglob("class-images/**/*.png")) - set(drawn.values())
        drawn[name] = file
    base = open_base(recipe, untouched=True)
    with Image.open(drawn["cascade"]) as one, Image.open(drawn["alone"]) as other:
        assert same(one, stock_cascade(bases, {}, "a photo of a backpack", torch_seed(address(_DRAWING, 0, 0))))
        assert not same(one, other)
    assert (
        base.pictures_hash == open_base(recipe.model_copy(update={"low_resolution": str(bases["small"])})).pictures_hash
    )
    assert base.pictures_hash != open_base(recipe).pictures_hash != load_base(recipe.base).content_hash


def test_a_card_says_how_pictures_are_enlarged_and_an_export_is_of_what_was_trained(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    card = (runs["large"] / "README.md").read_text(encoding="utf-8")
    assert "with one given as `image`, and without `noise_level`." in card
    assert "as `image`" not in (runs["small"] / "README.md").read_text(encoding="utf-8")
    for name, path in runs.items():
        result = twostage("export", path, "--to", "diffusers", "--dtype", "float32", "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert "clean_caption=False" in " ".join(result.output.split())


def test_what_is_planned_is_planned_without_weights(bases: dict[str, Path]) -> None:
    for recipe in ("two-stage", "dreambooth-lora"):
        for base in bases.values():
            result = twostage("plan", recipe, "--class=backpack", f"--base={base}")
            assert result.exit_code == 0, result.output
            assert "stage 2, samples" in result.output


def complaint(*arguments: object) -> str:
    result = twostage(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return str(line)


def test_a_mistake_in_a_cascade_is_one_line_and_nothing_is_written(
    runs: dict[str, Path], bases: dict[str, Path], photos: Path, tiny_base: Path, tmp_path: Path
) -> None:
    new = ("train", "two-stage", photos, "--class=backpack", "-o", tmp_path / "run")
    small, large = f"--base={bases['small']}", f"--super-resolution={bases['large']}"
    second = "--stage=super-resolution"
    for arguments, said in (
        ((small, second), "give --super-resolution, a diffusers folder or hub id"),
        ((small, second, f"--super-resolution={tmp_path}/none"), "no folder here"),
        ((small, second, f"--super-resolution={tiny_base}"), "enlarges no pictures"),
        ((small, f"--super-resolution={bases['small']}"), "is a IFPipeline, and the pictures of the base"),
        ((f"--base={tiny_base}", large), "whose pictures nothing enlarges here"),
        ((f"--base={tiny_base}", second, large), "enlarges pictures of a IFPipeline"),
        ((f"--base={tiny_base}", f"--low-resolution={bases['small']}"), "enlarges no pictures"),
        ((f"--base={bases['large']}", f"--low-resolution={tmp_path}/none"), "no folder here"),
    ):
        assert said in complaint(*new, *arguments), arguments
        assert not (tmp_path / "run").exists()
    for run_, arguments, said in (
        ("small", ("--super-resolution", bases["small"]), "is a IFPipeline"),
        ("small", ("--super-resolution", tmp_path / "none"), "no folder here"),
        ("small", ("--low-resolution", bases["small"]), "enlarges no pictures"),
        ("large", ("--low-resolution", bases["large"]), "enlarges pictures of a IFPipeline"),
        ("large", ("--super-resolution", bases["large"]), "nothing enlarges"),
    ):
        assert said in complaint("generate", runs[run_], "a {}", *arguments, "-o", tmp_path / "pictures")
        assert not (tmp_path / "pictures").exists()


def test_a_token_is_not_taken_to_another_t5(runs: dict[str, Path], bases: dict[str, Path], tmp_path: Path) -> None:
    deepfloyd_if.write_pipeline(tmp_path / "other", deepfloyd_if.SIZES["tiny-ii"], seed=1)
    taken = (f"--from={runs['small']}", "--stage=super-resolution", f"--super-resolution={tmp_path / 'other'}")
    assert "learned its token for base" in complaint("train", "two-stage", *taken, "-o", tmp_path / "run")
    shutil.copytree(bases["large"], tmp_path / "same")
    config = tmp_path / "same" / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"_name_or_path": "elsewhere"}))
    assert load_base(str(tmp_path / "same")).reads_as(load_base(str(bases["small"])))
    assert not load_base(str(tmp_path / "other")).reads_as(load_base(str(bases["small"])))


def test_a_run_of_another_subject_before_it_is_told(
    runs: dict[str, Path], bases: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    display = Display()
    display.say = told.append  # type: ignore[method-assign]
    recipe = Recipe(
        base=str(bases["large"]),
        low_resolution=str(runs["small"]),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(placeholder="sks"),
        stage2=Stage2(steps=1, learning_rate=1e-3),
        sample=Sample(per_prompt=0),
    )
    run.train(recipe, tmp_path / "run", display=display)
    assert [line for line in told if "knows its subject as <rare>, and here it is sks" in line]


def test_a_recipe_names_what_enlarges_its_pictures(
    runs: dict[str, Path], bases: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        base=str(bases["small"]),
        super_resolution=str(bases["large"]),
        data=Data(photos=photos, class_noun="backpack"),
        token=Token(placeholder="sks"),
        stage2=Stage2(steps=1, learning_rate=1e-3),
        sample=DRAWN,
    )
    folder = run.train(recipe, tmp_path / "run", display=Display())
    assert draw(folder)[0].size == (32, 32)
    with Image.open(folder / "samples" / "stage2-000001" / "prompt1-1.png") as picture:
        assert picture.size == (16, 16)
    with pytest.raises(UserError, match="no folder here"):
        run.train(
            recipe.model_copy(update={"super_resolution": str(tmp_path / "none")}),
            tmp_path / "other",
            display=Display(),
        )
    assert not (tmp_path / "other").exists()
