"""The run folder: everything a run leaves behind, written so that a kill at any moment leaves the last good state.

recipe.toml      every option resolved
run.json         versions, device, base, photo hashes, seconds per phase, peak memory, self-checks, finished or not
README.md        the model card of a finished run
metrics.jsonl    one line per step: stage, step, loss, lr, grad_norm, seconds
embedding/       <token>.safetensors, as diffusers' load_textual_inversion reads it
unet/            the tuned U-Net, as diffusers' from_pretrained reads it
adapter/         or unet/ and text_encoder/ in it: adapters, as PEFT's from_pretrained reads them
checkpoints/     stage1-000200/ ...: trained.safetensors, optimizer.safetensors, state.json; averaged.safetensors
samples/         the same prompts and seeds at each checkpoint
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from twostage.errors import UserError
from twostage.method.loop import Progress, Step
from twostage.method.sampling import grid
from twostage.recipe import Checkpoints, Recipe
from twostage.recipe_file import dump_recipe, load_recipe
from twostage.subject.tokens import embedding_file_name, save_embedding

_UNFINISHED = ".writing-"


class RunFolder:
    """Reads and writes one run. Nothing appears under its final name before it is whole.

    Attributes:
        path: the folder.
        facts: what run.json holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self._made = False

    def check_free(self) -> None:
        """Make sure that a new run can be written here; writes nothing.

        Raises:
            UserError: the folder holds something, or is none.
        """
        with _writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"the output {self.path} is a file; choose a folder")
            if self._file("recipe.toml").exists() and self._file("run.json").exists():
                raise UserError(
                    f"the output {self.path} holds another run; go on with --resume, or choose a new folder"
                )
            occupied = self.path.is_dir() and any(self.path.iterdir())
        if occupied:
            raise UserError(f"the output {self.path} is not empty; choose a new folder")

    def open(self) -> Recipe:
        """Read what an earlier session wrote.

        Raises:
            UserError: there is no run, or its files are broken.
        """
        # os.path's answer is False where Path's is a PermissionError.
        if not all(os.path.isfile(self._file(name)) for name in ("run.json", "recipe.toml")):
            raise UserError(f"{self.path} holds no run (no run.json and recipe.toml); train one first")
        try:
            facts = json.loads(self._file("run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self._file('run.json')}: {error}") from error
        if not isinstance(facts, dict):
            raise UserError(f"{self._file('run.json')} holds no facts of a run; train into another folder")
        self.facts = facts
        return load_recipe(str(self._file("recipe.toml")))

    @property
    def finished(self) -> bool:
        return bool(self.facts.get("finished"))

    def create(self, recipe: Recipe, facts: dict[str, Any], embeddings: Mapping[str, Tensor] | None = None) -> None:
        """Begin a run.

        Args:
            recipe: its recipe.
            facts: for run.json.
            embeddings: rows of the recipe's tokens by name, where they are learned already.

        Raises:
            UserError: it cannot be written; nothing of it is left.
        """
        with _writing(self.path):
            self._made = not self.path.is_dir()
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._write_text("recipe.toml", dump_recipe(recipe))
            for name, rows in (embeddings or {}).items():
                save_embedding(self.embedding_file(name), name, rows)
            self.update(**facts, finished=False)
        except UserError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Take `create` back, and what a tracker has begun since."""
        for name in ("recipe.toml", "run.json"):
            if self._file(name).is_file():
                self._file(name).unlink()
        for name in ("embedding", "tensorboard", "wandb"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        if self._made:
            self.path.rmdir()

    def embedding_file(self, token: str) -> Path:
        """Where a learned token is, or will be."""
        return self.path / "embedding" / embedding_file_name(token)

    def update(self, **facts: Any) -> None:
        """Add to run.json."""
        self.facts.update(facts)
        self._write_text("run.json", json.dumps(self.facts, indent=2) + "\n")

    # Checkpoints

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        found = self.path.glob("checkpoints/stage*-*")
        # A millionth step has a seventh digit.
        return sorted(found, key=lambda path: (path.name.split("-")[0], len(path.name), path.name))

    def save_checkpoint(self, stage: int, progress: Progress, options: Checkpoints) -> Path:
        """Write a checkpoint and drop all but the newest, and those that were asked for."""
        final = self.path / "checkpoints" / f"stage{stage}-{progress.step:06d}"

        def write(folder: Path) -> None:
            save_file(progress.trained, folder / "trained.safetensors")
            save_file(progress.optimizer, folder / "optimizer.safetensors")
            if progress.averaged:
                save_file(progress.averaged, folder / "averaged.safetensors")
            state = {"stage": stage, "step": progress.step, "numbers": progress.numbers}
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

        self._write_folder(final, write)
        passing = [path for path in self.checkpoints() if int(path.name.split("-")[1]) not in options.at]
        for old in passing[: -options.keep]:
            shutil.rmtree(old)
        return final

    def newest_checkpoint(self) -> tuple[int, Progress] | None:
        """Stage and progress of the newest checkpoint that can be read; None where there is none."""
        for folder in reversed(self.checkpoints()):
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

    # Results

    def save_model(self, name: str, save: Callable[[Path], None]) -> None:
        """Write a folder such as unet/ through `save`, replacing an older one."""
        self._write_folder(self.path / name, save)

    @contextmanager
    def saving(self, path: Path) -> Iterator[Path]:
        """A temporary name inside the run to write a file to; afterwards it is `path`."""
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(_UNFINISHED + path.name)
            try:
                yield temporary
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def has_samples(self, name: str) -> bool:
        """Whether the samples of that name are there already."""
        return (self.path / "samples" / f"{name}.png").is_file()

    def save_samples(self, name: str, pictures: Sequence[Image.Image], columns: int) -> None:
        """Write sample pictures to the folder `name`, then all on one sheet, `name`.png, in rows of `columns`."""

        def write(folder: Path) -> None:
            for index, picture in enumerate(pictures):
                picture.save(folder / f"prompt{index // columns + 1}-{index % columns + 1}.png")

        samples = self.path / "samples"
        self._write_folder(samples / name, write)
        with self.saving(samples / f"{name}.png") as temporary:
            grid(pictures, columns).save(temporary, format="PNG")

    # Metrics

    def log(self, step: Step) -> None:
        """Append a line to metrics.jsonl."""
        path = self._file("metrics.jsonl")
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(step)) + "\n")

    def rewind(self, stage: int, step: int) -> None:
        """Forget the lines after a step, and what an interrupted write left; called before going on from there."""
        for left in self.path.rglob(_UNFINISHED + "*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        path = self._file("metrics.jsonl")
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # A kill can cut the last line short.
            if (entry["stage"], entry["step"]) <= (stage, step):
                kept.append(line)
        self._write_text("metrics.jsonl", "".join(kept))

    def _file(self, name: str) -> Path:
        return self.path / name

    def _write_text(self, name: str, text: str) -> None:
        with self.saving(self._file(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _write_folder(self, final: Path, write: Callable[[Path], None]) -> None:
        with whole_folder(final) as temporary:
            write(temporary)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to write into; afterwards it is `final`, in place of what was there.

    Raises:
        UserError: it cannot be written; nothing of it is left.
    """
    with _writing(final):
        temporary = final.with_name(_UNFINISHED + final.name)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell a full disk, a missing permission and their like in one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports what the system said inside its own message.
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write {path}: {reason}; make room or choose another folder. What was saved before is whole"
        ) from error


def differences(stored: Recipe, given: Recipe) -> list[str]:
    """Options in which two recipes differ, as "stage2.steps (300, now 400)"."""
    old, new = flatten(stored.model_dump(mode="json")), flatten(given.model_dump(mode="json"))
    names = list(dict.fromkeys([*old, *new]))
    return [f"{name} ({old.get(name)}, now {new.get(name)})" for name in names if old.get(name) != new.get(name)]


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables in one level, by dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in table.items():
        leaves.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return leaves
