"""The step within the backward pass is the plain step, with no gradients left over."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from twostage.families import load_base
from twostage.memory.optimizers import Updates
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts, keep_weights, open_for_training
from twostage.method.examples import encode_photos
from twostage.method.loop import StageLoop
from twostage.recipe import Data, Memory, Stage2
from twostage.subject.captions import all_prompts
from twostage.subject.photos import find_photos


@pytest.fixture
def make_loop(tiny_base: Path, photos: Path) -> Any:
    """Stage 2 on the tiny base."""
    found, phrase, cpu = find_photos(photos), "red backpack", torch.device("cpu")

    def make(memory: Memory, **options: Any) -> StageLoop:
        base = load_base(str(tiny_base))
        examples = encode_photos(base, found, Data(), phrase, 0, cpu)
        states = encode_prompts(base, all_prompts(found, Data(), phrase), str, cpu)
        settings = Stage2(**{"steps": 3, "learning_rate": 1e-3, "batch_size": 2, "max_grad_norm": 0, **options})
        keep_weights(base.denoiser, memory)
        open_for_training(base, "unet", settings)
        learner = DenoiserLearner(base, EncodedText(states))
        updates = Updates(memory, {}, (0, 2))
        return StageLoop(2, learner, examples, settings, Accelerator(), updates=updates)

    return make


def weights(loop: StageLoop) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loop.progress().trained.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "memory",
    [
        Memory(),
        Memory(optimizer="adamw8bit"),
        Memory(optimizer="adamw4bit", weights="bfloat16"),
        Memory(optimizer="adafactor", weights="bfloat16"),
        Memory(weights="bfloat16"),
    ],
    ids=lambda memory: f"{memory.optimizer}-{memory.weights}",
)
def test_the_step_in_the_backward_pass_is_the_plain_step_bit_for_bit(
    make_loop: Any, memory: Memory, checkpointing: bool
) -> None:
    options = {"gradient_checkpointing": checkpointing, "lr_scheduler": "cosine"}
    plain = make_loop(memory, **options)
    fused = make_loop(memory.model_copy(update={"step_in_backward": True}), **options)
    for one, other in zip(plain.steps(), fused.steps(), strict=True):
        assert (one.loss, one.lr) == (other.loss, other.lr)
        # bfloat16's norms are of 8 bits.
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5 if memory.weights == "float32" else 0.02)
    assert_same(weights(plain), weights(fused))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor"])
def test_a_loop_whose_state_waits_on_the_host_is_the_same_and_so_is_its_checkpoint(
    make_loop: Any, optimizer: Any, fused: bool
) -> None:
    memory = Memory(optimizer=optimizer, weights="bfloat16", step_in_backward=fused)
    host = memory.model_copy(update={"optimizer_state": "host"})
    card, broken, resumed = make_loop(memory), make_loop(host), make_loop(host)
    expected = list(card.steps())
    next(broken.steps())
    resumed.restore(broken.progress())
    assert [step.loss for step in resumed.steps()] == [step.loss for step in expected[1:]]
    one, other = card.progress(), resumed.progress()
    assert_same(one.trained, other.trained)
    assert one.optimizer.keys() == other.optimizer.keys()
    assert_same(one.optimizer, other.optimizer)
    assert one.numbers == other.numbers


def test_no_gradient_outlives_its_step_and_never_are_two_there(make_loop: Any) -> None:
    loop = make_loop(Memory(step_in_backward=True))
    seen: list[int] = []
    for parameter in loop.trained.values():
        parameter.register_hook(lambda _: seen.append(sum(p.grad is not None for p in loop.trained.values())))
    list(loop.steps())
    assert len(seen) == 3 * len(loop.trained)
    assert max(seen) <= 1


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw4bit", "adafactor"])
@pytest.mark.parametrize("keeping", ["float32", "bfloat16"])
def test_a_restored_loop_goes_on_bit_for_bit(make_loop: Any, optimizer: Any, keeping: Any) -> None:
    memory = Memory(optimizer=optimizer, weights=keeping, step_in_backward=True)
    unbroken = make_loop(memory)
    expected = list(unbroken.steps())
    broken = make_loop(memory)
    next(broken.steps())
    resumed = make_loop(memory)
    resumed.restore(broken.progress())
    assert [step.loss for step in resumed.steps()] == [step.loss for step in expected[1:]]
    assert_same(weights(unbroken), weights(resumed))
    one, other = unbroken.progress().optimizer, resumed.progress().optimizer
    assert {name: tensor.dtype for name, tensor in one.items()} == {
        name: tensor.dtype for name, tensor in other.items()
    }
    assert_same(one, other)


def test_watchers_are_given_the_norms_of_gradients_that_are_gone(make_loop: Any) -> None:
    loop = make_loop(Memory(step_in_backward=True))
    seen: list[Any] = []
    next(loop.steps(lambda norms: seen.append(dict(norms or {}))))  # They are gone after the step.
    (norms,) = seen
    assert norms.keys() == loop.trained.keys()
    assert all(float(norm) > 0 for norm in norms.values())


def test_a_broken_gradient_moves_nothing_that_the_optimizer_does_not_remember(make_loop: Any) -> None:
    loop = make_loop(Memory(step_in_backward=True))
    bias = loop.trained["unet.conv_out.bias"]
    bias.register_hook(
        lambda gradient: torch.full_like(gradient, float("nan"))
    )  # Before the step in the backward pass.
    before = weights(loop)["unet.conv_out.bias"]
    step = next(loop.steps())
    assert not math.isfinite(step.grad_norm) and (loop.broken.skipped, loop.step) == (1, 1)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(loop).values())
    torch.testing.assert_close(bias.detach(), before, atol=1e-4, rtol=0)  # Weight decay shrinks it.
