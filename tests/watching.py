"""Runs, watched: helpers that tests of whole runs share."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def without(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update=changes)


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
