"""Rendered pictures of the pocket world with captions and labels, drawn once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from twostage.pocket.world import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    CONTEXTS,
    LIVE,
    PROPERTIES,
    Scene,
    Subject,
    caption,
    draw,
    sample_scene,
    sample_subject,
)

DRAWS_PER_SUBJECT = 4
CHUNK = 2000
LABELS: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    "colour": tuple(COLOURS),
    "context": (*CONTEXTS, "plain"),
    "style": ("photo", "painting", "sketch"),
}


def drawn(seed: int, index: int) -> tuple[Subject, Scene]:
    """What picture `index` of the data set `seed` shows: pictures 4k..4k+3 show one subject, the first two plainly."""
    subject = sample_subject(np.random.default_rng([seed, 1, index // DRAWS_PER_SUBJECT]))
    plain = index % DRAWS_PER_SUBJECT < 2
    scene = sample_scene(np.random.default_rng([seed, 2, index]), subject.class_name in LIVE, plain=plain)
    return subject, scene


def label(subject: Subject, scene: Scene) -> list[int]:
    """Index of class, colour, context and style in LABELS; -1 for the colour of a sketch, which has none."""
    colour = -1 if scene.style == "sketch" else LABELS["colour"].index(scene.colour or subject.colour)
    return [
        LABELS["class"].index(subject.class_name),
        colour,
        LABELS["context"].index(scene.context or "plain"),
        LABELS["style"].index(scene.style),
    ]


@dataclass(frozen=True)
class Dataset:
    """Pictures (N, 64, 64, 3) uint8 and labels (N, 4) int64, in the order of LABELS; index i is `drawn(seed, i)`."""

    seed: int
    pictures: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, indices: np.ndarray) -> torch.Tensor:
        """Pictures as (B, 3, 64, 64) float32 in [-1, 1]."""
        batch = torch.from_numpy(np.ascontiguousarray(self.pictures[np.asarray(indices)]))
        return batch.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    def class_name(self, index: int) -> str:
        return CLASSES[int(self.labels[index, 0])]

    def caption(self, index: int, variant: int = 0) -> str:
        """A caption of picture `index`; variants name more or less of what it shows."""
        subject, scene = drawn(self.seed, index)
        return caption(subject, scene, np.random.default_rng([self.seed, 3, index, variant]))


PHRASES = (*CLASSES, *COLOURS, *CONTEXTS, *PROPERTIES, *ACCESSORIES, "painting", "sketch")


def said_by_captions(data: Dataset, pictures: int, variants: int) -> np.ndarray:
    """Which of PHRASES each caption holds, (pictures, variants, P) float32; colours: the subject's."""
    said = np.zeros((pictures, variants, len(PHRASES)), dtype=np.float32)
    for index in range(pictures):
        for variant in range(variants):
            caption = data.caption(index, variant)
            for column, phrase in enumerate(PHRASES):
                text = f"{phrase} {data.class_name(index)}" if phrase in COLOURS else phrase
                said[index, variant, column] = text in caption
    return said


def _draw_chunk(seed: int, size: int, folder: Path, chunk: int) -> int:
    path = folder / f"{seed}-{chunk:04d}.npz"
    if not path.exists():
        shown = [drawn(seed, i) for i in range(chunk * CHUNK, min(size, (chunk + 1) * CHUNK))]
        pictures = np.stack([np.asarray(draw(subject, scene)) for subject, scene in shown])
        part = path.with_name("." + path.name)
        np.savez(part, pictures=pictures, labels=np.array([label(subject, scene) for subject, scene in shown]))
        os.replace(part, path)
    return chunk


def draw_chunks(seed: int, size: int, folder: Path, workers: int) -> Iterator[int]:
    """Draw what is missing of a data set of `size` pictures into `folder`; yields the chunks done."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(_draw_chunk, seed, size, folder), range(-(-size // CHUNK)))


def load_dataset(seed: int, size: int, folder: Path, workers: int = 2) -> Dataset:
    """The data set `seed` of `size` pictures, drawn into `folder` first where it is not there yet."""
    for chunk in draw_chunks(seed, size, folder, workers):
        if chunk % 5 == 4:
            print(f"world {seed}: {(chunk + 1) * CHUNK} of {size} pictures drawn", flush=True)
    parts = [np.load(folder / f"{seed}-{chunk:04d}.npz") for chunk in range(-(-size // CHUNK))]
    pictures = np.concatenate([part["pictures"] for part in parts])[:size]
    return Dataset(seed, pictures, np.concatenate([part["labels"] for part in parts])[:size])
