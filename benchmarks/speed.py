"""diffusers' own training scripts and ours: seconds per step, whole wall time, peak memory, in turn in one run.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers ../diffusers
    python benchmarks/speed.py runs/speed --peer ../diffusers --json benchmarks/results/speed.json
    python benchmarks/random_sd15.py runs/sd15 --size sd15
    python benchmarks/speed.py runs/speed-sd15 --peer ../diffusers --base runs/sd15 --resolution 256 --batch 1 \\
        --steps 5 --warm-up 2 --rounds 1

Both train on the same base, photos, resolution, batch, precision, steps and AdamW: train_dreambooth.py and the
`dreambooth` recipe without prior preservation, textual_inversion.py and `textual-inversion`, train_dreambooth_lora.py
and `dreambooth-lora` at the same rank and layers. `benchmarks/stopwatch.py` notes for both, by the same hook of torch,
when the optimizer has made each step. Seconds per step are the median time between steps after the warm-up, over all
rounds; a ratio is the peer's median by ours. CPU seconds are those of the process on all its threads, which other work
on the machine lengthens less. The floor is the U-Net's forward and backward pass alone, as diffusers and torch do it:
no trainer of that U-Net can leave it out, so the peer's by the floor is the most that a ratio can be. The wall time is
the whole command's: start, loading, encoding, training, saving. No samples are drawn, no checkpoint is saved, and our
cache is empty at each start. --python names an interpreter that has what the scripts need (torchvision), if this one
does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_dreambooth import OURS, VARIANCE
from quality import TUNING, write_report

from twostage.demo import SEEN, take_photos
from twostage.families import load_base
from twostage.pocket import world

STOPWATCH = Path(__file__).resolve().with_name("stopwatch.py")
ROOT = STOPWATCH.parents[1]
SUBJECT = "backpack"
RATE, RANK = 1e-5, 4
# What is measured: title, unit.
FIGURES = {
    "seconds_per_step": ("s/step", 1),
    "cpu_seconds_per_step": ("CPU s/step", 1),
    "wall_seconds": ("whole command, s", 1),
    "peak_resident_bytes": ("peak resident, GiB", 2**30),
    "peak_allocated_bytes": ("peak allocated on the GPU, GiB", 2**30),
}


@dataclass(frozen=True)
class Pair:
    """A script, and what of ours does the same."""

    script: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    stage: str
    unet_learns: bool = False


PAIRS = {
    "dreambooth": Pair(
        "examples/dreambooth/train_dreambooth.py",
        ("--instance_prompt", f"a photo of a sks {SUBJECT}", "--instance_data_dir"),
        ("dreambooth", "--no-with-prior-preservation"),
        "stage2",
        unet_learns=True,
    ),
    "textual-inversion": Pair(
        "examples/textual_inversion/textual_inversion.py",
        (
            *("--placeholder_token", "<rare>", "--initializer_token", SUBJECT, "--learnable_property", "object"),
            *("--train_data_dir",),
        ),
        ("textual-inversion", "--initializer-token", SUBJECT),
        "stage1",
    ),
    "dreambooth-lora": Pair(
        "examples/dreambooth/train_dreambooth_lora.py",
        ("--rank", str(RANK), "--instance_prompt", f"a photo of a sks {SUBJECT}", "--instance_data_dir"),
        ("dreambooth-lora", "--adapter.rank", str(RANK), "--target-modules", "attention"),
        "stage2",
    ),
}


@dataclass(frozen=True)
class Race:
    """What both are given."""

    folder: Path
    peer: Path
    python: str
    base: str
    resolution: int
    batch: int
    steps: int
    warm_up: int
    precision: str

    def run(self, name: str, trainer: str) -> dict[str, Any]:
        """Train once, and throw the result away."""
        pair, output = PAIRS[name], self.folder / f"{name}-{trainer}"
        command = self._ours(pair, output) if trainer == "twostage" else self._theirs(pair, output)
        figures, cache = output.with_suffix(".json"), self.folder / "cache"
        for left in (output, cache):
            shutil.rmtree(left, ignore_errors=True)
        interpreter = sys.executable if trainer == "twostage" else self.python
        whole = [interpreter, str(STOPWATCH), str(figures), *command]
        load, began = os.getloadavg()[0], time.perf_counter()
        with output.with_suffix(".log").open("w", encoding="utf-8") as log:
            environment = os.environ | {"TWOSTAGE_CACHE": str(cache.resolve())}
            code = subprocess.run(whole, stdout=log, stderr=log, env=environment, cwd=ROOT).returncode
        wall = time.perf_counter() - began
        if code:
            sys.exit(f"{' '.join(whole)}\nended with {code}; see {log.name}")
        for left in (output, cache):
            shutil.rmtree(left, ignore_errors=True)
        noted = json.loads(figures.read_text(encoding="utf-8"))
        if len(noted["clock"]) != self.steps:
            sys.exit(f"{' '.join(whole)}\nmade {len(noted['clock'])} steps, not {self.steps}; see {log.name}")
        return {
            "pair": name,
            "trainer": trainer,
            "seconds_per_step": self._between(noted["clock"]),
            "cpu_seconds_per_step": self._between(noted["cpu"]),
            "wall_seconds": wall,
            "load_average_before": load,
            **{key: value for key, value in noted.items() if key.startswith("peak")},
        }

    def floor(self, name: str) -> dict[str, Any]:
        """The U-Net alone, in this process."""
        base = load_base(self.base)
        unet, learns = base.unet, PAIRS[name].unet_learns
        unet.requires_grad_(learns)
        side, width = self.resolution // base.reduction, unet.config.cross_attention_dim
        noisy = torch.randn(self.batch, unet.config.in_channels, side, side)
        states = torch.randn(self.batch, 77, width, requires_grad=not learns)
        timesteps = torch.randint(0, 1000, (self.batch,))
        clock, processor = [], []
        for _ in range(self.steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                predicted = base.family.predict(unet, noisy, timesteps, states)
            predicted.float().square().mean().backward()
            unet.zero_grad()
            states.grad = None
            clock.append(time.perf_counter())
            processor.append(time.process_time())
        return {
            "pair": name,
            "trainer": "floor",
            "seconds_per_step": self._between(clock),
            "cpu_seconds_per_step": self._between(processor),
        }

    def _between(self, stamps: Sequence[float]) -> list[float]:
        return [later - earlier for earlier, later in pairwise(stamps[self.warm_up - 1 :])]

    def _theirs(self, pair: Pair, output: Path) -> list[str]:
        return [
            *(str(self._script(pair)), *pair.theirs, str(self.folder / "photos")),
            *("--pretrained_model_name_or_path", str(load_base(self.base).folder), "--output_dir", str(output)),
            *("--resolution", str(self.resolution), "--train_batch_size", str(self.batch)),
            *("--max_train_steps", str(self.steps), "--learning_rate", str(RATE), "--seed", "0"),
            *("--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--mixed_precision", self.precision),
        ]

    def _ours(self, pair: Pair, output: Path) -> list[str]:
        recipe, *options = pair.ours
        return [
            *("-m", "cli", "train", recipe, str(self.folder / "photos"), "--class", SUBJECT, *options),
            *("-o", str(output), "--base", self.base, "--seed", "0", "--resolution", str(self.resolution)),
            *(f"--{pair.stage}.batch-size", str(self.batch), f"--{pair.stage}.steps", str(self.steps)),
            *(f"--{pair.stage}.learning-rate", str(RATE), f"--{pair.stage}.weight-decay", "1e-2"),
            *("--checkpointing-steps", str(self.steps + 1), "--sample.per-prompt", "0"),
            *("--mixed-precision", self.precision),
        ]

    def _script(self, pair: Pair) -> Path:
        """The checkout's, or a copy that does not take latents of 6 channels for 3 and a variance."""
        script = self.peer / pair.script
        source = script.read_text(encoding="utf-8")
        unet = load_base(self.base).folder / "unet" / "config.json"
        if VARIANCE not in source or json.loads(unet.read_text(encoding="utf-8"))["out_channels"] != 6:
            return script
        copy = self.folder / script.name
        copy.write_text(source.replace(VARIANCE, OURS), encoding="utf-8")
        return copy


