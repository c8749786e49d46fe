"""`twostage cache`: what is kept to be made once, and how to be rid of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from twostage.cache import Kept, cache_folder, kept
from twostage.cache import clear as clear_cache

app = typer.Typer(help="See what is kept to be made only once, and clear it.")


@app.command("list")
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what the cache holds, and how much of it."""
    found = kept()
    if as_json:
        facts = {"folder": str(cache_folder()), "kinds": [asdict(one) for one in found]}
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(f"{_say(found)} in {cache_folder()}")


@app.command()
def clear(
    kinds: Annotated[
        list[str] | None, typer.Argument(metavar="KIND", help="As `twostage cache list` names them; all if none.")
    ] = None,
) -> None:
    """Remove what the cache holds.

    All of it is made again when it is needed; no run folder depends on it. Do not clear it while something trains.
    """
    found = clear_cache(kinds or [])
    typer.echo(f"removed {_say(found)} from {cache_folder()}")


def _say(found: Sequence[Kept]) -> str:
    """A line for each kind; returns how much it is together."""
    from twostage.report.formats import size  # imports numpy

    for one in found:
        typer.echo(f"{one.kind:<20} {one.files:>7} files  {size(one.bytes):>9}")
    return size(sum(one.bytes for one in found))
