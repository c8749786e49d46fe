"""The run folder: whole or not there, and a full disk told in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from twostage.errors import UserError
from twostage.method.loop import Progress
from twostage.recipe import Checkpoints, Recipe
from twostage.recipe_file import differences, dump_recipe
from twostage.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def progress(step: int, size: int = 4) -> Progress:
    return Progress(step, {"rows": torch.full((size,), float(step))}, {"0.exp_avg": torch.ones(size)}, {"numbers": 1})


def test_checkpoints_are_kept_to_the_limit_in_the_order_they_were_made(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for stage, step in [(1, 900), (1, 1000), (2, 5), (2, 10)]:
        folder.checkpoints.save(stage, progress(step), Checkpoints(keep=3))
    assert [path.name for path in folder.checkpoints.all()] == ["stage1-001000", "stage2-000005", "stage2-000010"]
    found = folder.checkpoints.newest()
    assert found
    stage, newest = found
    assert (stage, newest.step, newest.numbers) == (2, 10, {"numbers": 1})
    assert torch.equal(newest.trained["rows"], torch.full((4,), 10.0))


def test_the_millionth_step_comes_after_all_before_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for stage, step in [(1, 999_999), (1, 1_000_000), (2, 5)]:
        folder.checkpoints.save(stage, progress(step), Checkpoints(keep=3))
    assert [path.name for path in folder.checkpoints.all()] == ["stage1-999999", "stage1-1000000", "stage2-000005"]


def test_checkpoints_that_were_asked_for_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for stage, step in [(1, 4), (1, 5), (1, 8), (2, 4), (2, 5), (2, 8), (2, 12)]:
        folder.checkpoints.save(stage, progress(step), Checkpoints(keep=1, at=(5,)))
    assert [path.name for path in folder.checkpoints.all()] == ["stage1-000005", "stage2-000005", "stage2-000012"]
    found = folder.checkpoints.newest()
    assert found and found[1].step == 12


def test_the_best_one_up_to_each_that_stays_is_kept_or_its_weights(tmp_path: Path) -> None:
    """An interrupted run can go on from any of those that stay, and has to find what was best up to there."""
    folder, averaged = RunFolder(tmp_path), {"rows": torch.full((4,), 2.5)}

    def best(place: tuple[int, int]) -> tuple[int, int] | None:
        stage, step = place
        return (2, max(good for good in (4, 16) if good < step)) if stage == 2 and step > 4 else None

    for stage, step in [(1, 4), (2, 4), (2, 8), (2, 12), (2, 16), (2, 20), (2, 24)]:
        saved = replace(progress(step), averaged=averaged) if step == 4 else progress(step)
        folder.checkpoints.save(stage, saved, Checkpoints(keep=2), best)
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        if step == 20:
            assert names == ["best-stage2-000004", "stage2-000016", "stage2-000020"]
            assert not (tmp_path / "checkpoints" / "best-stage2-000004" / "trained.safetensors").exists()
            kept = folder.checkpoints.weights_at(2, 4)
            assert kept and torch.equal(kept["rows"], averaged["rows"])
    assert names == ["best-stage2-000016", "stage2-000020", "stage2-000024"]
    kept = folder.checkpoints.weights_at(2, 16)
    assert kept and torch.equal(kept["rows"], torch.full((4,), 16.0))
    assert folder.checkpoints.weights_at(2, 4) is None
    found = folder.checkpoints.newest()
    assert found and found[1].step == 24


def test_going_back_forgets_what_was_drawn_and_measured_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("stage1-000004", "stage2-000002", "stage2-000004"):
        folder.save_samples(name, [Image.new("RGB", (8, 8))], 1)
    for step in (2, 4):
        folder.append("selection.jsonl", {"stage": 2, "step": step})
    folder.rewind(2, 2)
    left = ["stage1-000004", "stage1-000004.png", "stage2-000002", "stage2-000002.png"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == left
    assert (tmp_path / "selection.jsonl").read_text() == '{"stage": 2, "step": 2}\n'


def test_an_average_is_kept_with_what_it_is_of(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoints.save(2, replace(progress(3), averaged={"rows": torch.full((4,), 2.5)}), Checkpoints())
    found = folder.checkpoints.newest()
    assert found and torch.equal(found[1].averaged["rows"], torch.full((4,), 2.5))
    folder.checkpoints.save(2, progress(4), Checkpoints())
    found = folder.checkpoints.newest()
    assert found and found[1].averaged == {}


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        RunFolder(tmp_path).create(Recipe(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def first(path: Path) -> None:
        (path / "config.json").write_text("first")

    def second(path: Path) -> None:
        (path / "config.json").write_text("second")
        raise KeyboardInterrupt

    folder.save_model("unet", first)
    with pytest.raises(KeyboardInterrupt):
        folder.save_model("unet", second)
    assert (tmp_path / "unet" / "config.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]


def test_differences_name_every_option(tiny_recipe: Recipe) -> None:
    assert differences(tiny_recipe, tiny_recipe) == []
    other = tiny_recipe.model_copy(update={"seed": 3, "stage2": None})
    found = differences(tiny_recipe, other)
    assert found[0] == "seed (0, now 3)"
    assert any(line.startswith("stage2.steps (6, now None)") for line in found)


FULL_DISK = """
import sys
from pathlib import Path
import torch
from twostage.errors import UserError
from twostage.method.loop import Progress
from twostage.recipe import Checkpoints
from twostage.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
def progress(step, size):
    return Progress(step, {"rows": torch.full((size,), float(step))}, {"0.exp_avg": torch.ones(size)}, {})
