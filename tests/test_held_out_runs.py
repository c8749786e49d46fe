"""Runs that hold photos out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.watching import Watcher, assert_same_bits, ctrl_c, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import AnotherSubject, Recipe, Sample
from twostage.recipe_file import load_recipe
from twostage.run import train


@pytest.fixture
def own(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture
def holding(tiny_recipe: Recipe, own: Path) -> Recipe:
    """Trains on three photos of four."""
    data = tiny_recipe.data.model_copy(update={"photos": own, "held_out": (own / "3.png",)})
    return without(tiny_recipe, data=data, sample=Sample(per_prompt=0))


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_a_run_is_that_of_a_folder_without_the_held_out_photo(holding: Recipe, own: Path, tmp_path: Path) -> None:
    run = train(holding, tmp_path / "run", display=Display())
    assert [photo["name"] for photo in facts(run)["photos"]] == ["0.png", "1.png", "2.png"]
    assert [photo["name"] for photo in facts(run)["held_out"]] == ["3.png"]
    assert load_recipe(str(run / "recipe.toml")).data.held_out == (own / "3.png",)
    (own / "3.png").unlink()
    alone = without(holding, data=holding.data.model_copy(update={"held_out": ()}))
    assert_same_bits(train(alone, tmp_path / "alone", display=Display()), run)
    assert facts(tmp_path / "alone")["held_out"] == []


def test_a_run_resumes_with_the_held_out_photos_it_was_begun_with(holding: Recipe, own: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(holding, tmp_path / "run", display=Watcher(("stage 1", 2), ctrl_c))
    kept = (own / "3.png").rename(tmp_path / "kept.png")
    Image.new("RGB", (40, 40)).save(own / "3.png")
    with pytest.raises(UserError, match="the held-out photos changed since"):
        train(holding, tmp_path / "run", resume=True, display=Display())
    kept.rename(own / "3.png")
    assert facts(train(holding, tmp_path / "run", resume=True, display=Display()))["finished"]


def test_a_run_from_before_there_were_held_out_photos_resumes(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = without(tiny_recipe, sample=Sample(per_prompt=0))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 1", 2), ctrl_c))
    old = {name: value for name, value in facts(tmp_path / "run").items() if name != "held_out"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(old))
    assert facts(train(recipe, tmp_path / "run", resume=True, display=Display()))["finished"]


@pytest.mark.parametrize(("named", "match"), [("gone.png", "does not exist"), ("", "is held out, and none is left")])
def test_held_out_photos_that_cannot_be_are_refused_before_anything_is_written(
    holding: Recipe, own: Path, tmp_path: Path, named: str, match: str
) -> None:
    recipe = without(holding, base="/gone", data=holding.data.model_copy(update={"held_out": (own / named,)}))
    with pytest.raises(UserError, match=match):
        train(recipe, tmp_path / "run", display=Display())
    assert not (tmp_path / "run").exists()


def test_a_fork_holds_out_what_the_token_was_learned_without(holding: Recipe, own: Path, tmp_path: Path) -> None:
    run = train(holding, tmp_path / "run", display=Display())
    silent = without(holding, data=holding.data.model_copy(update={"held_out": ()}))
    fork = train(silent, tmp_path / "fork", token_from=run, display=Display())
    assert [photo["name"] for photo in facts(fork)["held_out"]] == ["3.png"]
    assert_same_bits(fork, run)
    other = without(holding, data=holding.data.model_copy(update={"held_out": (own / "0.png",)}))
    watcher = Watcher()
    train(other, tmp_path / "other", token_from=run, display=watcher)
    assert any("0.png leaks: the token was learned from it" in said for said in watcher.said)


def test_no_subject_of_several_is_taught_a_held_out_photo(holding: Recipe, own: Path, tmp_path: Path) -> None:
    odd = AnotherSubject(photos=own, class_noun="toy", placeholder="<odd>", initializer="blue")
    run = train(without(holding, subjects=(odd,)), tmp_path / "run", display=Display())
    assert [photo["name"] for photo in facts(run)["photos"]] == ["0.png", "1.png", "2.png"] * 2


def test_a_run_says_when_a_copy_leaks(holding: Recipe, own: Path, tmp_path: Path) -> None:
    with Image.open(own / "0.png") as photo:
        photo.save(tmp_path / "again.bmp")
    recipe = without(holding, data=holding.data.model_copy(update={"held_out": (tmp_path / "again.bmp",)}))
    watcher = Watcher()
    train(recipe, tmp_path / "run", display=watcher)
    assert any("again.bmp leaks" in said for said in watcher.said)
