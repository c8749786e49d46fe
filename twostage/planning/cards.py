"""Cards: what their makers say they compute, and how long a step would then take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from twostage.planning.rehearsal import Work

# The share of the maker's figure that training reaches, at best and at worst. The worst are published: a T4 with
# Stable Diffusion 1.5, 0.77 steps/s in float32 with checkpointing, 1.14 steps/s in float16 without
# (ShivamShrirao/diffusers, examples/dreambooth/README.md), of 3.07 and 2.47 TFLOP a step. The best are what large
# matrix products reach.
_SHARES = {"float32": (0.7, 0.29), "half": (0.45, 0.043)}


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        name: of it.
        memory: GiB.
        float32: TFLOP/s outside of tensor cores, which is how torch multiplies float32 matrices unless told otherwise.
        half: TFLOP/s of bfloat16, or float16 where it has no fast bfloat16, dense and summed up in float32.
        source: of these figures.
    """

    name: str
    memory: int
    float32: float
    half: float
    source: str

    def seconds(self, work: Work) -> tuple[float, float]:
        """How long it takes, at best and at worst: an estimate, from operations alone."""
        full = work.flops - work.half
        best, worst = (
            full / (self.float32 * 1e12 * slow) + work.half / (self.half * 1e12 * fast)
            for slow, fast in zip(_SHARES["float32"], _SHARES["half"], strict=True)
        )
        return best, worst


def known_cards() -> list[Card]:
    """A few cards that people have."""
    entries = json.loads((Path(__file__).parent / "cards.json").read_text(encoding="utf-8"))
    return [Card(**entry) for entry in entries]
