"""A checkpoint that is there is sound: neither numbers that broke nor bytes that changed are gone on with."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.watching import Watcher, assert_same_bits, ctrl_c
from twostage import checkpoints
from twostage.checkpoints import CheckpointFolder
from twostage.display import Display
from twostage.errors import UserError
from twostage.method.loop import Progress
from twostage.recipe import Checkpoints, Recipe
from twostage.run import train


def progress(step: int) -> Progress:
    tensor = torch.full((4,), float(step))
    return Progress(step, {"rows": tensor}, {"0.exp_avg": tensor}, {"rate": 0.1}, {"rows": tensor})


@pytest.fixture
def two(tmp_path: Path) -> CheckpointFolder:
    """Checkpoints after steps 4 and 8 of stage 2."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for step in (4, 8):
        folder.save(2, progress(step), Checkpoints(keep=2))
    return folder


def newest_step(folder: CheckpointFolder) -> int:
    found = folder.newest()
    assert found
    return found[1].step


@pytest.mark.parametrize("what", ["trained", "optimizer", "averaged"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_broken_numbers_are_not_saved_and_what_was_saved_before_stays(
    two: CheckpointFolder, what: str, number: float
) -> None:
    (name,) = getattr(progress(12), what)
    broken = replace(progress(12), **{what: {name: torch.tensor([1.0, number])}})
    with pytest.raises(UserError, match=rf"stage 2 broke before step 12: {name} has become infinite or NaN"):
        two.save(2, broken, Checkpoints(keep=1))
    assert [path.name for path in two.all()] == ["stage2-000004", "stage2-000008"]
    assert newest_step(two) == 8


@pytest.mark.parametrize("what", ["trained", "optimizer", "averaged"])
def test_one_changed_bit_of_a_checkpoint_is_seen_and_the_one_before_gone_on_with(
    two: CheckpointFolder, what: str
) -> None:
    file = two.path / "stage2-000008" / f"{what}.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert newest_step(two) == 4
    assert (two.weights_at(2, 8) is None) == (what == "averaged")  # What drew its samples.


def test_a_changed_number_of_a_checkpoint_is_seen(two: CheckpointFolder) -> None:
    file = two.path / "stage2-000008" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"numbers": {"rate": 0.2}}))
    assert newest_step(two) == 4


def test_a_checkpoint_whose_average_is_gone_is_not_gone_on_with(two: CheckpointFolder) -> None:
    (two.path / "stage2-000008" / "averaged.safetensors").unlink()
    assert newest_step(two) == 4


def test_a_checkpoint_from_before_sums_were_kept_is_read(two: CheckpointFolder) -> None:
    file = two.path / "stage2-000008" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in state.items() if name not in ("sums", "sha256")}))
    assert newest_step(two) == 8


def test_damaged_checkpoints_do_not_outlive_those_that_come_in_their_place(two: CheckpointFolder) -> None:
    """Else what a run has just saved would be the oldest of all, and go."""
    for path in two.all():
        (path / "state.json").write_text("{")
    two.save(1, progress(2), Checkpoints(keep=9))
    found = two.newest()
    assert found
    two.forget_after((found[0], found[1].step))
    two.save(1, progress(4), Checkpoints(keep=2))
    assert [path.name for path in two.all()] == ["stage1-000002", "stage1-000004"]


def test_a_checkpoint_that_the_system_cannot_read_just_now_is_not_taken_for_damaged(
    two: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoints, "load_file", fails)
    with pytest.raises(UserError, match="cannot read the checkpoint .*stage2-000008: Input/output error"):
        two.newest()


def test_a_run_says_which_checkpoint_it_passes_over_and_ends_as_if_nothing_had_been(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    unbroken = train(tiny_recipe, tmp_path / "unbroken", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, tmp_path / "run", display=Watcher(("stage 2", 3), ctrl_c))
    file = tmp_path / "run" / "checkpoints" / "stage2-000003" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    watcher = Watcher()
    run = train(tiny_recipe, tmp_path / "run", resume=True, display=watcher)
    assert "note: the checkpoint stage2-000003 is damaged, and passed over" in watcher.said
    assert_same_bits(run, unbroken)
