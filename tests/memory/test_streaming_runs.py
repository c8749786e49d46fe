"""Whole runs with streamed blocks: the same results, whatever comes in between, and as little memory as promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import ImageChops
from PIL.Image import open as open_picture
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.watching import Watcher, assert_same_bits, ctrl_c, metrics, without
from twostage.display import Display
from twostage.memory.ladder import climb
from twostage.planning.rehearsal import Rehearsed, rehearse
from twostage.recipe import Adapter, Memory, Prior, Recipe, Stage1, Stage2
from twostage.recipe_file import load_recipe
from twostage.run import generate, train

GIB = 1 << 30
STAGE1 = Stage1(steps=2, learning_rate=5e-3, batch_size=1)
STAGE2 = Stage2(steps=4, learning_rate=1e-3, batch_size=1, max_grad_norm=0)


def streaming(recipe: Recipe, share: float, stage2: dict[str, Any] | None = None, **memory: Any) -> Recipe:
    memory = {"step_in_backward": True, "weights": "bfloat16", "optimizer": "adafactor", "streamed": share, **memory}
    return without(recipe, stage1=STAGE1, stage2=STAGE2.model_copy(update=stage2 or {}), memory=Memory(**memory))


def same_samples(one: Path, other: Path) -> bool:
    pictures = sorted(path.name for path in (one / "samples").glob("*.png"))
    shown = [(open_picture(one / "samples" / name), open_picture(other / "samples" / name)) for name in pictures]
    return bool(shown) and all(ImageChops.difference(*pair).getbbox() is None for pair in shown)


def test_a_run_with_prior_is_the_resident_one_even_if_it_is_stopped_and_resumed(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    prior = Prior(preserve=True, num_class_images=2, num_inference_steps=2, states_per_path=1)
    # In bfloat16, weights are not where the file's were mapped to; products of such may be rounded otherwise on a CPU.
    recipe = without(streaming(tiny_recipe, 1.0), prior=prior, mixed_precision="bf16")
    memory = recipe.memory.model_copy(update={"streamed": 0.0})
    resident = train(without(recipe, memory=memory), tmp_path / "resident", display=Display())
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=Watcher(("stage 2", 3), ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True, display=Display())
    assert_same_bits(run, resident)
    assert metrics(run) == metrics(resident)
    assert same_samples(run, resident)
    assert StableDiffusionPipeline.from_pretrained(
        tiny_recipe.base, unet=UNet2DConditionModel.from_pretrained(run / "unet"), safety_checker=None
    )


@pytest.mark.parametrize("frozen", ["full", "4bit"])
def test_an_adapter_run_is_the_resident_one(tiny_recipe: Recipe, tmp_path: Path, frozen: Any) -> None:
    runs = []
    for share in (0.0, 1.0):
        options = {"weights": "float32", "optimizer": "adamw", "step_in_backward": False, "frozen_base": frozen}
        recipe = streaming(tiny_recipe, share, {"train": "adapter", "gradient_checkpointing": True}, **options)
        recipe = without(recipe, adapter=Adapter(rank=2), mixed_precision="bf16")
        runs.append(train(recipe, tmp_path / str(share), display=Display()))
    one, other = (load_file(run / "adapter" / "unet" / "adapter_model.safetensors") for run in runs)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert metrics(runs[0]) == metrics(runs[1])
    assert same_samples(*runs)
    assert generate(runs[1], "a {}", count=1, num_inference_steps=1)


def _sd15(share: float, **more: Any) -> Rehearsed:
    """Stage 2 of batches of one at 512 pixels, simulated."""
    options = {"sample.per_prompt": 0, "prior.preserve": False, "mixed_precision": "bf16", "memory.streamed": share}
    options |= {"stage2.batch_size": 1, "stage2.gradient_checkpointing": True}
    return rehearse(load_recipe("dreambooth", base="sd15", overrides=options | more))


WHOLE = {
    "memory.weights": "bfloat16",
    "memory.optimizer": "adafactor",
    "memory.step_in_backward": True,
    "stage2.max_grad_norm": 0.0,
}


def test_stable_diffusion_trains_whole_in_half_a_gibibyte() -> None:
    rehearsed = _sd15(1.0, **WHOLE)
    (stage,) = (phase for phase in rehearsed.phases if phase.name == "stage 2")
    assert stage.allocated < 0.5 * GIB
    assert stage.host == pytest.approx(832e6 * 2, rel=0.02)  # The blocks' weights, in bfloat16.


def test_a_lora_of_stable_diffusion_takes_less_still() -> None:
    rehearsed = _sd15(1.0, **{"stage2.train": "adapter", "adapter.rank": 16})
    (stage,) = (phase for phase in rehearsed.phases if phase.name == "stage 2")
    assert stage.allocated < 0.5 * GIB


@pytest.mark.parametrize(
    ("memory", "stage2", "said"),
    [
        ({"streamed": 0.5}, {}, r"memory.streamed = 0.5 moves.*add step_in_backward"),
        ({"streamed": 1, "step_in_backward": True}, {"ema_decay": 0.9}, "set ema_decay = 0"),
        ({"streamed": 1.5}, {}, "less than or equal to 1"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_line(
    memory: dict[str, Any], stage2: dict[str, Any], said: str
) -> None:
    stage2 = {"steps": 1, "learning_rate": 1e-3, "max_grad_norm": 0, **stage2}
    with pytest.raises(ValidationError, match=said) as caught:
        Recipe.model_validate({"memory": memory, "stage2": stage2})
    assert "\n" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("name", ["textual-inversion", "two-stage", "two-stage-lora"])
def test_the_ladder_streams_half_and_then_all(name: str) -> None:
    shares = [standing.recipe.memory.streamed for standing in climb(load_recipe(name, base="sd15"))]
    assert sorted(set(shares)) == [0, 0.5, 1]
    assert shares == sorted(shares)
