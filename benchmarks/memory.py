"""What each rung of the memory ladder takes on this machine, beside what `twostage plan` predicts.

    python -m benchmarks.memory [--base sd15 sdxl] [--rungs TEXT ...] [--write] [--json FILE]

On a GPU: Stable Diffusion 1.5 at 512 and 768 pixels and XL at 1024, random weights of the published sizes, `two-stage`
with batches of one, nothing downloaded. Each rung runs the product's own stages in a process of its own, and what
torch's allocator had at the peak, allocated and reserved, is set beside the prediction; so are seconds a step and what
the card held in use. `--write` fits what a card holds beside torch's allocator (twostage/planning/overhead.json).

`--base pocket` runs on the CPU: what is allocated is counted storage by storage, on tensors with values. Of other
bases, without a GPU, the predictions are all that is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.with_values import RandomBase, WithValues
from twostage.memory.ladder import climb
from twostage.memory.simulator import collected_on_demand
from twostage.memory.storages import StorageTrace
from twostage.planning.phases import Known, Phase
from twostage.planning.rehearsal import Rehearsal, rehearse
from twostage.planning.room import GIB
from twostage.recipe import Recipe
from twostage.recipe_file import load_recipe
from twostage.stages import learn_denoiser, learn_embedding

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OVERHEAD = ROOT / "twostage" / "planning" / "overhead.json"
SIDES = {"sd15": (512, 768), "sdxl": (1024,), "pocket": (None,)}
# Steps that are timed, behind the two that the peak is taken of.
_TIMED = 5
_HOW = {
    "cuda": "torch.cuda.max_memory_allocated and max_memory_reserved over two steps of the product's own stage, after "
    "reset_peak_memory_stats; mem_get_info after them; a process a rung; random weights",
    "cpu": "every storage followed from its creation to its end over two steps of the product's own stage, on real "
    "tensors; a process a rung",
}


class OnCard(WithValues):
    """Measures what it runs on the GPU."""

    def __init__(self, recipe: Recipe, base: RandomBase) -> None:
        super().__init__(recipe, base)
        self.measured: dict[str, dict[str, float]] = {}

    def run_stage(self, loop: Any, steps: int, nets: Mapping[str, Any], draw_samples: Any) -> None:
        """Two steps for the peak, and some for the time."""
        card = torch.cuda
        card.synchronize()
        card.empty_cache()
        card.reset_peak_memory_stats()
        running = loop.steps()
        for _ in range(2):
            next(running)
        card.synchronize()
        free, total = card.mem_get_info()
        found = {
            "allocated": card.max_memory_allocated(),
            "reserved": card.max_memory_reserved(),
            "beside": total - free - card.memory_reserved(),
        }
        started = time.perf_counter()
        for _ in range(_TIMED):
            next(running)
        card.synchronize()
        self.measured[f"stage {loop.stage}"] = {**found, "seconds": (time.perf_counter() - started) / _TIMED}
        self.accelerator.free_memory()


def measure(recipe: Recipe) -> dict[str, dict[str, float]]:
    """What the stages of a recipe take here, by phase."""
    on_card = torch.cuda.is_available()
    with nullcontext() if on_card else collected_on_demand(), nullcontext() if on_card else StorageTrace() as trace:
        base = RandomBase.of(recipe.base, trace=trace)
        session = OnCard(recipe, base) if on_card else Rehearsal(recipe, base, trace)
        recipe = session.recipe
        if recipe.stage1:
            learn_embedding(session, recipe.stage1, base, session.subject)
        if recipe.stage2:
            learn_denoiser(session, recipe.stage2, base, session.subject, None)
    if isinstance(session, OnCard):
        return session.measured
    steps = [phase for phase in session.found.phases if phase.unit == "step"]
    return {phase.name: {"allocated": phase.allocated, "host": phase.host} for phase in steps}


def rungs(base: str, side: int | None) -> list[tuple[str, Recipe]]:
    """The ladder of `two-stage` on a base, batches of one: a name and a recipe each."""
    alone = {"stage1.batch_size": 1, "stage2.batch_size": 1, "sample.per_prompt": 0, "prior.preserve": False}
    recipe = load_recipe("two-stage", base=base, overrides=alone | ({"data.resolution": side} if side else {}))
    # Alone or in tiles, the VAE takes no part in a step.
    return [(standing.rung.name, standing.recipe) for standing in climb(recipe) if standing.rung.name != "VAE in tiles"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", nargs="+", choices=SIDES, default=["sd15", "sdxl"])
    parser.add_argument("--rungs", nargs="+", metavar="TEXT", help="those alone with one of these in their names")
    parser.add_argument("--write", action="store_true", help=f"write {OVERHEAD.relative_to(ROOT)}, measured here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(Recipe.model_validate_json(options.one))))
        return
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, Any]] = []
    print(_told(kind))
    print("| base, pixels | rung | stage | predicted, allocated / reserved, GiB | measured | off by, % | s a step |")
    print("|---|---|---|---|---|---|---|")
    for base, side in ((name, side) for name in options.base for side in SIDES[name]):
        known = Known()
        for rung, recipe in rungs(base, side):
            if options.rungs and not any(text in rung for text in options.rungs):
                continue
            phases = [phase for phase in rehearse(recipe, known).phases if phase.unit == "step"]
            found = _in_a_process_of_its_own(recipe) if kind == "cuda" or base == "pocket" else {}
            for phase in phases:
                rows.append(_row(f"{base}, {side or 64}", rung, phase, found))
                print(_line(rows[-1]), flush=True)
    if options.json:
        facts = {"machine": _machine(kind), "torch": torch.__version__, "how": _HOW[kind], "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if options.write:
        _write_overhead(rows)


def _in_a_process_of_its_own(recipe: Recipe) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", recipe.model_dump_json()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if "OutOfMemory" in done.stderr or "out of memory" in done.stderr:
            return {"failed": "out of memory"}
        sys.exit(f"a rung failed: {last}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(base: str, rung: str, phase: Phase, found: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "base": base,
        "rung": rung,
        "stage": phase.name,
        "predicted": {"allocated": phase.allocated, "reserved": phase.reserved, "host": phase.host},
    }
    measured = found.get(phase.name)
    if measured:
        off = {
            name: round(100 * (phase_value / measured[name] - 1), 3)
            for name, phase_value in row["predicted"].items()
            if measured.get(name)
        }
        row |= {"measured": measured, "off_percent": off}
    elif found:
        row["measured"] = found
    return row


def _line(row: Mapping[str, Any]) -> str:
    predicted, measured = row["predicted"], row.get("measured", {})
    sizes = [f"{predicted['allocated'] / GIB:.3f} / {predicted['reserved'] / GIB:.3f}"]
    there = " / ".join(f"{measured[name] / GIB:.3f}" for name in ("allocated", "reserved") if name in measured)
    off = " / ".join(f"{row['off_percent'][name]:+.2f}" for name in ("allocated", "reserved") if name in measured)
    seconds = f"{measured['seconds']:.3f}" if "seconds" in measured else ""
    cells = [row["base"], row["rung"], row["stage"], *sizes, there or measured.get("failed", ""), off, seconds]
    return f"| {' | '.join(cells)} |"


def _told(kind: str) -> str:
    if kind == "cuda":
        return f"Measured on {_machine(kind)}: {_HOW[kind]}.\n"
    return f"No GPU here: predictions alone, but for the pocket model, which is measured on the CPU: {_HOW[kind]}.\n"


def _machine(kind: str) -> str:
    return torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()


def _write_overhead(rows: list[dict[str, Any]]) -> None:
    """What was in use on the card beside torch's allocator, the least and the most of it."""
    beside = [row["measured"]["beside"] / GIB for row in rows if "beside" in row.get("measured", {})]
    if not beside:
        sys.exit("--write: nothing was measured on a GPU, so there is nothing to fit")
    facts = {"least": round(min(beside), 2), "usual": round(max(beside), 2), "source": f"measured: {_machine('cuda')}"}
    OVERHEAD.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
