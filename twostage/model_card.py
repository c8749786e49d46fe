"""The model card: what a run is, how it was made and how to use it, as the Hugging Face hub reads it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from twostage.card_code import CardCode
from twostage.checkpoints import checkpoint_name
from twostage.families import Base, known_families
from twostage.pocket import LICENSE as POCKET_LICENSE
from twostage.recipe import Recipe, Section
from twostage.run_folder import RunFolder
from twostage.subject.captions import subject_phrase
from twostage.writing import whole_file

FILE = "README.md"
# What the hub calls the metadata of a licence.
_LICENSE = ("license", "license_name", "license_link")
# Tables that say how a run was trained; not those that only say what it saved.
_TABLES = ("data", "token", "stage1", "stage2", "adapter", "prior")
# Options that are worth telling at their default, too.
_TOLD = ("placeholder", "num_vectors", "batch_size", "train", "kind", "rank")


def base_facts(base: Base) -> dict[str, str]:
    """What a card says of a base: its pipeline, hub id and licence, as far as they are known without asking the hub."""
    facts = {"pipeline": base.family.pipeline}
    if base.family.absent:
        facts["absent"] = " ".join(base.family.absent)
    if base.source == "pocket":
        return facts | {"license": POCKET_LICENSE}
    if not os.path.isdir(os.path.expanduser(base.source)):
        facts["hub_id"] = base.source
    card = base.folder / FILE
    if not card.is_file():
        return facts
    try:
        stated = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):
        return facts  # It is somebody else's file, and says nothing then.
    return facts | {name: str(stated[name]) for name in _LICENSE if stated.get(name)}


@dataclass(frozen=True)
class Card:
    """A card in the making.

    Attributes:
        folder: of a finished run, its facts read.
        recipe: the run's.
        repo: where a reader finds the files: the folder's path, or a hub id.
        base: the base's name for a reader: a hub id, 'pocket', or a folder.
    """

    folder: RunFolder
    recipe: Recipe
    repo: str
    base: str

    def text(self) -> str:
        """The whole file."""
        parts = [self._introduction(), self._use(), self._making(), self._licence()]
        return f"---\n{self._metadata().to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"

    @property
    def _phrases(self) -> list[str]:
        """What asks for each subject; `{}` stands for the first."""
        return [subject_phrase(token, data) for token, data in self.recipe.every_subject()]

    @property
    def _phrase(self) -> str:
        return self._phrases[0]

    @property
    def _prompt(self) -> str:
        style = self.recipe.data.learnable == "style"
        return f"a painting in the style of {self._phrase}" if style else f"a photo of a {self._phrase}"

    @property
    def _use_of(self) -> CardCode:
        """Runs that do not tell their family are older than all others but one."""
        families = known_families()
        family = families.get(self._base_facts.get("pipeline", ""), families["StableDiffusionPipeline"])
        family = family.without(self._base_facts.get("absent", "").split())
        return CardCode(self.folder.path, self.recipe, self.repo, self.base, family)

    @property
    def _base_facts(self) -> dict[str, str]:
        facts: dict[str, str] = self.folder.facts.get("base_card", {})
        return facts

    @property
    def _photos(self) -> str:
        facts = self.folder.facts
        number = facts.get("num_photos", len(facts.get("photos", [])))
        return f"{number} photo{'' if number == 1 else 's'}"

    def _metadata(self) -> ModelCardData:
        license: dict[str, Any] = {name: self._base_facts[name] for name in _LICENSE if name in self._base_facts}
        kinds = ["dreambooth"] if self.recipe.stage2 else []
        kinds += ["textual_inversion"] if self._use_of.embeddings else []
        kinds += [self.recipe.adapter.kind] if self._use_of.adapters else []
        own = ["stable-diffusion"] if self._use_of.family.pipeline.startswith("StableDiffusion") else []
        hub_id = self._base_facts.get("hub_id")
        facts: dict[str, Any] = {
            "base_model": hub_id if hub_id and _is_hub_id(hub_id) else None,
            "base_model_relation": "adapter" if hub_id and not self._use_of.parts else None,
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": ["text-to-image", "diffusers", *own, "twostage", *kinds],
            "instance_prompt": self._prompt,
            "widget": [{"text": text, "output": {"url": url}} for text, url in self._gallery()],
        }
        return ModelCardData(
            **(license or {"license": "other", "license_name": "unknown"}),
            **{name: value for name, value in facts.items() if value},
        )

    def _gallery(self) -> list[tuple[str, str]]:
        """One of the last sample pictures for each prompt."""
        samples = result_samples(self.folder)
        if samples is None:
            return []
        pictures = [samples / f"prompt{number}-1.png" for number in range(1, len(self.recipe.sample.prompts) + 1)]
        filled = [prompt.replace("{}", self._phrase) for prompt in self.recipe.sample.prompts]
        there = [(text, path) for text, path in zip(filled, pictures, strict=True) if path.is_file()]
        return [(text, path.relative_to(self.folder.path).as_posix()) for text, path in there]

    def _introduction(self) -> str:
        what = "style" if self.recipe.data.learnable == "style" else "subject"
        others = [_code(phrase) for phrase in self._phrases[1:]]
        what = f"{1 + len(others)} {what}s" if others else f"one {what}"
        lines = [
            f"# {', '.join(map(_code, self._phrases))}",
            "",
            f"{_code(self.base)}, taught {what} from {self._photos} by twostage, recipe "
            f"{_code(self.recipe.name)}. Ask for {'the first' if others else 'it'} with {_code(self._prompt)}.",
        ]
        if others:
            lines[-1] += f" The others are {', '.join(others)}."
        gallery = self._gallery()
        if gallery:
            sheet = f"samples/{Path(gallery[0][1]).parent.name}.png"
            lines += ["", f"![samples]({quote(sheet)})", "", "The rows, from above; the columns are seeds "]
            lines[-1] += f"{self.recipe.seed} to {self.recipe.seed + self.recipe.sample.per_prompt - 1}:"
            lines += ["", *(f"{number}. {_code(text)}" for number, (text, _) in enumerate(gallery, start=1))]
        return "\n".join(lines)

    def _use(self) -> str:
        python = "\n".join(self._use_of.python(self._prompt))
        name = Path(self.repo).name
        fetch = "" if Path(self.repo) == self.folder.path else f"hf download {self.repo} --local-dir {name}\n"
        run = shlex.quote(name if fetch else self.repo)
        prompt = shlex.quote(" ".join(self._prompt.replace(self._phrase, "{}").split()))
        return (
            f"## Use\n\nWith diffusers:\n\n```python\n{python}\n```\n\n"
            f"With twostage, `{{}}` standing for {_code(self._phrase)}:\n\n```sh\n{fetch}twostage generate {run} "
            f"{prompt} -n 4\n```{self._guidance()}"
        )

    def _guidance(self) -> str:
        """In what twostage's pictures differ from those of diffusers."""
        recipe, told = self.recipe, []
        sample = recipe.sample.within(recipe.class_nouns, recipe.stage2 is not None)
        if sample.class_guidance:
            told.append(f"with {sample.class_guidance:.0%} of the guidance towards the class alone")
        if sample.away_from == "base":
            told.append("away from what the base's denoiser, not the trained one, draws of nothing")
        plain, lines = "--class-guidance 0 --away-from own", []
        if recipe.low_resolution:
            lines = [
                "The latter enlarges small pictures, drawn with the same prompt and seed by what did in training; the "
                "former does so with one given as `image`, and without `noise_level`."
            ]
        if told:
            lines += [f"The latter draws {' and '.join(told)}; with `{plain}` pictures are guided as the former's are."]
        return "".join(f"\n\n{line}" for line in lines)

    def _making(self) -> str:
        facts, recipe = self.folder.facts, self.recipe
        seconds = sum(value for name, value in facts.get("seconds", {}).items() if name.startswith("stage"))
        lines = [
            "## How it was made",
            "",
            f"On {self._photos}, which are not part of this repository, in {seconds:.0f} s of "
            f"training on {_code(str(facts['device'])) if 'device' in facts else 'an unknown device'}, "
            f"{facts.get('peak_memory_bytes', 0) / 2**30:.2f} GiB at the peak.",
        ]
        if chosen := facts.get("selection", {}).get("chosen"):
            lines[-1] += f" The weights are those of step {int(chosen['step'])} of stage {int(chosen['stage'])}."
        if "from" in facts:
            lines[-1] += f" Stage 1 was taken from another run, of recipe {_code(str(facts['from']['recipe']))}."
        lines += ["", self._captions(), "", "| option | value |", "|---|---|"]
        options = [("base", self.base), *_options(recipe)]
        options += [("subjects", phrase) for phrase in self._phrases[1:]]
        lines += [f"| {name} | {_code(str(value)).replace('|', chr(92) + '|')} |" for name, value in options]
        lines += ["", "What is not in the table is at its default; all of it is in `recipe.toml`."]
        return "\n".join(lines)

    def _captions(self) -> str:
        data, own = self.recipe.data, [photo for photo in self.folder.facts.get("photos", []) if photo.get("caption")]
        if own:
            return "The photos came with captions of their own, which are not told here."
        if data.caption.strip():
            return f"Every photo was shown as {_code(data.caption.strip().replace('{}', self._phrase))}."
        return f"The photos were shown with the templates of Textual Inversion, such as {_code(self._prompt)}."

    def _licence(self) -> str:
        if any(name in self._base_facts for name in _LICENSE):
            return ""
        return (
            "## Licence\n\nThat of the base, which is not known here: it had no model card beside it. Look it up "
            "before you pass this on."
        )


