"""What a result is worth: the same prompts and noise for all, measured by what `twostage evaluate` measures with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.trials.subjects import UNSEEN, Photos
from twostage.evaluation.embedders import CLIPEmbedder, ViTEmbedder
from twostage.evaluation.judge import Judge
from twostage.evaluation.material import Material, Shots
from twostage.evaluation.metrics import all_figures
from twostage.evaluation.suites import load_unrelated
from twostage.pocket import pocket_folder
from twostage.recipe import Sample

DRAWING = Sample(num_inference_steps=12, guidance_scale=5.0)
# What the classifier should read: its group, and the name in it. It has no word for properties.
EDITS: dict[str, tuple[str, str] | None] = {
    "a photo of a purple {}": ("colour", "purple"),
    "a photo of a yellow {}": ("colour", "yellow"),
    "a photo of a striped {}": None,
    "a photo of a shiny {}": None,
    "a painting of a {}": ("style", "painting"),
    "a sketch of a {}": ("style", "sketch"),
}
CONTEXTS = tuple(f"a photo of a {{}} {context}" for context in UNSEEN)
PER_CONTEXT, OF_CLASS, UNRELATED = 2, 8, 8
FROM_METRICS = ("dino_unseen", "dino_seen", "copying", "diversity", "dpres", "drift_class", "drift_unrelated")

Values = dict[str, list[float]]


@dataclass(frozen=True)
class Asked:
    """One picture to draw: its set, the prompt with {}, the noise."""

    group: str
    template: str
    seed: int


def questionnaire(class_noun: str) -> list[Asked]:
    """Every picture of an evaluation, in order."""
    other = load_unrelated(pocket=True, class_noun=class_noun, first=UNRELATED).prompts
    article = "an" if class_noun[0] in "aeiou" else "a"
    return [
        *(Asked("context", template, seed) for template in CONTEXTS for seed in range(PER_CONTEXT)),
        *(Asked("edit", template, 0) for template in EDITS),
        *(Asked("class", f"a photo of {article} {class_noun}", seed) for seed in range(OF_CLASS)),
        *(Asked("unrelated", template, 0) for template in other),
    ]


def filled(asked: Sequence[Asked], phrase: str) -> list[str]:
    """The prompts, `phrase` in the place of {}."""
    return [one.template.replace("{}", phrase) for one in asked]


class Examiner:
    """The encoders, loaded once a process."""

    @cached_property
    def _encoders(self) -> dict[str, Any]:
        return {"dino": ViTEmbedder(pocket_folder("vit")), "clip": CLIPEmbedder(pocket_folder("clip"))}

    @cached_property
    def _judge(self) -> Judge:
        return Judge(pocket_folder("judge"))

    def examine(self, photos: Photos, drawn: Sequence[Image.Image], base: Sequence[Image.Image]) -> Values:
        """Figures by name, a value for each prompt or picture that it is the mean of.

        Args:
            photos: of the individual.
            drawn: for each of `questionnaire`, by the result.
            base: the same by the untouched base.
        """
        asked = questionnaire(photos.class_noun)
        sets = {
            name: Shots([Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))])
            for name, folder in (("seen", photos.seen), ("unseen", photos.unseen))
        }
        for prefix, pictures in (("", drawn), ("base_", base)):
            for name, group in (("subject", "context"), ("class", "class"), ("unrelated", "unrelated")):
                sets[prefix + name] = _shots(asked, pictures, (group,), photos.class_noun)
        material = Material(sets, self._encoders)
        figures: Values = {name: list(all_figures()[name](material).values) for name in FROM_METRICS}
        both = Material({"subject": _shots(asked, drawn, ("context", "edit"), photos.class_noun)}, self._encoders)
        figures["clip_t"] = list(all_figures()["clip_t"](both).values)
        return figures | self._read(asked, drawn, photos.class_noun)

    def _read(self, asked: Sequence[Asked], drawn: Sequence[Image.Image], class_noun: str) -> Values:
        read = self._judge.read(drawn)

        def shares(group: str, name: str, wanted: dict[str, str]) -> list[float]:
            return [
                float(read[group][place] == wanted[one.template])
                for place, one in enumerate(asked)
                if one.group == name and one.template in wanted
            ]

        named = {
            kind: {what: known[1] for what, known in EDITS.items() if known and known[0] == kind}
            for kind in ("colour", "style")
        }
        return {
            "context_read": shares("context", "context", dict(zip(CONTEXTS, UNSEEN, strict=True))),
            "class_read": shares("class", "context", dict.fromkeys(CONTEXTS, class_noun)),
            "edit_read": [value for kind, names in named.items() for value in shares(kind, "edit", names)],
        }


def _shots(asked: Sequence[Asked], drawn: Sequence[Image.Image], groups: tuple[str, ...], noun: str) -> Shots:
    chosen = [place for place, one in enumerate(asked) if one.group in groups]
    prompts = tuple(dict.fromkeys(filled([asked[place] for place in chosen], noun)))
    places = tuple(prompts.index(asked[place].template.replace("{}", noun)) for place in chosen)
    return Shots([drawn[place] for place in chosen], prompts, places, plain=prompts)


def keep(file: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    temporary.replace(file)
