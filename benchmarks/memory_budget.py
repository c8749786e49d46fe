"""Simulated peak memory of each shipped recipe on Stable Diffusion 1.5, and how long `twostage plan` takes to say so.

    python benchmarks/memory_budget.py [--write]

`--write` makes these the numbers that tests/planning/test_rehearsal.py holds the recipes to. Needs no card, no weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from twostage.planning.rehearsal import rehearse
from twostage.recipe_file import load_recipe, shipped_recipes

ROOT = Path(__file__).parent.parent
BUDGET = ROOT / "tests" / "planning" / "budget.json"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {BUDGET.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    budget = {}
    print("| recipe | stage | allocated, GiB | reserved, GiB | TFLOP a step |\n|---|---|---|---|---|")
    for name in shipped_recipes():
        rehearsed = rehearse(load_recipe(name, base="sd15", overrides={"sample.per_prompt": 0}))
        stages = [phase for phase in rehearsed.phases if phase.unit == "step"]
        budget[name] = {phase.name: phase.allocated for phase in stages}
        for phase in stages:
            sizes = f"{phase.allocated / 2**30:.2f} | {phase.reserved / 2**30:.2f}"
            print(f"| {name} | {phase.name} | {sizes} | {phase.work.flops / 1e12:.2f} |", flush=True)
    if options.write:
        BUDGET.write_text(json.dumps(budget, indent=2) + "\n", encoding="utf-8")
    for more in ([], ["--vram", "12GB"]):
        command = [sys.executable, "-m", "cli", "plan", "two-stage", "--base", "sd15", *more]
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        print(f"twostage {' '.join(command[3:])}: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
