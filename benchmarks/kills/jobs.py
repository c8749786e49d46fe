"""What is killed: each strategy, both stages, what chooses a checkpoint, class images, and an export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from twostage import run
from twostage.display import Display
from twostage.exporting import export
from twostage.lock import Lock
from twostage.pocket import pocket_folder
from twostage.recipe_file import load_recipe
from twostage.writing import UNFINISHED

_SHORT: dict[str, Any] = {
    "data.class_noun": "backpack",
    "checkpoints.every": 2,
    "checkpoints.keep": 1,
    "sample.prompts": ("a photo of a {}",),
    "sample.per_prompt": 1,
    "sample.num_inference_steps": 2,
}
_STAGE1: dict[str, Any] = {"stage1.steps": 5, "stage1.batch_size": 2}
_STAGE2: dict[str, Any] = {"stage2.steps": 5, "stage2.batch_size": 2}
_CLASS_IMAGES: dict[str, Any] = {
    "prior.preserve": True,
    "prior.source": "images",
    "prior.weight": 1.0,
    "prior.num_class_images": 3,
    "prior.sample_batch_size": 1,
    "prior.num_inference_steps": 2,
}
_PHOTOS: dict[str, Any] = {"prior.num_class_images": 8}
_BEST: dict[str, Any] = {
    "select.keep": "best",
    "select.encoders": (f"dino={pocket_folder('vit')}", f"clip={pocket_folder('clip')}"),
    "checkpoints.every": 1,
}


@dataclass(frozen=True)
class Job:
    """Work that can be killed and gone on with.

    Attributes:
        name: of it.
        work: begins it, or goes on with it, as a user would; given the folder it works in, and a display.
    """

    name: str
    work: Callable[[Path, Display], object]


def jobs(base: str, photos: Path, held_out: Path, exported: Path | None) -> list[Job]:
    """All of them.

    Args:
        base: that is trained on.
        photos, held_out: of the subject.
        exported: a finished run; without it, there are no exports.
    """
    recipes: dict[str, tuple[str, dict[str, Any]]] = {
        "two-stage": ("two-stage", _STAGE1 | _STAGE2 | _PHOTOS),
        "two-stage, the best checkpoint": (
            "two-stage",
            _STAGE1 | _STAGE2 | _BEST | {"prior.preserve": False, "data.held_out": (str(held_out),)},
        ),
        "two-stage, averaged": ("two-stage", _STAGE1 | _STAGE2 | {"prior.preserve": False, "stage2.ema_decay": 0.9}),
        "dreambooth": ("dreambooth", _STAGE2 | _CLASS_IMAGES),
        "textual-inversion": ("textual-inversion", _STAGE1),
        "two-stage-lora": ("two-stage-lora", _STAGE1 | _STAGE2 | _PHOTOS),
        "dreambooth-lora": ("dreambooth-lora", _STAGE2 | _CLASS_IMAGES),
    }
    found = []
    for name, (recipe, options) in recipes.items():
        overrides = {**_SHORT, **options, "data.photos": str(photos)}
        found.append(Job(name, partial(_train, recipe, base, overrides)))
    if exported:
        found += [Job(f"export to {form}", partial(_export, exported, form)) for form in ("diffusers", "a1111")]
    return found


def _train(name: str, base: str, overrides: dict[str, Any], place: Path, display: Display) -> None:
    folder = place / "run"
    begun = (folder / "run.json").is_file() and (folder / "recipe.toml").is_file()
    run.train(load_recipe(name, base=base, overrides=overrides), folder, resume=begun, display=display)


def _export(finished: Path, form: str, place: Path, display: Display) -> None:
    output = place / "export" / form
    if not output.exists():  # It appears whole or not at all: whoever finds it is done.
        export(finished, form, output, display=display)


def contents(place: Path) -> dict[str, str]:
    """What unbroken and interrupted work must have in common: every file of the result, and what it says.

    Seconds, versions and peaks of memory are left out, and so are the cache, of which who goes on may need less, and
    the lock, which holds nobody when its process has ended.
    """
    found = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file() or path.is_symlink()):
        name = path.relative_to(place).as_posix()
        if not name.startswith("cache/") and path.name != Lock.NAME:
            found[name] = _content(path)
    return found


def _content(path: Path) -> str:
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return json.dumps([{name: value for name, value in line.items() if name != "seconds"} for line in lines])
    if path.name == "run.json":
        facts = json.loads(path.read_text(encoding="utf-8"))
        return json.dumps({name: facts[name] for name in ("finished", "checks", "base", "photos")})
    if path.name == "README.md":  # Says how long it took.
        return "a model card"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def faults(place: Path) -> list[str]:
    """What a kill must never leave: a file under its final name that is not whole."""
    wrong = []
    for path in place.rglob("*.safetensors"):
        if not any(part.startswith(UNFINISHED) for part in path.relative_to(place).parts):
            try:
                with safe_open(path, framework="pt") as file:
                    list(file.keys())
            except Exception as error:  # noqa: BLE001  Whatever a reader says of it.
                wrong.append(f"{path.relative_to(place)}: {error}")
    for path in place.rglob("*.json"):
        if not any(part.startswith(UNFINISHED) for part in path.relative_to(place).parts):
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                wrong.append(f"{path.relative_to(place)}: {error}")
    return wrong
