"""What a model family has to say of itself: how its pipelines are read, asked and put together again.

A family is a subclass of `Family` with an instance called FAMILY, in a module of `twostage.families` or of a package of
one's own that names it in the entry points of the group `twostage.families`. What is here suits latent U-Nets with CLIP
text encoders; a family says in what it differs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from twostage.errors import UserError
from twostage.family_parts import Drawing, Shown, Text, TextPart, pool_at_end, token_ids
from twostage.flow import FlowMatching
from twostage.prompt_states import PromptStates
from twostage.quiet import quiet
from twostage.reading import read_json

# Of the pictures of a base, the largest side that is believed of a configuration, in pixels.
_LARGEST = 1 << 14
# Parts that are never loaded: they cost memory, and training has no use for them.
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")

NoiseScheduler: TypeAlias = DDPMScheduler | FlowMatching


class Family:
    """A family of text-to-image pipelines.

    Attributes:
        pipeline: `_class_name` in the `model_index.json` of the folders it reads.
        title: what people call it.
        denoiser: the component that stage 2 trains.
        autoencoder: the component that makes latents of pictures; None where the denoiser sees pixels.
        text: its text encoders by the component's name.
        classes: of its other nets by the component's name.
        output_type: by which stock pipelines give what their denoiser has drawn.
        text_on_host: whether text encoders stay in the host's memory, as is right for those that are larger than the
            denoiser.
        call_arguments: what its stock pipeline is called with beside a prompt and how pictures are drawn, as Python has
            it, `pipe` being the pipeline.
        enlarges: the pipeline whose pictures this one's are enlarged from; empty where it needs none.
        absent: components that the pipeline has a name for, and is told None in place of.
        refused: pipeline classes of bases that belong with its own and are none to teach, and why, in words that end
            in what to give instead.
    """

    pipeline: ClassVar[str]
    title: ClassVar[str]
    denoiser: ClassVar[str] = "unet"
    autoencoder: ClassVar[str | None] = "vae"
    text: ClassVar[Mapping[str, TextPart]]
    classes: ClassVar[Mapping[str, Any]] = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}
    output_type: ClassVar[str] = "latent"
    text_on_host: ClassVar[bool] = False
    call_arguments: ClassVar[Mapping[str, str]] = {}
    enlarges: ClassVar[str] = ""
    absent: ClassVar[tuple[str, ...]] = ()
    refused: ClassVar[Mapping[str, str]] = {}

    def without(self, absent: Collection[str]) -> Family:
        """The family as it is where a pipeline lacks these components, as its index says; itself where it needs them,
        or none of them."""
        return self

    def configured(self, folder: Path) -> Family:
        """The family as it is where what it tells of pictures depends on more of `folder` than on its denoiser."""
        return self

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Components that hold weights."""
        return (*self.text, *filter(None, (self.autoencoder, self.denoiser)))

    @cached_property
    def tokenizers(self) -> tuple[str, ...]:
        """Components that are tokenizers."""
        return tuple(part.tokenizer for part in self.text.values())

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Components that read prompts."""
        return (*self.text, *self.tokenizers)

    @cached_property
    def components(self) -> tuple[str, ...]:
        """Components that training reads."""
        return (*self.tokenizers, "scheduler", *self.models)

    @property
    def kind(self) -> Any:
        """The pipeline's class, of diffusers unless a family says otherwise."""
        with quiet():  # The import warns of image processors that are not used here.
            return getattr(diffusers, self.pipeline)

    @property
    def learning_encoders(self) -> tuple[str, ...]:
        """Text encoders that stage 2 trains where it is asked to."""
        return tuple(name for name, part in self.text.items() if part.learns)

    # ---- reading

    def load(self, folder: Path, name: str) -> Any:
        """One component of the pipeline in `folder`: float32, frozen, in eval mode.

        Eval mode throughout: these nets have no dropout to lose, and a step's randomness stays in its addressed draws.
        """
        for encoder, part in self.text.items():
            if part.tokenizer == name:
                tokenizer = part.tokenizer_kind.from_pretrained(folder / name, local_files_only=True)
                self.check_tokenizer(tokenizer, folder / encoder / "config.json")
                return tokenizer
        model, info = self._class_of(name).from_pretrained(
            folder / name,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        if lacking := sorted(info["missing_keys"]):  # The libraries would draw them at random, or leave them out.
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ValueError(f"the weights lack {lacking[0]}{more}")
        # Runs keep text encoders without tokenizers, and those that had theirs.
        if name in self.text and self.text[name].pooled and (folder / self.text[name].tokenizer).is_dir():
            pool_at_end(model, self.load(folder, self.text[name].tokenizer))
        return self._one_table(name, model).requires_grad_(False).eval()

    def check_tokenizer(self, tokenizer: Any, config: Path) -> None:
        """Prompts are filled up to what it says is their length: without a word of that, to 10^30 tokens.

        Raises:
            ValueError: it is none that the text encoder reads.
        """
        length, places = tokenizer.model_max_length, read_json(config).get("max_position_embeddings", 77)
        if not isinstance(length, int) or not 2 < length <= places:
            raise ValueError(f"model_max_length = {str(length)[:80]}, and the text encoder reads {places} tokens")

    def max_tokens(self, config: Mapping[str, Any]) -> int:
        """Tokens that a text encoder of this configuration reads of a prompt."""
        return int(config["max_position_embeddings"])

    def outline(self, folder: Path, name: str) -> Any:
        """The net of a component with the names and shapes of its modules, and no weights: it is on the meta device."""
        kind = self._class_of(name)
        with torch.device("meta"):
            if name in self.text:
                config = kind.config_class.from_pretrained(folder / name, local_files_only=True)
                return self._one_table(name, kind(config))
            return kind.from_config(kind.load_config(folder / name, local_files_only=True))

    def _one_table(self, name: str, net: Any) -> Any:
        """A net; where it is a text encoder, with one module that embeds tokens: T5 has two that share a weight, and
        asks the one that it does not show."""
        if name in self.text:
            net.set_input_embeddings(net.get_input_embeddings())
        return net

    def _class_of(self, name: str) -> Any:
        return self.text[name].kind if name in self.text else self.classes[name]

    def resolution(self, folder: Path) -> tuple[int, int]:
        """Side of the base's pictures in pixels, and how many pixels a latent's side spans.

        Raises:
            UserError: the configuration does not say.
        """
        try:
            size, reduction = read_json(folder / self.denoiser / "config.json")["sample_size"], 1
            if self.autoencoder:
                vae = read_json(folder / self.autoencoder / "config.json")
                reduction = 2 ** (len(vae["block_out_channels"]) - 1)
            side = (size if isinstance(size, int) else min(size)) * reduction
            if not isinstance(side, int) or not reduction <= side <= _LARGEST:
                raise ValueError(f"sample_size = {str(size)[:80]}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read the configuration of the base in {folder}: {error!r}; get it anew") from error
        return side, reduction

    def multiple(self, folder: Path) -> int:
        """Of how many pixels the sides of pictures have to be a multiple."""
        return self.resolution(folder)[1]

    def largest(self, folder: Path) -> int:
        """Side of the largest pictures that the denoiser takes, in pixels."""
        return _LARGEST

    def noise_scheduler(self, folder: Path) -> NoiseScheduler:
        """The forward process of training, as the folder's own scheduler has it."""
        scheduler: DDPMScheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
        return scheduler

    # ---- asking

    def as_read(self, prompt: str) -> str:
        """A prompt as the stock pipeline hands it to tokenizers."""
        return prompt

    @torch.no_grad()
    def encode_images(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the latents.

        Args:
            vae: None where the denoiser sees pixels.
            pixels: (B, 3, H, W) in [-1, 1].

        Returns:
            mean and standard deviation, each (B, C, H/reduction, W/reduction), scaled as the denoiser sees them.
        """
        if vae is None:
            return pixels, torch.zeros_like(pixels)
        posterior = vae.encode(pixels).latent_dist
        scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
        return (posterior.mean - shift) * scale, posterior.std * scale

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Pixels of scaled latents, (B, 3, H, W) in [-1, 1] or a little beyond."""
        if vae is None:
            return latents
        latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        pixels: Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    def encode_text(self, text: Text, prompts: Sequence[str]) -> PromptStates:
        """What the denoiser is told of prompts, as the stock pipeline computes it; tokens of several vectors must have
        been written out."""
        ((name, encoder),) = text.encoders.items()
        tokenizer = text.tokenizers[name]
        return PromptStates(states=encoder(token_ids(tokenizer, prompts).to(encoder.device))[0])

    def unread(self, name: str, component: Any) -> Sequence[nn.Module]:
        """Modules of a component, adapted or not, that nothing the denoiser is told depends on: they cannot learn."""
        return ()

    def picture_conditions(self, shown: Shown, generator: torch.Generator) -> dict[str, Tensor]:
        """What the denoiser is told of one picture beside its noisy latents, by a name of the family's own.

        Args:
            shown: the picture.
            generator: on the CPU, for what is drawn at random, which is of this sample alone.

        Returns:
            tensors without a batch axis.
        """
        return {}

    def predict(
        self, denoiser: Any, noisy: Tensor, timesteps: Tensor, states: PromptStates, given: Mapping[str, Tensor]
    ) -> Tensor:
        """The denoiser's output, shaped like the latents.

        Args:
            denoiser: the net.
            noisy: (B, C, h, w).
            timesteps: (B,), as the question has them.
            states: of B prompts.
            given: from `picture_conditions`, with a batch axis.
        """
        output: Tensor = denoiser(noisy, timesteps, encoder_hidden_states=states["states"], return_dict=False)[0]
        return output

    def prompt_inputs(self, states: PromptStates) -> dict[str, Any]:
        """By which names, of however deep dictionaries, a stock pipeline hands its denoiser what prompts come to."""
        return {"encoder_hidden_states": states["states"]}

    def text_device(self, device: torch.device) -> torch.device:
        """Where text encoders work, if the denoiser does so on `device`."""
        return torch.device("cpu") if self.text_on_host else device

    # ---- the stock pipeline

    def build_pipeline(self, folder: Path, **components: Any) -> Any:
        """The stock pipeline of `folder` in float32, with the given components in place of its own.

        The precision is named because transformers otherwise keeps that of the files: with weights stored as float16,
        text encoder and denoiser would not fit together.
        """
        kind = self.kind
        known = signature(kind.__init__).parameters
        left_out: dict[str, Any] = {name: None for name in (*_LEFT_OUT, *self.absent) if name in known}
        if "requires_safety_checker" in known:
            left_out["requires_safety_checker"] = False
        return kind.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            **left_out | components,
        )

    def channels(self, denoiser: Any) -> int:
        """Of what the denoiser removes noise from."""
        return int(denoiser.config.in_channels)

    def guides(self, denoiser: Any) -> bool:
        """Whether it is guided by asking it for nothing too: one that was distilled is told the scale instead."""
        return getattr(denoiser.config, "time_cond_proj_dim", None) is None

    def nothing(self, text: Text) -> PromptStates:
        """What stands for no prompt where a stock pipeline guides away from that; one row."""
        return self.encode_text(text, [""])

    def prompt_arguments(self, states: PromptStates, nothing: PromptStates | None) -> dict[str, Any]:
        """What a stock pipeline is called with in place of prompts."""
        return {
            "prompt_embeds": states["states"],
            "negative_prompt_embeds": None if nothing is None else nothing["states"],
        }

    def denoise(self, pipeline: Any, states: PromptStates, nothing: PromptStates | None, drawing: Drawing) -> Tensor:
        """Latents of a batch of pictures, scaled.

        Args:
            pipeline: the stock one, with a denoiser; what encodes text and decodes latents may be missing.
            states: of the prompts.
            nothing: as many rows to guide away from; None without guidance.
            drawing: how.
        """
        latents: Tensor = pipeline(
            **self.prompt_arguments(states, nothing),
            **self.picture_arguments(pipeline, drawing),
            generator=drawing.generators,
            num_inference_steps=drawing.num_inference_steps,
            guidance_scale=drawing.guidance_scale,
            width=drawing.size[0],
            height=drawing.size[1],
            output_type=self.output_type,
        ).images
        return latents

    def picture_arguments(self, pipeline: Any, drawing: Drawing) -> dict[str, Any]:
        """What a stock pipeline is called with to start from."""
        return {"latents": drawing.noise}
