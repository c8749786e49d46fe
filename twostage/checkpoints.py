"""The checkpoints of a run: written whole, pruned to a limit, and read again, the newest that is sound.

stage1-000200/       trained.safetensors, optimizer.safetensors, state.json; averaged.safetensors
best-stage2-000400/  the weights of the best one, when the rest of it had to go
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from twostage.errors import UserError
from twostage.method.loop import Progress
from twostage.recipe import Checkpoints
from twostage.writing import remove_folder, whole_folder, writing

# A stage and a step of it; they are compared as they come in a run.
Place = tuple[int, int]
# A weight of these and all that was kept of it are one: without the rest of the folder, they still drew its samples.
_WEIGHTS = ("averaged.safetensors", "trained.safetensors")


class CheckpointFolder:
    """Of one run.

    Attributes:
        path: the folder, whether or not it is there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[Path]:
        """Oldest first."""
        # A millionth step has a seventh digit.
        return sorted(self.path.glob("stage*-*"), key=lambda path: (path.name.split("-")[0], len(path.name), path.name))

    def save(
        self, stage: int, progress: Progress, options: Checkpoints, best: Callable[[Place], Place | None] | None = None
    ) -> Path:
        """Write a checkpoint and drop all but the newest, and those that were asked for.

        Args:
            stage: that it is of.
            progress: what is written.
            options: how many stay.
            best: says which checkpoint did best up to another, if any. For each of those that stay, and that an
                interrupted run can go on from, it is kept too, or its weights.

        Raises:
            UserError: it cannot be written, or what trains is not finite; the checkpoints before it are as they were.
        """
        _refuse_broken(stage, progress)
        files = {"trained": progress.trained, "optimizer": progress.optimizer, "averaged": progress.averaged}
        needs = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        final = self.path / checkpoint_name(stage, progress.step)
        with whole_folder(final, needs) as folder:
            for name, tensors in files.items():
                if tensors or name != "averaged":
                    save_file(_in_rows(tensors), folder / f"{name}.safetensors")
            state = {"stage": stage, "step": progress.step, "numbers": progress.numbers}
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        self.prune(options, best)
        return final

    def prune(self, options: Checkpoints, best: Callable[[Place], Place | None] | None = None) -> None:
        """Drop all that need not stay; see `save`, which does it too. A kill may have come before it had.

        Raises:
            UserError: one cannot be removed.
        """
        with writing(self.path):
            self._prune(options, best)

    def _prune(self, options: Checkpoints, best: Callable[[Place], Place | None] | None) -> None:
        passing = [path for path in self.all() if place_of(path)[1] not in options.at]
        old = passing[: -options.keep]
        wanted = {best(place_of(path)) for path in self.all() if path not in old} if best else set()
        for path in old:
            if place_of(path) in wanted:
                marked = path.with_name(f"best-{path.name}")
                if marked.exists():
                    remove_folder(marked)
                os.replace(path, marked)
            else:
                remove_folder(path)
        for path in self.path.glob("best-*"):
            if place_of(path) in wanted:
                _reduce_to_weights(path)
            else:
                remove_folder(path)

    def drop(self, options: Checkpoints) -> None:
        """Remove those of a finished run that were not asked for."""
        for path in self.path.glob("*stage*-*"):
            if place_of(path)[1] not in options.at:
                shutil.rmtree(path, ignore_errors=True)

    def weights_at(self, stage: int, step: int) -> dict[str, Tensor] | None:
        """What had been trained when a checkpoint's samples were drawn, by name; None where it is gone or damaged."""
        name = checkpoint_name(stage, step)
        for folder in (self.path / name, self.path / f"best-{name}"):
            if there := [folder / file for file in _WEIGHTS if (folder / file).is_file()]:
                try:
                    return load_file(there[0])
                except (OSError, SafetensorError):
                    return None
        return None

    def newest_place(self) -> Place | None:
        """Stage and step of the newest checkpoint, read or not."""
        found = self.all()
        return place_of(found[-1]) if found else None

    def newest(self) -> tuple[int, Progress] | None:
        """Stage and progress of the newest checkpoint that can be read; None where there is none."""
        for folder in reversed(self.all()):
            try:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                trained = load_file(folder / "trained.safetensors")
                optimizer = load_file(folder / "optimizer.safetensors")
                average = folder / "averaged.safetensors"
                averaged = load_file(average) if average.is_file() else {}
                return state["stage"], Progress(state["step"], trained, optimizer, state["numbers"], averaged)
            except (OSError, ValueError, KeyError, SafetensorError):
                continue  # Damaged after it was written: the one before it is the newest.
        return None


def checkpoint_name(stage: int, step: int) -> str:
    """Of a checkpoint's folder, and of the samples that were drawn with it."""
    return f"stage{stage}-{step:06d}"


def place_of(path: Path) -> Place:
    """Of a checkpoint's folder or samples, whatever stands before the name or behind it."""
    stage, step = path.stem.split("-")[-2:]
    return int(stage.removeprefix("stage")), int(step)


def _refuse_broken(stage: int, progress: Progress) -> None:
    for name, tensor in chain(progress.trained.items(), progress.averaged.items(), progress.optimizer.items()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(
                f"stage {stage} broke before step {progress.step}: {name} has become infinite or NaN, and was not "
                f"saved over what was whole; train anew with a lower stage{stage}.learning_rate, or without "
                "mixed_precision"
            )


def _reduce_to_weights(checkpoint: Path) -> None:
    """Leave of a checkpoint what drew its samples; a kill half way leaves that too."""
    (checkpoint / "optimizer.safetensors").unlink(missing_ok=True)
    if (checkpoint / "averaged.safetensors").is_file():
        (checkpoint / "trained.safetensors").unlink(missing_ok=True)


def _in_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: those in another order in memory are copied, beside a GPU."""
    return {name: tensor if tensor.is_contiguous() else tensor.cpu().contiguous() for name, tensor in tensors.items()}
