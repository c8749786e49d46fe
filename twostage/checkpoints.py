"""The checkpoints of a run: written whole, pruned to a limit, and read again, the newest that is sound.

stage1-000200/       trained.safetensors, optimizer.safetensors, state.json; averaged.safetensors
best-stage2-000400/  the weights of the best one, when the rest of it had to go
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from twostage.errors import UserError
from twostage.method.loop import Progress
from twostage.method.selfcheck import checksum
from twostage.reading import read_json
from twostage.recipe import Checkpoints
from twostage.writing import remove_folder, system_error, whole_folder, writing

# A stage and a step of it; they are compared as they come in a run.
Place = tuple[int, int]
_NAME = re.compile(r"(best-)?stage\d-\d{6,}")
# What the system says of files that are not there, and what reading a damaged checkpoint raises.
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


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
        return sorted(self._named("stage"), key=lambda path: (path.name.split("-")[0], len(path.name), path.name))

    def _named(self, start: str) -> list[Path]:
        """Folders of checkpoints whose names begin so; what else lies there is not ours, and links lead elsewhere."""
        there = self.path.glob(f"{start}*") if not self.path.is_symlink() else []
        return [path for path in there if is_checkpoint_name(path.name) and path.is_dir() and not path.is_symlink()]

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
        sums = {name: _sums(tensors) for name, tensors in files.items()}
        state = {"stage": stage, "step": progress.step, "numbers": progress.numbers, "sums": sums}
        told = json.dumps(_sealed(state), sort_keys=True)
        needs = len(told) + sum(map(_bytes, files.values()))
        final = self.path / checkpoint_name(stage, progress.step)
        with whole_folder(final, needs) as folder:
            for name, tensors in files.items():
                if tensors or name != "averaged":
                    save_file(_in_rows(tensors), folder / f"{name}.safetensors")
            (folder / "state.json").write_text(told, encoding="utf-8")
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
        for path in self._named("best-"):
            if place_of(path) in wanted:
                _reduce_to_weights(path)
            else:
                remove_folder(path)

    def forget_after(self, place: Place) -> None:
        """Remove those after a stage and step, which could not be read: what is trained anew comes in their place.

        Raises:
            UserError: one cannot be removed.
        """
        with writing(self.path):
            for path in self._named("best-") + self.all():
                if place_of(path) > place:
                    remove_folder(path)

    def drop(self, options: Checkpoints) -> None:
        """Remove those of a finished run that were not asked for."""
        for path in self._named("best-") + self.all():
            if place_of(path)[1] not in options.at:
                shutil.rmtree(path, ignore_errors=True)

    def weights_at(self, stage: int, step: int) -> dict[str, Tensor] | None:
        """What had been trained when a checkpoint's samples were drawn, by name; None where it is gone or damaged."""
        name = checkpoint_name(stage, step)
        for folder in (self.path / name, self.path / f"best-{name}"):
            if there := [kind for kind in ("averaged", "trained") if (folder / f"{kind}.safetensors").is_file()]:
                try:
                    return _read(folder, there[0], _read_state(folder))
                except _DAMAGED:
                    return None
        return None

    def newest_place(self) -> Place | None:
        """Stage and step of the newest checkpoint, read or not."""
        found = self.all()
        return place_of(found[-1]) if found else None

    def newest(self) -> tuple[int, Progress] | None:
        """Stage and progress of the newest checkpoint that is sound; None where there is none.

        Raises:
            UserError: the system cannot read one that is there; it may be sound.
        """
        for folder in reversed(self.all()):
            try:
                state = _read_state(folder)
                trained, optimizer = (_read(folder, kind, state) for kind in ("trained", "optimizer"))
                has_average = state.get("sums", {}).get("averaged") or (folder / "averaged.safetensors").is_file()
                averaged = _read(folder, "averaged", state) if has_average else {}
                if place_of(folder) != (state["stage"], state["step"]):
                    raise ValueError("of another place")
                return state["stage"], Progress(state["step"], trained, optimizer, state["numbers"], averaged)
            except _DAMAGED as error:
                if (number := system_error(error)) and number not in _GONE:
                    raise UserError(
                        f"cannot read the checkpoint {folder}: {os.strerror(number)}; make it readable, and go on. "
                        "Nothing was changed"
                    ) from error
                continue  # Damaged after it was written: the one before it is the newest.
        return None


def checkpoint_name(stage: int, step: int) -> str:
    """Of a checkpoint's folder, and of the samples that were drawn with it."""
    return f"stage{stage}-{step:06d}"


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder called so is, or was, a checkpoint."""
    return bool(_NAME.fullmatch(name))


def place_of(path: Path) -> Place:
    """Of a checkpoint's folder or samples, whatever stands before the name or behind it."""
    stage, step = path.stem.split("-")[-2:]
    return int(stage.removeprefix("stage")), int(step)


def _sums(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """What a tensor's bits, shape and type are known by again."""
    return {name: [checksum(tensor), list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()}


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of a file of tensors, at most: the names in its header, and what a disk rounds up to."""
    return sum(tensor.nbytes + len(name.encode()) + 128 for name, tensor in tensors.items()) + 4096


def _sealed(state: dict[str, Any]) -> dict[str, Any]:
    """With a hash of itself. What JSON reads, it writes again as it was."""
    return {**state, "sha256": hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()}


def _read_state(folder: Path) -> dict[str, Any]:
    """What state.json says.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    state = read_json(folder / "state.json")
    if not isinstance(state, dict):
        raise ValueError("no table")
    if "sha256" in state or "sums" in state:  # Checkpoints had neither at first.
        bare = {name: value for name, value in state.items() if name != "sha256"}
        if state != _sealed(bare):
            raise ValueError("not what was written")
    if {"stage", "step", "numbers"} - state.keys():
        raise ValueError("not a checkpoint's")
    return state


def _read(folder: Path, kind: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file of a checkpoint.

    Raises:
        OSError, ValueError, SafetensorError: it cannot be read, or is not what was written.
    """
    file = folder / f"{kind}.safetensors"
    if not file.is_file():  # Of a pipe, the end might never come.
        raise ValueError("no file")
    tensors = load_file(file)
    if "sums" in state and _sums(tensors) != state["sums"][kind]:
        raise ValueError("not what was written")
    return tensors


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
