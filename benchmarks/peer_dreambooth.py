"""diffusers' own train_dreambooth.py and the `dreambooth` recipe, on the same photos of the pocket world.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers ../diffusers
    python benchmarks/peer_dreambooth.py ../diffusers runs/peer --json benchmarks/results/peer_dreambooth.json

Both train all of the pocket model's U-Net with the token sks: the same photos, steps, batch, learning rate and seed,
without prior preservation and with it; what else there is to choose, each chooses for itself. `twostage evaluate`
measures both, by the same prompts and seeds, the peer's result as a foreign folder (--pipeline). Seconds are the whole
command's: those of a CPU, which other work on the machine does not lengthen, and by the clock. The script needs
torchvision; --python names an interpreter that has it, if this one does not.

The script takes a U-Net of 6 output channels for one that predicts a variance beside 3 channels of noise. The pocket
model's latents have 6 channels: where that is so, a copy of the script asks for twice the latents' channels instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from learned import TEST, TUNING, UNSEEN, write_report

from twostage.demo import SEEN, take_photos
from twostage.pocket import pocket_folder, world

SCRIPT = Path("examples/dreambooth/train_dreambooth.py")
VARIANCE, OURS = "if model_pred.shape[1] == 6:", "if model_pred.shape[1] == 2 * channels:"
TOKEN = "sks"
STEPS, BATCH, RATE, CLASS_IMAGES = 200, 4, 5e-5, 64
SUBJECTS = TUNING | TEST
FIGURES = ("dino_unseen", "clip_t", "diversity", "pres", "drift_class", "drift_unrelated", "kid", "copying")

Seconds = dict[str, float]


@dataclass(frozen=True)
class Peer:
    """The script, and the interpreter that runs it."""

    script: Path
    python: str

    def train(self, photos: Path, output: Path, class_name: str, seed: int, prior: bool) -> Seconds:
        """Run it."""
        command = [
            *(self.python, str(self.script)),
            *("--pretrained_model_name_or_path", str(pocket_folder())),
            *("--instance_data_dir", str(photos)),
            *("--instance_prompt", world.prompt(class_name, token=TOKEN)),
            *("--output_dir", str(output)),
            *("--resolution", "64"),
            *("--train_batch_size", str(BATCH)),
            *("--learning_rate", str(RATE)),
            *("--lr_scheduler", "constant"),
            *("--lr_warmup_steps", "0"),
            *("--max_train_steps", str(STEPS)),
            *("--seed", str(seed)),
        ]
        if prior:
            command += [
                "--with_prior_preservation",
                *("--class_data_dir", f"{output}-class"),
                *("--class_prompt", world.prompt(class_name)),
                *("--num_class_images", str(CLASS_IMAGES)),
                *("--sample_batch_size", "16"),
            ]
        return seconds_of(command, output.with_suffix(".log"))

    def versions(self) -> dict[str, str]:
        """Of the script, and of the libraries it runs on."""
        asked = (
            "import json, accelerate, diffusers, torch, torchvision, transformers as t;"
            "print(json.dumps({m.__name__: m.__version__ for m in (accelerate, diffusers, torch, torchvision, t)}))"
        )
        answer = subprocess.run([self.python, "-c", asked], check=True, capture_output=True, text=True).stdout
        return {"train_dreambooth.py": hashlib.sha256(self.script.read_bytes()).hexdigest()} | json.loads(answer)


def find_script(checkout: Path, folder: Path) -> Path:
    """The checkout's script, or a copy of it that knows latents of 6 channels."""
    source = (checkout / SCRIPT).read_text(encoding="utf-8")
    unet = json.loads((pocket_folder() / "unet" / "config.json").read_text(encoding="utf-8"))
    if unet["out_channels"] != 6 or unet["in_channels"] != 6:
        return checkout / SCRIPT
    if source.count(VARIANCE) != 1:
        sys.exit(f"{checkout / SCRIPT} does not say {VARIANCE!r} once; take that of diffusers v0.40.0")
    copy = folder / SCRIPT.name
    copy.write_text(source.replace(VARIANCE, OURS), encoding="utf-8")
    return copy


def twostage(folder: Path, log: Path, *arguments: str) -> Seconds:
    """Run a command of ours with a cache of the benchmark's own."""
    cache = {"TWOSTAGE_CACHE": str((folder / "cache").resolve())}
    return seconds_of([sys.executable, "-m", "twostage.cli", *arguments], log, cache)


