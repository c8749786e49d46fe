"""A training step of each model family at its published size, on random weights: seconds and memory.

    nice python -m benchmarks.family_steps [--families sdxl ...] [--kinds whole lora stage1] [--side PIXELS]
        [--steps 2] [--json benchmarks/results/family_steps.json]

Batches of one, bfloat16, activations recomputed. `whole`: all weights of the denoiser by Adafactor within the backward
pass; `lora`: an adapter of rank 16; `stage1`: a token's rows in every text encoder, which run in each step then. Each
is made in a process of its own by the product's own stages and loop, on the GPU where there is one, else on the CPU,
with as many threads as OMP_NUM_THREADS says. Nothing is downloaded. Steps behind the first are timed.

Memory is that of the steps: on a GPU what torch's allocator had at its peak; on a CPU what the process held, weights
and Python included. Rows of the same family, kind, side and device take the place of those in the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.stopwatch import peak_resident
from benchmarks.with_values import RandomBase, WithValues
from twostage.recipe import Recipe
from twostage.recipe_file import load_recipe
from twostage.stages import learn_denoiser, learn_embedding

RESULTS = Path(__file__).parent / "results" / "family_steps.json"
GIB = 2**30
# The name that the planner knows a family's published base by.
FAMILIES = {"sd15": "sd15", "sd2": "sd21", "sdxl": "sdxl", "if-i": "if-i-xl", "if-ii": "if-ii-l", "sd3": "sd3"}
_WHOLE = {
    "memory.weights": "bfloat16",
    "memory.optimizer": "adafactor",
    "memory.step_in_backward": True,
    "stage2.max_grad_norm": 0.0,
}
_STAGE_2 = {"stage2.batch_size": 1, "stage2.gradient_checkpointing": True, "prior.preserve": False}
# Recipe and options of each kind.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("dreambooth", _STAGE_2 | _WHOLE),
    "lora": ("dreambooth-lora", _STAGE_2 | {"adapter.rank": 16}),
    "stage1": ("textual-inversion", {"stage1.batch_size": 1, "stage1.gradient_checkpointing": True}),
}


class HalfBase(RandomBase):
    """A base whose denoiser is bfloat16 from the start, as it is kept; and so are text encoders that are larger, unless
    a token is learned."""

    learns_token = False

    def component(self, name: str) -> Any:
        half = name == self.family.denoiser or self.family.text_on_host and not self.learns_token
        self.dtype = torch.bfloat16 if half else torch.float32
        return super().component(name)


class Timed(WithValues):
    """Makes a few steps of a stage, and notes what they took."""

    def __init__(self, recipe: Recipe, base: RandomBase, steps: int) -> None:
        super().__init__(recipe, base)
        self._steps = steps
        self.measured: dict[str, Any] = {}

    def run_stage(self, loop: Any, steps: int, nets: Mapping[str, Any], draw_samples: Any) -> None:
        """A few steps, and no samples."""
        self._reset()
        running = loop.steps()
        done = [next(running) for _ in range(self._steps)]
        self._synchronise()
        self.measured = {
            "seconds": [round(step.seconds, 3) for step in done],
            "losses": [step.loss for step in done],
            "trained": sum(parameter.numel() for parameter in loop.trained.values()),
            "peak_gib": round(self._peak() / GIB, 3),
        }

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):  # Elsewhere than on Linux, the peak is that of the whole process.
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else peak_resident()


def measure(family: str, kind: str, side: int | None, steps: int) -> dict[str, Any]:
    """A row: what the steps of one kind take here."""
    name, options = KINDS[kind]
    options = options | {"mixed_precision": "bf16", "sample.per_prompt": 0}
    recipe = load_recipe(
        name, base=FAMILIES[family], overrides=options | ({"data.resolution": side} if side is not None else {})
    )
    base = HalfBase.of(recipe.base)
    base.learns_token = recipe.stage1 is not None
    session = Timed(recipe, base, steps)
    if session.recipe.stage1:
        learn_embedding(session, session.recipe.stage1, base, session.subject)
    if session.recipe.stage2:
        learn_denoiser(session, session.recipe.stage2, base, session.subject, None)
    sizes = {part: sum(p.numel() for p in base.outline(part).parameters()) for part in base.family.models}
    return {
        "family": family,
        "kind": kind,
        "side": side or base.resolution,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sizes,
        **session.measured,
    }


def _processor() -> str:
    return f"{platform.machine()} CPU"


def _measure_apart(family: str, kind: str, side: int | None, steps: int) -> dict[str, Any]:
    """In a process of its own, whose memory is nobody else's."""
    asked = json.dumps([family, kind, side, steps])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.family_steps", "--one", asked], stdout=subprocess.PIPE, text=True, check=True
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _keep(file: Path, row: dict[str, Any]) -> None:
    """Write a row in place of the one it is measured anew for, with what was asked for it."""
    key = ("family", "kind", "side", "device")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = [old for old in rows if any(old[name] != row[name] for name in key)] + [row]
    text = json.dumps(
        {"how": __doc__, "rows": sorted(rows, key=lambda one: [str(one[name]) for name in key])}, indent=1
    )
    file.write_text(text + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--side", type=int, metavar="PIXELS", help="of the pictures; the base's own when not given")
    parser.add_argument("--steps", type=int, default=2, help="made; those behind the first are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the rows to those of a file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(*json.loads(options.one))))
        return
    print("| family | kind | side | trained, M | s a step | GiB | loss |")
    print("|---|---|---|---|---|---|---|")
    for family in options.families:
        for kind in options.kinds:
            row = _measure_apart(family, kind, options.side, options.steps)
            row["command"] = f"python -m benchmarks.family_steps --families {family} --kinds {kind}"
            row["command"] += f" --side {row['side']} --steps {options.steps}"
            if options.json:
                _keep(options.json, row)
            timed = row["seconds"][1:] or row["seconds"]
            print(
                f"| {family} | {kind} | {row['side']} | {row['trained'] / 1e6:.3f} | {sum(timed) / len(timed):.1f} | "
                f"{row['peak_gib']:.2f} | {row['losses'][-1]:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
