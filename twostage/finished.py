"""Finished runs, opened and put together as stock pipelines, and what draws or enlarges their pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.errors import UserError
from twostage.export.delta import unpack
from twostage.families import Base, known_families, load_base, load_part
from twostage.family_parts import LowResolution
from twostage.machine import usual_device
from twostage.method.adapter import merge_adapter
from twostage.method.denoiser import adapted_parts, whole_parts
from twostage.method.sampling import assemble
from twostage.method.strength import move_toward
from twostage.recipe import Recipe
from twostage.run_folder import RunFolder
from twostage.subject.token_files import load_learned, rows_by_encoder
from twostage.subject.tokens import Rows

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def open_finished(run: Path) -> tuple[RunFolder, Recipe]:
    """The folder and the recipe of a finished run that is given as its folder, or as a delta of it, which is unpacked.

    Raises:
        UserError: it is none, or not finished; or a delta of another base.
    """
    folder = RunFolder(unpack(Path(run)) if os.path.isfile(run) else Path(run))
    recipe = folder.open()
    if not folder.finished:
        raise UserError(f"the run in {run} is not finished; go on with: twostage train {run} --resume")
    return folder, recipe


def open_base(recipe: Recipe, *, untouched: bool = False) -> Base:
    """The base of a recipe, with what draws the small pictures where it enlarges some.

    Args:
        recipe: of a run.
        untouched: draw these by their own base, where the recipe names a run that tuned it.

    Raises:
        UserError: one of them cannot be loaded, or they do not go together.
    """
    base = load_base(recipe.base)
    base.low_resolution = low_resolution_of(recipe, base, untouched=untouched)
    return base


def low_resolution_of(recipe: Recipe, base: Base, *, untouched: bool = False) -> LowResolution | None:
    """What draws the small pictures that a base enlarges; None where nobody has said.

    Raises:
        UserError: as `open_base`.
    """
    if not recipe.low_resolution:
        return None
    if not base.family.enlarges:
        raise UserError(
            f"low_resolution {recipe.low_resolution!r}: the base {base.source!r} is a {base.family.pipeline}, which "
            "enlarges no pictures; leave it out"
        )
    run, own, first = _run_or_base(recipe.low_resolution)
    if first.family.pipeline != base.family.enlarges:
        raise UserError(
            f"low_resolution {recipe.low_resolution!r} is a {first.family.pipeline}, and the base {base.source!r} "
            f"enlarges pictures of a {base.family.enlarges}; give one"
        )
    tuned, parts = (None, ()) if untouched or own is None or run is None else ((run, own), tuned_parts(own, first))
    side = (own and own.data.resolution) or first.resolution
    facts = [first.content_hash, str(side), *(_content(run.path, name) for name in parts if run)]
    return LowResolution(partial(_silent, first, tuned), side, hashlib.sha256(" ".join(facts).encode()).hexdigest())


def check_cascade(recipe: Recipe, base: Base) -> list[str]:
    """Make sure that what a recipe names before and behind its base goes with that.

    Returns:
        What the user should be told, a sentence each.

    Raises:
        UserError: it does not.
    """
    if recipe.super_resolution:
        find_larger(recipe.super_resolution, base)
    if not base.family.enlarges:
        return []
    if not recipe.low_resolution:
        return [
            f"nothing draws small pictures for {base.family.title} to enlarge: what is drawn in this run, it draws by "
            "itself, of noise; name what does with --low-resolution"
        ]
    own = {token.placeholder for token, _ in recipe.every_subject()}
    _, first, _ = _run_or_base(recipe.low_resolution)
    taught = {token.placeholder for token, _ in first.every_subject()} if first else own
    if own == taught:
        return []
    return [
        f"{recipe.low_resolution} knows its subject as {' and '.join(sorted(taught))}, and here it is "
        f"{' and '.join(sorted(own))}: the small pictures will not show it; take its token with --from"
    ]


def find_larger(name: str, base: Base) -> tuple[RunFolder | None, Recipe | None, Base]:
    """What enlarges a base's pictures: the run, where it is one, its recipe, and its base.

    Raises:
        UserError: it cannot be loaded, or enlarges others.
    """
    enlarging = [family for family in known_families().values() if family.enlarges == base.family.pipeline]
    if not enlarging:
        raise UserError(
            f"super_resolution {name!r}: the base {base.source!r} is a {base.family.pipeline}, whose pictures nothing "
            "enlarges here; leave it out"
        )
    run, recipe, larger = _run_or_base(name)
    if larger.family.enlarges != base.family.pipeline:
        wanted = " or ".join(family.pipeline for family in enlarging)
        raise UserError(
            f"super_resolution {name!r} is a {larger.family.pipeline}, and the pictures of the base {base.source!r} "
            f"are enlarged by a {wanted}; give one, such as DeepFloyd/IF-II-L-v1.0"
        )
    return run, recipe, larger


def _run_or_base(name: str) -> tuple[RunFolder | None, Recipe | None, Base]:
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path) or os.path.isfile(path / "recipe.toml"):
        run, recipe = open_finished(path)
        return run, recipe, load_base(recipe.base)
    return None, None, load_base(name)


def _silent(base: Base, tuned: tuple[RunFolder, Recipe] | None) -> DiffusionPipeline:
    """A base's stock pipeline, tuned by a run if there is one, without what reads prompts."""
    nets = dict.fromkeys(base.family.readers)
    return assemble(base, **nets, **(load_tuned(*tuned, base, 1.0) if tuned else {}))


