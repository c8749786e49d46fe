"""Rare tokens of a vocabulary, rare adjectives, and words to start a new token from.

A token that names a subject should mean as little as possible beforehand: DreamBooth (arXiv 2208.12242) looks for it
among the rare tokens of the vocabulary, in sequences of one to three that come back when their text is tokenized.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twostage.display import Display
from twostage.errors import UserError
from twostage.subject.encoders import Encoder, Neighbour
from twostage.subject.vocabulary import END, Vocabulary, word_list

Verdict = Literal["rare", "common", "wordlike", "trained"]
# A text and its tokens.
Candidate = tuple[str, tuple[int, ...]]

NEIGHBOURS = 3
# Stands where the user names no class.
ANY_NOUN = "thing"
# Candidates whose sentences are encoded, for each that is asked for, and at least.
_ENCODED, _ENCODED_AT_LEAST = 10, 100
# Rarest heads and ends that sequences are made of.
_POOL = {2: 60, 3: 20}


@dataclass(frozen=True)
class RareToken:
    """A text that could name a subject.

    Attributes:
        text: what stands in prompts.
        ids: its tokens.
        rank: as which pair its most frequent token was merged, None for a single byte.
        norm: of its embedding, the mean of several.
        nearest: words nearest to its embedding.
        pull: how far it draws a sentence about the class, see `Encoder.pull`.
        score: 0 to 1, from common to rare.
        verdict: "rare", or what speaks most against it.
    """

    text: str
    ids: tuple[int, ...]
    rank: int | None
    norm: float
    nearest: tuple[Neighbour, ...]
    pull: float
    score: float
    verdict: Verdict


@dataclass(frozen=True)
class InitialWord:
    """A word of one token that a new token could start from, with its likeness to the class.

    Attributes:
        by_table: cosine of the embeddings.
        by_output: cosine of the encoder's states at the end, less the mean of all words.
    """

    word: str
    id: int
    norm: float
    by_table: float
    by_output: float


class RareTokens:
    """Weighs the tokens of an encoder.

    The score is a product, for a token has to be all of it: late in the vocabulary, spelled like no word, and left
    alone by training. The last counts for half, since training reaches rare tokens too, and counts only by measures
    that tell this encoder's frequent words from rows that no text leads to.

    Args:
        encoder: the text encoder.
        noun: the class that the subject is one of; any when empty.

    Attributes:
        measures: what was looked at, telling or not.
        notes: what the user should know, a sentence each.

    Raises:
        UserError: the tokenizer has no byte-pair encoding, or the noun holds no word.
    """

    def __init__(self, encoder: Encoder, noun: str = "", display: Display | None = None) -> None:
        self.encoder, self.vocabulary = encoder, encoder.vocabulary
        self.display = display or Display()
        if not self.vocabulary.merges or not self.vocabulary.words:
            raise UserError(
                "the tokenizer of this base has no merges (merges.txt), so nothing says which of its tokens are rare; "
                "get the base anew, or choose another"
            )
        self.noun = noun or ANY_NOUN
        self.notes = check_noun(self.vocabulary, noun) if noun else []
        self.measures = [*encoder.table_measures(), encoder.pull_measure(self.noun, self.display)]
        self.notes += self._evidence()

    def suggest(self, count: int, length: int = 1) -> list[RareToken]:
        """The `count` rarest texts of `length` tokens, without white space, the best first; fewer if there are none.

        Every one consists of letters only and comes back when it is tokenized.
        """
        candidates = self._single() if length == 1 else self._sequences(length)
        return self.weigh(itertools.islice(candidates, max(_ENCODED * count, _ENCODED_AT_LEAST)))[:count]

    def adjectives(self, count: int) -> list[RareToken]:
        """The `count` rarest adjectives of one token, the best first."""
        known = [word for word in reversed(self.vocabulary.known) if word in word_list("adjectives")]
        rarest = known[: max(_ENCODED * count, _ENCODED_AT_LEAST)]
        return self.weigh(((word, (self.vocabulary.words[word],)) for word in rarest), spelled=False)[:count]

    def weigh(self, texts: Iterable[Candidate], *, spelled: bool = True) -> list[RareToken]:
        """Texts, weighed, the rarest first; `spelled` counts it against a text that it looks like a word."""
        candidates = list(texts)
        if not candidates:
            return []
        ids = [own for _, own in candidates]
        pulls = self.encoder.pull(ids, self.noun, self.display)
        weighed = []
        for (text, own), trained, pull in zip(candidates, self._trained(ids, pulls), pulls, strict=True):
            against: dict[Verdict, float] = {
                "common": 1 - min(map(self.vocabulary.rarity, own)),
                "wordlike": self.vocabulary.wordlike(text) if spelled else 0.0,
                "trained": float(trained) / 2,
            }
            score = math.prod(1 - reason for reason in against.values())
            verdict = "rare" if score >= 0.5 else max(against, key=lambda reason: against[reason])
            weighed.append(self._report(text, own, float(pull), score, verdict))
        return sorted(weighed, key=lambda token: -token.score)

    def _report(self, text: str, ids: tuple[int, ...], pull: float, score: float, verdict: Verdict) -> RareToken:
        ranks = [rank for index in ids if (rank := self.vocabulary.rank(index)) is not None]
        return RareToken(
            text,
            ids,
            min(ranks) if len(ranks) == len(ids) else None,
            float(self.encoder.norms[list(ids)].mean()),
            tuple(self.encoder.neighbours(ids, NEIGHBOURS)),
            pull,
            score,
            verdict,
        )

    def initial_words(self, count: int) -> list[InitialWord]:
        """Words of one token that are nearest to the noun, by embedding and by the encoder's output, the best first."""
        own = self.vocabulary.encode(self.noun)
        table = self.encoder.table_likeness(own)
        output = self.encoder.output_likeness(own, self.display)
        scores = _standardized(table) + _standardized(output)
        words = list(self.encoder.output_words.items())
        found = []
        for place in scores.argsort(descending=True).tolist():
            word, index = words[place]
            if index not in own and not self._is_form_of_noun(word):
                norm = float(self.encoder.norms[index])
                found.append(InitialWord(word, index, norm, float(table[place]), float(output[place])))
        return found[:count]

    def _is_form_of_noun(self, word: str) -> bool:
        """Whether the word is the noun's plural or singular: it would start a new token from the class itself."""
        return any(
            abs(len(word) - len(part)) <= 2 and (word.startswith(part) or part.startswith(word))
            for part in self.noun.lower().split()
        )

    def _evidence(self) -> list[str]:
        """What the measures tell, as notes."""
        telling = [measure.name for measure in self.measures if measure.tells]
        silent = [measure.name for measure in self.measures if not measure.tells]
        if not telling:
            return [
                "neither embeddings nor output of this encoder tell frequent words from tokens that no text leads to, "
                "as where weights are random: judged from the vocabulary alone"
            ]
        without = f", not by {' or '.join(silent)}, where frequent words are like untouched tokens" if silent else ""
        return [f"what training reached is judged by {' and '.join(telling)}{without}"]

    def _trained(self, ids: Sequence[Sequence[int]], pulls: Tensor) -> Tensor:
        """How far training has reached each text, (N,), 0 to 1: the mean of the telling measures."""
        of = {
            "norm": lambda: torch.stack([self.encoder.norm_shift(own).mean() for own in ids]),
            "neighbours": lambda: torch.stack([self.encoder.nearness(own).mean() for own in ids]),
            "pull": lambda: pulls,
        }
        telling = [measure.trained(of[measure.name]()) for measure in self.measures if measure.tells]
        return torch.stack(telling).mean(dim=0) if telling else torch.zeros(len(ids))

    def _single(self) -> Iterator[Candidate]:
        """Words of 3 and 4 letters that are one token, the rarest by vocabulary first."""
        words = {word: index for word, index in self.vocabulary.words.items() if len(word) in (3, 4)}
        return ((word, (index,)) for word, index in self._by_rarity(words) if self._survives(word, (index,)))

    def _sequences(self, length: int) -> Iterator[Candidate]:
        """Texts of rare tokens of 2 and 3 letters, written together; no token comes twice."""
        heads = {head: index for head, index in self.vocabulary.heads.items() if len(head) in (2, 3)}
        ends = {word: index for word, index in self.vocabulary.words.items() if len(word) in (2, 3)}
        pools = [self._by_rarity(heads)[: _POOL[length]]] * (length - 1) + [self._by_rarity(ends)[: _POOL[length]]]
        combined = [
            ("".join(text for text, _ in parts), tuple(index for _, index in parts))
            for parts in itertools.product(*pools)
        ]
        scores = {
            text: min(map(self.vocabulary.rarity, ids)) * (1 - self.vocabulary.wordlike(text)) for text, ids in combined
        }
        used: set[int] = set()
        for text, ids in sorted(combined, key=lambda pair: -scores[pair[0]]):
            if used.isdisjoint(ids) and len(set(ids)) == length and self._survives(text, ids):
                used.update(ids)
                yield text, ids

    def _by_rarity(self, tokens: dict[str, int]) -> list[tuple[str, int]]:
        """Tokens of more than one letter repeated, the rarest and least like words first."""
        scores = {
            token: self.vocabulary.rarity(index) * (1 - self.vocabulary.wordlike(token))
            for token, index in tokens.items()
            if len(set(token)) > 1
        }
        return [(token, tokens[token]) for token in sorted(scores, key=lambda token: -scores[token])]

    def _survives(self, text: str, ids: tuple[int, ...]) -> bool:
        """Whether a prompt with the text reaches exactly these tokens."""
        return self.vocabulary.encode(text) == list(ids)


def check_noun(vocabulary: Vocabulary, noun: str) -> list[str]:
    """Notes on a class that the vocabulary does not know as words.

    Raises:
        UserError: there is no word in it.
    """
    words = re.findall(r"\w+", noun)
    if not words or not noun.isprintable():
        raise UserError(f"the class {noun!r} holds no word; say what the subject is, as in --class backpack")
    notes = []
    for word in words:
        pieces = vocabulary.encode(word)
        if len(pieces) > 1:
            spelled = ", ".join(vocabulary.spelling[index].removesuffix(END) for index in pieces)
            near = difflib.get_close_matches(word.lower(), list(vocabulary.words), n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            notes.append(f"{word!r} is no word of this base's vocabulary but {len(pieces)} pieces ({spelled}){hint}")
    return notes


def _standardized(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp(min=1e-12)
