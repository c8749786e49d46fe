"""What training in less memory costs: each rung beside float32 AdamW on the same draws, with the pocket model.

    python -m benchmarks.exactness FOLDER [--seeds 0 1 2] [--steps 60] [--json FILE]

Stage 1 is run once a seed, and stage 2 of each rung goes on from its token. For each: the mean loss of stage 2's last
third; the largest difference to float32 AdamW's loss at any step; how far the weights end from float32 AdamW's, as a
share of the way those have come; and the ViT score on photos that no run has seen.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality import TUNING, Bench, Photos
from twostage import run
from twostage.display import Display
from twostage.evaluation.metrics.identity import identity
from twostage.families import load_part
from twostage.recipe_file import load_recipe

FUSED = {"memory.step_in_backward": True}
HALF = {"memory.weights": "bfloat16"}
RUNGS: dict[str, dict[str, Any]] = {
    "adamw, float32": {},
    "adamw, float32, norm clipped to 1": {"stage2.max_grad_norm": 1.0},
    "adamw in backward": FUSED,
    "adamw8bit": {"memory.optimizer": "adamw8bit"},
    "adamw4bit": {"memory.optimizer": "adamw4bit"},
    "adafactor": {"memory.optimizer": "adafactor"},
    "adamw, bfloat16": HALF,
    "adamw8bit, bfloat16, in backward": {"memory.optimizer": "adamw8bit", **HALF, **FUSED},
    "adamw4bit, bfloat16, in backward": {"memory.optimizer": "adamw4bit", **HALF, **FUSED},
    "adafactor, bfloat16, in backward": {"memory.optimizer": "adafactor", **HALF, **FUSED},
    "adamw, updates clipped": {"memory.clip_updates": True},
    "adamw8bit, bfloat16, in backward, updates clipped": {
        "memory.optimizer": "adamw8bit",
        "memory.clip_updates": True,
        **HALF,
        **FUSED,
    },
    "adamw, state and activations on the host": {"memory.optimizer_state": "host", "memory.activations": "host"},
}


def weights_of(bench: Bench, folder: Path) -> Tensor:
    net = load_part(bench.base.family, folder, "unet")
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def measure(bench: Bench, photos: Photos, class_name: str, seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Figures of each rung."""
    references, start = bench.vit.images(photos.unseen), weights_of(bench, bench.base.folder)
    exact, losses, weights, found = None, np.empty(0), start, {}
    for number, (name, options) in enumerate(RUNGS.items()):
        overrides = {
            "data.photos": str(photos.folder / "photos"),
            "data.class_noun": class_name,
            "seed": seed,
            "sample.per_prompt": 0,
            "stage1.steps": steps,
            "stage2.steps": steps,
            "stage2.max_grad_norm": 0.0,
            **options,
        }
        recipe = load_recipe("two-stage", base="pocket", overrides=overrides)
        folder = run.train(recipe, photos.folder / f"{seed}-{number}", token_from=exact, display=Display())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        own = np.array([line["loss"] for line in lines if line["stage"] == 2])
        mine = weights_of(bench, folder)
        if exact is None:
            exact, losses, weights = folder, own, mine
        pictures = bench.draw(run.load_pipeline(folder), bench.prompts(class_name, recipe.token.placeholder))
        found[name] = {
            "loss": float(own[-(-steps * 2 // 3) :].mean()),
            "loss_difference": float(np.abs(own - losses).max()),
            "weights": float((mine - weights).norm() / (weights - start).norm()),
            "vit": identity(bench.vit.images(pictures), references),
        }
        print(
            f"seed {seed}  {name:50}", *(f"{figure}={value:.4f}" for figure, value in found[name].items()), flush=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(options.folder, {})
    class_name = next(iter(TUNING))
    photos = bench.photos(class_name, TUNING[class_name])
    results = {seed: measure(bench, photos, class_name, seed, options.steps) for seed in options.seeds}
    print("\nmean over seeds, and its standard error")
    for name in RUNGS:
        print(f"{name:50}", end="")
        for figure in ("loss", "loss_difference", "weights", "vit"):
            values = [found[name][figure] for found in results.values()]
            print(f"  {figure} {np.mean(values):.4f} +- {np.std(values) / math.sqrt(len(values)):.4f}", end="")
        print()
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
