"""Runs with prior preservation: they resume exactly, hold one U-Net in memory, and change nothing but stage 2."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import CLIPTextModel

from tests.watching import Watcher, ctrl_c, metrics, results, without
from twostage import class_prior
from twostage.display import Display
from twostage.errors import UserError
from twostage.method.class_samples import ClassSamples, Making
from twostage.method.examples import Examples
from twostage.method.photo_predictions import prepare_photo_predictions
from twostage.recipe import AnotherSubject, Checkpoints, Prior, Recipe, Sample, Stage1, Stage2, Token
from twostage.run import train
from twostage.subject.photos import find_photos

SOURCES = ("images", "predictions", "photos")


@pytest.fixture
def held(tiny_recipe: Recipe) -> Recipe:
    """A rare token, four steps of the U-Net, and a small prior."""
    return without(
        tiny_recipe,
        token=Token(placeholder="sks"),
        stage1=None,
        stage2=Stage2(steps=4, learning_rate=1e-3, batch_size=2),
        prior=Prior(preserve=True, num_class_images=3, num_inference_steps=2, states_per_path=2, sample_batch_size=1),
        sample=Sample(per_prompt=0),
        checkpoints=Checkpoints(every=2),
    )


def from_source(recipe: Recipe, source: str, **changes: object) -> Recipe:
    return without(recipe, prior=recipe.prior.model_copy(update={"source": source, **changes}))


def unet(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "unet" / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("source", SOURCES)
def test_a_stopped_run_resumes_bit_for_bit(held: Recipe, tmp_path: Path, source: str) -> None:
    recipe = from_source(held, source)
    unbroken = train(recipe, tmp_path / "unbroken", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", 3), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert same(unet(run), unet(unbroken))
    assert metrics(run) == metrics(unbroken)


@pytest.mark.parametrize(("source", "label"), [("images", "class images"), ("predictions", "class predictions")])
def test_ctrl_c_while_the_prior_is_made_keeps_what_is_done(
    held: Recipe, tmp_path: Path, cache: Path, source: str, label: str
) -> None:
    recipe = from_source(held, source)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher((label, 2), ctrl_c))
    done = {path: path.stat().st_mtime_ns for path in cache.rglob("0000*")}
    assert len(done) == 2
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    shutil.rmtree(cache)
    assert same(unet(run), unet(train(recipe, tmp_path / "unbroken", display=Display())))


def test_every_subjects_photos_are_held_to_its_own_class(held: Recipe, tmp_path: Path, photos: Path) -> None:
    """The other sources keep the first one's alone, and say so."""
    other = AnotherSubject(photos=photos, class_noun="dog", placeholder="<odd>")
    recipe = without(
        from_source(held, "photos"), stage1=Stage1(steps=1, learning_rate=1e-3), token=Token(), subjects=(other,)
    )
    said: list[str] = []
    asked: list[list[str]] = []

    class Listening(Display):
        def say(self, text: str) -> None:
            said.append(text)

    def remember(making: Making, examples: Examples, prompts: Sequence[str]) -> ClassSamples:
        asked.append(list(prompts))
        return prepare_photo_predictions(making, examples, prompts)

    with patch.object(class_prior, "prepare_photo_predictions", remember):
        train(recipe, tmp_path / "run", display=Listening())
    count = len(find_photos(photos))
    assert asked == [["a photo of a backpack"] * count + ["a photo of a dog"] * count]
    assert not any("alone" in line for line in said)


def test_photos_of_no_class_are_held_to_what_the_base_says_of_nothing(held: Recipe, tmp_path: Path) -> None:
    """A style has no class noun, and needs none: on the pocket model this prior is on unless switched off."""
    style = held.data.model_copy(update={"class_noun": "", "learnable": "style"})
    recipe = without(from_source(held, "photos"), data=style)
    moved = [unet(train(recipe, tmp_path / "run", display=Display()))]
    moved.append(unet(train(without(recipe, prior=Prior()), tmp_path / "plain", display=Display())))
    assert not same(*moved)
    with pytest.raises(UserError, match="--class backpack"):
        train(without(recipe, prior=Prior(preserve=True)), tmp_path / "images", display=Display())


def test_class_images_for_a_prior_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="did you mean source = 'images'"):
        Prior(source="photos", class_images=tmp_path)


def test_a_weight_of_0_is_no_prior(held: Recipe, tmp_path: Path, cache: Path) -> None:
    nothing = train(from_source(held, "images", weight=0.0), tmp_path / "nothing", display=Display())
    without_one = train(without(held, prior=Prior()), tmp_path / "without", display=Display())
    assert same(unet(nothing), unet(without_one))
    assert not (cache / "class-images").exists()
    some = train(from_source(held, "images", weight=0.1), tmp_path / "some", display=Display())
    assert not same(unet(some), unet(without_one))


@pytest.mark.parametrize("source", SOURCES)
def test_stage_2_trains_with_one_unet_in_memory_and_nothing_beside_it(
    held: Recipe, tmp_path: Path, source: str
) -> None:
    nets = (UNet2DConditionModel, AutoencoderKL, CLIPTextModel)
    seen: list[type] = []

    def look() -> None:
        gc.collect()
        seen.extend(type(thing) for thing in gc.get_objects() if issubclass(type(thing), nets))

    before = [type(thing) for thing in gc.get_objects() if issubclass(type(thing), nets)]
    train(from_source(held, source), tmp_path / "run", display=Watcher(("stage 2", 2), look))
    assert sorted(map(str, seen)) == sorted(map(str, [*before, UNet2DConditionModel]))


def test_a_prior_leaves_stage_1_as_it_is(tiny_recipe: Recipe, held: Recipe, finished: Path, tmp_path: Path) -> None:
    recipe = without(tiny_recipe, token=Token(initializer="red", num_vectors=2), sample=Sample(per_prompt=0))
    run = train(without(recipe, prior=held.prior), tmp_path / "run", display=Display())
    ours, theirs = results(run), results(finished)
    assert torch.equal(ours["<rare>"], theirs["<rare>"])
    assert not torch.equal(ours["conv_in.weight"], theirs["conv_in.weight"])


def test_resuming_with_other_class_images_is_refused(held: Recipe, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "own"))
    recipe = from_source(held, "images", class_images=own)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", 2), ctrl_c))
    shutil.copy(own / "0.png", own / "1.png")
    with pytest.raises(UserError, match="class_images changed"):
        train(recipe, tmp_path / "run", resume=True, display=Display())


def test_a_prior_without_stage_2_is_refused(tiny_recipe: Recipe) -> None:
    with pytest.raises(ValidationError, match=r"there is no \[stage2\]"):
        Recipe(stage1=tiny_recipe.stage1, prior=Prior(preserve=True))


def test_more_states_than_a_path_has_are_refused() -> None:
    with pytest.raises(ValidationError, match="states_per_path = 5 is more"):
        Prior(source="predictions", num_inference_steps=4, states_per_path=5)


def test_a_word_of_several_tokens_is_remarked_on(held: Recipe, tmp_path: Path) -> None:
    watcher = Watcher()
    train(without(held, prior=Prior(), token=Token(placeholder="xqzzyv")), tmp_path / "run", display=watcher)
    (note,) = (line for line in watcher.said if "xqzzyv" in line)
    assert "tokens of the vocabulary" in note


def test_a_subject_named_by_its_class_alone_is_refused(held: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has the token backpack in it"):
        train(without(held, token=Token(placeholder="backpack")), tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()
