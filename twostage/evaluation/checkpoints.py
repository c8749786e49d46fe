"""What a run's checkpoints are worth: their sample pictures measured, and what is concluded from it.

identity_seen     mean cosine of pictures and the photos trained on, DINO
identity_unseen   the same of held-out photos; None where there are none
prompt_fidelity   mean cosine of each picture and its prompt without the token, CLIP
copying           mean cosine of each picture and the training photo nearest to it, DINO
score             identity_unseen x prompt_fidelity; identity_seen where no photo is held out

All are in -1..1; higher is better, of copying lower. None stands for what no encoder measured. In a score, a cosine
below 0 counts as 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from twostage.evaluation.encoders import Encoders
from twostage.evaluation.figures import Better, Figure, dump_figure
from twostage.evaluation.metrics.copying import nearest
from twostage.evaluation.metrics.identity import identity
from twostage.reading import parse_json

FILE = "selection.jsonl"


@dataclass(frozen=True)
class Measured:
    """Figures of one checkpoint; a line of selection.jsonl."""

    stage: int
    step: int
    identity_seen: float | None
    identity_unseen: float | None
    prompt_fidelity: float | None
    copying: float | None
    score: float | None

    @property
    def is_sound(self) -> bool:
        """Whether all are numbers, as those that a disk has damaged may not be."""
        figures = (self.identity_seen, self.identity_unseen, self.prompt_fidelity, self.copying, self.score)
        whole = all(type(number) is int for number in self.place)
        return whole and all(
            type(value) in (float, int) and math.isfinite(value) for value in figures if value is not None
        )

    @property
    def place(self) -> tuple[int, int]:
        """Stage and step."""
        return self.stage, self.step

    @property
    def identity(self) -> float | None:
        """With held-out photos where there are some."""
        return self.identity_seen if self.identity_unseen is None else self.identity_unseen


class Measurer:
    """Measures sample pictures against photos and prompts.

    Args:
        encoders: "dino" and "clip", or one of them.
        photos: trained on.
        held_out: of the same subject, never trained on; may be none.
        prompts: one for each row of pictures, without the token.
    """

    def __init__(
        self,
        encoders: Encoders,
        photos: Sequence[Image.Image],
        held_out: Sequence[Image.Image],
        prompts: Sequence[str],
    ) -> None:
        self._dino, self._clip = encoders.by_role.get("dino"), encoders.by_role.get("clip")
        self._seen = self._dino.images(photos) if self._dino else None
        self._unseen = self._dino.images(held_out) if self._dino and held_out else None
        self._texts = self._clip.texts(prompts) if self._clip else None

    def measure(self, stage: int, step: int, rows: Sequence[Sequence[Image.Image]]) -> Measured:
        """The figures of a checkpoint whose pictures are `rows`, one for each prompt."""
        pictures = [picture for row in rows for picture in row]
        seen = unseen = copying = fidelity = score = None
        if self._dino and self._seen is not None:
            vectors = self._dino.images(pictures)
            seen = identity(vectors, self._seen)
            unseen = identity(vectors, self._unseen) if self._unseen is not None else None
            copying = float(nearest(vectors, self._seen).mean())
        if self._clip and self._texts is not None:
            asked = self._texts.repeat_interleave(torch.tensor([len(row) for row in rows]), dim=0)
            fidelity = float((self._clip.images(pictures) * asked).sum(dim=1).mean())
        shown = seen if unseen is None else unseen
        if shown is not None and fidelity is not None:
            score = max(shown, 0.0) * max(fidelity, 0.0)
        return Measured(stage, step, seen, unseen, fidelity, copying, score)


def read_measured(run: Path) -> list[Measured]:
    """The lines of a run's selection.jsonl, in their order; none where nothing was measured.

    A line that a kill has cut short, or a disk has damaged, is left out.
    """
    if not os.path.isfile(run / FILE):
        return []
    try:
        lines = (run / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    measured = []
    for line in lines:
        try:
            found = Measured(**parse_json(line))
        except (ValueError, TypeError):
            continue
        if found.is_sound:
            measured.append(found)
    return measured


def ranked(measured: Sequence[Measured], stage: int, until: tuple[int, int]) -> list[Measured]:
    """A stage's checkpoints up to a stage and step, the highest score first; of equal ones, the later."""
    own = [found for found in measured if found.stage == stage and found.place <= until]
    return sorted(own, key=lambda found: (-1.0 if found.score is None else found.score, found.step), reverse=True)


def copies(measured: Sequence[Measured], patience: int) -> bool:
    """Whether copying rose at each of a stage's last `patience` checkpoints, and identity did not over all of them.

    Args:
        measured: of one stage, in their order.
        patience: at least 1.
    """
    last = measured[-patience - 1 :]
    copying = [found.copying for found in last if found.copying is not None]
    unseen = [found.identity_unseen for found in last if found.identity_unseen is not None]
    if min(len(copying), len(unseen)) <= patience:
        return False
    rises = all(later > earlier for earlier, later in zip(copying, copying[1:], strict=False))
    return rises and unseen[-1] <= unseen[0]


# Of a figure in an evaluation: its title, what it is called here, which way is better.
_FIGURES: dict[str, tuple[str, str, Better]] = {
    "dino_seen": ("DINO, training photos", "identity_seen", "higher"),
    "dino_unseen": ("DINO, held-out photos", "identity_unseen", "higher"),
    "clip_t": ("CLIP-T, text without the token", "prompt_fidelity", "higher"),
    "copying": ("Nearest training photo (DINO)", "copying", "lower"),
}


def step_curve(run: Path) -> list[dict[str, Any]]:
    """A run's figures over its checkpoints, as in the "curve" of an evaluation.

    Returns:
        For each checkpoint that was measured, in their order: "at" (its step), "stage" and "figures" by name. They are
        of the run's sample pictures, whose prompts and numbers are not those of the evaluation.
    """
    curve = []
    for found in read_measured(run):
        told = {name: getattr(found, own) for name, (_, own, _) in _FIGURES.items()}
        figures = {
            name: dump_figure(Figure(name, _FIGURES[name][0], (value,), -1, 1, _FIGURES[name][2]), None)
            for name, value in told.items()
            if value is not None
        }
        curve.append({"at": found.step, "stage": found.stage, "figures": figures})
    return curve
