"""Options of training that were tried and are not in the package. Each makes the package do it, within a `with`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from benchmarks.trials.subjects import UNSEEN, Photos
from twostage import stages
from twostage.demo import SEEN, take_photos
from twostage.evaluation.embedders import CLIPEmbedder
from twostage.method.denoiser import DenoiserLearner
from twostage.method.embedding import EmbeddingLearner
from twostage.method.examples import Batch
from twostage.method.precision import predict_as_kept
from twostage.pocket import pocket_folder
from twostage.pocket.world import COLOURS
from twostage.prompt_states import PromptStates
from twostage.subject.photos import find_photos, open_photo
from twostage.subject.tokens import Placeholders

Within = Callable[[], AbstractContextManager[Any]]


def learning(pattern: str) -> Within:
    """Of the U-Net, only parameters whose names match learn."""
    opened = stages.open_for_training

    def some(base: Any, name: str, *rest: Any) -> Any:
        component = opened(base, name, *rest)
        if name == "unet":
            for parameter_name, parameter in component.named_parameters():
                parameter.requires_grad_(bool(re.search(pattern, parameter_name)))
        return component

    return lambda: patch.object(stages, "open_for_training", some)


def fewer_high_levels(above: int = 800, weight: float = 0.1) -> Within:
    """Noise levels from `above` on count `weight` times in stage 2 (T-LoRA, arXiv 2507.05964, for whole weights)."""

    class Learner(DenoiserLearner):
        def _loss(self, asked: Any, states: Tensor) -> Tensor:
            return super()._loss(asked, states) * torch.where(asked.timesteps >= above, weight, 1.0)

    return lambda: patch.object(stages, "DenoiserLearner", Learner)


class _Anchored(DenoiserLearner):
    """Has a frozen copy of the U-Net beside it, and the states of prompts in which the class stands for the subject."""

    phrase, class_noun = "", ""

    def __init__(self, base: Any, text: Any, *rest: Any) -> None:
        super().__init__(base, text, *rest)
        self._copy = (copy.deepcopy(base.denoiser).requires_grad_(False),)

    def plain(self, batch: Batch) -> PromptStates:
        return self.text([prompt.replace(self.phrase, self.class_noun) for prompt in batch.prompts])

    def ask(self, unet: Any, asked: Any, states: PromptStates) -> Tensor:
        return predict_as_kept(self._family, unet, asked.noisy, asked.timesteps, asked.given, states).float()


@contextmanager
def _anchored(kind: type[_Anchored]) -> Iterator[None]:
    """Stage 2 with such a learner, whose prompts are known with the class alone too."""
    encoded = stages._text

    def text(session: Any, options: Any, base: Any, subject: Any, prior_prompts: list[str]) -> Any:
        kind.class_noun = session.recipe.data.class_noun
        kind.phrase = subject.phrase
        plain = [prompt.replace(kind.phrase, kind.class_noun) for prompt in subject.prompts]
        return encoded(session, options, base, subject, [*prior_prompts, *plain])

    with patch.object(stages, "_text", text), patch.object(stages, "DenoiserLearner", kind):
        yield


def direct_consistency(beta: float = 1000.0) -> Within:
    """DCO (arXiv 2402.12004): -log sigmoid(-beta (error - error of the base, which is asked for the class alone))."""

    class Learner(_Anchored):
        def forward(self, batch: Batch) -> Tensor:
            asked = batch.question(self._noise_scheduler)
            with torch.no_grad():
                before = (self.ask(self._copy[0], asked, self.plain(batch)) - asked.target).square().flatten(1).mean(1)
            after = self._loss(asked, self.text(batch.prompts))
            return -F.logsigmoid(-beta * (after - before)) * 2 / beta

    return lambda: _anchored(Learner)


def class_consistency(weight: float = 1.0) -> Within:
    """On the photos' own noisy latents, the prediction for the class alone is held to the base's."""

    class Learner(_Anchored):
        def forward(self, batch: Batch) -> Tensor:
            asked = batch.question(self._noise_scheduler)
            plain = self.plain(batch)
            with torch.no_grad():
                before = self.ask(self._copy[0], asked, plain)
            kept = (self.ask(self.unet, asked, plain) - before).square().flatten(1).mean(1)
            return self._loss(asked, self.text(batch.prompts)) + weight * kept

    return lambda: _anchored(Learner)


def fixed_norm() -> Within:
    """Stage 1 sets the norm to the vocabulary's mean after each step, whatever the rate."""

    class Learner(EmbeddingLearner):
        def pull_norm(self, learning_rate: float) -> None:
            super().pull_norm(1.0)

    return lambda: patch.object(stages, "EmbeddingLearner", Learner)


