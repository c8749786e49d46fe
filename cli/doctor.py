"""`twostage doctor`: what works on this machine, and what a report of a mistake needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from twostage.errors import UserError

if TYPE_CHECKING:
    from twostage.doctor import Checkup, Place

_COLOURS = {"works": "green", "fails": "red", "not tried": "yellow", "error": "red", "warning": "yellow"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what works on this machine, each thing tried, and what is wrong; put this into a report of a mistake.

    Nothing is downloaded or sent. Secrets, your name and other environment variables are not printed. The exit code is
    0 unless nothing can be trained here.
    """
    from twostage.doctor import examine

    found = examine()
    if as_json:
        facts = asdict(found) | {"trains": found.trains}
        typer.echo(json.dumps(facts, indent=2, default=str))
    else:
        _print(found)
    if not found.trains:
        first = found.findings[0]
        raise UserError(f"nothing can be trained here: {first.says}; {first.advice}")


def _print(found: Checkup) -> None:
    for title, facts in (("versions", found.versions), ("machine", found.machine), ("settings", found.settings)):
        _print_rows(title, list(facts.items()))
    _print_rows("places", list(_places(found)))
    _print_rows("tried", [(f"{one.area}: {one.name}", one.outcome, one.says) for one in found.tried])
    findings = [(one.level, one.says, one.advice) for one in found.findings]
    _print_rows("findings", findings or [("none", "nothing to remark on", "")])


def _places(found: Checkup) -> Iterator[tuple[str, str, str]]:
    from rich.filesize import decimal

    for place in found.places:
        yield place.name, str(place.path), _about(place)
    for one in found.kept:
        yield f"twostage cache: {one.kind}", f"{one.files} files", decimal(one.bytes)


def _about(place: Place) -> str:
    from rich.filesize import decimal

    told = [] if place.used is None else [f"{decimal(place.used)} in it"]
    told += [] if place.free is None else [f"{decimal(place.free)} free"]
    told += [place.kind] if place.kind else []
    return ", ".join([*told, place.fault or "can be written to"])


def _print_rows(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    if not sys.stdout.isatty():  # For a report, and for grep: one line each, never wrapped.
        for cells in rows:
            _echo("\t".join((title, *cells)).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE_HEAD)
    for cells in rows:
        table.add_row(*(Text(_encodable(cell), style=_COLOURS.get(cell, "")) for cell in cells))
    Console().print(table)


def _echo(text: str) -> None:
    typer.echo(_encodable(text))


def _encodable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
