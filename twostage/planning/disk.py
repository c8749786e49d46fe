"""Whether a run's files have room where they are to be written, before anything is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from twostage.errors import UserError
from twostage.families import Base
from twostage.gauge import size
from twostage.planning.rehearsal import rehearse
from twostage.planning.room import room
from twostage.recipe import Recipe
from twostage.run_folder import result_folders
from twostage.writing import free_bytes

# Bytes of a checkpoint for one of the base's weights, at most: weights, AdamW's two moments and an average in float32,
# where the base's own file may have them in half precision.
_MOST = 16 / 2


def check_disk(recipe: Recipe, base: Base, folder: Path) -> None:
    """Refuse a run that cannot be written where it is to be: better now than at its last checkpoint.

    What is certain counts: checkpoints and results. Sample pictures come on top, and what an interrupted run has
    written already is there.

    Args:
        recipe: of the run.
        base: that it trains.
        folder: of the run, whether or not it is there.

    Raises:
        UserError: how many bytes are missing.
    """
    free = free_bytes(folder)
    if free is None:
        return
    there = sum(_bytes(folder / part) for part in ("checkpoints", *result_folders()))
    weights = sum(_bytes(base.folder / part) for part in (base.family.denoiser, *base.family.text))
    kept = recipe.checkpoints.keep + 1 + len(recipe.checkpoints.at)
    if _MOST * weights * (kept + 1) <= free + there:
        return  # Without a rehearsal, which takes seconds.
    outlined = recipe.model_copy(update={"base": str(base.folder)})
    found = room(outlined, rehearse(outlined), recipe.data.resolution or base.resolution)
    needs = found.disk - found.samples - there
    if needs > free:
        raise UserError(
            f"the run needs {needs:,} bytes in {folder} for its checkpoints and results, and {free:,} are free: "
            f"{needs - free:,} ({size(needs - free)}) are missing; make room, choose another output, or keep fewer "
            f"checkpoints (checkpoints.keep, now {recipe.checkpoints.keep})"
        )


def _bytes(folder: Path) -> int:
    """Of the tensors in a folder; another process may remove some meanwhile."""
    total = 0
    for file in folder.rglob("*.safetensors"):
        with suppress(OSError):
            total += file.stat().st_size
    return total
