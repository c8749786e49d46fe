"""Who asks a run to stop is answered soon, whatever it is doing, and nothing that was done is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.optim import AdamW

from tests.watching import Watcher, assert_same_bits, metrics, without
from twostage import class_prior, stages
from twostage.display import Display
from twostage.method.examples import Examples
from twostage.method.interrupt import stop_on_signals
from twostage.recipe import Recipe
from twostage.run import train
from twostage.run_folder import RunFolder


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Once:
    """A function that stops the process the n-th time it is called, and notes whether it went on all the same."""

    def __init__(self, function: Callable[..., Any], number: int = 1) -> None:
        self._function, self._left, self.went_on = function, number, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if not self._left:
            sigterm()
            self.went_on = True
        return self._function(*args, **kwargs)


def stopped(recipe: Recipe, folder: Path) -> Watcher:
    watcher = Watcher()
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(recipe, folder, display=watcher)
    assert sum("--resume" in said for said in watcher.said) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    return watcher


@pytest.mark.parametrize(("drawing", "reached"), [(1, (1, 4)), (2, (1, 6)), (4, (2, 6))], ids=str)
def test_a_stop_does_not_wait_for_samples_and_saves_what_is_not_saved_yet(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawing: int, reached: tuple[int, int]
) -> None:
    """The run's last step has no checkpoint of its own until someone leaves there."""
    unbroken = train(tiny_recipe, tmp_path / "unbroken", display=Display())
    draw = Once(stages.draw, drawing)
    monkeypatch.setattr(stages, "draw", draw)
    stopped(tiny_recipe, tmp_path / "run")
    assert not draw.went_on
    assert RunFolder(tmp_path / "run").checkpoints.newest_place() == reached
    run = train(tiny_recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_bits(run, unbroken)
    names = [sorted(path.name for path in (folder / "samples").iterdir()) for folder in (run, unbroken)]
    assert names[0] == names[1]


def test_a_stop_does_not_wait_for_all_batches_of_a_step(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_recipe.stage2
    accumulated = tiny_recipe.stage2.model_copy(update={"gradient_accumulation_steps": 3})
    recipe = without(
        tiny_recipe, stage1=None, stage2=accumulated, token=tiny_recipe.token.model_copy(update={"placeholder": "red"})
    )
    unbroken = train(recipe, tmp_path / "unbroken", display=Display())
    calls: list[int] = []
    batch = Examples.batch

    def counted(self: Examples, stage: int, step: int, *rest: Any) -> Any:
        calls.append(step)
        if len(calls) == 8:  # The second of the third step's.
            sigterm()
        return batch(self, stage, step, *rest)

    monkeypatch.setattr(Examples, "batch", counted)
    stopped(recipe, tmp_path / "run")
    assert len(calls) == 8
    assert RunFolder(tmp_path / "run").checkpoints.newest_place() == (2, 2)
    monkeypatch.undo()
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert metrics(run) == metrics(unbroken)


def test_a_stop_while_the_class_is_prepared_comes_at_once_and_says_how_to_go_on(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = tiny_recipe.prior.model_copy(update={"preserve": True, "num_class_images": 2, "num_inference_steps": 2})
    recipe = without(tiny_recipe, prior=prior)
    prepare = Once(class_prior.prepare_prior)
    monkeypatch.setattr(class_prior, "prepare_prior", prepare)
    said = stopped(recipe, tmp_path / "run").said
    assert not prepare.went_on and "before the first checkpoint" in said[-1]
    assert train(recipe, tmp_path / "run", resume=True, display=Display())


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As of a process that `nohup` or a comparison has begun."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals(waits=False) as request:
            signal.raise_signal(signal.SIGINT)
            assert not request.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_signal_saves_no_step_that_is_half_done(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run wherever it is: here weights have moved, and the step does not count yet."""
    unbroken = train(tiny_recipe, tmp_path / "unbroken", display=Display())
    step, calls = AdamW.step, []

    def twice(self: AdamW, *args: Any, **kwargs: Any) -> Any:
        done = step(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(AdamW, "step", twice)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, tmp_path / "run", display=Display())
    monkeypatch.undo()
    assert RunFolder(tmp_path / "run").checkpoints.newest_place() is None
    run = train(tiny_recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_bits(run, unbroken)


def test_a_stop_while_the_result_is_written_waits_for_it(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step has no checkpoint: to break off would throw away all since the one before."""
    save = Once(RunFolder.save_model)
    monkeypatch.setattr(RunFolder, "save_model", lambda self, *args: save(self, *args))
    run = train(tiny_recipe, tmp_path / "run", display=Display())
    assert save.went_on and RunFolder(run).open() and (run / "unet").is_dir()
