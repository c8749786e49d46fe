"""Whole runs that save memory: they resume, save, sample, export, and refuse what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.watching import Watcher, assert_same_bits, ctrl_c, metrics, results, without
from twostage.display import Display
from twostage.export import Options
from twostage.exporting import export
from twostage.recipe import Memory, Prior, Recipe, Sample, Stage1, Stage2
from twostage.run import generate, train

STAGE2 = Stage2(steps=4, learning_rate=1e-3, batch_size=2)
OPTIMIZERS: list[Any] = ["adamw", "adamw8bit", "adamw4bit", "adafactor"]


def saving(recipe: Recipe, stage2: dict[str, Any] | None = None, **memory: Any) -> Recipe:
    free = {"max_grad_norm": 0.0} if memory.get("step_in_backward") else {}
    return without(recipe, memory=Memory(**memory), stage2=STAGE2.model_copy(update=free | (stage2 or {})))


ON_THE_HOST = {"optimizer_state": "host", "activations": "host", "streamed": 1.0}


@pytest.mark.parametrize(
    ("optimizer", "fused", "more"),
    [
        ("adamw", False, {}),
        ("adamw8bit", False, {}),
        ("adamw4bit", True, {}),
        ("adafactor", True, {}),
        ("adamw", True, ON_THE_HOST),
    ],
)
def test_a_run_with_it_resumes_bit_for_bit(
    tiny_recipe: Recipe, tmp_path: Path, optimizer: Any, fused: bool, more: dict[str, Any]
) -> None:
    recipe = saving(tiny_recipe, optimizer=optimizer, weights="bfloat16", step_in_backward=fused, **more)
    stage1 = Stage1(steps=1, learning_rate=1e-3, batch_size=1)
    recipe = without(recipe, stage1=stage1, sample=Sample(prompts=(), per_prompt=0))
    unbroken = train(recipe, tmp_path / "unbroken", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", 2), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_bits(run, unbroken)
    assert metrics(run) == metrics(unbroken)


def test_a_run_without_a_gpu_is_told_that_the_host_saves_nothing(tiny_recipe: Recipe, tmp_path: Path) -> None:
    display = Watcher(("stage 2", 1), ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train(without(saving(tiny_recipe, activations="host"), stage1=None), tmp_path / "run", display=display)
    assert any(line.startswith("note: memory.activations is for a GPU") for line in display.said)


def test_whole_runs_are_the_same_whenever_the_optimizer_steps(tiny_recipe: Recipe, tmp_path: Path) -> None:
    plain = saving(tiny_recipe, {"max_grad_norm": 0.0}, optimizer="adamw8bit")
    fused = saving(tiny_recipe, optimizer="adamw8bit", step_in_backward=True)
    assert_same_bits(
        train(plain, tmp_path / "plain", display=Display()), train(fused, tmp_path / "fused", display=Display())
    )


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_bfloat16_run_is_saved_so_and_reads_everywhere(tiny_recipe: Recipe, tmp_path: Path, precision: Any) -> None:
    recipe = without(saving(tiny_recipe, weights="bfloat16"), mixed_precision=precision)
    run = train(recipe, tmp_path / "run", display=Display())
    saved = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert results(run)["<rare>"].dtype == torch.float32
    assert (run / "samples" / "stage2-000004.png").is_file()
    assert generate(run, "a {} on a beach", count=1, num_inference_steps=2)
    assert generate(run, "a {} on a beach", count=1, num_inference_steps=2, strength=0.5)
    for form, options in {"diffusers": None, "a1111": None, "delta": None, "lora": Options(rank=8)}.items():
        export(run, form, tmp_path / form, options=options, display=Display())
    full = train(saving(tiny_recipe), tmp_path / "full", display=Display())
    losses = [[line["loss"] for line in metrics(folder)] for folder in (run, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_text_encoder_learns_beside_a_bfloat16_unet_and_stays_float32(tiny_recipe: Recipe, tmp_path: Path) -> None:
    stage2 = {"train_text_encoder": True, "text_encoder_learning_rate": 1e-4}
    recipe = saving(tiny_recipe, stage2, weights="bfloat16", optimizer="adamw8bit", step_in_backward=True)
    unbroken = train(recipe, tmp_path / "unbroken", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", 3), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_bits(run, unbroken)
    text = load_file(run / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in text.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:])
def test_an_adapter_an_average_and_a_prior_go_with_each_optimizer(
    tiny_recipe: Recipe, tmp_path: Path, optimizer: Any
) -> None:
    stage2 = {"train": "adapter", "ema_decay": 0.5}
    recipe = saving(tiny_recipe, stage2, optimizer=optimizer, step_in_backward=True)
    prior = Prior(preserve=True, num_class_images=2, num_inference_steps=1, states_per_path=1)
    run = train(without(recipe, prior=prior), tmp_path / "run", display=Display())
    assert generate(run, "a {}", count=1, num_inference_steps=1)


@pytest.mark.parametrize(
    ("memory", "stage2", "said"),
    [
        ({"step_in_backward": True}, {"max_grad_norm": 1.0}, "set max_grad_norm = 0"),
        ({"step_in_backward": True}, {"max_grad_norm": 0, "gradient_accumulation_steps": 2}, "raise batch_size"),
        ({"weights": "bfloat16"}, {"train": "adapter"}, "mixed_precision = 'bf16'"),
        ({"weights": "bfloat16"}, {"ema_decay": 0.9}, "stand still"),
        ({"optimizer": "adafactor"}, {"adam_beta1": 0.5}, "stage2.adam_beta1 = 0.5 would do nothing"),
        ({"optimizer": "adafactor", "clip_updates": True}, {}, "adafactor' clips anyway"),
        ({"optimizer": "adamw8bit"}, None, "there is no [stage2]"),
        ({"optimizer_state": "host"}, None, "memory.optimizer_state = 'host' would do nothing"),
        ({"step_in_backward": True}, None, "memory.step_in_backward = true would do nothing"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    memory: dict[str, Any], stage2: dict[str, Any] | None, said: str
) -> None:
    stages = {"stage2": {"steps": 1, "learning_rate": 1e-3, **stage2}} if stage2 is not None else {}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"memory": memory, **stages})
    (error,) = caught.value.errors()
    assert said in error["msg"]
    assert "\n" not in error["msg"]


@pytest.mark.parametrize("memory", [{"weights": "bfloat16"}, {"step_in_backward": True}])
def test_loss_scaling_is_refused(memory: dict[str, Any]) -> None:
    stage2 = {"steps": 1, "learning_rate": 1e-3, "max_grad_norm": 0}
    with pytest.raises(ValidationError, match="fp16"):
        Recipe.model_validate({"memory": memory, "stage2": stage2, "mixed_precision": "fp16"})
