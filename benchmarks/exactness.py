"""What training in less memory costs: each way beside plain float32 on the same draws, with the pocket model.

    python -m benchmarks.exactness FOLDER [--tables unet adapter token] [--rows PATTERN] [--seeds 0 1 2] [--steps 60]
        [--json benchmarks/results/exactness.json]

Three tables: stage 2 of the whole U-Net and stage 2 of a LoRA, both from a token that stage 1 learned once a seed, and
stage 1. For each row: the mean loss of the last third of the steps; the largest difference to the first row's loss at
any step; how far the U-Net's weights end from the first row's, as a share of the way those have come; and the ViT score
on photos that no run has seen. Rows that the JSON file has already are not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.learned import TUNING, Bench, Photos
from twostage import run
from twostage.display import Display
from twostage.evaluation.metrics.identity import identity
from twostage.recipe_file import load_recipe

FUSED = {"memory.step_in_backward": True}
HALF = {"memory.weights": "bfloat16"}
AUTOCAST = {"mixed_precision": "bf16"}
HOST = {"memory.activations": "host"}
# The first row of each is plain float32, which the others are compared with.
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "unet": {
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
        "adamw, state and activations on the host": {"memory.optimizer_state": "host", **HOST},
        "adamw in backward, all blocks streamed": {"memory.streamed": 1.0, **FUSED},
    },
    "adapter": {
        "lora, float32": {},
        "lora, base in 8 bits": {"memory.frozen_base": "8bit"},
        "lora, base in 4 bits": {"memory.frozen_base": "4bit"},
        "lora, all blocks streamed, activations on the host": {"memory.streamed": 1.0, **HOST},
        "lora, bfloat16": AUTOCAST,
    },
    "token": {
        "stage 1, float32": {},
        "stage 1, base in 8 bits": {"memory.frozen_base": "8bit"},
        "stage 1, base in 4 bits": {"memory.frozen_base": "4bit"},
        "stage 1, all blocks streamed, activations on the host": {"memory.streamed": 1.0, **HOST},
        "stage 1, bfloat16": AUTOCAST,
    },
}
RECIPES = {"unet": "two-stage", "adapter": "two-stage-lora", "token": "textual-inversion"}
# What a step is, whatever settings the recipes come to have.
STEP: dict[str, dict[str, Any]] = {
    "unet": {"stage2.batch_size": 4, "stage2.learning_rate": 1e-5, "prior.preserve": False},
    "adapter": {"stage2.batch_size": 4, "stage2.learning_rate": 4e-4},
    "token": {"stage1.batch_size": 4, "stage1.learning_rate": 5e-3},
}
FIGURES = ("loss", "loss_difference", "weights", "vit")

Found = dict[str, dict[str, dict[str, dict[str, float]]]]


def weights_of(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


class Rows:
    """Runs of one table at one seed."""

    def __init__(self, bench: Bench, photos: Photos, table: str, seed: int, steps: int) -> None:
        self._bench, self._photos, self._table, self._seed, self._steps = bench, photos, table, seed, steps
        self._references, self._start = bench.vit.images(photos.unseen), weights_of(bench.base.denoiser)
        self._class_name = next(iter(TUNING))

    def measure(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        """Figures of the first row, and of those named."""
        first, *_ = TABLES[self._table]
        found: dict[str, dict[str, float]] = {}
        token = self._token() if self._table != "token" else None
        for name in dict.fromkeys([first, *names]):
            losses, unet, vit = self._run(name, token)
            if name == first:
                plain = losses, unet
            found[name] = {
                "loss": float(losses[-(-self._steps * 2 // 3) :].mean()),
                "loss_difference": float(np.abs(losses - plain[0]).max()),
                "vit": vit,
            }
            if self._table != "token":
                way = (plain[1] - self._start).norm()
                found[name]["weights"] = float((unet - plain[1]).norm() / way)
            figures = (f"{figure}={value:.4f}" for figure, value in found[name].items())
            print(f"seed {self._seed}  {name:54}", *figures, flush=True)
        return found

    def _token(self) -> Path:
        """A run of stage 1 alone, whose token all rows take."""
        stage2 = {"stage2.steps": 1, "stage2.learning_rate": 1e-9}
        return self._train("token", {"stage1.steps": self._steps, **stage2}, None)

    def _run(self, name: str, token: Path | None) -> tuple[np.ndarray, Tensor, float]:
        steps = {f"stage{stage}.steps": self._steps for stage in ((1,) if token is None else (1, 2))}
        unclipped = {"stage2.max_grad_norm": 0.0} if token else {}
        folder = self._train(name, steps | unclipped | TABLES[self._table][name], token)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses = np.array([line["loss"] for line in lines if line["stage"] == (2 if token else 1)])
        pipeline = run.load_pipeline(folder)
        placeholder = run.open_finished(folder)[1].token.placeholder
        pictures = self._bench.draw(pipeline, self._bench.prompts(self._class_name, placeholder))
        return losses, weights_of(pipeline.unet), identity(self._bench.vit.images(pictures), self._references)

    def _train(self, name: str, options: dict[str, Any], token: Path | None) -> Path:
        about = {"data.photos": str(self._photos.folder / "photos"), "data.class_noun": self._class_name}
        overrides = {**about, "seed": self._seed, "sample.per_prompt": 0, **STEP[self._table], **options}
        recipe = load_recipe(RECIPES[self._table], base="pocket", overrides=overrides)
        folder = self._photos.folder / f"{self._table} {self._seed} {name}"
        return run.train(recipe, folder, token_from=token, display=Display())


def print_table(found: Found, table: str) -> None:
    """Means over the seeds that have a row, and what they spread."""
    seeds = [tables[table] for tables in found.values() if table in tables]
    print(f"\n| {table} | {' | '.join(FIGURES)} | seeds |\n|---|{'---|' * (len(FIGURES) + 1)}")
    for name in TABLES[table]:
        rows = [rows[name] for rows in seeds if name in rows]
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in rows if figure in row]
            spread = f" +- {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}" if values else "")
        if rows:
            print(f"| {name} | {' | '.join(cells)} | {len(rows)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rows", default="*", help="as 'adamw*'; the first of each table is always there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: Found = {}
    if options.json and options.json.exists():
        found = json.loads(options.json.read_text(encoding="utf-8"))
    bench = Bench(options.folder, {})
    class_name = next(iter(TUNING))
    photos = bench.photos(class_name, TUNING[class_name])
    for table in options.tables:
        for seed in options.seeds:
            there = found.setdefault(str(seed), {}).setdefault(table, {})
            names = [name for name in TABLES[table] if fnmatch.fnmatch(name, options.rows) and name not in there]
            if names:
                measured = Rows(bench, photos, table, seed, options.steps).measure(names)
                there.update((name, measured[name]) for name in [*names, next(iter(TABLES[table]))])
            if options.json:
                options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print_table(found, table)


if __name__ == "__main__":
    main()