folder.checkpoints.save(1, progress(1, 1000), Checkpoints(keep=2))
try:
    folder.checkpoints.save(1, progress(2, 1_000_000), Checkpoints(keep=2))
except UserError as error:
    print(error)
print(folder.checkpoints.newest()[1].step, sorted(p.name for p in folder.path.rglob("*") if p.is_dir()))
"""


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays_readable(tmp_path: Path) -> None:
    """On a real file system of one megabyte, where the machine lets us mount one."""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    unshare = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    command = f'{mount} && exec "{sys.executable}" -c "$PROGRAM" {tmp_path}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROGRAM": FULL_DISK, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*unshare, command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message, newest = done.stdout.splitlines()
    assert "cannot write" in message
    assert "No space left" in message
    assert newest == "1 ['checkpoints', 'stage1-000001']"


def test_no_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(UserError, match="Permission denied"):
        RunFolder(tmp_path / "run").create(Recipe(), {})


def test_a_run_with_broken_files_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(dump_recipe(Recipe()))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json") as error:
        RunFolder(tmp_path).open()
    assert "\n" not in str(error.value)


def test_when_a_run_is_done_only_checkpoints_that_were_asked_for_stay(tmp_path: Path) -> None:
    folder, options = RunFolder(tmp_path), Checkpoints(keep=1, at=(5,))
    for step in (4, 5, 8):
        folder.checkpoints.save(2, progress(step), options, best=lambda place: (2, 4))
    assert (tmp_path / "checkpoints" / "best-stage2-000004").is_dir()
    folder.checkpoints.drop(options)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["stage2-000005"]


def test_what_a_kill_left_of_a_beginning_is_begun_anew_and_what_is_not_ours_is_refused(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """The recipe is written last: with it, it is a run; without, only our own first files may lie there."""
    path = tmp_path / "run"
    RunFolder(path).create(tiny_recipe, {}, {"<rare>": torch.ones(1, 4)})
    (path / "recipe.toml").unlink()
    (path / ".writing-1234-recipe.toml").touch()
    RunFolder(path).check_free()
    RunFolder(path).create(tiny_recipe, {})
    assert not list(path.rglob(".writing-*"))
    (path / "recipe.toml").unlink()
    (path / "notes.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        RunFolder(path).check_free()
    (path / "notes.txt").unlink()
    (path / "run.json").rename(path / "recipe.toml")
    with pytest.raises(UserError, match="is not empty"):  # Somebody's own recipe.
        RunFolder(path).check_free()