def _content(run: Path, component: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("", "adapter") for path in (run / kind / component).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_pipeline(run: Path, *, strength: float = 1.0) -> DiffusionPipeline:
    """The stock pipeline of a finished run: its base, with what was tuned and the learned token, on the GPU if any.

    Where text encoders are larger than all else, they stay on the host, and prompts are to be encoded there:
    `pipeline.encode_prompt(prompt, device="cpu")`.

    Args:
        run: the run folder, or a delta of it.
        strength: how far the base's weights go to the trained ones, 0..2: 0 not at all, 1 all the way, between and
            beyond in proportion (arXiv 2109.01903). An adapter is merged so; for lora, rslora, loha and lokr that is
            what PEFT calls their scale. The learned token is what it is at any strength.

    Raises:
        UserError: `run` is no finished run, its base cannot be loaded, `strength` is out of range, or only a token was
            trained.
    """
    folder, recipe = open_finished(run)
    return put_together(folder, recipe, open_base(recipe), strength)


def load_pipelines(run: Path, strengths: Sequence[float]) -> Iterator[DiffusionPipeline]:
    """What `load_pipeline` gives at each strength, one after the other.

    It is one pipeline, loaded once, whose tuned weights are set anew: use it before asking for the next.

    Raises:
        UserError: as `load_pipeline`.
    """
    folder, recipe = open_finished(run)
    base, pipeline = open_base(recipe), None
    for strength in strengths:
        if pipeline is None:
            pipeline = put_together(folder, recipe, base, strength)
        else:
            _check_strength(folder, recipe, strength)
            for name in tuned_parts(recipe, base):
                net = getattr(pipeline, name)
                move_toward(net, load_part(base.family, base.folder, name), 1.0)
                _tune(net, folder, recipe, base, name, strength)
        yield pipeline


def put_together(
    folder: RunFolder, recipe: Recipe, base: Base, strength: float, *, reads: bool = True
) -> DiffusionPipeline:
    """As `load_pipeline`; not `reads`, it has nothing that reads prompts.

    Raises:
        UserError: as `load_pipeline`.
    """
    nets = load_tuned(folder, recipe, base, strength)
    if not reads:
        nets |= dict.fromkeys(base.family.readers)
    learned = learned_tokens(folder, recipe, base) if reads else None
    return placed(base, assemble(base, embedding=learned or None, **nets))


def placed(base: Base, pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline of a base, on the GPU if any, save what is to stay on the host."""
    if not base.family.text_on_host:
        return pipeline.to(usual_device())
    for name in filter(None, (base.family.autoencoder, base.family.denoiser)):
        getattr(pipeline, name).to(usual_device())
    return pipeline


def load_tuned(folder: RunFolder, recipe: Recipe, base: Base, strength: float) -> dict[str, Any]:
    """The components that a run has trained, by name.

    Raises:
        UserError: as `load_pipeline`.
    """
    _check_strength(folder, recipe, strength)
    tuned = {}
    for name in tuned_parts(recipe, base):
        if strength == 1 and (folder.path / name).is_dir():
            tuned[name] = load_part(base.family, folder.path, name)  # Whole, it needs nothing of the base's.
            continue
        tuned[name] = _tune(base.component(name), folder, recipe, base, name, strength)
        base.release(name)  # It is the base's no more.
    return tuned


def tune_text(folder: RunFolder, recipe: Recipe, base: Base, strength: float) -> None:
    """Give the base's text encoders what a run has taught them, in place, until the base releases them.

    Raises:
        UserError: as `load_pipeline`.
    """
    _check_strength(folder, recipe, strength)
    for name in tuned_parts(recipe, base):
        if name in base.family.text:
            _tune(base.component(name), folder, recipe, base, name, strength)


def _check_strength(folder: RunFolder, recipe: Recipe, strength: float) -> None:
    if not 0 <= strength <= 2:
        raise UserError(f"strength {strength:g} is not between 0, the base, and 2; 1 is as trained")
    if strength != 1 and not recipe.stage2:
        raise UserError(
            f"strength {strength:g}: the run in {folder.path} has learned a token and trained no weights that could be "
            "mixed with the base's; leave it out"
        )


def tuned_parts(recipe: Recipe, base: Base) -> tuple[str, ...]:
    """Components of which a run trains the weights, whole or by an adapter."""
    options, family = recipe.stage2, base.family
    return whole_parts(options, family) + adapted_parts(options, family) if options else ()


def _tune(net: Any, folder: RunFolder, recipe: Recipe, base: Base, name: str, strength: float) -> Any:
    """A component of the base, given the trained weights at some strength, in place."""
    assert recipe.stage2
    if name in adapted_parts(recipe.stage2, base.family):
        return merge_adapter(net, folder.path / "adapter" / name, strength)
    move_toward(net, load_part(base.family, folder.path, name), strength)
    return net


def learned_tokens(folder: RunFolder, recipe: Recipe, base: Base) -> dict[str, Rows]:
    """Rows of each token that a finished run learned, by the token's name, in the order of the subjects."""
    found = {}
    for token, _ in recipe.every_subject() if recipe.stage1 else []:
        file = folder.embedding_file(token.placeholder)
        found[token.placeholder] = rows_by_encoder(file, load_learned(file, token), base.family)
    return found
