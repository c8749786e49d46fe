"""The one loop: accumulation, schedule, clipping, checkpointing, resuming, and refusing to break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from twostage.families import load_base
from twostage.method.denoiser import DenoiserLearner, EncodedText, encode_prompts, open_for_training
from twostage.method.examples import encode_photos
from twostage.method.loop import StageLoop, Step
from twostage.recipe import Data, Stage2
from twostage.subject.captions import all_prompts
from twostage.subject.photos import find_photos


@pytest.fixture
def make_loop(tiny_base: Path, photos: Path) -> Any:
    """Stage 2 on the tiny base."""
    found, phrase, cpu = find_photos(photos), "red backpack", torch.device("cpu")

    def make(accelerator: Accelerator | None = None, **options: Any) -> StageLoop:
        base = load_base(str(tiny_base))
        examples = encode_photos(base, found, Data(), phrase, 0, cpu)
        states = encode_prompts(base, all_prompts(found, Data(), phrase), str, cpu)
        settings = Stage2(**{"steps": 4, "learning_rate": 1e-3, "batch_size": 2, **options})
        open_for_training(base, "unet", settings)
        learner = DenoiserLearner(base, EncodedText(states))
        return StageLoop(2, learner, examples, settings, accelerator or Accelerator())

    return make


def weights(loop: StageLoop) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in loop.progress().trained.items()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=1e-4)


def test_accumulated_batches_are_one_large_batch(make_loop: Any) -> None:
    # SGD-like epsilon: AdamW's division would blow rounding up to the size of a step.
    large, accumulated = (
        make_loop(batch_size=4, adam_epsilon=1.0),
        make_loop(batch_size=2, gradient_accumulation_steps=2, adam_epsilon=1.0),
    )
    steps = list(zip(large.steps(), accumulated.steps(), strict=True))
    assert_close(weights(large), weights(accumulated))
    assert all(a.loss == pytest.approx(b.loss, rel=1e-4) for a, b in steps)


def test_gradient_checkpointing_changes_memory_not_results(make_loop: Any) -> None:
    plain, checkpointed = make_loop(), make_loop(gradient_checkpointing=True)
    list(plain.steps()), list(checkpointed.steps())
    assert_close(weights(plain), weights(checkpointed))


@pytest.mark.parametrize(
    "name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_rate_is_diffusers_schedule_counted_in_optimizer_steps(
    make_loop: Any, name: str, accumulation: int
) -> None:
    warmup = 0 if name == "constant" else 2
    options = {"steps": 5, "lr_warmup_steps": warmup, "lr_num_cycles": 2, "lr_power": 2.0}
    loop = make_loop(lr_scheduler=name, batch_size=1, gradient_accumulation_steps=accumulation, **options)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    judge = get_scheduler(name, optimizer, None, warmup, 5, num_cycles=2, power=2.0)
    for step in loop.steps():
        assert step.lr == pytest.approx(judge.get_last_lr()[0])
        optimizer.step()
        judge.step()


def test_piecewise_rules_are_followed(make_loop: Any) -> None:
    loop = make_loop(lr_scheduler="piecewise_constant", lr_step_rules="1:2,0.1")
    assert [step.lr for step in loop.steps()] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_one_step_is_torchs_adamw_on_the_clipped_gradient(make_loop: Any) -> None:
    """Parity with AdamW written out: decoupled decay, bias-corrected moments."""
    loop = make_loop(weight_decay=0.1, max_grad_norm=0.01, steps=1)
    before = weights(loop)
    parameters = dict(loop._learner.named_parameters())
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.clone()}))
    (step,) = loop.steps()
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert step.grad_norm == pytest.approx(norm, rel=1e-4)
    for name, gradient in gradients.items():
        clipped = gradient * 0.01 / (norm + 1e-6)
        update = clipped / (clipped.abs() + 1e-8)
        expected = before[name] * (1 - 1e-3 * 0.1) - 1e-3 * update
        torch.testing.assert_close(parameters[name].detach(), expected, atol=1e-5, rtol=1e-3)


def test_no_clipping_leaves_the_gradient_as_it_is(make_loop: Any) -> None:
    free, wide = make_loop(max_grad_norm=0), make_loop(max_grad_norm=1e9)
    list(free.steps()), list(wide.steps())
    one, other = weights(free), weights(wide)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("scheduler", ["constant_with_warmup", "cosine"])
def test_a_restored_loop_goes_on_bit_for_bit(make_loop: Any, scheduler: str) -> None:
    options = {"lr_scheduler": scheduler, "lr_warmup_steps": 1}
    unbroken = make_loop(**options)
    expected = list(unbroken.steps())
    broken = make_loop(**options)
    stepping = broken.steps()
    next(stepping), next(stepping)
    resumed = make_loop(**options)
    resumed.restore(broken.progress())

    def facts(steps: list[Step]) -> list[tuple[Any, ...]]:
        return [(step.step, step.loss, step.lr, step.grad_norm) for step in steps]

    assert facts(list(resumed.steps())) == facts(expected[2:])
    one, other = weights(unbroken), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_trains_is_float32_in_half_precision_too(make_loop: Any) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    try:
        loop = make_loop(Accelerator(mixed_precision="bf16"), steps=2)
        losses = [step.loss for step in loop.steps()]
    finally:
        AcceleratorState._reset_state()
    assert {tensor.dtype for tensor in weights(loop).values()} == {torch.float32}
    assert losses == pytest.approx([step.loss for step in make_loop(steps=2).steps()], rel=0.05)


# The average of the weights


def test_the_average_is_diffusers_own_and_leaves_training_alone(make_loop: Any) -> None:
    plain, averaging = make_loop(), make_loop(ema_decay=0.6)
    trained = dict(averaging._learner.named_parameters())
    judge = EMAModel(trained.values(), decay=0.6)
    for _ in averaging.steps():
        judge.step(trained.values())
    list(plain.steps())
    one, other = weights(plain), weights(averaging)
    assert all(torch.equal(one[name], other[name]) for name in one)

    with averaging.averaged():
        within = weights(averaging)
    assert all(torch.equal(tensor, within[name]) for name, tensor in zip(trained, judge.shadow_params, strict=True))
    assert any(not torch.equal(within[name], one[name]) for name in one)
    after = weights(averaging)
    assert all(torch.equal(after[name], one[name]) for name in one)

    averaging.settle()
    settled = weights(averaging)
    assert all(torch.equal(settled[name], within[name]) for name in within)


def test_an_average_by_hand(make_loop: Any) -> None:
    """At step k the decay is the least of the option and k / (9 + k); at the first there is nothing to keep."""
    loop = make_loop(ema_decay=0.21, steps=4)
    average: dict[str, torch.Tensor] = {}
    for step in loop.steps():
        decay = 0.0 if step.step == 1 else min(0.21, step.step / (9 + step.step))
        now = weights(loop)
        average = {name: decay * average.get(name, now[name]) + (1 - decay) * now[name] for name in now}
    with loop.averaged():
        assert_close(weights(loop), average, atol=1e-6)


def test_a_restored_average_goes_on_bit_for_bit(make_loop: Any) -> None:
    unbroken = make_loop(ema_decay=0.9)
    list(unbroken.steps())
    broken = make_loop(ema_decay=0.9)
    stepping = broken.steps()
    next(stepping), next(stepping)
    resumed = make_loop(ema_decay=0.9)
    resumed.restore(broken.progress())
    list(resumed.steps())
    for loop in (unbroken, resumed):
        loop.settle()
    one, other = weights(unbroken), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
