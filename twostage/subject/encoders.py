"""What a text encoder has made of its words: their neighbours, and what tells a word it knows from one it never met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.display import Display
from twostage.subject.tokens import embedding_table
from twostage.subject.vocabulary import Vocabulary, word_list

# Words that neighbours are looked for among, the most frequent ones: in the table, and in the encoder's output.
TABLE_WORDS, OUTPUT_WORDS = 8000, 2000
# Below, a measure does not tell frequent words from untouched rows. By chance it is 0.5 +- 0.06.
SEPARATION = 0.7
_BATCH = 256


@dataclass(frozen=True)
class Neighbour:
    """A word and the cosine between it and what it is a neighbour of."""

    word: str
    cosine: float


@dataclass(frozen=True)
class Measure:
    """A number that training moves, over rows it never reached and over the most frequent words.

    Attributes:
        name: "norm", "neighbours" or "pull".
        untouched, frequent: its means there.
        separation: how often it is larger for a frequent word than for an untouched row, in [0, 1].
    """

    name: str
    untouched: float
    frequent: float
    separation: float

    @property
    def tells(self) -> bool:
        """Whether it tells what was trained from what was not; of random weights it does not."""
        return self.separation >= SEPARATION and self.frequent > self.untouched

    def trained(self, values: Tensor) -> Tensor:
        """0 for values as of rows that were never reached, 1 for those of a frequent word; between them, linear."""
        return ((values - self.untouched) / (self.frequent - self.untouched)).clamp(0, 1)


@dataclass(frozen=True)
class _Bank:
    """Words that neighbours are looked for among, with their ids."""

    words: list[str]
    ids: list[int]

    @cached_property
    def places(self) -> dict[int, int]:
        return {index: place for place, index in enumerate(self.ids)}

    def nearest(self, cosines: Tensor, without: Sequence[int], count: int) -> list[Neighbour]:
        """Those of the highest of the cosines (W,), leaving some ids out."""
        own = [self.places[index] for index in without if index in self.places]
        cosines = cosines.clone()
        cosines[own] = -2
        found = cosines.topk(min(count, len(self.words) - len(set(own))))
        pairs = zip(found.values.tolist(), found.indices.tolist(), strict=True)
        return [Neighbour(self.words[place], cosine) for cosine, place in pairs]


class Encoder:
    """A text encoder with its tokenizer.

    Attributes:
        name: the component's, "text_encoder".
        vocabulary: of its tokenizer.
        limit: how many tokens of a prompt it reads, start and end among them.
        table: the token embeddings, (V, D), float32.
        norms: their L2 norms, (V,).
    """

    def __init__(self, name: str, tokenizer: Any, model: Any) -> None:
        self.name = name
        self.tokenizer, self.model = tokenizer, model
        self.vocabulary = Vocabulary(tokenizer)
        self.limit = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
        self.table = embedding_table(model).detach().float()[: len(tokenizer)]
        self.norms = self.table.norm(dim=1)
        self._directions = F.normalize(self.table, dim=1)
        self._states: Tensor | None = None
        words = self.vocabulary.known
        self._frequent = list(words.values())[: min(max(len(words) // 10, 8), 200)]
        self._table_words = _Bank(list(words)[:TABLE_WORDS], list(words.values())[:TABLE_WORDS])
        spoken = list(words)[:OUTPUT_WORDS]
        spoken += sorted((word_list("adjectives") & words.keys()).difference(spoken))
        self._output_words = _Bank(spoken, [words[word] for word in spoken])

    def neighbours(self, token_ids: Sequence[int], count: int) -> list[Neighbour]:
        """Words nearest to the mean embedding of some tokens, which are not among them."""
        mean = F.normalize(self.table[list(token_ids)].mean(dim=0), dim=0)
        return self._table_words.nearest(self._word_directions @ mean, token_ids, count)

    def words_like(self, text: str, count: int, display: Display | None = None) -> list[Neighbour]:
        """Words whose state at their end is nearest to that of the text at its end, see `output_likeness`."""
        ids = self.vocabulary.encode(text)
        return self._output_words.nearest(self.output_likeness(ids, display), ids, count)

    def output_likeness(self, token_ids: Sequence[int], display: Display | None = None) -> Tensor:
        """Cosine of the encoder's state at the end of a text with those of `output_words`, (W,).

        It is taken after subtracting the mean state of all words, which every prompt has in common.
        """
        states = self._word_states(display)
        mean = states.mean(dim=0)
        return F.normalize(states - mean, dim=1) @ F.normalize(self.end_states([token_ids])[0] - mean, dim=0)

    def table_likeness(self, token_ids: Sequence[int]) -> Tensor:
        """Cosine of the mean embedding of some tokens with the embeddings of `output_words`, (W,)."""
        return self._directions[self._output_words.ids] @ F.normalize(self.table[list(token_ids)].mean(dim=0), dim=0)

    @property
    def output_words(self) -> dict[str, int]:
        """Words that the encoder's output is compared with, and their ids: the most frequent ones, and adjectives."""
        return dict(zip(self._output_words.words, self._output_words.ids, strict=True))

    @torch.no_grad()
    def end_states(self, token_ids: Sequence[Sequence[int]], display: Display | None = None) -> Tensor:
        """States at the end of texts, (len(token_ids), D), float32 on the CPU.

        Args:
            token_ids: of each text, without start and end; what the encoder would not read is left out.
            display: shows progress.
        """
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows = [[start, *list(ids)[: self.limit - 2], end] for ids in token_ids]
        states = [torch.empty(0, self.table.shape[1])]
        with (display or Display()).progress(f"{self.name} reads", len(rows)) as update:
            for first in range(0, len(rows), _BATCH):
                batch = rows[first : first + _BATCH]
                width = max(map(len, batch))
                # What follows the end is never seen from it: each state depends on those before alone.
                padded = torch.tensor([row + [end] * (width - len(row)) for row in batch], device=self.model.device)
                last = torch.tensor([len(row) - 1 for row in batch])
                output = self.model(padded).last_hidden_state.float().cpu()
                states.append(output[torch.arange(len(batch)), last])
                update(min(first + _BATCH, len(rows)))
        return torch.cat(states)

    def pull(self, token_ids: Sequence[Sequence[int]], noun: str, display: Display | None = None) -> Tensor:
        """How far each text, put before a noun, draws the noun's sentence away from what it says without, (N,).

        One minus the cosine between the encoder's states at the end of "a photo of a <text> <noun>" and of
        "a photo of a <noun>": a word that means nothing to the encoder leaves the sentence nearly where it was.
        """
        before, after = self.vocabulary.encode("a photo of a"), self.vocabulary.encode(noun)
        states = self.end_states([[*before, *after], *([*before, *ids, *after] for ids in token_ids)], display)
        return 1 - F.cosine_similarity(states[1:], states[:1])

    def table_measures(self) -> list[Measure]:
        """What the embedding table tells of training: by norm, and by nearness to other words."""
        return [
            self._measure("norm", self.norm_shift),
            self._measure("neighbours", self.nearness),
        ]

    def pull_measure(self, noun: str, display: Display | None = None) -> Measure:
        """What the encoder's output tells of training, by how far words draw the noun's sentence."""
        return self._measure("pull", lambda ids: self.pull([[index] for index in ids], noun, display))

    def norm_shift(self, token_ids: Sequence[int]) -> Tensor:
        """How far each embedding's norm is from that of rows training never reached, (N,)."""
        return (self.norms[list(token_ids)] - self.norms[self.vocabulary.unreachable].mean()).abs()

    def nearness(self, token_ids: Sequence[int]) -> Tensor:
        """Mean cosine of each embedding with the three nearest words, (N,)."""
        places = self._table_words.places
        parts = []
        for first in range(0, len(token_ids), _BATCH):
            ids = list(token_ids[first : first + _BATCH])
            cosines = self._directions[ids] @ self._word_directions.T
            for row, index in enumerate(ids):
                if index in places:
                    cosines[row, places[index]] = -2
            parts.append(cosines.topk(min(3, len(places) - 1), dim=1).values.mean(dim=1))
        return torch.cat(parts)

    def _measure(self, name: str, of: Any) -> Measure:
        """The measure, where there are rows to compare; else one that tells nothing."""
        if min(len(self.vocabulary.unreachable), len(self._frequent)) < 8:
            return Measure(name, 0, 0, 0)
        untouched, frequent = of(self.vocabulary.unreachable), of(self._frequent)
        larger = (frequent[:, None] > untouched).float() + (frequent[:, None] == untouched).float() / 2
        return Measure(name, float(untouched.mean()), float(frequent.mean()), float(larger.mean()))

    @cached_property
    def _word_directions(self) -> Tensor:
        return self._directions[self._table_words.ids]

    def _word_states(self, display: Display | None) -> Tensor:
        """End states of `output_words`, each alone."""
        if self._states is None:
            self._states = self.end_states([[index] for index in self._output_words.ids], display)
        return self._states
