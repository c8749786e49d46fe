"""Model families, one file each: how a pretrained pipeline is loaded, asked and put together again.

A family is a module of this folder, found by its file name, or of another package, found by an entry point of the group
`twostage.families`; in either FAMILY is an instance of `twostage.family.Family`. A base is of the family that reads the
pipeline class in its `model_index.json`.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from twostage.base_folder import check_weights, find_folder, is_variant, refuse_code
from twostage.errors import UserError
from twostage.family import Family, NoiseScheduler
from twostage.family_parts import LowResolution, Text
from twostage.loading import loading
from twostage.prompt_states import PromptStates
from twostage.reading import read_json
from twostage.weights import PICKLES, check_folder, pipeline_conversion

# Side of the largest tile that a VAE works on, in pixels.
_TILE = 512


@dataclass
class Base:
    """A pretrained pipeline whose components are read from disk when first asked for.

    So the U-Net never waits in memory for the VAE to finish; `release` drops a component, and asking again reads it
    anew, untouched by whatever was done to the one before.

    Attributes:
        source: what the user named: 'pocket', a folder or a hub id.
        folder: where its files are.
        family: that reads it.
        resolution: side of the pictures it was trained on, in pixels.
        reduction: pixels of a latent's side.
        vae_in_tiles: whether its VAE is to work so; see `work_in_tiles`.
        low_resolution: what draws the small pictures that it enlarges, where it does and that is known.
    """

    source: str
    folder: Path
    family: Family
    resolution: int
    reduction: int
    vae_in_tiles: bool = False
    low_resolution: LowResolution | None = None
    _loaded: dict[str, Any] = field(default_factory=dict)
    _digests: dict[Path, bytes] = field(default_factory=dict)

    def release(self, *names: str) -> None:
        """Forget components, so that their memory can be freed."""
        for name in names:
            self._loaded.pop(name, None)

    def release_autoencoder(self) -> None:
        """Forget the VAE, where there is one."""
        self.release(*filter(None, [self.family.autoencoder]))

    def release_text(self) -> None:
        """Forget all that reads prompts."""
        self.release(*self.family.readers)

    def component(self, name: str) -> Any:
        """One of the family's components, loaded when it is first asked for."""
        if name not in self._loaded:
            self._loaded[name] = load_part(self.family, self.folder, name)
        return self._loaded[name]

    def outline(self, name: str) -> Any:
        """A component's modules, on the meta device: names and shapes before anything large is loaded."""
        check_folder(self.folder / name)
        with loading(self.folder / name):
            return self.family.outline(self.folder, name)

    @property
    def text(self) -> Text:
        """All that reads prompts."""
        parts = self.family.text
        encoders = {name: self.component(name) for name in parts}
        return Text(self.tokenizers, encoders, self.settings)

    @property
    def tokenizers(self) -> dict[str, Any]:
        """By the component's name of the text encoder that each is for."""
        return {name: self.component(part.tokenizer) for name, part in self.family.text.items()}

    @property
    def tokenizer(self) -> Any:
        """Of the first text encoder."""
        return self.component(self.family.tokenizers[0])

    @property
    def text_encoder(self) -> Any:
        """The first one."""
        return self.component(next(iter(self.family.text)))

    @property
    def vae(self) -> Any:
        """What makes latents of pictures; None where the denoiser sees pixels."""
        if self.family.autoencoder is None:
            return None
        vae = self.component(self.family.autoencoder)
        if self.vae_in_tiles:
            work_in_tiles(vae)
        return vae

    @property
    def denoiser(self) -> Any:
        return self.component(self.family.denoiser)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of the pipeline, beside its components; and the denoiser's."""
        parts = read_json(self.folder / "model_index.json")
        with loading(self.folder / self.family.denoiser):
            denoiser = read_json(self.folder / self.family.denoiser / "config.json")
        return {name: value for name, value in parts.items() if not isinstance(value, list)} | {"denoiser": denoiser}

    @cached_property
    def noise_scheduler(self) -> NoiseScheduler:
        """The forward process of training, as the folder's own scheduler has it."""
        with loading(self.folder / "scheduler"):
            return self.family.noise_scheduler(self.folder)

    @cached_property
    def channels(self) -> int:
        """Of latents."""
        return self.family.channels(self.outline(self.family.denoiser))

    @cached_property
    def multiple(self) -> int:
        """Of how many pixels the sides of pictures have to be a multiple."""
        return self.family.multiple(self.folder)

    def check_side(self, side: int) -> None:
        """Make sure that pictures can be squares of this side, in pixels.

        Raises:
            UserError: they cannot.
        """
        if side % self.multiple:
            raise UserError(f"resolution {side}: the base's {self._halving} needs a multiple of {self.multiple}")
        if side > self.family.largest(self.folder):
            raise UserError(
                f"resolution {side}: the largest that {self.source} takes is {self.family.largest(self.folder)}; its "
                f"own is {self.resolution}"
            )

    @property
    def _halving(self) -> str:
        return "VAE" if self.multiple == self.reduction > 1 else self.family.denoiser

    def encode_text(self, prompts: list[str]) -> PromptStates:
        """States of prompts from the text encoders as they are; tokens of several vectors must have been written
        out."""
        return self.family.encode_text(self.text, prompts)

    def text_device(self, device: torch.device) -> torch.device:
        """Where text encoders work, if the denoiser does so on `device`."""
        return self.family.text_device(device)

    def pipeline(self, **components: Any) -> Any:
        """The stock pipeline, with some components in place of the base's own; None leaves one out.

        Raises:
            UserError: a component's files are missing, broken or not what the family expects.
        """
        # New ones, which may be changed; and read as others are: the library would make up what their files lack.
        for name in {*self.family.tokenizers, *self.family.models} - components.keys():
            components[name] = load_part(self.family, self.folder, name)
        with loading(self.folder):
            return self.family.build_pipeline(self.folder, **components)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the names and the bytes of all files training reads, in hex."""
        return self.hash_of(*self.family.components)

    @property
    def pictures_hash(self) -> str:
        """sha256 of all that a picture which it draws depends on, in hex."""
        if self.low_resolution is None:
            return self.content_hash
        return hashlib.sha256(f"{self.content_hash} {self.low_resolution.sha256}".encode()).hexdigest()

    def reads_as(self, other: Base) -> bool:
        """Whether its text encoders are another base's: whatever their configurations say, the vocabulary and the bytes
        of the weights are."""

        def weights(base: Base, encoder: str) -> list[bytes]:
            files = _files(base.folder, [encoder])
            return [base._digest(path) for path in files if path.suffix == ".safetensors"]

        return self.family.text.keys() == other.family.text.keys() and all(
            weights(self, encoder) == weights(other, encoder)
            and self.tokenizers[encoder].get_vocab() == other.tokenizers[encoder].get_vocab()
            for encoder in self.family.text
        )

    def hash_of(self, *names: str) -> str:
        """sha256 over the names and the bytes of all files that these components are read from, in hex."""
        digest = hashlib.sha256()
        for path in _files(self.folder, names):
            content = self._digest(path)
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    def _digest(self, path: Path) -> bytes:
        if path not in self._digests:
            try:
                with path.open("rb") as file:
                    self._digests[path] = hashlib.file_digest(file, "sha256").digest()
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}; get the base anew") from error
        return self._digests[path]


def work_in_tiles(vae: Any) -> None:
    """Have an autoencoder encode and decode one picture after another, and large ones in overlapping tiles."""
    vae.enable_slicing()
    vae.enable_tiling()
    vae.tile_sample_min_size = min(vae.tile_sample_min_size, _TILE)
    vae.tile_latent_min_size = vae.tile_sample_min_size // 2 ** (len(vae.config.block_out_channels) - 1)


def load_base(base: str) -> Base:
    """Find a pretrained pipeline and check that it can be read, without loading a weight yet.

    Args:
        base: 'pocket' for the bundled one, a folder in diffusers' layout, or a hub id such as 'org/name', which is
            downloaded unless it is in the cache already (safetensors weights only).

    Raises:
        UserError: no such folder or repository, no pipeline in it, one of a family that is not known, a missing
            component, a broken weights file or a pickle, or one that names code or files elsewhere.
    """
    folder = find_folder(base)
    family = _family_of(folder, base)
    for name in family.components:
        if not (folder / name).is_dir():
            raise UserError(f"base {base!r} has no {name}/ in {folder}; a {family.pipeline} needs it, get it anew")
        check_folder(folder / name)
    for name in family.models:
        weights = [path for path in (folder / name).glob("*.safetensors") if not is_variant(path)]
        if not weights:
            pickled = [path for path in (folder / name).iterdir() if path.suffix in PICKLES]
            why = pipeline_conversion(folder) if pickled else "other kinds are never read"
            raise UserError(f"base {base!r} has no safetensors weights in {folder / name}; {why}")
        for path in weights:
            check_weights(path)
    resolution, reduction = family.resolution(folder)
    return Base(base, folder, family.configured(folder), resolution, reduction)


def load_part(family: Family, folder: Path, name: str) -> Any:
    """Read one component from its folder inside `folder`, a base or a run.

    Raises:
        UserError: its files are missing, broken or not what the family expects, or name code or files elsewhere.
    """
    if os.path.isdir(folder / name):
        check_folder(folder / name)
    with loading(folder / name):
        return family.load(folder, name)


@cache
def known_families() -> dict[str, Family]:
    """The families found beside this file, and those of other packages, keyed by the pipeline class they read.

    Raises:
        UserError: another package's cannot be imported, or is none, or reads what is read already.
    """
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    families = {module.FAMILY.pipeline: module.FAMILY for module in modules}
    for entry in entry_points(group="twostage.families"):
        origin = f"the family {entry.name!r} of {entry.value}"
        try:
            family = entry.load().FAMILY
        except (ImportError, AttributeError) as error:
            raise UserError(f"{origin} cannot be used ({error}); mend or uninstall the package it is of") from error
        if not isinstance(family, Family) or families.setdefault(family.pipeline, family) is not family:
            raise UserError(f"{origin} is none, or reads what is read already; mend or uninstall the package it is of")
    return families


def trained_components() -> list[str]:
    """Components that a run of any family can train and keep."""
    families = known_families().values()
    return list(dict.fromkeys(name for family in families for name in (family.denoiser, *family.text)))


def family_of(pipeline: Any) -> Family:
    """The family of a stock pipeline that has been loaded."""
    absent = {name for name, component in pipeline.components.items() if component is None}
    return known_families()[type(pipeline).__name__].without(absent)


def _family_of(folder: Path, base: str) -> Family:
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"base {base!r} is no diffusers pipeline: there is no {index}")
    try:
        parts = read_json(index)
        name = parts["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"base {base!r}: {index} names no pipeline class ({error}); get the base anew") from error
    families = known_families()
    if not isinstance(name, str) or name not in families:
        for family in families.values():
            if why := family.refused.get(str(name)):
                raise UserError(f"base {base!r} is a {name}, {why}")
        known = sorted(f"{family.title} ({pipeline})" for pipeline, family in families.items())
        raise UserError(
            f"base {base!r} is a {str(name)[:80]}, which no family reads; those known are {', '.join(known)}"
        )
    refuse_code(parts, index)
    return families[name].without(absent_parts(parts))


def absent_parts(index: Mapping[str, Any]) -> set[str]:
    """The components that a pipeline does without, by its `model_index.json`."""
    return {name for name, value in index.items() if isinstance(value, list) and not any(value)}


def _files(folder: Path, components: Iterable[str]) -> list[Path]:
    wanted = {".safetensors", ".json", ".txt", ".model"}
    return sorted(
        path
        for name in components
        for path in (folder / name).glob("*")
        if path.suffix in wanted and not is_variant(path)
    )
