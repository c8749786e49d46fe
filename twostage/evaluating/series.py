"""The pictures of an evaluation: which, and drawn once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from twostage.display import Display
from twostage.errors import UserError
from twostage.evaluation.material import Opened, Shots
from twostage.evaluation.suites import Suite
from twostage.method.sampling import draw
from twostage.recipe import Sample
from twostage.recipe_evaluation import Evaluation
from twostage.writing import whole_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

# Denoised together. The bounds of batches are fixed, so that a picture has the same bits whenever it is drawn.
BATCH = 8


@dataclass(frozen=True)
class Series:
    """Pictures of one set: `count` for each prompt, the noise of each from a seed of its own.

    Attributes:
        templates: prompts, {} standing for what is asked for.
        count: pictures a prompt.
        seed: of the first picture; the next ones count up.
    """

    templates: tuple[str, ...]
    count: int
    seed: int

    @property
    def total(self) -> int:
        return len(self.templates) * self.count

    @property
    def places(self) -> tuple[int, ...]:
        """For each picture, which of the prompts it is drawn for."""
        return tuple(place for place in range(len(self.templates)) for _ in range(self.count))

    def filled(self, phrase: str) -> tuple[str, ...]:
        """The prompts with `phrase` in the place of {}."""
        return tuple(template.replace("{}", phrase) for template in self.templates)

    def shots(self, images: Sequence[Image.Image], phrase: str, plain: str) -> Shots:
        """The pictures with their prompts, as drawn for `phrase` and as they read without the token."""
        return Shots(images, self.filled(phrase), self.places, plain=self.filled(plain) if plain else ())


def plan_series(options: Evaluation, suite: Suite, unrelated: Suite, class_noun: str) -> dict[str, Series]:
    """What is drawn for every result of a class: the same prompts and seeds for all, and for the untouched base."""
    planned = {"subject": Series(suite.prompts, options.images_per_prompt, options.seed)}
    if class_noun:
        planned["class"] = Series((options.class_prompt,), options.num_class_images, options.seed)
    if options.num_unrelated_images:
        known = unrelated.prompts
        asked = [known[index % len(known)] for index in range(options.num_unrelated_images)]
        planned["unrelated"] = Series(tuple(asked), 1, options.seed)
    return planned


@dataclass(frozen=True)
class Drawer:
    """Draws what is not there yet.

    Attributes:
        load: the pipeline, when something has to be drawn.
        options: denoising steps, and how pictures are guided.
        side: of the pictures, in pixels.
        whose: for messages: the run, or the base.
        untouched: for that pipeline, the base's U-Net, where pictures are guided by it.
    """

    load: Callable[[], DiffusionPipeline]
    options: Sample
    side: int
    whose: str
    untouched: Callable[[DiffusionPipeline], nn.Module] | None = None

    def pictures(
        self, series: Series, phrase: str, plain: str, files: Sequence[Path], display: Display
    ) -> Sequence[Image.Image]:
        """The pictures of a series, drawn and written to their files where they are not; read when they are looked at.

        Args:
            series: what to draw.
            phrase: in the place of {}.
            plain: the same without the token: the class; "" where there is no word for it.
            files: one for each picture, in folders that are there.
            display: for progress.

        Raises:
            UserError: a batch is all black, as from weights that are no numbers; a picture cannot be written. Also
                later, where a file is gone or damaged when it is looked at.
        """
        assert len(files) == series.total
        texts = zip(series.filled(phrase), series.filled(plain or phrase), strict=True)
        prompts = [both for both in texts for _ in range(series.count)]
        pictures = Opened(files, partial(_read_again, side=self.side))
        starts = [
            start
            for start in range(0, len(files), BATCH)
            if not all(read_drawn(file, self.side) for file in files[start : start + BATCH])
        ]
        if not starts:
            return pictures
        pipeline = self.load()
        # Of no use where the prompts do not name the subject.
        weak = self.untouched(pipeline) if self.untouched and plain and plain != phrase else None
        with display.progress(f"drawing {self.whose}", len(files), len(files) - BATCH * len(starts)) as update:
            for done, start in enumerate(starts, start=1):
                batch = range(start, min(start + BATCH, len(files)))
                seeds = [series.seed + index for index in batch]
                asked = [prompts[index] for index in batch]
                drawn = draw(pipeline, asked, seeds, self.options, self.side, untouched=weak)
                self._refuse_black(drawn)
                for index, picture in zip(batch, drawn, strict=True):
                    write_picture(picture, files[index])
                update(len(files) - BATCH * (len(starts) - done))
        return pictures

    def _refuse_black(self, pictures: Sequence[Image.Image]) -> None:
        if all(picture.convert("L").getextrema() == (0, 0) for picture in pictures):
            raise UserError(
                f"{self.whose} draws black pictures: its weights are no numbers, or overflow in half precision; train "
                "again at a lower learning rate, or with --mixed-precision bf16 or no"
            )


def _read_again(file: Path, side: int) -> Image.Image:
    picture = read_drawn(file, side)
    if picture is None:
        raise UserError(f"the picture {file} was there a moment ago, and is gone or damaged; evaluate again")
    return picture


def write_picture(picture: Image.Image, file: Path) -> None:
    """Write a PNG; it is there whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with whole_file(file) as temporary:
        picture.save(temporary, format="PNG")


def read_drawn(file: Path, side: int) -> Image.Image | None:
    """The picture in a file that was drawn before; None where it is not there, or damaged."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return picture.convert("RGB") if picture.size == (side, side) else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