def summary(runs: list[dict[str, Any]], key: str) -> float:
    """One number of several runs: median of times, largest of memory."""
    if key.startswith("peak"):
        return float(max(run[key] for run in runs))
    values = [run[key] if isinstance(run[key], list) else [run[key]] for run in runs]
    return float(statistics.median(value for one in values for value in one))


def compare(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each pair: what each trainer took, and the peer's by ours."""
    rows = []
    for name in dict.fromkeys(run["pair"] for run in runs):
        row: dict[str, Any] = {"pair": name}
        for trainer in dict.fromkeys(run["trainer"] for run in runs):
            own = [run for run in runs if (run["pair"], run["trainer"]) == (name, trainer)]
            row[trainer] = {key: summary(own, key) for key in FIGURES if key in own[0]}
        row["ratio"] = {key: value / row["twostage"][key] for key, value in row["diffusers"].items()}
        row["ratio_at_most"] = {key: row["diffusers"][key] / value for key, value in row.get("floor", {}).items()}
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Each cell: the peer's, ours, and how many times ours the peer's is."""
    there = [key for key in FIGURES if key in rows[0]["ratio"]]
    print(f"\n| diffusers : twostage | {' | '.join(FIGURES[key][0] for key in there)} |\n|---|{'---|' * len(there)}")
    for row in rows:
        cells = []
        for key in there:
            theirs, ours = (row[trainer][key] / FIGURES[key][1] for trainer in ("diffusers", "twostage"))
            most = f", at most {row['ratio_at_most'][key]:.2f}" if key in row["ratio_at_most"] else ""
            cells.append(f"{theirs:.3g} : {ours:.3g} = {row['ratio'][key]:.2f}{most}")
        print(f"| {row['pair']} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of huggingface/diffusers")
    parser.add_argument("--python", default=sys.executable, help="interpreter with diffusers, accelerate, torchvision")
    parser.add_argument("--base", default="pocket", help="'pocket', or a folder; see random_sd15.py")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5, help="steps not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not 1 <= given.warm_up <= given.steps - 1:
        parser.error(f"--warm-up {given.warm_up}: leave at least one of {given.steps} steps to count")
    take_photos(
        given.folder / "photos", world.sample_subject(np.random.default_rng([TUNING[SUBJECT], 2024]), SUBJECT), SEEN, 0
    )
    given.base = given.base if given.base == "pocket" else str(Path(given.base).resolve())
    settings = {key: getattr(given, key) for key in ("base", "resolution", "batch", "steps", "warm_up", "precision")}
    race = Race(given.folder.resolve(), given.peer.resolve(), given.python, **settings)
    runs = []
    for round_ in range(given.rounds):
        for name in given.pairs:
            # Whoever begins, begins the next round second: a machine that slows down slows both.
            for trainer in ("diffusers", "twostage")[:: -1 if round_ % 2 else 1]:
                runs.append(race.run(name, trainer))
                step = statistics.median(runs[-1]["seconds_per_step"])
                print(f"round {round_ + 1}, {name}, {trainer}: {step:.3f} s/step", flush=True)
            if not torch.cuda.is_available():
                runs.append(race.floor(name))
    rows = compare(runs)
    print_table(rows)
    if given.json:
        write_report(given.json, settings=settings, method=(__doc__ or "").split("\n\n")[2], pairs=rows, runs=runs)


if __name__ == "__main__":
    main()
