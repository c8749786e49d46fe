"""Model families, one file each: how a pretrained pipeline is loaded, asked and put together again.

A family is a module of this folder, found by its file name, that defines

    PIPELINE                 `_class_name` in the `model_index.json` of the folders it reads
    COMPONENTS, MODELS       sub-folders it needs, and those of them that hold weights
    load(folder, name)       one component, float32, in eval mode
    outline(folder, name)    its modules without weights
    resolution(folder)       side of the pictures the base was trained on, in pixels, and the VAE's reduction
    encode_images            pixels -> mean and standard deviation of the scaled latents
    encode_text              prompts -> prompt states
    predict                  noisy latents, timesteps, prompt states -> the U-Net's output
    build_pipeline           the stock pipeline that draws pictures
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusers import DDPMScheduler, DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from twostage.errors import UserError
from twostage.loading import loading
from twostage.pocket import pocket_folder
from twostage.quiet import quiet
from twostage.reading import read_json
from twostage.weights import PICKLES, check_folder, pipeline_conversion, refuse_archive

# Libraries that a pipeline's parts come from; the last is diffusers' own name for a module of it.
_LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")
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
        family: the module of this package that reads it.
        resolution: side of the pictures it was trained on, in pixels.
        reduction: pixels of a latent's side.
        vae_in_tiles: whether its VAE is to work so; see `work_in_tiles`.
    """

    source: str
    folder: Path
    family: ModuleType
    resolution: int
    reduction: int
    vae_in_tiles: bool = False
    _loaded: dict[str, Any] = field(default_factory=dict)
    _digests: dict[Path, bytes] = field(default_factory=dict)

    def release(self, *names: str) -> None:
        """Forget components, so that their memory can be freed."""
        for name in names:
            self._loaded.pop(name, None)

    def _component(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load_part(self.family, self.folder, name)
        return self._loaded[name]

    def outline(self, name: str) -> Any:
        """A component's modules, on the meta device: names and shapes before anything large is loaded."""
        check_folder(self.folder / name)
        with loading(self.folder / name):
            return self.family.outline(self.folder, name)

    @property
    def tokenizer(self) -> Any:
        return self._component("tokenizer")

    @property
    def text_encoder(self) -> Any:
        return self._component("text_encoder")

    @property
    def vae(self) -> Any:
        vae = self._component("vae")
        if self.vae_in_tiles:
            work_in_tiles(vae)
        return vae

    @property
    def unet(self) -> Any:
        return self._component("unet")

    @cached_property
    def noise_scheduler(self) -> DDPMScheduler:
        """The forward process of training, with the betas and the prediction type of the folder's own scheduler."""
        with loading(self.folder / "scheduler"):
            scheduler: DDPMScheduler = DDPMScheduler.from_pretrained(
                self.folder, subfolder="scheduler", local_files_only=True
            )
        return scheduler

    def pipeline(self, **components: Any) -> Any:
        """The stock pipeline, with some components in place of the base's own; None leaves one out.

        Raises:
            UserError: a component's files are missing, broken or not what the family expects.
        """
        # New ones, which may be changed; and read as others are: the library would make up what their files lack.
        for name in {"tokenizer", *self.family.MODELS} - components.keys():
            components[name] = load_part(self.family, self.folder, name)
        with loading(self.folder):
            return self.family.build_pipeline(self.folder, **components)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the names and the bytes of all files training reads, in hex."""
        return self.hash_of(*self.family.COMPONENTS)

    def hash_of(self, *names: str) -> str:
        """sha256 over the names and the bytes of all files that these components are read from, in hex."""
        digest = hashlib.sha256()
        for path in _files(self.folder, names):
            if path not in self._digests:
                try:
                    with path.open("rb") as file:
                        self._digests[path] = hashlib.file_digest(file, "sha256").digest()
                except OSError as error:
                    raise UserError(f"cannot read {path}: {error.strerror}; get the base anew") from error
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(self._digests[path])
        return digest.hexdigest()


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
    folder = _find_folder(base)
    family = _family_of(folder, base)
    for name in family.COMPONENTS:
        if not (folder / name).is_dir():
            raise UserError(f"base {base!r} has no {name}/ in {folder}; a {family.PIPELINE} needs it, get it anew")
        check_folder(folder / name)
    for name in family.MODELS:
        weights = [path for path in (folder / name).glob("*.safetensors") if not _is_variant(path)]
        if not weights:
            pickled = [path for path in (folder / name).iterdir() if path.suffix in PICKLES]
            why = pipeline_conversion(folder) if pickled else "other kinds are never read"
            raise UserError(f"base {base!r} has no safetensors weights in {folder / name}; {why}")
        for path in weights:
            _check_weights(path)
    resolution, reduction = family.resolution(folder)
    return Base(base, folder, family, resolution, reduction)


def load_part(family: ModuleType, folder: Path, name: str) -> Any:
    """Read one component from its folder inside `folder`, a base or a run.

    Raises:
        UserError: its files are missing, broken or not what the family expects, or name code or files elsewhere.
    """
    if os.path.isdir(folder / name):
        check_folder(folder / name)
    with loading(folder / name):
        return family.load(folder, name)


@cache
def known_families() -> dict[str, ModuleType]:
    """The families found beside this file, keyed by the pipeline class they read."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {module.PIPELINE: module for module in modules}


def _find_folder(base: str) -> Path:
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


def _family_of(folder: Path, base: str) -> ModuleType:
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
        raise UserError(f"base {base!r} is a {name}, which is not known; known are: {', '.join(sorted(families))}")
    _refuse_code(parts, index)
    return families[name]


def _refuse_code(parts: dict[str, Any], index: Path) -> None:
    """Beside their own classes, libraries would take those of files that lie there."""
    for part, origin in parts.items():
        known = [None, None] if part.startswith("_") or not isinstance(origin, list) else origin
        wrong = len(known) != 2 or known[0] not in _LIBRARIES
        # It alone is made by the name that stands there; the others are made by the family.
        if wrong or part == "scheduler" and not (known[0] == "diffusers" and str(known[1]).endswith("Scheduler")):
            raise UserError(
                f"{index} has {part} = {str(origin)[:80]}, which is no part of diffusers or transformers, and no code "
                "that comes with weights is run; use a base without"
            )


def _files(folder: Path, components: Iterable[str]) -> list[Path]:
    wanted = {".safetensors", ".json", ".txt"}
    return sorted(
        path
        for name in components
        for path in (folder / name).glob("*")
        if path.suffix in wanted and not _is_variant(path)
    )


def _is_variant(path: Path) -> bool:
    """diffusers keeps half-precision copies beside the weights, as `model.fp16.safetensors`; they are not read."""
    return path.suffix == ".safetensors" and "." in path.stem


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights {path} are broken ({error}); get the base anew") from error
