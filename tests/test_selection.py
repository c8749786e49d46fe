"""Checkpoints are measured by what they draw; the best becomes the result, and a stage that copies ends early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from tests.watching import Watcher, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluation.checkpoints import Measured, copies, read_measured, step_curve
from twostage.recipe import Adapter, Checkpoints, Recipe, Sample, Select, Stage1, Stage2
from twostage.run import generate, train

STEPS = 8
PROMPTS = ("a photo of a {} on the beach", "snow", "a {} in the snow")


@pytest.fixture(scope="module")
def encoders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A ViT and a CLIP of random weights, as the options name them; never write to them."""
    folder = tmp_path_factory.mktemp("encoders")
    size: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    seen: dict[str, Any] = {**size, "image_size": 16, "patch_size": 4, "initializer_range": 0.3}
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    torch.manual_seed(113)  # Such that neither the first checkpoint nor the last is the best one.
    ViTModel(ViTConfig(**seen), add_pooling_layer=False).save_pretrained(folder / "dino")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "dino")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    read = {**size, "vocab_size": len(tokenizer), **special}
    torch.manual_seed(2)  # Such that the cosines are above 0.
    CLIPModel(CLIPConfig(text_config=read, vision_config=seen, projection_dim=16)).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    return f"dino={folder / 'dino'}", f"clip={folder / 'clip'}"


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photo = Image.new("RGB", (32, 40), "ivory")
    ImageDraw.Draw(photo).rectangle((8, 8, 26, 22), fill="purple")
    file = tmp_path_factory.mktemp("held-out") / "unseen.png"
    photo.save(file)
    return file


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe, encoders: tuple[str, ...], held_out: Path) -> Recipe:
    """Both stages with a checkpoint at each second step, of which one stays; all are measured."""
    return without(
        tiny_recipe,
        data=tiny_recipe.data.model_copy(update={"held_out": (held_out,)}),
        stage1=Stage1(steps=2, learning_rate=5e-2, batch_size=2),
        stage2=Stage2(steps=STEPS, learning_rate=5e-3, batch_size=2),
        sample=Sample(prompts=PROMPTS, per_prompt=1, num_inference_steps=2, guidance_scale=2.0),
        checkpoints=Checkpoints(every=2, keep=1),
        select=Select(measure=True, encoders=encoders),
    )


