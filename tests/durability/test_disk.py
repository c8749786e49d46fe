"""A disk too small is refused before a run, and one that fills up costs no more than what was done since it did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.watching import assert_same_bits, without
from twostage.display import Display
from twostage.errors import UserError
from twostage.families import load_base
from twostage.planning import disk, plan
from twostage.recipe import Recipe
from twostage.run import train

ROOT = Path(__file__).resolve().parents[2]
# In name spaces of its own, anybody may mount a small file system, which nobody else sees.
_APART = ["unshare", "--map-root-user", "--mount"]

_SCRIPT = """
import gc, os, subprocess, sys
from pathlib import Path

import torch

from tests.watching import Watcher, assert_same_bits
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe_file import load_recipe
from twostage.run import train
from twostage.run_folder import RunFolder

small, sound = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", small], check=True)
recipe = load_recipe(str(sound / "recipe.toml"))
for number, left in enumerate(map(int, sys.argv[3:])):
    folder, filler = RunFolder(small / f"run{number}"), small / "filler"
    gc.freeze()  # Else each run would go through all that was imported, several times.

    def fill():
        usage = os.statvfs(small)
        filler.write_bytes(bytes(max(0, usage.f_bavail * usage.f_frsize - left)))

    try:
        train(recipe, folder.path, display=Watcher(("stage 2", 2), fill))
        print("left", left, "was enough")
    except UserError as error:
        print("left", left, "told:", error)
        assert "bytes" in str(error) and "missing" in str(error) and "\\n" not in str(error), error
        stage, progress = folder.checkpoints.newest()
        assert folder.checkpoints.newest_place() == (stage, progress.step)
        assert not list(folder.path.rglob(".writing-*"))
    filler.unlink()
    train(recipe, folder.path, resume=True, display=Display())
    assert_same_bits(folder.path, sound)
"""


def _can_mount() -> bool:
    try:
        return subprocess.run([*_APART, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _can_mount(), reason="this machine lets nobody mount a small file system")
def test_a_disk_that_fills_up_while_a_run_goes_on_leaves_its_last_checkpoint_and_says_what_is_missing(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """A real file system, filled while stage 2 runs: less and less of the next checkpoint finds room."""
    sound = train(tiny_recipe, tmp_path / "sound", display=Display())
    newest = sum(file.stat().st_size for file in (sound / "checkpoints" / "stage2-000004").iterdir())
    (tmp_path / "small").mkdir()
    left = [0, 4096, newest // 3, newest * 2 // 3, newest - 4096]
    command = [*_APART, sys.executable, "-c", _SCRIPT, tmp_path / "small", sound, *map(str, left)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("told:") == len(left), done.stdout


def test_a_run_that_cannot_fit_on_its_disk_is_refused_before_anything_is_written(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = plan(tiny_recipe).room
    certain = needs.disk - needs.samples
    monkeypatch.setattr(disk, "free_bytes", lambda folder: certain - 1)
    with pytest.raises(UserError, match=rf"needs {certain:,} bytes .* 1 \(0.0 MiB\) are missing") as refused:
        train(tiny_recipe, tmp_path / "run", display=Display())
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
    monkeypatch.setattr(disk, "free_bytes", lambda folder: certain)
    disk.check_disk(tiny_recipe, load_base(tiny_recipe.base), tmp_path / "run")


def test_a_run_that_just_fits_trains_as_if_nobody_had_looked(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To know, it is rehearsed, by the same libraries and in the same process that is to train it."""
    expected = train(tiny_recipe, tmp_path / "expected", display=Display())
    monkeypatch.setattr(disk, "_MOST", 1e15)
    assert_same_bits(train(tiny_recipe, tmp_path / "run", display=Display()), expected)


def test_what_a_run_is_said_to_need_is_what_it_writes(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """At its fullest, that is: with one checkpoint more than are kept."""
    recipe = without(tiny_recipe, checkpoints=tiny_recipe.checkpoints.model_copy(update={"keep": 9, "every": 2}))
    run = train(recipe, tmp_path / "run", display=Display())
    written = sum(file.stat().st_size for file in run.rglob("*.safetensors"))
    needs = plan(recipe).room
    assert 0.9 * (needs.disk - needs.samples) < written < 1.2 * (needs.disk - needs.samples)
