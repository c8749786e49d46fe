"""diffusers' own training scripts and ours: seconds per step, whole wall time, peak memory, in turn in one run.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers ../diffusers
    python benchmarks/speed.py runs/speed --peer ../diffusers --json benchmarks/results/speed.json
    python benchmarks/random_sd15.py runs/sd15 --size sd15
    python benchmarks/speed.py runs/speed-sd15 --peer ../diffusers --base runs/sd15 --resolution 256 --batch 1 \\
        --steps 8 --warm-up 2 --apart dreambooth --json benchmarks/results/speed_sd15.json
    python benchmarks/speed.py runs/speed-gpu --peer ../diffusers --base runs/sd15 --resolution 512 --batch 1 \\
        --precision bf16 --best --json benchmarks/results/speed_gpu.json

Both train on the same base, photos, resolution, batch, precision, steps and AdamW: train_dreambooth.py and the
`dreambooth` recipe without prior preservation, textual_inversion.py and `textual-inversion`, train_dreambooth_lora.py
and `dreambooth-lora` at the same rank and layers. With --best there is ours once more, with what we would choose
beside: channels_last, TF32, compiled blocks. `benchmarks/stopwatch.py` notes for all, by the same hook of torch, when
the optimizer has made each step. They take turns, a step each, so that each round sees the machine at one speed; while
one has its turn the others sleep. A ratio is the median, over the rounds after the warm-up, of the peer's step by ours;
its interval is the bootstrap's, 95 %. CPU seconds are those of the process on all its threads, and bytes and wall time
those of a further run each, alone and whole: start, loading, encoding, training, saving. The floor is the forward and
backward pass alone, as the libraries do it, in turn with the others: of the U-Net, and where a token learns of the text
encoder. The peer's by the floor is what a trainer could reach that did nothing else and left the passes as they are;
what of the time above it ours saves is said beside. --apart is for pairs that do not fit into memory together: each
trainer runs whole, --rounds times in turn, and a ratio is that of the medians. No samples are drawn, no checkpoint is
saved, and our cache is empty at each start. --python names an interpreter that has what the scripts need (torchvision),
if this one does not.
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
from pathlib import Path
from typing import Any

import numpy as np
from learned import TUNING, write_report
from peer_dreambooth import OURS, VARIANCE
from turns import Program, take_turns

from twostage.demo import SEEN, take_photos
from twostage.families import load_base
from twostage.pocket import world

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
SUBJECT = "backpack"
RATE, RANK = 1e-5, 4
BEST = ("--speed.channels-last", "--speed.tf32", "--speed.compile", "blocks")
# What is measured: title, unit.
FIGURES = {
    "seconds": ("s/step", 1),
    "cpu_seconds": ("CPU s/step", 1),
    "wall_seconds": ("whole command, s", 1),
    "peak_resident_bytes": ("peak resident, GiB", 2**30),
    "peak_allocated_bytes": ("peak allocated on the GPU, GiB", 2**30),
}

Runs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Pair:
    """A script, and what of ours does the same."""

    script: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    stage: str
    learns: str


PAIRS = {
    "dreambooth": Pair(
        "examples/dreambooth/train_dreambooth.py",
        ("--instance_prompt", f"a photo of a sks {SUBJECT}", "--instance_data_dir"),
        ("dreambooth", "--no-with-prior-preservation"),
        "stage2",
        "unet",
    ),
    "textual-inversion": Pair(
        "examples/textual_inversion/textual_inversion.py",
        (
            *("--placeholder_token", "<rare>", "--initializer_token", SUBJECT, "--learnable_property", "object"),
            *("--train_data_dir",),
        ),
        ("textual-inversion", "--initializer-token", SUBJECT),
        "stage1",
        "token",
    ),
    "dreambooth-lora": Pair(
        "examples/dreambooth/train_dreambooth_lora.py",
        ("--rank", str(RANK), "--instance_prompt", f"a photo of a sks {SUBJECT}", "--instance_data_dir"),
        ("dreambooth-lora", "--adapter.rank", str(RANK), "--target-modules", "attention"),
        "stage2",
        "adapter",
    ),
}


@dataclass(frozen=True)
class Race:
    """What all are given."""

    folder: Path
    peer: Path
    python: str
    base: str
    resolution: int
    batch: int
    steps: int
    warm_up: int
    precision: str

    def in_turns(self, name: str, trainers: Sequence[str]) -> Runs:
        """All of them at once, a step each."""
        programs = {trainer: self._program(name, trainer) for trainer in trainers}
        take_turns(list(programs.values()), self.steps, ROOT)
        return {trainer: [self._figures(name, trainer)] for trainer in trainers}

    def alone(self, name: str, trainer: str) -> dict[str, Any]:
        """One, whole, with nothing beside it."""
        program = self._program(name, trainer)
        load, began = os.getloadavg()[0], time.perf_counter()
        with program.log.open("w", encoding="utf-8") as log:
            code = subprocess.run(
                program.command, stdout=log, stderr=log, env=dict(program.environment), cwd=ROOT
            ).returncode
        wall = time.perf_counter() - began
        if code:
            sys.exit(f"{' '.join(program.command)}\nended with {code}; see {program.log}")
        return {**self._figures(name, trainer), "wall_seconds": wall, "load_average_before": load}

    def _figures(self, name: str, trainer: str) -> dict[str, Any]:
        """What the stopwatch has written; what was trained is thrown away."""
        output = self._output(name, trainer)
        for left in (output, output.with_suffix(".cache")):
            shutil.rmtree(left, ignore_errors=True)
        noted: dict[str, Any] = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        if len(noted["seconds"]) != self.steps - 1:
            sys.exit(f"{name}, {trainer}: {len(noted['seconds']) + 1} steps, not {self.steps}; see {output}.log")
        for key in ("seconds", "cpu_seconds"):
            noted[key] = noted[key][self.warm_up - 1 :]
        return noted

    def _output(self, name: str, trainer: str) -> Path:
        return self.folder / f"{name}-{trainer.replace(' ', '-')}"

    def _program(self, name: str, trainer: str) -> Program:
        pair, output = PAIRS[name], self._output(name, trainer)
        interpreter = sys.executable
        if trainer == "diffusers":
            interpreter, command = self.python, self._theirs(pair, output)
        elif trainer == "floor":
            command = self._floor(pair)
        else:
            command = self._ours(pair, output) + list(BEST if trainer == "twostage best" else ())
        cache = output.with_suffix(".cache")
        for left in (output, cache):
            shutil.rmtree(left, ignore_errors=True)
        whole = [interpreter, str(BENCHMARKS / "stopwatch.py"), str(output.with_suffix(".json")), *command]
        return Program(whole, os.environ | {"TWOSTAGE_CACHE": str(cache)}, output.with_suffix(".log"))

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

    def _floor(self, pair: Pair) -> list[str]:
        return [
            *("-m", "benchmarks.floor", self.base, "--resolution", str(self.resolution), "--batch", str(self.batch)),
            *("--steps", str(self.steps), "--precision", self.precision),
            *("--learns", pair.learns),
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


def ratio(theirs: list[dict[str, Any]], ours: list[dict[str, Any]], key: str, in_turns: bool) -> list[float]:
    """The peer's by ours, and its interval: of the rounds' ratios where they took turns, else of all steps."""
    one, other = (np.concatenate([np.atleast_1d(run[key]) for run in runs]) for runs in (theirs, ours))
    draws = np.random.default_rng(0)
    places = draws.integers(len(one), size=(2000, len(one)))
    if in_turns:
        value, drawn = np.median(one / other), np.median((one / other)[places], axis=1)
    else:
        others = draws.integers(len(other), size=(2000, len(other)))
        value = np.median(one) / np.median(other)
        drawn = np.median(one[places], axis=1) / np.median(other[others], axis=1)
    return [float(value), *map(float, np.percentile(drawn, (2.5, 97.5)))]


def compare(name: str, steps: Runs, whole: Runs, in_turns: bool) -> dict[str, Any]:
    """What each took in a step and as a whole, and the peer's by each."""
    row: dict[str, Any] = {"pair": name, "in_turns": in_turns}
    for trainer, runs in steps.items():
        own = {key: float(np.median(np.concatenate([run[key] for run in runs]))) for key in ("seconds", "cpu_seconds")}
        alone = whole.get(trainer, [])
        if alone:
            own["wall_seconds"] = statistics.median(run["wall_seconds"] for run in alone)
            own |= {
                key: max(run[key] for run in alone) for key in FIGURES if key.startswith("peak") and key in alone[0]
            }
        row[trainer] = own
        if trainer != "diffusers":
            row[f"diffusers by {trainer}"] = {
                key: ratio(steps["diffusers"], runs, key, in_turns) for key in ("seconds", "cpu_seconds")
            } | {key: row["diffusers"][key] / own[key] for key in own if key not in ("seconds", "cpu_seconds")}
    for trainer in [name for name in steps if name.startswith("twostage") and "floor" in steps]:
        theirs, ours, floor = (row[name]["seconds"] for name in ("diffusers", trainer, "floor"))
        row[trainer]["saved_of_what_is_above_the_floor"] = (theirs - ours) / (theirs - floor)
    return row


