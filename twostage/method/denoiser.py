"""Stage 2: the denoiser learns; the text encoder learns with it or is frozen, the token's embedding is frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twostage.families import Base
from twostage.family import Family
from twostage.family_parts import Text
from twostage.method.adapter import add_adapter, target_modules
from twostage.method.examples import Batch
from twostage.method.loss import Question, denoising_loss
from twostage.method.precision import predict_as_kept
from twostage.method.seeding import seeded
from twostage.method.text import encode_each_once
from twostage.prompt_states import PromptStates, joined
from twostage.quiet import quiet
from twostage.recipe import Adapter, Memory, Stage2

# Prompts a forward pass of the text encoder; fixed, so that a prompt's states do not depend on the run's length.
_CHUNK = 16


def whole_parts(options: Stage2, family: Family) -> tuple[str, ...]:
    """The components that stage 2 trains whole: those that a run folder holds in place of the base's."""
    return _parts(options, family) if options.train == "unet" else ()


def adapted_parts(options: Stage2, family: Family) -> tuple[str, ...]:
    """The components that stage 2 trains an adapter for: a run folder holds the adapters."""
    return _parts(options, family) if options.train == "adapter" else ()


def _parts(options: Stage2, family: Family) -> tuple[str, ...]:
    return (family.denoiser, *(family.learning_encoders if options.train_text_encoder else ()))


def keep_weights(denoiser: Any, memory: Memory) -> None:
    """Have a denoiser that trains whole keep its weights, and run, in the number format that the recipe says."""
    with quiet():
        denoiser.to({"float32": torch.float32, "bfloat16": torch.bfloat16}[memory.weights])


def open_for_training(base: Base, name: str, options: Stage2, adapter: Adapter | None = None, seed: int = 0) -> Any:
    """Let learn what the recipe says of one component, denoiser or text encoder: the one place that decides it.

    Args:
        base: holds the component.
        name: of the component.
        options: of the stage.
        adapter: what is added to the components of `adapted_parts`; drawn from `seed`.

    Returns:
        The component; `trains` tells whether anything in it learns.
    """
    component = base.component(name)
    if name in whole_parts(options, base.family):
        component.requires_grad_(True)
        if name in base.family.text:
            # Learned embeddings stay as they are; and the table with its optimizer state would be as large as the rest.
            component.get_input_embeddings().requires_grad_(False)
    elif name in adapted_parts(options, base.family):
        assert adapter is not None
        add_adapter(component, adapter, target_modules(base.family, name, adapter), seed)
    else:
        return component
    for module in base.family.unread(name, component):
        module.requires_grad_(False)
    if options.gradient_checkpointing:
        checkpoint_gradients(component)
    return component


def trains(module: nn.Module) -> bool:
    """Whether anything in it learns."""
    return any(parameter.requires_grad for parameter in module.parameters())


class DenoiserLearner(nn.Module):
    """The denoiser, the text encoders where they learn too, and the loss they learn from.

    Args:
        base: its denoiser opened by `open_for_training`.
        text: prompts -> their states; `EncodedText` or `LiveText`.
        prior_weight: lambda, for batches that have a prior.
        snr_gamma: for min-SNR weighting; None for none.
        flow_weighting: as in `denoising_loss`.
    """

    def __init__(
        self,
        base: Base,
        text: nn.Module,
        prior_weight: float = 1.0,
        snr_gamma: float | None = None,
        flow_weighting: str = "velocity",
    ) -> None:
        super().__init__()
        # By its own name, which is then that of its weights in checkpoints.
        self.add_module(base.family.denoiser, base.denoiser)
        self.text = text
        self._family, self._noise_scheduler = base.family, base.noise_scheduler
        self._prior_weight, self._weighting = prior_weight, (snr_gamma, flow_weighting)

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each sample, (B,); with a prior, that of its prior sample times lambda is added to it.

        arXiv 2208.12242, eq. 2.
        """
        asked = batch.question(self._noise_scheduler)
        with seeded(*batch.address):
            if batch.prior is None:
                return self._loss(asked, self.text(batch.prompts))
            prior = batch.prior.question(self._noise_scheduler)
            states = self.text(batch.prompts + batch.prior.prompts)
            if prior.noisy.shape == asked.noisy.shape:
                own, kept = self._loss(asked.followed_by(prior), states).chunk(2)
            else:  # Pictures of the class are squares, whatever the photos' bucket.
                halves = (states.rows(slice(len(batch.prompts))), states.rows(slice(len(batch.prompts), None)))
                own, kept = (self._loss(*part) for part in zip((asked, prior), halves, strict=True))
            return own + self._prior_weight * kept

    def _loss(self, asked: Question, states: PromptStates) -> Tensor:
        denoiser = self.get_submodule(self._family.denoiser)
        predict = partial(predict_as_kept, self._family, denoiser, states=states.to(asked.noisy.device))
        return denoising_loss(predict, self._noise_scheduler, asked, *self._weighting)


class EncodedText(nn.Module):
    """States of prompts, looked up: the text encoders are frozen and have left memory."""

    def __init__(self, states: Mapping[str, PromptStates]) -> None:
        super().__init__()
        self._places = {prompt: place for place, prompt in enumerate(states)}
        found = joined(states.values())
        self._names = tuple(found)
        for name, tensor in found.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def every(self) -> PromptStates:
        """Of all prompts."""
        return PromptStates(**{name: self.get_buffer(name) for name in self._names})

    def forward(self, prompts: list[str]) -> PromptStates:
        return self.every.rows([self._places[prompt] for prompt in prompts])


class LiveText(nn.Module):
    """States of prompts from text encoders that learn."""

    def __init__(self, base: Base, expand: Callable[[str], str]) -> None:
        super().__init__()
        text = base.text
        for name, encoder in text.encoders.items():
            self.add_module(name, encoder)
        self._family, self._expand = base.family, expand
        self._tokenizers, self._settings = text.tokenizers, text.settings

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """By the component's name."""
        return {name: self.get_submodule(name) for name in self._family.text}

    def forward(self, prompts: list[str]) -> PromptStates:
        text = Text(self._tokenizers, self.encoders, self._settings)
        return encode_each_once(self._family, text, prompts, self._expand)


@torch.no_grad()
def encode_prompts(
    base: Base, prompts: list[str], expand: Callable[[str], str], device: torch.device
) -> dict[str, PromptStates]:
    """States of every prompt of the stage, float32, so that the text encoders can leave memory."""
    text = base.text
    for encoder in text.encoders.values():
        encoder.to(base.text_device(device))
    states: dict[str, PromptStates] = {}
    for start in range(0, len(prompts), _CHUNK):
        chunk = prompts[start : start + _CHUNK]
        encoded = base.family.encode_text(text, [expand(prompt) for prompt in chunk])
        states.update(zip(chunk, encoded.to(device, torch.float32).split(), strict=True))
    return states


def checkpoint_gradients(component: Any) -> None:
    """Have a denoiser of diffusers, or a text encoder of transformers, recompute activations in the backward pass."""
    if hasattr(component, "enable_gradient_checkpointing"):
        component.enable_gradient_checkpointing()
        return
    with quiet():
        component.gradient_checkpointing_enable({"use_reentrant": False})
    for module in component.modules():
        drops_out = isinstance(getattr(module, "dropout", None), float)  # By itself, as T5's attention.
        if getattr(module, "gradient_checkpointing", False) and not drops_out:
            # transformers checkpoints in training mode alone; what is inside stays in eval mode, without dropout.
            module.training = True
