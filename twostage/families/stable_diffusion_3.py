"""Stable Diffusion 3 (arXiv 2403.03206): two CLIP text encoders and T5, a transformer, rectified flow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from twostage.errors import UserError
from twostage.family import Family
from twostage.family_parts import Text, TextPart, token_ids
from twostage.flow import FlowMatching
from twostage.prompt_states import PromptStates
from twostage.reading import read_json

_CLIPS = {
    "text_encoder": TextPart("tokenizer", CLIPTextModelWithProjection, CLIPTokenizer, "clip_l", pooled=True),
    "text_encoder_2": TextPart("tokenizer_2", CLIPTextModelWithProjection, CLIPTokenizer, "clip_g", pooled=True),
}
_T5 = {"text_encoder_3": TextPart("tokenizer_3", T5EncoderModel, T5TokenizerFast, "t5xxl", learns=False)}
# Of a prompt, that the stock pipeline has T5 read, whatever the tokenizer's own limit.
_T5_TOKENS = 256
# Of T5's states, where the transformer's configuration does not say.
_T5_WIDTH = 4096


class StableDiffusion3(Family):
    """3 and 3.5. T5 may be missing; zeros stand for its states then, as in the stock pipeline."""

    pipeline = "StableDiffusion3Pipeline"
    title = "Stable Diffusion 3"
    denoiser = "transformer"
    text = _CLIPS | _T5
    classes = {"vae": AutoencoderKL, "transformer": SD3Transformer2DModel}
    text_on_host = True

    def without(self, absent: Collection[str]) -> Family:
        """As in `Family`."""
        return _WITHOUT_T5 if "text_encoder_3" in absent else self

    def load(self, folder: Path, name: str) -> Any:
        """As in `Family`; T5's tokenizer cuts off where the stock pipeline has it do so."""
        found = super().load(folder, name)
        if name == "tokenizer_3":
            found.model_max_length = _T5_TOKENS
        return found

    def check_tokenizer(self, tokenizer: Any, config: Path) -> None:
        """As in `Family`; T5 reads prompts of any length."""
        if not isinstance(tokenizer, T5TokenizerFast):
            super().check_tokenizer(tokenizer, config)

    def max_tokens(self, config: Mapping[str, Any]) -> int:
        """As in `Family`."""
        return _T5_TOKENS if config.get("model_type") == "t5" else super().max_tokens(config)

    def multiple(self, folder: Path) -> int:
        """As in `Family`: a patch of the transformer's spans several latents."""
        return self.resolution(folder)[1] * _number(folder, "patch_size")

    def largest(self, folder: Path) -> int:
        """As in `Family`: the transformer has embeddings of so many places."""
        return self.multiple(folder) * _number(folder, "pos_embed_max_size")

    def noise_scheduler(self, folder: Path) -> FlowMatching:
        """As in `Family`."""
        return FlowMatching.read(folder / "scheduler")

    def unread(self, name: str, component: Any) -> Sequence[nn.Module]:
        """What the prompt asks for in the last block, which goes no further."""
        if name != self.denoiser:
            return ()
        last = component.transformer_blocks[-1].attn
        return tuple(filter(None, (last.add_q_proj, last.norm_added_q)))

    def encode_text(self, text: Text, prompts: Sequence[str]) -> PromptStates:
        """The last states but one of both CLIPs beside each other, filled up with zeros to T5's width, and T5's below
        them, (B, 77 + 256, D); and what both make of the whole prompt, (B, D1 + D2)."""
        outputs = [
            text.encoders[name](
                token_ids(text.tokenizers[name], prompts).to(text.encoders[name].device), output_hidden_states=True
            )
            for name in _CLIPS
        ]
        clips = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        width = text.settings["denoiser"].get("joint_attention_dim", _T5_WIDTH)
        longer = clips.new_zeros(len(prompts), _T5_TOKENS, width)
        for name in _T5.keys() & text.encoders.keys():
            encoder = text.encoders[name]
            longer = encoder(token_ids(text.tokenizers[name], prompts).to(encoder.device))[0]
        states = torch.cat([F.pad(clips, (0, width - clips.shape[-1])), longer], dim=-2)
        return PromptStates(states=states, pooled=torch.cat([output[0] for output in outputs], dim=-1))

    def predict(
        self, denoiser: Any, noisy: Tensor, timesteps: Tensor, states: PromptStates, given: Mapping[str, Tensor]
    ) -> Tensor:
        """As in `Family`."""
        told = self.prompt_inputs(states)
        output: Tensor = denoiser(hidden_states=noisy, timestep=timesteps, **told, return_dict=False)[0]
        return output

    def prompt_inputs(self, states: PromptStates) -> dict[str, Any]:
        """As in `Family`."""
        return {"encoder_hidden_states": states["states"], "pooled_projections": states["pooled"]}

    def prompt_arguments(self, states: PromptStates, nothing: PromptStates | None) -> dict[str, Any]:
        """As in `Family`."""
        told = super().prompt_arguments(states, nothing)
        pooled = None if nothing is None else nothing["pooled"]
        return told | {"pooled_prompt_embeds": states["pooled"], "negative_pooled_prompt_embeds": pooled}


class WithoutT5(StableDiffusion3):
    """A folder whose index says that there is no T5."""

    text = _CLIPS
    text_on_host = False
    absent = ("text_encoder_3", "tokenizer_3")


def _number(folder: Path, name: str) -> int:
    """Of the transformer's configuration.

    Raises:
        UserError: it has none there.
    """
    try:
        value = read_json(folder / "transformer" / "config.json")[name]
        if not isinstance(value, int) or not 0 < value < 1 << 14:
            raise ValueError(f"{name} = {str(value)[:80]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read the configuration of the base in {folder}: {error!r}; get it anew") from error
    return value


FAMILY = StableDiffusion3()
_WITHOUT_T5 = WithoutT5()
