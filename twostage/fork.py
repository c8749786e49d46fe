"""The run that another takes its token from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from twostage.errors import UserError
from twostage.families import Base, load_base
from twostage.recipe import Recipe
from twostage.recipe_fork import fork_recipe, read_recipe
from twostage.run_folder import RunFolder
from twostage.subject.photos import Photo
from twostage.subject.token_files import Keyed, load_learned


@dataclass(frozen=True)
class Parent:
    """A run whose stage 1 is done, whatever became of its stage 2.

    Attributes:
        folder: of the run, its facts read.
        recipe: its recipe.
        embeddings: rows of its tokens by name, as their files have them.
    """

    folder: RunFolder
    recipe: Recipe
    embeddings: dict[str, Keyed]

    def fork(self, recipe: Recipe) -> Recipe:
        """The recipe of a run that takes this one's token; see `fork_recipe`.

        Raises:
            UserError: they do not go together.
        """
        return fork_recipe(recipe, self.recipe, self.folder.path)

    def check_base(self, base: Base) -> None:
        """An embedding means something to the text encoder it was learned for, and to no other; what enlarges the
        pictures of its base has the same.

        Raises:
            UserError: naming both bases.
        """
        own = self.folder.facts.get("base", {})
        if own.get("sha256") != base.content_hash and not self._is_enlarged_by(base):
            raise UserError(
                f"--from {self.folder.path} learned its token for base {own.get('name')!r} "
                f"(sha256 {str(own.get('sha256'))[:12]}), and this run's is {base.source!r} "
                f"(sha256 {base.content_hash[:12]}); give --base {own.get('name')}, or train both stages"
            )

    def _is_enlarged_by(self, base: Base) -> bool:
        """Whether a base enlarges the pictures of this run's, and has its text encoders."""
        if not base.family.enlarges:
            return False
        own = load_base(self.recipe.base)
        same = own.content_hash == self.folder.facts.get("base", {}).get("sha256")
        return same and own.family.pipeline == base.family.enlarges and base.reads_as(own)

    def differs(self, photos: list[dict[str, Any]]) -> bool:
        """Whether the token was learned from other photos than these, given as in run.json."""
        return self._seen != [photo["sha256"] for photo in photos]

    def has_seen(self, photo: Photo) -> bool:
        """Whether the token was learned from this photo, among others."""
        return photo.sha256 in self._seen

    @property
    def _seen(self) -> list[str]:
        return [photo.get("sha256") for photo in self.folder.facts.get("photos", [])]

    @property
    def facts(self) -> dict[str, Any]:
        """For run.json of the new run."""
        rows = torch.cat([tensor.flatten() for keyed in self.embeddings.values() for tensor in keyed.values()])
        return {
            "run": str(self.folder.path),
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "seconds": self.folder.facts.get("seconds", {}).get("stage1", 0.0),
            "rows_sha256": hashlib.sha256(rows.float().contiguous().numpy().tobytes()).hexdigest(),
        }


def find_parent(run: Path) -> Parent:
    """Read the run that a token is to be taken from.

    Raises:
        UserError: there is no such run, it learns no token, or has not learned it yet, or its files are broken.
    """
    folder = RunFolder(Path(run))
    recipe = read_recipe(folder.path)
    folder.open()
    embeddings = {}
    for token, _ in recipe.every_subject():
        file = folder.embedding_file(token.placeholder)
        if not file.exists():
            raise UserError(
                f"--from {run}: it has not finished stage 1; go on with: twostage train {run} --resume, then take its "
                "token"
            )
        embeddings[token.placeholder] = load_learned(file, token)
    return Parent(folder, recipe, embeddings)
