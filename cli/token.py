"""`twostage token`: find a token that means nothing yet, and see what a base makes of one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count as counting
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twostage.errors import UserError, shown

if TYPE_CHECKING:
    from twostage.subject.encoders import Neighbour
    from twostage.subject.inspection import Inspection
    from twostage.subject.rare_tokens import RareToken
    from twostage.token_doctor import Suggestions

app = typer.Typer(help="Find a token for a subject, and see what a base makes of one.")

BaseModel = Annotated[str, typer.Option(help="'pocket' (bundled), a diffusers folder, or a hub id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def suggest(
    base: BaseModel = "pocket",
    class_noun: Annotated[
        str, typer.Option("--class", "--class-noun", help="What the subject is; also finds initial words for it.")
    ] = "",
    count: Annotated[int, typer.Option("--count", "-n", help="How many of each.", min=1, max=1000)] = 10,
    length: Annotated[int, typer.Option(help="Tokens that a rare text is made of.", min=1, max=3)] = 1,
    as_json: AsJson = False,
) -> None:
    """Suggest rare tokens, rare adjectives, and words to start a new token from.

    Rare tokens (DreamBooth) are late in the vocabulary, spelled like no word, and left alone by training. Rank: as
    which pair the token was merged; late is rare. Pull: how far it draws the sentence about the class away, by the
    text encoder's output; 0 is not at all.

    An adjective or an initial word is for --initializer-token: choose one that says how your subject looks.
    """
    _check_text(class_noun, "--class")
    from twostage import token_doctor  # imports torch

    found = token_doctor.suggest_tokens(base, class_noun=class_noun, count=count, length=length)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    _print_suggestions(found)


@app.command()
def inspect(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A token, a word, or several: sks, '<rare>'.")],
    base: BaseModel = "pocket",
    class_noun: Annotated[
        str, typer.Option("--class", "--class-noun", help="What the subject is, for {} in --prompt and for --draw.")
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="Also show where this prompt is cut off, {} standing for TEXT and the class.")
    ] = "",
    draw: Annotated[
        bool, typer.Option("--draw", help="Also draw 'a photo of a TEXT CLASS' beside 'a photo of a CLASS'.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Picture that --draw writes; token-TEXT.png, or the next free number."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Pictures a row.", min=1, max=64)] = 4,
    as_json: AsJson = False,
) -> None:
    """Show how a base splits a text, what it is near to, and where a prompt is cut off."""
    _check_text(text, "TEXT")
    _check_text(class_noun, "--class")
    _check_text(prompt, "--prompt")
    if not text.strip():
        raise UserError("TEXT is empty: give a token or a word, as in: twostage token inspect sks")
    if output and not draw:
        raise UserError("--output is where --draw writes its picture; add --draw")

    from twostage import token_doctor  # imports torch

    picture = (output or _free_file(text)) if draw else None
    if picture:
        token_doctor.check_picture(picture)
    found = token_doctor.inspect_token(base, text, class_noun=class_noun, prompt=prompt)
    if picture:
        token_doctor.draw_token(base, text, picture, class_noun=class_noun, count=count)
    if as_json:
        answer = {"encoders": [asdict(inspection) for inspection in found], "picture": picture and str(picture)}
        typer.echo(json.dumps(answer, indent=2))
        return
    for inspection in found:
        _print_inspection(inspection)
    if picture:
        _echo(f"picture: {picture}")


def _print_suggestions(found: Suggestions) -> None:
    columns = ("ids", "norm", "nearest words", "rank", "pull", "verdict")
    _print_table("rare token", columns, [_token_row(token) for token in found.tokens])
    _print_table("rare adjective", columns, [_token_row(token) for token in found.adjectives])
    if found.initial_words:
        rows = [
            (word.word, str(word.id), f"{word.norm:.3f}", f"{word.by_table:.2f}", f"{word.by_output:.2f}")
            for word in found.initial_words
        ]
        like = f"like {found.noun!r} by"
        _print_table("initial word", ("ids", "norm", f"{like} embedding", f"{like} encoder"), rows)
    for note in (f"ranks are of {found.merges} merges; pull is on {found.noun!r}", *found.notes):
        typer.echo(f"note: {note}", err=True)


def _token_row(token: RareToken) -> tuple[str, ...]:
    return (
        token.text,
        " ".join(map(str, token.ids)),
        f"{token.norm:.3f}",
        _neighbours(token.nearest),
        _rank(token.rank),
        f"{token.pull:.3f}",
        token.verdict,
    )


def _print_inspection(found: Inspection) -> None:
    _echo(
        f"{found.encoder}: {found.vocabulary} tokens, {found.merges} merges, "
        f"norm {found.mean_norm:.3f} +- {found.norm_spread:.3f}"
    )
    rows = [
        (
            piece.spelling,
            piece.word,
            str(piece.id),
            f"{piece.norm:.3f}",
            _neighbours(piece.nearest),
            _rank(piece.rank),
        )
        for piece in found.pieces
    ]
    _print_table("token", ("of", "id", "norm", "nearest words", "rank"), rows)
    _echo(f"nearest words by the encoder's output: {_neighbours(found.nearest)}")
    if found.weighed:
        _echo(f"verdict: {found.weighed.verdict} (score {found.weighed.score:.2f}, pull {found.weighed.pull:.3f})")
    _echo(found.status)
    if cut := found.cut:
        _echo(f"prompt: {cut.tokens} tokens of at most {cut.limit}, " + ("cut" if cut.unread else "all of them read"))
        _echo(f"    {cut.read}[CUT HERE]{cut.unread}" if cut.unread else f"    {cut.read}")


def _print_table(kind: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column is headed by what its rows are."""
    if not sys.stdout.isatty():  # for grep and awk: one line each, never wrapped
        for row in rows:
            _echo("\t".join((kind, *row)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(kind, *columns)
    for row in rows:
        table.add_row(*(Text(_encodable(shown(cell))) for cell in row))  # a token may look like markup
    Console().print(table)


def _echo(text: str) -> None:
    typer.echo(_encodable(shown(text)))


def _encodable(text: str) -> str:
    """The text with what this terminal cannot show as escapes: tokens may hold any character."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _neighbours(found: Sequence[Neighbour]) -> str:
    return ", ".join(f"{neighbour.word} {neighbour.cosine:.2f}" for neighbour in found)


def _rank(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def _check_text(text: str, where: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):  # what bytes that are no text become
        raise UserError(f"{where} is not valid UTF-8 text")


def _free_file(text: str) -> Path:
    """token-sks.png, token-sks-2.png, ...: an earlier picture is never replaced."""
    stem = "token-" + (re.sub(r"[^\w.-]+", "-", text).strip("-._")[:60] or "text")
    names = (Path(f"{stem}.png" if number == 1 else f"{stem}-{number}.png") for number in counting(1))
    return next(path for path in names if not path.exists())