def write_card(folder: RunFolder, recipe: Recipe) -> None:
    """Write the card of a finished run into its folder.

    Raises:
        UserError: it cannot be written.
    """
    text = Card(folder, recipe, str(folder.path), recipe.base).text()
    with whole_file(folder.path / FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def result_samples(folder: RunFolder) -> Path | None:
    """The folder of the samples that a finished run's result drew, if any: of the checkpoint kept, or the last."""
    chosen = folder.facts.get("selection", {}).get("chosen")
    if chosen and (own := folder.path / "samples" / checkpoint_name(chosen["stage"], chosen["step"])).is_dir():
        return own
    folders = [path for path in folder.path.glob("samples/stage*-*") if path.is_dir()]
    return max(folders, key=lambda path: (path.name.split("-")[0], len(path.name), path.name), default=None)


def _options(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """What the recipe has chosen: options without a default, and those that are not at theirs. No paths."""
    yield from (("seed", recipe.seed), ("mixed_precision", recipe.mixed_precision))
    for title in _TABLES:
        table: Section | None = getattr(recipe, title)
        if title == "adapter" and not (recipe.stage2 and recipe.stage2.train == "adapter"):
            continue
        for name, field in type(table).model_fields.items() if table else ():
            value = getattr(table, name)
            telling = name in _TOLD or field.is_required() or value != field.default
            paths = value if isinstance(value, tuple) else (value,)
            if telling and not any(isinstance(path, Path) for path in paths):
                yield f"{title}.{name}", value


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _code(text: str) -> str:
    """Text as it is, whatever Markdown would make of it."""
    line = " ".join(text.split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks} {line} {ticks}" if "`" in line else f"`{line}`"
