"""A run that was interrupted goes on to the same weights as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.watching import Watcher, assert_same_bits, ctrl_c, metrics, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Data, Recipe
from twostage.recipe_file import load_recipe
from twostage.run import train
from twostage.run_folder import RunFolder


@pytest.fixture(scope="module")
def unbroken(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the others must equal; never write to it."""
    torch.set_num_threads(1)
    return train(tiny_recipe, tmp_path_factory.mktemp("runs") / "unbroken", display=Display())


@pytest.mark.parametrize(
    ("label", "step"), [("stage 1", 2), ("stage 1", 4), ("stage 1", 6), ("stage 2", 1), ("stage 2", 5)]
)
def test_a_run_stopped_by_ctrl_c_resumes_bit_for_bit(
    tiny_recipe: Recipe, unbroken: Path, tmp_path: Path, label: str, step: int
) -> None:
    watcher = Watcher((label, step), ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(tiny_recipe, tmp_path / "run", display=watcher)
    assert "--resume" in watcher.said[-1]
    assert not json.loads((tmp_path / "run" / "run.json").read_text())["finished"]

    run = train(tiny_recipe, tmp_path / "run", resume=True, display=Display())

    assert_same_bits(run, unbroken)
    assert metrics(run) == metrics(unbroken)
    names = [sorted(path.name for path in (folder / "samples").iterdir()) for folder in (run, unbroken)]
    assert names[0] == names[1]


@pytest.mark.parametrize(("label", "step"), [("stage 1", 3), ("stage 1", 5), ("stage 2", 3), ("stage 2", 6)])
def test_a_run_killed_outright_resumes_from_its_newest_checkpoint(
    tiny_recipe: Recipe, unbroken: Path, tmp_path: Path, label: str, step: int
) -> None:
    """Steps after the checkpoint are made again, and their lines in metrics.jsonl are not there twice."""

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        train(tiny_recipe, tmp_path / "run", display=Watcher((label, step), kill))
    checkpoint = RunFolder(tmp_path / "run").checkpoints.newest()
    seconds = json.loads((tmp_path / "run" / "run.json").read_text())["seconds"]
    assert checkpoint is None or seconds[f"stage{checkpoint[0]}"] > 0
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 1, "st')  # The kill cut a line short,
    (tmp_path / "run" / "checkpoints" / ".writing-stage2-000006").mkdir(parents=True)  # and a checkpoint.

    run = train(tiny_recipe, tmp_path / "run", resume=True, display=Display())

    assert_same_bits(run, unbroken)
    assert metrics(run) == metrics(unbroken)
    assert not list(run.rglob(".writing-*"))


def test_sigterm_saves_first_too(tiny_recipe: Recipe, tmp_path: Path) -> None:
    watcher = Watcher(("stage 2", 2), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, tmp_path / "run", display=watcher)
    assert (tmp_path / "run" / "checkpoints" / "stage2-000002" / "state.json").is_file()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tiny_recipe: Recipe, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, tmp_path / "run", display=Watcher(("stage 2", 3), ctrl_c))
    newest = tmp_path / "run" / "checkpoints" / "stage2-000003" / "trained.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert_same_bits(train(tiny_recipe, tmp_path / "run", resume=True, display=Display()), unbroken)


def test_resuming_a_finished_run_says_so_and_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    watcher = Watcher()
    recipe = load_recipe(str(finished / "recipe.toml"))
    assert train(recipe, finished, resume=True, display=watcher) == finished
    assert "finished" in watcher.said[-1]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_resuming_with_other_options_names_them(tiny_recipe: Recipe, finished: Path) -> None:
    recipe = load_recipe(str(finished / "recipe.toml"))
    assert recipe.stage2
    other = without(recipe, seed=5, stage2=recipe.stage2.model_copy(update={"steps": 9}))
    with pytest.raises(UserError, match=r"seed \(0, now 5\), stage2.steps \(6, now 9\)"):
        train(other, finished, resume=True, display=Display())


def test_resuming_with_other_photos_is_refused(tiny_recipe: Recipe, tmp_path: Path, photos: Path) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "photos"))
    recipe = without(tiny_recipe, data=Data(photos=own, class_noun="backpack"))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 1", 2), ctrl_c))
    Image.new("RGB", (40, 40)).save(own / "2.png")
    with pytest.raises(UserError, match="photos changed"):
        train(recipe, tmp_path / "run", resume=True, display=Display())


def test_there_must_be_a_run_to_resume(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        train(tiny_recipe, tmp_path / "run", resume=True, display=Display())
    assert not (tmp_path / "run").exists()
