"""Runs, watched: helpers that tests of whole runs share."""

from __future__ import annotations

import json
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from twostage.display import Display, Update
from twostage.recipe import Recipe


class Watcher(Display):
    """Remembers what it is told, and lets a test act at a step."""

    def __init__(self, at: tuple[str, int] = ("", 0), act: Callable[[], None] = lambda: None) -> None:
        self.said: list[str] = []
        self._at, self._act = at, act

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Update]:
        def update(done: int, **numbers: float) -> None:
            if (label, done) == self._at:
                self._act()

        yield update


class Alive:
    """How many of the pictures it was shown have been in memory at once, at most."""

    def __init__(self) -> None:
        self.most = 0
        self._seen: list[weakref.ref[Image.Image]] = []

    def see(self, *pictures: Image.Image) -> None:
        self._seen = [one for one in self._seen if one()] + [weakref.ref(picture) for picture in pictures]
        self.most = max(self.most, len(self._seen))


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def without(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update=changes)


def noise_photo(seed: int, size: tuple[int, int] = (300, 300)) -> Image.Image:
    """A grey picture in RGB with structure at every scale, as photos have it, and like no other's."""
    rng, picture = np.random.default_rng(seed), Image.new("L", size)
    for side, share in ((6, 1.0), (60, 0.4), (250, 0.35)):
        noise = Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8))
        picture = Image.blend(picture, noise.resize(size, Image.Resampling.BICUBIC), share)
    return ImageOps.autocontrast(picture).convert("RGB")


def results(run: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    return tensors | load_file(run / "embedding" / "rare.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = results(one), results(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
