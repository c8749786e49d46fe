"""Run one of diffusers' training scripts for one step, in a process of its own, and read what it recorded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from benchmarks.family_losses.cases import BATCH, PROMPT, Case

RECORDER = Path(__file__).with_name("recorder.py")


@dataclass(frozen=True)
class Recording:
    """What a script's step was made of, by the names of `recorder`, and the versions of what it ran on."""

    tensors: dict[str, Tensor]
    versions: dict[str, str]


@dataclass(frozen=True)
class Peer:
    """The scripts, and what runs them.

    Attributes:
        checkout: of diffusers.
        folder: of ours, for photos, outputs and logs.
        python: interpreter.
        libraries: folder of packages that the interpreter lacks.
    """

    checkout: Path
    folder: Path
    python: str
    libraries: Path | None

    def run(self, case: Case, base: Path, resolution: int, seed: int) -> Recording:
        """One step of the case's script on `base`."""
        home = self.folder / case.name
        recording, output = home / "recording.safetensors", home / "output"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        places = {name: str(self.folder / name.lower()) for name in ("PHOTOS", "CAPTIONED", "CLASS", "CACHE")}
        libraries = [] if self.libraries is None else ["--libraries", str(self.libraries)]
        command = [
            *(self.python, str(RECORDER), str(recording), *libraries, str(self.checkout / case.script)),
            *(places.get(argument, argument) for argument in case.arguments),
            *("--pretrained_model_name_or_path", str(base), "--resolution", str(resolution)),
            *("--output_dir", str(output), "--max_train_steps", "1", "--seed", str(seed)),
            *("--learning_rate", "1e-4", "--lr_scheduler", "constant", "--lr_warmup_steps", "0"),
        ]
        log = home / "log.txt"
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
        with log.open("w", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | offline).returncode
        if code:
            sys.exit(f"{' '.join(command)}\nended with {code}; see {log}")
        shutil.rmtree(output, ignore_errors=True)
        return read_recording(recording)


def read_recording(path: Path) -> Recording:
    """What `recorder` has written."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Recording(tensors, json.loads(file.metadata()["versions"]))


def draw_photos(folder: Path, side: int) -> None:
    """Pictures of noise, each of a size of its own, its shorter side above `side`: to learn from, with captions and
    without, and of the class."""
    random = np.random.default_rng(0)
    captions = []
    for name in ("photos", "captioned", "class"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(BATCH):
        for name in ("photos", "class"):
            height, width = random.integers(side + 1, 2 * side, 2)
            picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            picture.save(folder / name / f"{index}.png")
        shutil.copy(folder / "photos" / f"{index}.png", folder / "captioned")
        captions.append(json.dumps({"file_name": f"{index}.png", "text": PROMPT}) + "\n")
    (folder / "captioned" / "metadata.jsonl").write_text("".join(captions), encoding="utf-8")
