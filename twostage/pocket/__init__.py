"""The pocket world and its models: a toy universe small enough to personalize on two CPU cores."""

from pathlib import Path
from typing import Literal

# Of the bundled weights, as the hub calls it.
LICENSE = "apache-2.0"
PocketModel = Literal["pipeline", "clip", "vit", "judge"]


def pocket_folder(name: PocketModel = "pipeline") -> Path:
    """Folder of a bundled model, in diffusers' or transformers' own layout.

    Args:
        name: "pipeline" (the text-to-image model), "clip" and "vit" (evaluation's CLIP and DINO),
            or "judge" (a classifier of class, context and colour).
    """
    return Path(__file__).parent / "weights" / name