def seconds_of(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Seconds:
    """Run a command, its output in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | (environment or {})).returncode
    if code:
        sys.exit(f"{' '.join(command)}\nended with {code}; see {log}")
    ended, now = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime
    return {"cpu_seconds": cpu, "seconds": ended - began}


def compare(peer: Peer, folder: Path, class_name: str, seed: int) -> list[dict[str, Any]]:
    """Both trainers on one subject, without and with prior: a row each, and one of the base."""
    subject = world.sample_subject(np.random.default_rng([SUBJECTS[class_name], 2024]), class_name)
    home = folder / class_name.replace(" ", "-")
    take_photos(home / "photos", subject, SEEN, SUBJECTS[class_name])
    take_photos(home / "held-out", subject, UNSEEN, SUBJECTS[class_name] + 1)
    drawing = ["--num-inference-steps", "25", "--guidance-scale", "5", "--held-out", str(home / "held-out")]
    rows: list[dict[str, Any]] = []

    def measure(trainer: str, prior: bool, seconds: Seconds, *arguments: str) -> None:
        output = home / f"{trainer}-prior-{prior}-evaluation"
        twostage(folder, output.with_suffix(".log"), "evaluate", *arguments, *drawing, "-o", str(output))
        record = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
        facts = {"subject": class_name, "seed": seed}
        if not rows:
            rows.append({"trainer": "untouched base", "prior": None, **facts, "figures": record["base"]})
        row = {"trainer": trainer, "prior": prior, **facts, **seconds, "figures": record["figures"]}
        rows.append(row | {"choices": record["choices"]})
        print(f"{class_name}: {trainer}, {'with' if prior else 'no'} prior, measured", flush=True)

    for prior in (False, True):
        output = home / f"diffusers-prior-{prior}"
        seconds = peer.train(home / "photos", output, class_name, seed, prior)
        foreign = ["--pipeline", str(output), "--token", TOKEN, "--class", class_name, "--base", "pocket"]
        measure("diffusers", prior, seconds, *foreign, "--photos", str(home / "photos"))
        output = home / f"twostage-prior-{prior}"
        switch = "--with-prior-preservation" if prior else "--no-with-prior-preservation"
        seconds = twostage(
            folder,
            output.with_suffix(".log"),
            *("train", "dreambooth", str(home / "photos"), "--class", class_name, "-o", str(output)),
            *("--placeholder-token", TOKEN, "--sample.per-prompt", "0", "--seed", str(seed), switch),
            *("--stage2.steps", str(STEPS), "--stage2.batch-size", str(BATCH), "--stage2.learning-rate", str(RATE)),
            *("--num-class-images", str(CLASS_IMAGES)),
        )
        measure("twostage", prior, seconds, str(output))
    return rows


def print_table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the subjects, one row for each way to train."""
    present = [name for name in FIGURES if all(name in row["figures"] for row in rows if row["prior"] is not None)]
    print(f"\n| trainer | prior | CPU s | s | {' | '.join(present)} |\n|---|---|---|---|{'---|' * len(present)}")
    means = []
    for trainer, prior in dict.fromkeys((row["trainer"], row["prior"]) for row in rows):
        chosen = [row for row in rows if (row["trainer"], row["prior"]) == (trainer, prior)]
        mean: dict[str, Any] = {"trainer": trainer, "prior": prior}
        for name in present:
            values = [row["figures"][name]["value"] for row in chosen if name in row["figures"]]
            mean[name] = float(np.mean(values)) if values else None
        for name in ("cpu_seconds", "seconds"):
            mean[name] = float(np.mean([row[name] for row in chosen])) if prior is not None else None
        kept = {None: "", False: "no", True: f"{CLASS_IMAGES} images"}[prior]
        times = ["" if mean[name] is None else f"{mean[name]:.0f}" for name in ("cpu_seconds", "seconds")]
        cells = ["" if mean[name] is None else f"{mean[name]:.3f}" for name in present]
        print(f"| {' | '.join([trainer, kept, *times, *cells])} |")
        means.append(mean)
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of huggingface/diffusers")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter with diffusers, accelerate, torchvision")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=["backpack"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    peer = Peer(find_script(arguments.checkout, arguments.folder), arguments.python)
    versions = peer.versions()
    rows = [row for name in arguments.subjects for row in compare(peer, arguments.folder, name, arguments.seed)]
    means = print_table(rows)
    if arguments.json:
        write_report(arguments.json, peer=versions, means=means, runs=rows)


if __name__ == "__main__":
    main()
