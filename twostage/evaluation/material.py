"""What metrics read: sets of pictures, and what encoders see in them.

Sets that a metric can ask for:

    subject      the suite's prompts with the token, drawn by the result
    class        the bare class prompt, drawn by the result
    unrelated    prompts of other things, drawn by the result
    base_subject, base_class, base_unrelated
                 the same seeds drawn by the untouched base; of the subject, with the class alone
    seen         the photos trained on
    unseen       photos held out

A set is absent where there is none: no base given, no photo held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from .figures import LeftOut

SetName = Literal["subject", "class", "unrelated", "base_subject", "base_class", "base_unrelated", "seen", "unseen"]


T = TypeVar("T")


class Opened(Sequence[T], Generic[T]):
    """Pictures that are opened each time they are looked at, so that thousands of them take no memory.

    Args:
        sources: what they are opened from: files, photos.
        read: opens one.
    """

    def __init__(self, sources: Sequence[Any], read: Callable[[Any], T]) -> None:
        self._sources, self._read = sources, read

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Opened[T]: ...
    def __getitem__(self, index: int | slice) -> T | Opened[T]:
        if isinstance(index, slice):
            return Opened(self._sources[index], self._read)
        return self._read(self._sources[index])


@dataclass(frozen=True)
class Shots:
    """Pictures of one set.

    Attributes:
        images: RGB; looked at one after the other, as there may be more than memory holds.
        prompts: different prompts they were drawn for, as the model got them; empty for photos.
        places: for each picture, which of the prompts; empty for photos.
        masks: for photos that have one, its foreground mask ("L", of the picture's size, white is subject); else None.
        plain: `prompts` without the token: "a photo of a backpack on the beach".
    """

    images: Sequence[Image.Image]
    prompts: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    masks: Sequence[Image.Image | None] = ()
    plain: tuple[str, ...] = ()

    @property
    def prompt_of_each(self) -> tuple[str, ...]:
        """For each picture, the prompt it was drawn for."""
        return tuple(self.prompts[place] for place in self.places)


class ImageEncoder(Protocol):
    """Pictures to vectors."""

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) float32 on the CPU, of length 1."""
        ...


class TextEncoder(ImageEncoder, Protocol):
    """And texts to the same space."""

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(N, D) float32 on the CPU, of length 1."""
        ...


class PatchEncoder(ImageEncoder, Protocol):
    """And the parts of pictures, where the encoder is a ViT."""

    def patches(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, P, D) float32 on the CPU, of length 1."""
        ...

    def foreground(self, masks: Sequence[Image.Image]) -> Tensor:
        """Which patches the masks ("L") cover, (N, P) bool."""
        ...


@dataclass(frozen=True)
class Material:
    """Pictures and encoders of one evaluation.

    Attributes:
        shots: by set.
        encoders: by role: "dino", "dinov2", "clip". A role is absent where its encoder could not be had.
    """

    shots: Mapping[str, Shots]
    encoders: Mapping[str, ImageEncoder]
    # Several metrics read the same set, and each look at it opens and hashes its pictures.
    _embedded: dict[tuple[str, str], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _black: dict[str, int | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def get(self, name: SetName) -> Shots:
        """A set of pictures.

        Raises:
            LeftOut: there is none, or one of its pictures is all black: what half-precision overflow, weights that
                are no numbers and safety checkers leave. Its score would be a number all the same.
        """
        shots = self.shots.get(name)
        if shots is None or not shots.images:
            raise LeftOut(_ABSENT[name])
        if name not in self._black:
            self._black[name] = next((i for i, image in enumerate(shots.images) if not image.getbbox()), None)
        if (index := self._black[name]) is not None:
            raise LeftOut(f"{_which(name, shots, index)} is all black: a safety checker, or numbers overflowed")
        return shots

    def encoder(self, role: str) -> ImageEncoder:
        """An encoder by its role.

        Raises:
            LeftOut: there is none.
        """
        if role not in self.encoders:
            raise LeftOut(f"no {role} encoder")
        return self.encoders[role]

    def embedded(self, role: str, name: SetName) -> Tensor:
        """The set's pictures as the encoder sees them, (N, D) of length 1.

        Raises:
            LeftOut: no such encoder, no such set, or an embedding is no number.
        """
        if (role, name) not in self._embedded:
            shots = self.get(name)
            vectors = self.encoder(role).images(shots.images)
            broken = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
            if broken:
                raise LeftOut(f"the {role} encoder sees no numbers in {_which(name, shots, broken[0])}; get it anew")
            self._embedded[role, name] = vectors
        return self._embedded[role, name]

    def of_base(self) -> Material:
        """The untouched base's pictures in place of the result's: the row that everything is compared with."""
        swapped = {name: shots for name, shots in self.shots.items() if name in ("seen", "unseen")}
        for name in ("subject", "class", "unrelated"):
            if own := self.shots.get(f"base_{name}"):
                swapped[name] = swapped[f"base_{name}"] = own
        return replace(self, shots=swapped)


def _which(name: str, shots: Shots, index: int) -> str:
    prompt = f" ({shots.prompts[shots.places[index]]!r})" if shots.places else ""
    return f"picture {index} of {name}{prompt}"


_ABSENT: dict[str, str] = {
    "subject": "no pictures of the subject were drawn",
    "class": "no pictures of the class were drawn; a class noun is needed (--class)",
    "unrelated": "no pictures of other things were drawn (num_unrelated_images)",
    "base_subject": "the untouched base is not known; name it with --base",
    "base_class": "the untouched base is not known, or there is no class noun; name them with --base and --class",
    "base_unrelated": "the untouched base is not known; name it with --base",
    "seen": "the photos trained on are not at hand; name their folder with --photos",
    "unseen": "no photo is held out: keep one from training with --held-out",
}
