"""A step without a finite loss or gradient moves nothing; where they persist, the stage ends and says why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from twostage.errors import UserError
from twostage.families import load_base
from twostage.method.broken_steps import PATIENCE
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts, open_for_training
from twostage.method.examples import Examples, encode_photos
from twostage.method.loop import StageLoop
from twostage.recipe import Data, Stage2
from twostage.subject.captions import all_prompts
from twostage.subject.photos import find_photos

Breaks = Callable[[int], bool]


class Flawed:
    """Photos whose latents are NaN at some steps."""

    def __init__(self, examples: Examples, breaks: Breaks) -> None:
        self._examples, self._breaks = examples, breaks

    def batch(self, stage: int, step: int, rows: range, rows_per_step: int) -> Any:
        batch = self._examples.batch(stage, step, rows, rows_per_step)
        return dataclasses.replace(batch, latents=batch.latents * math.nan) if self._breaks(step) else batch


@pytest.fixture
def make_loop(tiny_base: Path, photos: Path) -> Any:
    """Stage 2 on the tiny base, of photos that break at the steps (counted from 0) that are told."""
    found, phrase, cpu = find_photos(photos), "red backpack", torch.device("cpu")

    def make(breaks: Breaks, accelerator: Accelerator | None = None, **options: Any) -> StageLoop:
        base = load_base(str(tiny_base))
        examples = encode_photos(base, found, Data(), phrase, 0, cpu)
        states = encode_prompts(base, all_prompts(found, Data(), phrase), str, cpu)
        settings = Stage2(**{"steps": 30, "learning_rate": 1e-3, "batch_size": 1, "lr_scheduler": "linear", **options})
        open_for_training(base, "unet", settings)
        learner = DenoiserLearner(base, EncodedText(states))
        return StageLoop(2, learner, Flawed(examples, breaks), settings, accelerator or Accelerator())

    return make


def weights(loop: StageLoop) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in loop.progress().trained.values()]


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_broken_step_is_skipped_and_the_next_goes_on_from_the_same_weights(make_loop: Any) -> None:
    loop = make_loop(lambda step: step == 1, steps=4)
    steps = loop.steps()
    first, before = next(steps), weights(loop)
    broken = next(steps)
    assert math.isnan(broken.loss) and broken.lr < first.lr and same(weights(loop), before)
    rest = list(steps)
    assert not same(weights(loop), before)
    assert [step.step for step in rest] == [3, 4] and all(math.isfinite(step.loss) for step in rest)
    assert (loop.broken.skipped, loop.broken.in_a_row) == (1, 0)


def test_a_stage_whose_steps_stay_broken_ends_with_step_and_cause_and_the_weights_before(make_loop: Any) -> None:
    loop = make_loop(lambda step: step >= 2)
    steps = loop.steps()
    next(steps), next(steps)
    before = weights(loop)
    with pytest.raises(UserError, match=rf"stage 2 broke at step {2 + PATIENCE}: .*loss is nan though all .* finite"):
        list(steps)
    assert same(weights(loop), before) and loop.whole


def test_what_is_resumed_within_broken_steps_ends_where_an_unbroken_run_does(make_loop: Any) -> None:
    interrupted, resumed = make_loop(lambda step: step >= 2), make_loop(lambda step: step >= 2)
    steps = interrupted.steps()
    for _ in range(10):
        next(steps)
    resumed.restore(interrupted.progress())
    with pytest.raises(UserError, match=rf"broke at step {2 + PATIENCE}:"):
        list(resumed.steps())
    assert resumed.broken.skipped == PATIENCE


def test_an_average_goes_on_as_it_was_after_steps_that_were_skipped(make_loop: Any) -> None:
    options = {"steps": 8, "ema_decay": 0.99}
    unbroken, interrupted, resumed = (make_loop(lambda step: step in (1, 2), **options) for _ in range(3))
    list(unbroken.steps())
    steps = interrupted.steps()
    for _ in range(4):
        next(steps)
    resumed.restore(interrupted.progress())
    list(resumed.steps())
    averages = [list(loop.progress().averaged.values()) for loop in (unbroken, resumed)]
    assert same(averages[0], averages[1])


def test_the_cause_names_a_broken_weight_or_a_broken_gradient(make_loop: Any) -> None:
    loop = make_loop(lambda step: False)
    with torch.no_grad():
        loop.trained["unet.conv_out.bias"].fill_(math.inf)
    with pytest.raises(UserError, match=r"unet\.conv_out\.bias has become infinite or NaN; lower stage2.learning_rate"):
        list(loop.steps())

    loop = make_loop(lambda step: False)
    loop.trained["unet.conv_out.bias"].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match=r"the gradient of unet\.conv_out\.bias is not finite though the loss"):
        list(loop.steps())


def test_an_overflow_in_half_precision_lowers_the_loss_scale_and_moves_nothing(make_loop: Any) -> None:
    """The scaler that float16 gets on a GPU, here on the CPU."""
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator()
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**127)
        loop = make_loop(lambda step: False, accelerator, steps=4)
        before, steps = weights(loop), loop.steps()
        assert not math.isfinite(next(steps).grad_norm)
        assert same(weights(loop), before)
        assert accelerator.scaler.get_scale() == 2.0**126
        accelerator.scaler.update(2.0**10)
        assert math.isfinite(next(steps).grad_norm)
        assert not same(weights(loop), before)
        assert (loop.step, loop.broken.skipped) == (2, 1)
    finally:
        AcceleratorState._reset_state()
