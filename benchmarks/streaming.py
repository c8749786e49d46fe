"""What it costs to stream a U-Net's blocks: seconds per step, resident, half streamed and all streamed.

    python -m benchmarks.streaming [--steps 10] [--bases sd15 sdxl] [--json FILE]

On a GPU: Stable Diffusion 1.5 at 512 and SDXL at 1024 pixels with random weights, the whole U-Net trained in bfloat16
by Adafactor with its step in the backward pass, batches of one, gradient checkpointing throughout. Seconds are the
median of the steps after the first two; bytes are those that torch has allocated at the peak of these, beside what
`twostage plan` predicts. Without a GPU it runs the pocket model, and what it prints is no figure of a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.with_values import RandomBase, WithValues
from twostage.gauge import GIB
from twostage.machine import describe, usual_device
from twostage.method.loop import StageLoop
from twostage.planning.rehearsal import rehearse
from twostage.recipe import Recipe
from twostage.recipe_file import load_recipe
from twostage.session import DrawSamples
from twostage.stages import learn_denoiser

WARM_UP = 2
SHARES = {"resident": 0.0, "half streamed": 0.5, "all streamed": 1.0}
OPTIONS: dict[str, Any] = {
    "prior.preserve": False,
    "sample.per_prompt": 0,
    "mixed_precision": "bf16",
    "memory.weights": "bfloat16",
    "memory.optimizer": "adafactor",
    "memory.step_in_backward": True,
    "stage2.max_grad_norm": 0.0,
    "stage2.batch_size": 1,
    "stage2.gradient_checkpointing": True,
}


class Timed(WithValues):
    """Times the steps of its stage."""

    def __init__(self, recipe: Recipe, base: RandomBase) -> None:
        super().__init__(recipe, base)
        self.seconds: list[float] = []
        self.peak = 0

    def run_stage(self, loop: StageLoop, steps: int, nets: Mapping[str, nn.Module], draw_samples: DrawSamples) -> None:
        """All its steps."""
        for step in loop.steps():
            self.seconds.append(step.seconds)
            if step.step == WARM_UP and self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        loop.settle()


def measure(name: str, share: float, steps: int) -> dict[str, Any]:
    """One base, so much of it streamed."""
    options = {**OPTIONS, "stage2.steps": steps, "memory.streamed": share}
    recipe = load_recipe("dreambooth", base=name, overrides=options)
    assert recipe.stage2
    predicted = next(phase for phase in rehearse(recipe).phases if phase.name == "stage 2")
    base = RandomBase.of(name, torch.bfloat16)
    gc.collect()  # accelerate ties the last run's learner into a cycle.
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    session = Timed(recipe, base)
    learn_denoiser(session, recipe.stage2, base, session.subject, None)
    return {
        "seconds": statistics.median(session.seconds[WARM_UP:]),
        "allocated": session.peak,
        "predicted": predicted.allocated,
        "host": predicted.host,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="a run; the first two are not counted")
    parser.add_argument("--bases", nargs="+", help="sd15 and sdxl on a GPU, pocket without one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP:
        parser.error(f"--steps {options.steps}: the first {WARM_UP} are not counted; give more")
    device = torch.device(usual_device())
    on_gpu = device.type == "cuda"
    if not on_gpu:
        print("No GPU here: the pocket model on the CPU. This shows that it runs, and says nothing of a GPU.\n")
    found: dict[str, Any] = {
        "device": describe(device),
        "steps": options.steps,
        "gpu": on_gpu,
        "runs": {},
    }
    print("| base | blocks | s/step | by resident | allocated, GiB | predicted, GiB | on the host, GiB |")
    print("|---|---|---|---|---|---|---|")
    for name in options.bases or (["sd15", "sdxl"] if on_gpu else ["pocket"]):
        runs = found["runs"].setdefault(name, {})
        for label, share in SHARES.items():
            runs[label] = run = measure(name, share, options.steps)
            ratio = run["seconds"] / runs["resident"]["seconds"]
            allocated = f"{run['allocated'] / GIB:.2f}" if on_gpu else "not measured"
            sizes = f"{allocated} | {run['predicted'] / GIB:.3g} | {run['host'] / GIB:.3g}"
            print(f"| {name} | {label} | {run['seconds']:.3g} | {ratio:.2f}x | {sizes} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
