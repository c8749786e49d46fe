"""What is evaluated: a finished run of ours, or a folder that any trainer has left."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from safetensors import SafetensorError, safe_open

from twostage import run as verbs
from twostage.errors import UserError
from twostage.families import Base, family_of, load_base
from twostage.finished import low_resolution_of, open_base, placed
from twostage.method.sampling import assemble
from twostage.quiet import quiet
from twostage.recipe import Data, Recipe, Sample
from twostage.recipe_evaluation import Foreign
from twostage.recipe_file import dump_recipe
from twostage.run_folder import RunFolder, result_folders
from twostage.subject.captions import subject_phrase
from twostage.subject.held_out import find_held_out, leaks
from twostage.subject.photos import Photo, find_photos
from twostage.subject.pictures import printable
from twostage.subject.token_files import Keyed, load_embedding, rows_by_encoder
from twostage.subject.tokens import Rows
from twostage.weights import PICKLES, conversion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Of a run's phases, those that a run without sample pictures does not have.
_NOT_TRAINING = ("samples",)
# The key in kohya's embedding files, which leave the token's name to the file's.
_NAMELESS = "emb_params"
# Of a LoRA's layer, the one tensor that every way of naming has.
_LAYER = re.compile(r"lora_A|lora(_linear_layer)?[._]down")
_OTHER_BASE = "give the base it was trained on, of the same family"


@dataclass(frozen=True)
class Result:
    """Something that draws a subject.

    Attributes:
        folder: where it is.
        phrase: what stands for the subject in its prompts: "<rare> backpack".
        class_noun: what the subject is; empty where nobody said.
        base: the untouched model; None where it is not known.
        load: strength -> the pipeline, between the base's weights (0) and its own (1).
        side: of its pictures, in pixels.
        sampler: how it is drawn unless the evaluation says otherwise.
        content: what its pictures depend on, beside prompts and sampler; in hex.
        photos: it was trained on, as far as they are at hand.
        held_out: of the same subject, never trained on.
        facts: for evaluation.json.
        unmixable: why there is nothing between the base's weights and its own; empty where there is.
        notes: for who evaluates it.
    """

    folder: Path
    phrase: str
    class_noun: str
    base: Base | None
    load: Callable[[float], DiffusionPipeline]
    side: int
    sampler: Sample
    content: str
    photos: list[Photo]
    held_out: list[Photo]
    facts: dict[str, Any]
    unmixable: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def is_pocket(self) -> bool:
        """Whether the bundled encoders are the ones that know its pictures."""
        return self.base is not None and self.base.source == "pocket"


def open_run(run: Path, held_out: Sequence[Path] = ()) -> Result:
    """A finished run.

    Args:
        run: its folder, or a delta of it.
        held_out: photos or folders of photos in place of those that its recipe held out.

    Raises:
        UserError: it is none, or its base cannot be loaded, or a held-out photo cannot be read.
    """
    folder, recipe = verbs.open_finished(run)
    base = open_base(recipe, untouched=True)
    own = folder.facts.get("base", {}).get("sha256")
    if own not in (None, base.content_hash):
        raise UserError(
            f"the run in {folder.path} was trained on another base than {recipe.base!r} is now (sha256 {own[:12]}, now "
            f"{base.content_hash[:12]}); restore that, or train anew"
        )
    notes: list[str] = []
    if recipe.subjects:
        notes.append(f"of several subjects, that of {recipe.token.placeholder} is evaluated")
    drawn_first = low_resolution_of(recipe, base)
    small = [drawn_first.sha256] if drawn_first else []
    held = find_held_out(recipe.data.model_copy(update={"held_out": tuple(held_out)}) if held_out else recipe.data)
    _check_unseen(folder, held)
    photos = _trained_on(folder, recipe.data, held, notes)
    if held_out:  # Of the recipe's own, training has said so.
        notes += leaks(held, photos)
    return Result(
        folder=folder.path,
        phrase=subject_phrase(recipe.token, recipe.data),
        class_noun=" ".join(recipe.data.class_noun.split()),
        base=base,
        load=lambda strength: verbs.load_pipeline(run, strength=strength),
        side=recipe.data.resolution or base.resolution,
        sampler=recipe.sample.within(recipe.data.class_noun, recipe.stage2 is not None),
        content=_sha256(dump_recipe(recipe), str(own), *small, *_contents(folder.path)),
        photos=photos,
        held_out=held,
        facts=_run_facts(folder, recipe, photos, held),
        unmixable="" if recipe.stage2 else "the run has learned a token alone, and no weights",
        notes=notes,
    )


def open_pipeline(foreign: Foreign, *, held_out: Sequence[Path] = ()) -> Result:
    """A pipeline folder that some trainer has left, with a LoRA or a token's embedding beside it if it has one.

    Args:
        foreign: where it is, and what it was trained on; `pipeline` must be set.
        held_out: photos, or folders of photos, of the same subject that it was not trained on.

    Raises:
        UserError: something of it cannot be read, or there is no token.
    """
    assert foreign.pipeline is not None
    lora, embedding, class_noun = foreign.lora, foreign.embedding, " ".join(foreign.class_noun.split())
    if lora is not None and not lora.is_file():
        raise UserError(f"there is no LoRA file {lora}; give a .safetensors file")
    if lora is not None and lora.suffix != ".safetensors":
        how = conversion(lora) if lora.suffix in PICKLES else "convert it first"
        raise UserError(f"LoRA {lora}: only .safetensors files are read; {how}")
    tuned = load_base(foreign.pipeline)
    named, keyed = load_embedding(embedding) if embedding else ("", None)
    token = foreign.token.strip() or ("" if named == _NAMELESS else named)
    if not token:
        raise UserError("what is the subject called in prompts? say --token sks, or the word it was trained with")
    rows = _fitting(embedding, token, keyed, tuned) if embedding and keyed else None

    def load(strength: float) -> DiffusionPipeline:
        assert strength == 1
        loaded = assemble(tuned, embedding=None if rows is None else {token: rows})
        if lora is not None:
            _load_lora(loaded, lora)
        return placed(tuned, loaded)

    held = find_held_out(Data(held_out=tuple(held_out)))
    seen = [] if foreign.photos is None else _without(find_photos(foreign.photos), held)
    extra = [file for file in (lora, embedding) if file is not None]
    name = extra[0] if extra else Path(foreign.pipeline)
    return Result(
        folder=tuned.folder,
        phrase=f"{token} {class_noun}".strip(),
        class_noun=class_noun,
        base=load_base(foreign.base) if foreign.base else tuned if extra else None,
        load=load,
        side=tuned.resolution,
        sampler=Sample(),
        content=_sha256(tuned.content_hash, *map(_digest, extra)),
        photos=seen,
        held_out=held,
        facts={
            "name": name.stem,
            "folder": str(name.resolve()),
            "recipe": "",
            "base": foreign.base,
            "token": token,
            "class_noun": class_noun,
            "subject": foreign.photos.resolve().name if foreign.photos else "",
            "photos": [str(photo.path.resolve()) for photo in seen],
            "held_out": [str(photo.path.resolve()) for photo in held],
            "photo_sha256": [photo.sha256 for photo in (*seen, *held)],
            "result_bytes": _bytes_of(name),
        },
        unmixable="only the weights of a run folder can be mixed with its base's",
    )


def _fitting(file: Path, token: str, keyed: Keyed, base: Base) -> Rows:
    """The rows of an embedding, checked as they will be when they are loaded, but before anything is drawn."""
    widths = {name: base.outline(name).get_input_embeddings().weight.shape[1] for name in base.family.text}
    rows = rows_by_encoder(file, keyed, base.family)
    for name, width in widths.items():
        if rows[name].shape[1] != width:
            raise UserError(
                f"the embedding {file} is {rows[name].shape[1]} wide, and the text encoder of {base.source} {width}; "
                "give the base it was trained on"
            )
    if any(token in tokenizer.get_vocab() for tokenizer in base.tokenizers.values()):
        raise UserError(
            f"the vocabulary of {base.source} has a token {token!r} already; give the embedding another name in "
            f"prompts, such as --token '<{token}>'"
        )
    return rows


def _load_lora(pipeline: DiffusionPipeline, file: Path) -> None:
    try:
        with quiet():
            # It logs as an error, over many lines, what it then raises.
            diffusers.utils.logging.set_verbosity(logging.CRITICAL)
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
            with safe_open(file, framework="pt") as opened:
                layers = len(_LAYER.findall(" ".join(opened.keys())))
    except (ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"LoRA {file} does not fit {_described(pipeline)}: {reason}; {_OTHER_BASE}") from error
    nets = [getattr(pipeline, name) for name in family_of(pipeline).models]
    placed = sum(len(module.lora_A) for net in nets for module in net.modules() if hasattr(module, "lora_A"))
    if placed < layers:  # Those that find no place are left out, and nothing said.
        raise UserError(
            f"LoRA {file} does not fit {_described(pipeline)}: {layers - placed} of its {layers} layers have no place "
            f"in it; {_OTHER_BASE}"
        )


def _described(pipeline: DiffusionPipeline) -> str:
    return f"the pipeline, a {type(pipeline).__name__}"


def _check_unseen(folder: RunFolder, held_out: Sequence[Photo]) -> None:
    shown = {photo.get("sha256") for photo in folder.facts.get("photos", [])}
    if seen := [photo for photo in held_out if photo.sha256 in shown]:
        raise UserError(
            f"the held-out photo {printable(seen[0].path)} is one that the run in {folder.path} was trained on: "
            "figures against it would flatter; give --held-out photos that training has not seen"
        )


def _trained_on(folder: RunFolder, data: Data, held_out: Sequence[Photo], notes: list[str]) -> list[Photo]:
    """The photos of run.json that are still where they were."""
    shown = {photo.get("sha256") for photo in folder.facts.get("photos", [])}
    try:
        at_hand = find_photos(data.photos) if data.photos else []
    except UserError as error:
        notes.append(f"the photos it was trained on: {error}")
        return []
    photos = [photo for photo in at_hand if photo.sha256 in shown]
    if len(photos) < len(shown):
        notes.append(f"of {len(shown)} photos it was trained on, {len(photos)} are still in {data.photos}")
    return _without(photos, held_out)


def _without(photos: list[Photo], others: Sequence[Photo]) -> list[Photo]:
    hashes = {photo.sha256 for photo in others}
    return [photo for photo in photos if photo.sha256 not in hashes]


def _run_facts(folder: RunFolder, recipe: Recipe, photos: Sequence[Photo], held_out: Sequence[Photo]) -> dict[str, Any]:
    facts = folder.facts
    seconds: dict[str, float] = facts.get("seconds", {})
    # What another run has done for it counts as its own, unless that has been added already.
    shared = 0.0 if "shared" in facts else facts.get("from", {}).get("seconds", 0.0)
    selection: dict[str, Any] = facts.get("selection", {})
    steps = {name: stage.steps for name in ("stage1", "stage2") if (stage := getattr(recipe, name))}
    return {
        "name": recipe.name,
        "folder": str(folder.path.resolve()),
        "recipe": recipe.name,
        "base": recipe.base,
        "base_sha256": facts.get("base", {}).get("sha256"),
        "token": recipe.token.placeholder,
        "class_noun": recipe.data.class_noun,
        "subject": recipe.data.photos.resolve().name if recipe.data.photos else "",
        "photos": [str(photo.path.resolve()) for photo in photos],
        "held_out": [str(photo.path.resolve()) for photo in held_out],
        "photo_sha256": [photo.sha256 for photo in (*photos, *held_out)],
        "seed": recipe.seed,
        "steps": steps | selection.get("stopped", {}),
        "kept_step": (selection.get("chosen") or {}).get("step") if selection.get("keep") == "best" else None,
        "seconds": seconds,
        "train_seconds": round(sum(s for name, s in seconds.items() if name not in _NOT_TRAINING) + shared, 3),
        "peak_memory_bytes": facts.get("peak_memory_bytes"),
        "result_bytes": sum(_bytes_of(folder.path / name) for name in result_folders()),
        "device": facts.get("device"),
        "versions": facts.get("versions", {}),
    }


def _contents(folder: Path) -> list[str]:
    """Names and digests of what a run has left: one trained anew, on other photos, has files of the same sizes."""
    files = (path for name in result_folders() for path in sorted((folder / name).rglob("*")) if path.is_file())
    return [f"{path.relative_to(folder).as_posix()} {_digest(path)}" for path in files]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _sha256(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
