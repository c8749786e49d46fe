"""What strangers could hand over: each attack leaves a canary behind if it works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.watching import without
from twostage.display import Display
from twostage.errors import UserError
from twostage.recipe import Adapter, Recipe, Sample, Stage2
from twostage.run import train


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Is there only when an attack has worked."""
    return tmp_path / "canary"


@pytest.fixture
def bomb(canary: Path) -> Callable[[Path], Path]:
    """Writes a pickle that makes the canary when it is read, and hands its path back."""

    def write(path: Path) -> Path:
        torch.save({"weight": Bomb(canary)}, path)
        return path

    return write


@pytest.fixture
def own_base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base of the test's own."""
    return Path(shutil.copytree(tiny_base, tmp_path / "their base"))


@pytest.fixture(scope="session")
def lora_run(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an adapter; never write to it."""
    assert tiny_recipe.stage1
    recipe = without(
        tiny_recipe,
        stage1=tiny_recipe.stage1.model_copy(update={"steps": 1}),
        stage2=Stage2(steps=1, learning_rate=1e-2, batch_size=1, train="adapter"),
        adapter=Adapter(rank=2),
        sample=Sample(per_prompt=0),
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "lora", display=Display())


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def refuse(attack: Callable[[], Any], *words: str) -> str:
    """The one line that an attack ends in."""
    with pytest.raises(UserError) as error:
        attack()
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message
