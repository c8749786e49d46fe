"""What a prior is made of, whichever its source: the base's knowledge of a class, made once and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from twostage.cache import Shelf
from twostage.display import Display
from twostage.families import Base
from twostage.method.examples import PriorBatch
from twostage.method.precision import number_format
from twostage.quiet import quiet
from twostage.recipe import Data, Prior

Make = Callable[[Sequence[Sequence[int]]], Iterable[dict[int, bytes]]]


@dataclass(frozen=True)
class ClassSamples:
    """An endless, addressable sequence of prior samples.

    Attributes:
        prompts: every prompt they can come with.
        batch: stage, step, rows, rows_per_step -> a prior sample for each row of that address in `Examples.batch`; its
            draws have nothing to do with that row's.
    """

    prompts: list[str]
    batch: Callable[[int, int, range, int], PriorBatch]


@dataclass(frozen=True)
class Making:
    """All that class samples depend on, and where they are made.

    Attributes:
        options: the recipe's section.
        prompt: for the class.
        base: untouched as yet.
        data: size, fit and flips of the pictures.
        seed: of the run.
        accelerator: device, precision and processes.
        display: for progress.
    """

    options: Prior
    prompt: str
    base: Base
    data: Data
    seed: int
    accelerator: Accelerator
    display: Display

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        return self.data.resolution or self.base.resolution

    @property
    def denoiser(self) -> Any:
        """The base's denoiser in the number format that it computes in; whoever wants it as it was reads it anew."""
        denoiser = self.base.denoiser
        dtype = number_format(self.accelerator.mixed_precision)
        if denoiser.dtype != dtype:
            with quiet():
                denoiser.to(dtype)
        return denoiser

    def shelf(self, kind: str, suffix: str, **more: int) -> Shelf:
        """Where the cache keeps what this makes. How many are asked for is no part of the key: more add to it."""
        facts = {
            "base": self.base.pictures_hash,
            "prompt": self.prompt,
            "seed": self.seed,
            "side": self.side,
            "num_inference_steps": self.options.num_inference_steps,
            "guidance_scale": self.options.guidance_scale,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        return Shelf(kind, suffix, facts | more)

    def fill(self, shelf: Shelf, whole: Callable[[Path], bool], count: int, make: Make, label: str) -> None:
        """Make what the shelf lacks of its first `count` files, each process a share.

        Were one process to make them all, the others would wait longer than their patience.

        Args:
            shelf: to fill.
            whole: whether a file there is good.
            count: files it should hold.
            make: numbers of files, a batch each -> for each of these, what belongs in the files of those numbers.
            label: of the progress.
        """
        missing = shelf.missing(count, whole)
        if 0 < len(missing) < count:
            self.display.say(f"{label}: {count - len(missing)} of {count} are in the cache")
        self.accelerator.wait_for_everyone()  # Until all have looked, before any writes.
        own = self._batches(missing, count)[self.accelerator.process_index :: self.accelerator.num_processes]
        self._make(shelf, own, missing, make, label)
        self.accelerator.wait_for_everyone()
        # What processes on another machine made is in that one's cache.
        missing = shelf.missing(count, whole)
        self._make(shelf, self._batches(missing, count), missing, make, label)

    def _batches(self, missing: Sequence[int], count: int) -> list[Sequence[int]]:
        """Those of all `count` files that lack one, whole: in a smaller batch it would be rounded in another way."""
        batches = in_batches(range(count), self.options.sample_batch_size)
        return [batch for batch in batches if not set(missing).isdisjoint(batch)]

    def _make(
        self, shelf: Shelf, batches: Sequence[Sequence[int]], missing: Sequence[int], make: Make, label: str
    ) -> None:
        wanted = set(missing).intersection(chain.from_iterable(batches))
        if not wanted:
            return
        with self.display.progress(label, len(wanted)) as update:
            done = 0
            for batch in make(batches):
                for index in wanted & batch.keys():
                    shelf.put(index, batch[index])
                    done += 1
                update(done)


def address(stream: int, seed: int, index: int) -> np.random.SeedSequence:
    """Where the randomness of class sample `index` comes from: from nothing but that."""
    return np.random.SeedSequence([stream, seed, index])


def torch_seed(address: np.random.SeedSequence) -> int:
    """For a `torch.Generator`, in [0, 2**63)."""
    return int(address.generate_state(1, np.uint64)[0] >> np.uint64(1))


def in_batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The indices, `size` at a time."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
