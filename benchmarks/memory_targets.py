"""What twostage is to fit in, and what it is predicted to take: Stable Diffusion 1.5 at 512 pixels, XL at 1024.

    python -m benchmarks.memory_targets [--base sd15 sdxl] [--json FILE]

Batches of one. All figures are predictions, simulated without a card: what tensors occupy in a training step, which is
`torch.cuda.max_memory_allocated` on a card; what torch's allocator would hold reserved for them; and the largest of all
phases of the run, encoding, class images and sample pictures included. `benchmarks/memory.py` measures on a GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from twostage.planning.rehearsal import rehearse
from twostage.planning.room import GIB
from twostage.recipe_file import load_recipe

_SIDES = {"sd15": 512, "sdxl": 1024}
# However a U-Net trains whole: nothing of it is kept twice, and no gradient longer than it takes to use it.
_WHOLE = {
    "mixed_precision": "bf16",
    "memory.weights": "bfloat16",
    "memory.step_in_backward": True,
    "memory.vae_tiling": True,
    "stage2.max_grad_norm": 0.0,
    "stage2.batch_size": 1,
    "stage2.gradient_checkpointing": True,
    "sample.per_prompt": 1,
}
_ALONE = {"prior.preserve": False}
_STAGE_1 = {
    "mixed_precision": "bf16",
    "memory.vae_tiling": True,
    "stage1.batch_size": 1,
    "stage1.gradient_checkpointing": True,
    "sample.per_prompt": 1,
}
_LORA = {
    "mixed_precision": "bf16",
    "memory.vae_tiling": True,
    "stage2.batch_size": 1,
    "stage2.gradient_checkpointing": True,
    "sample.per_prompt": 1,
    "adapter.rank": 16,
}
_ADAFACTOR = {"memory.optimizer": "adafactor"}
# Name, recipe, options, and GiB that the step is to stay within, by base; no limit where none was set.
Target = tuple[str, str, dict[str, Any], dict[str, float]]
TARGETS: list[Target] = [
    ("full U-Net, Adafactor", "dreambooth", _WHOLE | _ALONE | _ADAFACTOR, {"sd15": 2.0, "sdxl": 5.6}),
    (
        "full U-Net, 8-bit AdamW",
        "dreambooth",
        _WHOLE | _ALONE | {"memory.optimizer": "adamw8bit"},
        {"sd15": 3.6, "sdxl": 10.5},
    ),
    (
        "full U-Net, 4-bit AdamW",
        "dreambooth",
        _WHOLE | _ALONE | {"memory.optimizer": "adamw4bit"},
        {"sdxl": 8.2},
    ),
    (
        "full U-Net, 8-bit AdamW, its state on the host",
        "dreambooth",
        _WHOLE | _ALONE | {"memory.optimizer": "adamw8bit", "memory.optimizer_state": "host"},
        {},
    ),
    (
        "full U-Net, Adafactor, half streamed",
        "dreambooth",
        _WHOLE | _ALONE | _ADAFACTOR | {"memory.streamed": 0.5},
        {"sdxl": 3.5},
    ),
    (
        "full U-Net, Adafactor, streamed",
        "dreambooth",
        _WHOLE | _ALONE | _ADAFACTOR | {"memory.streamed": 1.0},
        {"sd15": 0.7, "sdxl": 1.0},
    ),
    (
        "full U-Net, Adafactor, streamed, activations on the host",
        "dreambooth",
        _WHOLE | _ALONE | _ADAFACTOR | {"memory.streamed": 1.0, "memory.activations": "host"},
        {},
    ),
    ("stage 1", "textual-inversion", _STAGE_1, {"sd15": 2.1, "sdxl": 7.0}),
    ("stage 1, base in 8 bits", "textual-inversion", _STAGE_1 | {"memory.frozen_base": "8bit"}, {"sdxl": 5.0}),
    ("stage 1, streamed", "textual-inversion", _STAGE_1 | {"memory.streamed": 1.0}, {}),
    ("LoRA, rank 16", "dreambooth-lora", _LORA, {"sd15": 1.9, "sdxl": 5.6}),
    ("LoRA, rank 16, base in 8 bits", "dreambooth-lora", _LORA | {"memory.frozen_base": "8bit"}, {}),
    ("LoRA, rank 16, base in 4 bits", "dreambooth-lora", _LORA | {"memory.frozen_base": "4bit"}, {"sdxl": 2.6}),
    ("DreamBooth with prior, Adafactor", "dreambooth", _WHOLE | _ADAFACTOR, {"sd15": 2.2, "sdxl": 6.3}),
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", nargs="+", choices=_SIDES, default=list(_SIDES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    options = parser.parse_args(arguments)
    rows = []
    print("All predicted, GiB.\n")
    print("| base, pixels | configuration | limit | a step, allocated | reserved | waits on the host | whole run |")
    print("|---|---|---|---|---|---|---|")
    for base in options.base:
        for name, recipe, changes, limits in TARGETS:
            rows.append(_row(base, name, recipe, changes, limits.get(base)))
            print(_line(rows[-1]), flush=True)
    if options.json:
        facts = {"kind": "predicted", "unit": "GiB", "how": (__doc__ or "").strip(), "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _row(base: str, name: str, recipe: str, changes: dict[str, Any], limit: float | None) -> dict[str, Any]:
    options = changes | {"data.resolution": _SIDES[base]}
    rehearsed = rehearse(load_recipe(recipe, base=base, overrides=options))
    (step,) = [phase for phase in rehearsed.phases if phase.unit == "step"]
    largest = max(rehearsed.phases, key=lambda phase: phase.allocated)
    return {
        "base": f"{base}, {_SIDES[base]}",
        "configuration": name,
        "recipe": recipe,
        "options": options,
        "limit": limit,
        "allocated": round(step.allocated / GIB, 3),
        "reserved": round(step.reserved / GIB, 3),
        "host": round(step.host / GIB, 3),
        "whole_run": round(largest.allocated / GIB, 3),
        "largest_phase": largest.name,
        "within": None if limit is None else step.allocated <= limit * GIB,
    }


def _line(row: dict[str, Any]) -> str:
    mark = {None: "", True: " yes", False: " **no**"}[row["within"]]
    limit = f"{row['limit']:.1f}:{mark}" if row["limit"] else ""
    sizes = [f"{row[name]:.2f}" for name in ("allocated", "reserved", "host")]
    whole = f"{row['whole_run']:.2f}, {row['largest_phase']}"
    return f"| {' | '.join([row['base'], row['configuration'], limit, *sizes, whole])} |"


if __name__ == "__main__":
    main()
