"""What a tokenizer's files alone tell: which words it holds, how frequent they were, and how words are spelled."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from twostage.quiet import quiet

# How CLIP's byte-pair encoding marks a token that ends a word.
END = "</w>"
_LETTERS = re.compile("[a-z]+")
# Bytes that occur in no UTF-8 text; a byte-level vocabulary has them all the same.
_IMPOSSIBLE = [chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]


class Vocabulary:
    """The tokens of a byte-pair tokenizer in the order in which they were learned.

    Pairs are merged by falling frequency: what was merged early is frequent in the text the tokenizer was learned
    from, and what was merged last hardly occurs in it.

    Attributes:
        spelling: each token as the vocabulary writes it, "dog</w>", by its id.
        merges: how many pairs were merged; 0 where the tokenizer has no byte-pair encoding.
        words: tokens of the letters a to z that are a word by themselves, with their ids, the most frequent first.
        heads: tokens of the letters a to z that begin or continue a word, likewise.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        ids: dict[str, int] = tokenizer.get_vocab()
        self.spelling = {index: token for token, index in ids.items()}
        pairs = _merges(tokenizer)
        self.merges = len(pairs)
        ranks = {ids[left + right]: rank for rank, (left, right) in enumerate(pairs) if left + right in ids}
        self._ranks = ranks
        added = tokenizer.get_added_vocab()
        by_rank = sorted((ranks.get(index, -1), token, index) for token, index in ids.items() if token not in added)
        self.words = {
            token.removesuffix(END): index
            for _, token, index in by_rank
            if token.endswith(END) and _LETTERS.fullmatch(token.removesuffix(END))
        }
        self.heads = {token: index for _, token, index in by_rank if _LETTERS.fullmatch(token)}

    def rank(self, token_id: int) -> int | None:
        """As which pair the token was merged, from 0; None for single bytes and for tokens that were added."""
        return self._ranks.get(token_id)

    def rarity(self, token_id: int) -> float:
        """How late the token was merged, from 0 (first, or a single byte) to 1 (last)."""
        return self._ranks.get(token_id, 0) / max(self.merges - 1, 1)

    def wordlike(self, text: str) -> float:
        """How likely the text is a word rather than letters drawn at random, in [0, 1].

        1 for the short words that everybody knows; else from the spelling alone, by the vocabulary's longer words: one
        half where the letters say nothing, 0 without a vowel.
        """
        return 1.0 if text in word_list("short_words") else self._letters.wordlike(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of any length, without those of start and end."""
        with quiet():  # which would warn of a text longer than the encoder reads
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @cached_property
    def known(self) -> dict[str, int]:
        """Those of `words` that people would call words; of 3 and 4 letters only those that the list has."""
        return {
            word: index
            for word, index in self.words.items()
            if len(word) >= 5 or word in word_list("short_words") or word in word_list("adjectives")
        }

    @cached_property
    def unreachable(self) -> list[int]:
        """Ids of tokens that no text leads to: their rows are as training found them."""
        ids = self.tokenizer.get_vocab()
        return [ids[byte + end] for byte in _IMPOSSIBLE for end in ("", END) if byte + end in ids]

    @cached_property
    def _letters(self) -> _LetterModel:
        # Shorter ones are abbreviations as often as words.
        return _LetterModel(word for word in self.words if len(word) >= 5)


class _LetterModel:
    """Which letters follow which in words: trigrams, the rarer ones smoothed by bigrams and those by single letters."""

    ORDER = 3
    # Sightings of a context after which its own counts weigh as much as those of the shorter one.
    SMOOTHING = 10
    # The letters, and the end of the word.
    SYMBOLS = 27

    def __init__(self, words: Iterable[str]) -> None:
        self._counts: Counter[str] = Counter()
        self._contexts: Counter[str] = Counter()
        for word in words:
            for gram in self._grams(word):
                for start in range(self.ORDER):
                    self._counts[gram[start:]] += 1
                    self._contexts[gram[start:-1]] += 1

    def wordlike(self, text: str) -> float:
        if not re.search("[aeiouy]", text):
            return 0.0  # "sks" ends like "tasks", yet nobody can say it
        odds = sum(math.log(self._chance(gram) * self.SYMBOLS) for gram in self._grams(text))
        return 1 / (1 + math.exp(-max(min(odds, 50), -50)))

    def _chance(self, gram: str) -> float:
        chance = 1 / self.SYMBOLS
        for start in reversed(range(self.ORDER)):
            seen = self._contexts[gram[start:-1]]
            if seen:
                weight = seen / (seen + self.SMOOTHING)
                chance = weight * self._counts[gram[start:]] / seen + (1 - weight) * chance
        return chance

    def _grams(self, word: str) -> list[str]:
        padded = "^" * (self.ORDER - 1) + word + "$"
        return [padded[i : i + self.ORDER] for i in range(len(padded) - self.ORDER + 1)]


@cache
def word_list(name: Literal["short_words", "adjectives"]) -> frozenset[str]:
    """Lists that come with the package, a to z.

    Words of 3 and 4 letters, with abbreviations and names that everybody knows; adjectives that say how things look.
    """
    return frozenset((Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8").split())


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    """The pairs a byte-pair tokenizer merges, in their order."""
    if hasattr(tokenizer, "bpe_ranks"):  # transformers 4, which runs CLIP's tokenizer in Python
        return sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend else {}
    # Older files write a pair as one string.
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model.get("merges", [])]
