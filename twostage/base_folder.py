"""Where the files of a base are, and whether they are harmless and whole."""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, pipelines
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from twostage.errors import UserError
from twostage.pocket import pocket_folder
from twostage.quiet import quiet
from twostage.weights import PICKLES, pipeline_conversion, refuse_archive

# Where a pipeline's parts come from: libraries, and modules of diffusers that it calls by their own name.
_LIBRARIES = {None, "diffusers", "transformers"} | {found.name for found in pkgutil.iter_modules(pipelines.__path__)}


def find_folder(base: str) -> Path:
    if base == "pocket":
        return pocket_folder()
    # os.path's answer is False where Path's is a PermissionError.
    path = os.path.expanduser(base)
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        refuse_archive(path, "the folder in it")
        if Path(path).suffix in PICKLES:
            raise UserError(f"base {base!r} is a pickle: {pipeline_conversion(Path(path))}")
        raise UserError(f"base {base!r} is a file; give the folder of a diffusers pipeline, a hub id, or 'pocket'")
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise UserError(f"base {base!r} is no folder here; give that of a diffusers pipeline, a hub id, or 'pocket'")
    return _download(base)


def _download(hub_id: str) -> Path:
    unused = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    with quiet():
        try:
            return Path(DiffusionPipeline.download(hub_id, use_safetensors=True, **unused))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise UserError(
                f"base {hub_id!r} is no folder here, and the Hugging Face hub did not deliver it "
                f"({type(error).__name__}): check the name and the connection, or give a folder"
            ) from error


def refuse_code(parts: dict[str, Any], index: Path) -> None:
    """Beside their own classes, libraries would take those of files that lie there."""
    for part, origin in parts.items():
        known = [None, None] if part.startswith("_") or not isinstance(origin, list) else origin
        wrong = len(known) != 2 or known[0] not in _LIBRARIES
        # They alone are made by the name that stands there; the others are made by the family.
        if (
            wrong
            or part.endswith("scheduler")
            and not (known[0] == "diffusers" and str(known[1]).endswith("Scheduler"))
        ):
            raise UserError(
                f"{index} has {part} = {str(origin)[:80]}, which is no part of diffusers or transformers, and no code "
                "that comes with weights is run; use a base without"
            )


def is_variant(path: Path) -> bool:
    """diffusers keeps half-precision copies beside the weights, as `model.fp16.safetensors`; they are not read."""
    return path.suffix == ".safetensors" and "." in path.stem


def check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights {path} are broken ({error}); get the base anew") from error
