"""Stage 1: the token's embedding learns, everything else is frozen (Textual Inversion, arXiv 2208.01618)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.families import Base
from twostage.method.examples import Batch
from twostage.method.loss import denoising_loss
from twostage.method.precision import predict_as_kept
from twostage.method.text import encode_each_once
from twostage.subject.tokens import Placeholder, Placeholders, mean_norm


class EmbeddingLearner(nn.Module):
    """The new rows of the embedding table, and the loss they learn from.

    They are the only parameter here, (num_vectors, D) float32, those of several tokens below each other: no gradient
    and no optimizer state exist for the 49,408 rows of the vocabulary, nor for the frozen nets, which are asked but not
    owned.
    """

    def __init__(self, base: Base, placeholder: Placeholder | Placeholders, snr_gamma: float | None = None) -> None:
        super().__init__()
        self._frozen = (base.text_encoder, base.unet)  # In a tuple, so that torch registers neither as ours.
        self._family, self._tokenizer, self._noise_scheduler = base.family, base.tokenizer, base.noise_scheduler
        self._placeholder, self._snr_gamma = placeholder, snr_gamma
        table = base.text_encoder.get_input_embeddings().weight
        self._target_norm = mean_norm(table[: placeholder.vocabulary])
        self.rows = nn.Parameter(table[placeholder.token_ids].detach().clone().float())

    def forward(self, batch: Batch) -> Tensor:
        """Loss of each sample, (B,)."""
        _, unet = self._frozen
        predict = partial(predict_as_kept, self._family, unet, states=self.encode(batch.prompts))
        asked = batch.question(self._noise_scheduler)
        return denoising_loss(predict, self._noise_scheduler, asked, self._snr_gamma)

    def encode(self, prompts: list[str]) -> Tensor:
        """States of prompts, (len(prompts), tokens, D), with the rows as they are."""
        text_encoder, _ = self._frozen
        with placed_rows(text_encoder, self._placeholder.token_ids, self.rows):
            return encode_each_once(self._family, self._tokenizer, text_encoder, prompts, self._placeholder.expand)

    @torch.no_grad()
    def pull_norm(self, learning_rate: float) -> None:
        """Move each vector's norm n towards the vocabulary's mean norm: n <- n + min(1, 100 lr) (mean - n).

        The rule of cloneofsimo/lora. Rescaling once, after training, is known to ruin the embedding instead.
        """
        norms = self.rows.norm(dim=1, keepdim=True)
        pulled = norms + min(1.0, 100 * learning_rate) * (self._target_norm - norms)
        self.rows.mul_(pulled / norms.clamp_min(torch.finfo(norms.dtype).tiny))


@contextmanager
def placed_rows(text_encoder: nn.Module, token_ids: list[int], rows: Tensor) -> Iterator[None]:
    """Within it, the text encoder embeds `token_ids` as `rows`, (len(token_ids), D), and gradients flow into them.

    The table itself is only read. All embeddings are float32, so that no learned row is rounded to a table's bfloat16.
    """
    table: nn.Embedding = text_encoder.get_input_embeddings()  # type: ignore[operator]
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
