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

from twostage.checkpoints import checkpoint_name
from twostage.families import Base, known_families
from twostage.family import Family
from twostage.pocket import LICENSE as POCKET_LICENSE
from twostage.recipe import Recipe, Section
from twostage.run_folder import RunFolder
from twostage.subject.captions import subject_phrase
from twostage.subject.token_files import embedding_file_name
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
    def _parts(self) -> list[str]:
        """Components that the run trained whole."""
        family = self._family
        return [name for name in (family.denoiser, *family.text) if (self.folder.path / name).is_dir()]

    @property
    def _family(self) -> Family:
        """Runs that do not tell theirs are older than all others but one."""
        families = known_families()
        family = families.get(self._base_facts.get("pipeline", ""), families["StableDiffusionPipeline"])
        return family.without(self._base_facts.get("absent", "").split())

    @property
    def _adapters(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.path.glob("adapter/*/adapter_config.json"))

    @property
    def _embeddings(self) -> list[str]:
        """Names of the tokens' files."""
        return sorted(path.name for path in self.folder.path.glob("embedding/*.safetensors"))

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
        kinds += ["textual_inversion"] if self._embeddings else []
        kinds += [self.recipe.adapter.kind] if self._adapters else []
        hub_id = self._base_facts.get("hub_id")
        facts: dict[str, Any] = {
            "base_model": hub_id if hub_id and _is_hub_id(hub_id) else None,
            "base_model_relation": "adapter" if hub_id and not self._parts else None,
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": ["text-to-image", "diffusers", "stable-diffusion", "twostage", *kinds],
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
        python = "\n".join(self._python())
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
        if not told:
            return ""
        plain = "--class-guidance 0 --away-from own"
        return f"\n\nThe latter draws {' and '.join(told)}; with `{plain}` pictures are guided as the former's are."

    def _python(self) -> Iterator[str]:
        family, kinds = self._family, {}
        for name in self._parts:
            kind = family.text[name].kind if name in family.text else family.classes[name]
            kinds[name] = (kind.__module__.partition(".")[0], kind.__name__)
        own = sorted({kind for library, kind in kinds.values() if library == "diffusers"})
        yield "import torch"
        of_diffusers = family.kind.__module__.partition(".")[0] == "diffusers"
        if named := [*([family.pipeline] if of_diffusers else []), *own]:
            yield f"from diffusers import {', '.join(named)}"
        keyed = bool(self._embeddings) and not self._is_read_by_diffusers
        if keyed:
            yield "from huggingface_hub import snapshot_download"
        if self._adapters:
            yield "from peft import PeftModel"
        if keyed:
            yield "from safetensors.torch import load_file"
        if others := sorted({kind for library, kind in kinds.values() if library == "transformers"}):
            yield f"from transformers import {', '.join(others)}"
        if not of_diffusers:
            yield f"from {family.kind.__module__} import {family.pipeline}"
        if self.base == "pocket":
            yield "from twostage.pocket import pocket_folder"
        yield ""
        yield f"repo = {self.repo!r}"
        arguments = []
        for name, (_, kind_name) in kinds.items():
            yield f"{name} = {kind_name}.from_pretrained(repo, subfolder={name!r})"
            arguments.append(f"{name}={name}")
        arguments += [f"{name}=None" for name in family.absent]
        yield f"base = {'pocket_folder()' if self.base == 'pocket' else repr(self.base)}"
        given = ", ".join(["base", *arguments, "torch_dtype=torch.float32"])
        yield f"pipe = {family.pipeline}.from_pretrained({given})"
        for name in self._adapters:
            read = f"PeftModel.from_pretrained(pipe.{name}, repo, subfolder='adapter/{name}')"
            yield f"pipe.{name} = {read}.merge_and_unload()"
        yield from self._python_of_tokens()
        side = f"height={self.recipe.data.resolution}, width={self.recipe.data.resolution}, "
        yield "generator = torch.Generator().manual_seed(0)"
        more = "".join(f"{name}={value}, " for name, value in family.call_arguments.items())
        side = side if self.recipe.data.resolution else ""
        yield f"picture = pipe({self._prompt!r}, {side}{more}generator=generator)"
        yield "picture.images[0].save('picture.png')"

    @property
    def _is_read_by_diffusers(self) -> bool:
        """Whether a token's file is one that stock pipelines of the family load by themselves."""
        part = next(iter(self._family.text.values()))
        return not part.key and hasattr(self._family.kind, "load_textual_inversion")

    def _python_of_tokens(self) -> Iterator[str]:
        if self._is_read_by_diffusers:
            for name in self._embeddings:
                yield f"pipe.load_textual_inversion(repo, subfolder='embedding', weight_name={name!r})"
            return
        if not self._embeddings:
            return
        yield f"folder = {'repo' if Path(self.repo) == self.folder.path else 'snapshot_download(repo)'}"
        for (token, _), file in zip(self.recipe.every_subject(), self._token_files, strict=True):
            name = token.placeholder
            tokens = [name, *(f"{name}_{number}" for number in range(1, token.num_vectors))]
            yield f"rows = load_file(f'{{folder}}/embedding/{file}')"
            for encoder, part in self._family.text.items():
                yield f"pipe.{part.tokenizer}.add_tokens({tokens!r})"
                yield f"ids = pipe.{part.tokenizer}.convert_tokens_to_ids({tokens!r})"
                table = f"pipe.{encoder}.get_input_embeddings().weight"
                yield f"pipe.{encoder}.resize_token_embeddings(max(len({table}), max(ids) + 1), mean_resizing=False)"
                yield f"{table}.data[ids] = rows[{(part.key or name)!r}]"
        for encoder, part in self._family.text.items():
            if part.pooled:
                yield f"# As published, {encoder} would take the token for the prompt's end."
                yield f"pipe.{encoder}.text_model.eos_token_id = pipe.{part.tokenizer}.eos_token_id"

    @property
    def _token_files(self) -> list[str]:
        return [embedding_file_name(token.placeholder) for token, _ in self.recipe.every_subject()]

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
