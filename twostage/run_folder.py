"""The run folder: everything a run leaves behind, written so that a kill at any moment leaves the last good state.

recipe.toml      every option resolved
run.json         versions, device, base, photo hashes, seconds per phase, peak memory, self-checks, finished or not
README.md        the model card of a finished run
metrics.jsonl    one line per step: stage, step, loss, lr, grad_norm, seconds; null for what was not finite
selection.jsonl  one line per checkpoint that was measured: stage, step, its figures, its score
embedding/       <token>.safetensors, as diffusers' load_textual_inversion reads it
unet/            the tuned U-Net, as diffusers' from_pretrained reads it
adapter/         or unet/ and text_encoder/ in it: adapters, as PEFT's from_pretrained reads them
checkpoints/     stage1-000200/ ...; see `checkpoints`
samples/         the same prompts and seeds at each checkpoint
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from twostage.checkpoints import CheckpointFolder, Place, is_checkpoint_name, place_of
from twostage.errors import UserError
from twostage.families import trained_components
from twostage.lock import Lock
from twostage.memory.ladder import changed_recipe
from twostage.method.loop import Step
from twostage.method.sampling import grid
from twostage.reading import parse_json
from twostage.recipe import Recipe
from twostage.recipe_file import dump_recipe, load_recipe
from twostage.run_facts import FORMAT, read_facts
from twostage.subject.token_files import Keyed, embedding_file_name, save_embedding
from twostage.writing import UNFINISHED, remove, remove_unfinished, whole_file, whole_folder, writing

_FILES = ("recipe.toml", "run.json", "README.md", "metrics.jsonl", "selection.jsonl")


def result_folders() -> list[str]:
    """Folders of a run that are its result, if they are there."""
    return ["embedding", *trained_components(), "adapter"]


def _parts() -> list[str]:
    return [*_FILES, *result_folders(), "checkpoints", "samples"]


class RunFolder:
    """Reads and writes one run. Nothing appears under its final name before it is whole.

    Attributes:
        path: the folder.
        checkpoints: in it.
        facts: what run.json holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints")
        self.facts: dict[str, Any] = {}
        self._made = False
        self._lock = Lock(path, f"the run in {path}")

    def hold(self) -> None:
        """Keep other processes out until `let_go`, or the end of this one.

        Raises:
            UserError: one is here already; or a part of the folder is a link, and what it leads to would be written.
        """
        for name in _parts():
            if (self.path / name).is_symlink():
                raise UserError(f"{self.path / name} is a link; put what it leads to there itself")
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
            occupied = self.path.is_dir() and not self._unbegun({path.name for path in self.path.iterdir()})
        if occupied:
            raise UserError(f"the output {self.path} is not empty; choose a new folder")

    def _unbegun(self, names: set[str]) -> bool:
        """Whether nothing is there, or what a kill left of `create`, whose last file is recipe.toml."""
        names = {name for name in names if name != Lock.NAME and not name.startswith(UNFINISHED)}
        if not names or "run.json" not in names or names - {"run.json", "embedding"}:
            return not names
        try:
            return read_facts(self._file("run.json")).get("finished") is False
        except UserError:
            return False

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
        self.facts = read_facts(self._file("run.json"))
        return load_recipe(str(self._file("recipe.toml")))

    @property
    def finished(self) -> bool:
        return bool(self.facts.get("finished"))

    def create(self, recipe: Recipe, facts: dict[str, Any], embeddings: Mapping[str, Keyed] | None = None) -> None:
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
        self._remove_unfinished()
        try:
            self.update(format=FORMAT, **facts, finished=False)
            for name, rows in (embeddings or {}).items():
                save_embedding(self.embedding_file(name), name, rows)
            self._write_text("recipe.toml", dump_recipe(recipe))
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
            with suppress(OSError):
                self._file(name).unlink()
        for name in ("embedding", "tensorboard", "wandb"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.let_go()
        if self._made:
            with suppress(OSError):  # Someone else has put something there, or taken the folder away.
                self.path.rmdir()

    def embedding_file(self, token: str) -> Path:
        """Where a learned token is, or will be."""
        return self.path / "embedding" / embedding_file_name(token)

    def update(self, **facts: Any) -> None:
        """Add to run.json."""
        self.facts.update(facts)
        self._write_text("run.json", json.dumps(self.facts, indent=2) + "\n")

    # Results

    def save_model(self, name: str, save: Callable[[Path], None], needs: int = 0) -> None:
        """Write a folder such as unet/ through `save`, replacing an older one; it takes `needs` bytes, if known."""
        self._write_folder(self.path / name, save, needs)

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
        told = asdict(step).items()
        self.append("metrics.jsonl", {name: value if math.isfinite(value) else None for name, value in told})

    def append(self, name: str, entry: Mapping[str, Any]) -> None:
        """Append a line of JSON to a file of the run."""
        path = self._file(name)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def rewind(self, stage: int, step: int) -> None:
        """Forget lines and samples after a step, and what an interrupted write left; called before going on there."""
        self._remove_unfinished()
        with writing(self.path):
            self.checkpoints.forget_after((stage, step))
            for drawn in self.path.glob("samples/stage*-*"):
                if is_checkpoint_name(drawn.stem) and place_of(drawn) > (stage, step):
                    remove(drawn)
        for name in ("metrics.jsonl", "selection.jsonl"):
            if self._file(name).is_file():
                self._rewind_lines(name, (stage, step))

    def _remove_unfinished(self) -> None:
        with writing(self.path):
            for left in list(self.path.rglob(UNFINISHED + "*")):
                remove_unfinished(left)

    def _rewind_lines(self, name: str, place: Place) -> None:
        kept = []
        with writing(self._file(name)):
            text = self._file(name).read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines(keepends=True):
            try:
                entry = parse_json(line)
                behind = (entry["stage"], entry["step"]) > place
            except (ValueError, LookupError, TypeError):
                break  # A kill can cut the last line short.
            if not behind:
                kept.append(line)
        self._write_text(name, "".join(kept))

    def _file(self, name: str) -> Path:
        return self.path / name

    def _write_text(self, name: str, text: str) -> None:
        with whole_file(self._file(name), len(text.encode())) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _write_folder(self, final: Path, write: Callable[[Path], None], needs: int = 0) -> None:
        with whole_folder(final, needs) as temporary:
            write(temporary)


def _sample_name(row: int, column: int) -> str:
    return f"prompt{row + 1}-{column + 1}.png"