@pytest.fixture(scope="module")
def measured(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoints were measured, and whose last one is the result; never write to it."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train(recipe, tmp_path_factory.mktemp("runs") / "measured", display=Display())


def selecting(recipe: Recipe, **changes: Any) -> Recipe:
    return without(recipe, select=recipe.select.model_copy(update=changes))


def chosen(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "run.json").read_text())["selection"]
    return facts


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All that a run gives, by file and name."""
    files = [
        file
        for name in ("unet", "text_encoder", "adapter", "embedding")
        for file in (run / name).rglob("*.safetensors")
    ]
    return {f"{file.relative_to(run)}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def best_of(run: Path, stage: int = 2) -> Measured:
    found = [line for line in read_measured(run) if line.stage == stage]
    return max(found, key=lambda line: line.score or 0.0)


# What is measured


def test_each_checkpoint_of_both_stages_gets_a_line(measured: Path) -> None:
    assert [line.place for line in read_measured(measured)] == [(1, 2), (2, 2), (2, 4), (2, 6), (2, 8)]
    assert chosen(measured)["chosen"]["step"] == STEPS
    assert chosen(measured)["measured_against"] == "held-out photos"


def test_the_figures_are_those_of_stock_transformers(
    measured: Path, encoders: tuple[str, ...], photos: Path, held_out: Path
) -> None:
    """Of the pictures whose prompts ask for the subject, and of each prompt without the token."""
    folders = dict(text.split("=") for text in encoders)
    vit, seer = ViTModel.from_pretrained(folders["dino"]).eval(), AutoImageProcessor.from_pretrained(folders["dino"])
    clip, tokenizer = CLIPModel.from_pretrained(folders["clip"]).eval(), AutoTokenizer.from_pretrained(folders["clip"])
    clip_seer = AutoImageProcessor.from_pretrained(folders["clip"])

    def dino(files: list[Path]) -> torch.Tensor:
        pixels = seer(images=[Image.open(file).convert("RGB") for file in files], return_tensors="pt").pixel_values
        return torch.nn.functional.normalize(vit(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)

    line = read_measured(measured)[3]
    drawn = [measured / "samples" / "stage2-000006" / f"prompt{row}-1.png" for row in (1, 3)]
    asked = ["a photo of a backpack on the beach", "a backpack in the snow"]
    with torch.no_grad():
        pictures, seen, unseen = dino(drawn), dino(sorted(photos.glob("*.png"))), dino([held_out])
        pixels = clip_seer(images=[Image.open(file) for file in drawn], return_tensors="pt").pixel_values
        ids = tokenizer(asked, padding="max_length", return_tensors="pt").input_ids
        both = clip(input_ids=ids, pixel_values=pixels)
        fits = torch.cosine_similarity(both.image_embeds, both.text_embeds)
    assert line.identity_seen == pytest.approx(float((pictures @ seen.T).mean()), abs=1e-5)
    assert line.identity_unseen == pytest.approx(float((pictures @ unseen.T).mean()), abs=1e-5)
    assert line.copying == pytest.approx(float((pictures @ seen.T).max(dim=1).values.mean()), abs=1e-5)
    assert line.prompt_fidelity == pytest.approx(float(fits.mean()), abs=1e-5)
    assert line.score == (line.identity_unseen or 0) * (line.prompt_fidelity or 0)


def test_measuring_changes_nothing_of_the_result(recipe: Recipe, measured: Path, tmp_path: Path) -> None:
    plain = train(without(recipe, select=Select()), tmp_path / "plain", display=Display())
    assert_same_weights(plain, measured)
    assert not (plain / "selection.jsonl").exists()
    assert metrics(plain) == metrics(measured)


def test_without_held_out_photos_the_training_photos_count_and_a_note_says_what_that_rewards(
    recipe: Recipe, tmp_path: Path
) -> None:
    watcher = Watcher()
    data = recipe.data.model_copy(update={"held_out": ()})
    run = train(without(recipe, data=data, stage2=None), tmp_path / "run", display=watcher)
    assert any("--held-out" in text and "rewards copying" in text for text in watcher.said)
    assert all(line.identity_unseen is None for line in read_measured(run))
    assert all(line.score == line.identity_seen * line.prompt_fidelity for line in read_measured(run))  # type: ignore[operator]
    assert chosen(run)["measured_against"] == "training photos"


def test_measuring_goes_on_without_an_encoder_that_is_not_there(recipe: Recipe, tmp_path: Path) -> None:
    watcher = Watcher()
    own = selecting(without(recipe, stage2=None), encoders=(recipe.select.encoders[0], "clip=none"))
    run = train(own, tmp_path / "run", display=watcher)
    assert any("without clip" in text for text in watcher.said)
    assert all(line.prompt_fidelity is None and line.score is None for line in read_measured(run))
    assert all(line.copying is not None for line in read_measured(run))


def test_a_curve_over_steps_is_made_of_the_lines(measured: Path, finished: Path) -> None:
    curve = step_curve(measured)
    assert [(point["stage"], point["at"]) for point in curve] == [line.place for line in read_measured(measured)]
    assert curve[-1]["figures"]["dino_unseen"]["value"] == read_measured(measured)[-1].identity_unseen
    assert {*curve[0]["figures"]} == {"dino_seen", "dino_unseen", "clip_t", "copying"}
    assert curve[0]["figures"]["copying"]["better"] == "lower"
    assert step_curve(finished) == []


# keep = "best"

VARIANTS: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "U-Net": lambda recipe: {},
    "average": lambda recipe: {"stage2": recipe.stage2.model_copy(update={"ema_decay": 0.8})},  # type: ignore[union-attr]
    "text encoder": lambda recipe: {"stage2": recipe.stage2.model_copy(update={"train_text_encoder": True})},  # type: ignore[union-attr]
    "adapter": lambda recipe: {
        "stage2": Stage2(steps=STEPS, learning_rate=1e-1, batch_size=2, train="adapter", train_text_encoder=True),
        "adapter": Adapter(target_modules=("all",)),
    },
    "token alone": lambda recipe: {"stage1": Stage1(steps=STEPS, learning_rate=3e-1, batch_size=2), "stage2": None},
}


@pytest.fixture(scope="module")
def picky(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is the result; never write to it."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train(selecting(recipe, keep="best"), tmp_path_factory.mktemp("runs") / "picky", display=Display())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_result_is_bit_for_bit_what_drew_the_best_samples(recipe: Recipe, tmp_path: Path, name: str) -> None:
    """The judge is a run that ends where the best checkpoint was."""
    varied = selecting(without(recipe, **VARIANTS[name](recipe)), keep="best")
    stage = 2 if varied.stage2 else 1
    run = train(varied, tmp_path / "run", display=Display())
    best, facts = best_of(run, stage), chosen(run)
    assert (facts["chosen"]["stage"], facts["chosen"]["step"]) == best.place
    assert (facts["chosen"]["score"], facts["last"]["step"]) == (best.score, STEPS)
    table = {1: "stage1", 2: "stage2"}[stage]
    shorter = getattr(varied, table).model_copy(update={"steps": best.step})
    until = without(varied, **{table: shorter}, select=Select(), sample=Sample(per_prompt=0))
    assert_same_weights(run, train(until, tmp_path / "until", display=Display()))


def test_the_best_checkpoint_outlives_the_limit_as_its_weights(picky: Path) -> None:
    run, best = picky, best_of(picky)
    assert best.step < STEPS - 2  # Else nothing of this would be put to the test.
    folder = run / "checkpoints"
    left = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors"))
    marked = f"best-stage2-{best.step:06d}/trained.safetensors"
    assert left == [marked, "stage2-000006/optimizer.safetensors", "stage2-000006/trained.safetensors"]


def test_the_result_draws_the_samples_of_its_step_and_the_card_shows_them(picky: Path) -> None:
    run, best = picky, best_of(picky)
    (drawn,) = generate(run, PROMPTS[2], count=1, num_inference_steps=2, guidance_scale=2.0, display=Display())
    sample = np.asarray(Image.open(run / "samples" / f"stage2-{best.step:06d}" / "prompt3-1.png"), dtype=int)
    assert abs(np.asarray(drawn, dtype=int) - sample).max() <= 1  # Drawn in another batch.
    card = (run / "README.md").read_text()
    assert f"samples/stage2-{best.step:06d}.png" in card
    assert f"of step {best.step} of stage 2" in card


class Killed(BaseException):
    pass


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(
    ("act", "raised", "step"),
    [(ctrl_c, KeyboardInterrupt, 4), (ctrl_c, KeyboardInterrupt, 5), (kill, Killed, 7), (kill, Killed, STEPS)],
)
def test_an_interrupted_run_chooses_what_an_unbroken_one_chooses(
    recipe: Recipe, picky: Path, tmp_path: Path, act: Callable[[], None], raised: type[BaseException], step: int
) -> None:
    own = selecting(recipe, keep="best")
    with pytest.raises(raised):
        train(own, tmp_path / "run", display=Watcher(("stage 2", step), act))
    with (tmp_path / "run" / "selection.jsonl").open("a") as file:
        file.write('{"stage": 2, "st')  # A kill cut a line short.
    run = train(own, tmp_path / "run", resume=True, display=Display())
    assert_same_weights(run, picky)
    assert read_measured(run) == read_measured(picky)
    assert chosen(run) == chosen(picky)


def test_a_best_checkpoint_that_cannot_be_read_gives_way_to_the_next_best(recipe: Recipe, tmp_path: Path) -> None:
    place = "best-stage2-000004/trained.safetensors"

    def damage() -> None:
        (tmp_path / "run" / "checkpoints" / place).write_bytes(b"broken")

    watcher = Watcher(("stage 2", 7), damage)
    run = train(selecting(recipe, keep="best"), tmp_path / "run", display=watcher)
    assert any("step 4 did best" in text for text in watcher.said)
    assert chosen(run)["chosen"]["step"] in (6, STEPS)


# stop_on_copying


def first_stop(run: Path) -> int:
    own = [line for line in read_measured(run) if line.stage == 2]
    return next(own[end - 1].step for end in range(1, len(own)) if copies(own[:end], 1))


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_stage_that_copies_ends_early_and_the_run_finishes(
    recipe: Recipe, measured: Path, tmp_path: Path, interrupted: bool
) -> None:
    own, step, watcher = selecting(recipe, stop_on_copying=1), first_stop(measured), Watcher()
    assert step < STEPS
    if interrupted:  # Between the checkpoint and its samples.
        with pytest.raises(KeyboardInterrupt):
            train(own, tmp_path / "run", display=Watcher(("stage 2", step), ctrl_c))
    run = train(own, tmp_path / "run", resume=interrupted, display=watcher)
    assert any(f"stage 2 ends after step {step} of {STEPS}" in text for text in watcher.said)
    assert read_measured(run) == [line for line in read_measured(measured) if line.place <= (2, step)]
    assert metrics(run)[-1]["step"] == step
    assert chosen(run)["stopped"] == {"stage2": step}
    assert chosen(run)["chosen"]["step"] == step
    assert json.loads((run / "run.json").read_text())["finished"]
    assert recipe.stage2
    shorter = recipe.stage2.model_copy(update={"steps": step})
    until = without(recipe, stage2=shorter, select=Select(), sample=Sample(per_prompt=0))
    assert_same_weights(run, train(until, tmp_path / "until", display=Display()))


# Bad input


@pytest.mark.parametrize(
    ("changes", "select", "said"),
    [
        ({}, {"keep": "best", "encoders": ("clip=none",)}, "keep = 'best' needs a clip encoder"),
        ({}, {"keep": "best", "encoders": ("dino=none",)}, "keep = 'best' needs a dino encoder"),
        ({}, {"stop_on_copying": 2, "encoders": ("dino=none",)}, "stop_on_copying = 2 needs a dino encoder"),
        ({}, {"measure": True, "encoders": ("dino=none", "clip=none")}, "no encoder to measure with"),
        ({"held_out": ()}, {"stop_on_copying": 2}, "--held-out"),
    ],
)
def test_what_a_decision_needs_is_told_before_anything_is_written(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], select: dict[str, Any], said: str
) -> None:
    given = select.get("encoders", ())
    others = [text for text in recipe.select.encoders if text.split("=")[0] not in {g.split("=")[0] for g in given}]
    own = without(
        recipe,
        data=recipe.data.model_copy(update=changes),
        select=Select(**{"measure": False, **select, "encoders": (*given, *others)}),
    )
    with pytest.raises(UserError, match=said) as error:
        train(own, tmp_path / "run", display=Display())
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
