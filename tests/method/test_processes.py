"""Two processes, launched as `accelerate launch` launches them, train what one process trains with twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from twostage.display import Display
from twostage.recipe import Checkpoints, Prior, Recipe, Sample, Select, Token
from twostage.recipe_file import dump_recipe
from twostage.run import train

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from twostage.display import Display
from twostage.recipe_file import load_recipe
from twostage.run import train
train(load_recipe(sys.argv[1]), Path(sys.argv[2]), display=Display())
"""


def launch(recipe: Recipe, folder: Path, processes: int) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    # What `accelerate launch` runs for several GPUs; for CPUs it would want MPI installed.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, str(folder / "program.py"), str(folder / "recipe.toml"), str(folder / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_gloo_processes_equal_one_with_twice_the_batch(
    tiny_recipe: Recipe, tmp_path: Path, accumulation: int
) -> None:
    def with_batch(size: int) -> Recipe:
        # A large epsilon keeps AdamW from blowing rounding errors up to the size of a step.
        changes = {
            "batch_size": size,
            "adam_epsilon": 1e-2,
            "gradient_accumulation_steps": accumulation,
            "lr_scheduler": "linear",
        }
        assert tiny_recipe.stage1
        assert tiny_recipe.stage2
        stages = {
            "stage1": tiny_recipe.stage1.model_copy(update=changes),
            "stage2": tiny_recipe.stage2.model_copy(update=changes),
        }
        return tiny_recipe.model_copy(update=stages)

    one = train(with_batch(4), tmp_path / "one", display=Display())
    two = launch(with_batch(2), tmp_path, processes=2)

    for file in ("unet/diffusion_pytorch_model.safetensors", "embedding/rare.safetensors"):
        ours, theirs = load_file(one / file), load_file(two / file)
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4)
    assert len((two / "metrics.jsonl").read_text().splitlines()) == 12
    start = load_file(Path(tiny_recipe.base) / "unet" / "diffusion_pytorch_model.safetensors")
    tuned = load_file(two / "unet" / "diffusion_pytorch_model.safetensors")
    assert max((tuned[name] - tensor).abs().max() for name, tensor in start.items()) > 1e-4  # Something was trained.


@pytest.mark.parametrize("source", ["images", "predictions", "photos"])
def test_two_gloo_processes_share_the_prior_and_equal_one(tiny_recipe: Recipe, tmp_path: Path, source: str) -> None:
    prior = Prior(preserve=True, source=source, num_class_images=5, num_inference_steps=2, states_per_path=2)
    assert tiny_recipe.stage2
    changes = {"adam_epsilon": 1e-2, "steps": 3, "train_text_encoder": True, "text_encoder_learning_rate": 1e-2}

    def with_batch(size: int) -> Recipe:
        stage2 = tiny_recipe.stage2.model_copy(update={"batch_size": size, **changes})
        return tiny_recipe.model_copy(
            update={"stage1": None, "token": Token(placeholder="sks"), "stage2": stage2, "prior": prior}
        )

    two = launch(with_batch(2), tmp_path, processes=2)
    one = train(with_batch(4), tmp_path / "one", display=Display())
    for file in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        ours, theirs = load_file(one / file), load_file(two / file)
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4)


def test_two_gloo_processes_keep_the_checkpoint_that_one_of_them_measured_best(
    tiny_recipe: Recipe, tmp_path: Path, photos: Path
) -> None:
    assert tiny_recipe.stage2
    recipe = tiny_recipe.model_copy(
        update={
            "stage1": None,
            "token": Token(placeholder="sks"),
            "data": tiny_recipe.data.model_copy(update={"held_out": (photos / "2.png",)}),
            "stage2": tiny_recipe.stage2.model_copy(update={"steps": 8, "learning_rate": 1e-2}),
            "sample": Sample(prompts=("a {}",), per_prompt=2, num_inference_steps=2),
            "checkpoints": Checkpoints(every=1, at=(1, 2, 3, 4, 5, 6, 7)),
            "select": Select(keep="best", stop_on_copying=1, encoders=("dino=pocket", "clip=pocket")),
        }
    )
    two = launch(recipe, tmp_path, processes=2)
    facts = json.loads((two / "run.json").read_text())["selection"]
    step = facts["chosen"]["step"]
    assert step < facts["last"]["step"] == facts["stopped"]["stage2"] < 8
    kept = load_file(two / "checkpoints" / f"stage2-{step:06d}" / "trained.safetensors")
    result = load_file(two / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(kept[f"unet.{name}"], tensor) for name, tensor in result.items())
