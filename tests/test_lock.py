"""Two processes never train in one run folder, and none is kept out by one that is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.watching import Watcher, assert_same_bits, ctrl_c, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.lock import Lock
from twostage.recipe import Recipe, Sample
from twostage.recipe_file import dump_recipe
from twostage.run import train
from twostage.run_folder import RunFolder

TRAIN = """
import sys
from pathlib import Path
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe_file import load_recipe
from twostage.run import train
try:
    train(load_recipe(sys.argv[1]), Path(sys.argv[2]), resume="resume" in sys.argv, display=Display())
except UserError as error:
    sys.exit(str(error))
"""


def starts(recipe: Path, output: Path, *how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAIN, str(recipe), str(output), *how]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def recipe_file(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(dump_recipe(tiny_recipe), encoding="utf-8")
    return file


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_refused_while_a_run_trains(tiny_recipe: Recipe, tmp_path: Path, resume: bool) -> None:
    folder, said = tmp_path / "run", []

    def again() -> None:
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        with pytest.raises(UserError) as refused:
            train(tiny_recipe, folder, resume=resume, display=Display())
        said.append(str(refused.value))
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    train(tiny_recipe, folder, display=Watcher(("stage 2", 3), again))
    assert len(said) == 1 and (f"at work on the run in {folder}" in said[0] or "holds another run" in said[0])
    assert not resume or "wait until it ends" in said[0]
    assert not (folder / Lock.NAME).exists()
    assert_same_bits(folder, train(tiny_recipe, tmp_path / "alone", display=Display()))


def test_of_two_that_begin_at_once_one_goes_on_and_one_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    both = [starts(recipe_file, tmp_path / "run") for _ in range(2)]
    ends = sorted((one.wait(120), one.communicate()[1]) for one in both)
    assert [code for code, _ in ends] == [0, 1]
    assert "another process is at work" in ends[1][1] or "holds another run" in ends[1][1]
    assert (tmp_path / "run" / "unet").is_dir()


def test_a_killed_process_keeps_nobody_out(tiny_recipe: Recipe, tmp_path: Path) -> None:
    assert tiny_recipe.stage2
    stage2 = tiny_recipe.stage2.model_copy(update={"steps": 300})
    long = without(tiny_recipe, stage2=stage2, sample=Sample(per_prompt=0))
    (tmp_path / "long.toml").write_text(dump_recipe(long), encoding="utf-8")
    one = starts(tmp_path / "long.toml", tmp_path / "run")
    while not list((tmp_path / "run").glob("checkpoints/stage2-*")):
        assert one.poll() is None
        time.sleep(0.01)
    one.send_signal(signal.SIGKILL)
    one.wait()
    place = RunFolder(tmp_path / "run").checkpoints.newest_place()
    assert place and place < (2, 290)
    with pytest.raises(KeyboardInterrupt):
        train(long, tmp_path / "run", resume=True, display=Watcher(("stage 2", place[1] + 2), ctrl_c))
    assert (tmp_path / "run" / "checkpoints" / f"stage2-{place[1] + 2:06d}").is_dir()
    assert not (tmp_path / "run" / Lock.NAME).exists()
