"""Damaged photos, bases, runs, exports, comparisons, caches, suites and recipes: read, or refused in one line.

    python -m benchmarks.fuzz FOLDER [--inputs 2000] [--seed 0] [--json benchmarks/results/fuzz.json]
        [--only KIND [--number N]]

A failure is a traceback, a hang of more than 10 seconds, a crash, a demand for gigabytes, an error of several lines, a
changed file that the verb has no business with, or a result that a damaged cache has changed. Exits with 1 if there is
any. A FOLDER in memory, such as /dev/shm/fuzz, saves the disk some hundred thousand writes.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # Its threads do not survive a fork.

import diffusers
import peft
import PIL
import safetensors
import torch
import transformers

from benchmarks.fuzz.inputs import Fuzz, Tried
from benchmarks.fuzz.kinds import KINDS
from benchmarks.learned import write_report
from twostage import __version__
from twostage.display import terminal_display

LIBRARIES = {
    "diffusers": diffusers,
    "transformers": transformers,
    "peft": peft,
    "safetensors": safetensors,
    "Pillow": PIL,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="to work in, removed afterwards; it is made")
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--only", help="kinds whose name has this in it")
    parser.add_argument("--number", type=int, help="that input of the kind alone")
    options: Any = parser.parse_args(arguments)
    torch.set_num_threads(1)
    display = terminal_display()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        began = time.perf_counter()
        fuzz = Fuzz(Path(folder), options.seed)
        display.say(f"made what is intact in {time.perf_counter() - began:.0f} s")
        unread = [tried for tried in fuzz.intact() if tried.outcome.kind != "read"]
        for tried in unread:
            display.say(f"{tried.kind}, where nothing is damaged: {tried.outcome.kind}: {tried.outcome.told}")
        planned = [(kind, number) for kind, number in fuzz.plan(options.inputs) if (options.only or "") in kind.name]
        if options.number is not None:
            planned = [(kind, options.number) for kind in KINDS if kind.name == options.only]
        found: list[Tried] = []
        began = time.perf_counter()
        with display.progress("inputs", len(planned)) as update:
            for kind, number in planned:
                found.append(fuzz.try_one(kind, number))
                tried = found[-1]
                if tried.outcome.kind == "failed" or options.number is not None:
                    display.say(f"--only '{tried.kind}' --number {tried.number}: {tried.damaged}: {tried.outcome.kind}")
                    display.say(tried.outcome.told)
                update(len(found))
    seconds = time.perf_counter() - began
    counted = count(found)
    for name, numbers in counted.items():
        print(f"{name:24}", *(f"{label} {number:5}" for label, number in numbers.items()))
    if options.json:
        write_report(
            options.json,
            command=f"python -m benchmarks.fuzz FOLDER --inputs {options.inputs} --seed {options.seed}",
            python=platform.python_version(),
            versions={"twostage": __version__, **{name: module.__version__ for name, module in LIBRARIES.items()}},
            seconds=round(seconds),
            kinds=counted,
        )
    return int(bool(unread) or any(tried.outcome.kind == "failed" for tried in found))


def count(found: list[Tried]) -> dict[str, dict[str, int]]:
    """Inputs of each kind, by what came of them."""
    names = {
        "inputs": ("read", "refused", "failed"),
        "read": ("read",),
        "refused": ("refused",),
        "failures": ("failed",),
    }
    tally = Counter((tried.kind, tried.outcome.kind) for tried in found)
    kinds = list(dict.fromkeys(tried.kind for tried in found))
    counted = {
        kind: {label: sum(tally[kind, outcome] for outcome in outcomes) for label, outcomes in names.items()}
        for kind in kinds
    }
    return counted | {"all": {label: sum(own[label] for own in counted.values()) for label in names}}


if __name__ == "__main__":
    sys.exit(main())