def context_embeddings(weight: float = 1.5e-4, prompts: int = 4) -> Within:
    """CoRe (arXiv 2408.15914): the other words of "a <rare> dog in X" keep the states they have in "a dog in X"."""

    class Learner(EmbeddingLearner):
        @property
        def _names(self) -> Placeholders:
            return next(iter(self._placeholders.values()))

        def forward(self, batch: Batch) -> Tensor:
            loss = super().forward(batch)
            start = int(batch.timesteps.sum()) % len(UNSEEN)
            contexts = [(UNSEEN * 2)[start + place] for place in range(prompts)]
            noun = batch.prompts[0].split(self._names.each[0].name)[-1].strip()
            name = self._names.each[0].name
            with_token = self.encode([f"a photo of a {name} {noun} {context}" for context in contexts])["states"]
            with torch.no_grad():
                without = self.encode([f"a photo of a {noun} {context}" for context in contexts])["states"]
            # "<begin> a photo of a" before the token, everything behind it one place later.
            place, vectors = 5, len(self._names.token_ids)
            behind = with_token.shape[1] - place - vectors
            pairs = [(with_token[:, :place], without[:, :place])]
            pairs.append((with_token[:, place + vectors :], without[:, place : place + behind]))
            apart = torch.cat([1 - F.cosine_similarity(a, b, dim=-1) for a, b in pairs], dim=1)
            return loss + weight * apart.sum(dim=1).mean()

    return lambda: patch.object(stages, "EmbeddingLearner", Learner)


def seen_colour(photos: Photos) -> dict[str, object]:
    """The word of the palette that CLIP reads in the photos: a start conditioned on them."""
    clip = CLIPEmbedder(pocket_folder("clip"))
    pictures = [open_photo(photo) for photo in find_photos(photos.seen)]
    texts = clip.texts([f"a photo of a {word} {photos.class_noun}" for word in COLOURS])
    scores = (clip.images(pictures) @ texts.T).mean(dim=0)
    return {"token.initializer": list(COLOURS)[int(scores.argmax())]}


def class_word(photos: Photos) -> dict[str, object]:
    """Start from the class noun, as Textual Inversion does."""
    return {"token.initializer": photos.class_noun.split()[-1]}


def described(photos: Photos) -> dict[str, object]:
    """Each photo captioned with where it is, so that the place need not be learned with the subject."""
    for file, context in zip(sorted(photos.seen.glob("*.png")), SEEN, strict=True):
        told = photos.seen.parent / "described" / file.name
        told.parent.mkdir(exist_ok=True)
        told.write_bytes(file.read_bytes())
        told.with_suffix(".txt").write_text(f"a photo of a {{}} {context or ''}".strip(), encoding="utf-8")
    return {"data.photos": str(photos.seen.parent / "described")}


def masked(photos: Photos) -> dict[str, object]:
    """Each photo with the mask of its subject: what changes when the same subject is all black, then all white."""
    folder = photos.seen.parent / "masked"
    black, white = (folder.with_name(name) for name in ("black", "white"))
    subject = photos.subject()
    for place, shade in ((folder, None), (black, (0, 0, 0)), (white, (255, 255, 255))):
        painted = subject if shade is None else replace(subject, main=shade, second=shade, accent=shade)
        take_photos(place, painted, SEEN, photos.individual)
    for file in sorted(black.glob("*.png")):
        apart = ImageChops.difference(Image.open(file), Image.open(white / file.name)).convert("L")
        mask = apart.point([255 * (value > 40) for value in range(256)]).filter(ImageFilter.MaxFilter(5))
        mask.save(folder / f"{file.stem}-masklabel.png")
    return {"data.photos": str(folder), "data.unmasked_weight": 0.1}
