"""Small tasks for engines, which need them where a worker can import them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.errors import UserError


@dataclass(frozen=True)
class Tell:
    """What a worker sees."""

    def run(self) -> dict[str, Any]:
        import torch

        return {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": torch.get_num_threads(), "pid": os.getpid()}


@dataclass(frozen=True)
class Die:
    """Kills its worker outright so many times, counted in a file."""

    count: Path
    times: int

    def run(self) -> dict[str, Any]:
        before = int(self.count.read_text()) if self.count.exists() else 0
        if before < self.times:
            self.count.write_text(str(before + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return {"died": before}


@dataclass(frozen=True)
class Fail:
    """Raises, as people's mistakes or ours do."""

    foreseen: bool

    def run(self) -> dict[str, Any]:
        raise UserError("a mistake\nin two lines") if self.foreseen else ZeroDivisionError("a bug")


@dataclass(frozen=True)
class Wait:
    """Until it is told to end, for a minute."""

    begun: Path

    def run(self) -> dict[str, Any]:
        self.begun.touch()
        time.sleep(60)
        return {}


@dataclass(frozen=True)
class LoadSlowly:
    """Takes a minute to be loaded, as libraries can."""

    begun: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_slowly, (self.begun,)


def _load_slowly(begun: Path) -> LoadSlowly:
    begun.touch()
    time.sleep(60)
    return LoadSlowly(begun)
