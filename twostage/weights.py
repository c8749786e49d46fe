"""What a folder of weights may hold: safetensors, and settings that name no code and nothing outside it.

Whoever made it may be a stranger. What is refused here the libraries would open, import or download.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twostage.errors import UserError
from twostage.reading import read_json

PICKLES = {".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth"}
_ARCHIVES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"}
# Each would have a library load what the file names: code, another model, or a kernel from the hub.
_NAMES_ANOTHER = ("auto_map", "custom_pipeline", "quantization_config", "backbone", "attn_implementation")
_WHY = "a pickle can run code when it is read, so it is not"
_BUILT_IN = (None, False, "eager", "sdpa")


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name says that others are packed in it. They are unpacked by nobody here."""
    return Path(path).suffix.lower() in _ARCHIVES and os.path.isfile(path)


def refuse_archive(path: str | os.PathLike[str], wanted: str) -> None:
    """Refuse a packed file where a folder is wanted.

    Raises:
        UserError: it is one.
    """
    if is_archive(path):
        raise UserError(f"{path} is an archive, and archives are not unpacked here: unpack it yourself, give {wanted}")


def conversion(file: Path, written: str = "") -> str:
    """How the tensors of a pickle become safetensors, in one line; `written` is the new file's name, else its own."""
    # Names in double quotes, which leave the command's single ones whole whatever a stranger calls a file.
    read, written = json.dumps(file.name), json.dumps(written or f"{file.stem}.safetensors")
    script = (
        "import torch; from safetensors.torch import save_file; "
        f'save_file(torch.load({read}, weights_only=True), {written}, {{"format": "pt"}})'
    )
    return f"{_WHY}; if you trust who made it, convert it: python -c {shlex.quote(script)}"


def pipeline_conversion(path: Path) -> str:
    """How a whole pipeline of pickles becomes safetensors, in one line."""
    read = "from_pretrained" if path.is_dir() else "from_single_file"
    given = json.dumps(str(path)) + (", use_safetensors=False" if path.is_dir() else "")
    script = f'from diffusers import StableDiffusionPipeline as P; P.{read}({given}).save_pretrained("converted")'
    return f"{_WHY}; if you trust who made it, convert it, and give converted/: python -c {shlex.quote(script)}"


def check_folder(folder: Path, *, code: bool = False) -> None:
    """Make sure that a folder of weights or settings can be given to the libraries.

    Args:
        folder: of one component, in diffusers' or transformers' layout.
        code: whether files of Python may lie there, unused.

    Raises:
        UserError: a file in it is none, is code, or names code, another model or a file elsewhere.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is neither file nor folder, but a pipe or a device; remove it")
        if path.suffix == ".py" and not code:
            raise UserError(
                f"{path} is code, and no code that comes with weights is run; remove it, or get the weights"
            )
        if path.name == "adapter_config.json":
            raise UserError(f"{path} stands for an adapter of another model; merge it into the weights, or remove it")
        if path.name.endswith(".index.json"):
            _check_index(path)
        elif path.name.endswith("config.json"):
            _check_settings(path)


def _check_index(path: Path) -> None:
    """The shards of a large model: safetensors, and beside their index."""
    content = _content(path)
    shards = content.get("weight_map")
    for shard in shards.values() if isinstance(shards, dict) else ():
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or ":" in shard:
            raise UserError(f"{path} names {str(shard)!r}, and weights lie beside their index; get the model anew")
        if not shard.endswith(".safetensors"):
            raise UserError(f"{path} names {shard!r}, and only safetensors are read: {conversion(Path(shard))}")


def _check_settings(path: Path) -> None:
    for name, value in _leaves(_content(path)):
        bare = name.removeprefix("_")
        if bare in _NAMES_ANOTHER and value not in (_BUILT_IN if bare == "attn_implementation" else (None,)):
            raise UserError(
                f"{path} has {name} = {str(value)[:80]!r}, by which code or another model would be loaded; neither is: "
                "take that out, or use a model without"
            )
        elsewhere = isinstance(value, str) and Path(value).name != value.removeprefix("./")
        if name.endswith("_file") and elsewhere:
            raise UserError(f"{path} has {name} = {value!r}, a file elsewhere; name one beside it, or take that out")


def _leaves(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a table and of the tables in it."""
    waiting: list[Any] = [table]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; get it anew") from error
    return content if isinstance(content, dict) else {}
