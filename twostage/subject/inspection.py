"""How a text encoder takes a text: its pieces, what they are near to, and where a prompt is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twostage.display import Display
from twostage.errors import UserError
from twostage.subject.encoders import Encoder, Neighbour
from twostage.subject.rare_tokens import NEIGHBOURS, RareToken, RareTokens, check_noun
from twostage.subject.tokens import check_placeholder
from twostage.subject.vocabulary import END


@dataclass(frozen=True)
class Piece:
    """A token of a text.

    Attributes:
        word: the word of the text that it is a piece of.
        spelling: as the vocabulary writes it; "</w>" marks the end of a word.
        id: its row in the embedding table.
        rank: as which pair it was merged; None for a single byte, and for a token that was added.
        norm: of its embedding.
        nearest: words nearest to its embedding.
    """

    word: str
    spelling: str
    id: int
    rank: int | None
    norm: float
    nearest: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Cut:
    """What the encoder reads of a prompt.

    Attributes:
        prompt: the text.
        tokens: how many it has, start and end among them.
        limit: how many are read.
        read, unread: the text in two parts; the second is empty where all is read.
    """

    prompt: str
    tokens: int
    limit: int
    read: str
    unread: str


@dataclass(frozen=True)
class Inspection:
    """What one encoder makes of a text.

    Attributes:
        encoder: the component's name.
        vocabulary: size of the vocabulary.
        merges: pairs that were merged to make it.
        mean_norm, norm_spread: mean and standard deviation of all embeddings' norms.
        pieces: the tokens of the text.
        nearest: words nearest to the text by the encoder's output at the end.
        weighed: how rare the text is, where it is one word and the vocabulary tells.
        status: whether the text is a word, or could name a new token, in a sentence.
        cut: what is read of the prompt, where one was given.
    """

    encoder: str
    vocabulary: int
    merges: int
    mean_norm: float
    norm_spread: float
    pieces: tuple[Piece, ...]
    nearest: tuple[Neighbour, ...]
    weighed: RareToken | None
    status: str
    cut: Cut | None


def inspect_text(
    encoder: Encoder, text: str, *, noun: str = "", prompt: str = "", display: Display | None = None
) -> Inspection:
    """What the encoder makes of a text, and of a prompt if one is given.

    Args:
        encoder: the text encoder.
        text: a token, a word, or several.
        noun: the class that the text qualifies; any when empty.
        prompt: to find the end of what is read.
        display: shows progress.

    Raises:
        UserError: the text holds no token, or the noun no word.
    """
    vocabulary = encoder.vocabulary
    pieces = [
        Piece(
            word,
            vocabulary.spelling[index],
            index,
            vocabulary.rank(index),
            float(encoder.norms[index]),
            tuple(encoder.neighbours([index], NEIGHBOURS)),
        )
        for word in text.split()
        for index in vocabulary.encode(word)
    ]
    if not pieces:
        raise UserError(f"the text {text!r} holds no token; give a word, as in: twostage token inspect sks")
    if noun:
        check_noun(vocabulary, noun)
    weighed = None
    if vocabulary.merges and len(text.split()) == 1:
        ids = tuple(piece.id for piece in pieces)
        weighed = RareTokens(encoder, noun, display).weigh([(text.strip().lower(), ids)])[0]
    return Inspection(
        encoder.name,
        len(encoder.tokenizer),
        vocabulary.merges,
        float(encoder.norms.mean()),
        float(encoder.norms.std()),
        tuple(pieces),
        tuple(encoder.words_like(text, NEIGHBOURS, display)),
        weighed,
        _status(encoder, text, pieces),
        cut_prompt(encoder, prompt) if prompt else None,
    )


def cut_prompt(encoder: Encoder, prompt: str) -> Cut:
    """Where the encoder stops to read a prompt: between two words, or within one that it reads the first pieces of."""
    room = encoder.limit - 2
    tokens = len(encoder.vocabulary.encode(prompt))
    if tokens <= room:
        return Cut(prompt, tokens + 2, encoder.limit, prompt, "")
    end = 0
    for word in prompt.split():
        start = prompt.index(word, end)
        pieces = encoder.vocabulary.encode(word)
        if len(pieces) > room:
            end = start + _letters_of(encoder, pieces[:room], word) if room else end
            break
        room, end = room - len(pieces), start + len(word)
    return Cut(prompt, tokens + 2, encoder.limit, prompt[:end], prompt[end:])


def _letters_of(encoder: Encoder, pieces: Sequence[int], word: str) -> int:
    """How many characters of the word its first pieces are; none where they end within a character."""
    spelled = str(encoder.tokenizer.decode(list(pieces))).replace(" ", "")
    return len(spelled) if word.lower().startswith(spelled) else 0


def _status(encoder: Encoder, text: str, pieces: Sequence[Piece]) -> str:
    words = text.split()
    if len(words) > 1:
        return f"{len(words)} words of {len(pieces)} tokens; the name of a new token holds no white space"
    if words[0] in encoder.tokenizer.get_added_vocab():
        return "a token that was added to this tokenizer"
    if len(pieces) == 1 and pieces[0].spelling.endswith(END):
        return "one token of the vocabulary: names a subject as it is, as in DreamBooth; a new token needs another name"
    try:
        check_placeholder(encoder.tokenizer, words[0])
    except UserError as error:
        return f"{len(pieces)} tokens; {error}"
    return f"{len(pieces)} tokens; free as the name of a new token (--placeholder-token)"
