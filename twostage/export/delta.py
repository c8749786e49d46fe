"""What the run changed, and nothing else: one file that, with the same base, is the run again.

Tensors   COMPONENT.NAME                   of the weights that changed: the difference from the base's in half
                                            precision, the value itself in float32, which gives back every bit
          adapter.COMPONENT.NAME            of an adapter, in PEFT's names
          embedding.TOKEN                   of a learned token, (num_vectors, D) float32
          embedding_KEY.TOKEN               of one for several text encoders, by their key in files of tokens
Metadata  twostage_delta                    JSON: base and its content hash, recipe.toml, adapters' configurations
"""

from __future__ import annotations

import atexit
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twostage.errors import UserError
from twostage.export import Options, Source, Written
from twostage.export.shared.files import cast, main_file, save, without_tokens
from twostage.families import load_base
from twostage.family import Family
from twostage.quiet import quiet
from twostage.reading import parse_json, read_json
from twostage.recipe_file import dump_recipe, load_recipe
from twostage.subject.token_files import embedding_file_name, keyed_rows, save_embedding
from twostage.weights import PICKLES, refuse_archive

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUMMARY = "what changed, against the base's content hash: for twostage itself"
OPTIONS = ("dtype",)

_METADATA = "twostage_delta"
_ADAPTER, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def check(source: Source, options: Options) -> None:
    """Every run can be a delta."""


def write(source: Source, options: Options, folder: Path) -> Written:
    """The one file."""
    whole = [name for name in source.trainable if (source.folder / name).is_dir()]
    tensors = {
        f"{_embedding(key)}.{name}": value.cpu().float().contiguous()
        for name, rows in source.embeddings.items()
        for key, value in keyed_rows(source.base.family, rows).items()
    }
    for component, path in source.adapters.items():
        for name, value in load_file(path / _ADAPTER).items():
            tensors[f"adapter.{component}.{name}"] = cast(value, name, options)
    for component in whole:
        for name, value, before in _changed(source, component):
            stored = value if options.precision == "float32" else value - before
            tensors[f"{component}.{name}"] = cast(stored, name, options)
    facts = {
        "base": {"name": source.base.source, "sha256": source.base.content_hash},
        "recipe": dump_recipe(source.recipe),
        "whole": whole,
        "differences": options.precision != "float32",
        "adapters": {component: read_json(path / _CONFIG) for component, path in source.adapters.items()},
    }
    file = main_file(source, folder)
    save(tensors, file, **{_METADATA: json.dumps(facts)})
    needs = f"it needs the base {source.base.source!r} of sha256 {source.base.content_hash[:12]}"
    return Written([needs, f"draw with it: twostage generate {{folder}}/{file.name} {shlex.quote(source.prompt)}"])


def load(source: Source, options: Options, folder: Path) -> DiffusionPipeline:
    """The base with the file's changes in it."""
    return source.load_pipeline(unpack(main_file(source, folder)))


def unpack(file: Path) -> Path:
    """Make a run folder of a delta, in a temporary place that is removed when the program ends.

    Raises:
        UserError: it is no delta, or one of another base, or has parts that no run has.
    """
    refuse_archive(file, "the run folder in it")
    if file.suffix in PICKLES:
        raise UserError(f"{file} is a pickle, and a delta is a safetensors file: `twostage export` makes one")
    facts, tensors = _read(file)
    folder = Path(tempfile.mkdtemp(prefix="twostage-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        _unpack(file, facts, tensors, folder)
    except OSError as error:
        raise UserError(
            f"cannot unpack {file} to {folder}: {error.strerror}; make room there, or set TMPDIR"
        ) from error
    return folder


def _unpack(file: Path, facts: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    (folder / "recipe.toml").write_text(facts["recipe"], encoding="utf-8")
    base = load_base(load_recipe(str(folder / "recipe.toml")).base)
    theirs = facts["base"]
    if base.content_hash != theirs["sha256"]:
        raise UserError(
            f"{file} is a delta to base {theirs['name']!r} of sha256 {theirs['sha256'][:12]}, and base {base.source!r} "
            f"here is {base.content_hash[:12]}; get the base it was trained on"
        )
    for name in (*facts["adapters"], *facts["whole"]):
        if name not in base.family.models:
            raise UserError(
                f"{file} has a part {name!r}, and a run has {' and '.join(base.family.models)}; it is not unpacked"
            )
    (folder / "run.json").write_text(json.dumps({"finished": True, "base": theirs}), encoding="utf-8")
    for name, rows in _embeddings(tensors, base.family).items():
        save_embedding(folder / "embedding" / embedding_file_name(name), name, rows)
    for component, config in facts["adapters"].items():
        place = folder / "adapter" / component
        place.mkdir(parents=True)
        (place / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
        adapter = {name: value.float() for name, value in _part(tensors, f"adapter.{component}").items()}
        save_file(adapter, place / _ADAPTER, metadata={"format": "pt"})
    for component in facts["whole"]:
        net = base.component(component)
        state = net.state_dict()
        for name, value in _part(tensors, component).items():
            if name not in state or state[name].shape != value.shape:
                raise UserError(f"{file} changes {component}.{name} {tuple(value.shape)}, which its base has not so")
            state[name] = state[name] + value.float() if facts["differences"] else value
        net.load_state_dict(state)
        with quiet():
            net.save_pretrained(folder / component)
        base.release(component)


def _changed(source: Source, component: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, value and the base's value of every tensor that training changed."""
    is_encoder = component in source.base.family.text
    tuned = without_tokens(source, component) if is_encoder else getattr(source.pipeline, component)
    before = source.base.component(component).state_dict()
    for name, value in tuned.state_dict().items():
        if not torch.equal(value.cpu(), before[name]):
            yield name, value.cpu(), before[name]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            facts = parse_json((opened.metadata() or {})[_METADATA])
        _check(facts)
        return facts, load_file(file)
    except UserError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file} is no delta of a run ({type(error).__name__}); `twostage export RUN --to delta` makes one"
        ) from error


def _check(facts: Any) -> None:
    """Make sure of the shape of a file's facts.

    Raises:
        TypeError, KeyError: they are of another shape.
    """
    texts = (facts["recipe"], facts["base"]["name"], facts["base"]["sha256"])
    if not all(isinstance(text, str) for text in texts) or not isinstance(facts["adapters"], dict):
        raise TypeError("its facts are of another kind")


def _embedding(key: str) -> str:
    return f"embedding_{key}" if key else "embedding"


def _embeddings(tensors: dict[str, Tensor], family: Family) -> dict[str, dict[str, Tensor]]:
    """Rows of each token by their key in files, by its name."""
    learned: dict[str, dict[str, Tensor]] = {}
    for part in family.text.values():
        for name, rows in _part(tensors, _embedding(part.key)).items():
            learned.setdefault(name, {})[part.key] = rows
    return learned


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
