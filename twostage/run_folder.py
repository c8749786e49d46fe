"""The run folder: everything a run leaves behind, written so that a kill at any moment leaves the last good state.

recipe.toml      every option resolved
run.json         versions, device, base, photo hashes, seconds per phase, peak memory, self-checks, finished or not
README.md        the model card of a finished run
metrics.jsonl    one line per step: stage, step, loss, lr, grad_norm, seconds
selection.jsonl  one line per checkpoint that was measured: stage, step, its figures, its score
embedding/       <token>.safetensors, as diffusers' load_textual_inversion reads it
unet/            the tuned U-Net, as diffusers' from_pretrained reads it
adapter/         or unet/ and text_encoder/ in it: adapters, as PEFT's from_pretrained reads them
checkpoints/     stage1-000200/ ...: trained.safetensors, optimizer.safetensors, state.json; averaged.safetensors;
                 best-stage2-000400/: the weights of the best one, when the rest of it had to go
samples/         the same prompts and seeds at each checkpoint
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from twostage.errors import UserError
from twostage.lock import Lock
from twostage.memory.ladder import changed_recipe
from twostage.method.loop import Progress, Step
from twostage.method.sampling import grid
from twostage.recipe import Checkpoints, Recipe
from twostage.recipe_file import dump_recipe, load_recipe
from twostage.subject.tokens import embedding_file_name, save_embedding
from twostage.writing import UNFINISHED, whole_file, whole_folder, writing

# A stage and a step of it; they are compared as they come in a run.
Place = tuple[int, int]


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
        self._lock = Lock(path, f"the run in {path}")

    def hold(self) -> None:
        """Keep other processes out until `let_go`, or the end of this one; a UserError where one is here already."""
        with writing(self.path):
            self._lock.take()

    def let_go(self) -> None:
        """End `hold`, if it was begun."""
        self._lock.release()

    def check_free(self) -> None:
        """Make sure that a new run can be written here; writes nothing.

        Raises:
            UserError: the folder holds something, or is none.
        """
        with writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"the output {self.path} is a file; choose a folder")
            self._refuse_another()
            occupied = self.path.is_dir() and any(path.name != Lock.NAME for path in self.path.iterdir())
        if occupied:
            raise UserError(f"the output {self.path} is not empty; choose a new folder")

    def _refuse_another(self) -> None:
        if self._file("recipe.toml").exists() and self._file("run.json").exists():
            raise UserError(f"the output {self.path} holds another run; go on with --resume, or choose a new folder")

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
            raise UserError(
                f"cannot read {self._file('run.json')}: {error}; restore it, or train anew into another folder"
            ) from error
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
        with writing(self.path):
            self._made = not self.path.is_dir()
            self.path.mkdir(parents=True, exist_ok=True)
        self.hold()
        self._refuse_another()  # It may have begun here since `check_free`.
        try:
            self._write_text("recipe.toml", dump_recipe(recipe))
            for name, rows in (embeddings or {}).items():
                save_embedding(self.embedding_file(name), name, rows)
            self.update(**facts, finished=False)
        except UserError:
            self.abandon()
            raise

    def fitted(self, recipe: Recipe) -> Recipe:
        """A recipe as this run has changed it to fit in memory, if it has.

        Raises:
            UserError: as `open`.
        """
        stored = self.open()
        changed = changed_recipe(recipe, self.facts.get("plan", {}).get("changes", {}))
        return stored if changed == stored else recipe

    def refit(self, recipe: Recipe) -> None:
        """Have the run go on with another recipe, which its checkpoints fit too."""
        self._write_text("recipe.toml", dump_recipe(recipe))

    def abandon(self) -> None:
        """Take `create` back, and what a tracker has begun since."""
        for name in ("recipe.toml", "run.json"):
            if self._file(name).is_file():
                self._file(name).unlink()
        for name in ("embedding", "tensorboard", "wandb"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.let_go()
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

    def save_checkpoint(
        self, stage: int, progress: Progress, options: Checkpoints, best: Callable[[Place], Place | None] | None = None
    ) -> Path:
        """Write a checkpoint and drop all but the newest, and those that were asked for.

        Args:
            stage: that it is of.
            progress: what is written.
            options: how many stay.
            best: says which checkpoint did best up to another, if any. For each of those that stay, and that an
                interrupted run can go on from, it is kept too, or its weights.
        """
        final = self.path / "checkpoints" / checkpoint_name(stage, progress.step)

        def write(folder: Path) -> None:
            save_file(_in_rows(progress.trained), folder / "trained.safetensors")
            save_file(_in_rows(progress.optimizer), folder / "optimizer.safetensors")
            if progress.averaged:
                save_file(_in_rows(progress.averaged), folder / "averaged.safetensors")
            state = {"stage": stage, "step": progress.step, "numbers": progress.numbers}
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

        self._write_folder(final, write)
        passing = [path for path in self.checkpoints() if _place(path)[1] not in options.at]
        old = passing[: -options.keep]
        wanted = {best(_place(path)) for path in self.checkpoints() if path not in old} if best else set()
        for path in old:
            if _place(path) in wanted:
                self._reduce_to_weights(path)
            else:
                shutil.rmtree(path)
        for path in self.path.glob("checkpoints/best-*"):
            if _place(path) not in wanted:
                shutil.rmtree(path)
        return final

    def drop_checkpoints(self, options: Checkpoints) -> None:
        """Remove those of a finished run that were not asked for."""
        for path in self.path.glob("checkpoints/*stage*-*"):
            if _place(path)[1] not in options.at:
                shutil.rmtree(path, ignore_errors=True)

    def _reduce_to_weights(self, checkpoint: Path) -> None:
        """Leave of a checkpoint what drew its samples; a kill half way leaves that too."""
        (checkpoint / "optimizer.safetensors").unlink(missing_ok=True)
        if (checkpoint / "averaged.safetensors").is_file():
            (checkpoint / "trained.safetensors").unlink(missing_ok=True)
        marked = checkpoint.with_name(f"best-{checkpoint.name}")
        shutil.rmtree(marked, ignore_errors=True)
        os.replace(checkpoint, marked)

    def weights_at(self, stage: int, step: int) -> dict[str, Tensor] | None:
        """What had been trained when a checkpoint's samples were drawn, by name; None where it is gone or damaged."""
        name = checkpoint_name(stage, step)
        for folder in (self.path / "checkpoints" / name, self.path / "checkpoints" / f"best-{name}"):
            files = [folder / "averaged.safetensors", folder / "trained.safetensors"]
            if there := [file for file in files if file.is_file()]:
                try:
                    return load_file(there[0])
                except (OSError, SafetensorError):
                    return None
        return None

    def newest_place(self) -> Place | None:
        """Stage and step of the newest checkpoint, read or not."""
        found = self.checkpoints()
        return _place(found[-1]) if found else None

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

    def has_samples(self, name: str) -> bool:
        """Whether the samples of that name are there already."""
        return (self.path / "samples" / f"{name}.png").is_file()

    def save_samples(self, name: str, pictures: Sequence[Image.Image], columns: int) -> None:
        """Write sample pictures to the folder `name`, then all on one sheet, `name`.png, in rows of `columns`."""

        def write(folder: Path) -> None:
            for index, picture in enumerate(pictures):
                picture.save(folder / _sample_name(index // columns, index % columns))

        samples = self.path / "samples"
        self._write_folder(samples / name, write)
        with whole_file(samples / f"{name}.png") as temporary:
            grid(pictures, columns).save(temporary, format="PNG")

    def sample_files(self, name: str, row: int, columns: int) -> list[Path]:
        """The pictures of the samples `name` that are in row `row`, counted from 0, of the sheet."""
        return [self.path / "samples" / name / _sample_name(row, column) for column in range(columns)]

    # Lines

    def log(self, step: Step) -> None:
        """Append a line to metrics.jsonl."""
        self.append("metrics.jsonl", asdict(step))

    def append(self, name: str, entry: Mapping[str, Any]) -> None:
        """Append a line of JSON to a file of the run."""
        path = self._file(name)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def rewind(self, stage: int, step: int) -> None:
        """Forget lines and samples after a step, and what an interrupted write left; called before going on there."""
        for left in self.path.rglob(UNFINISHED + "*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for drawn in self.path.glob("samples/stage*-*"):
            if _place(drawn) > (stage, step):
                shutil.rmtree(drawn) if drawn.is_dir() else drawn.unlink()
        for name in ("metrics.jsonl", "selection.jsonl"):
            if self._file(name).is_file():
                self._rewind_lines(name, (stage, step))

    def _rewind_lines(self, name: str, place: Place) -> None:
        kept = []
        for line in self._file(name).read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # A kill can cut the last line short.
            if (entry["stage"], entry["step"]) <= place:
                kept.append(line)
        self._write_text(name, "".join(kept))

    def _file(self, name: str) -> Path:
        return self.path / name

    def _write_text(self, name: str, text: str) -> None:
        with whole_file(self._file(name)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _write_folder(self, final: Path, write: Callable[[Path], None]) -> None:
        with whole_folder(final) as temporary:
            write(temporary)


def checkpoint_name(stage: int, step: int) -> str:
    """Of a checkpoint's folder, and of the samples that were drawn with it."""
    return f"stage{stage}-{step:06d}"


def _in_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: those in another order in memory are copied, beside a GPU."""
    return {name: tensor if tensor.is_contiguous() else tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _place(path: Path) -> Place:
    """Of a checkpoint's folder or samples, whatever stands before the name or behind it."""
    stage, step = path.stem.split("-")[-2:]
    return int(stage.removeprefix("stage")), int(step)


def _sample_name(row: int, column: int) -> str:
    return f"prompt{row + 1}-{column + 1}.png"
