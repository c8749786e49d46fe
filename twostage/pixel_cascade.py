"""What the stages of DeepFloyd IF share, an open counterpart of Imagen (arXiv 2205.11487).

T5 reads prompts, and U-Nets see pixels: one draws small pictures, the next enlarges them. They predict the noise and
its variance; of that, training leaves as it is what the pretrained head makes of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from twostage.errors import UserError
from twostage.family import Family
from twostage.family_parts import Drawing, Text, TextPart
from twostage.prompt_states import PromptStates
from twostage.reading import read_json

# Of a prompt, that the stock pipelines have T5 read, whatever the tokenizer's own limit.
TOKENS = 77
COLOURS = 3
# Of SentencePiece files: packages, and what they are imported by.
_READERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}


class PixelStage(Family):
    """One stage of the cascade. T5 is larger than all U-Nets together: it stays on the host, and does not learn."""

    autoencoder = None
    text = {"text_encoder": TextPart("tokenizer", T5EncoderModel, T5Tokenizer, learns=False)}
    classes = {"unet": UNet2DConditionModel}
    output_type = "pt"
    text_on_host = True
    # Else the pipelines would clean prompts, and <rare> is an HTML tag to them.
    call_arguments = {"clean_caption": "False"}

    def load(self, folder: Path, name: str) -> Any:
        """As in `Family`; the tokenizer cuts off where the stock pipelines have it do so."""
        if name in self.tokenizers:
            _check_readable(folder / name)
        found = super().load(folder, name)
        if name in self.tokenizers:
            found.model_max_length = TOKENS
        return found

    def check_tokenizer(self, tokenizer: Any, config: Path) -> None:
        """As in `Family`; T5 reads prompts of any length."""

    def max_tokens(self, config: Mapping[str, Any]) -> int:
        """As in `Family`."""
        return TOKENS

    def multiple(self, folder: Path) -> int:
        """As in `Family`: the U-Net halves pictures between its blocks."""
        try:
            return int(2 ** (len(read_json(folder / self.denoiser / "config.json")["block_out_channels"]) - 1))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read the configuration of the base in {folder}: {error!r}; get it anew") from error

    def as_read(self, prompt: str) -> str:
        """As in `Family`."""
        return prompt.lower().strip()

    def encode_text(self, text: Text, prompts: Sequence[str]) -> PromptStates:
        """T5's last states, in which no token has seen those that fill the prompt up; (B, 77, D)."""
        ((name, encoder),) = text.encoders.items()
        read = text.tokenizers[name](
            [self.as_read(prompt) for prompt in prompts],
            padding="max_length",
            max_length=TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        ids, mask = read.input_ids.to(encoder.device), read.attention_mask.to(encoder.device)
        return PromptStates(states=encoder(ids, attention_mask=mask)[0])

    def channels(self, denoiser: Any) -> int:
        """As in `Family`."""
        return COLOURS

    def predict(
        self, denoiser: Any, noisy: Tensor, timesteps: Tensor, states: PromptStates, given: Mapping[str, Tensor]
    ) -> Tensor:
        """As in `Family`; the variance is left out."""
        output: Tensor = denoiser(noisy, timesteps, encoder_hidden_states=states["states"], return_dict=False)[0]
        return output[:, :COLOURS]

    def denoise(self, pipeline: Any, states: PromptStates, nothing: PromptStates | None, drawing: Drawing) -> Tensor:
        """As in `Family`."""
        for generator in drawing.generators:  # The stock pipeline draws the noise itself, and takes none.
            generator.manual_seed(generator.initial_seed())
        return super().denoise(pipeline, states, nothing, drawing)

    def picture_arguments(self, pipeline: Any, drawing: Drawing) -> dict[str, Any]:
        """As in `Family`."""
        return {}


def _check_readable(tokenizer: Path) -> None:
    """The published tokenizers are SentencePiece's files, and transformers then asks for what does not help.

    Raises:
        UserError: what reads them is not installed.
    """
    lacking = [name for name, module in _READERS.items() if not _is_installed(module)]
    if lacking and (tokenizer / "spiece.model").is_file() and not (tokenizer / "tokenizer.json").is_file():
        raise UserError(
            f"the tokenizer in {tokenizer} is a SentencePiece file, which {' and '.join(lacking)} read; install them: "
            "pip install 'twostage[t5]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # Of the package that it is in.
        return False
