"""The Python of a model card: how stock diffusers loads what a run has left, and draws with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twostage.family import Family
from twostage.recipe import Recipe, Token
from twostage.subject.token_files import embedding_file_name


@dataclass(frozen=True)
class CardCode:
    """Code for the result of a run.

    Attributes:
        folder: of the run.
        recipe: the run's.
        repo: where a reader finds the files: the folder's path, or a hub id.
        base: how the base is called in the card.
        family: of the base.
    """

    folder: Path
    recipe: Recipe
    repo: str
    base: str
    family: Family

    @property
    def parts(self) -> list[str]:
        """Components that the run trained whole."""
        family = self.family
        return [name for name in (family.denoiser, *family.text) if (self.folder / name).is_dir()]

    @property
    def adapters(self) -> list[str]:
        """Components that it trained an adapter for."""
        return sorted(path.parent.name for path in self.folder.glob("adapter/*/adapter_config.json"))

    @property
    def embeddings(self) -> list[str]:
        """Names of the tokens' files."""
        return sorted(path.name for path in self.folder.glob("embedding/*.safetensors"))

    def python(self, prompt: str) -> Iterator[str]:
        """Lines that draw a picture for a prompt."""
        family, kinds = self.family, {}
        for name in self.parts:
            kind = family.text[name].kind if name in family.text else family.classes[name]
            kinds[name] = (kind.__module__.partition(".")[0], kind.__name__)
        own = sorted({kind for library, kind in kinds.values() if library == "diffusers"})
        yield "import torch"
        of_diffusers = family.kind.__module__.partition(".")[0] == "diffusers"
        if named := [*([family.pipeline] if of_diffusers else []), *own]:
            yield f"from diffusers import {', '.join(named)}"
        keyed = bool(self.embeddings) and not self._is_read_by_diffusers
        if keyed:
            yield "from huggingface_hub import snapshot_download"
        if self.adapters:
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
        for name in self.adapters:
            read = f"PeftModel.from_pretrained(pipe.{name}, repo, subfolder='adapter/{name}')"
            yield f"pipe.{name} = {read}.merge_and_unload()"
        yield from self._python_of_tokens()
        side = f"height={self.recipe.data.resolution}, width={self.recipe.data.resolution}, "
        yield "generator = torch.Generator().manual_seed(0)"
        more = "".join(f"{name}={value}, " for name, value in family.call_arguments.items())
        side = side if self.recipe.data.resolution else ""
        yield f"picture = pipe({self._written_out(prompt)!r}, {side}{more}generator=generator)"
        yield "picture.images[0].save('picture.png')"

    @property
    def _is_read_by_diffusers(self) -> bool:
        """Whether a token's file is one that stock pipelines of the family load by themselves."""
        part = next(iter(self.family.text.values()))
        return not part.key and hasattr(self.family.kind, "load_textual_inversion")

    def _python_of_tokens(self) -> Iterator[str]:
        if self._is_read_by_diffusers:
            for name in self.embeddings:
                yield f"pipe.load_textual_inversion(repo, subfolder='embedding', weight_name={name!r})"
            return
        if not self.embeddings:
            return
        yield f"folder = {'repo' if Path(self.repo) == self.folder else 'snapshot_download(repo)'}"
        for (token, _), file in zip(self.recipe.every_subject(), self._token_files, strict=True):
            name = token.placeholder
            tokens = _names(token)
            yield f"rows = load_file(f'{{folder}}/embedding/{file}')"
            for encoder, part in self.family.text.items():
                yield f"pipe.{part.tokenizer}.add_tokens({tokens!r})"
                yield f"ids = pipe.{part.tokenizer}.convert_tokens_to_ids({tokens!r})"
                table = f"pipe.{encoder}.get_input_embeddings().weight"
                yield f"pipe.{encoder}.resize_token_embeddings(max(len({table}), max(ids) + 1), mean_resizing=False)"
                yield f"{table}.data[ids] = rows[{(part.key or name)!r}]"
        for encoder, part in self.family.text.items():
            if part.pooled:
                yield f"# As published, {encoder} would take the token for the prompt's end."
                yield f"pipe.{encoder}.text_model.eos_token_id = pipe.{part.tokenizer}.eos_token_id"

    def _written_out(self, prompt: str) -> str:
        """With every vector's name where the stock pipeline does not add those of further ones by itself."""
        if self.embeddings and not hasattr(self.family.kind, "maybe_convert_prompt"):
            for token, _ in self.recipe.every_subject():
                prompt = prompt.replace(token.placeholder, " ".join(_names(token)))
        return prompt

    @property
    def _token_files(self) -> list[str]:
        return [embedding_file_name(token.placeholder) for token, _ in self.recipe.every_subject()]


def _names(token: Token) -> list[str]:
    """Of a token's vectors."""
    return [token.placeholder, *(f"{token.placeholder}_{number}" for number in range(1, token.num_vectors))]
