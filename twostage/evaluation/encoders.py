"""Which encoders measure a result, by role, and the cache of what they saw: evaluating twice encodes once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from PIL import Image
from torch import Tensor

from twostage.cache import Shelf
from twostage.errors import UserError
from twostage.evaluation.embedders import BATCH, CLIPEmbedder, ViTEmbedder, collected
from twostage.loading import loading
from twostage.pocket import PocketModel, pocket_folder
from twostage.quiet import quiet
from twostage.weights import refuse_archive

DEFAULTS = {
    "dino": "facebook/dino-vits16",
    "dinov2": "facebook/dinov2-small",
    "clip": "openai/clip-vit-base-patch32",
}
_POCKET: dict[str, PocketModel] = {"dino": "vit", "clip": "clip"}
# Seconds until the hub counts as out of reach.
_PATIENCE = 10
_DIGEST = hashlib.sha256().digest_size
# Of pictures in memory at once: 64 of 512x512.
_PIXELS = 2**24

Embedder = ViTEmbedder | CLIPEmbedder


class Encoders(NamedTuple):
    """What `load_encoders` found.

    Attributes:
        by_role: the encoders that can be had.
        left_out: of the others, why not and what to do.
        facts: of each encoder, for evaluation.json: its source, the sha256 of its weights and preprocessing, its model.
    """

    by_role: dict[str, Encoder]
    left_out: dict[str, str]
    facts: dict[str, dict[str, str]]


class Encoder:
    """An embedder that remembers, in the cache, what it saw in a picture.

    A picture is known by its pixels and an embedder by its weights, so nothing kept is ever stale, and a file of the
    cache that is broken is made anew.

    Attributes:
        sha256: over weights and preprocessing, in hex.
        encoded: how many pictures were put through the model.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.sha256 = _fingerprint(embedder)
        self.encoded = 0
        self._shelf = Shelf("embeddings", ".f32", {"encoder": self.sha256})

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) float32 on the CPU, of length 1.

        Raises:
            UserError: the cache cannot be written.
        """
        return collected(map(self._together, _some(images)), len(images))

    def _together(self, images: Sequence[Image.Image]) -> Tensor:
        keys = [_key(image) for image in images]
        known = {key: _read(self._shelf.file(key)) for key in dict.fromkeys(keys)}
        unknown = {key: image for key, image in zip(keys, images, strict=True) if known[key] is None}
        if unknown:
            self.encoded += len(unknown)
            for key, vector in zip(unknown, self.embedder.images(list(unknown.values())), strict=True):
                known[key] = vector
                if torch.isfinite(vector).all():
                    data = vector.numpy().tobytes()
                    self._shelf.put(key, hashlib.sha256(data).digest() + data)
        return torch.stack([vector for key in keys if (vector := known[key]) is not None])

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(N, D) float32 on the CPU, of length 1; of a CLIP."""
        assert isinstance(self.embedder, CLIPEmbedder)
        return self.embedder.texts(prompts)

    def patches(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, P, D) float32 on the CPU, of length 1; of a ViT. Not remembered: they are hundreds a picture."""
        assert isinstance(self.embedder, ViTEmbedder)
        return self.embedder.patches(images)

    def foreground(self, masks: Sequence[Image.Image]) -> Tensor:
        """Which patches a mask covers, (N, P) bool; of a ViT."""
        assert isinstance(self.embedder, ViTEmbedder)
        return self.embedder.foreground(masks)


def load_encoders(choice: Sequence[str], pocket: bool, device: str = "cpu") -> Encoders:
    """Load an encoder for each role.

    Args:
        choice: ROLE=SOURCE where a role shall have another than its default. ROLE is dino, dinov2 or clip, SOURCE a
            folder, a hub id, 'pocket' or 'none'.
        pocket: whether the base is the pocket model, whose pictures its own encoders know best.
        device: that they run on.

    Raises:
        UserError: `choice` is malformed, or names a folder that is not there or holds no such encoder, or a repository
            that the hub does not know. A repository that cannot be reached is left out instead.
    """
    sources = dict.fromkeys(_POCKET, "pocket") if pocket else dict(DEFAULTS)
    chosen = _parse(choice)
    sources.update(chosen)
    found = Encoders({}, {}, {})
    for role in DEFAULTS:
        source = sources.get(role)
        if source is None or source == "none":
            found.left_out[role] = "switched off" if source else "the pocket model has none"
            found.left_out[role] += f"; name one with --encoder {role}=FOLDER"
            continue
        loaded = _find(role, source, device, asked_for=role in chosen)
        if isinstance(loaded, str):
            found.left_out[role] = loaded
            continue
        encoder = Encoder(loaded)
        found.by_role[role] = encoder
        model = type(loaded.model).__name__
        found.facts[role] = {"source": source, "sha256": encoder.sha256, "model": model}
    return found


def _parse(choice: Sequence[str]) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for text in choice:
        role, equals, source = (part.strip() for part in text.partition("="))
        if not (equals and source):
            raise UserError(f"--encoder {text!r}: give ROLE=SOURCE, as in dino=facebook/dino-vits16 or clip=none")
        if role not in DEFAULTS:
            near = get_close_matches(role, DEFAULTS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--encoder {text!r}: {role!r} is no role; roles are {', '.join(DEFAULTS)}{hint}")
        if role in parsed:
            raise UserError(f"--encoder {text!r}: {role} has {parsed[role]!r} already; give each role once")
        parsed[role] = source
    return parsed


def _find(role: str, source: str, device: str, asked_for: bool) -> Embedder | str:
    """The embedder, or why it cannot be had."""
    if source == "pocket":
        if role not in _POCKET:
            raise UserError(f"--encoder {role}=pocket: there is no such model; 'pocket' is for {' and '.join(_POCKET)}")
        return _load(role, pocket_folder(_POCKET[role]), device)
    # os.path's answer is False where Path's is a PermissionError.
    folder = os.path.expanduser(source)
    if os.path.isdir(folder):
        return _load(role, folder, device)
    refuse_archive(folder, "the folder in it")
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or os.path.exists(folder):
        raise UserError(f"--encoder {role}={source}: is no folder here; give that of a transformers model, or a hub id")
    try:
        return _load(role, source, device, local_files_only=True)
    except UserError:
        return _download(role, source, device, asked_for)


def _download(role: str, hub_id: str, device: str, asked_for: bool) -> Embedder | str:
    try:
        # Asked first, since transformers would try for minutes, file by file, where there is no network.
        with quiet():
            HfApi().model_info(hub_id, timeout=_PATIENCE)
    except (RepositoryNotFoundError, HFValidationError) as error:
        if asked_for:
            raise UserError(f"--encoder {role}={hub_id}: neither a folder here nor known to the hub") from error
        return f"{hub_id} is not known to the hub; give a folder with --encoder {role}=FOLDER"
    except (OSError, HTTPError):
        return (
            f"{hub_id} is not in the cache and cannot be downloaded: run 'hf download {hub_id}' where there is a "
            f"network, or give a folder with --encoder {role}=FOLDER"
        )
    try:
        return _load(role, hub_id, device)
    except UserError as error:
        return str(error)


def _load(role: str, source: str | Path, device: str, local_files_only: bool = False) -> Embedder:
    kind = CLIPEmbedder if role == "clip" else ViTEmbedder
    remedy = f"get it anew, with safetensors weights, or name another with --encoder {role}=FOLDER"
    with loading(f"the {role} encoder {source}", remedy):
        embedder = kind(source, device, local_files_only=local_files_only)
        embedder.images([Image.new("RGB", (8, 8))])  # Its settings may be of no use, which is told first when it sees.
        return embedder


def _fingerprint(embedder: Embedder) -> str:
    """Over weights and preprocessing as they act, whatever files they were read from."""
    told = embedder.processor.to_dict()
    acts = {name: told[name] for name in sorted(told) if name.startswith(("do_", "image_", "rescale", "resample"))}
    acts |= {name: told[name] for name in ("size", "crop_size") if told.get(name)}
    digest = hashlib.sha256(json.dumps(acts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(embedder.model.state_dict().items()):
        if name not in embedder.made_up:
            digest.update(f"\0{name}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _some(images: Sequence[Image.Image]) -> Iterator[list[Image.Image]]:
    """All of them, as many at a time as the encoder sees at once; fewer where they are large."""
    some: list[Image.Image] = []
    for image in images:
        some.append(image)
        if len(some) == BATCH or sum(one.width * one.height for one in some) >= _PIXELS:
            yield some
            some = []
    if some:
        yield some


def _key(image: Image.Image) -> str:
    """The picture's file on the shelf; 256 folders keep each of them short."""
    shown = image.convert("RGB")
    digest = hashlib.sha256(f"{shown.size}".encode() + shown.tobytes()).hexdigest()
    return f"{digest[:2]}/{digest}"


def _read(file: Path) -> Tensor | None:
    """A vector of the cache, None where it is not there whole."""
    if not os.path.isfile(file):  # What is none, as a pipe, might be waited for.
        return None
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, vector = data[:_DIGEST], data[_DIGEST:]
    if not vector or hashlib.sha256(vector).digest() != digest:
        return None
    return torch.from_numpy(np.frombuffer(vector, np.float32).copy())