def print_row(row: dict[str, Any]) -> None:
    """A line for each that the peer is compared with."""
    for trainer in [name.removeprefix("diffusers by ") for name in row if name.startswith("diffusers by ")]:
        cells = []
        for key, value in row[f"diffusers by {trainer}"].items():
            theirs, ours = (row[name][key] / FIGURES[key][1] for name in ("diffusers", trainer))
            times, *bounds = value if isinstance(value, list) else [value]
            shown = f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else ""
            cells.append(f"{FIGURES[key][0]} {theirs:.3g} : {ours:.3g} = {times:.2f}{shown}")
        if "saved_of_what_is_above_the_floor" in row[trainer]:
            cells.append(f"{row[trainer]['saved_of_what_is_above_the_floor']:.0%} saved of what is above the floor")
        print(f"{row['pair']}, diffusers : {trainer} | {' | '.join(cells)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of huggingface/diffusers")
    parser.add_argument("--python", default=sys.executable, help="interpreter with diffusers, accelerate, torchvision")
    parser.add_argument("--base", default="pocket", help="'pocket', or a folder; see random_sd15.py")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=5, help="steps not counted")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--best", action="store_true", help="ours once more, with channels_last, TF32 and compiled")
    parser.add_argument("--apart", nargs="*", choices=PAIRS, default=[], help="pairs not to be in memory together")
    parser.add_argument("--rounds", type=int, default=1, help="whole runs of each: wall time and memory")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not 1 <= given.warm_up <= given.steps - 2:
        parser.error(f"--warm-up {given.warm_up}: leave at least two of {given.steps} steps to count")
    take_photos(
        given.folder / "photos", world.sample_subject(np.random.default_rng([TUNING[SUBJECT], 2024]), SUBJECT), SEEN, 0
    )
    given.base = given.base if given.base == "pocket" else str(Path(given.base).resolve())
    settings = {key: getattr(given, key) for key in ("base", "resolution", "batch", "steps", "warm_up", "precision")}
    race = Race(given.folder.resolve(), given.peer.resolve(), given.python, **settings)
    trainers = ["diffusers", "twostage", *(["twostage best"] if given.best else [])]
    rows, runs = [], {}
    for name in given.pairs:
        whole: Runs = {}
        for round_ in range(given.rounds):
            for trainer in (trainers + ["floor"] * (name in given.apart))[:: -1 if round_ % 2 else 1]:
                whole.setdefault(trainer, []).append(race.alone(name, trainer))
        # The peer first: it is what the others are compared with.
        ordered = {trainer: whole[trainer] for trainer in [*trainers, "floor"] if trainer in whole}
        steps = ordered if name in given.apart else race.in_turns(name, [*trainers, "floor"])
        rows.append(compare(name, steps, ordered, name not in given.apart))
        runs[name] = {"whole": ordered, "steps": steps}
        print_row(rows[-1])
    if given.json:
        settings |= {"base": Path(given.base).name, "rounds": given.rounds, "best": given.best}
        write_report(given.json, settings=settings, method=(__doc__ or "").split("\n\n")[2], pairs=rows, runs=runs)


if __name__ == "__main__":
    main()
