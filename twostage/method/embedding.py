"""Stage 1: the token's embedding learns, everything else is frozen (Textual Inversion, arXiv 2208.01618)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.families import Base
from twostage.method.examples import Batch
from twostage.method.loss import denoising_loss
from twostage.method.precision import predict_as_kept
from twostage.method.text import encode_each_once
from twostage.prompt_states import PromptStates
from twostage.subject.tokens import Placeholder, Placeholders, mean_norm


class EmbeddingLearner(nn.Module):
    """The new rows of each text encoder's embedding table, and the loss they learn from.

    They are the only parameters here, (num_vectors, D) float32 each, those of several tokens below each other: no
    gradient and no optimizer state exist for the 49,408 rows of the vocabulary, nor for the frozen nets, which are
    asked but not owned.

    Args:
        base: whose nets are asked.
        placeholders: by the text encoder; where the base has one, its own will do.
        snr_gamma: for min-SNR weighting; None for none.
        flow_weighting: as in `denoising_loss`.
    """

    def __init__(
        self,
        base: Base,
        placeholders: Mapping[str, Placeholders] | Placeholders | Placeholder,
        snr_gamma: float | None = None,
        flow_weighting: str = "velocity",
    ) -> None:
        super().__init__()
        self._frozen = (base.text, base.denoiser)  # In a tuple, so that torch registers neither as ours.
        self._family, self._noise_scheduler = base.family, base.noise_scheduler
        self._weighting = snr_gamma, flow_weighting
        several = placeholders if isinstance(placeholders, Mapping) else dict.fromkeys(base.family.text, placeholders)
        self._placeholders, self._target_norms = several, {}
        for name, own in several.items():
            table = base.text.encoders[name].get_input_embeddings().weight
            rows = nn.Parameter(table[own.token_ids].detach().clone().float())
            self._target_norms[name] = mean_norm(table[: own.vocabulary])
            self.register_parameter(name.replace("text_encoder", "rows"), rows)

    @property
    def every_row(self) -> dict[str, nn.Parameter]:
        """What learns, (num_vectors, D), by the text encoder."""
        return {name: self.get_parameter(name.replace("text_encoder", "rows")) for name in self._placeholders}

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each sample, (B,)."""
        _, denoiser = self._frozen
        states = self.encode(batch.prompts).to(batch.noise.device)
        predict = partial(predict_as_kept, self._family, denoiser, states=states)
        asked = batch.question(self._noise_scheduler)
        return denoising_loss(predict, self._noise_scheduler, asked, *self._weighting)

    def encode(self, prompts: list[str]) -> PromptStates:
        """States of prompts with the rows as they are, where the text encoders are."""
        text, _ = self._frozen
        with ExitStack() as within:
            for name, rows in self.every_row.items():
                within.enter_context(placed_rows(text.encoders[name], self._placeholders[name].token_ids, rows))
            expand = next(iter(self._placeholders.values())).expand
            return encode_each_once(self._family, text, prompts, expand)

    @torch.no_grad()
    def pull_norm(self, learning_rate: float) -> None:
        """Move each vector's norm n towards the vocabulary's mean norm: n <- n + min(1, 100 lr) (mean - n).

        The rule of cloneofsimo/lora. Rescaling once, after training, is known to ruin the embedding instead.
        """
        for name, rows in self.every_row.items():
            norms = rows.norm(dim=1, keepdim=True)
            pulled = norms + min(1.0, 100 * learning_rate) * (self._target_norms[name] - norms)
            rows.mul_(pulled / norms.clamp_min(torch.finfo(norms.dtype).tiny))


@contextmanager
def placed_rows(text_encoder: nn.Module, token_ids: list[int], rows: Tensor) -> Iterator[None]:
    """Within it, the text encoder embeds `token_ids` as `rows`, (len(token_ids), D), and gradients flow into them.

    The table itself is only read. All embeddings are float32, so that no learned row is rounded to a table's bfloat16.
    """
    table: nn.Embedding = text_encoder.get_input_embeddings()  # type: ignore[operator]
    rows = rows.to(table.weight.device)  # Which a text encoder on the host has elsewhere.
    place = torch.full((table.num_embeddings,), -1, device=rows.device)
    place[token_ids] = torch.arange(len(token_ids), device=rows.device)
    vocabulary = table.forward

    def embed(ids: Tensor) -> Tensor:
        places = place[ids]
        words = vocabulary(ids).float()
        learned = F.embedding(places.clamp_min(0), rows)
        return torch.where((places >= 0).unsqueeze(-1), learned, words)

    table.forward = embed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del table.forward


@torch.no_grad()
def write_rows(text_encoder: nn.Module, token_ids: list[int], rows: Tensor) -> None:
    """Put learned rows into the table for good."""
    weight = text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    weight[token_ids] = rows.to(weight)
