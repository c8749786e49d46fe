"""Every option, once: name, type, default, bound, unit, help. Its tables are in recipe_sections and recipe_stages.

A recipe is a strategy: which of the two stages run, and what each may train. The command line's flags,
their help and the documentation derive from these fields; nothing else declares an option or a default.
These modules never import torch: `twostage --help` must answer at once.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import Literal, Self

from pydantic import model_validator

from twostage.recipe_memory import Memory, conflict, frozen_conflict
from twostage.recipe_sections import (
    AnotherSubject,
    Checkpoints,
    Data,
    Sample,
    Section,
    Select,
    Token,
    option,
    short_names,
    unit,
)
from twostage.recipe_speed import Speed, speed_conflict
from twostage.recipe_stages import Adapter, Prior, Stage, Stage1, Stage2

__all__ = [
    "Adapter",
    "AnotherSubject",
    "Checkpoints",
    "Data",
    "Memory",
    "Prior",
    "Recipe",
    "Sample",
    "Section",
    "Select",
    "Speed",
    "Stage",
    "Stage1",
    "Stage2",
    "Token",
    "short_names",
    "unit",
]


class Recipe(Section):
    """A strategy with all its options: what `recipe.toml` holds, and what a run is reproduced from."""

    name: str = option(
        "custom",
        "Name of the strategy, of letters, digits, spaces and . + -; part of the run folder's name.",
        pattern=r"^\w[\w .+-]*$",
    )
    description: str = option("", "What it does, in a sentence.")
    base: str = option(
        "pocket",
        "The pretrained pipeline: 'pocket' (bundled), a diffusers folder, or a hub id.",
        flags=("pretrained-model-name-or-path",),
    )
    super_resolution: str = option(
        "",
        "For a base that draws small pictures, as DeepFloyd IF's first stage: what enlarges them, a diffusers folder, "
        "hub id or run.",
    )
    low_resolution: str = option(
        "",
        "For a base that enlarges pictures, as DeepFloyd IF's second stage: what draws the small ones, a diffusers "
        "folder, hub id or run; without one it draws by itself, of noise.",
    )
    seed: int = option(0, "All of a run's randomness derives from it.", ge=0, lt=2**63)
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "Precision of the forward pass.")
    report_to: Literal["none", "tensorboard", "wandb"] = option("none", "Experiment tracker, beside metrics.jsonl.")
    subjects: tuple[AnotherSubject, ...] = option(
        (),
        "One more subject, as PHOTOS:CLASS:TOKEN or PHOTOS:CLASS:TOKEN:INITIALIZER; may be given several times. Each "
        "learns its own token, and stage 2 learns all of them; [[subjects]] tables in a file.",
        flags=("subject",),
    )
    data: Data = Data()
    token: Token = Token()
    stage1: Stage1 | None = None
    stage2: Stage2 | None = None
    adapter: Adapter = Adapter()
    prior: Prior = Prior()
    memory: Memory = Memory()
    speed: Speed = Speed()
    sample: Sample = Sample()
    checkpoints: Checkpoints = Checkpoints()
    select: Select = Select()

    def every_subject(self) -> list[tuple[Token, Data]]:
        """Token and data of each subject, that of [token] and [data] first."""
        first = [(self.token, self.data)]
        return first + [
            (
                self.token.model_copy(update={"placeholder": more.placeholder, "initializer": more.initializer}),
                self.data.model_copy(update={"photos": more.photos, "class_noun": more.class_noun}),
            )
            for more in self.subjects
        ]

    @property
    def class_nouns(self) -> str:
        """Of all subjects, behind each other; blank where none has one."""
        return " ".join(data.class_noun for _, data in self.every_subject())

    @model_validator(mode="after")
    def _subjects_can_be_told_apart(self) -> Self:
        names = [token.placeholder for token, _ in self.every_subject()]
        for one, other in combinations(names, 2):
            # Letters alone: the name of a file holds no more. And a name within another is found there, as <a> in the
            # second vector of <a>, which is <a>_1.
            bare = [re.sub(r"[\W_]+", "", name).lower() or "token" for name in (one, other)]
            low, high = sorted((one.lower(), other.lower()), key=len)
            if bare[0] == bare[1] or low in high:
                raise ValueError(
                    f"two subjects share a token: {one!r} and {other!r} cannot be told apart in prompts or file names; "
                    "give each a token of its own"
                )
        return self

    @model_validator(mode="after")
    def _adjectives_have_a_noun(self) -> Self:
        if self.token.role == "noun" or self.data.learnable == "style":
            return self
        for number, more in enumerate(self.subjects):
            if not more.class_noun.strip():
                raise ValueError(
                    f"subjects[{number}].class_noun is empty, and its token {more.placeholder!r} is an adjective; say "
                    "what the subject is, or make the tokens nouns with token.role = 'noun'"
                )
        return self

    @model_validator(mode="after")
    def _options_of_stage_2_have_one(self) -> Self:
        if self.prior.preserve and self.stage2 is None:
            raise ValueError(
                "prior.preserve = true, and there is no [stage2]: prior preservation is for the denoiser, which this "
                "recipe does not train"
            )
        return self

    @model_validator(mode="after")
    def _options_of_an_adapter_have_one(self) -> Self:
        given = [name for name in Adapter.model_fields if getattr(self.adapter, name) != getattr(Adapter(), name)]
        if given and not (self.stage2 and self.stage2.train == "adapter"):
            raise ValueError(
                f"adapter.{given[0]} = {getattr(self.adapter, given[0])} would do nothing: stage 2 trains no adapter; "
                "did you mean stage2.train = 'adapter'?"
            )
        return self

    @model_validator(mode="after")
    def _memory_goes_with_stage_2(self) -> Self:
        reason = conflict(self.memory, self.stage2, self.mixed_precision)
        reason = reason or frozen_conflict(self.memory, self.stage1, self.stage2)
        if reason:
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _what_is_compiled_stays_as_it_is(self) -> Self:
        stages = {"stage1": self.stage1, "stage2": self.stage2}
        there = [(name, stage) for name, stage in stages.items() if stage]
        reason = speed_conflict(self.speed, self.memory, there, self.data.fit)
        if reason:
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _checkpoints_are_within_the_stages(self) -> Self:
        longest = max((stage.steps for stage in (self.stage1, self.stage2) if stage), default=None)
        beyond = [step for step in self.checkpoints.at if longest and step > longest]
        if beyond:
            raise ValueError(
                f"checkpoints.at = {beyond[0]} comes after the last step: the recipe's longest stage has {longest}"
            )
        return self

    @model_validator(mode="after")
    def _what_is_measured_is_drawn(self) -> Self:
        if not self.select.wanted:
            return self
        drawn = [text for text in self.sample.prompts if "{}" in text or self.token.placeholder in text]
        if drawn and self.sample.per_prompt:
            return self
        wrong = "sample.per_prompt = 0" if drawn else f"none of the {len(self.sample.prompts)} sample.prompts has {{}}"
        asks = "measure = true" if self.select.measure else f"stop_on_copying = {self.select.stop_on_copying}"
        asks = "keep = 'best'" if self.select.keep == "best" else asks
        raise ValueError(f"select.{asks} measures sample pictures of the subject, and {wrong}; have some drawn")
